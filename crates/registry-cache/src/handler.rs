//! Answers the requests of package managers.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use isol8_egress::{
    Egress, FetchStream, LocalAnswer, LocalHost, NetworkProblem, NetworkProblems, Policy,
};
use url::Url;

use crate::download::FileSource;
use crate::index::{Detail, IndexKey, IndexPage};
use crate::route::Route;
use crate::share::InstallationShare;
use crate::upstream::{self, RegistryError};
use crate::{PackageManager, RegistryCache, host_for, npm};

/// The content type of files.
const BINARY: &str = "application/octet-stream";

/// The registry as one package manager sees it.
#[derive(Clone, Debug)]
pub(crate) struct RegistryHandler {
    cache: RegistryCache,
    client: PackageManager,
    egress: Egress,
    policy: Policy,
    share: Arc<InstallationShare>,
    problems: Arc<NetworkProblems>,
}

impl LocalHost for RegistryHandler {
    fn is_named(&self, host: &str) -> bool {
        host == host_for(self.client)
    }

    fn problems(&self) -> Vec<NetworkProblem> {
        self.problems.all()
    }

    fn answer(&self, request: Parts) -> BoxFuture<'static, LocalAnswer> {
        let handler = self.clone();
        Box::pin(async move {
            let is_head = request.method == Method::HEAD;
            let answered = handler.route(&request).await;
            if let Err(RegistryError::Fetch(error)) = &answered {
                handler.problems.add_fetch(error);
            }
            let answer = answered.unwrap_or_else(|failure| refusal(&failure));
            match is_head {
                true => answer.map(|_| empty().boxed_unsync()),
                false => answer,
            }
        })
    }
}

impl RegistryHandler {
    pub(crate) fn new(
        cache: RegistryCache,
        client: PackageManager,
        egress: Egress,
        policy: Policy,
    ) -> Self {
        Self {
            cache,
            client,
            egress,
            policy,
            share: Arc::new(InstallationShare::new()),
            problems: Arc::default(),
        }
    }

    async fn route(&self, request: &Parts) -> Result<LocalAnswer, RegistryError> {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Err(RegistryError::Status(
                StatusCode::METHOD_NOT_ALLOWED.as_u16(),
            ));
        }
        let route = Route::parse(self.client, request.uri.path()).ok_or(RegistryError::NotFound)?;
        let is_secret = [AUTHORIZATION, COOKIE]
            .iter()
            .any(|name| request.headers.contains_key(name));
        if is_secret {
            return self.pass_on(&route, request).await;
        }
        match route {
            Route::Index(package) => {
                let key = self.key(package, request);
                Ok(self.show(self.page(&key).await?))
            }
            Route::File { package, file } => self.file(package, &file).await,
        }
    }

    fn registry(&self) -> &Url {
        let settings = self.cache.settings();
        match self.client {
            PackageManager::Pip => &settings.python,
            PackageManager::Npm | PackageManager::Deno | PackageManager::Bun => &settings.npm,
        }
    }

    fn key(&self, package: String, request: &Parts) -> IndexKey {
        match self.client {
            PackageManager::Pip => IndexKey::Python(package),
            PackageManager::Npm | PackageManager::Deno | PackageManager::Bun => {
                let accept = request.headers.get(ACCEPT);
                let accept = accept.and_then(|accept| accept.to_str().ok());
                IndexKey::Npm(package, Detail::wanted(accept.unwrap_or_default()))
            }
        }
    }

    async fn page(&self, key: &IndexKey) -> Result<IndexPage, RegistryError> {
        // A cached page may come from a host that this run may not reach.
        self.egress.admit(self.registry(), &self.policy)?;
        let pages = &self.cache.0.pages;
        pages
            .get(
                key,
                self.registry(),
                &self.egress,
                &self.policy,
                &self.share,
            )
            .await
    }

    fn show(&self, page: IndexPage) -> LocalAnswer {
        let body = match self.client {
            PackageManager::Pip => page.body,
            PackageManager::Npm | PackageManager::Deno
                if self.registry().as_str() == npm::DEFAULT_REGISTRY =>
            {
                page.body
            }
            PackageManager::Npm | PackageManager::Deno => {
                npm::rewrite_tarballs(npm::DEFAULT_REGISTRY, self.registry(), &page.body).into()
            }
            PackageManager::Bun => {
                let here = format!("http://{}/", host_for(self.client));
                npm::rewrite_tarballs(&here, self.registry(), &page.body).into()
            }
        };
        answer(StatusCode::OK, page.kind, body)
    }

    /// Answers with a file of a package, if its registry lists the file.
    async fn file(&self, package: String, file: &str) -> Result<LocalAnswer, RegistryError> {
        let keys = match self.client {
            PackageManager::Pip => vec![IndexKey::Python(package)],
            PackageManager::Npm | PackageManager::Deno | PackageManager::Bun => vec![
                IndexKey::Npm(package.clone(), Detail::Abbreviated),
                IndexKey::Npm(package, Detail::Full),
            ],
        };
        let listed = match self.cache.0.pages.listed(&keys, file).await {
            Some(listed) => listed,
            None => {
                let page = self.page(&keys[0]).await?;
                page.files
                    .get(file)
                    .cloned()
                    .ok_or(RegistryError::NotFound)?
            }
        };
        self.egress.admit(&listed.url, &self.policy)?;
        let Some(digest) = &listed.digest else {
            let passed = upstream::get(&listed.url, &[], &self.egress, &self.policy).await?;
            return Ok(streamed(passed));
        };
        let flights = &self.cache.0.downloads;
        match flights
            .get(&listed, digest, &self.egress, &self.policy, &self.share)
            .await?
        {
            FileSource::File(reader) => {
                let length = reader.content.length;
                let pieces = reader.into_stream();
                let frames = pieces.map(|piece| piece.map(Frame::data));
                let body = StreamBody::new(frames).boxed_unsync();
                Ok(with_length(Response::new(body), length, BINARY))
            }
            FileSource::Stream(passed) => Ok(streamed(passed)),
        }
    }

    /// Passes a request with credentials on to the registry. The answer is for this client alone and is not cached.
    async fn pass_on(&self, route: &Route, request: &Parts) -> Result<LocalAnswer, RegistryError> {
        let registry = self.registry();
        let url = match (route, self.client) {
            (Route::Index(package), PackageManager::Pip) => registry.join(&format!("{package}/")),
            (Route::Index(package), _) => registry.join(&package.replace('/', "%2f")),
            (
                Route::File { file, .. },
                PackageManager::Npm | PackageManager::Deno | PackageManager::Bun,
            ) => registry.join(file),
            // The file's URL would have to come from a page that was fetched without these credentials.
            (Route::File { .. }, PackageManager::Pip) => return Err(RegistryError::NotFound),
        };
        let url = url.map_err(|_| RegistryError::NotFound)?;
        let header = |name| {
            request
                .headers
                .get(name)
                .and_then(|it: &HeaderValue| it.to_str().ok())
        };
        let named = [
            ("accept", ACCEPT),
            ("authorization", AUTHORIZATION),
            ("cookie", COOKIE),
        ];
        let headers: Vec<_> = named
            .into_iter()
            .filter_map(|(name, header_name)| Some((name, header(header_name)?)))
            .collect();
        let passed = upstream::get(&url, &headers, &self.egress, &self.policy).await?;
        Ok(streamed(passed))
    }
}

