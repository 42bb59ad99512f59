//! Bytes that nobody is to see, and that leave memory when they are done with.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A passphrase or a key.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Secret {}

/// Secrets by the ids that options refer to them by.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Vec<(String, Secret)>);

impl Secrets {
    /// Adds a secret; a later one of the same id replaces an earlier one.
    pub fn add(&mut self, id: impl Into<String>, secret: Secret) {
        let id = id.into();
        self.0.retain(|(other, _)| *other != id);
        self.0.push((id, secret));
    }

    /// The secret of that id.
    pub fn find(&self, id: &str) -> Option<Secret> {
        self.0.iter().find(|(other, _)| other == id).map(|(_, secret)| secret.clone())
    }
}
