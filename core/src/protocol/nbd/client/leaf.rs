//! An export as a leaf: what an engine asks of it as orders, and what came of them as outcomes. Every executor's
//! connection goes through here, whatever carries its bytes.

use super::{Command, Ended, Negotiated, Order};
use crate::buf::BufList;
use crate::intent::{Action, LeafId, LeafInfo, LeafKind, LeafStatus, Outcome, Token};
use crate::protocol::nbd::layout::{StateFlags, TransmissionFlags};

impl Order {
    /// An action as an order, whose tag is the intent's token.
    ///
    /// # Errors
    /// The action, where it is not for an export.
    pub fn of(token: Token, action: Action) -> Result<(LeafId, Self), Action> {
        let none = BufList::new();
        let (leaf, command, offset, len, data) = match action {
            Action::Read { leaf, offset, data } => (leaf, Command::Read, offset, 0, data),
            Action::Write { leaf, offset, data, fua } => (leaf, Command::Write(fua), offset, 0, data),
            Action::Flush { leaf } => (leaf, Command::Flush, 0, 0, none),
            Action::Discard { leaf, offset, len } => (leaf, Command::Trim, offset, len, none),
            Action::WriteZeroes { leaf, offset, len, flags } => {
                (leaf, Command::WriteZeroes(flags), offset, len, none)
            }
            Action::BlockStatus { leaf, offset, len } => (leaf, Command::Status, offset, len, none),
            other => return Err(other),
        };
        Ok((leaf, Self { tag: token.0, command, offset, len, data }))
    }
}

impl Ended {
    /// What became of an order, as the answer to its action.
    pub fn outcome(self) -> Outcome {
        let Self { order: Order { command, data, .. }, result, extent } = self;
        match command {
            Command::Read | Command::Write(_) => {
                let len = data.len_bytes();
                Outcome::Moved { data, result: result.map(|()| len) }
            }
            Command::Status => Outcome::Status(result.map(|()| {
                let extent = extent.expect("block status that worked has an extent");
                let flags = StateFlags(extent.flags);
                LeafStatus {
                    len: extent.len,
                    data: !flags.has(StateFlags::HOLE),
                    zero: flags.has(StateFlags::ZERO),
                }
            })),
            Command::Flush | Command::Trim | Command::WriteZeroes(_) => Outcome::Done(result),
        }
    }
}

impl Negotiated {
    /// What the leaf is, under a number that its executor has chosen.
    pub fn leaf_info(&self, leaf: LeafId) -> LeafInfo {
        let Self { len, flags, sizes, .. } = *self;
        LeafInfo {
            leaf,
            len,
            request_align: sizes.min,
            memory_align: 1,
            preferred_size: sizes.preferred,
            transfer_max: sizes.max,
            kind: LeafKind::Nbd,
            grows_as_zeroes: false,
            discard_zeroes: false,
            fast_zeroes: flags.has(TransmissionFlags::SEND_WRITE_ZEROES),
        }
    }
}
