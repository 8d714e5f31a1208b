//! From the text of a WebSocket message to what it asks for.

use isol8_api::{ClientMessage, Encoding, ExecuteBody, SignalName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::server::body;
use crate::server::json::{self, Bound, Parsed};

/// A message that asks for nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MessageError {
    /// The message is not JSON: the client does not speak this protocol.
    NotJson(String),
    /// The message is not one of the contract's; the text names the fault.
    Invalid(String),
}

/// Parses a message. Each type by itself: what parses any of them keeps all of a message until it knows its
/// type, at a multiple of its size.
pub(super) fn parse(text: &str, bounds: &[Bound]) -> Result<Parsed<ClientMessage>, MessageError> {
    #[derive(Deserialize)]
    struct Tagged {
        r#type: String,
    }
    #[derive(Deserialize)]
    struct Stdin {
        data: String,
        #[serde(default)]
        encoding: Encoding,
    }
    #[derive(Deserialize)]
    struct Signal {
        signal: SignalName,
    }
    #[derive(Deserialize)]
    struct Resize {
        cols: u32,
        rows: u32,
    }
    let tagged: Tagged = serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            let known = ClientMessage::TYPES.join(", ");
            let problem = format!(
                "Unknown message type: {error}, expected an object whose type is one of {known}"
            );
            MessageError::Invalid(problem)
        } else {
            MessageError::NotJson(format!("Invalid JSON: {error}"))
        }
    })?;
    let message = match tagged.r#type.as_str() {
        "execute" => {
            // An error within names the path to the member at fault.
            let body = body::parse::<ExecuteBody>(text.as_bytes(), bounds)
                .map_err(|error| MessageError::Invalid(error.to_string()))?;
            return Ok(Parsed {
                value: ClientMessage::Execute(Box::new(body.value)),
                unknown: body.unknown,
            });
        }
        kind @ "stdin" => {
            let Stdin { data, encoding } = content(kind, text)?;
            ClientMessage::Stdin { data, encoding }
        }
        "stdinEnd" => ClientMessage::StdinEnd,
        kind @ "signal" => {
            let Signal { signal } = content(kind, text)?;
            ClientMessage::Signal { signal }
        }
        kind @ "resize" => {
            let Resize { cols, rows } = content(kind, text)?;
            ClientMessage::Resize { cols, rows }
        }
        kind => {
            let shown: String = kind.chars().take(40).collect();
            let known = ClientMessage::TYPES.join(", ");
            let problem = format!("Unknown message type {shown:?}, expected one of {known}");
            return Err(MessageError::Invalid(problem));
        }
    };
    Ok(Parsed {
        value: message,
        unknown: Vec::new(),
    })
}

fn content<T: DeserializeOwned>(kind: &str, text: &str) -> Result<T, MessageError> {
    let parsed = json::read(text.as_bytes(), &[]);
    parsed
        .map(|parsed| parsed.value)
        .map_err(|error| MessageError::Invalid(format!("{kind}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(text: &str) -> String {
        match parse(text, &[]) {
            Err(MessageError::Invalid(problem)) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_is_not_json_is_told_from_what_is_not_understood() {
        for text in ["", "{", "execute", "{\"type\": \"stdin\"", "{} x"] {
            assert!(
                matches!(parse(text, &[]), Err(MessageError::NotJson(_))) || text == "{} x",
                "{text}"
            );
        }
        assert!(invalid("[]").contains("execute, stdin, stdinEnd, signal, resize"));
        assert!(invalid("{\"type\": 7}").contains("expected a string"));
        assert!(invalid("{\"type\": \"dance\"}").starts_with("Unknown message type \"dance\""));
    }

    #[test]
    fn a_fault_within_names_its_member() {
        let text = "{\"type\": \"execute\", \"request\": {\"runtime\": \"cobol\"}}";
        assert!(
            invalid(text).starts_with("request.runtime: "),
            "{}",
            invalid(text)
        );
        assert!(invalid("{\"type\": \"stdin\"}").contains("data"));
        let kill = "{\"type\": \"signal\", \"signal\": \"SIGKILL\"}";
        assert!(invalid(kill).contains("SIGINT"), "{}", invalid(kill));
    }

    #[test]
    fn every_type_that_is_named_is_understood() {
        for rest in [
            "execute\", \"request\": {\"runtime\": \"bash\", \"code\": \"1\"}, \"sessionId\": \"s\"}",
            "stdin\", \"data\": \"x\"}",
            "stdin\", \"data\": \"/w==\", \"encoding\": \"base64\"}",
            "stdinEnd\"}",
            "signal\", \"signal\": \"SIGTERM\"}",
            "resize\", \"cols\": 80, \"rows\": 24}",
        ] {
            let text = format!("{{\"type\": \"{rest}");
            assert!(parse(&text, &[]).is_ok(), "{text}: {:?}", parse(&text, &[]));
        }
    }
}
