//! The terminal of a program.

use isol8_actors::TerminalSize;
use isol8_api::ExecutionRequest;

use super::error::{JobError, at_most};

/// Largest number of columns or rows of a terminal.
const MAX_SIDE: u32 = 1000;

/// Default size of a terminal.
const DEFAULT_COLUMNS: u32 = 80;
const DEFAULT_ROWS: u32 = 24;

/// Returns the terminal that a request asks for.
pub(super) fn terminal(request: &ExecutionRequest) -> Result<Option<TerminalSize>, JobError> {
    let size = terminal_size("request", request.cols, request.rows)?;
    let given = [("cols", request.cols), ("rows", request.rows)];
    match given.into_iter().find(|(_, side)| side.is_some()) {
        Some((side, _)) if !request.tty => {
            let problem = "only a terminal has a size, set request.tty to get one";
            Err(JobError::invalid(format!("request.{side}"), problem))
        }
        _ => Ok(request.tty.then_some(size)),
    }
}

/// Returns the size of a terminal, with defaults for missing values. `path` names the object that contains them.
///
/// # Errors
/// Returns a [`JobError`] for a value out of range.
pub fn terminal_size(
    path: &str,
    cols: Option<u32>,
    rows: Option<u32>,
) -> Result<TerminalSize, JobError> {
    let side = |name, given: Option<u32>, usual| {
        let path = format!("{path}.{name}");
        let side = at_most(&path, given.unwrap_or(usual), 1, MAX_SIDE)?;
        // Cannot fail: the value is within the range checked above.
        Ok(u16::try_from(side).unwrap_or(u16::MAX))
    };
    Ok(TerminalSize {
        columns: side("cols", cols, DEFAULT_COLUMNS)?,
        rows: side("rows", rows, DEFAULT_ROWS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked(mut request: Value) -> ExecutionRequest {
        request["runtime"] = json!("bash");
        serde_json::from_value(request).unwrap()
    }

    #[test]
    fn a_terminal_has_a_size_and_nothing_else_has() {
        let size = |request| terminal(&asked(request)).unwrap();
        let of = |columns, rows| Some(TerminalSize { columns, rows });
        assert_eq!(size(json!({"cmd": "ls"})), None);
        assert_eq!(size(json!({"cmd": "ls", "tty": true})), of(80, 24));
        let given = json!({"cmd": "ls", "tty": true, "cols": 1000, "rows": 1});
        assert_eq!(size(given), of(1000, 1));
        for (request, expected) in [
            (
                json!({"tty": true, "cols": 0}),
                "request.cols: 0 is out of range, expected 1 to 1000",
            ),
            (
                json!({"tty": true, "rows": 1001}),
                "request.rows: 1001 is out of range",
            ),
            (
                json!({"rows": 24}),
                "request.rows: only a terminal has a size",
            ),
        ] {
            let text = terminal(&asked(request)).unwrap_err().to_string();
            assert!(text.starts_with(expected), "{text}");
        }
    }
}
