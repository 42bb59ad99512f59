//! `info`, for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::{BackingName, ImageInfo, Snapshot};
use crate::options::json::in_reference_order;
use crate::size::{humanise, humanise_exactly};

/// Renders images, an empty line between them; dates of snapshots are shown in `zone`, which is asked for only where there
/// are some: finding the host's own out is a walk through all of its time zones, and takes as long as the rest.
#[must_use]
pub fn render_human(images: &[ImageInfo], zone: fn() -> TimeZone) -> String {
    let one = |info| {
        let mut page = Page { text: String::new(), level: 0, zone };
        page.node(info, "", Role::Image);
        page.text
    };
    images.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Renders what only one format has, on its own.
#[must_use]
pub fn render_specific(data: &Map<String, Value>) -> String {
    let mut page = Page { text: String::new(), level: 0, zone: || TimeZone::UTC };
    page.line("Format specific information:");
    page.indented(|page| page.map(data));
    page.text
}

/// The heads of the columns of a snapshot list.
#[must_use]
pub fn snapshot_header() -> String {
    columns("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
}

/// A snapshot as a line of a snapshot list.
#[must_use]
pub fn snapshot_line(snapshot: &Snapshot, zone: &TimeZone) -> String {
    let date =
        Timestamp::from_second(snapshot.date_sec).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(zone.clone());
    let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
    let millis = snapshot.vm_clock_nsec / 1_000_000 % 1000;
    let clock = format!("{:04}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    columns(
        &snapshot.id,
        &snapshot.name,
        &humanise(snapshot.vm_state_size),
        &date.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        &clock,
        &snapshot.icount.map_or(String::new(), |count| count.to_string()),
    )
}

fn columns(id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str) -> String {
    format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}")
}

/// What a node is to those who look at it, which decides about some words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Image,
    /// A node without nodes below it, below another.
    File,
}

struct Page {
    text: String,
    level: usize,
    zone: fn() -> TimeZone,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.extend(std::iter::repeat_n("    ", self.level));
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// `path` is how edges lead from the top to this node: `/file/backing`.
    fn node(&mut self, info: &ImageInfo, path: &str, role: Role) {
        let (name, format, size) = match role {
            Role::Image => ("image", "file format", "virtual size"),
            Role::File => ("filename", "protocol type", "file length"),
        };
        self.line(&format!("{name}: {}", info.filename));
        self.line(&format!("{format}: {}", info.format));
        self.line(&format!("{size}: {}", humanise_exactly(info.virtual_size)));
        self.line(&format!("disk size: {}", info.actual_size.map_or("unavailable".into(), humanise)));
        if info.encrypted {
            self.line("encrypted: yes");
        }
        if let Some(size) = info.cluster_size {
            self.line(&format!("cluster_size: {size}"));
        }
        if info.dirty == Some(true) {
            self.line("cleanly shut down: no");
        }
        if let Some(backing) = &info.backing {
            self.backing(backing);
        }
        if let Some(snapshots) = &info.snapshots {
            self.snapshots(snapshots);
        }
        if let Some(specific) = info.format_specific.as_ref().filter(|specific| !specific.data.is_empty()) {
            self.line("Format specific information:");
            self.indented(|page| page.map(&specific.data));
        }
        for child in &info.children {
            let path = format!("{path}/{}", child.name);
            self.line(&format!("Child node '{path}':"));
            let role = if child.info.children.is_empty() { Role::File } else { Role::Image };
            self.indented(|page| page.node(&child.info, &path, role));
        }
    }

    fn backing(&mut self, backing: &BackingName) {
        let note = match &backing.full_filename {
            None => " (cannot determine actual path)".into(),
            Some(full) if *full != backing.filename => format!(" (actual path: {full})"),
            Some(_) => String::new(),
        };
        self.line(&format!("backing file: {}{note}", backing.filename));
        if let Some(format) = &backing.format {
            self.line(&format!("backing file format: {format}"));
        }
    }

    fn snapshots(&mut self, snapshots: &[Snapshot]) {
        self.line("Snapshot list:");
        self.line(&snapshot_header());
        let zone = (self.zone)();
        for snapshot in snapshots {
            self.line(&snapshot_line(snapshot, &zone));
        }
    }

    fn indented(&mut self, inside: impl FnOnce(&mut Self)) {
        self.level += 1;
        inside(self);
        self.level -= 1;
    }

    fn map(&mut self, map: &Map<String, Value>) {
        for (key, value) in in_reference_order(map) {
            self.value(&key.replace('-', " "), value);
        }
    }

    fn value(&mut self, key: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                self.line(&format!("{key}:"));
                self.indented(|page| page.map(map));
            }
            Value::Array(items) => {
                self.line(&format!("{key}:"));
                self.indented(|page| {
                    for (at, item) in items.iter().enumerate() {
                        page.value(&format!("[{at}]"), item);
                    }
                });
            }
            Value::String(text) => self.line(&format!("{key}: {text}")),
            other => self.line(&format!("{key}: {other}")),
        }
    }
}
