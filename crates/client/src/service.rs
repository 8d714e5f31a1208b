//! The server itself, and its sessions.

use isol8_api::auth::LoggedIn;
use isol8_api::service::{CleanedUp, Cleanup};
use isol8_api::{CreateSession, Deleted, ErrorCode, Health, SessionId, SessionInfo, SessionList};
use reqwest::Method;

use crate::retry::Repeatable;
use crate::{ClientError, RemoteIsol8};

impl RemoteIsol8 {
    /// Makes sure that the server is there, that it is isol8, and that it takes the key. Nothing needs to
    /// be started: this is for finding out early.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Unexpected`] where something else answers.
    pub async fn start(&self) -> Result<Health, ClientError> {
        let health = self.health().await?;
        if health.status != "ok" {
            let problem = format!("its health is {:?}", health.status);
            return Err(ClientError::Unexpected(problem));
        }
        self.sessions().await?;
        Ok(health)
    }

    /// Whether the server is up, which version it is, and its backend. This needs no key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("health").await
    }

    /// The sessions that the key may see.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        let list: SessionList = self.get("sessions").await?;
        Ok(list.sessions)
    }

    /// Makes a session. Its name is the body's, or else that of [`Self::with_session`], or else one that the
    /// server chooses and answers. Calls of [`Self::with_session`] with that name then use it.
    ///
    /// # Errors
    /// [`ClientError`]; its code is [`ErrorCode::SessionExists`] if a session has the name.
    pub async fn create_session(
        &self,
        mut session: CreateSession,
    ) -> Result<SessionInfo, ClientError> {
        if session.id.is_none() {
            session.id.clone_from(&self.session);
        }
        let request = self.request(Method::POST, self.url(&["sessions"])?);
        let request = request.json(&session);
        // A second session, of a name that the server chooses, would never be used.
        let making = self.receive(Repeatable::No, &request);
        self.deadline().bound(making).await
    }

    /// Deletes a session, and ends what runs in it; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_session(&self, session: &SessionId) -> Result<(), ClientError> {
        let url = self.url(&["session", session.as_str()])?;
        let request = self.request(Method::DELETE, url);
        let deleting = self.receive::<Deleted>(Repeatable::Yes, &request);
        self.short_deadline().bound(deleting).await.map(drop)
    }

    /// Deletes the session of [`Self::with_session`], if any.
    ///
    /// # Errors
    /// [`ClientError`].
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
    /// [`ClientError`]; what could not be removed is in the answer.
    pub async fn cleanup(&self, images: bool) -> Result<CleanedUp, ClientError> {
        let request = self.request(Method::POST, self.url(&["cleanup"])?);
        let request = request.json(&Cleanup { images });
        let cleaning = self.receive(Repeatable::Yes, &request);
        self.deadline().bound(cleaning).await
    }

    /// Has the server make a key that stands for this one and can be revoked by itself. `None` where the
    /// server keeps no keys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn login(&self) -> Result<Option<LoggedIn>, ClientError> {
        let request = self.request(Method::POST, self.url(&["auth", "login"])?);
        let request = request.json(&serde_json::json!({}));
        // A second key would never be used.
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
