//! Credentials for encrypted connections: X.509 certificates in a folder, under the file names of the reference.
//!
//! ```text
//!   ca-cert.pem   whom to trust            server-cert.pem, server-key.pem   who a server is
//!   ca-crl.pem    whom not, all the same   client-cert.pem, client-key.pem   who a client is, if it says so
//! ```
//!
//! Everything is read and looked at once, before anybody connects: what is wrong with a file is said with its name.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme, SupportedProtocolVersion, version,
};
use zeroize::Zeroizing;

use super::names::{common_name, distinguished_name, is_host};
use super::priority;
use crate::words::io_error_words;

/// Bytes of one file: some hundred certificates, or a list of some ten thousand that are revoked.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Which side credentials are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsEndpoint {
    /// Who connects.
    Client,
    /// Who is connected to.
    Server,
}

impl TlsEndpoint {
    fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Where credentials are, and what they are used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Folder {
    /// The folder.
    pub dir: PathBuf,
    /// For which side.
    pub endpoint: TlsEndpoint,
    /// Whether the peer must show a certificate of the authority; a server must show one in any case.
    pub verify_peer: bool,
    /// Whether our own certificate is looked at as a peer would.
    pub sanity_check: bool,
    /// Which versions of the protocol may be used, in the notation of GnuTLS.
    pub priority: Option<String>,
}

/// What is wrong with credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("Unable to access credentials {}: {}", .path.display(), io_error_words(.error))]
    Access {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The certificates of the authority are none.
    #[error("Unable to import CA certificate list {}: {why}", .path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Our own certificate is none.
    #[error("Unable to import {} certificate {}: {why}", .endpoint.word(), .path.display())]
    Certificate {
        /// Whose it should be.
        endpoint: TlsEndpoint,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate and a key are not one pair.
    #[error("Cannot load certificate '{}' & key '{}': {why}", .certificate.display(), .key.display())]
    Pair {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What should be revoked cannot be read.
    #[error("Cannot load CRL '{}': {why}", .path.display())]
    Revoked {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Our own certificate does not hold at this time.
    #[error("The {} certificate {} {}", .endpoint.word(), .path.display(), if *.expired { "has expired" } else { "is not yet active" })]
    Time {
        /// Whose it is.
        endpoint: TlsEndpoint,
        /// The file.
        path: PathBuf,
        /// Its time is over, or has not come.
        expired: bool,
    },
    /// Our own certificate is not one that a peer would take.
    #[error("Our own certificate {} failed validation against {}: {why}", .path.display(), .authorities.display())]
    Own {
        /// The file.
        path: PathBuf,
        /// The file with the authorities.
        authorities: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A priority that means nothing here.
    #[error("priority '{text}': found '{found}'; NORMAL, +VERS-TLS1.3 and the like are known here")]
    Priority {
        /// All of it.
        text: String,
        /// The part.
        found: String,
    },
}

/// Credentials that were read.
#[derive(Clone, Debug)]
pub enum TlsCredentials {
    /// For who connects.
    Client(TlsClient),
    /// For who is connected to.
    Server(TlsServer),
}

/// Credentials of a client.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    verifies: bool,
}

/// Credentials of a server.
#[derive(Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
    allows: Option<Arc<Allows>>,
}

/// Says whether a client may connect, by the distinguished name in its certificate.
type Allows = dyn Fn(&str) -> bool + Send + Sync;

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsServer(… chooses its clients: {})", self.allows.is_some())
    }
}

impl TlsCredentials {
    /// Reads the files of a folder.
    ///
    /// # Errors
    /// Which file is wrong, and how.
    pub fn load(folder: &X509Folder) -> Result<Self, TlsError> {
        let files = Files::read(folder)?;
        if folder.sanity_check {
            files.check_own()?;
        }
        let versions = match &folder.priority {
            Some(text) => priority::versions(text)?,
            None => vec![&version::TLS13, &version::TLS12],
        };
        match folder.endpoint {
            TlsEndpoint::Client => files.client(folder.verify_peer, &versions).map(Self::Client),
            TlsEndpoint::Server => files.server(folder.verify_peer, &versions).map(Self::Server),
        }
    }

    /// The credentials of a client.
    ///
    /// # Errors
    /// When they are a server's.
    pub fn for_client(&self) -> Result<&TlsClient, &'static str> {
        match self {
            Self::Client(client) => Ok(client),
            Self::Server(_) => Err("Expected TLS credentials for a client endpoint"),
        }
    }

    /// The credentials of a server.
    ///
    /// # Errors
    /// When they are a client's.
    pub fn for_server(&self) -> Result<&TlsServer, &'static str> {
        match self {
            Self::Server(server) => Ok(server),
            Self::Client(_) => Err("Expected TLS credentials for a server endpoint"),
        }
    }
}

