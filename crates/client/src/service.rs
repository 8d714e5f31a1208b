//! Calls for the server itself and its sessions.

use isol8_api::auth::LoggedIn;
use isol8_api::service::{CleanedUp, Cleanup};
use isol8_api::{CreateSession, Deleted, ErrorCode, Health, SessionId, SessionInfo, SessionList};
use reqwest::Method;

use crate::retry::Repeatable;
use crate::{ClientError, RemoteIsol8};

impl RemoteIsol8 {
    /// Checks that the server can be reached, that it is isol8, and that it accepts the key. Optional: it reports such
    /// problems before the first call.
    ///
    /// # Errors
    /// Returns [`ClientError`]; [`ClientError::Unexpected`] if another program answers.
    pub async fn start(&self) -> Result<Health, ClientError> {
        let health = self.health().await?;
        if health.status != "ok" {
            let problem = format!("its health is {:?}", health.status);
            return Err(ClientError::Unexpected(problem));
        }
        self.sessions().await?;
        Ok(health)
    }

    /// Returns the server's status, version and backend. Needs no key.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("health").await
    }

    /// Returns the sessions that the key may see.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        let list: SessionList = self.get("sessions").await?;
        Ok(list.sessions)
    }

    /// Creates a session. Its id is that in the body, otherwise that of [`Self::with_session`], otherwise one that the
    /// server chooses and returns. Calls of a client with that id ([`Self::with_session`]) then use the session.
    ///
    /// # Errors
    /// Returns [`ClientError`]; its code is [`ErrorCode::SessionExists`] if there is a session with the id.
    pub async fn create_session(
        &self,
        mut session: CreateSession,
    ) -> Result<SessionInfo, ClientError> {
        if session.id.is_none() {
            session.id.clone_from(&self.session);
        }
        let request = self.request(Method::POST, self.url(&["sessions"])?);
        let request = request.json(&session);
        // A retry could create a second session with another id that the server chooses, which would never be used.
        let making = self.receive(Repeatable::No, &request);
        self.deadline().bound(making).await
    }

    /// Deletes a session and ends its run. Succeeds if there is no such session.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn delete_session(&self, session: &SessionId) -> Result<(), ClientError> {
        let url = self.url(&["session", session.as_str()])?;
        let request = self.request(Method::DELETE, url);
        let deleting = self.receive::<Deleted>(Repeatable::Yes, &request);
        self.short_deadline().bound(deleting).await.map(drop)
    }

    /// Deletes the session of [`Self::with_session`], if any.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn stop(&self) -> Result<(), ClientError> {
        match &self.session {
            Some(session) => self.delete_session(session).await,
            None => Ok(()),
        }
    }

    /// Ends every session of the server, and removes sandboxes without an owner and, if `images` is set, images that
    /// newer ones have replaced. Needs the master key.
    ///
    /// # Errors
    /// Returns [`ClientError`]. The answer lists what could not be removed.
    pub async fn cleanup(&self, images: bool) -> Result<CleanedUp, ClientError> {
        let request = self.request(Method::POST, self.url(&["cleanup"])?);
        let request = request.json(&Cleanup { images });
        let cleaning = self.receive(Repeatable::Yes, &request);
        self.deadline().bound(cleaning).await
    }

    /// Creates a key with the rights of this one that can be revoked separately. Returns `None` if the server does not
    /// store keys.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn login(&self) -> Result<Option<LoggedIn>, ClientError> {
        let request = self.request(Method::POST, self.url(&["auth", "login"])?);
        let request = request.json(&serde_json::json!({}));
        // A retry could create a second key, which would never be used.
        let logging_in = self.receive(Repeatable::No, &request);
        match self.short_deadline().bound(logging_in).await {
            Ok(token) => Ok(Some(token)),
            Err(ClientError::Api {
                status: 400 | 404,
                code: Some(ErrorCode::NotFound | ErrorCode::Unsupported | ErrorCode::InvalidRequest),
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, route: &str) -> Result<T, ClientError> {
        let request = self.request(Method::GET, self.url(&[route])?);
        let getting = self.receive(Repeatable::Yes, &request);
        self.short_deadline().bound(getting).await
    }
}
