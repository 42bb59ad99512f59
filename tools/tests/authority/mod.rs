//! Certificates that tests make: an authority, and folders with the reference's file names.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

/// The group ffdhe2048 of RFC 7919: without it, the reference spends seconds on making one.
const DH: &str = "-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// Whether a certificate holds today.
#[derive(Clone, Copy, PartialEq)]
pub enum Time {
    Holds,
    IsOver,
}

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 1, 1));
        let key = KeyPair::generate().expect("there is randomness");
        let certificate = params.self_signed(&key).expect("it is whole");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Makes a folder that trusts this authority, without certificates of its own.
    pub fn folder(&self, path: &Path) {
        std::fs::create_dir_all(path).expect("the folder is ours");
        write(path, "ca-cert.pem", &self.certificate.pem());
        write(path, "dh-params.pem", DH);
    }

    /// Puts a certificate for `localhost` into a folder, as number 1 for the server and 2 for the client.
    pub fn sign(&self, path: &Path, endpoint: &str, time: Time) {
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        self.sign_for(path, endpoint, time, (&hosts, vec![(DnType::CommonName, endpoint.into())]));
    }

    /// The same for other hosts, or none, and for somebody of another name.
    pub fn sign_for(
        &self,
        path: &Path,
        endpoint: &str,
        time: Time,
        (hosts, subject): (&[String], Vec<(DnType, DnValue)>),
    ) {
        let mut params = CertificateParams::new(hosts).expect("these are names");
        params.distinguished_name = DistinguishedName::new();
        subject.into_iter().for_each(|(kind, text)| params.distinguished_name.push(kind, text));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let (purpose, number) = match endpoint {
            "server" => (ExtendedKeyUsagePurpose::ServerAuth, 1_u64),
            _ => (ExtendedKeyUsagePurpose::ClientAuth, 2),
        };
        params.extended_key_usages = vec![purpose];
        params.serial_number = Some(SerialNumber::from(number));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(if time == Time::Holds { 2049 } else { 2021 }, 1, 1);
        let key = KeyPair::generate().expect("there is randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("it is whole");
        write(path, &format!("{endpoint}-cert.pem"), &certificate.pem());
        write(path, &format!("{endpoint}-key.pem"), &key.serialize_pem());
    }

    /// Puts a list into a folder that revokes the certificate of that number.
    pub fn revoke(&self, path: &Path, number: u64) {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(number),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2049, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("it is whole");
        write(path, "ca-crl.pem", &list.pem().expect("it is whole"));
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("the folder is ours");
}
