//! When a lost connection is made anew, and how long requests wait for it. Time is what the caller says it is.
//!
//! ```text
//!   Up ──lost──▶ Lost: requests wait ──the delay is over──▶ Lost: requests fail
//!   ▲                    │                                         │
//!   └────connected───────┴─────────────────────────────────────────┘
//! ```

use std::time::Duration;

/// Time between the first two attempts; it doubles from then on.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Time between two attempts at the most.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The policy of one connection.
#[derive(Clone, Debug)]
pub struct Reconnect {
    delay: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Up,
    Lost { since: Duration, next: Duration, pause: Duration, trying: bool, failed: bool },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// An attempt to connect, which ends in [`Reconnect::connected`] or [`Reconnect::refused`].
    Connect,
    /// Requests that wait are to fail, and those that come, until there is a connection.
    Fail,
    /// To ask again at that time.
    Until(Duration),
}

impl Reconnect {
    /// There is a connection; once it is lost, requests wait for `delay`.
    pub fn new(delay: Duration) -> Self {
        Self { delay, state: State::Up }
    }

    /// Takes note that the connection is lost.
    pub fn lost(&mut self, now: Duration) {
        if let State::Up = self.state {
            self.state =
                State::Lost { since: now, next: now, pause: PAUSE_MIN, trying: false, failed: false };
        }
    }

    /// Takes note that an attempt worked.
    pub fn connected(&mut self) {
        self.state = State::Up;
    }

    /// Takes note that an attempt did not work.
    pub fn refused(&mut self, now: Duration) {
        if let State::Lost { next, pause, trying, .. } = &mut self.state {
            *trying = false;
            *next = now + *pause;
            *pause = (*pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether requests that come now are to wait; else they fail.
    pub fn holds_requests(&self) -> bool {
        matches!(self.state, State::Up | State::Lost { failed: false, .. })
    }

    /// What is to be done now. Whatever it is, it is asked for once.
    pub fn wanted(&mut self, now: Duration) -> Wanted {
        let State::Lost { since, next, trying, failed, .. } = &mut self.state else { return Wanted::Nothing };
        let end = *since + self.delay;
        if !*failed && now >= end {
            *failed = true;
            return Wanted::Fail;
        }
        if !*trying && now >= *next {
            *trying = true;
            return Wanted::Connect;
        }
        match (*trying, *failed) {
            (true, true) => Wanted::Nothing,
            (true, false) => Wanted::Until(end),
            (false, true) => Wanted::Until(*next),
            (false, false) => Wanted::Until(end.min(*next)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn requests_wait_for_the_delay_and_no_longer() {
        let mut policy = Reconnect::new(SECOND * 3);
        assert_eq!(policy.wanted(SECOND), Wanted::Nothing);
        policy.lost(SECOND * 10);
        assert_eq!(policy.wanted(SECOND * 10), Wanted::Connect);
        assert_eq!(policy.wanted(SECOND * 11), Wanted::Until(SECOND * 13));
        assert!(policy.holds_requests());
        policy.refused(SECOND * 12);
        assert_eq!(policy.wanted(SECOND * 12), Wanted::Until(SECOND * 12 + PAUSE_MIN));
        assert_eq!(policy.wanted(SECOND * 13), Wanted::Fail);
        assert!(!policy.holds_requests());
        assert_eq!(policy.wanted(SECOND * 13), Wanted::Connect);
        assert_eq!(policy.wanted(SECOND * 13), Wanted::Nothing);
        policy.connected();
        assert!(policy.holds_requests());
        assert_eq!(policy.wanted(SECOND * 14), Wanted::Nothing);
    }

    #[test]
    fn without_a_delay_requests_fail_before_anything_is_tried() {
        let mut policy = Reconnect::new(Duration::ZERO);
        policy.lost(SECOND);
        assert_eq!(policy.wanted(SECOND), Wanted::Fail);
        assert_eq!(policy.wanted(SECOND), Wanted::Connect);
    }

    #[test]
    fn attempts_become_rarer() {
        let mut policy = Reconnect::new(SECOND * 1000);
        let mut now = Duration::ZERO;
        policy.lost(now);
        let mut attempts = 0;
        while now < SECOND * 100 {
            match policy.wanted(now) {
                Wanted::Connect => {
                    attempts += 1;
                    policy.refused(now);
                }
                Wanted::Until(then) => now = then,
                other => panic!("{other:?} at {now:?}"),
            }
        }
        assert!((25..40).contains(&attempts), "{attempts}");
    }
}
