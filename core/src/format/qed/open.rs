//! Open: the header, the backing file's name, and the L1 table.

use super::layout::{Features, HEADER_LEN, Header, MAGIC};
use super::{Qed, QedError};
use crate::error::{Error, Result};
use crate::format::two_level::{Labels, Shape, TwoLevel};
use crate::graph::opening::Opening;

/// Bytes of the L1 table that are read at once.
const PIECE: u64 = 1 << 20;

const LABELS: Labels = Labels {
    load: "qed.load/l2_slice",
    new_table: "qed.new_table",
    before_tables: "qed.flush/before_tables",
    l2: "qed.flush/l2_tables",
    l1: "qed.flush/l1_table",
};

/// Whether the first bytes of a file are a QED image's.
pub fn probe(head: &[u8]) -> bool {
    head.len() >= HEADER_LEN && head.starts_with(&MAGIC.to_le_bytes())
}

/// Opens the image.
///
/// # Errors
/// When it is damaged or not supported, or cannot be read.
pub(crate) async fn open(opening: &Opening<'_>) -> Result<Qed> {
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head_len = file_len.min(HEADER_LEN as u64) as usize;
    let head = io.read_bytes("qed.open/header", file, 0, head_len).await?;
    let header = Header::parse(&head).map_err(fail)?;
    let (at, len, header_len) = (header.l1_at, header.table_len(), header.header_len());
    let in_file = at.checked_add(len).is_some_and(|end| end <= file_len);
    if !at.is_multiple_of(header.cluster_len()) || at == 0 || at < header_len || !in_file {
        return Err(fail(QedError::TablePlace { at, len, header_len, file_len }));
    }
    let backing = match header.features.has(Features::BACKING) {
        false => None,
        true => {
            let (at, len) = (header.backing_at, header.backing_len);
            if u64::from(at) + u64::from(len) > header_len.min(file_len) {
                return Err(fail(QedError::BackingPlace { at, len, header_len }));
            }
            let bytes = io.read_bytes("qed.open/backing_name", file, at.into(), len as usize).await?;
            // As in the reference, a name ends at a zero byte, and one of no bytes names no file.
            let bytes: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0).collect();
            let name = String::from_utf8(bytes).map_err(|_| fail(QedError::BackingName))?;
            Some(name).filter(|name| !name.is_empty())
        }
    };
    // Of a table of up to 1 GiB, what the disk needs; a longer disk needs more.
    let l1_len = (header.l1_entries() * 8).min(len);
    let mut l1 = Vec::new();
    while (l1.len() as u64) < l1_len {
        let done = l1.len() as u64;
        let piece = (l1_len - done).min(PIECE) as usize;
        l1.extend_from_slice(&io.read_bytes("qed.open/l1_table", file, at + done, piece).await?);
    }
    let shape = Shape {
        cluster_len: header.cluster_len(),
        entries: len / 8,
        l1_at: at,
        align: header.cluster_len(),
        big_endian: false,
        whole_clusters: true,
        metadata: [(0, header_len.max(HEADER_LEN as u64)), (at, at + len), (0, 0)],
        labels: &LABELS,
    };
    let grows_as_zeroes = io.leaf_info(file).is_some_and(|leaf| leaf.grows_as_zeroes);
    let tables = TwoLevel::new(shape, &l1, file_len, grows_as_zeroes);
    if !opening.metadata_only {
        let format = header.features.has(Features::BACKING_RAW).then_some("raw");
        opening.open_backing(backing.as_deref(), format).await?;
    }
    Ok(Qed {
        header: header.into(),
        backing: backing.into(),
        shown_len: None.into(),
        tables,
        begun: false.into(),
        begins: Default::default(),
        headers: Default::default(),
        name,
    })
}
