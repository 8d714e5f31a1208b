//! Describes a route: its purpose, parameters and responses.

use std::collections::BTreeMap;

use actix_web::http::StatusCode;
use isol8_api::{ErrorBody, ErrorCode, SessionId};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Ref, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{self, HeaderBuilder, RefOr, Required, ResponseBuilder, Schema};

use super::schemas::{KEY, Schemas, collect};
use crate::server::error::{status, tells_when_to_retry};
use crate::server::trace::REQUEST_ID;
use crate::server::unknown::STRICT;

const JSON: &str = "application/json";

/// The sections of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Runs of programs.
    Execution,
    /// Sessions.
    Sessions,
    /// Files of sessions.
    Files,
    /// The server itself.
    Service,
}

impl Tag {
    pub(super) const ALL: [Self; 4] = [Self::Execution, Self::Sessions, Self::Files, Self::Service];

    fn name(self) -> &'static str {
        match self {
            Self::Execution => "Execution",
            Self::Sessions => "Sessions",
            Self::Files => "Files",
            Self::Service => "Service",
        }
    }

    pub(super) fn documented(self) -> openapi::Tag {
        openapi::Tag::new(self.name())
    }
}

/// A description of one route.
#[derive(Debug)]
pub struct Description {
    operation: OperationBuilder,
    schemas: Schemas,
    responses: BTreeMap<u16, ResponseBuilder>,
    refusals: Vec<ErrorCode>,
}

impl Description {
    /// Describes a route that needs no key. `id` is its name in generated clients.
    #[must_use]
    pub fn public(tag: Tag, id: &str, summary: &str) -> Self {
        let operation = OperationBuilder::new()
            .tag(tag.name())
            .operation_id(Some(id))
            .summary(Some(summary));
        Self {
            operation,
            schemas: Schemas::new(),
            responses: BTreeMap::new(),
            refusals: Vec::new(),
        }
    }

    /// Describes a route that needs a key.
    #[must_use]
    pub fn keyed(tag: Tag, id: &str, summary: &str) -> Self {
        let mut route = Self::public(tag, id, summary);
        let nothing: [&str; 0] = [];
        let security = SecurityRequirement::new(KEY, nothing);
        route.operation = route.operation.security(security);
        route.refuses(&[
            ErrorCode::Unauthorized,
            ErrorCode::Forbidden,
            ErrorCode::Internal,
        ])
    }

    /// Adds a longer description in Markdown.
    #[must_use]
    pub fn details(mut self, text: &str) -> Self {
        self.operation = self.operation.description(Some(text));
        self
    }

    /// Adds the path parameter `id`, which names a session.
    #[must_use]
    pub fn session(mut self, text: &str) -> Self {
        collect::<SessionId>(&mut self.schemas);
        self.parameter(ParameterIn::Path, "id", reference::<SessionId>(), text)
    }

    /// Adds another path parameter.
    #[must_use]
    pub fn path(self, name: &str, schema: ObjectBuilder, text: &str) -> Self {
        self.parameter(ParameterIn::Path, name, RefOr::T(schema.into()), text)
    }

    /// Adds a required query parameter.
    #[must_use]
    pub fn query<T: ToSchema>(mut self, name: &str, text: &str) -> Self {
        collect::<T>(&mut self.schemas);
        self.parameter(ParameterIn::Query, name, reference::<T>(), text)
    }

