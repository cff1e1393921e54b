//! The data plane's certificate: one that there is, or one by an authority that is made at start.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{self, CipherSuite, ServerConfig};

use crate::shared::DataTls;

/// What is needed to accept TLS.
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    /// The authority that was made at start, as PEM.
    pub(crate) ca_pem: Option<String>,
}

impl Tls {
    /// `None`: TLS is off. `listen` is what a certificate of our own is also for.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub(crate) fn new(config: &DataTls, listen: IpAddr) -> io::Result<Option<Self>> {
        match config {
            DataTls::Off => Ok(None),
            DataTls::SelfSigned => {
                let (ca_pem, certificate, key) = self_signed(listen).map_err(io::Error::other)?;
                let acceptor = acceptor(vec![certificate], key).map_err(io::Error::other)?;
                Ok(Some(Self { acceptor, ca_pem: Some(ca_pem) }))
            }
            DataTls::Certificate { chain, key } => {
                let certificates = CertificateDer::pem_slice_iter(&read(chain)?)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| wrong(chain, error))?;
                let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(key, error))?;
                let acceptor = acceptor(certificates, private).map_err(|error| wrong(chain, error))?;
                Ok(Some(Self { acceptor, ca_pem: None }))
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot use {}: {error}", path.display()))
}

fn acceptor(
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<TlsAcceptor, rustls::Error> {
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first, whatever the client would rather have: what passes through an emulator is to pass quickly.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.ignore_client_order = true;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type SelfSigned = (String, CertificateDer<'static>, PrivateKeyDer<'static>);

/// An authority, and a certificate by it. The authority's key is forgotten.
fn self_signed(listen: IpAddr) -> Result<SelfSigned, rcgen::Error> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "secure-tunneling-emulator");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let ca_pem = authority.self_signed(&authority_key)?.pem();

    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.is_unspecified() && !listen.is_loopback() {
        names.push(listen.to_string());
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let certificate = params.signed_by(&key, &Issuer::new(authority, authority_key))?;
    Ok((ca_pem, certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
}
