//! Bodies and answers of the routes under `/auth`.

use serde::{Deserialize, Serialize};

/// Answer of `POST /auth/login`: a key that stands for the one that was sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct LoggedIn {
    /// The key.
    pub token: String,
    /// The id by which keys are listed and revoked.
    pub key_id: String,
}

/// The token stays out of logs.
impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}
