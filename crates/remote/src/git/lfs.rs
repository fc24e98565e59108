//! Files that Git LFS keeps elsewhere: by the pointers to them, from the repository's server.
//!
//! Of the protocol there is what servers have in common: the batch request over HTTP, and the
//! `basic` transfer. What it says of a size and a digest is what the pointer says, and is checked.
//!
//! A trouble of the network ends the fetch, which is then tried again as a whole, and so does an
//! answer that is not understood. Pointers stay only where asking again would give the same: the
//! server has no LFS, or not the object.

use std::collections::BTreeMap;
use std::io::{self, Read};

use bytes::Bytes;
use gix::bstr::BString;
use oci::{Algorithm, Digest, Hasher};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::{Connection, Failure, GitError, Result, shown};
use crate::auth;
use crate::client::chain;
use crate::download::{DownloadError, Target};

/// A pointer is smaller than this, in bytes.
pub(super) const POINTER_SIZE_MAX: usize = 1024;

/// One request asks for at most this many objects: servers have bounds on both.
pub(super) const BATCH_MAX: usize = 100;

/// It asks for no more when it has asked for this much, in bytes: what it is told of them may
/// hold for less time than they take.
pub(super) const BATCH_SIZE: u64 = 1 << 30;

/// An answer has at most this many bytes.
const ANSWER_SIZE_MAX: usize = 1 << 20;

/// The address of an object is at most this large, in bytes.
const HREF_SIZE_MAX: usize = 8 << 10;

/// A download is asked for with at most this many headers of the server's choice.
const HEADERS_MAX: usize = 32;

/// Each of them is at most this large, in bytes.
const HEADER_SIZE_MAX: usize = 8 << 10;

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// How files begin that mean to be pointers.
const BEGINNINGS: [&[u8]; 2] = [b"version https://git-lfs", b"version https://hawser"];

/// What stands for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    digest: Digest,
    pub(super) size: u64,
}

/// A file that means to be a pointer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stub {
    Pointer(Pointer),
    /// By extensions, or of another time.
    NotUnderstood,
}

impl Stub {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() >= POINTER_SIZE_MAX || !BEGINNINGS.iter().any(|b| bytes.starts_with(b)) {
            return None;
        }
        Some(Pointer::parse(bytes).map_or(Self::NotUnderstood, Self::Pointer))
    }
}

impl Pointer {
    /// Takes a file that is one, as Git LFS writes them.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.lines();
        if lines.next()? != "version https://git-lfs.github.com/spec/v1" {
            return None;
        }
        let digest = lines.next()?.strip_prefix("oid ")?.parse::<Digest>().ok()?;
        let size = lines.next()?.strip_prefix("size ")?.parse().ok()?;
        let is_one = digest.algorithm() == Algorithm::Sha256 && lines.next().is_none();
        is_one.then_some(Self { digest, size })
    }
}

/// Why a pointer stays. The reason is for the user and has no secrets.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) reason: String,
    /// Whether the same commit may have the file later.
    pub(super) may_change: bool,
}

impl Missing {
    pub(super) fn for_now(reason: String) -> Self {
        Self { reason, may_change: true }
    }

    pub(super) fn for_ever(reason: String) -> Self {
        Self { reason, may_change: false }
    }
}

/// Why there are no bytes of a file.
pub(super) enum Unavailable {
    /// Its pointer stays.
    Missing(Missing),
    /// The fetch ends.
    Failed(GitError),
}

impl From<GitError> for Unavailable {
    fn from(error: GitError) -> Self {
        Self::Failed(error)
    }
}

impl From<DownloadError> for Unavailable {
    fn from(error: DownloadError) -> Self {
        Self::Failed(error.into())
    }
}

type Answered<T> = std::result::Result<T, Unavailable>;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    download: Option<Action>,
}

/// How to ask for an object.
#[derive(Deserialize)]
struct Action {
    href: String,
    header: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
}

/// What the server of a repository says of objects.
pub(super) struct Answers {
    repository: Target,
    found: BTreeMap<Digest, Found>,
}

