//! TLS 1.2 and 1.3, and which certificates are trusted.

use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Which certificates are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// SSL_CERT_FILE: CA certificates in PEM. Where it or `directories` is set, the system's do not count.
    pub file: Option<PathBuf>,
    /// SSL_CERT_DIR: directories of them.
    pub directories: Vec<PathBuf>,
    /// `-c`: one more directory, besides the others.
    pub additional: Option<PathBuf>,
    /// Whether the certificate must be for the host.
    pub host_verification: HostVerification,
}

/// Whether a certificate must be for the host that is connected to. It must come from a trusted CA in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostVerification {
    /// It must.
    #[default]
    On,
    /// `-k`: any will do.
    Off,
}

impl Trust {
    /// Reads the certificates. Whatever cannot be read of the system's is left out, with a warning; of what was named
    /// here, it is an error.
    pub(super) fn connector(&self) -> Result<TlsConnector, String> {
        let mut roots = RootCertStore::empty();
        let mut add = |loaded: CertificateResult| {
            for error in &loaded.errors {
                tracing::warn!("CA certificates: {error}");
            }
            roots.add_parsable_certificates(loaded.certs).0
        };
        if self.file.is_none() && self.directories.is_empty() {
            add(load_native_certs());
        }
        if let Some(file) = &self.file
            && add(load_certs_from_paths(Some(file), None)) == 0
        {
            return Err(format!("SSL_CERT_FILE: there is no CA certificate (PEM) in {}", file.display()));
        }
        for directory in &self.directories {
            add(load_certs_from_paths(None, Some(directory)));
        }
        if let Some(directory) = &self.additional
            && add(load_certs_from_paths(None, Some(directory))) == 0
        {
            return Err(format!("-c: there is no CA certificate (PEM) in the directory {}", directory.display()));
        }
        if roots.is_empty() {
            return Err("there is no CA certificate to check the service by: install ca-certificates, or name them \
                        with SSL_CERT_FILE or -c"
                .to_owned());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match self.host_verification {
            HostVerification::On => builder.with_webpki_verifier(verifier),
            HostVerification::Off => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyHost { verifier }))
            }
        };
        Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
    }
}

/// Why TLS fails, and what to do about it.
pub(super) fn explain(error: &std::io::Error) -> String {
    let hint = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        // A signature that is not right comes from a CA that has the name of a trusted one: as after a renewal.
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            ": its CA is not trusted here; name the CA with -c or SSL_CERT_FILE"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => ": connect by a name or address that the certificate has",
        _ => "",
    };
    format!("{error}{hint}")
}

/// Checks all but for which host a certificate is.
#[derive(Debug)]
struct AnyHost {
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // It looks at the name last: whatever else is wrong is another error.
        match self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
