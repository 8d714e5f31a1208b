//! `isol8 cp` and `isol8 ls`: files of sessions on a server or on this host.

pub(super) mod ls;
mod path;
mod session;
mod tree;

use std::path::Path;
use std::process::ExitCode;

use isol8_api::SessionId;
use tokio::io::{stdin, stdout};

use super::error::CommandError;
use super::target::Target;
use crate::cli::CpArgs;
use path::split;
use session::SessionFiles;
use tree::TreeCopy;

/// Source or destination of a copy.
#[derive(Debug, PartialEq, Eq)]
enum CopyEndpoint {
    /// Standard input or output.
    Stdio,
    Local(String),
    Session(SessionId, String),
}

impl CopyEndpoint {
    fn read(text: &str) -> Result<Self, CommandError> {
        if text == "-" {
            return Ok(Self::Stdio);
        }
        if CpArgs::local_path(text).is_some() {
            return Ok(Self::Local(text.to_owned()));
        }
        let (session, path) = split(text)?;
        Ok(Self::Session(session, path))
    }
}

pub(super) async fn cp(arguments: CpArgs) -> Result<ExitCode, CommandError> {
    let (from, to) = (
        CopyEndpoint::read(&arguments.from)?,
        CopyEndpoint::read(&arguments.to)?,
    );
    let target = Target::of(&arguments.target)?;
    let mut opened = Vec::new();
    let copied = copy(&target, from, to, &mut opened).await;
    for files in opened {
        files.close().await?;
    }
    let left_out = copied?;
    Ok(if left_out {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Copies, and returns whether something was left out.
async fn copy(
    target: &Target,
    from: CopyEndpoint,
    to: CopyEndpoint,
    opened: &mut Vec<SessionFiles>,
) -> Result<bool, CommandError> {
    let mut open = Vec::new();
    for side in [&from, &to] {
        if let CopyEndpoint::Session(id, _) = side
            && !open.contains(id)
        {
            opened.push(SessionFiles::open(target, id.clone()).await?);
            open.push(id.clone());
        }
    }
    let files = |id: &SessionId| {
        let index = open.iter().position(|one| one == id);
        index
            .and_then(|index| opened.get(index))
            .ok_or("a session is not open")
    };
    match (from, to) {
        (CopyEndpoint::Stdio, CopyEndpoint::Session(id, path)) => {
            files(&id)?.put(&path, Box::pin(stdin())).await?;
            Ok(false)
        }
        (CopyEndpoint::Session(id, path), CopyEndpoint::Stdio) => {
            files(&id)?.get(&path, &mut stdout()).await?;
            Ok(false)
        }
        (CopyEndpoint::Local(from), CopyEndpoint::Session(id, to)) => {
            let mut copying = TreeCopy::default();
            copying.copy_in(Path::new(&from), files(&id)?, &to).await?;
            Ok(copying.left_out)
        }
        (CopyEndpoint::Session(id, from), CopyEndpoint::Local(to)) => {
            let mut copying = TreeCopy::default();
            copying.copy_out(files(&id)?, &from, Path::new(&to)).await?;
            Ok(copying.left_out)
        }
        (CopyEndpoint::Session(one, from), CopyEndpoint::Session(other, to)) => {
            // Copy through a local directory, so that directories and large files are handled as in any other copy.
            let between = tempfile::tempdir()?;
            let mut copying = TreeCopy::default();
            let name = tree::name_of(&from);
            let here = between.path().join(name.unwrap_or("all"));
            copying.copy_out(files(&one)?, &from, &here).await?;
            let here = match from.ends_with("/.") {
                true => here.join("."),
                false => here,
            };
            copying.copy_in(&here, files(&other)?, &to).await?;
            Ok(copying.left_out)
        }
        _ => {
            Err("source or destination must be SESSION:PATH, such as demo:/sandbox/data.csv".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_session_only_where_it_cannot_be_a_file() {
        let session =
            |id: &str, path: &str| CopyEndpoint::Session(id.parse().unwrap(), path.to_owned());
        for (text, side) in [
            ("-", CopyEndpoint::Stdio),
            ("data.csv", CopyEndpoint::Local("data.csv".to_owned())),
            ("./a:b", CopyEndpoint::Local("./a:b".to_owned())),
            ("/a:/b", CopyEndpoint::Local("/a:/b".to_owned())),
            ("demo:/tmp/x:/y", session("demo", "/tmp/x:/y")),
            ("a:b:/sandbox/x", session("a:b", "/sandbox/x")),
            ("demo:out/x", session("demo", "/sandbox/out/x")),
            ("demo:", session("demo", "/sandbox/")),
        ] {
            assert_eq!(CopyEndpoint::read(text).unwrap(), side, "{text}");
        }
        assert!(CopyEndpoint::read("no session:/x").is_err());
    }
}
