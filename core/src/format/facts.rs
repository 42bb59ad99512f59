//! What an image says of itself: for `info`, and for whoever must know what an image would open.

use serde_json::{Map, Value};

/// What an image says of itself beside its length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageFacts {
    /// Bytes of a unit of allocation, for a format that shows it.
    pub cluster_size: Option<u64>,
    /// Whether it was not closed in order.
    pub dirty: bool,
    /// Whether its data is encrypted.
    pub encrypted: bool,
    /// Whether its data is compressed.
    pub compressed: bool,
    /// Whether all of it was allocated ahead of its data.
    pub preallocated: bool,
    /// What is read where it holds nothing.
    pub backing: Option<Backing>,
    /// Other files that it names.
    pub names: Vec<OutsideName>,
    /// Whether QEMU shows neither the unit of allocation nor whether it was closed in order.
    pub tells_no_state: bool,
    /// What only this format has, under QEMU's names and in its order.
    pub specific: Option<Map<String, Value>>,
}

/// A backing file as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// As it stands in the image.
    pub name: String,
    /// Its format, where the image says it.
    pub format: Option<String>,
}

/// A file that an image names as a part of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideName {
    /// What it is to the image: `data file`, `extent`.
    pub what: &'static str,
    /// As it stands in the image.
    pub name: String,
}
