//! A small client of the distribution protocol, written from the specification and sharing no
//! code with the product.

use oci::Digest;
use reqwest::{Client, Response, StatusCode, header};

use crate::{Image, wait};

/// One registry, asked without credentials.
pub struct RegistryClient {
    url: String,
}

/// Every kind of manifest there is.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

impl RegistryClient {
    pub fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned() }
    }

    pub(crate) fn is_ready(&self) -> bool {
        wait(async {
            let answer = client().get(format!("{}/readyz", self.url)).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
    }

    /// The status that a GET of a path gives.
    #[track_caller]
    pub fn status(&self, path: &str) -> u16 {
        wait(async { get(&format!("{}{path}", self.url)).await.status().as_u16() })
    }

    /// Bytes and media type of a manifest, by tag or digest.
    #[track_caller]
    pub fn manifest(&self, repository: &str, reference: &str) -> (Vec<u8>, String) {
        wait(async {
            let response =
                get(&format!("{}/v2/{repository}/manifests/{reference}", self.url)).await;
            assert_eq!(response.status(), StatusCode::OK, "{repository}:{reference}");
            let media_type = response.headers().get(header::CONTENT_TYPE);
            let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
            let media_type = media_type.to_owned();
            (response.bytes().await.expect("the manifest comes whole").to_vec(), media_type)
        })
    }

    #[track_caller]
    pub fn blob(&self, repository: &str, digest: &Digest) -> Vec<u8> {
        wait(async {
            let response = get(&format!("{}/v2/{repository}/blobs/{digest}", self.url)).await;
            assert_eq!(response.status(), StatusCode::OK, "{repository}@{digest}");
            response.bytes().await.expect("the blob comes whole").to_vec()
        })
    }

    #[track_caller]
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let listing: serde_json::Value = wait(async {
            let response = get(&format!("{}/v2/{repository}/tags/list", self.url)).await;
            assert_eq!(response.status(), StatusCode::OK, "tags of {repository}");
            let bytes = response.bytes().await.expect("the listing comes whole");
            serde_json::from_slice(&bytes).expect("a listing is JSON")
        });
        let tags = listing["tags"].as_array().cloned().unwrap_or_default();
        tags.iter().filter_map(|tag| Some(tag.as_str()?.to_owned())).collect()
    }

    /// The descriptors of the manifests that have this one as their subject.
    #[track_caller]
    pub fn referrers(&self, repository: &str, subject: &Digest) -> Vec<serde_json::Value> {
        let index: serde_json::Value = wait(async {
            let response = get(&format!("{}/v2/{repository}/referrers/{subject}", self.url)).await;
            assert_eq!(response.status(), StatusCode::OK, "referrers of {repository}@{subject}");
            let bytes = response.bytes().await.expect("the index comes whole");
            serde_json::from_slice(&bytes).expect("an index is JSON")
        });
        index["manifests"].as_array().cloned().unwrap_or_default()
    }

    /// Pushes an image; its manifest's digest.
    #[track_caller]
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Digest {
        wait(async {
            for blob in image.blobs() {
                self.send_blob(repository, &blob).await;
            }
        });
        let (manifest, media_type) = image.manifest();
        self.push_manifest(repository, tag, &manifest, media_type)
    }

    /// Pushes a blob; its digest.
    #[track_caller]
    pub fn push_blob(&self, repository: &str, blob: &[u8]) -> Digest {
        wait(self.send_blob(repository, blob));
        Digest::of(blob)
    }

    /// Pushes a manifest whose blobs are there; its digest.
    #[track_caller]
    pub fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        bytes: &[u8],
        media_type: &str,
    ) -> Digest {
        wait(async {
            let response = client()
                .put(format!("{}/v2/{repository}/manifests/{reference}", self.url))
                .header(header::CONTENT_TYPE, media_type)
                .body(bytes.to_vec())
                .send()
                .await
                .expect("the registry answers");
            assert_eq!(response.status(), StatusCode::CREATED, "{}", text(response).await);
        });
        Digest::of(bytes)
    }

    async fn send_blob(&self, repository: &str, blob: &[u8]) {
        let begun = client()
            .post(format!("{}/v2/{repository}/blobs/uploads/", self.url))
            .header(header::CONTENT_LENGTH, 0)
            .send()
            .await
            .expect("the registry answers");
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
        let location = begun.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.expect("an upload has a location");
        let location = match location.starts_with('/') {
            true => format!("{}{location}", self.url),
            false => location.to_owned(),
        };
        let separator = if location.contains('?') { '&' } else { '?' };
        let digest = Digest::of(blob);
        let ended = client()
            .put(format!("{location}{separator}digest={digest}"))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(blob.to_vec())
            .send()
            .await
            .expect("the registry answers");
        assert_eq!(ended.status(), StatusCode::CREATED, "{}", text(ended).await);
    }
}

async fn get(url: &str) -> Response {
    client().get(url).header(header::ACCEPT, ACCEPT).send().await.expect("the registry answers")
}

async fn text(response: Response) -> String {
    response.text().await.unwrap_or_default()
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().tls_certs_only([]).build().expect("a client can be made")
}
