//! Compressed clusters: packed byte after byte, read and written with one codec call each.
//!
//! Order on disk of a compressed write: the bytes, then the L2 entry (`two_level`).

use super::layout::RawEntry;
use super::{Qcow, QcowError};
use crate::buf::{Buf, BufList};
use crate::compute::{Codec, Compute, ComputeError};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::Role;
use crate::intent::Fua;

impl Qcow {
    /// Reads a part of one compressed cluster.
    pub(super) async fn read_packed(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let cluster_len = self.header.cluster_len();
        let (cluster, within) = (offset / cluster_len, (offset % cluster_len) as usize);
        let raw = loop {
            match self.tables.raw(cluster).map_err(|fault| self.fail(fault.into()))? {
                Ok(raw) => break raw,
                Err(missing) => self.tables.load(io, missing).await?,
            }
        };
        let wrong = |at, len, problem: String| self.fail(QcowError::Compressed { cluster, at, len, problem });
        let RawEntry::Packed { at, len } = self.header.entry(raw) else {
            return Err(wrong(0, 0, "the entry changed while it was read".into()));
        };
        if len == 0 || at.saturating_add(len) > self.tables.end() {
            return Err(wrong(at, len, format!("the file ends at {}", self.tables.end())));
        }
        let packed = io.read_bytes("qcow.decompress/read", io.child(Role::File), at, len as usize).await?;
        // A read of the whole cluster is decompressed where it is wanted.
        let whole = data.len_bytes() as u64 == cluster_len && data.windows().len() == 1;
        let plain =
            if whole { std::mem::take(data).into_single() } else { Buf::zeroed(cluster_len as usize) };
        let work = Compute::Decompress { codec: Codec::Zlib, packed, plain };
        let computed = io.compute("qcow.decompress", work).await;
        match whole {
            true => *data = computed.output.into(),
            false => data.copy_in(0, &computed.output[within..]),
        }
        computed.result.map_err(|error| wrong(at, len, error.to_string()))
    }

    /// Writes one cluster, or what there is of it at the end of the disk, in compressed form.
    pub(super) async fn write_packed(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<bool> {
        let cluster_len = self.header.cluster_len() as usize;
        let cluster = offset / cluster_len as u64;
        let mut plain = std::mem::take(data).into_single();
        let plain_len = plain.len();
        if plain_len < cluster_len {
            let mut padded = Buf::zeroed(cluster_len);
            padded[..plain_len].copy_from_slice(&plain);
            plain = padded;
        }
        let work = Compute::Compress { codec: Codec::Zlib, plain, limit: cluster_len };
        let mut computed = io.compute("qcow.compress", work).await;
        drop(computed.input.split_off(plain_len));
        *data = computed.input.into();
        if let Err(ComputeError::Incompressible | ComputeError::Damaged) = computed.result {
            return Ok(false);
        }
        let packed = computed.output;
        let len = packed.len() as u64;
        let at = self.tables.take_bytes(len);
        let Some(raw) = self.header.packed_entry(at, len) else {
            return Err(self.fail(QcowError::PackedPlace { at, len }));
        };
        io.write("qcow.compress/write", io.child(Role::File), at, packed, Fua::No).await.1?;
        while let Err(missing) =
            self.tables.set(cluster, 1, |_| raw).map_err(|fault| self.fail(fault.into()))?
        {
            self.tables.load(io, missing).await?;
        }
        Ok(true)
    }
}
