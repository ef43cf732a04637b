//! Certificates and keys of the listeners, read once at the start.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config;

/// A file that TLS needs and that cannot be used. The key that names it comes first.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {path} cannot be used: {reason}")]
pub struct TlsError {
    key: &'static str,
    path: String,
    reason: String,
}

/// A certificate with what follows it up to a root, and its private key, both in PEM form.
#[derive(Clone)]
pub struct TlsIdentity {
    /// The certificates.
    pub cert: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

/// What replicas show each other, and whom they believe.
#[derive(Clone)]
pub struct PeerTls {
    /// What this replica shows.
    pub identity: TlsIdentity,
    /// Who must have signed what the others show, in PEM form.
    pub ca: Vec<u8>,
}

/// Reads `server.tls`.
///
/// # Errors
/// [`TlsError`] names the key and the file.
pub fn server_identity(tls: &config::Tls) -> Result<TlsIdentity, TlsError> {
    identity(&tls.cert, "server.tls.cert", &tls.key, "server.tls.key")
}

/// Reads `cluster.tls`.
///
/// # Errors
/// [`TlsError`] names the key and the file.
pub fn peer_tls(tls: &config::PeerTls) -> Result<PeerTls, TlsError> {
    let identity = identity(&tls.cert, "cluster.tls.cert", &tls.key, "cluster.tls.key")?;
    let ca = authorities(&tls.ca, "cluster.tls.ca")?;
    Ok(PeerTls { identity, ca })
}

/// What Redis is shown, and whom this replica believes to be Redis.
#[derive(Clone, Default)]
pub struct RedisTls {
    /// What this replica shows, if anything.
    pub identity: Option<TlsIdentity>,
    /// Who must have signed what Redis shows, in PEM form; `None` leaves it to the system's store.
    pub ca: Option<Vec<u8>>,
}

/// Reads `queue.tls`.
///
/// # Errors
/// [`TlsError`] names the key and the file.
pub fn redis_tls(tls: &config::RedisTls) -> Result<RedisTls, TlsError> {
    let identity = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some(identity(cert, "queue.tls.cert", key, "queue.tls.key")?),
        _ => None,
    };
    let ca = tls.ca.as_deref().map(|ca| authorities(ca, "queue.tls.ca")).transpose()?;
    Ok(RedisTls { identity, ca })
}

impl TlsIdentity {
    /// What the HTTP listener needs.
    ///
    /// # Errors
    /// If the key is not that of the certificate.
    pub fn http(&self) -> Result<Arc<ServerConfig>, String> {
        let certificates = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| error.to_string())?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key);
        let mut config = config.map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Whether TLS lies behind an error of a connection.
pub fn is_tls_failure(error: &(dyn Error + 'static)) -> bool {
    // What these two hold is not among their sources.
    let within = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    let shared = error.downcast_ref::<Arc<dyn Error + Send + Sync>>();
    error.is::<tokio_rustls::rustls::Error>()
        || within.is_some_and(|error| is_tls_failure(error))
        || shared.is_some_and(|error| is_tls_failure(&**error))
        || error.source().is_some_and(is_tls_failure)
}

fn identity(
    cert: &Path,
    cert_key: &'static str,
    key: &Path,
    key_key: &'static str,
) -> Result<TlsIdentity, TlsError> {
    let identity = TlsIdentity { cert: read(cert, cert_key)?, key: read(key, key_key)? };
    certificates(&identity.cert).map_err(|reason| error(cert_key, cert, reason))?;
    identity.http().map_err(|reason| error(key_key, key, reason))?;
    Ok(identity)
}

fn authorities(path: &Path, key: &'static str) -> Result<Vec<u8>, TlsError> {
    let pem = read(path, key)?;
    certificates(&pem).map_err(|reason| error(key, path, reason))?;
    Ok(pem)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        Err("it holds no certificate in PEM form".to_owned())
    } else {
        Ok(certificates)
    }
}

fn read(path: &Path, key: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|reason| error(key, path, reason.to_string()))
}

fn error(key: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError { key, path: path.display().to_string(), reason }
}
