//! The certificate of the TLS listener, read again when its files change.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::ServeError;
use crate::settings::TlsSettings;

/// How often it is looked whether the files have changed.
const PERIOD: Duration = Duration::from_secs(5);

/// What new connections are shown; those that are open go on as they began.
#[derive(Debug)]
pub(crate) struct Certificate {
    settings: TlsSettings,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

/// Tells one state of the two files from the next.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Certificate {
    pub(crate) fn open(settings: &TlsSettings) -> Result<Self, ServeError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let current = RwLock::new(Arc::new(read(settings, &provider)?));
        Ok(Self { settings: settings.clone(), provider, current })
    }

    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, ServeError> {
        let doing = format!("use the certificate `{}`", self.settings.certificate.display());
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(ServeError::starting(doing))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Follows the files until `shutdown`. What cannot be used is told once, and the last one that
    /// could is shown on.
    pub(crate) async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        // What changed since the start is seen too: it is read once more, which changes nothing.
        let (mut seen, mut has_failed) = (Stamp::default(), false);
        loop {
            let stamp = self.stamp();
            let is_new = stamp != seen;
            // Who may read a file can change without a trace in it.
            if is_new || has_failed {
                seen = stamp;
                let renewed = self.renew();
                has_failed = renewed.is_err();
                if let Some(error) = renewed.err().filter(|_| is_new) {
                    let error = &error as &dyn std::error::Error;
                    let source = error.source().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(error, source, "the certificate before it is used on");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => (),
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn renew(&self) -> Result<(), ServeError> {
        let renewed = Arc::new(read(&self.settings, &self.provider)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        [&self.settings.certificate, &self.settings.key].map(|file| {
            let known = std::fs::metadata(file).ok()?;
            Some((known.modified().ok()?, known.len()))
        })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// The pair in the files, if the one belongs to the other.
fn read(settings: &TlsSettings, provider: &CryptoProvider) -> Result<CertifiedKey, ServeError> {
    let chain = certificates(&settings.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&settings.key)
        .map_err(ServeError::starting(format!("read the key `{}`", settings.key.display())))?;
    let doing = format!("use the certificate `{}`", settings.certificate.display());
    CertifiedKey::from_der(chain, key, provider).map_err(ServeError::starting(doing))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let doing = || format!("read the certificates in `{}`", file.display());
    let found = CertificateDer::pem_file_iter(file)
        .map_err(ServeError::starting(doing()))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(ServeError::starting(doing()))?;
    match found.is_empty() {
        true => Err(ServeError::starting(doing())(std::io::Error::other("there is none"))),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_cannot_be_used_leaves_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.path().join(name));
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let put = |from: &str, to: &Path| std::fs::copy(data.join(from), to).unwrap();
        put("localhost.crt", &certificate);
        put("localhost.key", &key);
        let listen = "127.0.0.1:0".parse().unwrap();
        let settings = TlsSettings { listen, certificate, key };
        let shown = Certificate::open(&settings).unwrap();
        let first = shown.current();
        // Half of a pair, no certificate, none at all.
        put("renewed.crt", &settings.certificate);
        let told = shown.renew().unwrap_err().to_string();
        assert!(told.starts_with("could not use the certificate `"), "{told}");
        std::fs::write(&settings.certificate, "nothing").unwrap();
        assert!(shown.renew().is_err());
        std::fs::remove_file(&settings.certificate).unwrap();
        assert!(shown.renew().is_err());
        assert!(Arc::ptr_eq(&first, &shown.current()));
        put("renewed.crt", &settings.certificate);
        put("renewed.key", &settings.key);
        shown.renew().unwrap();
        assert_ne!(shown.current().cert, first.cert);
    }
}
