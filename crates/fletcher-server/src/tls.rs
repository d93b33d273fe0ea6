//! TLS and client certificates, by rustls with ring, read again when the files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use crate::error::ServeError;

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities that must have signed a client's certificate; clients need none when absent.
    pub client_ca: Option<PathBuf>,
}

/// The current TLS configuration of a server.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<rustls::ServerConfig>>,
    seen: RwLock<Stamp>,
}

/// Change times of the files.
type Stamp = Vec<Option<SystemTime>>;

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or used.
    pub fn open(files: TlsFiles) -> Result<Self, ServeError> {
        let seen = RwLock::new(files.stamp());
        let current = RwLock::new(Arc::new(files.read()?));
        Ok(Self { files, current, seen })
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.clone())
    }

    /// Reads the files again if they changed. With files that cannot be used, what was there
    /// before stays.
    ///
    /// # Errors
    /// When the new files cannot be used.
    pub fn reload_if_changed(&self) -> Result<bool, ServeError> {
        let stamp = self.files.stamp();
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if *seen == stamp {
            return Ok(false);
        }
        *seen = stamp;
        let config = Arc::new(self.files.read()?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(true)
    }
}

impl TlsFiles {
    fn stamp(&self) -> Stamp {
        let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).map(changed).collect()
    }

    fn read(&self) -> Result<rustls::ServerConfig, ServeError> {
        let bad = |file: &Path, message: String| ServeError::Tls {
            file: file.display().to_string(),
            message,
        };
        let certs = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key);
        let key = key.map_err(|error| match error {
            pem::Error::NoItemsFound => {
                bad(&self.key, "holds no private key, or one that a password protects".into())
            }
            other => bad(&self.key, other.to_string()),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&self.cert, error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(file)? {
                    roots.add(authority).map_err(|error| bad(file, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build().map_err(|error| bad(file, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(certs, key);
        let mut config = config.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                bad(&self.cert, format!("the key in {} is another's", self.key.display()))
            }
            other => bad(&self.cert, other.to_string()),
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificates of a file, of which there is one at least.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let bad = |message: String| ServeError::Tls { file: file.display().to_string(), message };
    let read = CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))?;
    let certs: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
    match certs.is_empty() {
        true => Err(bad("holds no certificate".into())),
        false => Ok(certs),
    }
}