/// How to ask for an object, or the code that says that there is none.
type Found = std::result::Result<Action, u16>;

impl Answers {
    /// Asks where objects are. The first of their files is at `path` in the archive.
    pub(super) fn ask<'p>(
        connection: &Connection,
        path: &BString,
        pointers: impl Iterator<Item = &'p Pointer>,
    ) -> Answered<Self> {
        let Some(repository) = connection.http_target() else {
            let reason = "they are fetched over `https://` and `http://` only";
            return Err(Unavailable::Missing(Missing::for_ever(reason.to_owned())));
        };
        let wanted = pointers.map(|pointer| (&pointer.digest, pointer.size)).collect();
        let asked = connection.wait(async { Ok(batch(connection, &repository, &wanted).await) })?;
        match asked {
            Ok(found) => Ok(Self { repository, found }),
            Err(Unavailable::Failed(GitError::Download(error))) => {
                Err(failed(connection, path, error).into())
            }
            Err(other) => Err(other),
        }
    }

    /// Asks for one of those objects, wherever its server has it.
    pub(super) fn open(&self, wanted: Wanted<'_>) -> Answered<Response> {
        let Wanted { connection, pointer, path } = wanted;
        let action = match self.found.get(&pointer.digest) {
            Some(Ok(action)) => action,
            Some(Err(code)) => {
                let reason = format!("its server has not all of them: code {code}");
                return Err(Unavailable::Missing(Missing::for_now(reason)));
            }
            None => return Err(failed(connection, path, not_understood(&self.repository)).into()),
        };
        let opened = connection.wait(async { Ok(self.get(connection, action).await) })?;
        opened.map_err(|error| failed(connection, path, error).into())
    }

    async fn get(
        &self,
        connection: &Connection,
        action: &Action,
    ) -> std::result::Result<Response, DownloadError> {
        let (downloads, repository) = (&connection.downloads, &self.repository);
        let first = Target::parse(&action.href)?;
        if repository.url().scheme() == "https" && first.url().scheme() != "https" {
            return Err(bad(repository, "its server names an address of plain HTTP"));
        }
        let mut headers = headers(action);
        // What needs no more than the repository itself says so by having no header.
        let is_same = repository.url().origin() == first.url().origin();
        let credentials = repository.credentials().filter(|_| is_same);
        if let Some(credentials) = first.credentials().or(credentials)
            && !headers.contains_key(AUTHORIZATION)
            && let Ok(value) = HeaderValue::from_str(&auth::basic(credentials))
        {
            headers.insert(AUTHORIZATION, value);
        }
        let mut origin = first.url().origin();
        let following = downloads.follow(&first, first.clone(), |target| {
            if target.url().origin() != origin {
                origin = target.url().origin();
                headers.clear();
            }
            downloads.http.get(target.url().clone()).headers(headers.clone())
        });
        let (response, _) = following.await?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(connection.status_error(&first, &response)),
        }
    }
}

/// The batch request.
async fn batch(
    connection: &Connection,
    repository: &Target,
    wanted: &BTreeMap<&Digest, u64>,
) -> Answered<BTreeMap<Digest, Found>> {
    let downloads = &connection.downloads;
    let target = repository.lfs("objects/batch")?;
    let object =
        |(digest, size): (&&Digest, &u64)| serde_json::json!({ "oid": digest.hex(), "size": size });
    let body = serde_json::json!({
        "operation": "download",
        "transfers": ["basic"],
        "hash_algo": "sha256",
        "objects": wanted.iter().map(object).collect::<Vec<_>>(),
    });
    let mut request = downloads.http.post(target.url().clone());
    request = request.header(ACCEPT, MEDIA_TYPE).header(CONTENT_TYPE, MEDIA_TYPE);
    if let Some(credentials) = target.credentials() {
        request = request.header(AUTHORIZATION, auth::basic(credentials));
    }
    let request = request.body(body.to_string());
    let response = downloads.ask_once(&target, &target, request).await?;
    connection.heed(&response);
    check(&target, response.status(), response.headers())?;
    Ok(answers(&target, &whole(&target, response).await?, wanted)?)
}

