//! Intents as lines of text, for whoever watches what an executor is asked to do.

use crate::intent::{Action, Fua};

/// Describes an action: verb, leaf, range, flags.
pub fn action(action: &Action) -> String {
    match action {
        Action::Read { leaf, offset, data } => format!("read {} {offset}+{}", leaf.0, data.len_bytes()),
        Action::Write { leaf, offset, data, fua } => {
            let fua = if *fua == Fua::Yes { " fua" } else { "" };
            format!("write {} {offset}+{}{fua}", leaf.0, data.len_bytes())
        }
        Action::Flush { leaf } => format!("flush {}", leaf.0),
        Action::Discard { leaf, offset, len } => format!("discard {} {offset}+{len}", leaf.0),
        Action::WriteZeroes { leaf, offset, len, flags } => {
            let unmap = if flags.may_unmap { " unmap" } else { "" };
            let fast = if flags.no_fallback { " no_fallback" } else { "" };
            format!("write_zeroes {} {offset}+{len}{unmap}{fast}", leaf.0)
        }
        Action::SetLen { leaf, len, preallocation } => format!("set_len {} {len} {preallocation:?}", leaf.0),
        Action::BlockStatus { leaf, offset, len } => format!("block_status {} {offset}+{len}", leaf.0),
        Action::CopyRange { from, from_offset, to, to_offset, len } => {
            format!("copy_range {} {from_offset} {} {to_offset}+{len}", from.0, to.0)
        }
        Action::Open { location, access } => {
            let mode = if access.writable { "rw" } else { "ro" };
            let direct = if access.direct { " direct" } else { "" };
            format!("open {location} {mode}{direct}")
        }
        Action::Close { leaf } => format!("close {}", leaf.0),
        Action::Create { location, len, preallocation } => {
            format!("create {location} {len} {preallocation:?}")
        }
        Action::Remove { location } => format!("remove {location}"),
        Action::Lock { leaf, holds, shares } => format!("lock {} {:#x} {:#x}", leaf.0, holds.0, shares.0),
        Action::Entropy { data } => format!("entropy +{}", data.len_bytes()),
        Action::Sleep { duration } => format!("sleep {duration:?}"),
        other => format!("{other:?}"),
    }
}
