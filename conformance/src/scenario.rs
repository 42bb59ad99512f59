//! Random request mixes, the same for every executor.
//!
//! A [`Mix`] draws a plan of [`Step`]s from a seed (or from fuzz input); [`play`] carries it out on a [`Runner`], and
//! holds every reply against the [`Model`]. Start at [`play`].

use std::collections::BTreeMap;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Op, Reply};
use drystone_core::error::{Error, FaultKind};
use drystone_core::graph::open::NodeSpec;
use drystone_core::intent::{Errno, Fua, ZeroFlags};

use crate::model::{Mismatch, Model, Violation};
use crate::sim::Stopped;
use crate::sparse::Sparse;

/// Where decisions come from.
pub trait Draw {
    /// A number below `bound`, which is above zero.
    fn below(&mut self, bound: u64) -> u64;

    /// True in one of `n` cases.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

impl Draw for fastrand::Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.u64(..bound)
    }
}

impl Draw for arbitrary::Unstructured<'_> {
    /// Input that has run out gives zeros.
    fn below(&mut self, bound: u64) -> u64 {
        self.int_in_range(0..=bound - 1).unwrap_or(0)
    }
}

/// An executor with one open image, as the suite sees it.
pub trait Runner {
    /// Opens a tree of nodes, whose root the other methods are about.
    ///
    /// # Errors
    /// What core says, or that the machine stopped.
    fn open(&mut self, spec: &NodeSpec) -> Result<(), RunError>;

    /// Length of the image in bytes.
    fn size(&mut self) -> u64;

    /// Begins requests, all at once.
    fn submit(&mut self, batch: Vec<Ask>);

    /// Waits for the next reply, in whatever order they come.
    ///
    /// # Errors
    /// When the machine stopped.
    fn wait(&mut self) -> Result<Reply, Stopped>;

    /// Closes the image and what is below it.
    ///
    /// # Errors
    /// What core says, or that the machine stopped.
    fn close(&mut self) -> Result<(), RunError>;
}

/// A request on the image that a [`Runner`] has open.
#[derive(Debug)]
pub struct Ask {
    /// What to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Bytes, for what carries no data.
    pub len: u64,
    /// Room for what is read, or the bytes to write.
    pub data: BufList,
    /// To be found in the reply.
    pub tag: u64,
}

/// Why opening or closing came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Core's error.
    #[error(transparent)]
    Core(#[from] Box<Error>),
}

/// One request of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Lengths of the buffers, with how far each is off alignment in memory; together `len`.
    pub buffers: Vec<(u64, u8)>,
    /// Whether it is submitted together with the next one.
    pub with_next: bool,
}

/// What requests are like.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Number of requests.
    pub steps: usize,
    /// Requests in flight at the most.
    pub depth: usize,
    /// Bytes in one request at the most.
    pub len_max: u64,
    /// Offsets and lengths prefer multiples of this, and the neighbourhood of such multiples.
    pub granule: u64,
    /// Whether requests that share bytes may be in flight together.
    pub overlap: bool,
    /// Whether some requests lie outside the disk, and must be refused.
    pub beyond: bool,
    /// Whether some writes ask for compression.
    pub compressed: bool,
    /// Whether nothing is changed: for what is only read.
    pub reads_only: bool,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            steps: 60,
            depth: 16,
            len_max: 16 * 1024,
            granule: 4096,
            overlap: true,
            beyond: true,
            compressed: false,
            reads_only: false,
        }
    }
}

impl Mix {
    /// Changes what does not belong to the image: how many, how large, how many at once, and whether they meet.
    pub fn vary(&mut self, draw: &mut dyn Draw) {
        self.steps = self.steps / 2 + draw.below(self.steps as u64) as usize;
        self.depth = [1, 4, 16, 16][draw.below(4) as usize].min(self.depth);
        self.len_max >>= draw.below(4);
        self.overlap &= !draw.one_in(4);
    }

    /// Draws a plan for a disk of `size` bytes.
    pub fn plan(&self, size: u64, draw: &mut dyn Draw) -> Vec<Step> {
        // Many requests meet in one small place, so that they share sectors and clusters.
        let hot = draw.below(size.max(1));
        (0..self.steps).map(|_| self.step(size, hot, draw)).collect()
    }

