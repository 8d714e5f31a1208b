//! Content of a file in a request. Deserializing keeps nothing but the bytes in memory.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const EXPECTED: &str = "text, {\"type\": \"Buffer\", \"data\": [bytes]} or {\"base64\": text}";

/// Content of an injected file: text, a Node `Buffer` as `JSON.stringify` writes it, or base64.
#[derive(Clone, PartialEq, Eq)]
pub struct FileContent(pub Vec<u8>);

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileContent({} bytes)", self.0.len())
    }
}

impl Serialize for FileContent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([("base64", BASE64_STANDARD.encode(&self.0))])
    }
}

impl<'de> Deserialize<'de> for FileContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = FileContent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<FileContent, E> {
        Ok(FileContent(text.as_bytes().to_vec()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<FileContent, E> {
        Ok(FileContent(text.into_bytes()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<FileContent, A::Error> {
        let mut object = ContentObject::default();
        while let Some(name) = members.next_key::<Name>()? {
            match name {
                Name::Type => object.kind.add(members.next_value()?),
                Name::Data => object.data.add(members.next_value()?),
                Name::Base64 => object.base64.add(members.next_value()?),
                Name::Other => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        object.content()
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Name {
    Type,
    Data,
    Base64,
    #[serde(other)]
    Other,
}

/// The members of an object. Members come in any order, so they are interpreted once all of them are known.
#[derive(Default)]
struct ContentObject {
    kind: Member,
    data: Member,
    base64: Member,
}

/// A member of the object, and whether it was repeated.
#[derive(Default)]
struct Member {
    value: Option<MemberValue>,
    is_repeated: bool,
}

impl Member {
    fn add(&mut self, value: MemberValue) {
        self.is_repeated |= self.value.is_some();
        self.value = Some(value);
    }

    /// Returns the value, unless the member was repeated.
    fn once(self) -> Option<MemberValue> {
        self.value.filter(|_| !self.is_repeated)
    }
}

impl ContentObject {
    fn content<E: Error>(self) -> Result<FileContent, E> {
        let is_buffer =
            matches!(self.kind.once(), Some(MemberValue::Text(text)) if text == "Buffer");
        match (self.data.once(), self.base64.once()) {
            (Some(MemberValue::Bytes(bytes)), _) if is_buffer => Ok(FileContent(bytes)),
            (_, Some(MemberValue::Text(text))) => BASE64_STANDARD
                .decode(text)
                .map(FileContent)
                .map_err(|error| E::custom(format_args!("not base64: {error}"))),
            _ => Err(E::custom(format_args!("expected {EXPECTED}"))),
        }
    }
}

/// A JSON value, reduced to the forms that can be part of a file's content.
enum MemberValue {
    Text(String),
    Bytes(Vec<u8>),
    Other,
}

impl<'de> Deserialize<'de> for MemberValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor)
    }
}

/// A byte, or `None` for any other JSON value.
struct Byte(Option<u8>);

impl<'de> Deserialize<'de> for Byte {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteVisitor)
    }
}

/// Defines visitor methods for scalar values that all return the same value.
macro_rules! visit_as {
    ($other:expr; $($method:ident($value:ty))*) => {$(
        fn $method<E: Error>(self, _: $value) -> Result<Self::Value, E> {
            Ok($other)
        }
    )*};
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = MemberValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    visit_as! { MemberValue::Other; visit_bool(bool) visit_u64(u64) visit_i64(i64) visit_f64(f64) }

    fn visit_unit<E: Error>(self) -> Result<MemberValue, E> {
        Ok(MemberValue::Other)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MemberValue, E> {
        Ok(MemberValue::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<MemberValue, E> {
        Ok(MemberValue::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<MemberValue, A::Error> {
        let mut bytes = Vec::new();
        while let Some(Byte(byte)) = elements.next_element()? {
            let Some(byte) = byte else {
                while elements.next_element::<Byte>()?.is_some() {}
                return Ok(MemberValue::Other);
            };
            bytes.push(byte);
        }
        Ok(MemberValue::Bytes(bytes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<MemberValue, A::Error> {
        while members.next_entry::<Byte, Byte>()?.is_some() {}
        Ok(MemberValue::Other)
    }
}

struct ByteVisitor;

impl<'de> Visitor<'de> for ByteVisitor {
    type Value = Byte;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte")
    }

    visit_as! { Byte(None); visit_bool(bool) visit_f64(f64) visit_str(&str) }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Byte, E> {
        Ok(Byte(u8::try_from(number).ok()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Byte, E> {
        Ok(Byte(u8::try_from(number).ok()))
    }

    fn visit_unit<E: Error>(self) -> Result<Byte, E> {
        Ok(Byte(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Byte, A::Error> {
        while elements.next_element::<Byte>()?.is_some() {}
        Ok(Byte(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Byte, A::Error> {
        while members.next_entry::<Byte, Byte>()?.is_some() {}
        Ok(Byte(None))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Vec<u8>, String> {
        let content = serde_json::from_str::<FileContent>(json);
        content.map(|it| it.0).map_err(|error| error.to_string())
    }

    #[test]
    fn file_content_is_read_in_all_three_forms() {
        for json in [
            r#""hi""#,
            r#"{"type":"Buffer","data":[104,105]}"#,
            r#"{"data":[104,105],"more":{"x":[[]]},"type":"Buffer"}"#,
            r#"{"base64":"aGk="}"#,
            // The first form that fits counts.
            r#"{"base64":"%","type":"Buffer","data":[104,105]}"#,
            r#"{"base64":7,"type":"Buffer","data":[104,105]}"#,
            r#"{"type":"Buffer","data":[104,300],"base64":"aGk="}"#,
            r#"{"type":"Buffer","data":[104,"x"],"base64":"aGk="}"#,
            r#"{"type":"Buffer","data":{"0":104},"base64":"aGk="}"#,
            r#"{"type":"Blob","base64":"aGk="}"#,
        ] {
            assert_eq!(read(json).unwrap(), b"hi", "{json}");
        }
        for bad in [
            r#"{"type":"Array","data":[1]}"#,
            r#"{"data":[1]}"#,
            r#"{"type":"Buffer"}"#,
            r#"{"type":"Buffer","type":"Buffer","data":[1]}"#,
            r#"{"type":"Buffer","data":[1],"data":[1]}"#,
            r#"{"base64":"aGk=","base64":"aGk="}"#,
            r#"{"base64":"%"}"#,
            "7",
            "null",
            r#"{"type":"Buffer","data":[256]}"#,
            r#"{"type":"Buffer","data":[-1]}"#,
            r#"{"type":"Buffer","data":[1.0]}"#,
            r#"{"type":"Buffer","data":[1,[2],3]}"#,
            r#"["Buffer",[1]]"#,
            r#"["aGk="]"#,
            "{}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read("{}").unwrap_err().contains("expected text, {"));
        assert!(read("7").unwrap_err().contains("expected text, {"));
    }

    proptest! {
        #[test]
        fn any_bytes_survive_both_ways_of_writing_them(bytes: Vec<u8>) {
            let buffer = serde_json::json!({"data": &bytes, "type": "Buffer"}).to_string();
            prop_assert_eq!(read(&buffer).unwrap(), bytes.clone());
            let own = serde_json::to_string(&FileContent(bytes.clone())).unwrap();
            prop_assert_eq!(read(&own).unwrap(), bytes);
        }
    }
}
