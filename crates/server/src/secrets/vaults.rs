//! Secrets that others keep: HashiCorp Vault, key vaults of the Azure dialect, a Kubernetes cluster.
//!
//! A run signs in with an identity token of its own, so that the vault decides by task what it gives.
//! No answer is shown in an error: only its status.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use control::Run;
use engine::SecretError;
use oci::RegistryName;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use task::{Secret, SecretText, VaultField, VaultSecret};
use url::Url;

use super::{VALUE_MAX, refused, unavailable};
use crate::http_client::{body, client};
use crate::issuer::Issuer;
use crate::settings::{KubernetesSettings, VaultSettings};

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;
/// Bytes of a file with a token.
const TOKEN_SIZE_MAX: u64 = 64 << 10;

/// Whom identity tokens are for where a key vault's directory exchanges them.
const EXCHANGE_AUDIENCE: &str = "api://AzureADTokenExchange";
const KEY_VAULT_VERSION: &str = "7.4";

/// The vaults that the settings know, by host.
pub(super) struct Vaults {
    vaults: BTreeMap<String, Vault>,
    cluster: Option<Cluster>,
    issuer: Issuer,
}

struct Vault {
    settings: VaultSettings,
    http: reqwest::Client,
    /// `https://HOST`.
    base: String,
}

struct Cluster {
    settings: KubernetesSettings,
    http: reqwest::Client,
}

impl Vaults {
    pub(super) fn new(
        settings: &BTreeMap<String, VaultSettings>,
        kubernetes: &KubernetesSettings,
        issuer: Issuer,
    ) -> reqwest::Result<Self> {
        let vault = |(host, settings): (&String, &VaultSettings)| {
            let scheme = if settings.plain_http { "http" } else { "https" };
            let base = format!("{scheme}://{host}");
            let http = client(settings.ca.as_deref(), TIMEOUT)?;
            Ok((host.clone(), Vault { settings: settings.clone(), http, base }))
        };
        let vaults = settings.iter().map(vault).collect::<reqwest::Result<_>>()?;
        let cluster = kubernetes.api.is_some().then(|| {
            let http = client(kubernetes.ca.as_deref(), TIMEOUT)?;
            Ok::<_, reqwest::Error>(Cluster { settings: kubernetes.clone(), http })
        });
        Ok(Self { vaults, cluster: cluster.transpose()?, issuer })
    }

    fn vault(&self, run: &Run, host: &str) -> Result<&Vault, SecretError> {
        let vault = self.vaults.get(host).filter(|vault| {
            let registries = &vault.settings.registries;
            registries.is_empty() || registries.contains(&run.registry)
        });
        vault.ok_or_else(|| {
            let registry = &run.registry;
            refused(format!("the settings have no `[vault.\"{host}\"]` for registry `{registry}`"))
        })
    }

