//! Convert: copies what guests see from one or more nodes to another.
//!
//! Workers take chunks in the order of the disk; each reads its chunk, tells zeros from data, and writes. Writes begin
//! in the order of the disk too, unless the caller frees them of that, so that an empty target fills from front to back.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::Duration;

use super::above::{Above, above};
use super::{Doing, Progress, Stopped};
use crate::buf::{Buf, BufList, is_zero};
use crate::engine::task::{Gate, WaitList, join, join_all};
use crate::engine::{Io, Status};
use crate::error::{Error, Result};
use crate::graph::{NodeId, Role};
use crate::intent::{Fua, ZeroFlags};

/// Bytes of a chunk: two make the largest write that an executor gathers, and all of them fit a core's share of cache.
const CHUNK: u64 = 512 << 10;

/// Data of a format is looked at on the host from this length on: an image with preallocated metadata calls everything
/// data, and its file may be one large hole. One question a mebibyte costs nothing beside the copy that it may save.
const HOLES_FROM: u64 = 1 << 20;

/// Bytes of a sector, in which the reference counts the lengths of sources.
const SECTOR: u64 = 512;

/// What to copy, and how.
#[derive(Clone, Debug)]
pub struct Convert {
    /// The nodes, one after the other.
    pub sources: Vec<NodeId>,
    /// Where to.
    pub target: NodeId,
    /// What this node, in the backing chain of the only source, holds, and what lies below it, is left out.
    pub above: Option<NodeId>,
    /// Write clusters in compressed form.
    pub compress: bool,
    /// Bytes of zeros from which they are not written as data; 0: write all data as it is.
    pub sparse: u64,
    /// Chunks in flight.
    pub workers: usize,
    /// Writes need not begin in the order of the disk.
    pub out_of_order: bool,
    /// The target reads as zeros where nothing is written.
    pub target_is_zero: bool,
    /// The target has a backing file: what the sources' own images do not hold is left out.
    pub target_has_backing: bool,
    /// Bytes that show through the target's backing file; what lies beyond is written.
    pub backing_len: u64,
    /// Let the host copy what both sides hold as it is.
    pub copy_range: bool,
    /// Sectors that cannot be read become zeros, and whoever waits hears of each.
    pub salvage: bool,
    /// Bytes a second at the most; 0 for no limit.
    pub rate: u64,
    /// What the progress counts.
    pub count: Count,
}

/// What the progress of a conversion counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Bytes of the disk that are dealt with.
    Disk,
    /// Bytes of data that workers have taken on, in pieces of 2 MiB or a compressed cluster. This is what the reference
    /// counts; it costs one more walk through the metadata.
    Data,
}

/// How long a worker sleeps at once for the rate's sake.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// Bytes of a piece for [`Count::Data`].
const PIECE: u64 = 2 << 20;

/// What is to be done with a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
    /// Shows through the backing file of the target.
    Backing,
}

/// A range of the disk that is alike all over.
struct Run {
    range: Range<u64>,
    /// Where it began, before chunks were taken from it.
    begun: u64,
    kind: Kind,
    /// Where the host holds its first byte as it is.
    place: Option<(NodeId, u64)>,
}

struct State<'a> {
    io: &'a Io,
    plan: &'a Convert,
    /// Start of each source on the disk, and the end of the last one.
    starts: Vec<u64>,
    chunk: u64,
    /// The run that chunks are taken from.
    run: RefCell<Run>,
    walking: Gate,
    /// One worker at a time waits for the rate, so that it holds for all of them.
    pacing: Gate,
    /// Bytes that are yet to be waited for.
    owed: Cell<u64>,
    /// Where the next write begins; the turn goes from chunk to chunk.
    turn: Cell<u64>,
    turned: WaitList,
    done: Cell<u64>,
    /// Bytes that the progress counts in all.
    countable: Cell<u64>,
    /// A worker failed: the others stop.
    failed: Cell<bool>,
    progress: Progress,
    stop: &'a dyn Fn() -> bool,
    lost: &'a dyn Fn(&Stopped),
}

