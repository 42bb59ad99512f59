//! Operations that change a qcow2 image as a whole: snapshots, lengths, options, bitmaps.

use std::rc::Rc;

use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::qcow2::{Amend, CreateOptions, NewSnapshot, Qcow2, SnapshotChoice};
use drystone_core::graph::open::{DriverSpec, NodeSpec, open};
use drystone_core::graph::{Access, Preallocate, Role};
use drystone_core::job::{amend, apply_snapshot, create_snapshot, delete_snapshot};

use super::super::{content, qcow2, qcow2_in, straight};
use super::qcow2::{leave_stale_space, small};
use super::qcow2_files::bitmaps;
use super::{Guest, KIB, Operation};
use crate::cases::stones;
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    [snapshots(), states(), lengths(), options()].into_iter().flatten().collect()
}

fn on(name: &'static str, options: &CreateOptions) -> Operation {
    Operation::new(name, "qcow2", qcow2(options)).after(|guest| async move {
        guest.write(KIB, 3 * KIB).await?;
        guest.write(34 * KIB, KIB).await?;
        guest.flush().await
    })
}

fn snapshots() -> Vec<Operation> {
    let taken = on("a snapshot is taken", &small(64 * KIB));
    let taken = shows_or_is_gone(taken, "first", 0).doing(|guest| async move {
        take(&guest, "first").await?;
        // What the snapshot shares is copied.
        guest.write(2 * KIB, KIB).await?;
        guest.flush().await
    });
    let applied = on("a snapshot is gone back to", &small(64 * KIB)).after(|guest| async move {
        take(&guest, "first").await?;
        guest.write(2 * KIB, KIB).await?;
        guest.discard(34 * KIB, KIB).await?;
        guest.resize(80 * KIB, Preallocate::Off).await
    });
    let first = view(&applied, "first");
    let content = applied.seen(first.clone());
    let applied = applied.with_view(first).doing(move |guest| {
        let content = content.clone();
        async move {
            guest.write(8 * KIB, KIB).await?;
            guest.flush().await?;
            let (io, node) = (guest.io(), guest.node());
            guest.replace(&content, apply_snapshot(&io, node, &named("first"))).await?;
            guest.write(2 * KIB, 512).await?;
            guest.flush().await
        }
    });
    let deleted = on("a snapshot is deleted", &small(64 * KIB)).after(|guest| async move {
        take(&guest, "first").await?;
        guest.write(2 * KIB, KIB).await?;
        take(&guest, "second").await?;
        guest.write(3 * KIB, KIB).await
    });
    let second = view(&deleted, "second");
    let deleted = shows_or_is_gone(deleted, "first", 0)
        .with_view(second)
        // Where it cannot be told what is free, no holes are punched.
        .making_do_without("qcow2.generation/freed")
        .doing(|guest| async move {
            delete(&guest, "first").await?;
            guest.write(3 * KIB, 512).await?;
            guest.write(10 * KIB, KIB).await?;
            guest.flush().await
        });
    vec![taken, applied, deleted]
}

/// The state of a machine, behind the disk.
fn states() -> Vec<Operation> {
    const LEN: usize = 4 << 10;
    let written =
        on("a machine's state is written", &small(64 * KIB)).with_state(LEN).doing(|guest| async move {
            guest.save(512, 700).await?;
            guest.flush().await?;
            // Beside a guest: what both need of refcounts and tables is one.
            guest.write(2 * KIB, KIB).await?;
            guest.save(0, 1024).await?;
            guest.save(3 * KIB, KIB).await?;
            guest.flush().await
        });
    let saved = |guest: Guest| async move {
        guest.save(0, 2 * KIB).await?;
        guest.flush().await
    };
    let overwritten = on("a machine's state below a snapshot", &small(64 * KIB))
        .with_state(LEN)
        .after(saved)
        .after(|guest| async move { take(&guest, "first").await });
    let first = view(&overwritten, "first");
    let overwritten = overwritten.with_view(first).doing(|guest| async move {
        guest.save(512, KIB).await?;
        guest.flush().await?;
        guest.save(2 * KIB, 512).await
    });
    // The disk lets go of the state, and the snapshot has it.
    let handed_over = on("a snapshot takes a machine's state", &small(64 * KIB)).after(|guest| async move {
        let data = Buf::from(stones(2 * KIB)).into();
        guest.io().vmstate(guest.node(), Access::Write, 0, data).await.1
    });
    let handed_over = shows_or_is_gone(handed_over, "first", LEN).doing(|guest| async move {
        let (io, node) = (guest.io(), guest.node());
        let new = NewSnapshot { name: "first".into(), vm_state_len: 2 * KIB, ..NewSnapshot::default() };
        create_snapshot(&io, node, &new).await?;
        let (state, read) = io.vmstate(node, Access::Read, 0, Buf::zeroed(LEN).into()).await;
        read?;
        assert!(state.is_zero(), "the disk still has the state");
        guest.write(2 * KIB, KIB).await?;
        guest.flush().await
    });
    vec![written, overwritten, handed_over]
}

