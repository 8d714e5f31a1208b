//! The owner of a sandbox, written down so that it outlives the process that made the sandbox.
//!
//! A session's sandbox is claimed: `claims/<sandbox>` in the instance's directory names its owner. Sandboxes do not see
//! that directory. Claimed sandboxes of a process that dies are left to the next process, which finds them by this
//! file; all others are removed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use isol8_api::{SessionId, TenantId};
use serde::{Deserialize, Serialize};

use crate::spec::{Limits, SandboxId, SandboxSpec};

/// Name, in an instance's directory, of the directory of claims.
pub(crate) const DIRECTORY: &str = "claims";

/// The owner of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The session's tenant.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// The specification that the sandbox was made for.
    pub spec: SandboxSpec,
    /// The session's first request, in milliseconds since 1970.
    pub created_at: u64,
    /// Settings of all requests to the session, if it was created with such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<SessionDefaults>,
}

/// Settings of a session for those of its requests that do not say otherwise.
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
    /// Those in an instance's directory.
    #[must_use]
    pub fn of(instance: &Path) -> Self {
        Self(instance.join(DIRECTORY))
    }

    /// Writes one down. From here on the sandbox outlives this process.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, sandbox: &SandboxId, claim: &Claim) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        // Under its own name only once it is whole.
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

    /// Notes that the session was used now.
    ///
    /// # Errors
    /// The system's.
    pub fn touch(&self, sandbox: &SandboxId) -> io::Result<()> {
        let file = File::options()
            .write(true)
            .open(self.path(sandbox.as_str()))?;
        file.set_modified(SystemTime::now())
    }

    /// Forgets one. None there is fine.
    pub fn remove(&self, sandbox: &SandboxId) {
        match fs::remove_file(self.path(sandbox.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!(sandbox:% = sandbox, error:%; "claim could not be removed");
            }
            _ => {}
        }
    }

    /// Whether a sandbox is claimed.
    #[must_use]
    pub fn has(&self, sandbox: &str) -> bool {
        self.path(sandbox).exists()
    }

    /// The sandboxes that are claimed.
    pub fn ids(&self) -> impl Iterator<Item = SandboxId> {
        self.files().map(|(id, _)| id)
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files().next().is_none()
    }

    /// Returns all claims, each with the time since it was last touched. A claim that cannot be read is removed.
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
    fn what_is_no_claim_is_not_taken_for_one() {
        let instance = tempfile::tempdir().unwrap();
        let claims = Claims::of(instance.path());
        claims.add(&SandboxId::random(), &claim("s")).unwrap();
        let directory = instance.path().join(DIRECTORY);
        fs::write(directory.join("notes"), "{}").unwrap();
        fs::write(directory.join("0123456789abcdef"), "{").unwrap();
        fs::write(directory.join(".0123456789abcdee"), "").unwrap();
        assert_eq!(claims.all().len(), 1);
        assert!(!claims.has("0123456789abcdef"), "removed");
    }
}
