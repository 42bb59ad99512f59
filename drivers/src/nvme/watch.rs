//! What a controller tells by itself: asynchronous events, the log pages behind them, and namespaces that changed.
//!
//! ```text
//!   Idle ──▶ Armed ──▶ Reading the log page ──▶ Listing (too many changed) ──▶ Identifying each ──▶ Idle
//!              ▲ an event comes     └─ errors, health: told ─────────────────────────────────────────┘
//! ```
//!
//! An event is told once its log page was read, which also has the controller tell of the next one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use super::admin::Call;
use super::controller::Controller;
use super::error::NvmeError;
use super::layout::{
    AsyncEvent, Command, ErrorEntry, Health, IDENTIFY_LEN, LOG_LEN, Namespace, Prp, active_namespaces,
    changed_namespaces, log_page,
};

/// Events that are kept for somebody to take; older ones go.
const EVENTS_MAX: usize = 64;

/// Something that a controller told by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The controller's words.
    pub told: AsyncEvent,
    /// What the log page said that it named.
    pub about: About,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum About {
    /// The error log, the newest entry first.
    Errors(Vec<ErrorEntry>),
    /// How the controller is doing.
    Health(Health),
    /// Namespaces that came, went, or changed. [`Device::namespace`](super::Device::namespace) says what they are.
    Namespaces(Vec<u32>),
    /// A log page that this driver does not know, or that could not be read.
    Unknown,
}

/// Where the watch over a controller is.
#[derive(Default)]
pub(super) struct Watch {
    state: State,
    events: VecDeque<Event>,
}

/// What is with the controller.
#[derive(Default)]
enum State {
    /// Nobody has asked to be told.
    #[default]
    Idle,
    /// A request to be told is with the controller.
    Armed(Call),
    /// It refuses to tell in this life.
    Refused,
    /// The log page of an event is being read.
    Reading(AsyncEvent, Call),
    /// Too many namespaces changed to be listed: all that are active are.
    Listing(AsyncEvent, Call),
    /// Namespaces are identified anew, the first of those that are left being asked for.
    Identifying { told: AsyncEvent, left: VecDeque<u32>, done: Vec<u32>, call: Option<Call> },
}

impl Watch {
    /// Begins anew with a controller that was disabled.
    pub(super) fn reset(&mut self) {
        self.state = State::Idle;
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn tell(&mut self, told: AsyncEvent, about: About) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event { told, about });
        self.state = State::Idle;
    }
}

impl Controller {
    /// Keeps a request for asynchronous events with the controller, and follows up what it tells.
    pub(super) fn watch(&mut self) {
        match std::mem::take(&mut self.watch.state) {
            State::Idle => {
                let asked = self.admin.wait_for("Asynchronous Event Request", Command::async_event());
                self.watch.state = asked.map_or(State::Idle, State::Armed);
            }
            State::Refused => self.watch.state = State::Refused,
            State::Armed(call) => match self.admin.answer(call) {
                None => self.watch.state = State::Armed(call),
                Some(Err(_)) => self.watch.state = State::Refused,
                Some(Ok(result)) => self.read_log(AsyncEvent::parse(result)),
            },
            State::Reading(told, call) => match self.admin.answer(call) {
                None => self.watch.state = State::Reading(told, call),
                Some(Err(_)) => self.watch.tell(told, About::Unknown),
                Some(Ok(_)) => self.follow(told),
            },
            State::Listing(told, call) => match self.admin.answer(call) {
                None => self.watch.state = State::Listing(told, call),
                Some(Err(_)) => self.watch.tell(told, About::Unknown),
                Some(Ok(_)) => {
                    let mut all: BTreeSet<u32> = self.namespaces.keys().copied().collect();
                    all.extend(active_namespaces(&self.log_page.snapshot::<IDENTIFY_LEN>(), 0));
                    self.identify_again(told, all.into_iter().collect(), Vec::new());
                }
            },
            State::Identifying { told, left, done, call: None } => self.identify_again(told, left, done),
            State::Identifying { told, left, done, call: Some(call) } => match self.admin.answer(call) {
                None => self.watch.state = State::Identifying { told, left, done, call: Some(call) },
                Some(answer) => self.identified(told, left, done, answer),
            },
        }
    }

    fn read_log(&mut self, told: AsyncEvent) {
        self.log_page.clear();
        let command = Command::log_page(told.log_page, LOG_LEN, Prp::page(self.log_page.iova()));
        match self.call("Get Log Page", command) {
            Some(call) => self.watch.state = State::Reading(told, call),
            None => self.watch.tell(told, About::Unknown),
        }
    }

    /// Goes on with what a log page says.
    fn follow(&mut self, told: AsyncEvent) {
        let data = self.log_page.snapshot::<LOG_LEN>();
        match told.log_page {
            log_page::ERRORS => self.watch.tell(told, About::Errors(ErrorEntry::parse_all(&data))),
            log_page::HEALTH => self.watch.tell(told, About::Health(Health::parse(&data))),
            log_page::CHANGED_NAMESPACES => match changed_namespaces(&data) {
                Some(changed) => self.identify_again(told, changed.into(), Vec::new()),
                None => {
                    self.log_page.clear();
                    let command = Command::active_namespaces(0, Prp::page(self.log_page.iova()));
                    match self.call("Identify, active namespaces", command) {
                        Some(call) => self.watch.state = State::Listing(told, call),
                        None => self.watch.tell(told, About::Unknown),
                    }
                }
            },
            _ => self.watch.tell(told, About::Unknown),
        }
    }

    /// Identifies the next namespace that may have changed, or tells of them all.
    fn identify_again(&mut self, told: AsyncEvent, left: VecDeque<u32>, done: Vec<u32>) {
        let Some(id) = left.front().copied() else {
            self.namespaces_version.fetch_add(1, Ordering::Release);
            return self.watch.tell(told, About::Namespaces(done));
        };
        self.log_page.clear();
        let command = Command::identify_namespace(id, Prp::page(self.log_page.iova()));
        let call = self.call("Identify Namespace", command);
        self.watch.state = State::Identifying { told, left, done, call };
    }

    fn identified(
        &mut self,
        told: AsyncEvent,
        mut left: VecDeque<u32>,
        mut done: Vec<u32>,
        answer: Result<u32, NvmeError>,
    ) {
        if let Some(id) = left.pop_front() {
            let data = self.log_page.snapshot::<IDENTIFY_LEN>();
            match answer.and_then(|_| Namespace::parse(id, &data)) {
                Err(NvmeError::NoNamespace { .. }) => drop(self.namespaces.remove(&id)),
                namespace => drop(self.namespaces.insert(id, namespace)),
            }
            done.push(id);
        }
        self.identify_again(told, left, done);
    }
}
