//! No NVMe: what stands in for the feature `nvme`.

use std::sync::Arc;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Lone;
use drystone_core::intent::{Action, Errno, LeafId, LeafInfo, LockRefused, Outcome, Permissions, Token};

use crate::config::Polling;
use crate::doorbell::Doorbell;

/// Why a device does not open.
pub(crate) type Refused = (Errno, Box<str>);

/// There are none.
#[derive(Debug)]
pub(crate) enum OpenNamespace {}

impl OpenNamespace {
    pub(crate) fn open(_: &str, _: u32, _: Polling) -> Result<(Self, LeafInfo), Refused> {
        Err((Errno::ENOTSUP, "this program was built without NVMe".into()))
    }

    pub(crate) fn len(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn lock(&self, _: Permissions, _: Permissions) -> Result<(), LockRefused> {
        match *self {}
    }
}

/// Never any.
pub(crate) struct Lanes;

/// Nothing goes past intents.
pub(crate) const LONE: Token = Token(u64::MAX);

/// What became of an action.
pub(crate) enum Pushed {
    /// It will be answered.
    #[allow(dead_code, reason = "nothing is ever in flight")]
    InFlight,
    /// It is answered.
    #[allow(dead_code, reason = "nothing is ever answered")]
    Done(Outcome),
    /// Somebody else does it.
    Back(Action),
}

impl Lanes {
    pub(crate) fn new(_: Arc<Doorbell>) -> Self {
        Self
    }

    pub(crate) fn must_poll(&self) -> bool {
        false
    }

    pub(crate) fn is_empty(&self) -> bool {
        true
    }

    pub(crate) fn admit(&mut self, _: LeafId, open: &OpenNamespace) -> Result<(), Refused> {
        match *open {}
    }

    pub(crate) fn close(&mut self, _: LeafId) {}

    pub(crate) fn has(&self, _: LeafId) -> bool {
        false
    }

    pub(crate) fn push(&mut self, _: Token, action: Action) -> Pushed {
        Pushed::Back(action)
    }

    pub(crate) fn begin_lone(&mut self, _: &Lone, _: &mut BufList) -> Option<usize> {
        None
    }

    pub(crate) fn take_lone(&mut self, _: usize) -> Option<BufList> {
        None
    }

    pub(crate) fn lone_goes_on(&mut self, _: Token) {}

    pub(crate) fn has_room(&self) -> bool {
        true
    }

    pub(crate) fn is_idle(&self) -> bool {
        true
    }

    pub(crate) fn are_only_polled(&self) -> bool {
        false
    }

    pub(crate) fn ring(&mut self) {}

    pub(crate) fn reap(&mut self, _: &mut impl FnMut(Token, Outcome)) -> bool {
        false
    }

    pub(crate) fn relax(&self) {}

    pub(crate) fn supply(&self) -> impl Fn(LeafId, usize) -> Option<Buf> + use<> {
        |_, _| None
    }

    pub(crate) fn buffer(&self, _: usize) -> Option<Buf> {
        None
    }
}
