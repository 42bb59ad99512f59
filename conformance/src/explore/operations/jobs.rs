//! Jobs on several images: convert, commit, rebase; and filters that a guest works through.

use std::rc::Rc;

use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{NodeId, Role};
use drystone_core::job::{
    Commit, Convert, Count, ImageSpec, Rebase, change_backing, commit, convert, create, rebase,
};

use super::super::{look, qcow2, qcow2_in, straight};
use super::{Guest, KIB, Operation, TOP, by_qemu};
use crate::cases::{WRITABLE, stones};
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    [converts(), commits(), rebases(), filters()].into_iter().flatten().collect()
}

fn converts() -> Vec<Operation> {
    let source = stones(48 * KIB);
    let mut world = World::new();
    world.add_file("source", &source);
    vec![
        Operation::making("convert", "qcow2", world.clone(), &source)
            .doing(|guest| async move { converted(&guest.io(), false).await }),
        Operation::making("convert, compressed", "qcow2", world, &source)
            .doing(|guest| async move { converted(&guest.io(), true).await }),
    ]
}

fn commits() -> Vec<Operation> {
    let raw = by_qemu(&[
        "qemu-img create -f raw base 12k",
        "qemu-io -f raw -c 'write -P 1 0 12k' base",
        "qemu-img create -f qcow2 -o cluster_size=512 -b base -F raw top 16k",
        "qemu-io -f qcow2 -c 'write -P 4 2k 3k' -c 'write -z 7k 1k' -c 'write -P 5 13k 1k' top",
    ]);
    let mut snapshot = chain(512);
    snapshot = with_snapshot_of_top(snapshot);
    vec![
        Operation::new("commit", "qcow2", chain(512))
            .holding(in_order("middle"))
            .opening_it_itself()
            // What is left of the file of an emptied image is space that nobody refers to.
            .making_do_without("set_len")
            .doing(|guest| async move { committed(&guest, 1).await }),
        Operation::new("commit through a chain", "qcow2", chain(512))
            .holding(in_order("base"))
            .opening_it_itself()
            .doing(|guest| async move { committed(&guest, 2).await }),
        Operation::new("commit into a raw file", "qcow2", raw)
            .opening_it_itself()
            .making_do_without("set_len")
            .doing(|guest| async move { committed(&guest, 1).await }),
        Operation::new("commit of an image with a snapshot", "qcow2", snapshot)
            .holding(in_order("middle"))
            .opening_it_itself()
            .doing(|guest| async move { committed(&guest, 1).await }),
    ]
}

fn rebases() -> Vec<Operation> {
    let onto_nothing = |guest: Guest| async move {
        let plan = Rebase { image: guest.node(), backing: None, compress: true, count: Count::Disk };
        copied(&guest, plan).await?;
        change_backing(&guest.io(), guest.node(), None).await
    };
    let long = long_name();
    let mut named = chain(4096);
    let other = named.disk("other").expect("it was made").clone();
    named.add_disk(&long, other.config.clone(), other.view().clone());
    let shown = shown_over(&named, &long);
    vec![
        Operation::new("rebase", "qcow2", chain(512))
            .doing(|guest| async move { rebased(&guest, "other").await }),
        // The header no longer fits one sector, and is written in several steps.
        Operation::new("rebase, a long name", "qcow2", named.clone()).doing({
            let long = long.clone();
            move |guest| {
                let long = long.clone();
                async move { rebased(&guest, &long).await }
            }
        }),
        Operation::new("rebase, unsafe", "qcow2", named).doing(move |guest| {
            let (long, shown) = (long.clone(), shown.clone());
            async move {
                let (io, node) = (guest.io(), guest.node());
                guest.replace(&shown, change_backing(&io, node, Some((&long, Some("qcow2"))))).await
            }
        }),
        Operation::new("rebase onto nothing, compressed", "qcow2", chain(512)).doing(onto_nothing),
    ]
}

fn filters() -> Vec<Operation> {
    let mut below = World::new();
    below.add_file("base", &stones(24 * KIB));
    let backing = Some(("base".into(), Some("raw".into())));
    let options = CreateOptions { cluster_size: 512, backing, ..CreateOptions::new(32 * KIB) };
    let compressing = CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(32 * KIB) };
    vec![
        Operation::new("copy on read", "qcow2", qcow2_in(below, &options)).through("copy-on-read").doing(
            |guest| async move {
                guest.read(700, 2000).await?;
                guest.write(2 * KIB, 1200).await?;
                guest.read(23 * KIB, 4096).await?;
                guest.flush().await?;
                guest.write(8 * KIB, 512).await?;
                guest.read(8 * KIB, 1024).await?;
                guest.flush().await
            },
        ),
        Operation::new("a compressing filter", "qcow2", qcow2(&compressing)).through("compress").doing(
            |guest| async move {
                guest.write(0, 8 * KIB).await?;
                guest.flush().await?;
                guest.write(KIB, KIB).await?;
                guest.write(16 * KIB, 4 * KIB).await?;
                guest.flush().await
            },
        ),
    ]
}