/// Copies; the target is flushed at the end. Once `stop` says so, what is in flight is finished, nothing more is begun,
/// and the error is [`Error::Cancelled`]. `lost` hears of each sector that a plan which salvages could not read, or could not
/// learn the status of, and goes on from.
///
/// # Errors
/// The first failure; what is in flight then is waited for.
pub async fn convert(
    io: &Io,
    plan: &Convert,
    progress: Progress,
    stop: &dyn Fn() -> bool,
    lost: &dyn Fn(&Stopped),
) -> Result<(), Stopped> {
    // A source begins at a sector; what the one before it lacks up to there reads as zeros.
    let (mut starts, mut end) = (Vec::new(), 0u64);
    for source in &plan.sources {
        starts.push(end.next_multiple_of(SECTOR));
        end = end.next_multiple_of(SECTOR) + io.len(*source);
    }
    // The last sector of a target is written whole, too.
    starts.push(end.next_multiple_of(SECTOR).min(io.len(plan.target)).max(end));
    let unit = io.granularity(plan.target);
    let state = State {
        io,
        plan,
        chunk: plan.chunk(unit.max(1)),
        starts,
        run: RefCell::new(Run { range: 0..0, begun: 0, kind: Kind::Zero, place: None }),
        walking: Gate::default(),
        pacing: Gate::default(),
        owed: Cell::new(0),
        turn: Cell::new(0),
        turned: WaitList::default(),
        done: Cell::new(0),
        countable: Cell::new(0),
        failed: Cell::new(false),
        progress,
        stop,
        lost,
    };
    state.countable.set(match plan.count {
        Count::Disk => state.total(),
        Count::Data => state.data_len().await?,
    });
    (state.progress)(0, state.countable.get().max(1));
    let results = join_all((0..plan.workers.max(1)).map(|_| state.work())).await;
    results.into_iter().collect::<Result<(), Stopped>>()?;
    (state.progress)(1, 1);
    io.flush("convert/flush", plan.target).await.map_err(Doing::Flush.failed(0, state.total()))
}

impl Convert {
    /// Bytes of a chunk, where the target allocates `unit` at a time: whole units, where a part of one has the rest copied
    /// from below. Where nothing is below, larger units are filled chunk by chunk, and only the first finds them
    /// unallocated.
    fn chunk(&self, unit: u64) -> u64 {
        let copies_rest = self.target_has_backing || self.above.is_some();
        match (self.compress, copies_rest) {
            (true, _) => unit,
            (false, false) if unit.is_multiple_of(CHUNK) => CHUNK,
            (false, _) => CHUNK.next_multiple_of(unit),
        }
    }
}

/// The status of what no source holds.
fn nothing(len: u64) -> Status {
    Status { len, allocated: true, zero: true, data: false, compressed: false, depth: 0, place: None }
}

