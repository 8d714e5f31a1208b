//! Limits on the content of one request.

use std::collections::BTreeMap;

use isol8_actors::job::{MAX_SECRET_BYTES, MAX_SECRETS};
use isol8_config::RequestLimits;

use super::error::{JobError, shown};

/// Checks the number of files.
///
/// # Errors
/// Returns a [`JobError`] that names the member with the list.
pub(super) fn check_files(
    limits: &RequestLimits,
    member: &str,
    count: usize,
) -> Result<(), JobError> {
    let most = limits.files;
    require(member, count <= most, || {
        format!("{count} entries, expected at most {most}")
    })
}

/// Checks the length of a path in a sandbox.
///
/// # Errors
/// Returns a [`JobError`] that names the member with the path.
pub fn check_path(limits: &RequestLimits, member: &str, path: &str) -> Result<(), JobError> {
    let (length, most) = (path.len(), limits.path_length);
    require(member, length <= most, || {
        format!(
            "{:?} has {length} bytes, expected at most {most}",
            shown(path)
        )
    })
}

/// Checks the environment variables of a run: their number, each of them, and their total size.
///
/// # Errors
/// Returns a [`JobError`] that names the member with the variables.
pub(super) fn check_environment(
    limits: &RequestLimits,
    member: &str,
    variables: &BTreeMap<String, String>,
) -> Result<(), JobError> {
    let (count, most) = (variables.len(), limits.variables);
    require(member, count <= most, || {
        format!("{count} variables, expected at most {most}")
    })?;
    for (name, value) in variables {
        check_variable(limits, member, name, value)?;
    }
    let bytes: usize = variables.iter().map(size).sum();
    let most = limits.environment_bytes;
    require(member, bytes <= most, || {
        format!("{bytes} bytes of names and values, expected at most {most}")
    })
}

/// Checks one variable, also for values that the kernel would refuse or truncate: execve(2). The value may be a
/// secret, so errors repeat only the name.
fn check_variable(
    limits: &RequestLimits,
    member: &str,
    name: &str,
    value: &str,
) -> Result<(), JobError> {
    let sound = !name.is_empty() && !name.contains(['=', '\0']);
    require(member, sound, || {
        format!("{:?} is not the name of a variable", shown(name))
    })?;
    require(member, !value.contains('\0'), || {
        format!("the value of {:?} contains a NUL character", shown(name))
    })?;
    let (bytes, most) = (name.len() + value.len(), limits.variable_bytes);
    require(member, bytes <= most, || {
        let name = shown(name);
        format!("{name:?} and its value have {bytes} bytes, expected at most {most}")
    })
}

/// Checks the tighter limits on secrets, which are more expensive than other variables.
pub(super) fn check_secrets(secrets: &BTreeMap<String, String>) -> Result<(), JobError> {
    let (count, bytes) = (
        secrets.len(),
        secrets.values().map(String::len).sum::<usize>(),
    );
    let few = count <= MAX_SECRETS && bytes <= MAX_SECRET_BYTES;
    require("options.secrets", few, || {
        format!(
            "{count} values of {bytes} bytes, expected at most {MAX_SECRETS} of {MAX_SECRET_BYTES} together"
        )
    })
}

fn size((name, value): (&String, &String)) -> usize {
    name.len() + value.len()
}

fn require(member: &str, holds: bool, problem: impl FnOnce() -> String) -> Result<(), JobError> {
    if holds {
        return Ok(());
    }
    Err(JobError::invalid(member, problem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: RequestLimits = RequestLimits {
        files: 2,
        path_length: 20,
        variables: 2,
        variable_bytes: 10,
        environment_bytes: 12,
    };

    fn refused(variables: &[(&str, &str)]) -> String {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let variables = variables.iter().map(own).collect();
        let checked = check_environment(&FEW, "request.env", &variables);
        checked.unwrap_err().to_string()
    }

    #[test]
    fn what_fits_just_so_is_taken() {
        assert!(check_files(&FEW, "request.files", 2).is_ok());
        assert!(check_path(&FEW, "path", &"x".repeat(20)).is_ok());
        let variables = [("A", "123456789"), ("B", "x")];
        let own = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(check_environment(&FEW, "request.env", &own.into()).is_ok());
    }

    #[test]
    fn what_is_too_much_is_named_with_its_amount_and_the_limit() {
        let text = check_files(&FEW, "request.files", 3)
            .unwrap_err()
            .to_string();
        assert_eq!(text, "request.files: 3 entries, expected at most 2");
        let text = check_path(&FEW, "path", &"x".repeat(21))
            .unwrap_err()
            .to_string();
        let expected = "path: \"xxxxxxxxxxxxxxxxxxxxx\" has 21 bytes, expected at most 20";
        assert_eq!(text, expected);
        assert_eq!(
            refused(&[("A", ""), ("B", ""), ("C", "")]),
            "request.env: 3 variables, expected at most 2"
        );
        assert_eq!(
            refused(&[("A", "1234567890")]),
            "request.env: \"A\" and its value have 11 bytes, expected at most 10"
        );
        assert_eq!(
            refused(&[("A", "123456"), ("B", "123456")]),
            "request.env: 14 bytes of names and values, expected at most 12"
        );
    }
}
