//! Which intents fail, and how.
//!
//! A [`Fault`] strikes the intents that it names, by count; [`Faults::storm`] strikes at random, by seed.

use drystone_core::intent::{Action, Errno, Label};
use fastrand::Rng;

/// The verbs of the contract, without what they carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// [`Action::Read`].
    Read,
    /// [`Action::Write`].
    Write,
    /// [`Action::Flush`].
    Flush,
    /// [`Action::Discard`].
    Discard,
    /// [`Action::WriteZeroes`].
    WriteZeroes,
    /// [`Action::SetLen`].
    SetLen,
    /// [`Action::BlockStatus`].
    BlockStatus,
    /// [`Action::CopyRange`].
    CopyRange,
    /// [`Action::Open`].
    Open,
    /// [`Action::Close`].
    Close,
    /// [`Action::Create`].
    Create,
    /// [`Action::Remove`].
    Remove,
    /// [`Action::Lock`].
    Lock,
    /// [`Action::Compute`], which cannot fail.
    Compute,
    /// [`Action::Sleep`], which cannot fail.
    Sleep,
    /// [`Action::Entropy`].
    Entropy,
}

impl Kind {
    /// The verb of an action.
    ///
    /// # Panics
    /// When the contract has grown a verb that the simulator does not know.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Read { .. } => Self::Read,
            Action::Write { .. } => Self::Write,
            Action::Flush { .. } => Self::Flush,
            Action::Discard { .. } => Self::Discard,
            Action::WriteZeroes { .. } => Self::WriteZeroes,
            Action::SetLen { .. } => Self::SetLen,
            Action::BlockStatus { .. } => Self::BlockStatus,
            Action::CopyRange { .. } => Self::CopyRange,
            Action::Open { .. } => Self::Open,
            Action::Close { .. } => Self::Close,
            Action::Create { .. } => Self::Create,
            Action::Remove { .. } => Self::Remove,
            Action::Lock { .. } => Self::Lock,
            Action::Compute(_) => Self::Compute,
            Action::Sleep { .. } => Self::Sleep,
            Action::Entropy { .. } => Self::Entropy,
            other => panic!("the simulator does not know {other:?}"),
        }
    }

    fn can_fail(self) -> bool {
        !matches!(self, Self::Compute | Self::Sleep)
    }

    fn can_be_short(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::CopyRange)
    }

    /// Whether it is about a leaf that is open.
    fn has_leaf(self) -> bool {
        !matches!(
            self,
            Self::Open | Self::Create | Self::Remove | Self::Compute | Self::Sleep | Self::Entropy
        )
    }
}

/// What happens to an intent that a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails. Of a write, any sectors may have been written; of a flush, what it covers may be lost for good.
    Fail(Errno),
    /// A transfer stops early, though not at once. Has no effect on what moves no bytes.
    Short,
    /// A write moves nothing at all, and says so.
    Nothing,
    /// Somebody else has what is to be locked.
    Refused,
    /// It happens and is answered only when whatever does not wait for it has overtaken it.
    Late,
    /// It happens in time, and is answered only when whatever does not wait for that has overtaken it.
    AnsweredLate,
    /// A read gives other bytes than are there.
    Mutated,
    /// Somebody cuts off the end of the file first.
    Shrunk,
    /// Somebody writes other bytes over all that the file stores first.
    Replaced,
}

impl Effect {
    /// Whether it can befall an intent of this verb.
    fn befalls(self, kind: Kind) -> bool {
        match self {
            Self::Fail(_) => kind.can_fail(),
            Self::Short => kind.can_be_short(),
            Self::Nothing => kind == Kind::Write,
            Self::Refused => kind == Kind::Lock,
            Self::Late | Self::AnsweredLate => kind != Kind::Sleep,
            Self::Mutated => kind == Kind::Read,
            Self::Shrunk | Self::Replaced => kind.has_leaf(),
        }
    }
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The verbs that it strikes; all that the effect can befall, when empty.
    pub kinds: Vec<Kind>,
    /// The file that it strikes; all, without one.
    pub path: Option<String>,
    /// How many intents of that description pass unharmed first.
    pub skip: u64,
    /// How many are struck then; all that follow, without a number.
    pub times: Option<u64>,
    /// How.
    pub effect: Effect,
}

impl Fault {
    /// Strikes the intents of one verb, all of them.
    pub fn all(kind: Kind, effect: Effect) -> Self {
        Self { kinds: vec![kind], path: None, skip: 0, times: None, effect }
    }

