//! OpenAPI schemas of the types with their own `Serialize` and `Deserialize` implementations. The schemas of all other
//! types are derived.

use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::content::FileContent;
use crate::file::Base64;
use crate::value::{ByteSize, SandboxPath, SessionId, TenantId};

macro_rules! schema {
    ($type:ty, $schema:expr) => {
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                RefOr::T(Schema::from($schema))
            }
        }

        impl ToSchema for $type {}
    };
}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
}

/// Returns the schema of a session's or tenant's name.
fn name(description: &str) -> Object {
    text(description)
        .pattern(Some("^[A-Za-z0-9._:-]+$"))
        .min_length(Some(1))
        .max_length(Some(SessionId::MAX_LENGTH))
        .examples(["demo"])
        .build()
}

schema!(
    SessionId,
    name("Name of a session, chosen by the client: 1 to 128 of `A-Z a-z 0-9 . _ : -`.")
);
schema!(TenantId, name("Tenant that a session belongs to."));

schema!(
    ByteSize,
    OneOfBuilder::new()
        .description(Some(
            "A number of bytes, or text such as `\"512m\"` or `\"1.5g\"`: the units `k m g t` are \
             powers of 1024."
        ))
        .item(
            ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(0_u64))
        )
        .item(ObjectBuilder::new().schema_type(Type::String).pattern(Some(
            r"^\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([bBkKmMgGtT]([iI]?[bB])?)?\s*$"
        )))
        .build()
);

schema!(
    SandboxPath,
    text(
        "An absolute path inside `/sandbox` or `/tmp`, of at most 4095 bytes and 255 in each name. \
         `.` and `..` are resolved, and must not lead outside. The path of a file does not end with a slash."
    )
    .pattern(Some("^/(sandbox|tmp)(/|$)"))
    .max_length(Some(Self::MAX_LENGTH))
    .examples(["/sandbox/data.csv"])
    .build()
);

schema!(
    Base64,
    text("Bytes in base64.")
        .content_encoding("base64")
        .pattern(Some(
            "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
        ))
        .build()
);

schema!(
    FileContent,
    OneOfBuilder::new()
        .description(Some(
            "Content of a file: text, a Node `Buffer` as `JSON.stringify` writes it, or base64."
        ))
        .item(ObjectBuilder::new().schema_type(Type::String))
        .item(
            ObjectBuilder::new()
                .schema_type(Type::Object)
                .property(
                    "type",
                    ObjectBuilder::new()
                        .schema_type(Type::String)
                        .enum_values(Some(["Buffer"]))
                )
                .property("data", bytes())
                .required("type")
                .required("data")
        )
        .item(
            ObjectBuilder::new()
                .schema_type(Type::Object)
                .property("base64", Base64::schema())
                .required("base64")
        )
        .build()
);

fn bytes() -> ArrayBuilder {
    let byte = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0))
        .maximum(Some(255));
    ArrayBuilder::new().items(RefOr::T(Schema::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Runtime;
    use serde_json::{Value, json};

    fn schema_of<T: ToSchema>() -> Value {
        serde_json::to_value(T::schema()).unwrap()
    }

    #[test]
    fn the_schemas_of_these_types_describe_the_accepted_values() {
        assert_eq!(
            schema_of::<Runtime>()["enum"],
            json!(["python", "node", "bun", "deno", "bash"])
        );
        assert_eq!(schema_of::<SessionId>()["maxLength"], 128);
        assert_eq!(schema_of::<ByteSize>()["oneOf"][0]["type"], "integer");
        assert_eq!(
            schema_of::<FileContent>()["oneOf"][1]["required"],
            json!(["type", "data"])
        );
    }
}
