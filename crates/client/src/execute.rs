//! Calls that run programs.

use isol8_api::{Encoding, ExecuteBody, ExecutionRequest, ExecutionResult, Options};
use reqwest::{Method, RequestBuilder, Response};

use crate::client::answer;
use crate::retry::Repeatable;
use crate::run::RunStream;
use crate::websocket::{self, Upgrade};
use crate::{ClientError, RemoteIsol8, sse};

/// The request header with the idempotency key, which makes it safe to retry a run.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

impl RemoteIsol8 {
    /// Runs a program with the server's default options.
    ///
    /// # Errors
    /// Returns [`ClientError`]. A program that fails is a result, not an error.
    pub async fn execute(&self, request: ExecutionRequest) -> Result<ExecutionResult, ClientError> {
        self.execute_with(request, Options::default()).await
    }

    /// Runs a program.
    ///
    /// # Errors
    /// Returns [`ClientError`]. A program that fails is a result, not an error.
    pub async fn execute_with(
        &self,
        request: ExecutionRequest,
        options: Options,
    ) -> Result<ExecutionResult, ClientError> {
        let request = self.post("execute", &self.body(request, options))?;
        let running = self.receive(Repeatable::No, &request);
        self.deadline().bound(running).await
    }

    /// Runs a program once, even if this is called several times with the same key of 1 to 255 visible ASCII
    /// characters. Further calls, such as the retry that this call makes if the connection breaks, get the first call's
    /// result. The run continues if the caller stops waiting for its result.
    ///
    /// ```standalone_crate
    /// # fn main() -> std::process::ExitCode { isol8_testing::example(async |url, key| {
    /// # use isol8_client::{ExecutionRequest, Options, RemoteIsol8, Runtime};
    /// let isol8 = RemoteIsol8::new(&url, &key)?;
    /// let mut request = ExecutionRequest::new(Runtime::Python);
    /// request.code = Some("import uuid; print(uuid.uuid4())".to_owned());
    /// let first = isol8.execute_once("order-7", request.clone(), Options::default()).await?;
    /// let second = isol8.execute_once("order-7", request, Options::default()).await?;
    /// assert_eq!(first.stdout, second.stdout);
    /// # Ok(()) }) }
    /// ```
    ///
    /// # Errors
    /// Returns [`ClientError`]. A program that fails is a result, not an error.
    pub async fn execute_once(
        &self,
        idempotency_key: &str,
        request: ExecutionRequest,
        options: Options,
    ) -> Result<ExecutionResult, ClientError> {
        let request = self.post("execute", &self.body(request, options))?;
        let request = request.header(IDEMPOTENCY_KEY, idempotency_key);
        let running = self.receive(Repeatable::Yes, &request);
        self.deadline().bound(running).await
    }

    /// Runs a program with the server's default options, and streams its events.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::execute_stream_with`].
    pub async fn execute_stream(
        &self,
        request: ExecutionRequest,
    ) -> Result<RunStream, ClientError> {
        self.execute_stream_with(request, Options::default()).await
    }

    /// Runs a program, and streams its events.
    ///
    /// Uses a WebSocket, which also carries input to the program ([`RunStream::take_input`]). If the server or a proxy
    /// does not support WebSockets, uses server-sent events.
    ///
    /// # Errors
    /// Returns [`ClientError`]. An error that occurs later is an item of the stream.
    pub async fn execute_stream_with(
        &self,
        request: ExecutionRequest,
        options: Options,
    ) -> Result<RunStream, ClientError> {
        self.execute_stream_feeding(request, options, async { None })
            .await
    }

    /// Runs a program with standard input, and streams its events.
    ///
    /// Over a WebSocket, `stdin` is not polled, and [`RunStream::take_input`] writes to the program. Server-sent events
    /// carry no input: if WebSockets are not supported, `stdin` is awaited before the run starts, and its value is the
    /// whole standard input of the program.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::execute_stream_with`].
    pub async fn execute_stream_feeding(
        &self,
        request: ExecutionRequest,
        options: Options,
        stdin: impl Future<Output = Option<Vec<u8>>>,
    ) -> Result<RunStream, ClientError> {
        let deadline = self.deadline();
        let mut body = self.body(request, options);
        let upgrading = self.retrying(Repeatable::No, || self.upgrade());
        match deadline.bound(upgrading).await? {
            Upgrade::Socket(socket) => websocket::run(*socket, &body, deadline),
            Upgrade::Refused if body.request.tty => Err(ClientError::NoWebSocket),
            Upgrade::Refused => {
                if let Some(bytes) = stdin.await {
                    let (text, encoding) = Encoding::encode(bytes);
                    body.request.stdin = Some(text);
                    body.request.stdin_encoding = encoding;
                }
                let receiving = self.retrying(Repeatable::No, || self.listen(&body));
                let events = sse::events(deadline.bound(receiving).await?);
                Ok(RunStream::without_input(events, deadline))
            }
        }
    }

    async fn upgrade(&self) -> Result<Upgrade, ClientError> {
        let upgrade = self.request(Method::GET, self.url(&["execute", "ws"])?);
        websocket::upgrade(upgrade).await
    }

