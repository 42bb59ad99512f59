//! What a disk may hold, as far as its guest can tell.
//!
//! Owns the history of requests and replies. Refuses to know how anything is stored: a disk is a flat run of bytes.
//! Start at [`Model`].
//!
//! A byte may read as any write to it that nothing later has replaced. A write is replaced by one that began after its
//! reply and has itself been answered; for what a crash leaves behind, by one that is durable besides. Requests that
//! overlap in time may win in either order, byte by byte; requests that failed may have happened in part.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use drystone_core::buf::is_zero;
use drystone_core::engine::Op;
use drystone_core::intent::Fua;

use crate::sparse::Sparse;

/// The history of one disk.
#[derive(Debug)]
pub struct Model {
    size: u64,
    initial: Sparse,
    rules: Rules,
    /// Changes in the order of their beginning.
    changes: Vec<Change>,
    /// What is in flight, by tag.
    open: BTreeMap<u64, Open>,
    clock: u64,
    /// When the latest flush that worked began; what had ended by then is durable.
    flushed: u64,
    /// A flush failed, so none may work from here on.
    flush_failed: bool,
}

/// What differs from disk to disk.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether a discarded byte may be anything, rather than zero or what it was.
    pub discard_garbage: bool,
    /// Bytes that a crash keeps or loses as one, where the guest's sectors are sectors of the host.
    pub crash_sector: Option<u64>,
    /// Whether a failed flush makes all later ones fail.
    pub sticky_flush: bool,
    /// Whether the image discards on its own account, so that nobody need hear when that fails.
    pub discards_on_its_own: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            discard_garbage: false,
            crash_sector: Some(512),
            sticky_flush: true,
            discards_on_its_own: false,
        }
    }
}

#[derive(Debug)]
struct Change {
    range: Range<u64>,
    content: Content,
    begun: u64,
    ended: Option<u64>,
    /// Whether it is known to have happened, so that it replaces what was before.
    worked: bool,
    fua: bool,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Zeros,
    Anything,
}

#[derive(Clone, Debug)]
struct Open {
    begun: u64,
    /// Its places in the history.
    changes: Range<usize>,
    op: Op,
    offset: u64,
    len: u64,
}

/// A byte that is none of those that it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where.
    pub offset: u64,
    /// What was read.
    pub found: u8,
    /// Some of what would have been right.
    pub allowed: Vec<u8>,
    /// Whether the byte is right on its own, but not beside the rest of its sector.
    pub torn: bool,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, found, allowed, torn } = self;
        let what = if *torn { "a torn sector" } else { "a wrong byte" };
        write!(f, "{what} at {offset} ({offset:#x}): found {found:#04x}, allowed {allowed:02x?}")
    }
}

/// The moment for which bytes are checked.
#[derive(Clone, Copy)]
enum When {
    /// A read that began then, and ends at the call.
    Read(u64),
    /// After a crash.
    Crash,
}

impl Model {
    /// Returns the model of a disk of `size` bytes that durably holds `initial`, and zeros beyond that.
    pub fn new(size: u64, initial: Sparse, rules: Rules) -> Self {
        Self {
            size,
            initial,
            rules,
            changes: Vec::new(),
            open: BTreeMap::new(),
            clock: 1,
            flushed: 0,
            flush_failed: false,
        }
    }

    /// Length of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Tells whether a request in flight shares a byte with this one, and one of them writes.
    pub fn overlaps(&self, op: Op, offset: u64, len: u64) -> bool {
        self.open.values().any(|open| {
            let reads = open.op == Op::Read && op == Op::Read;
            !reads && open.offset < offset + len && offset < open.offset + open.len
        })
    }

    /// Makes the disk longer; what is new holds zeros.
    pub fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Takes note that a request was submitted. `data` is what a write writes.
    pub fn begin(&mut self, tag: u64, op: Op, offset: u64, len: u64, data: Option<Vec<u8>>) {
        self.clock += 1;
        let first = self.changes.len();
        let mut change = |content, fua| {
            let range = offset..offset + len;
            self.changes.push(Change { range, content, begun: self.clock, ended: None, worked: false, fua });
        };
        match op {
            Op::Write(fua) => {
                change(Content::Bytes(data.expect("a write has data")), fua == Fua::Yes);
            }
            Op::WriteCompressed => change(Content::Bytes(data.expect("a write has data")), false),
            Op::WriteZeroes(_, fua) => change(Content::Zeros, fua == Fua::Yes),
            Op::Discard => {
                let garbage = self.rules.discard_garbage;
                change(if garbage { Content::Anything } else { Content::Zeros }, false);
            }
            _ => {}
        }
        let changes = first..self.changes.len();
        let other = self.open.insert(tag, Open { begun: self.clock, changes, op, offset, len });
        assert!(other.is_none(), "tags of requests in flight differ");
    }