    /// A token that tells which run it is.
    async fn identity(&self, run: &Run, audience: &str) -> Result<String, SecretError> {
        let token = self.issuer.token(&run.into(), audience).await;
        token.map(|token| token.text).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "no identity token");
            SecretError::Unavailable(error.to_string())
        })
    }

    /// A field of version 2 of Vault's KV engine.
    pub(super) async fn field(
        &self,
        run: &Run,
        wanted: &VaultField,
    ) -> Result<SecretText, SecretError> {
        let vault = self.vault(run, &wanted.host)?;
        // Given back when it is not needed any more, also if nobody waits for the value by then.
        let (token, _given_back) = match &vault.settings.token_file {
            Some(file) => (token_of(file.clone()).await?, None),
            None => {
                let token = self.sign_in(run, vault, &wanted.host).await?;
                (token.clone(), Some(vault.given_back(&token)))
            }
        };
        vault.read_field(&token, wanted).await
    }

    async fn sign_in(&self, run: &Run, vault: &Vault, host: &str) -> Result<String, SecretError> {
        #[derive(Deserialize)]
        struct Login {
            auth: Auth,
        }
        #[derive(Deserialize)]
        struct Auth {
            client_token: String,
        }
        let settings = &vault.settings;
        let role = settings.role.as_ref().ok_or_else(|| {
            refused(format!("`vault.\"{host}\"` has neither `role` nor `token_file`"))
        })?;
        let audience = settings.audience.as_ref().unwrap_or(&vault.base);
        let jwt = self.identity(run, audience).await?;
        let body = json!({ "role": role, "jwt": jwt });
        let request = vault.post(&format!("auth/{}/login", settings.auth_path)).json(&body);
        let answer = answer(vault.within(request), "signing in to the vault").await?;
        let login: Login = read(answer, "signing in to the vault").await?;
        Ok(login.auth.client_token)
    }

    /// A secret of a key vault of the Azure dialect.
    pub(super) async fn key_vault(
        &self,
        run: &Run,
        secret: &Secret,
        wanted: &VaultSecret,
    ) -> Result<SecretText, SecretError> {
        #[derive(Deserialize)]
        struct Bundle {
            value: String,
        }
        let vault = self.vault(run, &wanted.host)?;
        let token = match &vault.settings.token_file {
            Some(file) => token_of(file.clone()).await?,
            None => self.exchange(run, vault, secret, wanted).await?,
        };
        let mut path = vec!["secrets", &wanted.name];
        path.extend(wanted.version.as_deref());
        let url = below(&vault.base, path)?;
        let request = vault.http.get(url).query(&[("api-version", KEY_VAULT_VERSION)]);
        let answer = answer(request.bearer_auth(token), "the vault").await?;
        value(read::<Bundle>(answer, "the vault").await?.value)
    }

    /// The token that a vault's directory gives for the identity of the run.
    async fn exchange(
        &self,
        run: &Run,
        vault: &Vault,
        secret: &Secret,
        wanted: &VaultSecret,
    ) -> Result<String, SecretError> {
        #[derive(Deserialize)]
        struct Exchanged {
            access_token: String,
        }
        let settings = &vault.settings;
        let missing = |what: &str| {
            refused(format!("`vault.\"{}\"` has neither `{what}` nor `token_file`", wanted.host))
        };
        let url = settings.token_url.as_ref().ok_or_else(|| missing("token_url"))?;
        let of_file = secret.client_id.map(|id| id.to_string());
        let client_id = of_file.or_else(|| settings.client_id.clone());
        let client_id = client_id.ok_or_else(|| missing("client_id"))?;
        let audience = settings.audience.as_deref().unwrap_or(EXCHANGE_AUDIENCE);
        let assertion = self.identity(run, audience).await?;
        let scope = format!("{}/.default", wanted.audience());
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &client_id),
            ("scope", &scope),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", &assertion),
        ];
        let doing = "signing in to the vault";
        let answer = answer(vault.http.post(url.clone()).form(&form), doing).await?;
        Ok(read::<Exchanged>(answer, doing).await?.access_token)
    }

    /// A key of a secret of the cluster.
    pub(super) async fn kubernetes(
        &self,
        registry: &RegistryName,
        namespaces: &[String],
        [namespace, name, key]: [&str; 3],
    ) -> Result<SecretText, SecretError> {
        use base64::Engine as _;
        #[derive(Deserialize)]
        struct Bundle {
            data: Option<BTreeMap<String, String>>,
        }
        if !namespaces.iter().any(|known| known == namespace) {
            return Err(refused(format!(
                "namespace `{namespace}` is not in `registry.{registry}.secret_namespaces`"
            )));
        }
        let none = || refused("this server is in no cluster: `kubernetes.api` is not set".into());
        let cluster = self.cluster.as_ref().ok_or_else(none)?;
        let api = cluster.settings.api.as_deref().unwrap_or_default();
        let url = below(api, ["api", "v1", "namespaces", namespace, "secrets", name])?;
        let token = token_of(cluster.settings.token_file.clone()).await?;
        let answer = answer(cluster.http.get(url).bearer_auth(token), "the cluster").await?;
        let mut data = read::<Bundle>(answer, "the cluster").await?.data.unwrap_or_default();
        let text = data.remove(key).ok_or_else(|| refused(format!("it has no key `{key}`")))?;
        let bytes = base64::prelude::BASE64_STANDARD.decode(text).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        value(text.ok_or_else(|| refused("it is not UTF-8 text".to_owned()))?)
    }
}

