//! What only qcow2 has, as `info` shows it.

use drystone_core::compute::Codec;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::qcow2::layout::{Autoclear, Compatible, Crypt, Header, Incompatible};
use drystone_core::format::qcow2::{Bitmap, Qcow2};
use drystone_core::graph::NodeId;
use serde_json::{Map, Value, json};

/// The facts of an open image, under the keys of the JSON output.
///
/// # Errors
/// When the header of the encryption, or the bitmap directory, cannot be read.
pub async fn qcow2_facts(io: &Io, qcow2: &Qcow2, file: NodeId) -> Result<Map<String, Value>> {
    let mut data = specific(&qcow2.header());
    if let Some(luks) = qcow2.luks(io, file).await? {
        let mut encrypt = Map::from_iter([("format".to_owned(), json!("luks"))]);
        encrypt.extend(luks.facts());
        data.insert("encrypt".into(), Value::Object(encrypt));
    }
    let bitmaps = qcow2.bitmaps(io, file).await?;
    if !bitmaps.is_empty() {
        data.insert("bitmaps".into(), bitmaps.iter().map(bitmap).collect());
    }
    Ok(data)
}

fn specific(header: &Header) -> Map<String, Value> {
    let mut data = Map::new();
    let mut put = |key: &str, value: Value| drop(data.insert(key.into(), value));
    let compression = match header.compression {
        Codec::Zstd => "zstd",
        Codec::Zlib | Codec::ZlibStream => "zlib",
    };
    put("compat", json!(if header.version < 3 { "0.10" } else { "1.1" }));
    put("compression-type", json!(compression));
    if header.version >= 3 {
        put("lazy-refcounts", json!(header.compatible & Compatible::LAZY_REFCOUNTS != 0));
    }
    put("refcount-bits", json!(header.refcount_width.bits()));
    if header.version >= 3 {
        if let Some(name) = &header.data_file {
            put("data-file", json!(name));
        }
        if header.has(Incompatible::DATA_FILE) {
            put("data-file-raw", json!(header.autoclear & Autoclear::RAW_DATA_FILE != 0));
        }
        put("corrupt", json!(header.has(Incompatible::CORRUPT)));
        put("extended-l2", json!(header.has(Incompatible::EXTENDED_L2)));
    }
    let format = match header.crypt {
        Crypt::None => return data,
        Crypt::Aes => "aes",
        Crypt::Luks => "luks",
    };
    data.insert("encrypt".into(), json!({ "format": format }));
    data
}

fn bitmap(bitmap: &Bitmap) -> Value {
    let set = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
    let flags: Vec<_> = set.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    json!({ "name": bitmap.name, "granularity": bitmap.granularity, "flags": flags })
}