fn failed(connection: &Connection, path: &BString, error: DownloadError) -> GitError {
    GitError::Lfs { address: connection.address(), path: shown(path), error: Box::new(error) }
}

fn bad(target: &Target, reason: &'static str) -> DownloadError {
    DownloadError::BadAnswer { address: target.to_string(), reason }
}

fn not_understood(target: &Target) -> DownloadError {
    bad(target, "what its server says is not understood")
}

/// Tells a server that has no LFS from one that has trouble, or none for us.
fn check(target: &Target, status: StatusCode, headers: &HeaderMap) -> Answered<()> {
    let missing = |reason| Err(Unavailable::Missing(Missing::for_now(reason)));
    match status.as_u16() {
        200..=299 if is_json(headers) => Ok(()),
        200..=299 => missing("its server gives an answer of another kind".to_owned()),
        status @ (302 | 303 | 404 | 405 | 410 | 501) => {
            missing(format!("its server answered with status {status}"))
        }
        300..=399 => Err(bad(target, "its server redirects in the middle of a fetch").into()),
        status => Err(DownloadError::Status { address: target.to_string(), status }.into()),
    }
}

/// Whether an answer is of the kind that LFS servers give, or what Git LFS takes for it.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    [MEDIA_TYPE, "application/json"].iter().any(|known| kind.eq_ignore_ascii_case(known))
}

/// All of an answer.
async fn whole(
    target: &Target,
    mut response: Response,
) -> std::result::Result<Vec<u8>, DownloadError> {
    let mut bytes = Vec::new();
    let failed = |error: reqwest::Error| crate::download::failed(target, &error.without_url());
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_SIZE_MAX {
            let (address, max) = (target.to_string(), ANSWER_SIZE_MAX as u64);
            return Err(DownloadError::TooLarge { address, max });
        }
    }
    Ok(bytes)
}

/// What an answer says of the objects that were asked for.
fn answers(
    target: &Target,
    bytes: &[u8],
    wanted: &BTreeMap<&Digest, u64>,
) -> std::result::Result<BTreeMap<Digest, Found>, DownloadError> {
    let batch: Batch = serde_json::from_slice(bytes).map_err(|_| not_understood(target))?;
    let told = batch.objects.into_iter().map(|answer| (answer.oid.clone(), answer));
    let mut told: BTreeMap<String, Answer> = told.collect();
    let found = wanted.keys().map(|digest| {
        let answer = told.remove(digest.hex()).ok_or_else(|| not_understood(target))?;
        Ok(((*digest).clone(), found(target, answer)?))
    });
    found.collect()
}

fn found(target: &Target, answer: Answer) -> std::result::Result<Found, DownloadError> {
    match answer.error {
        Some(ObjectError { code: code @ (404 | 410 | 422) }) => Ok(Err(code)),
        Some(ObjectError { code: status }) => {
            Err(DownloadError::Status { address: target.to_string(), status })
        }
        None => {
            let action = answer.actions.and_then(|actions| actions.download);
            let action = action.filter(|action| action.href.len() <= HREF_SIZE_MAX);
            action.map(Ok).ok_or_else(|| not_understood(target))
        }
    }
}

/// Those headers for a download that prove who asks. Others may not be the server's to choose:
/// they say where a request ends, or whom it is for.
fn headers(action: &Action) -> HeaderMap {
    let headers = action.header.iter().flatten().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let is_fine = name == AUTHORIZATION || name == ACCEPT || name.as_str().starts_with("x-");
        let is_short = name.as_str().len() + value.len() <= HEADER_SIZE_MAX;
        Some((name, HeaderValue::from_str(value).ok()?)).filter(|_| is_fine && is_short)
    });
    headers.take(HEADERS_MAX).collect()
}

/// A file whose bytes are wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) connection: &'a Connection,
    pub(super) pointer: &'a Pointer,
    /// Where it is in the archive.
    pub(super) path: &'a BString,
}

impl Wanted<'_> {
    fn damaged(self) -> GitError {
        GitError::DamagedObject { address: self.connection.address(), path: shown(self.path) }
    }
}

