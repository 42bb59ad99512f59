//! The leaves that are open, by their numbers, and every action as blocking calls.

use std::sync::Arc;

use drystone_core::buf::BufList;
use drystone_core::compute::Workspace;
use drystone_core::intent::{
    Action, Errno, LeafAccess, LeafId, LeafInfo, Location, LockRefused, Outcome, Permissions,
};
use slab::Slab;

use crate::config::Polling;
use crate::leaf::{self, OpenLeaf, Unopened};
use crate::nbd::Credentials;

/// The open leaves of one engine.
#[derive(Debug, Default)]
pub struct Host {
    leaves: Slab<Arc<OpenLeaf>>,
    means: Means,
}

/// What opening leaves takes beside their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Means {
    /// How devices are looked after that are polled.
    pub(crate) polling: Polling,
    /// What encrypted connections refer to.
    pub(crate) credentials: Credentials,
}

impl Host {
    /// Returns a host with nothing open.
    pub fn new() -> Self {
        Self::default()
    }

    /// A host whose polled devices are looked after in this way.
    pub(crate) fn with_polling(polling: Polling) -> Self {
        Self { means: Means { polling, ..Means::default() }, ..Self::default() }
    }

    /// The credentials that leaves refer to.
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.means.credentials
    }

    /// Opens a leaf.
    ///
    /// # Errors
    /// The kernel's; `EISDIR` for a directory, `ENXIO` for a pipe or socket, `EINVAL` where direct I/O is asked for and
    /// the file system has none. `ENOTSUP` for a namespace or an export, which need more than this.
    pub fn open(&mut self, location: &Location, access: LeafAccess) -> Result<LeafInfo, Errno> {
        if matches!(location, Location::Namespace { .. } | Location::Nbd(_)) {
            return Err(Errno::ENOTSUP);
        }
        match OpenLeaf::open(location, access, &self.means) {
            Ok((leaf, info)) => Ok(self.admit(leaf, info)),
            Err(Unopened::Errno(errno) | Unopened::Device(errno, _)) => Err(errno),
        }
    }

    /// Gives an open leaf its number.
    pub(crate) fn admit(&mut self, leaf: OpenLeaf, info: LeafInfo) -> LeafInfo {
        let number = u32::try_from(self.leaves.insert(Arc::new(leaf))).expect("fewer than 2^32 open files");
        LeafInfo { leaf: LeafId(number), ..info }
    }

    /// The leaf of that number, while it is open.
    pub(crate) fn leaf(&self, id: LeafId) -> Option<&Arc<OpenLeaf>> {
        self.leaves.get(id.0 as usize)
    }

    pub(crate) fn close(&mut self, id: LeafId) -> Result<(), Errno> {
        let leaf = self.leaves.try_remove(id.0 as usize).ok_or(Errno::EBADF)?;
        // The locks would go with the file; but a thread or the kernel may be about to let go of that only.
        let _ = leaf.lock(Permissions::NONE, Permissions::ALL);
        Ok(())
    }

    /// Does what an action says, and waits until it is done.
    pub fn carry_out(&mut self, action: Action) -> Outcome {
        match action {
            Action::Open { location, access } => Outcome::Opened(self.open(&location, access)),
            Action::Close { leaf } => Outcome::Done(self.close(leaf)),
            action => {
                let leaves = self.leaves_of(&action);
                match carry_out(leaves, action) {
                    Carried::Outcome(outcome) => outcome,
                    Carried::Opened(..) | Carried::Panicked(_) => {
                        unreachable!("opened above, on this thread")
                    }
                }
            }
        }
    }

    /// The leaf that an action is about, and the target of a copy.
    pub(crate) fn leaves_of(&self, action: &Action) -> Leaves {
        let find = |id: &LeafId| self.leaf(*id).cloned();
        match action {
            Action::Read { leaf, .. }
            | Action::Write { leaf, .. }
            | Action::Flush { leaf }
            | Action::Discard { leaf, .. }
            | Action::WriteZeroes { leaf, .. }
            | Action::SetLen { leaf, .. }
            | Action::BlockStatus { leaf, .. }
            | Action::Lock { leaf, .. } => Leaves { leaf: find(leaf), ..Leaves::default() },
            Action::CopyRange { from, to, .. } => {
                Leaves { leaf: find(from), target: find(to), ..Leaves::default() }
            }
            _ => Leaves { means: Some(self.means.clone()), ..Leaves::default() },
        }
    }
}