    fn step(&self, size: u64, hot: u64, draw: &mut dyn Draw) -> Step {
        let op = self.op(draw);
        if op == Op::Flush {
            return Step { op, offset: 0, len: 0, buffers: Vec::new(), with_next: draw.one_in(2) };
        }
        let near = draw.one_in(2);
        let start =
            if near { hot.saturating_add(draw.below(4 * self.granule)) } else { draw.below(size.max(1)) };
        let mut offset = self.nudge(start, draw).min(size);
        let wanted = 1 + draw.below(self.len_max);
        let wanted = if draw.one_in(3) { wanted.min(2 * self.granule) } else { wanted };
        let mut len = self.nudge(wanted, draw).clamp(1, self.len_max).min(size - offset);
        if op == Op::WriteCompressed {
            offset -= offset % self.granule;
            len = self.granule.min(size - offset);
        }
        if self.beyond && draw.one_in(24) {
            (offset, len) = match draw.below(3) {
                0 => (size, 1 + draw.below(100)),
                1 => (size.saturating_sub(draw.below(512)), 513),
                _ => (u64::MAX - draw.below(64), 1 + draw.below(64)),
            };
        }
        let buffers = if carries_data(op) { self.buffers(len, draw) } else { Vec::new() };
        Step { op, offset, len, buffers, with_next: draw.one_in(2) }
    }

    fn op(&self, draw: &mut dyn Draw) -> Op {
        let fua = |draw: &mut dyn Draw| if draw.one_in(4) { Fua::Yes } else { Fua::No };
        match draw.below(16) {
            0..5 => Op::Read,
            ..14 if self.reads_only => Op::Read,
            5 if self.compressed => Op::WriteCompressed,
            5..11 => Op::Write(fua(draw)),
            11..13 => {
                let may_unmap = draw.one_in(2);
                let no_fallback = draw.one_in(8);
                Op::WriteZeroes(ZeroFlags { may_unmap, no_fallback }, fua(draw))
            }
            13 => Op::Discard,
            _ => Op::Flush,
        }
    }

    /// Moves a number to a boundary, or next to one, or leaves it.
    fn nudge(&self, at: u64, draw: &mut dyn Draw) -> u64 {
        let unit = match draw.below(4) {
            0 => 512,
            _ => self.granule,
        };
        let boundary = at - at % unit;
        match draw.below(8) {
            0..4 => boundary,
            4 => boundary + 1,
            5 => boundary.saturating_sub(1),
            _ => at,
        }
    }

    fn buffers(&self, len: u64, draw: &mut dyn Draw) -> Vec<(u64, u8)> {
        let mut left = len;
        let mut buffers = Vec::new();
        let misaligned = draw.one_in(4);
        while left > 0 {
            let part = match draw.below(4) {
                _ if buffers.len() == 5 => left,
                0 => 1 + draw.below(left),
                1 => (512 * (1 + draw.below(16))).min(left),
                _ => left,
            };
            let off = if misaligned { draw.below(8) as u8 } else { 0 };
            buffers.push((part, off));
            left -= part;
        }
        buffers
    }
}

/// All short plans over a few places: every sequence of so many requests from a small alphabet.
#[derive(Clone, Debug)]
pub struct SmallPlans {
    /// First bytes of the ranges that requests are about.
    pub places: Vec<u64>,
    /// Bytes of each.
    pub len: u64,
}

impl SmallPlans {
    /// Returns every plan of `steps` requests.
    pub fn of(&self, steps: u32) -> impl Iterator<Item = Vec<Step>> {
        let alphabet = self.alphabet();
        let letters = alphabet.len();
        (0..letters.pow(steps)).map(move |number| {
            let digits = (0..steps).map(|place| number / letters.pow(place) % letters);
            digits.map(|letter| alphabet[letter].clone()).collect()
        })
    }

    fn alphabet(&self) -> Vec<Step> {
        let step = |op, offset, len| {
            let buffers = if carries_data(op) { vec![(len, 0)] } else { Vec::new() };
            Step { op, offset, len, buffers, with_next: false }
        };
        let flags = ZeroFlags { may_unmap: true, no_fallback: false };
        let mut alphabet = vec![step(Op::Flush, 0, 0)];
        for place in &self.places {
            alphabet.push(step(Op::Write(Fua::No), *place, self.len));
            alphabet.push(step(Op::WriteZeroes(flags, Fua::No), *place, self.len));
        }
        let first = self.places[0];
        alphabet.push(step(Op::Write(Fua::Yes), first, self.len));
        alphabet.push(step(Op::Write(Fua::No), first + self.len / 2, self.len));
        alphabet.push(step(Op::Discard, first, self.len));
        alphabet
    }
}

fn carries_data(op: Op) -> bool {
    matches!(op, Op::Read | Op::Write(_) | Op::WriteCompressed)
}

/// What became of one step, for comparison between executors. Without overlap it is the same on all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The error number.
    pub result: Result<(), Errno>,
    /// The bytes that a read has read.
    pub read: Vec<u8>,
}

/// How a play ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every step was answered.
    Finished(Vec<Answer>),
    /// The machine stopped.
    Stopped,
}