impl TlsClient {
    /// Begins with a server, whose certificate must have that name, where certificates are verified.
    pub(crate) fn begin(&self, hostname: Option<&str>) -> Result<ClientConnection, String> {
        let name = match hostname {
            Some(name) => ServerName::try_from(name.to_owned())
                .map_err(|_| format!("'{name}' is not the name of a host, nor its number"))?,
            None if self.verifies => return Err("No hostname for certificate validation".into()),
            // A number is not told to the server, and nobody looks at it here.
            None => ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        ClientConnection::new(Arc::clone(&self.config), name).map_err(|error| error.to_string())
    }
}

impl TlsServer {
    /// Has it take only clients whose certificate's distinguished name is allowed, such as `C=DE,O=Stone\\, Inc.,CN=one`. Where
    /// clients need no certificate, none may connect then.
    #[must_use]
    pub fn allowing(self, allows: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { allows: Some(Arc::new(allows)), ..self }
    }

    /// Begins with a client.
    pub(crate) fn begin(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(Arc::clone(&self.config))
    }

    /// Whether a client may go on, whose certificate was verified, if it has shown one.
    ///
    /// # Errors
    /// Why not, in the reference's words.
    pub(crate) fn admit(&self, certificate: Option<&CertificateDer<'_>>) -> Result<(), String> {
        let Some(allows) = &self.allows else { return Ok(()) };
        let certificate = certificate.ok_or("Verify failed: No certificate was found.")?;
        let name = distinguished_name(certificate).ok_or("the name in the certificate cannot be read")?;
        allows(&name).then_some(()).ok_or_else(|| format!("TLS x509 authz check for {name} is denied"))
    }
}

/// The credentials that an engine's leaves refer to, by their ids.
#[derive(Clone, Default)]
pub(crate) struct Credentials(Arc<Mutex<BTreeMap<String, TlsCredentials>>>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    pub(crate) fn add(&self, id: &str, credentials: TlsCredentials) {
        self.0.lock().expect("looking does not panic").insert(id.to_owned(), credentials);
    }

    /// The credentials of a client under that id.
    pub(crate) fn client(&self, id: &str) -> Result<TlsClient, String> {
        let all = self.0.lock().expect("adding does not panic");
        let found = all.get(id).ok_or_else(|| format!("No TLS credentials with id '{id}'"))?;
        Ok(found.for_client()?.clone())
    }
}

/// What a folder holds.
struct Files<'a> {
    folder: &'a X509Folder,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl<'a> Files<'a> {
    fn read(folder: &'a X509Folder) -> Result<Self, TlsError> {
        let (path, text) = open(folder, "ca-cert.pem")?;
        let failed = |why: String| TlsError::Authorities { path: path.clone(), why };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&text).map_err(failed)? {
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        Ok(Self {
            folder,
            provider: Arc::new(ring::default_provider()),
            roots: Arc::new(roots),
            revoked: revoked(folder)?,
            own: own(folder)?,
        })
    }

    /// Looks at our own certificate as a peer would.
    fn check_own(&self) -> Result<(), TlsError> {
        let Some((chain, _)) = &self.own else { return Ok(()) };
        let (first, rest) = chain.split_first().expect("a file without certificates was refused");
        let endpoint = self.folder.endpoint;
        let checked = match endpoint {
            TlsEndpoint::Client => self
                .verifier_of_clients()
                .map_err(|why| TlsError::Authorities { path: self.folder.dir.join("ca-cert.pem"), why })?
                .verify_client_cert(first, rest, UnixTime::now())
                .map(|_| ()),
            TlsEndpoint::Server => ParsedCertificate::try_from(first).and_then(|parsed| {
                let algorithms = self.provider.signature_verification_algorithms.all;
                let now = UnixTime::now();
                verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, algorithms)
            }),
        };
        let Err(error) = checked else { return Ok(()) };
        let path = self.folder.dir.join(format!("{}-cert.pem", endpoint.word()));
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        Err(match &error {
            rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
                TlsError::Time { endpoint, path, expired: true }
            }
            rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
                TlsError::Time { endpoint, path, expired: false }
            }
            _ => {
                let (authorities, why) = (self.folder.dir.join("ca-cert.pem"), why(&error, None));
                TlsError::Own { path, authorities, why }
            }
        })
    }

    fn verifier_of_clients(&self) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        // A list speaks of its own authority's certificates; there may be none of another's.
        WebPkiClientVerifier::builder_with_provider(roots, provider)
            .with_crls(self.revoked.clone())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| error.to_string())
    }

    fn verifier_of_servers(&self) -> Result<Arc<WebPkiServerVerifier>, String> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        // As for clients.
        WebPkiServerVerifier::builder_with_provider(roots, provider)
            .with_crls(self.revoked.clone())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| error.to_string())
    }

    fn client(
        self,
        verifies: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<TlsClient, TlsError> {
        let trust = match verifies {
            true => Some(self.verifier_of_servers().map_err(|why| self.bad_revoked(why))?),
            false => None,
        };
        let verifier = Arc::new(OfServer { provider: Arc::clone(&self.provider), trust });
        let builder = ClientConfig::builder_with_provider(self.provider)
            .with_protocol_versions(versions)
            .expect("every version has cipher suites")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match self.own {
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain, key).map_err(|error| unpaired(self.folder, &error))?
            }
            None => builder.with_no_client_auth(),
        };
        // Each connection shows its certificates anew.
        config.resumption = Resumption::disabled();
        Ok(TlsClient { config: Arc::new(config), verifies })
    }

    fn server(
        self,
        verifies: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<TlsServer, TlsError> {
        let verifier = match verifies {
            true => self.verifier_of_clients().map_err(|why| self.bad_revoked(why))?,
            false => WebPkiClientVerifier::no_client_auth(),
        };
        let (chain, key) = self.own.expect("a server has a certificate, or its folder was refused");
        let mut config = ServerConfig::builder_with_provider(self.provider)
            .with_protocol_versions(versions)
            .expect("every version has cipher suites")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| unpaired(self.folder, &error))?;
        // Each connection shows its certificates anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsServer { config: Arc::new(config), allows: None })
    }

    /// The authorities were taken before, so it is what they have revoked.
    fn bad_revoked(&self, why: String) -> TlsError {
        TlsError::Revoked { path: self.folder.dir.join("ca-crl.pem"), why }
    }
}

