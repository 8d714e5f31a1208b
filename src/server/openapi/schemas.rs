//! The components of the document.

use std::collections::BTreeMap;

use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

/// Name of the security scheme.
pub(super) const KEY: &str = "key";

/// Schemas by name, as components of the document.
pub(super) type Schemas = BTreeMap<String, RefOr<Schema>>;

/// Adds the schema of a type, and those of all types in it.
pub(super) fn collect<T: ToSchema>(schemas: &mut Schemas) {
    let mut within = Vec::new();
    T::schemas(&mut within);
    schemas.extend(within);
    schemas.insert(T::name().into_owned(), T::schema());
}
