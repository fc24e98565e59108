//! The certificate of the TLS listener.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::ServeError;
use crate::settings::TlsSettings;

pub(crate) fn acceptor(settings: &TlsSettings) -> Result<TlsAcceptor, ServeError> {
    let chain = certificates(&settings.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&settings.key)
        .map_err(ServeError::starting(format!("read the key `{}`", settings.key.display())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let doing = || format!("use the certificate `{}`", settings.certificate.display());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ServeError::starting(doing()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(ServeError::starting(doing()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
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