fn empty() -> impl hyper::body::Body<Data = Bytes, Error = io::Error> {
    Full::default().map_err(|never| match never {})
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> LocalAnswer {
    let length = body.len() as u64;
    let body = Full::new(body).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    with_length(answer, Some(length), kind)
}

/// Returns the registry's answer as a stream.
fn streamed(passed: FetchStream) -> LocalAnswer {
    let length = passed.length();
    let kind = passed
        .header("content-type")
        .and_then(|kind| HeaderValue::from_str(kind).ok());
    let pieces = stream::try_unfold(passed, |mut passed| async move {
        let piece = passed.chunk().await.map_err(io::Error::other)?;
        Ok(piece.map(|piece| (Frame::data(piece), passed)))
    });
    let mut answer = with_length(
        Response::new(StreamBody::new(pieces).boxed_unsync()),
        length,
        BINARY,
    );
    if let Some(kind) = kind {
        answer.headers_mut().insert(CONTENT_TYPE, kind);
    }
    answer
}

fn with_length(mut answer: LocalAnswer, length: Option<u64>, kind: &'static str) -> LocalAnswer {
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    answer
}

fn refusal(failure: &RegistryError) -> LocalAnswer {
    use isol8_egress::FetchError;
    let status = match failure {
        RegistryError::NotFound => StatusCode::NOT_FOUND,
        RegistryError::Status(status @ (401 | 403 | 405 | 429)) => {
            StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY)
        }
        RegistryError::Fetch(
            FetchError::Denied(_) | FetchError::NotPublic(_) | FetchError::Scheme(_),
        ) => StatusCode::FORBIDDEN,
        RegistryError::Busy | RegistryError::Disk => StatusCode::SERVICE_UNAVAILABLE,
        RegistryError::Fetch(_)
        | RegistryError::Status(_)
        | RegistryError::Malformed
        | RegistryError::TooLarge
        | RegistryError::Altered => StatusCode::BAD_GATEWAY,
    };
    let text = format!("isol8: {failure}\n");
    answer(status, "text/plain; charset=utf-8", text.into())
}
