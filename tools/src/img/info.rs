//! What `info` shows: an image, the nodes it is made of, and its snapshots.

mod human;
mod json;
mod name;
mod qcow2;

use serde_json::{Map, Value};

pub use human::{render_human, render_specific, snapshot_header, snapshot_line};
pub use json::render_json;
pub use name::{NodeName, given_options};
pub use qcow2::qcow2_facts;

/// What is known of one node, and of those below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageInfo {
    /// The name of the image, or of the file.
    pub filename: String,
    /// The driver.
    pub format: String,
    /// Bytes that the guest sees; for a file, its length.
    pub virtual_size: u64,
    /// Bytes that it takes on the host; `None` when that is not known.
    pub actual_size: Option<u64>,
    /// Whether it was not closed properly; `None` when the driver does not say.
    pub dirty: Option<bool>,
    /// Bytes a cluster; `None` when the format has none.
    pub cluster_size: Option<u64>,
    /// Whether the content is encrypted.
    pub encrypted: bool,
    /// Whether the content is compressed, for formats that always are.
    pub compressed: bool,
    /// The backing file, if there is one.
    pub backing: Option<BackingName>,
    /// Internal snapshots; `None` when there are none.
    pub snapshots: Option<Vec<Snapshot>>,
    /// What only this format has.
    pub format_specific: Option<FormatSpecific>,
    /// The nodes below, the newest edge first; backing files appear only below the first level.
    pub children: Vec<Child>,
}

/// A backing file as the image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// The name in the image.
    pub filename: String,
    /// The name from where we stand; `None` when it cannot be told.
    pub full_filename: Option<String>,
    /// The format in the image, if it has one.
    pub format: Option<String>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Bytes of the virtual machine's state.
    pub vm_state_size: u64,
    /// When it was made: seconds since 1970.
    pub date_sec: i64,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the machine had run: nanoseconds.
    pub vm_clock_nsec: u64,
    /// How many instructions it had run; `None` when they were not counted.
    pub icount: Option<u64>,
}

/// What only one format has.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatSpecific {
    /// The format.
    pub kind: String,
    /// Its facts, under the keys of the JSON output; people read them with spaces for dashes.
    pub data: Map<String, Value>,
}

/// A node below another.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// The name of the edge: `file`, `backing`, `extents.0`.
    pub name: String,
    /// The node.
    pub info: ImageInfo,
}
