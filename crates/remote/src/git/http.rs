//! The requests of a fetch, by our own client.
//!
//! `gix` hands over addresses below the repository's own; where that one is, after redirects,
//! and who asks, only this module knows. So whatever `gix` says in an error has no secret in it.

use std::any::Any;
use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use gix_transport::client::blocking_io::http::{GetResponse, Http, PostBodyDataKind, PostResponse};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{RequestBuilder, Response, StatusCode};

use super::{Connection, Failure, GitError, Result, broken};
use crate::auth;
use crate::download::{DownloadError, Target, failed, redirect_of};

/// A request is at most this large, in bytes: it says what is wanted and what is there.
const REQUEST_SIZE_MAX: usize = 64 << 20;

/// Some hosts look whether it is git that asks.
const USER_AGENT_VALUE: &str = concat!("git/refit-", env!("CARGO_PKG_VERSION"));

/// `gix`'s HTTP client.
pub(super) struct GitHttp {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    /// The repository, after redirects.
    base: Mutex<Target>,
    failure: Failure,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GitHttp {
    pub(super) fn new(connection: &Connection, target: &Target, failure: &Failure) -> Self {
        let (connection, failure) = (connection.clone(), failure.clone());
        Self { shared: Arc::new(Shared { connection, base: Mutex::new(target.clone()), failure }) }
    }

    fn exchange(
        &self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        body: Option<Vec<u8>>,
    ) -> Arc<Mutex<Exchange>> {
        let suffix = url.strip_prefix(base_url).unwrap_or(url).trim_start_matches('/').to_owned();
        let headers = headers.into_iter().filter_map(|line| {
            let (name, value) = line.as_ref().split_once(':')?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        Arc::new(Mutex::new(Exchange {
            shared: Arc::clone(&self.shared),
            state: State::Ready { suffix, headers: headers.collect(), body },
            received: 0,
        }))
    }
}

impl Http for GitHttp {
    type Headers = Part;
    type ResponseBody = Part;
    type PostBody = RequestBody;

    fn get(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::Result<GetResponse<Part, Part>> {
        let exchange = self.exchange(url, base_url, headers, None);
        Ok(GetResponse { headers: Part::headers(&exchange), body: Part::body(&exchange) })
    }

    fn post(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix::Result<PostResponse<Part, Part, RequestBody>> {
        let exchange = self.exchange(url, base_url, headers, Some(Vec::new()));
        Ok(PostResponse {
            headers: Part::headers(&exchange),
            body: Part::body(&exchange),
            post_body: RequestBody(exchange),
        })
    }

    fn configure(&mut self, _config: &dyn Any) -> gix::Result {
        Ok(())
    }
}

/// One request and its answer. It is sent when the answer is first read: then its body is whole.
struct Exchange {
    shared: Arc<Shared>,
    state: State,
    received: u64,
}

enum State {
    Ready { suffix: String, headers: HeaderMap, body: Option<Vec<u8>> },
    Answered(Response),
    Failed,
}

impl Exchange {
    fn answer(&mut self) -> io::Result<&mut Response> {
        if let State::Ready { .. } = self.state {
            let State::Ready { suffix, headers, body } =
                std::mem::replace(&mut self.state, State::Failed)
            else {
                return Err(broken());
            };
            let sending = self.shared.send(&suffix, &headers, body.map(Bytes::from));
            match self.shared.connection.wait(sending) {
                Ok(response) => self.state = State::Answered(response),
                Err(error) => return Err(self.shared.failure.keep(error)),
            }
        }
        match &mut self.state {
            State::Answered(response) => Ok(response),
            _ => Err(broken()),
        }
    }

    fn headers(&mut self) -> io::Result<Bytes> {
        let response = self.answer()?;
        let mut text = String::new();
        for (name, value) in response.headers() {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{name}: {}", value.to_str().unwrap_or_default());
        }
        Ok(text.into())
    }

    /// The next piece of the body; empty at its end.
    fn chunk(&mut self) -> io::Result<Bytes> {
        let shared = Arc::clone(&self.shared);
        let target = lock(&shared.base).clone();
        let response = self.answer()?;
        let reading = async {
            let chunk = response.chunk().await;
            Ok(chunk.map_err(|error| failed(&target, &error))?.unwrap_or_default())
        };
        let chunk = shared.connection.wait(reading).map_err(|error| shared.failure.keep(error))?;
        self.received += chunk.len() as u64;
        let max = shared.connection.bytes_max;
        match self.received > max {
            true => {
                Err(shared.failure.keep(GitError::TooLarge { address: target.to_string(), max }))
            }
            false => Ok(chunk),
        }
    }
}

impl Shared {
    /// Sends a request. One that only asks may be redirected, and the next go there too.
    async fn send(
        &self,
        suffix: &str,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response> {
        let downloads = &self.connection.downloads;
        let base = lock(&self.base).clone();
        let target = base.below(suffix)?;
        let mut headers = headers.clone();
        headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
        let with_headers = |target: &Target, request: RequestBuilder| {
            let request = request.headers(headers.clone());
            match target.credentials() {
                Some(credentials) => request.header(AUTHORIZATION, auth::basic(credentials)),
                None => request,
            }
        };
        let Some(body) = body else {
            let request =
                |target: &Target| with_headers(target, downloads.http.get(target.url().clone()));
            let (response, target) = downloads.follow(&base, target, request).await?;
            self.check(&base, &response)?;
            if let Some(moved) = target.above(suffix) {
                *lock(&self.base) = moved.clone();
                *lock(&self.connection.moved) = Some(moved);
            }
            return Ok(response);
        };
        let request = downloads.http.post(target.url().clone()).body(body);
        let response = downloads.ask_once(&base, &target, with_headers(&target, request)).await?;
        if redirect_of(&response, &target).is_some() {
            let reason = "its server redirects in the middle of a fetch";
            return Err(DownloadError::BadAnswer { address: base.to_string(), reason }.into());
        }
        self.check(&base, &response)?;
        Ok(response)
    }

    fn check(&self, base: &Target, response: &Response) -> Result<()> {
        let address = base.to_string();
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(match base.credentials().is_some() {
                    true => GitError::WrongCredentials { address },
                    false => GitError::Unauthorized { address },
                })
            }
            _ => Err(self.connection.status_error(base, response).into()),
        }
    }
}

/// Collects what is sent.
pub(super) struct RequestBody(Arc<Mutex<Exchange>>);

impl Write for RequestBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut lock(&self.0).state {
            State::Ready { body: Some(body), .. } if body.len() < REQUEST_SIZE_MAX => {
                body.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            _ => Err(broken()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Headers or body of an answer.
pub(super) struct Part {
    exchange: Arc<Mutex<Exchange>>,
    /// Headers come at once.
    is_headers: bool,
    is_at_end: bool,
    piece: Bytes,
}

impl Part {
    fn headers(exchange: &Arc<Mutex<Exchange>>) -> Self {
        let exchange = Arc::clone(exchange);
        Self { exchange, is_headers: true, is_at_end: false, piece: Bytes::new() }
    }

    fn body(exchange: &Arc<Mutex<Exchange>>) -> Self {
        Self { is_headers: false, ..Self::headers(exchange) }
    }
}

impl BufRead for Part {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty() && !self.is_at_end {
            let mut exchange = lock(&self.exchange);
            self.piece = match self.is_headers {
                true => exchange.headers()?,
                false => exchange.chunk()?,
            };
            self.is_at_end = self.is_headers || self.piece.is_empty();
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        let _ = self.piece.split_to(count.min(self.piece.len()));
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}
