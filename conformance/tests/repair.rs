//! Repairs of damaged qcow2 images, themselves struck by power cuts and faults at every intent.

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::disk::Survival;
use drystone_conformance::fault::{Effect, Fault, Faults};
use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::error::Result;
use drystone_core::format::qcow2::check::{CheckReport, Repair, check, repair};
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Errno;

const TOP: &str = "disk.qcow2";
const COPIED: u64 = 1 << 63;
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// An image that QEMU made, and what is wrong with it.
struct Damaged {
    name: &'static str,
    world: World,
}

#[test]
fn a_crash_anywhere_in_a_repair_makes_nothing_worse() {
    for damaged in all() {
        let before = too_low(&damaged.world);
        let (intents, sound) = repaired(&damaged.world);
        let guest = content(&sound);
        let mut cuts = 0;
        for stop in 0..=intents {
            let mut sim = Sim::new(stop, damaged.world.clone());
            sim.stop_after = Some(stop);
            let _ = sim.run_job(async |io| {
                let node = open(&io, &for_check(true)).await?;
                let report = repair(&io, node, Repair::All, &mut |_| {}, &|_, _| {}).await;
                io.close(node).await?;
                report
            });
            let survivals =
                [Survival::Nothing, Survival::Everything, Survival::Seed(stop), Survival::Seed(!stop)];
            for survival in survivals {
                let left = sim.after_crash(survival);
                let name = format!("{}, cut after {stop}, {survival:?} survives", damaged.name);
                let now = too_low(&left);
                assert!(now <= before, "{name}: {before} refcounts were too low, now {now} are");
                let (_, again) = repaired(&left);
                assert_eq!(content(&again), guest, "{name}: the guest's disk");
                cuts += 1;
            }
        }
        assert!(cuts > 40, "{}: only {cuts} power cuts", damaged.name);
        in_order(&sound, damaged.name);
    }
}

#[test]
fn a_fault_anywhere_in_a_repair_is_told_and_makes_nothing_worse() {
    for damaged in all() {
        let before = too_low(&damaged.world);
        let (_, sound) = repaired(&damaged.world);
        let guest = content(&sound);
        for errno in [Errno::EIO, Errno::ENOSPC] {
            let mut nth = 0;
            loop {
                let mut sim = Sim::new(nth, damaged.world.clone());
                sim.faults =
                    Faults { rules: vec![Fault::nth(nth, Effect::Fail(errno))], ..Faults::default() };
                let result: Result<CheckReport> = sim
                    .run_job(async |io| {
                        let node = open(&io, &for_check(true)).await?;
                        let report = repair(&io, node, Repair::All, &mut |_| {}, &|_, _| {}).await;
                        let closed = io.close(node).await;
                        report.and_then(|report| closed.map(|()| report))
                    })
                    .expect("the power stays on");
                sim.run_until_idle().expect("the power stays on");
                let struck = !sim.faults.struck.is_empty();
                let left = sim.into_world();
                let name = format!("{}: {errno:?} at intent {nth}: {result:?}", damaged.name);
                let now = too_low(&left);
                assert!(now <= before, "{name}: {before} refcounts were too low, now {now} are");
                assert_eq!(content(&repaired(&left).1), guest, "{name}: the guest's disk");
                if !struck {
                    result.unwrap_or_else(|error| panic!("{name}: {error}"));
                    break;
                }
                nth += 1;
            }
            assert!(nth > 10, "{}: only {nth} faults", damaged.name);
        }
    }
}

fn for_check(writable: bool) -> NodeSpec {
    let mode = OpenMode { writable, ..WRITABLE };
    let mut spec = from_filename(TOP, Some("qcow2"), mode).expect("legal");
    if let DriverSpec::Qcow2 { options, .. } = &mut spec.driver {
        options.for_check = true;
    }
    spec
}

fn checked(world: &World) -> (CheckReport, Vec<String>) {
    let report = Sim::new(7, world.clone()).run_job(async |io| {
        let node = open(&io, &for_check(false)).await?;
        let mut lines = Vec::new();
        let report = check(&io, node, &mut |line| lines.push(line), &|_, _| {}).await;
        io.close(node).await?;
        report.map(|report| (report, lines))
    });
    report.expect("the power stays on").expect("can be checked")
}

/// Clusters whose refcount is lower than the number of references.
fn too_low(world: &World) -> usize {
    checked(world).1.iter().filter(|line| line.starts_with("ERROR cluster ")).count()
}