    async fn listen(&self, body: &ExecuteBody) -> Result<Response, ClientError> {
        let url = self.url(&["execute", "stream"])?;
        let response = answer(&self.request(Method::POST, url).json(body)).await?;
        self.warnings.of_answer(&response);
        Ok(response)
    }

    fn body(&self, request: ExecutionRequest, options: Options) -> ExecuteBody {
        ExecuteBody {
            request,
            options: Some(options),
            session_id: self.session.clone(),
        }
    }

    fn post(&self, route: &str, body: &ExecuteBody) -> Result<RequestBuilder, ClientError> {
        Ok(self.request(Method::POST, self.url(&[route])?).json(body))
    }
}

#[cfg(test)]
mod tests {
    use isol8_api::{ErrorCode, EventKind, Runtime};

    use super::*;
    use crate::fake::{Fake, answer};

    fn request() -> ExecutionRequest {
        let mut request = ExecutionRequest::new(Runtime::Bash);
        request.code = Some("echo".to_owned());
        request
    }

    fn refusal(status: &str, code: &str) -> String {
        let body = format!("{{\"error\": \"later\", \"code\": \"{code}\"}}");
        answer(status, "Retry-After: 0\r\n", &body)
    }

    fn events() -> String {
        let body = "data: {\"type\":\"stdout\",\"data\":\"1\",\"phase\":\"code\"}\n\n:\n\n\
            data: {\"type\":\"exit\",\"data\":\"0\",\"phase\":\"code\"}\n\n";
        answer("200 OK", "Content-Type: text/event-stream\r\n", body)
    }

    #[tokio::test]
    async fn server_sent_events_come_where_no_websocket_does() {
        for refused in [
            answer("200 OK", "", "<html>"),
            answer("502 Bad Gateway", "", "<html>"),
            answer("426 Upgrade Required", "", ""),
            // A proxy that lost the upgrade on the way, and one that hangs up.
            refusal("400 Bad Request", "INVALID_REQUEST"),
            String::new(),
        ] {
            let fake = Fake::answering(&[&refused, &events()]).await;
            let mut run = fake.remote.execute_stream(request()).await.unwrap();
            assert!(run.take_input().is_none());
            let first = run.next().await.unwrap().unwrap();
            assert_eq!((first.kind, first.data.as_str()), (EventKind::Stdout, "1"));
            assert_eq!(run.next().await.unwrap().unwrap().kind, EventKind::Exit);
            assert!(run.next().await.is_none());
            assert_eq!(fake.connections(), 2);
            let mut at_terminal = request();
            at_terminal.tty = true;
            let fake = Fake::answering(&[&refused]).await;
            let error = fake.remote.execute_stream(at_terminal).await.unwrap_err();
            assert!(matches!(error, ClientError::NoWebSocket), "{error}");
        }
    }

    #[tokio::test]
    async fn standard_input_is_waited_for_only_where_nothing_else_carries_it() {
        let refused = answer("502 Bad Gateway", "", "<html>");
        let fake = Fake::answering(&[&refused, &events()]).await;
        let asked = std::cell::Cell::new(false);
        let stdin = async {
            asked.set(true);
            Some(b"\xff".to_vec())
        };
        let run = fake
            .remote
            .execute_stream_feeding(request(), Options::default(), stdin);
        run.await.unwrap();
        assert!(asked.get());
    }

    #[tokio::test]
    async fn what_the_server_refuses_is_not_asked_for_in_another_way() {
        let refused = refusal("403 Forbidden", "FORBIDDEN");
        let fake = Fake::answering(&[&refused, &events()]).await;
        let error = fake.remote.execute_stream(request()).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Forbidden));
        assert_eq!(fake.connections(), 1);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_says_so() {
        let cut = answer("200 OK", "", ":\n\n");
        let fake = Fake::answering(&["", &cut]).await;
        let mut run = fake.remote.execute_stream(request()).await.unwrap();
        let error = run.next().await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::BrokenOff), "{error}");
        assert!(run.next().await.is_none());
        assert_eq!(fake.connections(), 2);
    }

    #[tokio::test]
    async fn a_run_that_may_have_begun_is_asked_for_again_only_with_a_key() {
        let unavailable = refusal("503 Service Unavailable", "UNAVAILABLE");
        let full = refusal("429 Too Many Requests", "TOO_MANY_REQUESTS");
        // The first answer, and the number of requests without and with a key.
        for (first, without, with) in [("", 1, 2), (&unavailable, 1, 2), (&full, 2, 2)] {
            let last = refusal("500 Internal Server Error", "INTERNAL");
            let fake = Fake::answering(&[first, &last]).await;
            assert!(fake.remote.execute(request()).await.is_err());
            assert_eq!(fake.connections(), without, "{first}");
            let fake = Fake::answering(&[first, &last]).await;
            let once = fake
                .remote
                .execute_once("key", request(), Options::default());
            assert_eq!(once.await.unwrap_err().code(), Some(ErrorCode::Internal));
            assert_eq!(fake.connections(), with, "{first}");
        }
    }
}
