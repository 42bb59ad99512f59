//! Block status: the states of a range in the contexts that a client asks about.

use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::graph::NodeId;
use drystone_core::protocol::nbd::layout::{Extent, StateFlags};
use drystone_core::protocol::nbd::limits::EXTENTS_MAX;
use drystone_core::protocol::nbd::server::Context;

/// A range, and how much is to be told of it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) node: NodeId,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The first extent will do.
    pub(super) one: bool,
}

/// The extents of a range in one context, from its offset on.
pub(super) async fn extents(
    io: &Io,
    asked: Asked,
    context: &Context,
    dirty: Option<&[(u64, u64)]>,
) -> Result<Vec<Extent>> {
    let most = if asked.one { 1 } else { EXTENTS_MAX };
    let mut extents: Vec<Extent> = Vec::new();
    let (mut at, end) = (asked.offset, asked.offset + asked.len);
    while at < end {
        let Extent { len, flags } = match dirty {
            Some(ranges) => dirty_at(ranges, at, end),
            None => {
                let status = io.status(asked.node, at, end - at, None).await?;
                let flags = match context {
                    Context::Depth if status.allocated => u64::from(status.depth) + 1,
                    Context::Depth => 0,
                    _ => {
                        let flags = StateFlags::NONE.with_if(!status.data, StateFlags::HOLE);
                        flags.with_if(status.zero, StateFlags::ZERO).0
                    }
                };
                Extent { len: status.len, flags }
            }
        };
        let full = extents.len() == most;
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.len += len,
            _ if full => break,
            _ => extents.push(Extent { len, flags }),
        }
        at += len;
    }
    Ok(extents)
}

/// Whether a range begins dirty, and how far that goes.
fn dirty_at(ranges: &[(u64, u64)], at: u64, end: u64) -> Extent {
    let next = ranges.partition_point(|(start, len)| start + len <= at);
    match ranges.get(next) {
        Some((start, len)) if *start <= at => Extent { len: (start + len).min(end) - at, flags: 1 },
        Some((start, _)) => Extent { len: (*start).min(end) - at, flags: 0 },
        None => Extent { len: end - at, flags: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_ranges_and_what_lies_between() {
        let ranges = [(100, 50), (200, 10)];
        for (at, len, flags) in
            [(0, 100, 0), (100, 50, 1), (149, 1, 1), (150, 50, 0), (205, 5, 1), (210, 90, 0)]
        {
            assert_eq!(dirty_at(&ranges, at, 300), Extent { len, flags }, "{at}");
        }
        assert_eq!(dirty_at(&ranges, 120, 130), Extent { len: 10, flags: 1 });
    }
}