/// Reads a file that must be there.
fn open(folder: &X509Folder, name: &str) -> Result<(PathBuf, Zeroizing<Vec<u8>>), TlsError> {
    let path = folder.dir.join(name);
    match read(&path) {
        Ok(text) => Ok((path, text)),
        Err(error) => Err(TlsError::Access { path, error }),
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // It may hold a key.
    let mut text = Zeroizing::new(Vec::new());
    std::fs::File::open(path)?.take(FILE_LEN_MAX + 1).read_to_end(&mut text)?;
    match text.len() as u64 > FILE_LEN_MAX {
        false => Ok(text),
        true => Err(io::Error::other(format!("it is longer than {FILE_LEN_MAX} bytes"))),
    }
}

/// What a file holds of one kind, which has this name; one at least.
fn items<T: PemObject>(text: &[u8], kind: &str) -> Result<Vec<T>, String> {
    let all: Vec<T> = T::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if all.is_empty() { Err(format!("there is no {kind} in it")) } else { Ok(all) }
}

/// The certificates in a file, one at least.
fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    items(text, "certificate")
}

/// What is revoked, if anything is.
fn revoked(folder: &X509Folder) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let path = folder.dir.join("ca-crl.pem");
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TlsError::Access { path, error }),
    };
    items(&text, "list").map_err(|why| TlsError::Revoked { path, why })
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Our own certificate with its key. A client may do without.
fn own(folder: &X509Folder) -> Result<Option<Pair>, TlsError> {
    let endpoint = folder.endpoint;
    let name = |part| format!("{}-{part}.pem", endpoint.word());
    let there = folder.dir.join(name("cert")).exists();
    if endpoint == TlsEndpoint::Client && !there {
        return Ok(None);
    }
    let (path, text) = open(folder, &name("cert"))?;
    let chain = certificates(&text);
    let chain = chain.map_err(|why| TlsError::Certificate { endpoint, path: path.clone(), why })?;
    let (key_path, text) = open(folder, &name("key"))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let why = "there is no private key in the file that is not encrypted".into();
        TlsError::Pair { certificate: path, key: key_path, why }
    })?;
    Ok(Some((chain, key)))
}

fn unpaired(folder: &X509Folder, error: &rustls::Error) -> TlsError {
    let name = |part| folder.dir.join(format!("{}-{part}.pem", folder.endpoint.word()));
    let why = match error {
        rustls::Error::InconsistentKeys(_) => "The certificate and the given key do not match.".into(),
        error => error.to_string(),
    };
    TlsError::Pair { certificate: name("cert"), key: name("key"), why }
}

/// Why encryption does not begin, or go on, in the words of the reference where it has them.
pub(super) fn why(error: &rustls::Error, hostname: Option<&str>) -> String {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        Revoked, UnknownIssuer,
    };
    let rustls::Error::InvalidCertificate(found) = error else {
        return format!("TLS handshake failed: {error}");
    };
    match found {
        UnknownIssuer => "The certificate hasn't got a known issuer".into(),
        NotValidForName | NotValidForNameContext { .. } => {
            format!("Certificate does not match the hostname {}", hostname.unwrap_or_default())
        }
        Expired | ExpiredContext { .. } => "The certificate is not trusted: it has expired".into(),
        NotValidYet | NotValidYetContext { .. } => {
            "The certificate is not trusted: its time has not come".into()
        }
        Revoked => "The certificate has been revoked".into(),
        other => format!("The certificate is not trusted: {other}"),
    }
}

/// Verifies the certificate of a server.
#[derive(Debug)]
struct OfServer {
    provider: Arc<CryptoProvider>,
    /// Nothing takes any certificate that the server has the key of: `verify-peer=off`.
    trust: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for OfServer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        match trust.verify_server_cert(certificate, chain, name, ocsp, now) {
            // One without names of hosts counts by its common name: those of private authorities often have none, and the
            // reference takes them. The name is looked at last: all the rest holds then.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if is_common_name(certificate, name) =>
            {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a host's name is the common name of a certificate; a number never is, as in the reference.
fn is_common_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    matches!(name, ServerName::DnsName(host)
        if common_name(certificate).is_some_and(|common| is_host(&common, host.as_ref())))
}
