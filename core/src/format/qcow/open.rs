//! Open: the header, the backing file's name, and the L1 table.

use super::layout::{HEADER_LEN, Header, MAGIC};
use super::{Qcow, QcowError};
use crate::error::{Error, Result};
use crate::format::two_level::{Labels, Shape, TwoLevel};
use crate::graph::opening::Opening;

/// Bytes of the L1 table that are read at once.
const PIECE: u64 = 1 << 20;

const LABELS: Labels = Labels {
    load: "qcow.load/l2_slice",
    new_table: "qcow.new_table",
    before_tables: "qcow.flush/before_tables",
    l2: "qcow.flush/l2_tables",
    l1: "qcow.flush/l1_table",
};

/// Whether the first bytes of a file are a qcow image's of version 1.
pub fn probe(head: &[u8]) -> bool {
    head.get(..4) == Some(&MAGIC.to_be_bytes()) && head.get(4..8) == Some(&1u32.to_be_bytes())
}

/// Opens the image.
///
/// # Errors
/// When it is damaged or not supported, or cannot be read.
pub(crate) async fn open(opening: &Opening<'_>) -> Result<Qcow> {
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head_len = file_len.min(HEADER_LEN as u64) as usize;
    let head = io.read_bytes("qcow.open/header", file, 0, head_len).await?;
    let header = Header::parse(&head).map_err(fail)?;
    if header.encrypted && !opening.metadata_only {
        return Err(fail(QcowError::Encrypted));
    }
    let lies_in = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= file_len);
    let backing = match header.backing {
        Some((at, len)) if len > 0 => {
            let len = u64::from(len);
            if !lies_in(at, len) {
                return Err(fail(QcowError::BackingPlace { at, len, file_len }));
            }
            let bytes = io.read_bytes("qcow.open/backing_name", file, at, len as usize).await?;
            Some(String::from_utf8(bytes.to_vec()).map_err(|_| fail(QcowError::BackingName))?)
        }
        _ => None,
    };
    let (at, len) = (header.l1_at, header.l1_entries() * 8);
    let name_place = header.backing.map_or((0, 0), |(at, len)| (at, at.saturating_add(len.into())));
    let in_name = at < name_place.1 && name_place.0 < at.saturating_add(len);
    if !lies_in(at, len) || at < HEADER_LEN as u64 || in_name {
        return Err(fail(QcowError::TablePlace { at, len, file_len }));
    }
    let mut l1 = Vec::new();
    while (l1.len() as u64) < len {
        let done = l1.len() as u64;
        let piece = (len - done).min(PIECE) as usize;
        l1.extend_from_slice(&io.read_bytes("qcow.open/l1_table", file, at + done, piece).await?);
    }
    let shape = Shape {
        cluster_len: header.cluster_len(),
        entries: 1 << header.l2_bits,
        l1_at: at,
        align: 1,
        big_endian: true,
        whole_clusters: false,
        metadata: [(0, HEADER_LEN as u64), (at, at + len), name_place],
        labels: &LABELS,
    };
    let grows_as_zeroes = io.leaf_info(file).is_some_and(|leaf| leaf.grows_as_zeroes);
    // The last cluster may lack zeros at its end: compressed bytes go behind all of it.
    let end = file_len.next_multiple_of(header.cluster_len());
    let tables = TwoLevel::new(shape, &l1, end, grows_as_zeroes);
    if !opening.metadata_only {
        opening.open_backing(backing.as_deref(), None).await?;
    }
    Ok(Qcow { header, backing, tables, name })
}