fn lengths() -> Vec<Operation> {
    let mut below = World::new();
    below.add_file("base", &stones(40 * KIB));
    let backing = Some(("base".into(), Some("raw".into())));
    let above = CreateOptions { cluster_size: 4 * KIB, backing, ..CreateOptions::new(18 * KIB) };
    let apart = CreateOptions { data_file: Some("data".into()), ..small(32 * KIB) };
    let within = CreateOptions { cluster_size: 4 * KIB, size: 18 * KIB, ..apart.clone() };
    vec![
        Operation::new("a longer disk", "qcow2", qcow2(&small(20 * KIB))).doing(|guest| async move {
            guest.write(18 * KIB, 2 * KIB).await?;
            guest.resize(80 * KIB, Preallocate::Off).await?;
            guest.write(70 * KIB, KIB).await?;
            guest.flush().await
        }),
        // What is below must not show where the disk grows, nor what its last cluster has beyond its end.
        Operation::new("a longer disk above a backing file", "qcow2", qcow2_in(below, &above)).doing(
            |guest| async move {
                guest.write(17 * KIB, KIB).await?;
                guest.resize(48 * KIB, Preallocate::Off).await?;
                guest.write(39 * KIB, KIB).await
            },
        ),
        Operation::new("a longer disk, preallocated", "qcow2", qcow2(&small(8 * KIB)))
            .patched(leave_stale_space)
            .doing(|guest| async move {
                grow(&guest, 24 * KIB, Preallocate::Metadata).await?;
                guest.write(12 * KIB, KIB).await?;
                grow(&guest, 28 * KIB, Preallocate::Full).await
            }),
        Operation::new("a longer disk with a data file", "qcow2", qcow2(&apart))
            .patched(|world| world.add_file("data", &[0xee; 64 << 10]))
            .doing(|guest| async move {
                guest.write(0, KIB).await?;
                guest.resize(48 * KIB, Preallocate::Metadata).await?;
                guest.write(40 * KIB, 512).await?;
                guest.flush().await
            }),
        // No entry changes, and so no barrier in front of entries makes the zeros durable.
        Operation::new("a longer disk within a cluster of a data file", "qcow2", qcow2(&within))
            .after(|guest| async move { guest.write(16 * KIB, 2 * KIB).await })
            .patched(|world| {
                let mut data = world.export("data");
                data.resize(18 << 10, 0);
                data.resize(32 << 10, 0xee);
                world.add_file("data", &data);
            })
            .doing(|guest| async move { guest.resize(19 * KIB, Preallocate::Off).await }),
        on("a shorter disk", &small(64 * KIB)).doing(|guest| async move {
            guest.write(0, KIB).await?;
            guest.resize(2 * KIB, Preallocate::Off).await?;
            guest.write(KIB, KIB).await?;
            guest.flush().await
        }),
        // What was cut off must not come back.
        on("a shorter disk, and a longer one again", &small(64 * KIB)).doing(|guest| async move {
            guest.resize(2 * KIB + 512, Preallocate::Off).await?;
            guest.resize(40 * KIB, Preallocate::Off).await?;
            guest.write(3 * KIB, 512).await?;
            guest.flush().await
        }),
    ]
}

fn options() -> Vec<Operation> {
    let version_2 = CreateOptions { version: 2, ..small(64 * KIB) };
    vec![
        on("wider refcounts", &small(64 * KIB)).doing(|guest| async move {
            change(&guest, Amend { refcount_bits: Some(64), ..Amend::default() }).await?;
            guest.write(8 * KIB, KIB).await?;
            guest.flush().await
        }),
        on("narrower refcounts", &small(64 * KIB)).doing(|guest| async move {
            change(&guest, Amend { refcount_bits: Some(1), ..Amend::default() }).await?;
            guest.write(8 * KIB, KIB).await?;
            guest.flush().await
        }),
        on("an older version", &small(64 * KIB))
            .after(|guest| async move {
                guest.zero(2 * KIB, KIB, false).await?;
                guest.zero(40 * KIB, KIB, false).await
            })
            .doing(|guest| async move {
                change(&guest, Amend { version: Some(2), ..Amend::default() }).await?;
                guest.write(8 * KIB, KIB).await?;
                guest.flush().await
            }),
        older_with_snapshots(),
        on("a newer version", &version_2).doing(|guest| async move {
            let lazy_refcounts = Some(true);
            change(&guest, Amend { version: Some(3), lazy_refcounts, ..Amend::default() }).await?;
            guest.zero(2 * KIB, KIB, false).await?;
            guest.flush().await
        }),
        Operation::new("bitmaps come and go", "qcow2", bitmaps()).doing(|guest| async move {
            let (io, node) = (guest.io(), guest.node());
            let driver = io.driver(node).expect("a format");
            let qcow2: &Qcow2 = driver.as_any().downcast_ref().expect("qcow2");
            // Done again, it finds what it left.
            let _ = qcow2.remove_bitmap("dirty");
            let _ = qcow2.add_bitmap("fine", Some(512), true);
            let _ = qcow2.add_bitmap("coarse", Some(64 * KIB), true);
            guest.write(20 * KIB, 8 * KIB).await
        }),
    ]
}