impl Vault {
    fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}/v1/{path}", self.base))
    }

    /// Revokes a token when it is dropped.
    fn given_back(&self, token: &str) -> GivenBack {
        let revoke = self.post("auth/token/revoke-self").header("X-Vault-Token", token);
        GivenBack(Some(self.within(revoke).timeout(TIMEOUT)))
    }

    /// A request to the vault's namespace.
    fn within(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.settings.namespace {
            Some(namespace) => request.header("X-Vault-Namespace", namespace),
            None => request,
        }
    }

    async fn read_field(
        &self,
        token: &str,
        wanted: &VaultField,
    ) -> Result<SecretText, SecretError> {
        #[derive(Deserialize)]
        struct Bundle {
            data: Versioned,
        }
        #[derive(Deserialize)]
        struct Versioned {
            data: Option<serde_json::Map<String, Value>>,
        }
        let path = ["v1", &wanted.mount, "data"].into_iter().chain(wanted.path.split('/'));
        let request = self.http.get(below(&self.base, path)?).header("X-Vault-Token", token);
        let version = wanted.version.map(|version| ("version", version));
        let request = self.within(request.query(&version.as_slice()));
        let bundle: Bundle = read(answer(request, "the vault").await?, "the vault").await?;
        let mut data = bundle.data.data.unwrap_or_default();
        match data.remove(&wanted.field) {
            Some(Value::String(text)) => value(text),
            Some(Value::Number(number)) => value(number.to_string()),
            Some(_) => Err(refused(format!("field `{}` is no text", wanted.field))),
            None => Err(refused(format!("it has no field `{}`", wanted.field))),
        }
    }
}

/// The request that revokes a token.
struct GivenBack(Option<RequestBuilder>);

impl Drop for GivenBack {
    fn drop(&mut self) {
        let (Some(request), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            let sent = request.send().await.and_then(Response::error_for_status);
            if let Err(error) = sent {
                // It ends by itself, later.
                let error = &error.without_url() as &dyn std::error::Error;
                tracing::warn!(error, "a token of a vault was not revoked");
            }
        });
    }
}

/// An address below another one; parts are escaped.
fn below<'a>(base: &str, parts: impl IntoIterator<Item = &'a str>) -> Result<Url, SecretError> {
    let mut url = Url::parse(base).map_err(|_| unavailable("its address cannot be read"))?;
    url.path_segments_mut()
        .map_err(|()| unavailable("its address cannot be read"))?
        .pop_if_empty()
        .extend(parts);
    Ok(url)
}

/// A file that something else may write anew at any time.
async fn token_of(file: PathBuf) -> Result<String, SecretError> {
    use std::io::Read as _;
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let opened = std::fs::File::open(&file);
        let read = opened.and_then(|file| file.take(TOKEN_SIZE_MAX).read_to_string(&mut text));
        read.map(|_| text.trim().to_owned()).inspect_err(|error| {
            tracing::error!(%error, file = %file.display(), "a token cannot be read");
        })
    });
    let read = read.await.ok().and_then(Result::ok);
    read.filter(|token| !token.is_empty())
        .ok_or_else(|| unavailable("the server's token for it cannot be read"))
}

/// An answer of success. Asking again may help unless it is of 400 to 499.
async fn answer(request: RequestBuilder, what: &str) -> Result<Response, SecretError> {
    let sent = request.timeout(TIMEOUT).send().await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "{what}");
        SecretError::Unavailable(format!("{what}: no answer"))
    })?;
    match sent.status() {
        status if status.is_success() => Ok(sent),
        StatusCode::NOT_FOUND => Err(refused(format!("{what}: there is none (404)"))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(refused(format!("{what}: not for this run ({})", sent.status().as_u16())))
        }
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            Err(refused(format!("{what}: status {}", status.as_u16())))
        }
        status => Err(SecretError::Unavailable(format!("{what}: status {}", status.as_u16()))),
    }
}

async fn read<T: serde::de::DeserializeOwned>(
    answer: Response,
    what: &str,
) -> Result<T, SecretError> {
    let broken = || SecretError::Unavailable(format!("{what}: the answer cannot be read"));
    let bytes = body(answer, ANSWER_MAX).await.map_err(|_| broken())?.ok_or_else(broken)?;
    serde_json::from_slice(&bytes).map_err(|_| broken())
}

fn value(text: String) -> Result<SecretText, SecretError> {
    match text.len() as u64 > VALUE_MAX {
        true => Err(refused(format!("it has more than {VALUE_MAX} bytes"))),
        false => Ok(SecretText::new(text)),
    }
}
