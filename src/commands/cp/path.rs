//! The notation `SESSION:PATH`.

use isol8_api::SessionId;

use crate::commands::error::CommandError;

/// Splits `SESSION:PATH` into session and path. A session's id may contain colons, and a path without a leading
/// slash is relative to `/sandbox`.
pub(super) fn split(text: &str) -> Result<(SessionId, String), CommandError> {
    let absolute = text.find(":/");
    let colon = absolute.or_else(|| text.rfind(':'));
    let (session, path) = text.split_at(colon.ok_or("expected SESSION:PATH")?);
    let session = session
        .parse()
        .map_err(|error| format!("{text}: session: {error}"))?;
    Ok((session, absolute_path(&path[1..])))
}

pub(super) fn absolute_path(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/sandbox/{path}"),
    }
}