impl State<'_> {
    fn total(&self) -> u64 {
        *self.starts.last().expect("one at least")
    }

    async fn work(&self) -> Result<(), Stopped> {
        let nodes: Vec<NodeId> =
            [self.plan.target].into_iter().chain(self.plan.sources.iter().copied()).collect();
        let mut buf = self.io.buffer(&nodes, self.chunk as usize);
        while !self.failed.get() {
            self.go_on()?;
            let Some(run) = self.next_chunk().await? else { return Ok(()) };
            let (start, end) = (run.range.start, run.range.end);
            let kind = run.kind;
            if self.plan.rate > 0 && kind == Kind::Data {
                self.pace(end - start).await?;
            }
            let result = self.copy(&mut buf, run).await;
            // The turn passes on even after a failure: others must not wait for it.
            self.pass_turn(end);
            if let Err(error) = result {
                self.failed.set(true);
                self.turned.notify(&self.io.shared().tasks);
                return Err(error);
            }
            if self.plan.count == Count::Disk {
                self.did(end - start);
            }
        }
        Ok(())
    }

    /// Waits for the time that data before this took by the rate; nothing is waited for after the last.
    async fn pace(&self, len: u64) -> Result<(), Stopped> {
        let _all_together = self.pacing.enter(&self.io.shared().tasks).await;
        let nanoseconds = u128::from(self.owed.replace(len)) * 1_000_000_000 / u128::from(self.plan.rate);
        self.rest(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))).await
    }

    /// Sleeps, and looks up now and then.
    async fn rest(&self, duration: Duration) -> Result<(), Stopped> {
        let mut left = duration;
        while !left.is_zero() && !self.failed.get() {
            let part = left.min(LOOK_UP_EVERY);
            self.io.sleep(part).await;
            left -= part;
            self.go_on()?;
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), Stopped> {
        if !(self.stop)() {
            return Ok(());
        }
        self.failed.set(true);
        self.turned.notify(&self.io.shared().tasks);
        Err(Doing::Write.failed(0, self.done.get())(Box::new(Error::Cancelled)))
    }

    /// The next chunk of data, or the next whole range of anything else.
    async fn next_chunk(&self) -> Result<Option<Run>, Stopped> {
        let _one_at_a_time = self.walking.enter(&self.io.shared().tasks).await;
        let (at, left) = {
            let run = self.run.borrow();
            (run.range.start, !run.range.is_empty())
        };
        if at >= self.total() {
            return Ok(None);
        }
        if !left {
            let run = self.status(at).await.inspect_err(|_| self.failed.set(true))?;
            *self.run.borrow_mut() = run;
        }
        let mut run = self.run.borrow_mut();
        let run_end = run.range.end;
        let end = match run.kind {
            Kind::Data => run.range.end.min((at / self.chunk + 1) * self.chunk),
            Kind::Zero | Kind::Backing => run.range.end,
        };
        run.range.start = end;
        if run.range.is_empty() {
            run.range = end..end;
        }
        let place = run.place;
        run.place = place.map(|(leaf, offset)| (leaf, offset + (end - at)));
        if self.plan.count == Count::Data && run.kind == Kind::Data {
            let piece = if self.plan.compress { self.chunk } else { PIECE };
            // The first piece that begins here: one that began before is counted already.
            let mut next = run.begun + (at - run.begun).next_multiple_of(piece);
            while next < end {
                self.did(piece.min(run_end - next));
                next += piece;
            }
        }
        Ok(Some(Run { range: at..end, begun: at, kind: run.kind, place }))
    }

    fn did(&self, len: u64) {
        self.done.set(self.done.get() + len);
        (self.progress)(self.done.get(), self.countable.get());
    }

    /// Bytes of data on the disk.
    async fn data_len(&self) -> Result<u64, Stopped> {
        let (mut at, mut len) = (0, 0);
        while at < self.total() {
            let Run { range, kind, .. } = self.status(at).await?;
            if kind == Kind::Data {
                len += range.end - at;
            }
            at = range.end;
        }
        Ok(len)
    }

    /// Source that holds a byte of the disk, the byte's place in it, and the bytes from there to its end; none where the
    /// next source has not begun yet.
    fn source_at(&self, at: u64) -> (NodeId, u64, u64) {
        let index = self.starts.partition_point(|start| *start <= at) - 1;
        let (source, offset) = (self.plan.sources[index], at - self.starts[index]);
        (source, offset, self.io.len(source).saturating_sub(offset))
    }

    async fn status(&self, at: u64) -> Result<Run, Stopped> {
        let (source, offset, len) = self.source_at(at);
        if let Some(base) = self.plan.above {
            let found = above(self.io, source, base, offset, len).await;
            let (len, above) = found.map_err(Doing::Status.failed(0, offset))?;
            let kind = match above {
                Above::Data => Kind::Data,
                Above::Zero => Kind::Zero,
                Above::Nothing => Kind::Backing,
            };
            return Ok(Run { range: at..at + len, begun: at, kind, place: None });
        }
        let only_top = self.plan.target_has_backing;
        let base = if only_top { self.backing_of(source) } else { None };
        // Bytes that a backing file may show, of the source as of the target; beyond either, nothing is zeros.
        let base_end = at + base.map_or(0, |base| self.io.len(base).saturating_sub(offset));
        let backed_end = base_end.min(self.plan.backing_len);
        let status = match len {
            0 => Ok(nothing(at.next_multiple_of(SECTOR) - at)),
            _ => self.io.status(source, offset, len, base).await,
        };
        let status = match status {
            Ok(status) => status,
            Err(error) if self.plan.salvage => self.untold((source, base), (offset, len), error).await,
            Err(error) => return Err(Doing::Status.failed(0, offset)(error)),
        };
        let status = self.without_holes(source, status).await;
        let kind = match &status {
            _ if !status.allocated && at < backed_end => Kind::Backing,
            // Who wants no sparse target has zeros written like anything else.
            status if status.zero && self.plan.sparse > 0 => Kind::Zero,
            _ => Kind::Data,
        };
        let mut end = at + status.len;
        if kind == Kind::Backing {
            end = end.min(backed_end);
        }
        if self.plan.compress && end < self.total() {
            // A compressed cluster is written whole: a cluster with any data in it counts as data.
            let whole = end - end % self.chunk;
            if whole <= at {
                let end = ((at / self.chunk + 1) * self.chunk).min(self.total());
                return Ok(Run { range: at..end, begun: at, kind: Kind::Data, place: None });
            }
            end = whole;
        }
        Ok(Run { range: at..end, begun: at, kind, place: status.place })
    }

    /// The status of a range that begins with a sector which has none, because of `error`: as many such sectors as a chunk
    /// has at the most, and reading will tell what is in them. A cluster that is to be compressed is asked for once.
    async fn untold(
        &self,
        (source, base): (NodeId, Option<NodeId>),
        (offset, len): (u64, u64),
        error: Box<Error>,
    ) -> Status {
        let most = len.min(self.chunk);
        let step = if self.plan.compress { self.chunk } else { SECTOR };
        let (mut known, mut error) = (0, error);
        loop {
            (self.lost)(&Doing::Status.failed(0, offset + known)(error));
            known = (known + step).min(most);
            if known == most || (self.stop)() {
                break;
            }
            match self.io.status(source, offset + known, most - known, base).await {
                Ok(_) => break,
                Err(next) => error = next,
            }
        }
        Status {
            len: known,
            allocated: true,
            zero: false,
            data: true,
            compressed: false,
            depth: 0,
            place: None,
        }
    }

    /// The backing file of a source, or of the image below the filters that it is.
    fn backing_of(&self, source: NodeId) -> Option<NodeId> {
        let mut image = source;
        while self.io.driver(image).is_some_and(|driver| driver.is_filter()) {
            image = self.io.edge(image, Role::File)?;
        }
        self.io.edge(image, Role::Backing)
    }

    /// Tells holes of the host's file from data, for a format that does not ask the host itself.
    async fn without_holes(&self, source: NodeId, status: Status) -> Status {
        let asked_already = self.io.driver(source).is_none_or(|driver| driver.is_filter());
        let Some((leaf, offset)) = status.place else { return status };
        if asked_already || status.zero || !status.data || status.len < HOLES_FROM {
            return status;
        }
        match self.io.status(leaf, offset, status.len, None).await {
            Ok(below) => Status { len: below.len, zero: below.zero, ..status },
            // Reading will tell.
            Err(_) => status,
        }
    }

    async fn copy(&self, buf: &mut Buf, run: Run) -> Result<(), Stopped> {
        let (reading, writing) =
            (Doing::Read.failed(0, run.range.start), Doing::Write.failed(0, run.range.start));
        match run.kind {
            Kind::Backing => {
                self.wait_turn(run.range.start).await;
                Ok(())
            }
            Kind::Zero => {
                self.wait_turn(run.range.start).await;
                self.write_zeroes(run.range).await.map_err(writing)
            }
            Kind::Data => {
                let mut run = run;
                if self.plan.copy_range && self.copied(&mut run).await.map_err(&writing)? {
                    return Ok(());
                }
                let mut data = std::mem::take(buf);
                let spare = data.split_off((run.range.end - run.range.start) as usize);
                let (data, result) = self.read(data, run.range.start).await;
                let (mut data, result) = match result {
                    Ok(()) => {
                        let (data, result) = self.write(data, run.range).await;
                        (data, result.map_err(writing))
                    }
                    Err(error) => (data, Err(reading(error))),
                };
                data.append(spare.into());
                *buf = data.into_single();
                result
            }
        }
    }

    /// Lets the host copy as much of a run as it can, and says whether that is all of it.
    async fn copied(&self, run: &mut Run) -> Result<bool> {
        while let Some((leaf, offset)) = run.place
            && !run.range.is_empty()
        {
            let (at, len) = (run.range.start, run.range.end - run.range.start);
            let to = (self.plan.target, at);
            let moved = self.io.copy_range("convert/copy_range", (leaf, offset), to, len).await?;
            if moved == 0 {
                break;
            }
            run.range.start += moved;
            run.place = Some((leaf, offset + moved));
        }
        Ok(run.range.is_empty())
    }

    async fn read(&self, data: Buf, at: u64) -> (BufList, Result<()>) {
        let (mut rest, mut done) = (BufList::from(data), BufList::new());
        let mut at = at;
        while !rest.is_empty() {
            let (source, offset, left) = self.source_at(at);
            let end = if left > 0 { at + left } else { at.next_multiple_of(SECTOR) };
            let len = (rest.len_bytes() as u64).min(end - at);
            let mut part = rest.split_to(len as usize);
            let mut result = Ok(());
            if left > 0 {
                (part, result) = self.io.read("convert/read", source, offset, part).await;
            } else {
                part.zero_from(0);
            }
            match result {
                Err(_) if self.plan.salvage => part = self.salvaged(part, source, offset).await,
                Err(error) => {
                    done.append(part);
                    done.append(rest);
                    return (done, Err(error));
                }
                Ok(()) => {}
            }
            done.append(part);
            at += len;
        }
        (done, Ok(()))
    }

    /// Reads sector by sector what could not be read as a whole; a sector that cannot be read is zeros.
    async fn salvaged(&self, data: BufList, source: NodeId, offset: u64) -> BufList {
        let (mut rest, mut done) = (data, BufList::new());
        while !rest.is_empty() {
            let before = done.len_bytes() as u64;
            let len = SECTOR.min(rest.len_bytes() as u64);
            let mut sector = rest.split_to(len as usize);
            if (self.stop)() {
                // Nobody waits for the copy any more, and a sector may take a dying disk long.
                sector.zero_from(0);
                done.append(sector);
                continue;
            }
            let (mut sector, result) = self.io.read("convert/salvage", source, offset + before, sector).await;
            if let Err(error) = result {
                (self.lost)(&Doing::Read.failed(0, offset + before)(error));
                sector.zero_from(0);
            }
            done.append(sector);
        }
        done
    }

    async fn write(&self, data: BufList, range: Range<u64>) -> (BufList, Result<()>) {
        if self.plan.out_of_order || self.plan.compress {
            return self.write_parts(data, range, &|| {}).await;
        }
        self.wait_turn(range.start).await;
        let end = range.end;
        // Once the first write has begun, the next chunk's may.
        self.write_parts(data, range, &|| self.pass_turn(end)).await
    }

    /// Writes the parts of a chunk that are not zeros; `begun` is called once the last of them is on its way.
    async fn write_parts(&self, data: BufList, range: Range<u64>, begun: &dyn Fn()) -> (BufList, Result<()>) {
        let (mut rest, mut done) = (data, BufList::new());
        let mut at = range.start;
        let mut result = Ok(());
        while !rest.is_empty() && result.is_ok() {
            let (len, zero) = self.alike(&rest, at);
            let part = rest.split_to(len as usize);
            let last = rest.is_empty();
            let written = async {
                if zero {
                    (part, self.write_zeroes(at..at + len).await)
                } else if self.plan.compress {
                    self.io.write_compressed("convert/write", self.plan.target, at, part).await
                } else {
                    self.io.write("convert/write", self.plan.target, at, part, Fua::No).await
                }
            };
            let ((part, written), ()) = join(written, async {
                if last {
                    begun();
                }
            })
            .await;
            done.append(part);
            at += len;
            result = written;
        }
        done.append(rest);
        (done, result)
    }

    /// How many bytes at the start of `data`, which is for `at`, are zeros, or are not.
    fn alike(&self, data: &BufList, at: u64) -> (u64, bool) {
        let len = data.len_bytes() as u64;
        if self.plan.sparse == 0 {
            return (len, false);
        }
        let unit = if self.plan.compress { self.chunk } else { self.io.granularity(self.plan.target) };
        let grain = self.plan.sparse.max(unit);
        let [window] = data.windows() else { return (len, data.is_zero()) };
        let mut end = 0;
        let mut kind = None;
        while end < len {
            let next = (grain - (at + end) % grain).min(len - end);
            let zero = is_zero(&window[end as usize..(end + next) as usize]);
            if *kind.get_or_insert(zero) != zero {
                break;
            }
            end += next;
        }
        (end, kind == Some(true))
    }

    async fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        let mut range = range;
        if self.plan.target_is_zero {
            // What shows through the backing file ends there.
            let shown = if self.plan.target_has_backing { self.plan.backing_len } else { 0 };
            range.end = range.end.min(shown);
        }
        if range.is_empty() {
            return Ok(());
        }
        let flags = ZeroFlags { may_unmap: true, no_fallback: false };
        let len = range.end - range.start;
        self.io.write_zeroes("convert/zero", self.plan.target, range.start, len, flags).await
    }

    async fn wait_turn(&self, start: u64) {
        if self.plan.out_of_order || self.plan.compress {
            return;
        }
        let mine = || (self.turn.get() >= start || self.failed.get()).then_some(());
        self.turned.wait(&self.io.shared().tasks, mine).await;
    }

    fn pass_turn(&self, end: u64) {
        if self.turn.get() < end {
            self.turn.set(end);
            self.turned.notify(&self.io.shared().tasks);
        }
    }
}
