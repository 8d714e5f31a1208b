//! The JSON that members are filled with.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::schema::Kind;

/// Bytes of a body that is filled to the server's limit. The costs are proportional.
pub(super) const SIZE: usize = 2 << 20;

/// JSON for a member.
pub(super) struct Fill {
    pub(super) name: &'static str,
    pub(super) json: String,
    /// Whether it has more entries than any list or map of a request may have.
    pub(super) is_too_many: bool,
}

/// Every kind of JSON of nearly [`SIZE`] bytes, made once: that takes longer than to send it.
pub(super) struct Fills(Vec<Fill>);

impl Fills {
    pub(super) fn new() -> Self {
        let fill = |name, json| Fill {
            name,
            json,
            is_too_many: false,
        };
        let many = |name, json| Fill {
            name,
            json,
            is_too_many: true,
        };
        let one_name = format!("{{{}:\"\"}}", text("\u{7f}"));
        Self(vec![
            fill("text", text("a")),
            // An error would show each of these in six characters.
            fill("control characters", text("\u{7f}")),
            fill("list of lists", list("[]")),
            fill("list of numbers", list("0")),
            many("list of texts", list("\"\"")),
            many("map of short names", map(|n| format!("{n:x}"))),
            many("map of names that begin alike", map(|n| "a".repeat(n))),
            fill("map of one name", one_name),
        ])
    }

    /// The worst forms for a member of this kind.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Fill> {
        let names: &[&str] = match kind {
            Kind::Scalar => &["control characters"],
            Kind::Text => &["text", "control characters", "list of lists"],
            Kind::Numbers => &["list of numbers", "list of lists"],
            Kind::Texts => &["list of texts", "list of lists"],
            Kind::Map => &[
                "map of short names",
                "map of names that begin alike",
                "map of one name",
                "control characters",
            ],
            Kind::Object => &["map of short names", "map of one name"],
        };
        self.0.iter().filter(|fill| names.contains(&fill.name))
    }
}

/// Without what the body has around it.
const ROOM: usize = SIZE - 1024;

fn text(character: &str) -> String {
    format!("\"{}\"", character.repeat(ROOM))
}

fn list(element: &str) -> String {
    let count = ROOM / (element.len() + 1);
    format!("[{}]", vec![element; count].join(","))
}

fn map(name: impl Fn(usize) -> String) -> String {
    let mut text = "{".to_owned();
    for n in 0.. {
        let name = name(n);
        if text.len() + name.len() + 6 > ROOM {
            break;
        }
        let comma = if n == 0 { "" } else { "," };
        write!(text, "{comma}\"{name}\":\"\"").unwrap();
    }
    text + "}"
}

/// As many entries as a list or map may have, in its worst forms; `None` for a member that is not known here.
pub(super) fn at_limit(path: &str) -> Option<Vec<Value>> {
    let alternatives = "a|b".repeat(340);
    let names = |count: usize, value: &str| -> Value {
        let entry = |n| (format!("V{n}"), json!(value));
        (0..count)
            .map(entry)
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let alike = |count: usize| -> Value {
        let entry = |n| ("a".repeat(n), json!("a".repeat(n)));
        (1..=count)
            .map(entry)
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let paths = |n| format!("/sandbox/{}{n:04}", "a/".repeat(50));
    let lists = || {
        vec![
            json!(vec![&alternatives; 32]),
            json!(vec!["[a-z]{50}[0-9]{50}x{99}"; 256]),
            json!(vec!["(a?){30}(b?){30}"; 256]),
        ]
    };
    Some(match path {
        "request.env" | "env" => vec![names(1000, &"x".repeat(1000)), alike(1000)],
        "request.metadata" | "metadata" => vec![names(1000, &"x".repeat(1000)), alike(1000)],
        "request.files" | "files" => {
            let entry = |n| (paths(n), json!("x".repeat(1000)));
            let files = (0..1000).map(entry).collect::<serde_json::Map<_, _>>();
            vec![files.into()]
        }
        "request.outputPaths" => vec![json!((0..1000).map(paths).collect::<Vec<_>>())],
        "request.installPackages" => vec![json!(vec!["a".repeat(256); 100])],
        // Half of all its bytes each: the first was 75 s of the actors' thread.
        "options.secrets" => vec![
            json!({"A": "a".repeat(119_000)}),
            json!({"A": "a".repeat(119_000), "B": format!("{}b", "a".repeat(118_999))}),
            names(256, &"ab".repeat(500)),
            alike(256),
        ],
        "options.networkFilter.whitelist" | "options.networkFilter.blacklist" => lists(),
        // Bounded by the body alone, which is what the other fills are for.
        "request.files.*.data" | "files.*.data" => Vec::new(),
        _ => return None,
    })
}
