//! Tracked visitors: follow a value into its elements, members and variants.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::short_error::{ShortError, Shortened};
use super::{Bound, MAX_NAME_SHOWN, Step, Tracked, Tracker};

/// Methods that visit a value without parts, and shorten its error.
macro_rules! with_short_error {
    ($($method:ident($value:ty))*) => {$(
        fn $method<E: Error>(self, value: $value) -> Result<Self::Value, E> {
            self.inner.$method::<ShortError>(value).map_err(E::custom)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Tracked<'_, '_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    with_short_error! {
        visit_bool(bool) visit_char(char)
        visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128)
        visit_f32(f32) visit_f64(f64)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        self.inner.visit_unit::<ShortError>().map_err(E::custom)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        self.inner.visit_none::<ShortError>().map_err(E::custom)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        let (visitor, inner) = self.wrap(inner);
        visitor.visit_some(inner)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        let (visitor, inner) = self.wrap(inner);
        visitor.visit_newtype_struct(inner)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<Self::Value, A::Error> {
        let bound = self.tracker.bound();
        let visited = self.inner.visit_seq(TrackedElements {
            inner,
            bound,
            count: 0,
            tracker: &mut *self.tracker,
        });
        self.tracker.note_error(visited)
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<Self::Value, A::Error> {
        let bound = self.tracker.bound();
        let visited = self.inner.visit_map(TrackedMembers {
            inner,
            bound,
            count: 0,
            name: String::new(),
            tracker: &mut *self.tracker,
        });
        self.tracker.note_error(visited)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<Self::Value, A::Error> {
        let (visitor, inner) = self.wrap(inner);
        visitor.visit_enum(inner)
    }
}

/// Access to the elements of a list, which it counts.
struct TrackedElements<'t, 'a, A> {
    inner: A,
    bound: Option<Bound>,
    count: usize,
    tracker: &'t mut Tracker<'a>,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for TrackedElements<'_, '_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.tracker.path.push(Step::Index(self.count));
        let read = self.inner.next_element_seed(Tracked {
            inner: seed,
            tracker: &mut *self.tracker,
        });
        let read = self.tracker.note_error(read);
        self.tracker.path.pop();
        let read = read?;
        self.count += usize::from(read.is_some());
        self.tracker.check(self.bound, self.count)?;
        Ok(read)
    }
}

/// Access to the members of an object, which it counts.
struct TrackedMembers<'t, 'a, A> {
    inner: A,
    bound: Option<Bound>,
    count: usize,
    /// Name of the current member, shortened if it is long.
    name: String,
    tracker: &'t mut Tracker<'a>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for TrackedMembers<'_, '_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let name = &mut self.name;
        let read = self
            .inner
            .next_key_seed(NameRecorder { inner: seed, name })?;
        self.count += usize::from(read.is_some());
        self.tracker.check(self.bound, self.count)?;
        Ok(read)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let name = std::mem::take(&mut self.name);
        self.tracker.path.push(Step::Member(name));
        let read = self.inner.next_value_seed(Tracked {
            inner: seed,
            tracker: &mut *self.tracker,
        });
        let read = self.tracker.note_error(read);
        self.tracker.path.pop();
        read
    }
}

/// Records a member's name, shortened if it is long. The value is a seed, then the deserializer of the name, then its
/// visitor.
struct NameRecorder<'n, T> {
    inner: T,
    name: &'n mut String,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for NameRecorder<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(NameRecorder {
            inner: deserializer,
            name: self.name,
        })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for NameRecorder<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(NameRecorder {
            inner: visitor,
            name: self.name,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NameRecorder<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<V::Value, E> {
        *self.name = Shortened::of(name, MAX_NAME_SHOWN);
        self.inner.visit_str::<ShortError>(name).map_err(E::custom)
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<V::Value, E> {
        *self.name = Shortened::of(name, MAX_NAME_SHOWN);
        let visited = self.inner.visit_borrowed_str::<ShortError>(name);
        visited.map_err(E::custom)
    }
}

impl<'t, 'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Tracked<'t, 'a, A> {
    type Error = A::Error;
    type Variant = Tracked<'t, 'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let Self { inner, tracker } = self;
        let seed = Tracked {
            inner: seed,
            tracker: &mut *tracker,
        };
        let (value, inner) = inner.variant_seed(seed)?;
        Ok((value, Tracked { inner, tracker }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Tracked<'_, '_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let (variant, seed) = self.wrap(seed);
        variant.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let (variant, visitor) = self.wrap(visitor);
        variant.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let (variant, visitor) = self.wrap(visitor);
        variant.struct_variant(fields, visitor)
    }
}
