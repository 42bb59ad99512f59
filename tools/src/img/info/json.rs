//! `info --output=json`

use serde_json::{Map, Value, json};

use super::{ImageInfo, Snapshot};
use crate::options::json::to_pages;

/// Renders an image, or with `chain` the list of an image and its backing files.
#[must_use]
pub fn render_json(images: &[ImageInfo], chain: bool) -> String {
    let mut values: Vec<_> = images.iter().map(value_of).collect();
    let value = if chain { Value::Array(values) } else { values.pop().unwrap_or(Value::Null) };
    to_pages(&value) + "\n"
}

/// Members stand in the order of the reference's schema, on which the order of its output rests.
fn value_of(info: &ImageInfo) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    put("filename", info.filename.as_str().into());
    put("format", info.format.as_str().into());
    if let Some(dirty) = info.dirty {
        put("dirty-flag", dirty.into());
    }
    if let Some(size) = info.actual_size {
        put("actual-size", size.into());
    }
    put("virtual-size", info.virtual_size.into());
    if let Some(size) = info.cluster_size {
        put("cluster-size", size.into());
    }
    if info.encrypted {
        put("encrypted", true.into());
    }
    if info.compressed {
        put("compressed", true.into());
    }
    if let Some(backing) = &info.backing {
        put("backing-filename", backing.filename.as_str().into());
        if let Some(full) = &backing.full_filename {
            put("full-backing-filename", full.as_str().into());
        }
        if let Some(format) = &backing.format {
            put("backing-filename-format", format.as_str().into());
        }
    }
    if let Some(snapshots) = &info.snapshots {
        put("snapshots", snapshots.iter().map(snapshot).collect());
    }
    if let Some(specific) = &info.format_specific {
        put("format-specific", json!({"type": specific.kind, "data": specific.data}));
    }
    let child = |child: &super::Child| json!({"name": child.name, "info": value_of(&child.info)});
    put("children", info.children.iter().map(child).collect());
    Value::Object(map)
}

fn snapshot(snapshot: &Snapshot) -> Value {
    let mut value = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(icount) = snapshot.icount {
        value["icount"] = icount.into();
    }
    value
}