/// Zeros of snapshots, which version 2 cannot say: above what is below they become data, beyond it nothing. One table is
/// two snapshots', one is also the disk's, and one cluster of zeros keeps its place, which holds another snapshot's data.
fn older_with_snapshots() -> Operation {
    let mut below = World::new();
    below.add_file("base", &stones(20 * KIB));
    let above = CreateOptions { backing: Some(("base".into(), Some("raw".into()))), ..small(96 * KIB) };
    let older = Operation::new("an older version, with snapshots", "qcow2", qcow2_in(below, &above))
        .patched(leave_stale_space)
        .after(|guest| async move {
            guest.write(KIB, 3 * KIB).await?;
            guest.write(66 * KIB, KIB).await?;
            take(&guest, "data").await?;
            guest.zero(KIB, 2 * KIB, false).await?;
            guest.zero(8 * KIB, KIB, true).await?;
            guest.zero(19 * KIB, 3 * KIB, true).await?;
            guest.zero(40 * KIB, KIB, false).await?;
            take(&guest, "zeros").await?;
            take(&guest, "zeros too").await?;
            guest.write(40 * KIB, KIB).await?;
            guest.zero(12 * KIB, 512, false).await
        });
    let views = ["data", "zeros", "zeros too"].map(|name| view(&older, name));
    views.into_iter().fold(older, Operation::with_view).doing(|guest| async move {
        change(&guest, Amend { version: Some(2), ..Amend::default() }).await?;
        guest.write(8 * KIB, KIB).await?;
        guest.flush().await
    })
}

async fn take(guest: &Guest, name: &str) -> Result<()> {
    let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
    create_snapshot(&guest.io(), guest.node(), &new).await.map(drop)
}

/// Deletes a snapshot; done again, it may be gone.
async fn delete(guest: &Guest, name: &str) -> Result<()> {
    let (io, node) = (guest.io(), guest.node());
    let driver = io.driver(node).expect("a format");
    let qcow2: &Qcow2 = driver.as_any().downcast_ref().expect("qcow2");
    let file = io.edge(node, Role::File).expect("an image is in a file");
    let there = qcow2.snapshots(&io, file).await?.iter().any(|snapshot| snapshot.name == name);
    if there { delete_snapshot(&io, node, &named(name)).await } else { Ok(()) }
}

/// Makes the disk longer; done again, it may be that long.
async fn grow(guest: &Guest, len: u64, how: Preallocate) -> Result<()> {
    if guest.io().len(guest.node()) < len { guest.resize(len, how).await } else { Ok(()) }
}

async fn change(guest: &Guest, to: Amend) -> Result<()> {
    amend(&guest.io(), guest.node(), &to, Rc::new(|_, _| {})).await
}

fn named(name: &str) -> SnapshotChoice {
    SnapshotChoice::IdOrName(name.into())
}

/// How a snapshot of the image is opened.
pub(super) fn view(operation: &Operation, name: &str) -> NodeSpec {
    let mut view = operation.spec(false);
    if let DriverSpec::Qcow2 { options, .. } = &mut view.driver {
        options.snapshot = Some(named(name));
    }
    view
}

/// A snapshot comes into being, or goes: where it is there, it shows the disk that it was taken of, which is what the disk
/// shows before a snapshot is taken.
fn shows_or_is_gone(operation: Operation, name: &str, state_len: usize) -> Operation {
    let spec = view(&operation, name);
    let there = shown(&operation.world, &spec, state_len);
    let content = there.or_else(|_| shown(&operation.world, &operation.spec(false), state_len));
    let content = content.expect("the image opens");
    operation.holding(move |world| match shown(world, &spec, state_len) {
        Ok(found) if found != content => Err("a snapshot shows another disk".into()),
        Err(error) if !error.contains("Can't find snapshot") => Err(format!("a snapshot: {error}")),
        _ => Ok(()),
    })
}

/// What a view of the image shows, with the first bytes of a machine's state, or why it does not open.
fn shown(world: &World, spec: &NodeSpec, state_len: usize) -> std::result::Result<Vec<u8>, String> {
    let spec = spec.clone();
    let (content, _) = straight(world.clone(), |io: Io| async move {
        let node = open(&io, &spec).await?;
        let content = content(&io, node, state_len).await;
        io.close(node).await?;
        content
    });
    content.map(|content| content.to_vec()).map_err(|error| error.to_string())
}
