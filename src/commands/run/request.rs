//! Turns the arguments of `isol8 run` into a request of the contract.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use isol8_api::{Encoding, ExecutionRequest, NetworkFilter, Options, Runtime};

use super::files;
use crate::cli::{RunArgs, SandboxArgs};
use crate::commands::error::CommandError;
use crate::commands::follow::input::is_stdin_for_program;

/// The request of one run, on this host or on a server.
#[derive(Debug)]
pub(in crate::commands) struct RunRequest {
    pub(in crate::commands) body: ExecutionRequest,
    pub(in crate::commands) options: Options,
    /// Whether the program reads this process's standard input.
    pub(in crate::commands) reads_stdin: bool,
}

impl RunRequest {
    /// Reads the arguments, the script and the files.
    ///
    /// # Errors
    /// Returns an error for a file that cannot be read, or an invalid argument.
    pub(in crate::commands) fn read(arguments: &RunArgs) -> Result<Self, CommandError> {
        let mut request = ExecutionRequest::new(runtime(arguments)?);
        request.file_extension = extension(arguments).map(|extension| format!(".{extension}"));
        request.code = Some(code(arguments)?);
        // Output is printed unchanged, so it must not be decoded as text.
        request.output_encoding = Encoding::Base64;
        request.stdin.clone_from(&arguments.stdin);
        request.workdir.clone_from(&arguments.workdir);
        request.timeout_ms = arguments.timeout;
        request.install_packages.clone_from(&arguments.install);
        request.setup_script = setup_script(&arguments.setup)?;
        if let Some(directory) = &arguments.files {
            request.files = files::under(directory)?;
        }
        let options = Options {
            max_output_size: arguments.max_output,
            secrets: secrets(&arguments.secret)?,
            ..sandbox_options(&arguments.sandbox)
        };
        let is_free = !is_script_on_stdin(arguments) && arguments.stdin.is_none();
        let reads_stdin = is_free && !arguments.no_stdin && is_stdin_for_program();
        Ok(Self {
            body: request,
            options,
            reads_stdin,
        })
    }
}

/// Turns the flags for a sandbox into options of the contract.
pub(in crate::commands) fn sandbox_options(sandbox: &SandboxArgs) -> Options {
    Options {
        network: sandbox.net,
        network_filter: Some(NetworkFilter {
            whitelist: sandbox.allow.clone(),
            blacklist: sandbox.deny.clone(),
        }),
        log_network: Some(sandbox.log_network),
        cpu_limit: sandbox.cpu,
        memory_limit: sandbox.memory,
        pids_limit: sandbox.pids_limit,
        sandbox_size: sandbox.sandbox_size,
        tmp_size: sandbox.tmp_size,
        image: sandbox.image.clone(),
        ..Options::default()
    }
}

/// Returns whether the script comes from standard input: no script is named, or the name is `-`.
fn is_script_on_stdin(arguments: &RunArgs) -> bool {
    let named = arguments.file.as_deref();
    arguments.eval.is_none() && named.is_none_or(|file| file == Path::new("-"))
}

fn code(arguments: &RunArgs) -> Result<String, CommandError> {
    if let Some(code) = &arguments.eval {
        return Ok(code.clone());
    }
    if is_script_on_stdin(arguments) && arguments.no_stdin {
        let problem =
            "--no-stdin: the script would be read from standard input; name a file, or pass -e";
        return Err(problem.into());
    }
    let mut code = String::new();
    match arguments
        .file
        .as_ref()
        .filter(|_| !is_script_on_stdin(arguments))
    {
        Some(path) if !path.exists() => {
            return Err(format!("File not found: {}", path.display()).into());
        }
        Some(path) => {
            code =
                fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        None => {
            io::stdin()
                .read_to_string(&mut code)
                .map_err(|error| format!("cannot read the script from standard input: {error}"))?;
        }
    }
    Ok(code)
}

fn extension(arguments: &RunArgs) -> Option<&str> {
    arguments.file.as_deref()?.extension()?.to_str()
}

fn runtime(arguments: &RunArgs) -> Result<Runtime, CommandError> {
    if let Some(runtime) = arguments.runtime {
        return Ok(runtime);
    }
    let Some(extension) = extension(arguments) else {
        return Ok(Runtime::Python);
    };
    Runtime::of_extension(extension).ok_or_else(|| {
        format!("unknown file extension .{extension}: choose a runtime with -r").into()
    })
}

/// Joins setup scripts. Each is a command, or the path of a script file.
///
/// # Errors
/// Returns an error for a file that cannot be read.
pub(in crate::commands) fn setup_script(
    scripts: &[String],
) -> Result<Option<String>, CommandError> {
    let mut joined = String::new();
    for script in scripts {
        if Path::new(script).is_file() {
            joined.push_str(
                &fs::read_to_string(script).map_err(|error| format!("{script}: {error}"))?,
            );
        } else {
            joined.push_str(script);
        }
        joined.push('\n');
    }
    // Stop at the first failing command, as with commands joined by `&&`.
    Ok((!joined.is_empty()).then(|| format!("set -e\n{joined}")))
}

fn secrets(given: &[String]) -> Result<BTreeMap<String, String>, CommandError> {
    let split = given.iter().map(|secret| match secret.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        // Do not repeat the value: it may be the secret itself.
        _ => Err("--secret: expected NAME=VALUE".into()),
    });
    split.collect()
}
