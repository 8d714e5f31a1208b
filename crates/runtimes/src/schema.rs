//! Schemas of [`Runtime`], for the crates that describe the contract and the configuration.

#[cfg(feature = "openapi")]
mod openapi {
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    use utoipa::openapi::{RefOr, Schema};
    use utoipa::{PartialSchema, ToSchema};

    use crate::Runtime;

    impl PartialSchema for Runtime {
        fn schema() -> RefOr<Schema> {
            let schema = ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some("Language and interpreter of a request."))
                .enum_values(Some(Self::ALL.map(Self::name)))
                .build();
            RefOr::T(Schema::from(schema))
        }
    }

    impl ToSchema for Runtime {}
}

#[cfg(feature = "schemars")]
mod json {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use crate::Runtime;

    impl JsonSchema for Runtime {
        fn schema_name() -> Cow<'static, str> {
            "Runtime".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "description": "A language that programs are written in.",
                "type": "string",
                "enum": Self::ALL.map(Self::name),
            })
        }
    }
}