/// Repairs all, which leaves nothing to repair; returns the intents that it took.
fn repaired(world: &World) -> (u64, World) {
    let mut sim = Sim::new(3, world.clone());
    let report = sim.run_job(async |io| {
        let node = open(&io, &for_check(true)).await?;
        let report = repair(&io, node, Repair::All, &mut |_| {}, &|_, _| {}).await;
        io.close(node).await?;
        report
    });
    report.expect("the power stays on").expect("can be repaired");
    sim.run_until_idle().expect("the power stays on");
    let (intents, world) = (sim.answered(), sim.into_world());
    let (after, lines) = checked(&world);
    assert_eq!((after.corruptions, after.leaks, after.check_errors), (0, 0, 0), "{lines:?}");
    (intents, world)
}

/// What a guest reads.
fn content(world: &World) -> Vec<u8> {
    let read = Sim::new(5, world.clone()).run_job(async |io| {
        let spec = from_filename(TOP, Some("qcow2"), OpenMode::default())?;
        let node = open(&io, &spec).await?;
        let bytes = io.read_bytes("test/read", node, 0, io.len(node) as usize).await;
        io.close(node).await?;
        bytes.map(|bytes| bytes.to_vec())
    });
    read.expect("the power stays on").expect("can be read")
}

fn in_order(world: &World, name: &str) {
    let folder = Folder::of(world).expect("the host takes it");
    folder.check(TOP, "qcow2", false).unwrap_or_else(|report| panic!("{name}: {report}"));
}

/// Images with every kind of damage that a repair puts right.
fn all() -> Vec<Damaged> {
    let sound = Bytes::make();
    let case = |name, damage: &dyn Fn(&mut Bytes)| {
        let mut bytes = sound.clone();
        damage(&mut bytes);
        let mut world = World::new();
        world.add_file(TOP, &bytes.0);
        Damaged { name, world }
    };
    vec![
        case("leaks", &|b| b.count(60, 3)),
        case("refcounts too low, and shared clusters", &|b| {
            let (entry, other) = (b.l2_entry(0), b.l2_entry(100));
            let shared = b.word(entry);
            b.set(other, shared);
        }),
        case("flags", &|b| {
            let (l1, entry) = (b.word(40), b.l2_entry(3));
            b.set(l1, b.word(l1) & !COPIED);
            b.set(entry, b.word(entry) & !COPIED);
        }),
        case("a misaligned cluster of zeros", &|b| {
            let entry = b.l2_entry(4);
            b.set(entry, b.word(entry) | 0x201);
        }),
        case("a refcount of zero, and the dirty bit", &|b| {
            b.count(8, 0);
            b.0[79] |= 1;
        }),
        case("no refcount block", &|b| b.set(b.word(48), 0)),
        case("no refcount table", &|b| b.0[56..60].fill(0)),
        case("an incomplete entry of the snapshot table, and the corrupt bit", &|b| {
            let at = b.word(64) as usize;
            let entry = b.0[at..at + 80].to_vec();
            b.0[at + 36..at + 40].fill(0);
            b.0[at + 40..at + 80].fill(0);
            // One byte of id, three of name.
            b.0[at + 40..at + 44].copy_from_slice(&entry[64..68]);
            b.0[79] |= 2;
        }),
    ]
}

#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn make() -> Self {
        let folder = Folder::new();
        let run = |line: &[&str]| folder.run(line).unwrap_or_else(|report| panic!("{report}"));
        run(&["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", TOP, "1M"]);
        run(&["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -P 2 512k 32k", TOP]);
        run(&["qemu-img", "snapshot", "-c", "one", TOP]);
        run(&["qemu-io", "-f", "qcow2", "-c", "write -P 3 0 32k", TOP]);
        Self(std::fs::read(folder.path().join(TOP)).expect("it was just made"))
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0[at as usize..][..8].try_into().expect("eight bytes"))
    }

    fn set(&mut self, at: u64, word: u64) {
        self.0[at as usize..][..8].copy_from_slice(&word.to_be_bytes());
    }

    fn l2_entry(&self, index: u64) -> u64 {
        (self.word(self.word(40)) & PLACE) + 8 * index
    }

    /// Sets the refcount of a cluster.
    fn count(&mut self, cluster: u64, count: u16) {
        let block = self.word(self.word(48)) & PLACE;
        self.0[(block + 2 * cluster) as usize..][..2].copy_from_slice(&count.to_be_bytes());
    }
}