/// The bytes of an object as they come; damaged ones are an error.
pub(super) struct Object<'a> {
    wanted: Wanted<'a>,
    failure: &'a Failure,
    response: Response,
    piece: Bytes,
    received: u64,
    /// Until the end.
    hasher: Option<Hasher>,
}

impl<'a> Object<'a> {
    pub(super) fn new(wanted: Wanted<'a>, failure: &'a Failure, response: Response) -> Self {
        let hasher = Some(Hasher::new(Algorithm::Sha256));
        Self { wanted, failure, response, piece: Bytes::new(), received: 0, hasher }
    }

    /// The next piece; empty at the end.
    fn next(&mut self) -> Result<Bytes> {
        let Self { wanted, response, hasher, received, .. } = self;
        let Some(mut sum) = hasher.take() else { return Ok(Bytes::new()) };
        match wanted.connection.wait(chunk(response, wanted))? {
            Some(piece) => {
                *received += piece.len() as u64;
                if *received > wanted.pointer.size {
                    return Err(wanted.damaged());
                }
                sum.update(&piece);
                *hasher = Some(sum);
                Ok(piece)
            }
            None if *received == wanted.pointer.size && sum.finish() == wanted.pointer.digest => {
                Ok(Bytes::new())
            }
            None => Err(wanted.damaged()),
        }
    }
}

/// The next bytes of an answer; nothing at its end.
async fn chunk(response: &mut Response, wanted: &Wanted<'_>) -> Result<Option<Bytes>> {
    loop {
        match response.chunk().await {
            Ok(Some(piece)) if piece.is_empty() => (),
            Ok(piece) => return Ok(piece),
            Err(error) => {
                let (address, reason) = (wanted.connection.address(), chain(&error.without_url()));
                let error = DownloadError::Unreachable { address, reason };
                return Err(failed(wanted.connection, wanted.path, error));
            }
        }
    }
}

