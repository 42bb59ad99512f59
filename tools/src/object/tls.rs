//! TLS credentials: from a `tls-creds-x509` object to what its folder holds.

use std::path::PathBuf;

use drystone_exec_linux::{Client, TlsCredentials, TlsEndpoint, X509Folder};
use serde_json::Value;

use super::{ObjectDef, secrets};

/// The credentials among objects, by their ids; their files are read.
///
/// # Errors
/// What is wrong with an object, or with a file that it names.
pub fn tls_credentials(objects: &[ObjectDef]) -> Result<Vec<(String, TlsCredentials)>, String> {
    let is_tls = |object: &&ObjectDef| object.qom_type.starts_with("tls-creds-");
    objects.iter().filter(is_tls).map(|object| Ok((object.id.clone(), load(object)?))).collect()
}

/// Has the images of a client refer to objects: to the secrets among them, and to `credentials`, which were read from them.
pub fn give_objects(client: &Client, objects: &[ObjectDef], credentials: Vec<(String, TlsCredentials)>) {
    secrets(objects).into_iter().for_each(|(id, secret)| client.add_secret(&id, secret));
    credentials.into_iter().for_each(|(id, tls)| client.add_tls_credentials(&id, tls));
}

/// The credentials that an option names by their id.
///
/// # Errors
/// A message in the words of the reference, when there is no such object, or it is none of credentials.
pub fn find_tls<'a>(
    objects: &[ObjectDef],
    credentials: &'a [(String, TlsCredentials)],
    id: &str,
) -> Result<&'a TlsCredentials, String> {
    match credentials.iter().find(|(other, _)| other == id) {
        Some((_, found)) => Ok(found),
        None if objects.iter().any(|object| object.id == id) => {
            Err(format!("Object with id '{id}' is not TLS credentials"))
        }
        None => Err(format!("No TLS credentials with id '{id}'")),
    }
}

fn load(object: &ObjectDef) -> Result<TlsCredentials, String> {
    if object.qom_type != "tls-creds-x509" {
        return Err(format!(
            "{} objects are not supported: encryption is by certificates here; use tls-creds-x509",
            object.qom_type
        ));
    }
    let text = |key: &str| object.properties.get(key).and_then(Value::as_str);
    let is_on = |key: &str| object.properties.get(key).and_then(Value::as_bool).unwrap_or(true);
    if text("passwordid").is_some() {
        return Err("'passwordid' is not supported: the private key must not be encrypted".into());
    }
    let folder = X509Folder {
        dir: text("dir").map(PathBuf::from).ok_or("Missing 'dir' property value")?,
        endpoint: match text("endpoint") {
            Some("server") => TlsEndpoint::Server,
            _ => TlsEndpoint::Client,
        },
        verify_peer: is_on("verify-peer"),
        sanity_check: is_on("sanity-check"),
        priority: text("priority").map(str::to_owned),
    };
    TlsCredentials::load(&folder).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{ObjectArg, add_object, parse_object};
    use super::*;

    #[test]
    fn what_credentials_cannot_be_is_refused() {
        for (definition, expected) in [
            ("tls-creds-x509,id=t", "Missing 'dir' property value"),
            (
                "tls-creds-x509,id=t,dir=/nonexistent",
                "Unable to access credentials /nonexistent/ca-cert.pem: No such file or directory",
            ),
            ("tls-creds-x509,id=t,dir=/,passwordid=p", "'passwordid' is not supported"),
            ("tls-creds-psk,id=t,dir=/", "tls-creds-psk objects are not supported"),
            ("tls-creds-anon,id=t", "tls-creds-anon objects are not supported"),
        ] {
            let Ok(ObjectArg::Define(object)) = parse_object(definition) else { panic!("{definition}") };
            let mut objects = vec![];
            add_object(&mut objects, object).expect("there is none before it");
            let error = tls_credentials(&objects).expect_err(definition);
            assert!(error.starts_with(expected), "{definition}: {error}");
        }
        assert!(matches!(find_tls(&[], &[], "x"), Err(text) if text == "No TLS credentials with id 'x'"));
    }
}
