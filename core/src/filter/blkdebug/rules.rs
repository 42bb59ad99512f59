//! The rules of a blkdebug node: what happens at which event.
//!
//! ```text
//!   event ─▶ rules of that event, whose state is the node's ─▶ inject: failures are armed, for requests to come
//!                                                              set-state: the node's state changes
//!                                                              breakpoint: who told the event waits
//! ```

use crate::filter::{DebugEvent, FilterError};
use crate::intent::Errno;

/// Kinds of requests that a failure is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoType {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes of zeros.
    WriteZeroes,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
    /// Questions about what backs a range.
    BlockStatus,
}

impl IoType {
    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Self::Read,
            "write" => Self::Write,
            "write-zeroes" => Self::WriteZeroes,
            "discard" => Self::Discard,
            "flush" => Self::Flush,
            "block-status" => Self::BlockStatus,
            _ => return None,
        })
    }
}

/// A failure that an event arms (`inject-error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inject {
    /// When.
    pub event: DebugEvent,
    /// Only in this state of the node; 0 for any.
    pub state: u64,
    /// The requests that fail; without one, all but questions about status.
    pub io_type: Option<IoType>,
    /// What they fail with; 0 for nothing.
    pub errno: Errno,
    /// First byte that a request must touch to fail.
    pub at: Option<u64>,
    /// Only one request fails, and the rule is gone.
    pub once: bool,
    /// The request fails at once, without a turn of the executor in between.
    pub immediately: bool,
}

/// A change of the node's state at an event (`set-state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState {
    /// When.
    pub event: DebugEvent,
    /// Only in this state of the node; 0 for any.
    pub state: u64,
    /// The state that follows.
    pub new_state: u64,
}

/// Failures and changes of state, in the order in which they were defined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Failures.
    pub injects: Vec<Inject>,
    /// Changes of state.
    pub states: Vec<SetState>,
}

impl Rules {
    /// Reads a config file.
    ///
    /// # Errors
    /// The first line that is no rule, or part of one.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        super::config::parse(text)
    }
}

/// A failure for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    pub(super) immediately: bool,
}

/// The rules at work.
#[derive(Debug)]
pub(super) struct Machine {
    injects: Vec<(usize, Inject)>,
    states: Vec<SetState>,
    /// Numbers of the failures that are armed.
    armed: Vec<usize>,
    state: u64,
}

impl Machine {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            injects: rules.injects.iter().copied().enumerate().collect(),
            states: rules.states.clone(),
            armed: Vec::new(),
            state: 1,
        }
    }

    /// Arms what the event arms, in place of what was armed, and changes the state. Of several rules that fit, the one
    /// that was defined first counts.
    pub(super) fn tell(&mut self, event: DebugEvent) {
        let fits = |state: u64| state == 0 || state == self.state;
        let armed: Vec<usize> = self
            .injects
            .iter()
            .filter(|(_, rule)| rule.event == event && fits(rule.state))
            .map(|(number, _)| *number)
            .collect();
        let next = self.states.iter().find(|rule| rule.event == event && fits(rule.state));
        let next = next.map_or(self.state, |rule| rule.new_state);
        if !armed.is_empty() {
            self.armed = armed;
        }
        self.state = next;
    }

    /// The failure that a request meets; a rule for one request is gone then. `len` is 0 for flushes.
    pub(super) fn meet(&mut self, io_type: IoType, offset: u64, len: u64) -> Option<Failure> {
        let hits = |rule: &Inject| {
            let kind = rule.io_type.map_or(io_type != IoType::BlockStatus, |only| only == io_type);
            kind && rule.at.is_none_or(|at| at >= offset && at - offset < len)
        };
        let found = self
            .armed
            .iter()
            .position(|armed| self.injects.iter().any(|(number, rule)| number == armed && hits(rule)))?;
        let number = self.armed[found];
        let at = self.injects.iter().position(|(other, _)| *other == number)?;
        let rule = self.injects[at].1;
        if rule.once {
            self.armed.remove(found);
            self.injects.remove(at);
        }
        (rule.errno.0 > 0).then_some(Failure { errno: rule.errno, immediately: rule.immediately })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Inject = Inject {
        event: DebugEvent::L2Load,
        state: 0,
        io_type: None,
        errno: Errno::EIO,
        at: None,
        once: false,
        immediately: false,
    };

    fn machine(injects: &[Inject], states: &[SetState]) -> Machine {
        Machine::new(&Rules { injects: injects.to_vec(), states: states.to_vec() })
    }

    fn errno(machine: &mut Machine, io_type: IoType, offset: u64, len: u64) -> Option<Errno> {
        machine.meet(io_type, offset, len).map(|failure| failure.errno)
    }

    #[test]
    fn failures_are_armed_by_their_event_and_last() {
        let mut machine = machine(&[RULE], &[]);
        assert_eq!(errno(&mut machine, IoType::Read, 0, 1), None);
        machine.tell(DebugEvent::L2Update);
        assert_eq!(errno(&mut machine, IoType::Read, 0, 1), None);
        machine.tell(DebugEvent::L2Load);
        assert_eq!(errno(&mut machine, IoType::Read, 0, 1), Some(Errno::EIO));
        assert_eq!(errno(&mut machine, IoType::Flush, 0, 0), Some(Errno::EIO));
        assert_eq!(errno(&mut machine, IoType::BlockStatus, 0, 1), None);
    }

    #[test]
    fn one_request_fails_when_only_one_is_to() {
        let mut machine = machine(&[Inject { once: true, ..RULE }], &[]);
        machine.tell(DebugEvent::L2Load);
        assert_eq!(errno(&mut machine, IoType::Write, 0, 1), Some(Errno::EIO));
        assert_eq!(errno(&mut machine, IoType::Write, 0, 1), None);
        machine.tell(DebugEvent::L2Load);
        assert_eq!(errno(&mut machine, IoType::Write, 0, 1), None, "the rule is gone");
    }

    #[test]
    fn sectors_and_kinds_choose_the_request() {
        let rule = Inject { at: Some(1024), io_type: Some(IoType::Write), ..RULE };
        let mut machine = machine(&[rule, Inject { at: Some(0), errno: Errno::ENOSPC, ..RULE }], &[]);
        machine.tell(DebugEvent::L2Load);
        assert_eq!(errno(&mut machine, IoType::Write, 512, 512), None);
        assert_eq!(errno(&mut machine, IoType::Write, 512, 513), Some(Errno::EIO));
        assert_eq!(errno(&mut machine, IoType::Read, 512, 4096), None);
        assert_eq!(errno(&mut machine, IoType::Write, 0, 4096), Some(Errno::EIO), "the first that fits");
        assert_eq!(errno(&mut machine, IoType::Flush, 0, 0), None, "a flush touches no sector");
    }

    #[test]
    fn states_lead_from_event_to_event() {
        let states = [
            SetState { event: DebugEvent::WriteAio, state: 1, new_state: 2 },
            SetState { event: DebugEvent::WriteAio, state: 2, new_state: 3 },
        ];
        let mut machine = machine(&[Inject { state: 3, ..RULE }], &states);
        for expected in [None, None, Some(Errno::EIO)] {
            machine.tell(DebugEvent::L2Load);
            assert_eq!(errno(&mut machine, IoType::Read, 0, 1), expected);
            machine.tell(DebugEvent::WriteAio);
        }
    }
}