/// What a runner did wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A reply that no disk may give.
    #[error("step {tag} ({step}): {violation}")]
    Violation {
        /// The number of the step.
        tag: u64,
        /// The step.
        step: String,
        /// What is wrong.
        violation: Violation,
    },
    /// An error where nothing had failed.
    #[error("step {tag} ({step}): {error}")]
    Unexpected {
        /// The number of the step.
        tag: u64,
        /// The step.
        step: String,
        /// The error.
        error: Box<Error>,
    },
    /// A request outside the disk that was not refused as a mistake of the caller.
    #[error("step {tag} ({step}): not refused")]
    Accepted {
        /// The number of the step.
        tag: u64,
        /// The step.
        step: String,
    },
    /// Wrong bytes when everything was read back.
    #[error("{when}: {mismatch}")]
    Content {
        /// When they were read.
        when: &'static str,
        /// Where and what.
        mismatch: Mismatch,
    },
    /// An error outside the plan.
    #[error("{when}: {error}")]
    Broken {
        /// When.
        when: &'static str,
        /// What.
        error: String,
    },
}

/// How a plan is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Conduct {
    /// Requests in flight at the most.
    pub depth: usize,
    /// Whether requests that share bytes may be in flight together.
    pub overlap: bool,
    /// Whether requests may fail, because something makes them.
    pub faults: bool,
}

/// Carries out a plan, and holds every reply against the model.
///
/// # Errors
/// With the first reply that cannot be right.
pub fn play(
    runner: &mut dyn Runner,
    model: &mut Model,
    plan: &[Step],
    conduct: Conduct,
) -> Result<Ended, Failure> {
    let mut play = Play { runner, model, plan, conduct, answers: BTreeMap::new(), refused: 0 };
    let mut batch = Vec::new();
    for (tag, step) in plan.iter().enumerate() {
        while play.must_wait(step, batch.len()) {
            play.runner.submit(std::mem::take(&mut batch));
            if play.wait()?.is_err() {
                return Ok(Ended::Stopped);
            }
        }
        batch.push(play.begin(tag as u64, step));
        if !step.with_next {
            play.runner.submit(std::mem::take(&mut batch));
        }
    }
    play.runner.submit(batch);
    while play.answers.len() < plan.len() {
        if play.wait()?.is_err() {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Finished(play.answers.into_values().collect()))
}

/// What somebody who watches a runner sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request of a step was submitted.
    Begun(u64),
    /// Its reply came; whether it worked.
    Ended(u64, bool),
}

/// Takes a model through what was seen of a plan that [`play`] carried out elsewhere. Steps lie within the disk; what
/// was read is not known.
///
/// # Errors
/// When an event cannot be.
pub fn replay(model: &mut Model, plan: &[Step], events: &[Event]) -> Result<(), Violation> {
    for event in events {
        match *event {
            Event::Begun(tag) => {
                let step = plan.get(tag as usize).ok_or(Violation::UnknownTag(tag))?;
                let bytes = matches!(step.op, Op::Write(_) | Op::WriteCompressed)
                    .then(|| bytes_of(&buffers(step, Some(tag))));
                model.begin(tag, step.op, step.offset, step.len, bytes);
            }
            // A read changes nothing, so it may as well have failed.
            Event::Ended(tag, worked) => {
                let read = plan.get(tag as usize).is_some_and(|step| step.op == Op::Read);
                model.end(tag, worked && !read, None)?;
            }
        }
    }
    Ok(())
}

struct Play<'a> {
    runner: &'a mut dyn Runner,
    model: &'a mut Model,
    plan: &'a [Step],
    conduct: Conduct,
    answers: BTreeMap<u64, Answer>,
    /// Requests in flight that are to be refused, which the model does not know.
    refused: usize,
}

