use isol8_api::{ExecuteBody, Options};
use serde_json::{Value, json};

use super::*;

const BOUNDS: &[Bound] = &[
    Bound {
        path: &["request", "env"],
        most: 2,
        noun: "variables",
    },
    Bound {
        path: &["request", "outputPaths"],
        most: 2,
        noun: "entries",
    },
];

fn body(request: Value) -> Value {
    let mut body = json!({"request": {"runtime": "bash", "code": "1"}});
    let members = request.as_object().unwrap().clone();
    body["request"].as_object_mut().unwrap().extend(members);
    body
}

fn refused(body: &Value) -> String {
    read::<ExecuteBody>(body.to_string().as_bytes(), BOUNDS).unwrap_err()
}

#[test]
fn what_fits_is_read_as_without_bounds() {
    let given = body(json!({
        "env": {"A": "1", "B": "2"},
        "outputPaths": ["/tmp/a", "/tmp/b"],
        "files": {"/tmp/c": {"type": "Buffer", "data": [1, 2]}},
        "timeoutMs": 7,
        "metadata": {"a": "1", "b": "2", "c": "3"},
    }));
    let read = read::<ExecuteBody>(given.to_string().as_bytes(), BOUNDS).unwrap();
    assert!(read.unknown.is_empty());
    let plain: ExecuteBody = serde_json::from_value(given).unwrap();
    assert_eq!(json!(read.value), json!(plain));
}

#[test]
fn one_entry_too_many_is_named_with_the_list_and_its_bound() {
    for (request, expected) in [
        (
            json!({"env": {"A": "", "B": "", "C": ""}}),
            "request.env: expected at most 2 variables, there are more at ",
        ),
        (
            json!({"outputPaths": ["", "", ""]}),
            "request.outputPaths: expected at most 2 entries, there are more at ",
        ),
    ] {
        let text = refused(&body(request));
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn a_fault_is_found_where_it_is() {
    for (given, path) in [
        (body(json!({"timeoutMs": "x"})), "request.timeoutMs"),
        (
            body(json!({"outputPaths": ["/tmp/a", 7]})),
            "request.outputPaths[1]",
        ),
        (body(json!({"env": {"A": 7}})), "request.env.A"),
        (body(json!({"runtime": "cobol"})), "request.runtime"),
        (json!({"request": {"code": "1"}}), "request"),
        (json!({"request": []}), "request"),
        (json!({}), "body"),
    ] {
        let text = refused(&given);
        assert!(text.starts_with(&format!("{path}: ")), "{path}: {text}");
    }
    let options = json!({"memoryLimit": [1], "network": "host"});
    let text = read::<Options>(options.to_string().as_bytes(), &[]).unwrap_err();
    assert!(
        text.starts_with("memoryLimit: invalid type: sequence, expected a size"),
        "{text}"
    );
    for broken in ["", "{", "{\"network\": \"host\"} x", "{\"network\": host}"] {
        assert!(read::<Options>(broken.as_bytes(), &[]).is_err(), "{broken}");
    }
}

#[test]
fn an_error_repeats_little_of_what_was_sent() {
    // A character that is longest when it is escaped.
    let long = "\u{7f}".repeat(100_000);
    for given in [
        body(json!({"timeoutMs": long})),
        body(json!({"runtime": long})),
        body(json!({"env": long})),
        body(json!({"files": {&long: 7}})),
        body(json!({"files": long})),
        body(json!({"tty": long})),
        json!({"request": long}),
        json!({"request": body(json!({}))["request"], "options": {"network": long}}),
        json!({"request": body(json!({}))["request"], "options": {"memoryLimit": long}}),
        json!({"request": body(json!({}))["request"], "sessionId": long}),
    ] {
        let text = refused(&given);
        assert!(text.len() < 1500, "{} bytes: {text:.200}", text.len());
        assert!(text.contains('…'), "{text}");
    }
}

#[test]
fn unknown_members_are_noted_by_the_begin_of_their_paths() {
    let long = "n".repeat(100_000);
    let given = body(json!({"timeoutMS": 1, &long: {"a": [1, {"b": 2}]}}));
    let read = read::<ExecuteBody>(given.to_string().as_bytes(), BOUNDS).unwrap();
    assert!(read.unknown.contains(&"request.timeoutMS".to_owned()));
    assert!(
        read.unknown
            .iter()
            .all(|path| path.len() < MAX_PATH_SHOWN + 4)
    );
    let many: serde_json::Map<_, _> = (0..1000).map(|n| (n.to_string(), json!(n))).collect();
    let read = super::read::<Options>(Value::from(many).to_string().as_bytes(), &[]).unwrap();
    assert_eq!(read.unknown.len(), MAX_UNKNOWN);
}
