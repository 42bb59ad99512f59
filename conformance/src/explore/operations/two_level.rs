//! Operations on QED and qcow images: clusters, and tables of two levels.

use drystone_core::format::qed::layout::Features;
use drystone_core::format::{qcow, qed};
use drystone_core::graph::Preallocate;
use drystone_core::job::{ImageSpec, change_backing, create};

use super::super::image_in;
use super::{KIB, Operation, TOP, growing_as_garbage};
use crate::cases::stones;
use crate::world::World;

/// Bytes of a QED cluster. The reference opens no fresh image whose tables are one cluster long.
const CLUSTER: u64 = 4 * KIB;

fn qed_options(size: u64) -> qed::CreateOptions {
    qed::CreateOptions { cluster_size: CLUSTER, table_size: 2, ..qed::CreateOptions::new(size) }
}

fn on_qed(name: &'static str, options: qed::CreateOptions) -> Operation {
    Operation::new(name, "qed", image_in(with_base(), &ImageSpec::Qed(options)))
}

/// A world with two files of the same bytes that an image can be above.
fn with_base() -> World {
    let mut world = World::new();
    world.add_file("base", &stones(48 * KIB));
    world.add_file("twin", &stones(48 * KIB));
    world
}

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let above = |size| qed::CreateOptions { backing: Some(("base".into(), true)), ..qed_options(size) };
    let qcow = |backing: Option<&str>| {
        ImageSpec::Qcow(qcow::CreateOptions { size: 40 * KIB, backing: backing.map(str::to_owned) })
    };
    let on_qcow = |name, spec: &ImageSpec| Operation::new(name, "qcow", image_in(World::new(), spec));
    vec![
        told(on_qed("new clusters of a QED image", qed_options(40 * KIB))).doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.flush().await?;
            guest.zero(CLUSTER, 2 * CLUSTER, true).await?;
            guest.write(20 * KIB, 6 * KIB).await?;
            guest.flush().await
        }),
        on_qed("clusters of a QED image above a file", above(40 * KIB)).doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.zero(CLUSTER, CLUSTER, true).await?;
            guest.flush().await
        }),
        on_qed("a longer QED image above a file", above(10 * KIB)).doing(|guest| async move {
            guest.write(KIB, 512).await?;
            guest.resize(60 * KIB, Preallocate::Off).await
        }),
        on_qed("another backing file of a QED image", above(48 * KIB)).doing(|guest| async move {
            let content = stones(48 * KIB);
            let io = guest.io();
            let work = change_backing(&io, guest.node(), Some(("twin", Some("raw"))));
            guest.replace(&content, work).await
        }),
        Operation::making("create a QED image", "qed", World::new(), &[0; 40 << 10]).doing(
            |guest| async move { create(&guest.io(), TOP, &ImageSpec::Qed(qed_options(40 * KIB))).await },
        ),
        making(
            Operation::making(
                "create a QED image where new space holds anything",
                "qed",
                growing_as_garbage(),
                &[0; 40 << 10],
            ),
            ImageSpec::Qed(qed_options(40 * KIB)),
        ),
        where_garbage_grows(
            "new clusters of a QED image where new space holds anything",
            "qed",
            &ImageSpec::Qed(qed_options(40 * KIB)),
        ),
        making(
            Operation::making(
                "create a qcow image where new space holds anything",
                "qcow",
                growing_as_garbage(),
                &[0; 40 << 10],
            ),
            qcow(None),
        ),
        where_garbage_grows(
            "new clusters of a qcow image where new space holds anything",
            "qcow",
            &qcow(None),
        ),
        on_qcow("new clusters of a qcow image", &qcow(None)).doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.flush().await?;
            guest.write_compressed(8 * KIB, 4 * KIB).await?;
            guest.write(20 * KIB, 6 * KIB).await?;
            guest.flush().await
        }),
        Operation::making("create a qcow image", "qcow", World::new(), &[0; 40 << 10])
            .doing(move |guest| async move { create(&guest.io(), TOP, &qcow(None)).await }),
    ]
}

fn making(operation: Operation, spec: ImageSpec) -> Operation {
    operation.doing(move |guest| {
        let spec = spec.clone();
        async move { create(&guest.io(), TOP, &spec).await }
    })
}

/// Two clusters, the first one of which brings a table.
fn where_garbage_grows(name: &'static str, format: &'static str, spec: &ImageSpec) -> Operation {
    Operation::new(name, format, image_in(growing_as_garbage(), spec)).doing(|guest| async move {
        guest.write(700, KIB).await?;
        guest.flush().await?;
        guest.write(20 * KIB, 6 * KIB).await?;
        guest.flush().await
    })
}

/// Adds what must hold whenever the power goes: tables that were changed are marked for a check, until they are durable.
fn told(operation: Operation) -> Operation {
    operation.holding(move |world| {
        let bytes = world.disk(TOP).ok_or("no image")?.view().to_vec();
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        // Source: the sheet of the header: features, and the place of the L1 table.
        let (features, l1) = (Features(long(16)), long(40) as usize);
        let leaks = bytes.len() as u64 > l1 as u64 + 2 * CLUSTER && long(l1) == 0;
        if leaks && !features.has(Features::NEED_CHECK) {
            return Err("clusters that nothing points to, and nothing says so".into());
        }
        Ok(())
    })
}
