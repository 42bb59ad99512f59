//! Intents and outcomes as lines of text.
//!
//! A simulation keeps its lines where it is asked to. A [`witness`] sees those of every simulation on its thread as they
//! come, so that what led to a panic is known, and two machines can be compared. Start there.

use std::cell::{Cell, RefCell};

use drystone_core::engine::Reply;
use drystone_core::intent::{Action, Fua, Outcome};

/// Gets each line.
type Witness = Box<dyn FnMut(&str)>;

thread_local! {
    static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
    static INTENTS: Cell<u64> = const { Cell::new(0) };
}

/// Has a witness see the lines of every simulation on this thread while something runs.
pub fn witness<T>(see: impl FnMut(&str) + 'static, run: impl FnOnce() -> T) -> T {
    /// Ends with the run, however that ends.
    struct Seeing;
    impl Drop for Seeing {
        fn drop(&mut self) {
            WITNESS.set(None);
        }
    }
    WITNESS.set(Some(Box::new(see)));
    let _seeing = Seeing;
    run()
}

/// Tells the witness of this thread, where there is one.
pub fn tell(line: impl FnOnce() -> String) {
    WITNESS.with_borrow_mut(|witness| {
        if let Some(see) = witness {
            see(&line());
        }
    });
}

/// Whether lines are of use to anybody.
pub(crate) fn is_witnessed() -> bool {
    WITNESS.with_borrow(Option::is_some)
}

/// Counts an intent.
pub(crate) fn count_intent() {
    INTENTS.set(INTENTS.get() + 1);
}

/// Intents of all simulations on this thread so far.
pub fn intents() -> u64 {
    INTENTS.get()
}

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

/// Describes an outcome: what moved, or what failed.
pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Moved { result: Ok(moved), .. } => format!("{moved}"),
        Outcome::Moved { result: Err(errno), .. }
        | Outcome::Done(Err(errno))
        | Outcome::Opened(Err(errno))
        | Outcome::Status(Err(errno)) => format!("{errno:?}"),
        Outcome::Done(Ok(())) | Outcome::Locked(Ok(())) => "ok".into(),
        Outcome::Opened(Ok(info)) => format!("leaf {}, {} bytes", info.leaf.0, info.len),
        Outcome::Status(Ok(status)) => {
            format!("{} {}", status.len, if status.hole { "hole" } else { "data" })
        }
        Outcome::Locked(Err(refused)) => format!("{refused:?}"),
        Outcome::Computed(computed) => match &computed.result {
            Ok(()) => format!("{} bytes", computed.output.len()),
            Err(error) => error.to_string(),
        },
        other => format!("{other:?}"),
    }
}

/// Describes a reply.
pub fn reply(reply: &Reply) -> String {
    match &reply.result {
        Ok(()) => format!("reply {} ok", reply.tag),
        Err(error) => format!("reply {} {error}", reply.tag),
    }
}
