//! Repairs of qcow2 images: a check that puts right what it finds, and an image that is repaired because it is opened for writing.

use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::{Error, Result};
use drystone_core::format::qcow2::check::Repair;
use drystone_core::format::qcow2::{CreateOptions, NewSnapshot};
use drystone_core::format::{CheckReport, check, repair};
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::job::create_snapshot;

use super::super::{look, qcow2, straight};
use super::{Guest, KIB, Operation, TOP};
use crate::cases::WRITABLE;
use crate::sparse::Sparse;
use crate::world::World;

const CLUSTER: u64 = 512;

/// Bit of an entry: the refcount is one.
const COPIED: u64 = 1 << 63;
/// Bit of an entry: it reads as zeros, whatever it names.
const ZERO: u64 = 1;
/// Bits of an entry that are its place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// The last byte of the incompatible bits, and those that say that the image is dirty or corrupt.
const INCOMPATIBLE: usize = 79;
const MARKED: u8 = 3;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    vec![
        on("leaks are repaired", |image| {
            let (entry, beyond) = (image.l2_entry(1), image.end() + 3);
            image.set(entry, image.word(entry) & !COPIED);
            image.count_of_entry(1, 2);
            image.count(beyond, 1);
        })
        .damaged()
        .opening_it_itself()
        .doing(|guest| async move { repaired(&guest, Repair::Leaks).await }),
        on("errors are repaired", |image| {
            let (l1, flag, beyond) = (image.word(40), image.l2_entry(3), image.end() + 3);
            image.set(l1, image.word(l1) & !COPIED);
            image.set(flag, image.word(flag) & !COPIED);
            image.count_of_entry(0, 0);
            image.count(beyond, 1);
        })
        .damaged()
        .opening_it_itself()
        .doing(|guest| async move { repaired(&guest, Repair::All).await }),
        on("shared clusters are repaired", |image| {
            let (entry, other) = (image.l2_entry(0), image.l2_entry(20));
            image.set(other, image.word(entry));
        })
        .damaged()
        .opening_it_itself()
        .doing(|guest| async move { repaired(&guest, Repair::All).await }),
        on("lost refcounts are rebuilt", |image| {
            let table = image.word(48);
            image.set(table, 0);
        })
        .damaged()
        .opening_it_itself()
        .doing(|guest| async move { repaired(&guest, Repair::All).await }),
        snapshotted("an incomplete snapshot table is repaired", |image| {
            let at = image.word(64);
            let extra = u64::from(image.word(at + 32) as u32);
            let names = image.0.bytes(at + 40 + extra, 4);
            image.0.write(at + 36, &[0; 4]);
            image.0.write(at + 40, &names);
            image.0.write(at + 44, &vec![0; extra as usize]);
        })
        .damaged()
        .opening_it_itself()
        // Where it cannot be told what is a hole, all is read.
        .making_do_without("block_status")
        .doing(|guest| async move { repaired(&guest, Repair::All).await }),
        misplaced("a misplaced entry of a snapshot is repaired")
            .damaged()
            .opening_it_itself()
            // Where it cannot be told what is a hole, all is read.
            .making_do_without("block_status")
            .doing(|guest| async move { repaired(&guest, Repair::All).await }),
        on("a dirty image is opened", |image| {
            image.count_of_entry(0, 0);
            image.0.write(INCOMPATIBLE as u64, &[1]);
        })
        .damaged()
        .holding(|world| match is_marked(world) {
            true => Ok(()),
            false => look(world.clone(), spec("qcow2", false))
                .map(drop)
                .map_err(|why| format!("not marked: {why}")),
        })
        .doing(|guest| async move {
            guest.is_mended();
            guest.write(2 * KIB, KIB).await?;
            guest.flush().await
        }),
    ]
}

fn on(name: &'static str, damage: impl FnOnce(&mut Image)) -> Operation {
    written(name).patched(patch(damage))
}

/// The same, on an image with the snapshot `one`.
fn snapshotted(name: &'static str, damage: impl FnOnce(&mut Image)) -> Operation {
    let taken = written(name).after(|guest| async move {
        let new = NewSnapshot { name: "one".into(), ..NewSnapshot::default() };
        create_snapshot(&guest.io(), guest.node(), &new).await.map(drop)
    });
    taken.patched(patch(damage))
}

/// An image of larger clusters, in whose snapshot an entry for zeros names a place between two clusters: both count it.
fn misplaced(name: &'static str) -> Operation {
    const LARGER: u64 = 2 * CLUSTER;
    let options = CreateOptions { cluster_size: LARGER, ..CreateOptions::new(32 * KIB) };
    let image = Operation::new(name, "qcow2", qcow2(&options));
    let taken = image.after(|guest| async move { guest.write(0, 4 * KIB).await }).after(|guest| async move {
        let new = NewSnapshot { name: "one".into(), ..NewSnapshot::default() };
        create_snapshot(&guest.io(), guest.node(), &new).await?;
        // From here on the snapshot has an L2 table of its own.
        guest.write(0, KIB).await
    });
    taken.patched(patch(|image| {
        let l1 = image.word(image.word(64));
        let entry = (image.word(l1) & PLACE) + 8 * 2;
        let at = image.word(entry) & PLACE;
        image.set(entry, (at + LARGER / 2) | ZERO);
        let next = at / LARGER + 1;
        image.count(next, image.counted(next) + 1);
    }))
}

