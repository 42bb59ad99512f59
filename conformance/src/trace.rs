//! Intents and outcomes as lines of text.
//!
//! A simulation keeps its lines where it is asked to. A [`witness`] sees those of every simulation on its thread as they
//! come, so that what led to a panic is known, and two machines can be compared. Start there.

use std::cell::{Cell, RefCell};

use drystone_core::engine::Reply;
use drystone_core::intent::Outcome;
pub use drystone_core::trace::action;

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
            format!("{} {}", status.len, if status.zero { "hole" } else { "data" })
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
