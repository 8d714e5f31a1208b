//! The members of every request body, found by the server's own description.

use serde_json::{Map, Value, json};

/// Stands where a member is to be filled.
pub(super) const PLACE: &str = "@@";

/// A member, and a message with nothing but what it needs around it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its path, such as `request.files.*.data`; empty for the whole body.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// The body, with [`PLACE`] in the place of the member.
    pub(super) body: Value,
}

/// Kind of a member, as far as it matters for filling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A number, a switch or one of several words.
    Scalar,
    Text,
    Numbers,
    Texts,
    Map,
    Object,
}

/// All members of a body of this schema. `body` is the least that such a body has.
pub(super) fn members(document: &Value, schema: &Value, body: &Value) -> Vec<Member> {
    let mut walk = Walk {
        document,
        found: Vec::new(),
    };
    walk.visit(schema, &mut Vec::new(), body);
    walk.found
}

struct Walk<'a> {
    document: &'a Value,
    found: Vec<Member>,
}

impl Walk<'_> {
    fn visit(&mut self, schema: &Value, path: &mut Vec<String>, body: &Value) {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let schema = self.document.pointer(&name[1..]).unwrap();
            return self.visit(schema, path, body);
        }
        for several in ["oneOf", "anyOf", "allOf"] {
            for one in schema[several].as_array().into_iter().flatten() {
                self.visit(one, path, body);
            }
        }
        for kind in types(schema) {
            self.visit_type(kind, schema, path, body);
        }
    }

    fn visit_type(&mut self, kind: &str, schema: &Value, path: &mut Vec<String>, body: &Value) {
        match kind {
            "null" => {}
            "integer" | "number" | "boolean" => self.note(Kind::Scalar, path, body),
            "string" if schema.get("enum").is_some() => self.note(Kind::Scalar, path, body),
            "string" => self.note(Kind::Text, path, body),
            "array" => {
                let items = types(&schema["items"]);
                let kind = match items.as_slice() {
                    ["integer"] => Kind::Numbers,
                    ["string"] => Kind::Texts,
                    other => panic!("no rule for a list of {other:?}: {path:?}"),
                };
                self.note(kind, path, body);
            }
            "object" if schema.get("additionalProperties").is_some() => {
                self.note(Kind::Map, path, body);
                path.push("*".to_owned());
                self.visit(&schema["additionalProperties"], path, body);
                path.pop();
            }
            "object" => {
                self.note(Kind::Object, path, body);
                for (name, member) in schema["properties"].as_object().into_iter().flatten() {
                    path.push(name.clone());
                    let beside = beside(schema, name);
                    let body = with(body, path, &beside);
                    self.visit(member, path, &body);
                    path.pop();
                }
            }
            other => panic!("no rule for the type {other}: {path:?}"),
        }
    }

    fn note(&mut self, kind: Kind, path: &[String], body: &Value) {
        let mut body = body.clone();
        *place(&mut body, path) = json!(PLACE);
        self.found.push(Member {
            path: path.join("."),
            kind,
            body,
        });
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The one value that members beside this one must have, for those that have but one.
fn beside(schema: &Value, name: &str) -> Map<String, Value> {
    let members = schema["properties"].as_object().into_iter().flatten();
    let fixed = members.filter_map(|(other, member)| match member["enum"].as_array() {
        Some(values) if values.len() == 1 && other != name => {
            Some((other.clone(), values[0].clone()))
        }
        _ => None,
    });
    fixed.collect()
}

/// A body whose object around the end of the path has these members as well.
fn with(body: &Value, path: &[String], beside: &Map<String, Value>) -> Value {
    let mut body = body.clone();
    if !beside.is_empty() {
        let around = place(&mut body, &path[..path.len() - 1]);
        if !around.is_object() {
            *around = json!({});
        }
        around.as_object_mut().unwrap().extend(beside.clone());
    }
    body
}

/// Returns the place of a path in a body, which is made if it does not exist.
fn place<'a>(body: &'a mut Value, path: &[String]) -> &'a mut Value {
    path.iter().fold(body, |body, name| {
        if !body.is_object() {
            *body = json!({});
        }
        // A key that suits a map of files, and any other.
        let name = if name == "*" { "/sandbox/x" } else { name };
        &mut body[name]
    })
}