/// The open files that an action needs, and what one that is to be opened is used like.
#[derive(Debug, Default)]
pub(crate) struct Leaves {
    pub(crate) leaf: Option<Arc<OpenLeaf>>,
    pub(crate) target: Option<Arc<OpenLeaf>>,
    /// Where none is named.
    means: Option<Means>,
}

/// What came of an action on some thread.
#[derive(Debug)]
pub(crate) enum Carried {
    /// The answer.
    Outcome(Outcome),
    /// A leaf that the host is to give a number.
    Opened(OpenLeaf, LeafInfo),
    /// A bug: what the thread panicked with, which goes on on the engine's thread.
    Panicked(Box<dyn std::any::Any + Send>),
}

/// Does what an action says with the leaves that it names, on any thread.
pub(crate) fn carry_out(leaves: Leaves, action: Action) -> Carried {
    if let Action::Open { location, access } = action {
        return match OpenLeaf::open(&location, access, &leaves.means.unwrap_or_default()) {
            Ok((leaf, info)) => Carried::Opened(leaf, info),
            Err(unopened) => Carried::Outcome(unopened.into()),
        };
    }
    Carried::Outcome(match (leaves.leaf, action) {
        (_, Action::Create { location, len, preallocation }) => {
            leaf::create(&location, len, preallocation, &leaves.means.unwrap_or_default())
        }
        (Some(leaf), action) => on_leaf(&leaf, leaves.target.as_deref(), action),
        (None, action) => elsewhere(action),
    })
}

fn on_leaf(leaf: &OpenLeaf, target: Option<&OpenLeaf>, action: Action) -> Outcome {
    match action {
        Action::Read { offset, mut data, .. } => {
            let result = leaf.read(offset, &mut data);
            Outcome::Moved { data, result }
        }
        Action::Write { offset, data, fua, .. } => {
            let result = leaf.write(offset, &data, fua);
            Outcome::Moved { data, result }
        }
        Action::Flush { .. } => Outcome::Done(leaf.flush()),
        Action::Discard { offset, len, .. } => Outcome::Done(leaf.discard(offset, len)),
        Action::WriteZeroes { offset, len, flags, .. } => {
            Outcome::Done(leaf.write_zeroes(offset, len, flags))
        }
        Action::SetLen { len, preallocation, .. } => Outcome::Done(leaf.set_len(len, preallocation)),
        Action::BlockStatus { offset, len, .. } => Outcome::Status(leaf.block_status(offset, len)),
        Action::CopyRange { from_offset, to_offset, len, .. } => {
            let result = match target {
                Some(target) => leaf.copy_to(target, from_offset, to_offset, len),
                None => Err(Errno::EBADF),
            };
            Outcome::Moved { data: BufList::new(), result }
        }
        Action::Lock { holds, shares, .. } => Outcome::Locked(leaf.lock(holds, shares)),
        action => elsewhere(action),
    }
}

/// Actions on no leaf, and the answers to those on one that is not open.
fn elsewhere(action: Action) -> Outcome {
    match action {
        Action::Remove { location } => Outcome::Done(leaf::remove(&location)),
        Action::Compute(work) => {
            let start = std::time::Instant::now();
            Outcome::Computed(work.run(&mut Workspace::default()).within(start.elapsed()))
        }
        Action::Entropy { mut data } => {
            let result = entropy(&mut data);
            Outcome::Moved { data, result }
        }
        Action::Sleep { duration } => {
            std::thread::sleep(duration);
            Outcome::Done(Ok(()))
        }
        Action::Read { data, .. } | Action::Write { data, .. } => {
            Outcome::Moved { data, result: Err(Errno::EBADF) }
        }
        Action::CopyRange { .. } => Outcome::Moved { data: BufList::new(), result: Err(Errno::EBADF) },
        Action::BlockStatus { .. } => Outcome::Status(Err(Errno::EBADF)),
        Action::Lock { .. } => Outcome::Locked(Err(LockRefused::Failed(Errno::EBADF))),
        Action::Flush { .. }
        | Action::Discard { .. }
        | Action::WriteZeroes { .. }
        | Action::SetLen { .. }
        | Action::Close { .. } => Outcome::Done(Err(Errno::EBADF)),
        other => panic!("an action that this executor does not know: {other:?}"),
    }
}

fn entropy(data: &mut BufList) -> Result<usize, Errno> {
    let mut filled = 0;
    for piece in data.windows_mut() {
        let mut rest = &mut piece[..];
        while !rest.is_empty() {
            match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => rest = &mut rest[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Errno(error.raw_os_error())),
            }
        }
        filled += piece.len();
    }
    Ok(filled)
}
