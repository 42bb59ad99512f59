//! Rebase: an image goes on showing the same disk over another backing file.
//!
//! What the image does not hold itself, and what differs between the old backing file and the new one, is copied into the
//! image; then its header may name the new one ([`change_backing`]). Workers take pieces in the order of the disk.

use std::cell::Cell;
use std::ops::Range;

use super::above::{Above, above};
use super::compared::Compared;
use super::{Count, Doing, Progress, Stopped};
use crate::buf::{Buf, BufList, is_zero};
use crate::engine::Io;
use crate::engine::task::{Gate, join, join_all};
use crate::error::{Error, Result};
use crate::format::qcow2::Qcow2;
use crate::format::qed::Qed;
use crate::graph::{NodeId, Role};
use crate::intent::{Fua, ZeroFlags};

/// Bytes of a piece, or a unit of the image where that is larger.
const PIECE: u64 = 1 << 20;

/// Pieces in flight.
const WORKERS: usize = 4;

/// What to rebase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebase {
    /// The image, open for writing, over its old backing file.
    pub image: NodeId,
    /// The new backing file; it may be one of the image's chain. `None`: the image is to stand alone.
    pub backing: Option<NodeId>,
    /// Write what is copied in compressed form.
    pub compress: bool,
    /// What the progress counts. [`Count::Data`]: pieces that the reference compares, of as many as make a whole disk; there
    /// can be more of them.
    pub count: Count,
}

/// Copies into the image what it needs so that it shows the same over the new backing file. Nothing is durable yet.
/// Once `stop` says so, nothing more is begun; what was copied by then changes nothing that a guest sees.
///
/// # Errors
/// The first failure; what is in flight then is waited for.
pub async fn rebase(
    io: &Io,
    plan: &Rebase,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<(), Stopped> {
    let old = io.edge(plan.image, Role::Backing);
    let driver = io.driver(plan.image);
    let unit = match driver {
        Some(driver) if plan.compress => driver.granularity(),
        Some(driver) => driver.zero_granularity(),
        None => 1,
    };
    let (size, shared) = (io.len(plan.image), plan.backing.filter(|new| is_below(io, old, *new)));
    let (at, done) = (Cell::new(0), Cell::new(0));
    let compared = Compared { image: plan.image, old, shared, unit, size, at, done };
    let copy = Copy {
        io,
        plan,
        old,
        shared,
        unit,
        piece: PIECE.next_multiple_of(unit),
        size,
        compared: Some(compared).filter(|_| plan.count == Count::Data),
        at: Cell::new(0),
        walking: Gate::default(),
        failed: Cell::new(false),
        progress,
        stop,
    };
    (copy.progress)(0, copy.size.max(1));
    let ended = join_all((0..WORKERS).map(|_| copy.work())).await;
    ended.into_iter().collect::<Result<(), Stopped>>()?;
    (copy.progress)(1, 1);
    Ok(())
}

/// Makes an image name another backing file, and its format; what the image holds is durable before that.
///
/// # Errors
/// When the format has no backing files, the header has no room for the name, or the leaf fails.
pub async fn change_backing(io: &Io, image: NodeId, backing: Option<(&str, Option<&str>)>) -> Result<()> {
    let driver = io.driver(image);
    let name = driver.as_ref().map_or("file", |driver| driver.name());
    let Some(driver) = driver.filter(|driver| driver.as_any().is::<Qcow2>() || driver.as_any().is::<Qed>())
    else {
        let what = "a backing file";
        return Err(Box::new(Error::Unsupported { node: io.title(image), driver: name, what }));
    };
    let here = io.for_node(image);
    let owned = backing.map(|(name, format)| (name.to_owned(), format.map(str::to_owned)));
    // Goes on to its end even when nobody waits for it any more.
    io.to_end(async move {
        let backing = owned.as_ref().map(|(name, format)| (name.as_str(), format.as_deref()));
        match driver.as_any().downcast_ref::<Qcow2>() {
            Some(qcow2) => qcow2.change_backing(&here, backing).await,
            None => {
                let qed: &Qed = driver.as_any().downcast_ref().expect("looked at before");
                qed.change_backing(&here, backing.map(|(name, format)| (name, format == Some("raw")))).await
            }
        }
    })
    .await
}

/// Whether `image` is one of the chain that begins with `top`.
fn is_below(io: &Io, top: Option<NodeId>, image: NodeId) -> bool {
    let chain = std::iter::successors(top, |image| io.edge(*image, Role::Backing));
    chain.take(crate::graph::CHAIN_MAX).any(|one| one == image)
}

/// A piece of the disk that the image does not hold, and that may differ below it.
struct Piece {
    range: Range<u64>,
    /// Known to read as zeros as it is, and over the new backing file.
    zero_now: bool,
    zero_then: bool,
}

struct Copy<'a> {
    io: &'a Io,
    plan: &'a Rebase,
    old: Option<NodeId>,
    /// The new backing file, where it is in the chain of the old one: what nothing above it holds stays the same.
    shared: Option<NodeId>,
    /// Bytes that are written as a whole.
    unit: u64,
    piece: u64,
    size: u64,
    /// Where the next piece is looked for.
    at: Cell<u64>,
    walking: Gate,
    failed: Cell<bool>,
    compared: Option<Compared>,
    progress: Progress,
    stop: &'a dyn Fn() -> bool,
}

