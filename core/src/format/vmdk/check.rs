//! Check: grains that lie in their files. The finding and its words are those of `qemu-img check`, which looks no further
//! than the first one.

use super::sparse::Sparse;
use super::{CheckReport, Part, Vmdk, VmdkError};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;

/// Checks an image. `say` gets a finding as a line.
///
/// # Errors
/// When a table cannot be read, or something is wrong.
pub async fn check(io: &Io, node: NodeId, say: &mut dyn FnMut(String)) -> Result<CheckReport> {
    let driver = io.driver(node);
    let Some(image) = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Vmdk>()) else {
        let (node, driver) = (io.title(node), driver.as_ref().map_or("file", |driver| driver.name()));
        return Err(Box::new(Error::Unsupported { node, driver, what: "a VMDK check" }));
    };
    for part in &image.parts {
        let (Some(sparse), Some(file)) = (part.sparse(), io.edge(node, part.role)) else { continue };
        if let Err(error) = check_part(image, io, file, (part, sparse)).await {
            if let Error::Format { fault, .. } = &*error {
                say(format!("ERROR: {fault}"));
            }
            return Err(error);
        }
    }
    Ok(CheckReport::default())
}

async fn check_part(image: &Vmdk, io: &Io, file: NodeId, (part, sparse): (&Part, &Sparse)) -> Result<()> {
    let grains = part.len.div_ceil(sparse.grain_len);
    let mut grain = 0;
    while grain < grains {
        let count = sparse.table_entries.min(grains - grain);
        let table = sparse.table_of(grain).map_err(|fault| image.fail(fault))?;
        if let Some(at) = table {
            let bytes = io.read_bytes("vmdk.check/grain_table", file, at.0, sparse.table_len()).await?;
            for nth in 0..count {
                let entry = sparse.entry(&bytes, nth as usize, grain + nth);
                entry.map_err(|fault| image.fail(with_sector(fault, part.start)))?;
            }
        }
        grain += count;
    }
    Ok(())
}

/// Counts sectors from the beginning of the disk.
fn with_sector(fault: VmdkError, start: u64) -> VmdkError {
    match fault {
        VmdkError::AfterEnd { file, sector, grain, at, end } => {
            VmdkError::AfterEnd { file, sector: sector + start / super::SECTOR, grain, at, end }
        }
        other => other,
    }
}