    /// Takes note of the reply, and checks what a read has read.
    ///
    /// # Errors
    /// When it cannot be right.
    pub fn end(&mut self, tag: u64, worked: bool, read: Option<&[u8]>) -> Result<(), Violation> {
        self.clock += 1;
        let open = self.open.remove(&tag).ok_or(Violation::UnknownTag(tag))?;
        for change in &mut self.changes[open.changes] {
            change.ended = Some(self.clock);
            // A discard is a hint: the old bytes may still be there.
            change.worked = worked && open.op != Op::Discard;
        }
        match open.op {
            Op::Flush if worked && self.flush_failed && self.rules.sticky_flush => {
                Err(Violation::FlushRecovered)
            }
            Op::Flush if worked => {
                self.flushed = self.flushed.max(open.begun);
                Ok(())
            }
            Op::Flush => {
                self.flush_failed = true;
                Ok(())
            }
            Op::Read if worked => {
                let bytes = read.expect("a read has bytes");
                if bytes.len() as u64 != open.len {
                    return Err(Violation::Length { tag, len: open.len, found: bytes.len() });
                }
                self.check(When::Read(open.begun), open.offset, bytes).map_err(Violation::Mismatch)
            }
            _ => Ok(()),
        }
    }

    /// Checks bytes that were read while nothing is in flight.
    ///
    /// # Errors
    /// With the first byte that is wrong.
    pub fn check_now(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        self.check(When::Read(self.clock + 1), offset, bytes)
    }

    /// Checks bytes that were found after a crash.
    ///
    /// # Errors
    /// With the first byte that is wrong.
    pub fn check_after_crash(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        self.check(When::Crash, offset, bytes)
    }

    /// Begins a new history with what a crash, or a test's end, has left.
    pub fn restart(&mut self, content: Sparse) {
        *self = Self::new(self.size, content, self.rules);
    }

