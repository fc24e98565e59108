//! What a registry lists, page after page: the tags of a repository, and what belongs to a
//! manifest.

use oci::{Descriptor, Digest, MANIFEST_SIZE_MAX, Manifest, Reference};
use reqwest::Response;
use reqwest::header::LINK;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::client::{Ask, read_bounded};
use crate::{Remote, RemoteError};

/// A longer list is refused.
const ENTRIES_MAX: usize = 10_000;
/// Pages of a list; one may be empty.
const PAGES_MAX: usize = 1_000;

impl Remote {
    /// The tags of a repository, in the order of its registry.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RemoteError> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let path = format!("/v2/{}/tags/list", reference.repository);
        self.list(reference, path, |page: Page| page.tags.unwrap_or_default()).await
    }

    /// The manifests that belong to another one, such as its signatures (distribution-spec,
    /// *Listing Referrers*).
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, RemoteError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            manifests: Vec<Descriptor>,
        }
        let path = format!("/v2/{}/referrers/{subject}", reference.repository);
        match self.list(reference, path, |page: Page| page.manifests).await {
            Err(error) if is_unknown(&error) => self.tagged_referrers(reference, subject).await,
            listed => listed,
        }
    }

    /// The same from a registry without such lists: the index that a tag names
    /// (distribution-spec, *Referrers Tag Schema*).
    async fn tagged_referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, RemoteError> {
        let tag = format!("{}-{}", subject.algorithm().name(), subject.hex());
        // A tag has at most 128 characters, and more of a sha512 digest is not needed.
        let tag = tag.chars().take(128).collect::<String>();
        match self.manifest(reference, &tag, None).await.map(|found| found.manifest) {
            Ok(Manifest::Index(index)) => Ok(index.manifests),
            Ok(_) => Ok(Vec::new()),
            Err(error) if is_unknown(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn list<P: DeserializeOwned, T>(
        &self,
        reference: &Reference,
        path: String,
        entries: impl Fn(P) -> Vec<T>,
    ) -> Result<Vec<T>, RemoteError> {
        let host = &reference.host;
        let too_long = || {
            let (host, entries, pages) = (host.clone(), ENTRIES_MAX, PAGES_MAX);
            RemoteError::TooLong { host, entries, pages }
        };
        let (mut all, mut next) = (Vec::new(), Some(path));
        for _ in 0..PAGES_MAX {
            let Some(path) = next else { return Ok(all) };
            let response = self.ask(reference, &Ask::get(path.clone())).await?;
            next = self.next_page(host, &path, &response);
            let page = read_bounded(host, response, "a list", MANIFEST_SIZE_MAX).await?;
            let page = serde_json::from_slice(&page).map_err(|error| {
                let reason = error.to_string();
                RemoteError::BadList { host: host.clone(), reason }
            })?;
            all.extend(entries(page));
            if all.len() > ENTRIES_MAX {
                return Err(too_long());
            }
        }
        Err(too_long())
    }

    /// The path of the page that follows, if it is on the same server.
    fn next_page(&self, host: &str, path: &str, response: &Response) -> Option<String> {
        let link = response.headers().get(LINK)?.to_str().ok()?;
        let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
        if !parameters.replace(['"', ' '], "").contains("rel=next") {
            return None;
        }
        let base = url::Url::parse(&self.inner.base_url(host)).ok()?;
        let next = base.join(path).ok()?.join(target).ok()?;
        let path = &next[url::Position::BeforePath..url::Position::AfterQuery];
        (next.origin() == base.origin() && path.starts_with("/v2/")).then(|| path.to_owned())
    }
}

/// Whether a registry says that it has no such list. Some do by refusing access.
fn is_unknown(error: &RemoteError) -> bool {
    matches!(
        error,
        RemoteError::NotFound { .. }
            | RemoteError::Denied { .. }
            | RemoteError::Status { status: 400 | 405 | 501, .. }
    )
}
