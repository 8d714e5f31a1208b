//! The answers that package managers get.

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
use isol8_egress::{Egress, LocalAnswer, LocalHost, Opened, Policy, Problem, Problems};
use url::Url;

use crate::flight::Found;
use crate::page::{Detail, Key, Page};
use crate::route::Route;
use crate::share::Share;
use crate::upstream::{self, Failure};
use crate::{Client, RegistryCache, npm};

/// The content type of files.
const BINARY: &str = "application/octet-stream";

/// The registry as one package manager sees it.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    cache: RegistryCache,
    client: Client,
    egress: Egress,
    policy: Policy,
    share: Arc<Share>,
    problems: Arc<Problems>,
}

impl LocalHost for Site {
    fn is_named(&self, host: &str) -> bool {
        host == self.client.host()
    }

    fn problems(&self) -> Vec<Problem> {
        self.problems.all()
    }

    fn answer(&self, request: Parts) -> BoxFuture<'static, LocalAnswer> {
        let site = self.clone();
        Box::pin(async move {
            let is_head = request.method == Method::HEAD;
            let answered = site.route(&request).await;
            if let Err(Failure::Fetch(error)) = &answered {
                site.problems.add_fetch(error);
            }
            let answer = answered.unwrap_or_else(|failure| refusal(&failure));
            match is_head {
                true => answer.map(|_| empty().boxed_unsync()),
                false => answer,
            }
        })
    }
}

impl Site {
    pub(crate) fn new(
        cache: RegistryCache,
        client: Client,
        egress: Egress,
        policy: Policy,
    ) -> Self {
        Self {
            cache,
            client,
            egress,
            policy,
            share: Arc::new(Share::new()),
            problems: Arc::default(),
        }
    }

    async fn route(&self, request: &Parts) -> Result<LocalAnswer, Failure> {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Err(Failure::Status(StatusCode::METHOD_NOT_ALLOWED.as_u16()));
        }
        let route = Route::parse(self.client, request.uri.path()).ok_or(Failure::NotFound)?;
        let is_secret = [AUTHORIZATION, COOKIE]
            .iter()
            .any(|name| request.headers.contains_key(name));
        if is_secret {
            return self.pass_on(&route, request).await;
        }
        match route {
            Route::Page(package) => {
                let key = self.key(package, request);
                Ok(self.show(self.page(&key).await?))
            }
            Route::File { package, file } => self.file(package, &file).await,
        }
    }

    fn registry(&self) -> &Url {
        let settings = self.cache.settings();
        match self.client {
            Client::Pip => &settings.python,
            Client::Npm | Client::Deno | Client::Bun => &settings.npm,
        }
    }

    fn key(&self, package: String, request: &Parts) -> Key {
        match self.client {
            Client::Pip => Key::Python(package),
            Client::Npm | Client::Deno | Client::Bun => {
                let accept = request.headers.get(ACCEPT);
                let accept = accept.and_then(|accept| accept.to_str().ok());
                Key::Npm(package, Detail::wanted(accept.unwrap_or_default()))
            }
        }
    }

    async fn page(&self, key: &Key) -> Result<Page, Failure> {
        // A file that was fetched for others may come from a host that this run may not reach.
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

    fn show(&self, page: Page) -> LocalAnswer {
        let body = match self.client {
            Client::Pip => page.body,
            Client::Npm | Client::Deno if self.registry().as_str() == npm::USUAL => page.body,
            Client::Npm | Client::Deno => {
                npm::lead_to(npm::USUAL, self.registry(), &page.body).into()
            }
            Client::Bun => {
                let here = format!("http://{}/", self.client.host());
                npm::lead_to(&here, self.registry(), &page.body).into()
            }
        };
        answer(StatusCode::OK, page.kind, body)
    }

    /// A file of a package, if its registry lists it.
    async fn file(&self, package: String, file: &str) -> Result<LocalAnswer, Failure> {
        let keys = match self.client {
            Client::Pip => vec![Key::Python(package)],
            Client::Npm | Client::Deno | Client::Bun => vec![
                Key::Npm(package.clone(), Detail::Abbreviated),
                Key::Npm(package, Detail::Full),
            ],
        };
        let listed = match self.cache.0.pages.listed(&keys, file).await {
            Some(listed) => listed,
            None => {
                let page = self.page(&keys[0]).await?;
                page.files.get(file).cloned().ok_or(Failure::NotFound)?
            }
        };
        self.egress.admit(&listed.url, &self.policy)?;
        let Some(digest) = &listed.digest else {
            let passed = upstream::get(&listed.url, &[], &self.egress, &self.policy).await?;
            return Ok(streamed(passed));
        };
        let flights = &self.cache.0.flights;
        match flights
            .get(&listed, digest, &self.egress, &self.policy, &self.share)
            .await?
        {
            Found::File(reader) => {
                let length = reader.content.length;
                let pieces = reader.into_stream();
                let frames = pieces.map(|piece| piece.map(Frame::data));
                let body = StreamBody::new(frames).boxed_unsync();
                Ok(with_length(Response::new(body), length, BINARY))
            }
            Found::Stream(passed) => Ok(streamed(passed)),
        }
    }

    /// Asks the registry with a client's credentials, for that client alone.
    async fn pass_on(&self, route: &Route, request: &Parts) -> Result<LocalAnswer, Failure> {
        let registry = self.registry();
        let url = match (route, self.client) {
            (Route::Page(package), Client::Pip) => registry.join(&format!("{package}/")),
            (Route::Page(package), _) => registry.join(&package.replace('/', "%2f")),
            (Route::File { file, .. }, Client::Npm | Client::Deno | Client::Bun) => {
                registry.join(file)
            }
            // Its address is on a page that was fetched without these credentials.
            (Route::File { .. }, Client::Pip) => return Err(Failure::NotFound),
        };
        let url = url.map_err(|_| Failure::NotFound)?;
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

/// The registry's answer, as it comes.
fn streamed(passed: Opened) -> LocalAnswer {
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

fn refusal(failure: &Failure) -> LocalAnswer {
    use isol8_egress::FetchError;
    let status = match failure {
        Failure::NotFound => StatusCode::NOT_FOUND,
        Failure::Status(status @ (401 | 403 | 405 | 429)) => {
            StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY)
        }
        Failure::Fetch(
            FetchError::Denied(_) | FetchError::NotPublic(_) | FetchError::Scheme(_),
        ) => StatusCode::FORBIDDEN,
        Failure::Busy | Failure::Disk => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Fetch(_)
        | Failure::Status(_)
        | Failure::Malformed
        | Failure::TooLarge
        | Failure::Altered => StatusCode::BAD_GATEWAY,
    };
    let text = format!("isol8: {failure}\n");
    answer(status, "text/plain; charset=utf-8", text.into())
}