impl Copy<'_> {
    async fn work(&self) -> Result<(), Stopped> {
        let (mut now, mut then) = (Buf::zeroed(self.piece as usize), Buf::zeroed(self.piece as usize));
        let mut result = Ok(());
        while result.is_ok() && !self.failed.get() {
            result = match self.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(piece)) => self.even_out(&piece, &mut now, &mut then).await,
                Err(error) => Err(error),
            };
        }
        if result.is_err() {
            self.failed.set(true);
        }
        result
    }

    /// The next piece that may differ.
    async fn next(&self) -> Result<Option<Piece>, Stopped> {
        let _one_at_a_time = self.walking.enter(&self.io.shared().tasks).await;
        while self.at.get() < self.size {
            let at = self.at.get();
            if (self.stop)() {
                return Err(Doing::Write.failed(0, at)(Box::new(Error::Cancelled)));
            }
            if self.compared.is_none() {
                (self.progress)(at, self.size);
            }
            let (len, piece) = self.look(at).await.map_err(Doing::Status.failed(0, at))?;
            let end = piece.as_ref().map_or(at + len, |piece| piece.range.end);
            self.at.set(end);
            if let Some(compared) = &self.compared {
                let counted = compared.go_to(self.io, end, &*self.progress).await;
                counted.map_err(Doing::Status.failed(0, at))?;
            }
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    /// Whether something is to be done from `at` on, or for how many bytes nothing is.
    async fn look(&self, at: u64) -> Result<(u64, Option<Piece>)> {
        let own = self.io.status(self.plan.image, at, self.size - at, self.old).await?;
        if own.allocated {
            return Ok((own.len, None));
        }
        let mut len = own.len;
        if let (Some(old), Some(new)) = (self.old, self.shared) {
            if old == new {
                return Ok((len, None));
            }
            // Beyond the end of the old backing file there were zeros; the new one may be longer.
            let within = self.io.len(old).saturating_sub(at).min(len);
            if within > 0 {
                let (alike, who) = above(self.io, old, new, at, within).await?;
                len = alike;
                if who == Above::Nothing {
                    return Ok((len, None));
                }
            }
        }
        let (zero_now, now_len) = self.zeros(self.old, at, len).await?;
        let (zero_then, then_len) = self.zeros(self.plan.backing, at, now_len).await?;
        len = then_len;
        if zero_now && zero_then {
            return Ok((len, None));
        }
        let start = at - at % self.unit;
        let end =
            (at + len.min(self.piece)).next_multiple_of(self.unit).min(start + self.piece).min(self.size);
        // What is known holds for the range that was asked about, and not for what fills up its units.
        let exact = start == at && end <= at + len;
        let piece = Piece { range: start..end, zero_now: zero_now && exact, zero_then: zero_then && exact };
        Ok((end - at, Some(piece)))
    }

    /// Whether a backing file is known to read as zeros at `at`, and for how many bytes it is alike.
    async fn zeros(&self, backing: Option<NodeId>, at: u64, len: u64) -> Result<(bool, u64)> {
        match backing {
            Some(backing) if at < self.io.len(backing) => {
                let within = len.min(self.io.len(backing) - at);
                let status = self.io.status(backing, at, within, None).await?;
                Ok((status.zero, status.len))
            }
            _ => Ok((true, len)),
        }
    }

    /// Writes into the image what a guest sees now and would not see then.
    async fn even_out(&self, piece: &Piece, now: &mut Buf, then: &mut Buf) -> Result<(), Stopped> {
        let start = piece.range.start;
        let len = (piece.range.end - start) as usize;
        let (is, would_be) = join(
            self.read((!piece.zero_now).then_some(self.plan.image), start, now, len),
            self.read(self.plan.backing.filter(|_| !piece.zero_then), start, then, len),
        )
        .await;
        is.and(would_be).map_err(Doing::Read.failed(0, start))?;
        let mut whole = std::mem::take(now);
        let spare = whole.split_off(len);
        let (mut rest, mut done) = (BufList::from(whole), BufList::new());
        let (mut at, mut result) = (start, Ok(()));
        while !rest.is_empty() && result.is_ok() {
            let (len, kind) = self.alike(&rest, &then[(at - start) as usize..]);
            let part = rest.split_to(len);
            let (part, written) = self.write(at, part, kind).await;
            result = written.map_err(Doing::Write.failed(0, at));
            done.append(part);
            at += len as u64;
        }
        done.append(rest);
        done.append(spare.into());
        *now = done.into_single();
        result
    }

    async fn read(&self, node: Option<NodeId>, at: u64, buf: &mut Buf, len: usize) -> Result<()> {
        let Some(node) = node else {
            buf[..len].fill(0);
            return Ok(());
        };
        let mut whole = std::mem::take(buf);
        let spare = whole.split_off(len);
        let (mut data, result) = self.io.read("rebase/read", node, at, whole).await;
        data.append(spare.into());
        *buf = data.into_single();
        result
    }

    /// How many bytes at the start are to be treated alike, and how.
    fn alike(&self, now: &BufList, then: &[u8]) -> (usize, Kind) {
        let [now] = now.windows() else { unreachable!("a read gives its buffer back whole") };
        let kind_of = |range: Range<usize>| match &now[range.clone()] {
            bytes if *bytes == then[range] => Kind::Same,
            bytes if is_zero(bytes) => Kind::Zero,
            _ => Kind::Data,
        };
        let unit = self.unit as usize;
        let unit_at = |at: usize| at..(at + unit).min(now.len());
        let kind = kind_of(unit_at(0));
        let mut len = unit_at(0).end;
        while len < now.len() && kind_of(unit_at(len)) == kind {
            len = unit_at(len).end;
        }
        (len, kind)
    }

    async fn write(&self, at: u64, data: BufList, kind: Kind) -> (BufList, Result<()>) {
        let (io, image) = (self.io, self.plan.image);
        match kind {
            Kind::Same => (data, Ok(())),
            Kind::Zero => {
                let flags = ZeroFlags { may_unmap: true, no_fallback: false };
                let zeroed = io.write_zeroes("rebase/zero", image, at, data.len_bytes() as u64, flags).await;
                (data, zeroed)
            }
            Kind::Data if self.plan.compress => io.write_compressed("rebase/write", image, at, data).await,
            Kind::Data => io.write("rebase/write", image, at, data, Fua::No).await,
        }
    }
}

/// What is to be done with a run of units.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    Zero,
    Data,
}