impl Read for Object<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.piece = self.next().map_err(|error| self.failure.keep(error))?;
        }
        let piece = self.piece.split_to(self.piece.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_told_from_other_files() {
        let digest = "0".repeat(64);
        let pointer = |digest: &str, rest: &str| {
            let version = "version https://git-lfs.github.com/spec/v1";
            Stub::parse(format!("{version}\noid {digest}\n{rest}").as_bytes())
        };
        let Some(Stub::Pointer(found)) = pointer(&format!("sha256:{digest}"), "size 7\n") else {
            panic!("it is one")
        };
        assert_eq!((found.digest.hex(), found.size), (digest.as_str(), 7));
        for (name, rest) in [
            (digest.clone(), "size 7\n"),
            (format!("sha256:{digest}"), ""),
            (format!("sha256:{digest}"), "size x\n"),
            (format!("sha256:{digest}"), "size -7\n"),
            (format!("sha256:{digest}"), "size 7\nmore\n"),
            (format!("sha512:{digest}{digest}"), "size 7\n"),
            ("sha256:0".to_owned(), "size 7\n"),
        ] {
            assert_eq!(pointer(&name, rest), Some(Stub::NotUnderstood), "{name} {rest}");
        }
        for odd in [
            "version https://hawser.github.com/spec/v1\n",
            "version https://git-lfs.github.com/spec/v1\next-0-case sha256:0\n",
            "version https://git-lfs.github.com/spec/v2\n",
        ] {
            assert_eq!(Stub::parse(odd.as_bytes()), Some(Stub::NotUnderstood), "{odd}");
        }
        let long = format!("version https://git-lfs{}", "x".repeat(1024));
        for other in [&b""[..], b"text", b"\xff", b"version 1\n", long.as_bytes()] {
            assert_eq!(Stub::parse(other), None);
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let target = Target::parse("https://u:secret@h/r.git/info/lfs/objects/batch?q=1").unwrap();
        let digest = Digest::of(b"large");
        let wanted = [(&digest, 5)].into_iter().collect();
        let all = |objects: &str| {
            answers(&target, format!("{{\"objects\": [{objects}]}}").as_bytes(), &wanted)
        };
        let of = |oid: &str, rest: &str| all(&format!(r#"{{"oid": "{oid}", {rest}}}"#));
        let found = |rest: &str| of(digest.hex(), rest);
        let fine = r#""actions": {"download": {"href": "https://h/x", "header": null}}"#;
        let action = found(fine).unwrap().remove(&digest).unwrap().unwrap();
        assert_eq!(action.href, "https://h/x");
        let long = fine.replace("/x", &"/x".repeat(HREF_SIZE_MAX));
        for strange in [
            all(""),
            all("1"),
            all("{}"),
            all(&format!("{{{fine}}}")),
            of(Digest::of(b"other").hex(), fine),
            found(r#""actions": {"upload": {"href": "https://h/x"}}"#),
            found(r#""actions": {"download": {"href": 1}}"#),
            found(r#""actions": {}"#),
            found(r#""error": {"code": -1}"#),
            found(&long),
            answers(&target, b"<html>", &wanted),
        ] {
            let Err(error) = strange else { panic!("it is taken") };
            assert!(error.to_string().ends_with("is not understood"), "{error}");
            assert!(!error.is_transient() && !error.to_string().contains("secret"), "{error}");
        }
        for code in [404, 410, 422] {
            let error = format!("\"error\": {{\"code\": {code}, \"message\": \"none\"}}");
            assert_eq!(found(&error).unwrap()[&digest].as_ref().err(), Some(&code));
        }
        for (code, is_transient) in [(429, true), (500, true), (503, true), (409, false)] {
            let Err(error) = found(&format!("\"error\": {{\"code\": {code}}}")) else {
                panic!("{code}")
            };
            assert_eq!(error.is_transient(), is_transient, "{code}");
            assert!(error.to_string().ends_with(&format!("status {code}")), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_server_without_lfs_is_told_from_one_in_trouble() {
        let target = Target::parse("https://h/r.git/info/lfs/objects/batch").unwrap();
        let check = |status, kind| {
            let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            check(&target, StatusCode::from_u16(status).unwrap(), &headers)
        };
        for kind in [MEDIA_TYPE, "Application/vnd.git-lfs+json; charset=utf-8", "application/json"]
        {
            assert!(check(200, kind).is_ok(), "{kind}");
        }
        for (status, kind) in [(200, "text/html"), (200, ""), (404, MEDIA_TYPE), (501, "text/html")]
        {
            let found = check(status, kind);
            assert!(
                matches!(found, Err(Unavailable::Missing(Missing { may_change: true, .. }))),
                "{status} {kind}"
            );
        }
        for (status, expected) in [
            (301, false),
            (400, false),
            (401, false),
            (403, false),
            (408, true),
            (422, false),
            (429, true),
            (500, true),
            (502, true),
            (503, true),
            (504, true),
        ] {
            let Err(Unavailable::Failed(error)) = check(status, "") else { panic!("{status}") };
            assert_eq!(error.is_transient(), expected, "{status}");
        }
    }

    #[test]
    fn headers_that_say_more_than_who_asks_are_dropped() {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let given = |header: Vec<(String, String)>| {
            let header = Some(header.into_iter().collect());
            headers(&Action { href: String::new(), header })
        };
        let long = "x".repeat(HEADER_SIZE_MAX);
        let found = given(vec![
            header("Authorization", "Bearer x"),
            header("Accept", "*/*"),
            header("X-Amz-Date", "1"),
            header("X-Long", &long),
            header("x-break", "1\r\nHost: other"),
            header("x-name\r\nHost", "other"),
            header("Host", "other"),
            header("Content-Length", "7"),
            header("Transfer-Encoding", "chunked"),
            header("Connection", "x-amz-date"),
            header("Cookie", "a=b"),
            header("Range", "bytes=1-"),
        ]);
        let mut names: Vec<_> = found.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "authorization", "x-amz-date"]);
        let many = (0..100).map(|number| header(&format!("x-{number}"), "1"));
        assert_eq!(given(many.collect()).len(), HEADERS_MAX);
    }
}