impl Play<'_> {
    fn is_beyond(&self, step: &Step) -> bool {
        step.op != Op::Flush && step.offset.checked_add(step.len).is_none_or(|end| end > self.model.size())
    }

    fn must_wait(&self, step: &Step, batched: usize) -> bool {
        let in_flight = self.model.in_flight() + self.refused;
        let full = in_flight >= self.conduct.depth;
        let clash = !self.conduct.overlap
            && !self.is_beyond(step)
            && self.model.overlaps(step.op, step.offset, step.len);
        debug_assert!(batched <= in_flight, "what is batched is in flight as far as the model knows");
        full || clash
    }

    fn begin(&mut self, tag: u64, step: &Step) -> Ask {
        let data = match step.op {
            Op::Read => buffers(step, None),
            Op::Write(_) | Op::WriteCompressed => buffers(step, Some(tag)),
            _ => BufList::new(),
        };
        if self.is_beyond(step) {
            self.refused += 1;
        } else {
            let bytes = matches!(step.op, Op::Write(_) | Op::WriteCompressed).then(|| bytes_of(&data));
            self.model.begin(tag, step.op, step.offset, step.len, bytes);
        }
        Ask { op: step.op, offset: step.offset, len: step.len, data, tag }
    }

    fn wait(&mut self) -> Result<Result<(), Stopped>, Failure> {
        let Reply { tag, data, result } = match self.runner.wait() {
            Ok(reply) => reply,
            Err(stopped) => return Ok(Err(stopped)),
        };
        let step = usize::try_from(tag).ok().and_then(|index| self.plan.get(index));
        let Some(step) = step.filter(|_| !self.answers.contains_key(&tag)) else {
            let violation = Violation::UnknownTag(tag);
            return Err(Failure::Violation { tag, step: "none".into(), violation });
        };
        let name = || format!("{:?} {}+{}", step.op, step.offset, step.len);
        let bytes = bytes_of(&data);
        if carries_data(step.op) && bytes.len() as u64 != step.len {
            let violation = Violation::Length { tag, len: step.len, found: bytes.len() };
            return Err(Failure::Violation { tag, step: name(), violation });
        }
        if self.is_beyond(step) {
            self.refused -= 1;
            if !result.as_ref().is_err_and(|error| error.kind() == FaultKind::Misuse) {
                return Err(Failure::Accepted { tag, step: name() });
            }
        } else {
            let read = (step.op == Op::Read).then_some(bytes.as_slice());
            let ended = self.model.end(tag, result.is_ok(), read);
            ended.map_err(|violation| Failure::Violation { tag, step: name(), violation })?;
        }
        let read = if step.op == Op::Read && result.is_ok() { bytes } else { Vec::new() };
        let errno = match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(error.errno()),
        };
        if let Err(error) = result {
            let slow = matches!(step.op, Op::WriteZeroes(flags, _) if flags.no_fallback);
            let excused = self.conduct.faults
                || self.is_beyond(step)
                || (slow && matches!(error.errno(), Errno::ENOTSUP | Errno::EINVAL));
            if !excused {
                return Err(Failure::Unexpected { tag, step: name(), error });
            }
        }
        self.answers.insert(tag, Answer { result: errno, read });
        Ok(Ok(()))
    }
}

/// Buffers of the lengths and alignments that a step asks for: filled for a write, full of noise for a read.
fn buffers(step: &Step, tag: Option<u64>) -> BufList {
    let mut at = 0;
    let windows = step.buffers.iter().map(|(len, off)| {
        let off = usize::from(*off);
        let mut window = Buf::zeroed(*len as usize + off).split_off_front(off);
        match tag {
            Some(tag) => window.iter_mut().zip(at..).for_each(|(byte, at)| *byte = pattern(tag, at)),
            None => window.fill(0xcc),
        }
        at += len;
        window
    });
    windows.collect()
}

trait SplitFront {
    fn split_off_front(self, at: usize) -> Self;
}

impl SplitFront for Buf {
    fn split_off_front(mut self, at: usize) -> Self {
        drop(self.split_to(at));
        self
    }
}

/// The byte at `at` of what request `tag` writes: tells requests and places apart, and still compresses.
fn pattern(tag: u64, at: u64) -> u8 {
    let word = (tag + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at / 64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    (word >> (8 * (at % 8))) as u8
}

fn bytes_of(data: &BufList) -> Vec<u8> {
    let mut bytes = vec![0; data.len_bytes()];
    data.copy_out(0, &mut bytes);
    bytes
}

/// Reads a whole image, in order.
///
/// # Errors
/// The first failure, or that the machine stopped.
pub fn read_all(runner: &mut dyn Runner) -> Result<Sparse, RunError> {
    const CHUNK: u64 = 64 * 1024;
    let size = runner.size();
    let mut content = Sparse::new(size);
    let mut offset = 0;
    while offset < size {
        let len = CHUNK.min(size - offset);
        let data = Buf::zeroed(len as usize).into();
        runner.submit(vec![Ask { op: Op::Read, offset, len, data, tag: u64::MAX - 1 }]);
        let reply = runner.wait()?;
        reply.result?;
        let bytes = reply.data.into_single();
        if !drystone_core::buf::is_zero(&bytes) {
            content.write(offset, &bytes);
        }
        offset += len;
    }
    Ok(content)
}

/// Sends one request, and waits for its reply.
///
/// # Errors
/// Its error, or that the machine stopped.
pub fn one(runner: &mut dyn Runner, ask: Ask) -> Result<Reply, RunError> {
    runner.submit(vec![ask]);
    let mut reply = runner.wait()?;
    std::mem::replace(&mut reply.result, Ok(()))?;
    Ok(reply)
}
