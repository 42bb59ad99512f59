//! Orders that are broken on purpose: an executor that says that something is done, and has not done it.
//!
//! Core waits for a flush, or for a write, wherever one thing must be on the disk before another. Answering such an
//! intent without doing it is what leaving that line out of core would be, so every rule of order can be broken one
//! at a time without a switch in core: the intent's label says which line it is. Start at [`Lies`].

use drystone_core::intent::{Action, Label, Outcome};

use crate::disk::Change;

/// How many steps of the simulation a change comes late: long enough for what had waited for it to overtake it.
const LATE_STEPS: u64 = 60;

/// What becomes of an intent that is lied about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A flush that makes nothing durable.
    Skipped,
    /// A change that is made a while after it was answered.
    Late,
}

/// The lies of a simulation: none, or those about one line of core.
#[derive(Clone, Debug, Default)]
pub struct Lies {
    told: Option<(Label, Lie)>,
    step: u64,
    late: Vec<(u64, (usize, Change))>,
}

impl Lies {
    /// Lies about the intents with this label.
    pub fn about_label(label: Label, lie: Lie) -> Self {
        Self { told: Some((label, lie)), ..Self::default() }
    }

    /// What is said of an intent.
    pub(crate) fn about(&self, label: Label, action: &Action) -> Option<Lie> {
        let (told, lie) = self.told?;
        let fits = match action {
            Action::Flush { .. } => lie == Lie::Skipped,
            Action::Write { .. } | Action::Discard { .. } | Action::WriteZeroes { .. } => lie == Lie::Late,
            _ => false,
        };
        (told == label && fits).then_some(lie)
    }

    pub(crate) fn postpone(&mut self, change: Option<(usize, Change)>) {
        self.late.extend(change.map(|change| (self.step + LATE_STEPS, change)));
    }

    /// The answer to an intent that was not carried out.
    pub(crate) fn answer(action: Action) -> Outcome {
        match action {
            Action::Write { data, .. } => {
                let moved = data.len_bytes();
                Outcome::Moved { data, result: Ok(moved) }
            }
            _ => Outcome::Done(Ok(())),
        }
    }

    /// Begins a step, and returns the changes that it is time for.
    pub(crate) fn due(&mut self) -> Vec<(usize, Change)> {
        self.step += 1;
        let step = self.step;
        self.late.extract_if(.., |(due, _)| *due <= step).map(|(_, change)| change).collect()
    }

    /// The changes that are still to come.
    pub(crate) fn postponed(&self) -> impl Iterator<Item = &(usize, Change)> {
        self.late.iter().map(|(_, change)| change)
    }

    /// All that is still to come, now.
    pub(crate) fn all(&mut self) -> Vec<(usize, Change)> {
        std::mem::take(&mut self.late).into_iter().map(|(_, change)| change).collect()
    }
}