    /// Strikes one intent of any verb that the effect can befall, after `skip` others.
    pub fn nth(skip: u64, effect: Effect) -> Self {
        Self { kinds: Vec::new(), path: None, skip, times: Some(1), effect }
    }

    /// The same, and every one that follows.
    pub fn from_nth_on(skip: u64, effect: Effect) -> Self {
        Self { times: None, ..Self::nth(skip, effect) }
    }
}

/// Strikes at random.
#[derive(Clone, Debug)]
pub struct Storm {
    /// How many of 1000 intents are struck.
    pub per_mille: u32,
    /// The verbs that it strikes.
    pub kinds: Vec<Kind>,
    /// One of these is drawn.
    pub effects: Vec<Effect>,
}

/// All rules of a run, and what they did.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Asked in this order; the first that strikes decides.
    pub rules: Vec<Fault>,
    /// Asked when no rule strikes.
    pub storm: Option<Storm>,
    /// What was struck.
    pub struck: Vec<(Kind, Effect)>,
    /// The labels of what was struck, in the same order.
    pub labels: Vec<Label>,
}

impl Faults {
    /// Decides about one intent.
    pub fn strike(
        &mut self,
        (action, label): (&Action, Label),
        path: Option<&str>,
        rng: &mut Rng,
    ) -> Option<Effect> {
        let kind = Kind::of(action);
        let by_rule = self.rules.iter_mut().find_map(|rule| rule.strike(kind, path));
        let effect = by_rule.or_else(|| self.storm.as_ref()?.strike(kind, rng))?;
        self.struck.push((kind, effect));
        self.labels.push(label);
        Some(effect)
    }

    /// Tells whether an intent was failed for a reason that core cannot make up for.
    pub fn hurt(&self) -> bool {
        self.struck.iter().any(Self::hurts)
    }

    /// Whether something was struck that hurts, all of it of one kind.
    pub fn hurt_only(&self, kind: Kind) -> bool {
        let hurt = |struck: &&(Kind, Effect)| Self::hurts(struck);
        self.hurt() && self.struck.iter().filter(hurt).all(|(struck, _)| *struck == kind)
    }

    /// Tells whether core can not make up for this.
    pub fn hurts((kind, effect): &(Kind, Effect)) -> bool {
        match (kind, effect) {
            (_, Effect::Short | Effect::Late | Effect::AnsweredLate) | (Kind::CopyRange, _) => false,
            (Kind::WriteZeroes, Effect::Fail(errno)) => !matches!(*errno, Errno::ENOTSUP | Errno::EINVAL),
            (Kind::Discard, Effect::Fail(errno)) => *errno != Errno::ENOTSUP,
            _ => true,
        }
    }
}

impl Fault {
    fn strike(&mut self, kind: Kind, path: Option<&str>) -> Option<Effect> {
        let meant = self.kinds.is_empty() || self.kinds.contains(&kind);
        let there = self.path.is_none() || self.path.as_deref() == path;
        if !meant || !there || !self.effect.befalls(kind) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        match &mut self.times {
            Some(0) => return None,
            Some(times) => *times -= 1,
            None => {}
        }
        Some(self.effect)
    }
}

impl Storm {
    fn strike(&self, kind: Kind, rng: &mut Rng) -> Option<Effect> {
        if !self.kinds.contains(&kind) || rng.u32(..1000) >= self.per_mille {
            return None;
        }
        let effect = self.effects[rng.usize(..self.effects.len())];
        effect.befalls(kind).then_some(effect)
    }
}

/// Changes bytes in one of the ways in which a file changes between two reads of it: all of them, a number, or a bit.
pub(crate) fn mutate(bytes: &mut [u8], rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    match rng.u8(..6) {
        0 => bytes.fill(0),
        1 => bytes.fill(0xff),
        2 => bytes.fill_with(|| rng.u8(..)),
        3 => {
            let at = rng.usize(..bytes.len()) & !7;
            let end = (at + 8).min(bytes.len());
            let word = [0, u64::MAX, 1 << 62, 512, rng.u64(..)][rng.usize(..5)].to_be_bytes();
            bytes[at..end].copy_from_slice(&word[..end - at]);
        }
        4 => {
            // Where tables begin, and headers.
            let at = rng.usize(..bytes.len().min(128));
            bytes[at] = bytes[at].wrapping_add(1 + rng.u8(..255));
        }
        _ => bytes[rng.usize(..bytes.len())] ^= 1 << rng.u8(..8),
    }
}
