//! Requests and responses of the routes under `/auth`.

use serde::{Deserialize, Serialize};

/// Response of `POST /auth/login`: a new key with the rights of the key that was sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct LoggedIn {
    /// The key.
    pub token: String,
    /// Id of the key, for listing and revoking keys.
    pub key_id: String,
}

/// Omits the token, so that it never appears in logs.
impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}
