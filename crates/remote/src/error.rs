use std::time::Duration;

use oci::Digest;

use crate::Access;
use crate::client::RETRY_DELAY_MAX;

/// Why another registry did not give what was asked for, or did not take what was sent. `Display` names the registry and
/// the image and is safe to show.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("`{image}` does not exist on `{host}`")]
    NotFound { host: String, image: String },
    #[error("`{host}` refuses access to `{image}`")]
    Denied { host: String, image: String, access: Access, with_credentials: bool },
    #[error("`{host}` does not take this user name and password")]
    LoginRefused { host: String },
    #[error("`{host}` gives nothing for an identity token: it answered {status}")]
    ExchangeRefused { host: String, status: u16 },
    #[error("`{image}` has no image for {wanted}")]
    NoPlatform { image: String, wanted: String, offered: Vec<String> },
    #[error("`{host}` answered {status} for `{image}`")]
    Status { host: String, image: String, status: u16 },
    /// It asks to be left alone, for as long as it says.
    #[error("`{host}` was asked too often")]
    RateLimited { host: String, retry_after: Option<Duration> },
    /// Users may not have it asked, nor the address that it sends on to, if there is one.
    #[error("{}, which users may not reach", place(host, address.as_deref(), what))]
    Forbidden { host: String, address: Option<String>, what: &'static str },
    #[error("could not reach `{host}`: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("`{host}` sent fewer than {floor} bytes a second for {seconds} s")]
    TooSlow { host: String, floor: u64, seconds: u64 },
    #[error("`{host}` sent {got} bytes for {digest}, which has {expected}")]
    WrongSize { host: String, digest: Digest, expected: u64, got: u64 },
    #[error("`{host}` sent content with digest {actual} for {expected}")]
    WrongDigest { host: String, expected: Digest, actual: Digest },
    #[error("`{host}` sent a manifest for `{image}` that cannot be used: {reason}")]
    BadManifest { host: String, image: String, reason: String },
    #[error("`{host}` sent {what} of more than {limit} bytes")]
    TooLarge { host: String, what: &'static str, limit: usize },
    #[error("`{host}` sent a list of more than {entries} entries or {pages} pages")]
    TooLong { host: String, entries: usize, pages: usize },
    #[error("`{host}` sent a list that cannot be read: {reason}")]
    BadList { host: String, reason: String },
    #[error("`{host}` asks for a token from `{realm}`, which is not an HTTPS address")]
    UnsafeRealm { host: String, realm: String },
    #[error("`{image}` cannot be pushed: {reason}")]
    BadPush { image: String, reason: String },
    #[error("`{host}` has no repository for `{image}`")]
    NoRepository { host: String, image: String },
    /// With the registry's own reason, where it gave one.
    #[error("`{host}` does not take `{image}`: {reason}")]
    Refused { host: String, image: String, status: u16, reason: String },
    #[error("`{host}` does not take `{image}`: {size} bytes of {digest} are too many for it")]
    BlobTooLarge { host: String, image: String, digest: Digest, size: u64 },
    #[error("`{host}` does not tell where to upload `{image}`: {reason}")]
    BadUpload { host: String, image: String, reason: String },
    #[error("`{host}` forgot an upload of `{image}` before it was complete")]
    LostUpload { host: String, image: String },
    #[error("`{host}` took nothing more of `{image}` for {seconds} s")]
    Stalled { host: String, image: String, seconds: u64 },
    #[error("`{host}` keeps `{image}` as {actual}, but what was sent is {expected}")]
    WrongCopy { host: String, image: String, expected: Digest, actual: String },
    #[error("settings for `{host}`: {reason}")]
    Settings { host: String, reason: String },
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

impl RemoteError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { host, with_credentials: false, .. } => {
                Some(format!("give credentials for it in the settings: [upstream.\"{host}\"]"))
            }
            Self::Denied { access: Access::Pull, .. } => {
                Some("check that these credentials may pull it".to_owned())
            }
            Self::Denied { access: Access::Push, .. } => {
                Some("check that these credentials may push it".to_owned())
            }
            Self::LoginRefused { .. } => Some(
                "check user name and password; some registries want a token instead".to_owned(),
            ),
            Self::ExchangeRefused { .. } => Some(
                "it has to trust this server's identity tokens, and know their subject".to_owned(),
            ),
            Self::NoRepository { .. } => {
                Some("check the name; some registries want it to be made there first".to_owned())
            }
            Self::Refused { host, status, reason, .. } if is_about_space(*status, reason) => {
                Some(format!("make room on `{host}`, or have its quota raised"))
            }
            Self::BlobTooLarge { host, .. } => {
                Some(format!("`{host}`, or a proxy before it, has a bound on what it takes"))
            }
            Self::NoPlatform { offered, .. } if !offered.is_empty() => {
                Some(format!("it offers {}", offered.join(", ")))
            }
            Self::Forbidden { host, address: None, .. } => Some(format!(
                "the server's operator can declare it, [upstream.\"{host}\"], or allow its address \
                 with `build.allow_addresses`"
            )),
            Self::Forbidden { .. } => Some(
                "the server's operator can allow that address with `build.allow_addresses`"
                    .to_owned(),
            ),
            // What the TLS library says of an answer in plain HTTP.
            Self::Unreachable { host, reason } if reason.contains("InvalidContentType") => {
                Some(format!(
                    "if it speaks plain HTTP, declare it: [upstream.\"{host}\"] plain_http = true"
                ))
            }
            Self::Unreachable { .. } => Some(
                "check its name and port; images of this server have the name and port that it \
                 listens on"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::LostUpload { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500..=599),
            // One that wants a longer pause would only say so again.
            Self::RateLimited { retry_after, .. } => {
                retry_after.is_none_or(|pause| pause <= RETRY_DELAY_MAX)
            }
            _ => false,
        }
    }
}

fn place(host: &str, address: Option<&str>, what: &str) -> String {
    match address {
        Some(address) => format!("`{host}` sends on to `{address}`, {what}"),
        None => format!("`{host}` is {what}"),
    }
}

/// Whether a registry refuses because of what is stored there already. There is no code for
/// that, so its words decide.
pub(crate) fn is_about_space(status: u16, reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    let exceeds = reason.contains("exceed") && reason.contains("limit");
    status == 507 || exceeds || reason.contains("quota")
}
