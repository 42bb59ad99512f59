//! Operations that change an image as a whole: snapshots, options.

use drystone_core::format::qcow2::{Amend, CreateOptions, NewSnapshot};
use drystone_core::job::{amend, create_snapshot};

use super::operation::{Guest, Operation, qcow2};
use drystone_core::error::Result;

const KIB: u64 = 1 << 10;

fn on(name: &'static str, options: &CreateOptions) -> Operation {
    Operation::new(name, "qcow2", qcow2(options)).after(|guest| async move {
        guest.write(KIB, 3 * KIB).await?;
        guest.write(34 * KIB, KIB).await?;
        guest.flush().await
    })
}

async fn take(guest: &Guest, name: &str) -> Result<()> {
    let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
    create_snapshot(&guest.io(), guest.node(), &new).await.map(drop)
}

async fn change(guest: &Guest, to: Amend) -> Result<()> {
    amend(&guest.io(), guest.node(), &to).await
}

/// All of them.
pub(super) fn upkeep() -> Vec<Operation> {
    let small = CreateOptions { cluster_size: 512, ..CreateOptions::new(64 * KIB) };
    vec![
        on("a snapshot is taken", &small).doing(|guest| async move {
            take(&guest, "first").await?;
            // What the snapshot shares is copied.
            guest.write(2 * KIB, KIB).await?;
            guest.flush().await
        }),
        on("wider refcounts", &small).doing(|guest| async move {
            change(&guest, Amend { refcount_bits: Some(64), ..Amend::default() }).await?;
            guest.write(8 * KIB, KIB).await?;
            guest.flush().await
        }),
        on("an older version", &small).doing(|guest| async move {
            change(&guest, Amend { version: Some(2), ..Amend::default() }).await?;
            guest.write(8 * KIB, KIB).await?;
            guest.flush().await
        }),
    ]
}
