//! What is done with an image of a format that may be damaged, in bounded steps and memory: it is looked at, written to, closed, and
//! looked at again. Start at [`Usage`].

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::spec_of;
use drystone_conformance::meter::peak_of;
use drystone_conformance::sim::Sim;
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::{Error, Result};
use drystone_core::format::{CheckReport, check};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::intent::Fua;

/// Bytes that are read at each place.
const LOOK: u64 = 4096;

/// Disks up to this length are read from their beginning to their end.
const WHOLE_MAX: u64 = 4 << 20;

/// Bytes of a piece of that.
const PIECE: u64 = 64 << 10;

/// How an image is used, and what that may take.
pub(crate) struct Usage {
    pub format: &'static str,
    /// Whether a unit is written compressed, too.
    pub packs: bool,
    /// Intents that a run may take.
    pub intents_max: u64,
    /// Bytes of memory that it may take.
    pub memory_max: usize,
}

impl Usage {
    /// Uses the image in the file that the world calls [`TOP`]; returns what a check says before and after, or that the image
    /// reads where its format has no check.
    pub fn of(&self, world: World, seed: u64) -> (Result<CheckReport>, Result<CheckReport>) {
        let (reports, peak) = peak_of(|| self.run(world, seed));
        let (before, after) = &reports;
        tell(|| format!("{before:?} {after:?}"));
        let max = self.memory_max;
        assert!(peak <= max, "{peak} bytes of memory to use the image, {max} allowed");
        reports
    }

    fn run(&self, world: World, seed: u64) -> (Result<CheckReport>, Result<CheckReport>) {
        let mut sim = Sim::new(seed, world);
        sim.stop_after = Some(self.intents_max);
        let (format, packs) = (self.format, self.packs);
        let used = sim.run_job(async move |io| {
            let before = looked(&io, format).await;
            if let Ok(node) = open(&io, &spec(format, WRITABLE)).await {
                write(&io, node, packs).await;
                let _ = io.close(node).await;
            }
            (before, looked(&io, format).await)
        });
        assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
        used.unwrap_or_else(|_| panic!("using an image takes more than {} intents", self.intents_max))
    }
}

/// The image, opened in its format; an encrypted one with the secret that it was made with.
pub(crate) fn spec(format: &str, mode: OpenMode) -> NodeSpec {
    let secret = match format {
        "luks" => Some(("key-secret", "key")),
        "qcow2" => Some(("encrypt.key-secret", "key")),
        _ => None,
    };
    spec_of(format, secret, mode)
}

/// Sectors at the start, in the middle and at the end of a disk.
fn places(len: u64) -> impl Iterator<Item = u64> {
    let places = [0, len / 2, len.saturating_sub(512)];
    places.into_iter().filter(move |at| *at < len).map(|at| at / 512 * 512)
}

async fn write(io: &Io, node: NodeId, packs: bool) {
    let len = io.len(node);
    for at in places(len) {
        let _ = io.write("fuzz", node, at, Buf::from(vec![7; 512]), Fua::No).await;
    }
    let unit = io.granularity(node).min(1 << 20);
    if packs && unit <= len {
        let _ = io.write_compressed("fuzz", node, 0, Buf::from(vec![8; unit as usize])).await;
    }
}

/// Checks the image, and reads all of it; of one that claims to be long, a little at the start, in the middle and at the end.
/// Where its format has no check, whether that can be read is all that is told.
pub(crate) async fn looked(io: &Io, format: &str) -> Result<CheckReport> {
    let node = open(io, &spec(format, OpenMode::default())).await?;
    let report = check(io, node, &mut |line| tell(|| line), &|_, _| {}).await;
    let len = io.len(node);
    let mut read = Ok(CheckReport::default());
    let (places, piece): (Vec<u64>, u64) = match len <= WHOLE_MAX {
        true => ((0..len).step_by(PIECE as usize).collect(), PIECE),
        false => (vec![0, len / 2, len - LOOK], LOOK),
    };
    for at in places {
        let bytes = io.read_bytes("fuzz", node, at, (len - at).min(piece) as usize).await;
        read = read.and_then(|report| bytes.map(|_| report));
    }
    io.close(node).await?;
    match report {
        Err(error) if matches!(*error, Error::Unsupported { .. }) => read,
        report => report,
    }
}