    fn check(&self, when: When, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let end = offset + bytes.len() as u64;
        let touching: Vec<&Change> = self
            .changes
            .iter()
            .filter(|change| change.range.start < end && offset < change.range.end)
            .collect();
        let sector = match when {
            When::Crash => self.rules.crash_sector,
            When::Read(_) => None,
        };
        let mut cuts: Vec<u64> =
            touching.iter().flat_map(|change| [change.range.start, change.range.end]).collect();
        cuts.retain(|cut| (offset + 1..end).contains(cut));
        if let Some(sector) = sector {
            let starts = touching.iter().flat_map(|change| {
                let range = change.range.start.max(offset)..change.range.end.min(end);
                (range.start.next_multiple_of(sector)..range.end).step_by(sector as usize)
            });
            let starts: Vec<u64> = starts.filter(|cut| *cut > offset).collect();
            cuts.extend(starts);
        }
        cuts.extend([offset, end]);
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let segment = pair[0]..pair[1];
            let found = &bytes[(segment.start - offset) as usize..(segment.end - offset) as usize];
            let whole = sector
                .is_some_and(|sector| segment.start % sector == 0 && (segment.end - segment.start == sector));
            self.check_segment(when, segment, found, &touching, whole)?;
        }
        Ok(())
    }

    /// All that the disk may hold if the power goes now, in parts that follow each other and that a crash does not tear.
    pub fn possible_after_crash(&self) -> Vec<Possible> {
        let all: Vec<&Change> = self.changes.iter().collect();
        let mut cuts = vec![0, self.size];
        for Range { start, end } in all.iter().map(|change| change.range.clone()) {
            cuts.extend([start, end]);
            if let Some(sector) = self.rules.crash_sector {
                cuts.extend((start.next_multiple_of(sector)..end).step_by(sector as usize));
            }
        }
        cuts.retain(|cut| *cut <= self.size);
        cuts.sort_unstable();
        cuts.dedup();
        let part = |pair: &[u64]| {
            let range = pair[0]..pair[1];
            let len = (range.end - range.start) as usize;
            let mut contents = Vec::new();
            for candidate in self.candidates(When::Crash, &range, &all) {
                contents.push(match candidate {
                    Candidate::Anything => return Possible { range, contents: None },
                    Candidate::Initial => self.initial.bytes(range.start, len),
                    Candidate::Zeros => vec![0; len],
                    Candidate::Bytes(bytes) => bytes.to_vec(),
                });
            }
            contents.dedup();
            Possible { range, contents: Some(contents) }
        };
        cuts.windows(2).map(part).collect()
    }

    /// What bytes may be that the same changes cover from the first to the last.
    fn candidates<'a>(
        &self,
        when: When,
        segment: &Range<u64>,
        touching: &[&'a Change],
    ) -> Vec<Candidate<'a>> {
        let covers =
            |change: &&&Change| change.range.start <= segment.start && segment.end <= change.range.end;
        let settled = |change: &Change| match (when, change.ended) {
            (_, None) => false,
            (When::Read(begun), Some(ended)) => change.worked && ended < begun,
            (When::Crash, Some(ended)) => change.worked && (change.fua || ended < self.flushed),
        };
        let here = || touching.iter().filter(covers);
        let replaced_before = here().filter(|change| settled(change)).map(|change| change.begun).max();
        let stands = |ended: u64| replaced_before.is_none_or(|begun| ended >= begun);
        let initial = stands(0).then_some(Candidate::Initial);
        let changes = here().filter(|change| change.ended.is_none_or(stands)).map(|change| {
            let from = (segment.start - change.range.start) as usize;
            match &change.content {
                Content::Anything => Candidate::Anything,
                Content::Zeros => Candidate::Zeros,
                Content::Bytes(bytes) => {
                    Candidate::Bytes(&bytes[from..from + (segment.end - segment.start) as usize])
                }
            }
        });
        initial.into_iter().chain(changes).collect()
    }

    /// Checks bytes that the same changes cover from the first to the last.
    fn check_segment(
        &self,
        when: When,
        segment: Range<u64>,
        found: &[u8],
        touching: &[&Change],
        whole: bool,
    ) -> Result<(), Mismatch> {
        let len = found.len();
        let mut allowed: Vec<Vec<u8>> = Vec::new();
        for candidate in self.candidates(when, &segment, touching) {
            match candidate {
                Candidate::Anything => return Ok(()),
                Candidate::Zeros if is_zero(found) => return Ok(()),
                Candidate::Zeros => allowed.push(vec![0; len]),
                Candidate::Initial => {
                    let initial = self.initial.bytes(segment.start, len);
                    if initial == found {
                        return Ok(());
                    }
                    allowed.push(initial);
                }
                Candidate::Bytes(bytes) if bytes == found => return Ok(()),
                Candidate::Bytes(bytes) => allowed.push(bytes.to_vec()),
            }
        }
        let wrong = (0..len).find(|at| allowed.iter().all(|bytes| bytes[*at] != found[*at]));
        if let Some(at) = wrong.or(whole.then_some(0)) {
            let mut some: Vec<u8> = allowed.iter().map(|bytes| bytes[at]).collect();
            some.dedup();
            let offset = segment.start + at as u64;
            return Err(Mismatch { offset, found: found[at], allowed: some, torn: wrong.is_none() });
        }
        Ok(())
    }
}

/// What a part of a disk may hold after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Possible {
    /// First byte and end of the part.
    pub range: Range<u64>,
    /// All that it may hold, as a whole; anything, without.
    pub contents: Option<Vec<Vec<u8>>>,
}

/// What a segment may hold.
enum Candidate<'a> {
    Anything,
    Initial,
    Zeros,
    Bytes(&'a [u8]),
}