fn written(name: &'static str) -> Operation {
    let options = CreateOptions { cluster_size: CLUSTER, ..CreateOptions::new(32 * KIB) };
    Operation::new(name, "qcow2", qcow2(&options)).after(|guest| async move { guest.write(0, 4 * KIB).await })
}

fn patch(damage: impl FnOnce(&mut Image)) -> impl FnOnce(&mut World) {
    |world| {
        let disk = world.disk(TOP).expect("it was made");
        let (mut image, config) = (Image(disk.view().clone()), disk.config.clone());
        damage(&mut image);
        world.add_disk(TOP, config, image.0);
    }
}

/// Opens the image, has it repaired, and wants nothing that could be repaired to be left.
async fn repaired(guest: &Guest, what: Repair) -> Result<()> {
    // What it was repaired to is durable once the repair returns, whatever the close does.
    repair_once(&guest.io(), "qcow2", what, &|| guest.is_mended()).await?;
    let left = repair_once(&guest.io(), "qcow2", what, &|| ()).await?;
    if left.corruptions_fixed + left.leaks_fixed > 0 {
        return Err(Box::new(Error::Options(format!("{TOP}: repaired twice: {left:?}"))));
    }
    Ok(())
}

async fn repair_once(io: &Io, format: &str, what: Repair, durable: &dyn Fn()) -> Result<CheckReport> {
    let node = open(io, &spec(format, true)).await?;
    let report = repair(io, node, what, &mut |_| {}, &|_, _| {}).await;
    if report.as_ref().is_ok_and(|report| report.corruptions + report.check_errors == 0) {
        durable();
    }
    // What could not be checked is found by a check, which says so.
    let after = match report {
        Ok(_) => check(io, node, &mut |_| {}, &|_, _| {}).await,
        Err(_) => Ok(CheckReport::default()),
    };
    let closed = io.close(node).await;
    let (report, after) = (report?, after?);
    closed?;
    match report.check_errors + after.check_errors + after.corruptions {
        0 => Ok(report),
        _ => Err(Box::new(Error::Options(format!("{TOP}: {report:?}, and then {after:?}")))),
    }
}

/// Repairs all that a crash left wrong, wants nothing to be wrong afterwards, and returns what a guest reads.
pub(in super::super) fn mended(world: World, format: &'static str) -> std::result::Result<Buf, String> {
    let (done, world) = straight(world, |io| async move {
        repair_once(&io, format, Repair::All, &|| ()).await?;
        repair_once(&io, format, Repair::All, &|| ()).await
    });
    let left = done.map_err(|error| format!("repairing what is left: {error}"))?;
    match left.corruptions_fixed + left.leaks_fixed {
        0 => look(world, from_filename(TOP, Some(format), OpenMode::default()).expect("a path")),
        _ => Err(format!("repaired, and still: {left:?}")),
    }
}

fn spec(format: &str, writable: bool) -> NodeSpec {
    let mode = OpenMode { writable, ..WRITABLE };
    let mut spec = from_filename(TOP, Some(format), mode).expect("a path");
    if let DriverSpec::Qcow2 { options, .. } = &mut spec.driver {
        options.for_check = true;
    }
    if let DriverSpec::Image { format, .. } = &mut spec.driver {
        format.for_check();
    }
    spec
}

/// Whether the image says of itself that it needs a repair.
fn is_marked(world: &World) -> bool {
    world.export(TOP)[INCOMPATIBLE] & MARKED != 0
}

/// The bytes of an image of version 3, with refcounts of 16 bits and one L2 table.
struct Image(Sparse);

impl Image {
    fn word(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0.bytes(at, 8).try_into().expect("eight bytes"))
    }

    fn set(&mut self, at: u64, word: u64) {
        self.0.write(at, &word.to_be_bytes());
    }

    fn l2_entry(&self, index: u64) -> u64 {
        (self.word(self.word(40)) & PLACE) + 8 * index
    }

    /// The first cluster beyond the end of the file.
    fn end(&self) -> u64 {
        self.0.len().div_ceil(CLUSTER)
    }

    /// Sets the refcount of a cluster.
    fn count(&mut self, cluster: u64, count: u16) {
        self.0.write(self.count_at(cluster), &count.to_be_bytes());
    }

    fn counted(&self, cluster: u64) -> u16 {
        u16::from_be_bytes(self.0.bytes(self.count_at(cluster), 2).try_into().expect("two bytes"))
    }

    fn count_at(&self, cluster: u64) -> u64 {
        (self.word(self.word(48)) & PLACE) + 2 * cluster
    }

    fn count_of_entry(&mut self, index: u64, count: u16) {
        let cluster = (self.word(self.l2_entry(index)) & PLACE) / CLUSTER;
        self.count(cluster, count);
    }
}
