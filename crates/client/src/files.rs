//! Calls for the files of a session.

use bytes::Bytes;
use futures::stream::{Stream, try_unfold};
use isol8_api::DirectoryListing;
use isol8_api::file::Written;
use reqwest::{Body, Method, Url};

use crate::client::{answer, succeed};
use crate::retry::Repeatable;
use crate::{ClientError, RemoteIsol8};

/// Files are those of the session of [`RemoteIsol8::with_session`]. Paths are absolute, within `/sandbox`
/// or `/tmp`.
///
/// ```standalone_crate
/// # fn main() -> std::process::ExitCode { isol8_testing::example(async |url, key| {
/// # use isol8_client::{ExecutionRequest, RemoteIsol8, Runtime};
/// use futures::TryStreamExt as _;
/// use isol8_client::{Body, CreateSession};
///
/// let isol8 = RemoteIsol8::new(&url, &key)?.with_session("files".parse()?);
/// isol8.create_session(CreateSession::new(Runtime::Bash)).await?;
/// let mut request = ExecutionRequest::new(Runtime::Bash);
/// request.code = Some("mkdir results".to_owned());
/// isol8.execute(request).await?;
///
/// isol8.put_file("/sandbox/a.txt", "bytes at once").await?;
/// let pieces = futures::stream::iter(["piece ", "by piece"].map(Ok::<_, std::io::Error>));
/// isol8.put_file("/sandbox/b.txt", Body::wrap_stream(pieces)).await?;
///
/// assert_eq!(isol8.get_file("/sandbox/a.txt").await?, b"bytes at once");
/// let mut read = Vec::new();
/// let mut pieces = std::pin::pin!(isol8.get_file_stream("/sandbox/b.txt").await?);
/// while let Some(piece) = pieces.try_next().await? {
///     read.extend(piece);
/// }
/// assert_eq!(read, b"piece by piece");
///
/// let listing = isol8.list_files("/sandbox").await?;
/// let names: Vec<_> = listing.entries.iter().map(|entry| entry.name.as_str()).collect();
/// assert_eq!(names, ["a.txt", "b.txt", "results"]);
/// # isol8.stop().await?;
/// # Ok(()) }) }
/// ```
impl RemoteIsol8 {
    /// Writes a file, creating its parent directories. A file of the same name is replaced once the whole content has
    /// arrived. The content is bytes or text, or a stream by [`Body::wrap_stream`], which is read as fast as the server
    /// accepts it. A stream can be sent only once, so such a call is not retried.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn put_file(&self, path: &str, content: impl Into<Body>) -> Result<(), ClientError> {
        let request = self
            .request(Method::PUT, self.file_url(path)?)
            .body(content);
        let deadline = self.deadline();
        if request.try_clone().is_some() {
            let writing = self.receive::<Written>(Repeatable::Yes, &request);
            return deadline.bound(writing).await.map(drop);
        }
        let writing = async { succeed(request.send().await?).await };
        deadline.bound(writing).await.map(drop)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn get_file(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let request = self.request(Method::GET, self.file_url(path)?);
        let reading = || async { Ok(answer(&request).await?.bytes().await?.into()) };
        let reading = self.retrying(Repeatable::Yes, reading);
        self.deadline().bound(reading).await
    }

    /// Reads a file as a stream of chunks; the server waits until the chunks are read.
    ///
    /// # Errors
    /// Returns [`ClientError`], also as the last item of the stream. A stream that ends without an error is the whole
    /// file.
    pub async fn get_file_stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let request = self.request(Method::GET, self.file_url(path)?);
        let deadline = self.deadline();
        let opening = self.retrying(Repeatable::Yes, || answer(&request));
        let response = deadline.bound(opening).await?;
        Ok(try_unfold(response, move |mut response| async move {
            let chunk = deadline.bound(response.chunk()).await?;
            Ok(chunk.map(|chunk| (chunk, response)))
        }))
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn list_files(&self, path: &str) -> Result<DirectoryListing, ClientError> {
        let mut url = self.files_url()?;
        url.query_pairs_mut().append_pair("path", path);
        let request = self.request(Method::GET, url);
        let listing = self.receive(Repeatable::Yes, &request);
        self.short_deadline().bound(listing).await
    }

    fn files_url(&self) -> Result<Url, ClientError> {
        let session = self.session.as_ref().ok_or(ClientError::NoSession)?;
        self.url(&["session", session.as_str(), "files"])
    }

    fn file_url(&self, path: &str) -> Result<Url, ClientError> {
        let session = self.session.as_ref().ok_or(ClientError::NoSession)?;
        let mut parts = vec!["session", session.as_str(), "files"];
        parts.extend(path.trim_start_matches('/').split('/'));
        self.url(&parts)
    }
}
