//! The requests to bash. For cells, bash reads its control socket as a script.

use std::iter;

use crate::run::{CellRequest, ProgramStart};

/// The line that makes bash run its script.
pub(super) const SCRIPT: &str = "script\n";

/// The line before the first cell.
const CELLS: &str = "cells\n";

/// The lines that make bash read a cell from the mailbox and evaluate it. `driver.sh` explains their form.
const CELL: &str = r#"\isol8_begin; { \isol8_status; } <&"$((LINENO=0))"
\builtin eval "$isol8_source" <"$isol8_stdin" 251>&- 252>&- 253>&-; { \isol8_end; } >/dev/null 2>&1
\isol8_end
"#;

/// Returns the lines that evaluate the cell with this number, from 1.
pub(super) fn lines(number: u64) -> String {
    if number == 1 {
        format!("{CELLS}{CELL}")
    } else {
        CELL.to_owned()
    }
}

/// Returns the content of the mailbox for a script.
pub(super) fn script(start: &ProgramStart) -> Vec<u8> {
    closed(start.fields())
}

/// Returns the content of the mailbox for a cell.
pub(super) fn cell(number: u64, cell: &CellRequest, stdin: &str) -> Vec<u8> {
    closed(iter::once(number.to_string().as_bytes()).chain(cell.fields(stdin)))
}

/// Joins the fields, each closed by a zero byte. Zero bytes within a field are left out, because no string of the shell
/// can hold one.
fn closed<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut text = Vec::new();
    for field in fields {
        text.extend(field.iter().filter(|byte| **byte != 0));
        text.push(0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_list_of_strings_without_zero_bytes() {
        let request = CellRequest {
            source: b"echo 'a\0b'\n".to_vec(),
            env: vec![("A".into(), "1 2".into())],
            ..CellRequest::default()
        };
        assert_eq!(
            cell(7, &request, "/tmp/in"),
            b"7\0\0/tmp/in\0echo 'ab'\n\0A\x001 2\0"
        );
    }
}
