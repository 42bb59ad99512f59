//! The rules of order that formats declare, each broken on purpose.
//!
//! Every row is a sentence at the head of `flush.rs`, or at the function that enforces it, and names the line of core
//! that does: its label. The executor answers that intent without having done it (`lie`), which is what leaving the line
//! out of core would be. Exploring the operation must then find a broken image. A file a format; start at [`rules`].

mod luks;
mod parallels;
mod qcow2;
mod raw;
mod two_level;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;

use drystone_core::intent::Label;

use super::{Explored, Operation, Thoroughness, explore_lying};
use crate::lie::{Lie, Lies};

/// A rule of order.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The line that enforces it, by the label of its intent.
    pub label: Label,
    /// How it is broken.
    pub lie: Lie,
    /// The rule.
    pub rule: &'static str,
    /// An operation that a crash breaks without it, by its name.
    pub operation: &'static str,
}

const fn barrier(label: Label, rule: &'static str, operation: &'static str) -> Rule {
    Rule { label, lie: Lie::Skipped, rule, operation }
}

const fn awaited(label: Label, rule: &'static str, operation: &'static str) -> Rule {
    Rule { label, lie: Lie::Late, rule, operation }
}

/// All of them.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    [
        luks::RULES,
        parallels::RULES,
        qcow2::RULES,
        raw::RULES,
        two_level::RULES,
        vdi::RULES,
        vhdx::RULES,
        vmdk::RULES,
        vpc::RULES,
    ]
    .into_iter()
    .flatten()
}

/// An intent that no crash here can tell from its absence, by its label, with why it is there all the same. It becomes a
/// [`Rule`] with the first operation that needs it.
pub type Promise = (Label, &'static str);

/// All of them.
pub fn promises() -> impl Iterator<Item = &'static Promise> {
    [parallels::PROMISES, two_level::PROMISES, vdi::PROMISES, vhdx::PROMISES, vmdk::PROMISES, vpc::PROMISES]
        .into_iter()
        .flatten()
}

/// Where core states an order: a source file, and the rules that prove it, by label and operation.
pub type Stated = (&'static str, &'static [(Label, &'static str)]);

/// All of them.
pub fn stated() -> impl Iterator<Item = &'static Stated> {
    [
        luks::STATED,
        parallels::STATED,
        qcow2::STATED,
        two_level::STATED,
        vdi::STATED,
        vhdx::STATED,
        vmdk::STATED,
        vpc::STATED,
    ]
    .into_iter()
    .flatten()
}

impl Rule {
    /// Explores the rule's operation while the executor breaks the rule, with one order of completions after the other;
    /// returns the report of the first state that is broken.
    ///
    /// # Errors
    /// When no crash shows that the rule is broken: what was explored in vain.
    ///
    /// # Panics
    /// When there is no such operation.
    pub fn broken(
        &self,
        operations: &[Operation],
        how: &Thoroughness,
        seeds: u64,
    ) -> Result<String, Explored> {
        let operation = operations.iter().find(|operation| operation.name == self.operation);
        let operation = operation.unwrap_or_else(|| panic!("no operation '{}'", self.operation));
        let mut explored = Explored::default();
        for seed in 0..seeds {
            match explore_lying(operation, how, seed, Lies::about_label(self.label, self.lie)) {
                Ok(more) => explored.add(more),
                Err(report) => return Ok(report),
            }
        }
        Err(explored)
    }
}