/// What a runner did that no disk may do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Bytes that nobody wrote there.
    #[error("{0}")]
    Mismatch(Mismatch),
    /// A reply to nothing, or the second one to something.
    #[error("a reply with tag {0}, which is not in flight")]
    UnknownTag(u64),
    /// A flush worked after one had failed.
    #[error("a flush worked after one had failed: what that one lost is still lost")]
    FlushRecovered,
    /// A buffer came back shorter or longer.
    #[error("request {tag} of {len} bytes came back with {found}")]
    Length {
        /// Which request.
        tag: u64,
        /// Its bytes.
        len: u64,
        /// What came back.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use drystone_core::intent::ZeroFlags;

    const WRITE: Op = Op::Write(Fua::No);

    fn model() -> Model {
        Model::new(4096, Sparse::from_bytes(&[9; 4096]), Rules::default())
    }

    impl Model {
        fn write(&mut self, tag: u64, op: Op, offset: u64, bytes: &[u8]) {
            self.begin(tag, op, offset, bytes.len() as u64, Some(bytes.to_vec()));
        }

        fn done(&mut self, tag: u64) {
            self.end(tag, true, None).expect("a write cannot be wrong");
        }

        fn flush(&mut self, tag: u64) {
            self.begin(tag, Op::Flush, 0, 0, None);
            self.done(tag);
        }
    }

    #[test]
    fn a_read_sees_the_last_write_and_only_that() {
        let mut model = model();
        model.write(1, WRITE, 100, &[1; 10]);
        model.done(1);
        model.write(2, WRITE, 105, &[2; 10]);
        model.done(2);
        let right = [vec![9; 5], vec![1; 5], vec![2; 10], vec![9; 5]].concat();
        model.check_now(95, &right).expect("right");
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            let mismatch = model.check_now(95, &wrong).expect_err("wrong");
            assert_eq!((mismatch.offset, mismatch.found), (95 + at as u64, wrong[at]));
        }
    }

    #[test]
    fn requests_that_overlap_in_time_win_in_either_order() {
        let mut model = model();
        model.write(1, WRITE, 0, &[1; 8]);
        model.begin(2, Op::Read, 0, 8, None);
        model.write(3, WRITE, 4, &[3; 8]);
        model.done(1);
        model.done(3);
        model.end(2, true, Some(&[9, 1, 9, 1, 3, 1, 9, 3])).expect("all of them were possible");
        model.check_now(0, &[1, 1, 1, 1, 3, 1, 1, 3, 3, 3, 3, 3, 9]).expect("either");
        model.check_now(0, &[9]).expect_err("what was there before is replaced");
    }

    #[test]
    fn a_crash_leaves_what_was_flushed_or_anything_later() {
        let mut model = model();
        model.write(1, WRITE, 0, &[1; 512]);
        model.done(1);
        model.flush(2);
        model.write(3, WRITE, 0, &[3; 512]);
        model.done(3);
        model.write(4, WRITE, 0, &[4; 512]);
        for value in [1, 3, 4] {
            model.check_after_crash(0, &[value; 512]).expect("possible");
        }
        model.check_after_crash(0, &[9; 512]).expect_err("flushed over");
        let torn = [vec![1; 256], vec![3; 256]].concat();
        assert!(model.check_after_crash(0, &torn).expect_err("sectors do not tear").torn);
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_began() {
        let mut model = model();
        model.write(1, WRITE, 0, &[1; 4]);
        model.begin(2, Op::Flush, 0, 0, None);
        model.done(1);
        model.done(2);
        model.check_after_crash(0, &[9; 4]).expect("the write was in flight");
        model.write(3, Op::Write(Fua::Yes), 4, &[3; 4]);
        model.done(3);
        model.check_after_crash(4, &[9; 4]).expect_err("durable by itself");
        model.check_after_crash(0, &[9; 4]).expect("and orders nothing else");
    }

    #[test]
    fn failures_and_discards_promise_nothing() {
        let mut model = model();
        model.write(1, WRITE, 0, &[1; 4]);
        model.end(1, false, None).expect("failures happen");
        model.check_now(0, &[9, 1, 9, 1]).expect("any part of it");
        model.begin(2, Op::Discard, 8, 4, None);
        model.done(2);
        model.check_now(8, &[9, 0, 9, 0]).expect("old or zero");
        model.check_now(8, &[1]).expect_err("nothing else");
        model.begin(3, Op::WriteZeroes(ZeroFlags::default(), Fua::No), 8, 4, None);
        model.done(3);
        model.check_now(8, &[9]).expect_err("zeros are zeros");
        model.begin(4, Op::Flush, 0, 0, None);
        model.end(4, false, None).expect("failures happen");
        model.begin(5, Op::Flush, 0, 0, None);
        assert_eq!(model.end(5, true, None), Err(Violation::FlushRecovered));
        assert_eq!(model.end(5, true, None), Err(Violation::UnknownTag(5)));
    }
}
