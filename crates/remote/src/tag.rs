//! What a tag of another registry means, for whoever asks for it again and again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci::{Digest, Manifest, Reference};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};

use crate::client::Ask;
use crate::pull::{ACCEPT, manifest_name, manifest_path};
use crate::{Remote, RemoteError};

/// What a registry says of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedTag {
    /// What it is; `None`: what the asker knows.
    pub image: Option<TagImage>,
    /// For how long the registry wants to be left alone.
    pub rest: Option<Duration>,
}

/// What a tag is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagImage {
    pub digest: Digest,
    /// What it lists, if it is an index.
    pub members: Vec<Digest>,
}

/// Why a registry has said nothing of a tag, and for how long it wants to be left alone.
#[derive(Debug)]
pub struct NotTold {
    pub error: RemoteError,
    pub rest: Option<Duration>,
}

impl NotTold {
    /// Whether it is the registry that does not answer, for whatever it is asked.
    pub fn is_of_host(&self) -> bool {
        matches!(self.error, RemoteError::RateLimited { .. }) || self.error.is_transient()
    }
}

impl Remote {
    /// Asks once what a tag is, without its manifest if it is what the asker `knows`. Nothing is tried
    /// again: the asker knows when.
    pub async fn ask_tag(
        &self,
        reference: &Reference,
        knows: Option<&Digest>,
    ) -> Result<AskedTag, NotTold> {
        if let Some(known) = knows {
            let path = manifest_path(reference, &manifest_name(reference));
            let ask = Ask {
                method: Method::HEAD,
                accept: Some(ACCEPT),
                // Registries tell a manifest's digest as its entity tag.
                unless: Some(format!("\"{known}\"")),
                ..Ask::get(path)
            };
            let head = match self.ask_once(reference, &ask).await {
                Ok(response) => Some(response),
                // Some answer nothing to a HEAD.
                Err(failure) => match failure.error {
                    RemoteError::Status { status: 405 | 501, .. } => None,
                    error => return Err(NotTold { error, rest: failure.wait }),
                },
            };
            if let Some(response) = head {
                let digest = response.headers().get("docker-content-digest");
                let digest = digest.and_then(|digest| digest.to_str().ok()?.parse::<Digest>().ok());
                if response.status() == StatusCode::NOT_MODIFIED || digest.as_ref() == Some(known) {
                    return Ok(AskedTag { image: None, rest: rest_of(response.headers()) });
                }
            }
        }
        let fetched = self.manifest_once(reference).await;
        let (fetched, rest) =
            fetched.map_err(|failure| NotTold { error: failure.error, rest: failure.wait })?;
        if Some(&fetched.digest) == knows {
            return Ok(AskedTag { image: None, rest });
        }
        let members = match fetched.manifest {
            Manifest::Index(index) => {
                index.manifests.into_iter().map(|entry| entry.digest).collect()
            }
            Manifest::Image(_) | Manifest::Artifact(_) => Vec::new(),
        };
        Ok(AskedTag { image: Some(TagImage { digest: fetched.digest, members }), rest })
    }
}

/// For how long nothing more may be asked, as an answer says that was given.
pub(crate) fn rest_of(headers: &HeaderMap) -> Option<Duration> {
    let now = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rest_at(|name| headers.get(name)?.to_str().ok(), now.as_secs())
}

/// Seconds for which a registry is left alone that tells only how long its window is.
const WINDOW_MAX: u64 = 30 * 60;

#[expect(clippy::disallowed_methods, reason = "servers say times of the day, and this is the edge")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

fn rest_at<'a>(header: impl Fn(&str) -> Option<&'a str>, now: u64) -> Option<Duration> {
    let first = |text: &str| text.split([';', ',']).next().unwrap_or_default().trim().parse().ok();
    // As Docker Hub has it: `0;w=21600`, the window in seconds.
    if let Some(left) = header("ratelimit-remaining") {
        if first(left).is_none_or(|left: u64| left > 0) {
            return None;
        }
        let window = left.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
        let reset = header("ratelimit-reset").and_then(first);
        // How much of the window is left is not told.
        let window = window.map(|window: u64| window.min(WINDOW_MAX));
        return reset.or(window).map(Duration::from_secs);
    }
    // As others do, with the time at which it is over.
    let left: u64 = first(header("x-ratelimit-remaining")?)?;
    let reset: u64 = first(header("x-ratelimit-reset")?)?;
    (left == 0).then(|| Duration::from_secs(reset.saturating_sub(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&str, &str)], expected: Option<u64>) {
        let header =
            |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        assert_eq!(rest_at(header, 1_000), expected.map(Duration::from_secs), "{headers:?}");
    }

    #[test]
    fn a_limit_that_is_reached_asks_for_a_pause() {
        check(&[], None);
        check(&[("ratelimit-remaining", "76;w=21600")], None);
        check(&[("ratelimit-remaining", "0;w=21600")], Some(1_800));
        check(&[("ratelimit-remaining", "0;w=60")], Some(60));
        check(&[("ratelimit-remaining", "0;w=21600"), ("ratelimit-reset", "60")], Some(60));
        check(&[("ratelimit-remaining", "none")], None);
        check(&[("ratelimit-remaining", "0")], None);
        check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1090")], Some(90));
        check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "90")], Some(0));
        check(&[("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "1090")], None);
    }
}