    /// Adds an optional query parameter.
    #[must_use]
    pub fn optional_query(mut self, name: &str, schema: ObjectBuilder, text: &str) -> Self {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(text))
            .schema(Some(schema));
        self.operation = self.operation.parameter(parameter);
        self.refuses(&[ErrorCode::InvalidRequest])
    }

    /// Adds the query parameter `strict`, with which unknown members of the body are refused.
    #[must_use]
    pub fn strict(self) -> Self {
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["0", "1", "false", "true"]));
        let text =
            "Whether unknown members are refused. Without it, the response only warns of them.";
        self.optional_query(STRICT, schema, text)
    }

    /// Adds an optional request header.
    #[must_use]
    pub fn header(self, name: &str, schema: ObjectBuilder, text: &str) -> Self {
        self.parameter(ParameterIn::Header, name, RefOr::T(schema.into()), text)
    }

    fn parameter(
        mut self,
        place: ParameterIn,
        name: &str,
        schema: RefOr<Schema>,
        text: &str,
    ) -> Self {
        let required = match place {
            ParameterIn::Header => Required::False,
            _ => Required::True,
        };
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(place)
            .required(required)
            .description(Some(text))
            .schema(Some(schema));
        self.operation = self.operation.parameter(parameter);
        self.refuses(&[ErrorCode::InvalidRequest])
    }

    /// Adds a request body in JSON.
    #[must_use]
    pub fn takes<T: ToSchema>(self, required: Required, example: Value) -> Self {
        let content = ContentBuilder::new()
            .schema(Some(reference::<T>()))
            .example(Some(example));
        let mut route = self.body(required, JSON, content);
        collect::<T>(&mut route.schemas);
        route.refuses(&[
            ErrorCode::InvalidRequest,
            ErrorCode::PayloadTooLarge,
            ErrorCode::Unavailable,
        ])
    }

    /// Adds a request body of any bytes.
    #[must_use]
    pub fn takes_bytes(self) -> Self {
        self.body(Required::True, "application/octet-stream", bytes())
            .refuses(&[ErrorCode::InvalidRequest])
    }

    fn body(mut self, required: Required, content_type: &str, content: ContentBuilder) -> Self {
        let body = RequestBodyBuilder::new()
            .required(Some(required))
            .content(content_type, content.build());
        self.operation = self.operation.request_body(Some(body.build()));
        self.refuses(&[ErrorCode::RequestTimeout])
    }

    /// Adds a response in JSON.
    #[must_use]
    pub fn answers<T: ToSchema>(mut self, status: StatusCode, text: &str) -> Self {
        collect::<T>(&mut self.schemas);
        let content = ContentBuilder::new().schema(Some(reference::<T>()));
        let response = ResponseBuilder::new()
            .description(text)
            .content(JSON, content.build());
        self.response(status, response)
    }

    /// Adds a response that is a JSON object without a schema.
    #[must_use]
    pub fn answers_object(self, status: StatusCode, text: &str) -> Self {
        let schema = ObjectBuilder::new().schema_type(Type::Object);
        let content = ContentBuilder::new().schema(Some(RefOr::T(schema.into())));
        let response = ResponseBuilder::new()
            .description(text)
            .content(JSON, content.build());
        self.response(status, response)
    }

    /// Adds a response of any bytes.
    #[must_use]
    pub fn answers_bytes(self, text: &str) -> Self {
        let response = ResponseBuilder::new()
            .description(text)
            .content("application/octet-stream", bytes().build());
        self.response(StatusCode::OK, response)
    }

    /// Adds a response of server-sent events, whose data is this type in JSON. OpenAPI 3.1 has no form for server-sent
    /// events; this is the form of 3.2, as far as 3.1 can express it.
    #[must_use]
    pub fn answers_events<T: ToSchema>(self, text: &str) -> Self {
        let data = ObjectBuilder::new()
            .schema_type(Type::String)
            .content_media_type(JSON)
            .description(Some(format!("A `{}`.", T::name())));
        let event = ObjectBuilder::new().property("data", data).required("data");
        let content = ContentBuilder::new().schema(Some(RefOr::T(event.into())));
        let response = ResponseBuilder::new()
            .description(text)
            .content("text/event-stream", content.build());
        self.response(StatusCode::OK, response)
            .carries::<T>("event")
    }

    /// Adds a response of text of another content type.
    #[must_use]
    pub fn answers_text(self, content_type: &str, text: &str) -> Self {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        let content = ContentBuilder::new().schema(Some(RefOr::T(schema.into())));
        let response = ResponseBuilder::new()
            .description(text)
            .content(content_type, content.build());
        self.response(StatusCode::OK, response)
    }

    /// Adds a response without a body.
    #[must_use]
    pub fn answers_nothing(self, status: StatusCode, text: &str) -> Self {
        self.response(status, ResponseBuilder::new().description(text))
    }

    fn response(mut self, status: StatusCode, response: ResponseBuilder) -> Self {
        self.responses.insert(status.as_u16(), response);
        self
    }

    /// Adds the schema of messages for which OpenAPI has no field, as the extension `x-` with this name.
    #[must_use]
    pub fn carries<T: ToSchema>(mut self, direction: &str) -> Self {
        collect::<T>(&mut self.schemas);
        let schema = json!({ "$ref": Ref::from_schema_name(T::name()).ref_location });
        let mut extensions = self.operation.build();
        let more = ExtensionsBuilder::new().add(direction, schema).build();
        extensions.extensions.get_or_insert_default().merge(more);
        self.operation = extensions.into();
        self
    }

    /// Adds error codes of the route.
    #[must_use]
    pub fn refuses(mut self, codes: &[ErrorCode]) -> Self {
        for code in codes {
            if !self.refusals.contains(code) {
                self.refusals.push(*code);
            }
        }
        self
    }

    /// Returns the operation for the document, and adds its schemas to the document's.
    pub(super) fn operation(self, schemas: &mut Schemas) -> Operation {
        schemas.extend(self.schemas);
        let mut codes: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
        for code in self.refusals {
            codes.entry(status(code).as_u16()).or_default().push(code);
        }
        let refusals = codes
            .into_iter()
            .map(|(status, codes)| (status, refusal(&codes)));
        let answers = self.responses.into_iter().chain(refusals);
        answers
            .fold(self.operation, |operation, (status, response)| {
                operation.response(status.to_string(), with_request_id(response))
            })
            .build()
    }
}

/// Returns the response for these error codes, which share one status.
fn refusal(codes: &[ErrorCode]) -> ResponseBuilder {
    let names: Vec<Value> = codes.iter().map(|code| json!(code)).collect();
    let listed: Vec<_> = names.iter().filter_map(Value::as_str).collect();
    let code = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(names.clone()));
    let schema = AllOfBuilder::new()
        .item(reference::<ErrorBody>())
        .item(ObjectBuilder::new().property("code", code));
    let content = ContentBuilder::new().schema(Some(RefOr::T(Schema::from(schema))));
    let response = ResponseBuilder::new()
        .description(listed.join(", "))
        .content(JSON, content.build());
    if !codes.iter().all(|code| tells_when_to_retry(*code)) {
        return response;
    }
    let seconds = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1));
    let header = HeaderBuilder::new()
        .schema(Schema::from(seconds))
        .description(Some("Seconds after which a retry may succeed."));
    response.header("Retry-After", header.build())
}

fn with_request_id(response: ResponseBuilder) -> ResponseBuilder {
    let id = ObjectBuilder::new().schema_type(Type::String);
    let header = HeaderBuilder::new()
        .schema(Schema::from(id))
        .description(Some("The request's id."));
    response.header(REQUEST_ID.as_str(), header.build())
}

fn reference<T: ToSchema>() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(T::name()))
}

/// Returns the content of any bytes, which has no schema in OpenAPI 3.1.
fn bytes() -> ContentBuilder {
    ContentBuilder::new()
}
