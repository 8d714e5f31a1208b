//! How bash is asked for a cell: its control line is the script that it reads.

use crate::run::CellRequest;

/// The lines that have a cell read from the mailbox and evaluated. `bash.sh` tells why they are as
/// they are.
pub(super) const LINES: &str = r#"\isol8_begin; { \isol8_status; } <&"$((LINENO=0))"
\builtin eval "$isol8_source" <"$isol8_stdin" 251>&- 252>&- 253>&-; { \isol8_end; } >/dev/null 2>&1
\isol8_end
"#;

/// What the mailbox holds: fields, each closed by a zero byte, which no string of the shell can hold.
pub(super) fn request(number: u64, cell: &CellRequest, stdin: &str) -> Vec<u8> {
    let mut text = Vec::new();
    let mut push = |field: &[u8]| {
        text.extend(field.iter().filter(|byte| **byte != 0));
        text.push(0);
    };
    push(number.to_string().as_bytes());
    push(cell.cwd.as_deref().unwrap_or_default().as_bytes());
    push(stdin.as_bytes());
    push(&cell.source);
    for (name, value) in &cell.env {
        push(name.as_bytes());
        push(value.as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_list_of_strings_without_zero_bytes() {
        let cell = CellRequest {
            source: b"echo 'a\0b'\n".to_vec(),
            env: vec![("A".into(), "1 2".into())],
            ..CellRequest::default()
        };
        assert_eq!(
            request(7, &cell, "/tmp/in"),
            b"7\0\0/tmp/in\0echo 'ab'\n\0A\x001 2\0"
        );
    }
}
