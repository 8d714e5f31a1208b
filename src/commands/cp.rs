//! `isol8 cp` and `isol8 ls`: files of sessions on a server or on this host.

pub(super) mod ls;
mod session;
mod tree;

use std::path::Path;
use std::process::ExitCode;

use isol8_api::SessionId;
use tokio::io::{stdin, stdout};

use super::Failure;
use super::place::Place;
use crate::cli::Cp;
use session::Files;
use tree::Copying;

/// Source or destination of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// Standard input or output.
    Stream,
    Here(String),
    Session(SessionId, String),
}

impl Side {
    fn read(text: &str) -> Result<Self, Failure> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if Cp::here(text).is_some() {
            return Ok(Self::Here(text.to_owned()));
        }
        let (session, path) = split(text)?;
        Ok(Self::Session(session, path))
    }
}

/// Splits `SESSION:PATH` into session and path. A session's id may contain colons, and a path without a leading
/// slash is relative to `/sandbox`.
fn split(text: &str) -> Result<(SessionId, String), Failure> {
    let absolute = text.find(":/");
    let colon = absolute.or_else(|| text.rfind(':'));
    let (session, path) = text.split_at(colon.ok_or("expected SESSION:PATH")?);
    let session = session
        .parse()
        .map_err(|error| format!("{text}: session: {error}"))?;
    Ok((session, absolute_path(&path[1..])))
}

fn absolute_path(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/sandbox/{path}"),
    }
}

pub(super) async fn cp(arguments: Cp) -> Result<ExitCode, Failure> {
    let (from, to) = (Side::read(&arguments.from)?, Side::read(&arguments.to)?);
    let place = Place::of(&arguments.whose)?;
    let mut opened = Vec::new();
    let copied = copy(&place, from, to, &mut opened).await;
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
    place: &Place,
    from: Side,
    to: Side,
    opened: &mut Vec<Files>,
) -> Result<bool, Failure> {
    let mut open = Vec::new();
    for side in [&from, &to] {
        if let Side::Session(id, _) = side
            && !open.contains(id)
        {
            opened.push(Files::open(place, id.clone()).await?);
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
        (Side::Stream, Side::Session(id, path)) => {
            files(&id)?.put(&path, Box::pin(stdin())).await?;
            Ok(false)
        }
        (Side::Session(id, path), Side::Stream) => {
            files(&id)?.get(&path, &mut stdout()).await?;
            Ok(false)
        }
        (Side::Here(from), Side::Session(id, to)) => {
            let mut copying = Copying::default();
            copying.copy_in(Path::new(&from), files(&id)?, &to).await?;
            Ok(copying.left_out)
        }
        (Side::Session(id, from), Side::Here(to)) => {
            let mut copying = Copying::default();
            copying.copy_out(files(&id)?, &from, Path::new(&to)).await?;
            Ok(copying.left_out)
        }
        (Side::Session(one, from), Side::Session(other, to)) => {
            // Copy through a local directory, so that directories and large files are handled as in any other copy.
            let between = tempfile::tempdir()?;
            let mut copying = Copying::default();
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
        _ => Err("source or destination must be SESSION:PATH, such as demo:/sandbox/data.csv".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_session_only_where_it_cannot_be_a_file() {
        let session = |id: &str, path: &str| Side::Session(id.parse().unwrap(), path.to_owned());
        for (text, side) in [
            ("-", Side::Stream),
            ("data.csv", Side::Here("data.csv".to_owned())),
            ("./a:b", Side::Here("./a:b".to_owned())),
            ("/a:/b", Side::Here("/a:/b".to_owned())),
            ("demo:/tmp/x:/y", session("demo", "/tmp/x:/y")),
            ("a:b:/sandbox/x", session("a:b", "/sandbox/x")),
            ("demo:out/x", session("demo", "/sandbox/out/x")),
            ("demo:", session("demo", "/sandbox/")),
        ] {
            assert_eq!(Side::read(text).unwrap(), side, "{text}");
        }
        assert!(Side::read("no session:/x").is_err());
    }
}
