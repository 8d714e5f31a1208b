//! The kinds of backends.

use std::fmt;

use isol8_config::BackendChoice;

/// A concrete backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Linux namespaces.
    Native,
    /// The Docker engine.
    Docker,
}

impl BackendKind {
    /// All backends.
    pub const ALL: [Self; 2] = [Self::Native, Self::Docker];

    /// Returns the backend's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker => "docker",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the backends that a configuration allows.
#[must_use]
pub fn candidates(choice: BackendChoice) -> &'static [BackendKind] {
    match choice {
        BackendChoice::Native => &[BackendKind::Native],
        BackendChoice::Docker => &[BackendKind::Docker],
        BackendChoice::Auto => &BackendKind::ALL,
    }
}