/// Three images of QEMU's above each other, and one beside them.
fn chain(cluster_size: u64) -> World {
    let create = |rest: &str| format!("qemu-img create -f qcow2 -o cluster_size={cluster_size} {rest}");
    by_qemu(&[
        &create("base 16k"),
        "qemu-io -f qcow2 -c 'write -P 1 0 6k' -c 'write -P 2 10k 2k' base",
        &create("-b base -F qcow2 middle 16k"),
        "qemu-io -f qcow2 -c 'write -P 3 3k 2k' -c 'write -z 10k 1k' middle",
        &create("-b middle -F qcow2 top 16k"),
        "qemu-io -f qcow2 -c 'write -P 4 4k 1k' -c 'write -z 1k 1k' -c 'write -P 5 13k 1k' top",
        &create("other 14k"),
        "qemu-io -f qcow2 -c 'write -P 1 0 2k' -c 'write -P 9 8k 1k' other",
    ])
}

fn with_snapshot_of_top(world: World) -> World {
    use drystone_core::format::qcow2::NewSnapshot;
    use drystone_core::job::create_snapshot;
    let (taken, world) = straight(world, |io| async move {
        let node = open(&io, &from_filename(TOP, Some("qcow2"), WRITABLE)?).await?;
        let new = NewSnapshot { name: "before".into(), ..NewSnapshot::default() };
        create_snapshot(&io, node, &new).await?;
        io.close(node).await
    });
    taken.expect("a snapshot can be taken");
    world
}

/// A name for `other` that takes more than a sector: each step stays in the folder.
fn long_name() -> String {
    format!("{}other", "./".repeat(300))
}

async fn committed(guest: &Guest, down: usize) -> Result<()> {
    commit_top(&guest.io(), down).await
}

/// Opens [`TOP`], commits it into the image so many below, and empties it where nothing stands between the two.
///
/// # Errors
/// What the images or the job say.
///
/// # Panics
/// When the chain is not that long.
pub async fn commit_top(io: &Io, down: usize) -> Result<()> {
    let top =
        open(io, &from_filename(TOP, Some("qcow2"), OpenMode { commits_down: down, ..WRITABLE })?).await?;
    let base = (0..down).try_fold(top, |image, _| io.edge(image, Role::Backing));
    let plan = Commit {
        image: top,
        base: base.expect("the chain is that long"),
        empty: down == 1,
        rate: 0,
        count: Count::Disk,
    };
    let done = commit(io, &plan, Rc::new(|_, _| {}), &|| false).await;
    let closed = io.close(top).await;
    done.map_err(|stopped| stopped.source).and(closed)
}

/// Puts the image onto another, without a change that a guest sees.
async fn rebased(guest: &Guest, onto: &str) -> Result<()> {
    let (io, image) = (guest.io(), guest.node());
    let other = open(&io, &from_filename(onto, Some("qcow2"), OpenMode::default())?).await?;
    let done =
        copied(guest, Rebase { image, backing: Some(other), compress: false, count: Count::Disk }).await;
    let closed = io.close(other).await;
    done.and(closed)?;
    change_backing(&io, image, Some((onto, Some("qcow2")))).await
}

async fn copied(guest: &Guest, plan: Rebase) -> Result<()> {
    let copied = rebase(&guest.io(), &plan, Rc::new(|_, _| {}), &|| false).await;
    copied.map_err(|stopped| stopped.source)
}

/// What a guest sees once nothing but the name of the backing file has changed.
fn shown_over(world: &World, name: &str) -> Vec<u8> {
    let name = name.to_owned();
    let (changed, world) = straight(world.clone(), |io| async move {
        let node = open(&io, &from_filename(TOP, Some("qcow2"), WRITABLE)?).await?;
        let changed = change_backing(&io, node, Some((&name, Some("qcow2")))).await;
        let closed = io.close(node).await;
        changed.and(closed)
    });
    changed.expect("a header has room for the name");
    let spec = from_filename(TOP, Some("qcow2"), OpenMode::default()).expect("a path");
    look(world, spec).expect("the image is in order").to_vec()
}

/// Another image of the world is in order, too.
fn in_order(image: &'static str) -> impl Fn(&World) -> std::result::Result<(), String> {
    move |world| {
        let spec = from_filename(image, Some("qcow2"), OpenMode::default()).expect("a path");
        look(world.clone(), spec).map(drop).map_err(|report| format!("{image}: {report}"))
    }
}

/// Copies `source` into a new image.
async fn converted(io: &Io, compress: bool) -> Result<()> {
    let options = CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(48 * KIB) };
    create(io, TOP, &ImageSpec::Qcow2(options)).await?;
    let source = open(io, &NodeSpec::raw(NodeSpec::file("source", OpenMode::default()))).await?;
    let copied = match open(io, &from_filename(TOP, Some("qcow2"), WRITABLE)?).await {
        Ok(target) => {
            let copied = copy(io, source, target, compress).await;
            let closed = io.close(target).await;
            copied.and(closed)
        }
        Err(error) => Err(error),
    };
    let closed = io.close(source).await;
    copied.and(closed)
}

pub(super) async fn copy(io: &Io, source: NodeId, target: NodeId, compress: bool) -> Result<()> {
    let plan = Convert {
        above: None,
        sources: vec![source],
        target,
        compress,
        sparse: 4 * KIB,
        workers: 4,
        out_of_order: true,
        target_is_zero: true,
        target_has_backing: false,
        backing_len: 0,
        copy_range: false,
        salvage: false,
        rate: 0,
        count: Count::Disk,
    };
    let copied = convert(io, &plan, Rc::new(|_, _| {}), &|| false, &|_| {}).await;
    copied.map_err(|stopped| stopped.source)
}
