//! Claims: files that record which session a sandbox belongs to, so that the sandbox outlives its process.
//!
//! The sandbox of a session is claimed: the file `claims/<sandbox>` in the instance's directory names the session.
//! No sandbox can see the directory. When a process dies, the next one finds its claimed sandboxes by these files
//! and adopts them; all other sandboxes are removed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use isol8_api::{SessionId, TenantId};
use serde::{Deserialize, Serialize};

use crate::spec::{Limits, SandboxId, SandboxSpec};

/// Name of the directory of claims, in an instance's directory.
pub(crate) const CLAIMS_DIRECTORY: &str = "claims";

/// The session that a sandbox belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Tenant of the session.
    pub tenant: TenantId,
    /// Id of the session.
    pub session: SessionId,
    /// The specification that the sandbox was made from.
    pub spec: SandboxSpec,
    /// Time of the session's first request, in milliseconds since 1970.
    pub created_at: u64,
    /// Default settings of the session's requests, if the session was created with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<SessionDefaults>,
}

/// Default settings of a session, for requests that do not set their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionDefaults {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Limits of the sandbox.
    pub limits: Limits,
}

/// The claims of one instance, as files.
#[derive(Clone, Debug)]
pub struct Claims(PathBuf);

impl Claims {
    /// Returns the claims in an instance's directory.
    #[must_use]
    pub fn of(instance: &Path) -> Self {
        Self(instance.join(CLAIMS_DIRECTORY))
    }

    /// Writes a claim. From then on the sandbox outlives this process.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn add(&self, sandbox: &SandboxId, claim: &Claim) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        // The file gets its final name once it is complete.
        let unfinished = self.0.join(format!(".{sandbox}"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&serde_json::to_vec(claim)?)?;
        fs::rename(unfinished, self.path(sandbox.as_str()))
    }

    /// Sets the time of the session's last use to now.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn touch(&self, sandbox: &SandboxId) -> io::Result<()> {
        let file = File::options()
            .write(true)
            .open(self.path(sandbox.as_str()))?;
        file.set_modified(SystemTime::now())
    }

    /// Removes a claim. A claim that does not exist is no error.
    pub fn remove(&self, sandbox: &SandboxId) {
        match fs::remove_file(self.path(sandbox.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!(sandbox:% = sandbox, error:%; "claim could not be removed");
            }
            _ => {}
        }
    }

    /// Returns whether a sandbox is claimed.
    #[must_use]
    pub fn has(&self, sandbox: &str) -> bool {
        self.path(sandbox).exists()
    }

    /// Returns the ids of the claimed sandboxes.
    pub fn ids(&self) -> impl Iterator<Item = SandboxId> {
        self.files().map(|(id, _)| id)
    }

    /// Returns whether no sandbox is claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files().next().is_none()
    }

    /// Returns all claims, each with the time since its last [`touch`](Self::touch). Removes claims that cannot be
    /// read.
    #[must_use]
    pub fn all(&self) -> Vec<(SandboxId, Claim, Duration)> {
        let read = |(id, path): (SandboxId, PathBuf)| match read_claim(&path) {
            Ok((claim, idle)) => Some((id, claim, idle)),
            Err(error) => {
                log::warn!(path:% = path.display(), error:%; "claim cannot be read");
                self.remove(&id);
                None
            }
        };
        self.files().filter_map(read).collect()
    }

    fn files(&self) -> impl Iterator<Item = (SandboxId, PathBuf)> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let id = SandboxId::parse(entry.file_name().to_str()?)?;
            Some((id, entry.path()))
        })
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.0.join(sandbox)
    }
}

fn read_claim(path: &Path) -> io::Result<(Claim, Duration)> {
    let claim = serde_json::from_slice(&fs::read(path)?)?;
    let idle = fs::metadata(path)?.modified()?.elapsed();
    Ok((claim, idle.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use isol8_api::{ByteSize, Runtime};

    use super::*;

    fn claim(session: &str) -> Claim {
        let size = ByteSize::from_mebibytes(256);
        Claim {
            tenant: TenantId::master(),
            session: session.parse().unwrap(),
            spec: SandboxSpec {
                runtime: Runtime::Python,
                limits: Limits {
                    cpus: 0.5,
                    memory: size,
                    pids: 64,
                },
                sandbox_size: size,
                tmp_size: size,
                single_use: false,
                host_network: false,
                image: Some("custom:1".to_owned()),
            },
            created_at: 1_700_000_000_000,
            defaults: None,
        }
    }

    #[test]
    fn a_claim_is_found_again_until_it_is_removed() {
        let instance = tempfile::tempdir().unwrap();
        let claims = Claims::of(instance.path());
        assert!(claims.is_empty());
        let sandbox = SandboxId::random();
        claims.add(&sandbox, &claim("s")).unwrap();
        claims.touch(&sandbox).unwrap();
        let mut made = claim("made");
        made.defaults = Some(SessionDefaults {
            env: [("A".to_owned(), "1".to_owned())].into(),
            limits: made.spec.limits,
        });
        let other = SandboxId::random();
        claims.add(&other, &made).unwrap();
        let found = claims.all();
        assert!(
            found
                .iter()
                .any(|(id, claim, _)| (id, claim) == (&other, &made))
        );
        claims.remove(&other);
        assert!(claims.has(sandbox.as_str()) && !claims.is_empty());
        let found = claims.all();
        assert_eq!((&found[0].0, &found[0].1), (&sandbox, &claim("s")));
        assert!(found[0].2 < Duration::from_secs(60));
        claims.remove(&sandbox);
        claims.remove(&sandbox);
        assert!(claims.is_empty());
    }

    #[test]
    fn files_that_are_not_claims_are_ignored() {
        let instance = tempfile::tempdir().unwrap();
        let claims = Claims::of(instance.path());
        claims.add(&SandboxId::random(), &claim("s")).unwrap();
        let directory = instance.path().join(CLAIMS_DIRECTORY);
        fs::write(directory.join("notes"), "{}").unwrap();
        fs::write(directory.join("0123456789abcdef"), "{").unwrap();
        fs::write(directory.join(".0123456789abcdee"), "").unwrap();
        assert_eq!(claims.all().len(), 1);
        assert!(!claims.has("0123456789abcdef"), "removed");
    }
}
