//! `snapshot`.

use std::time::{SystemTime, UNIX_EPOCH};

use drystone_core::error::Error;
use drystone_core::format::qcow2::layout::Snapshot;
use drystone_core::format::qcow2::{NewSnapshot, Qcow2, Qcow2Error, SnapshotChoice};
use drystone_core::graph::Role;
use drystone_core::graph::open::OpenMode;
use drystone_core::job::{apply_snapshot, create_snapshot, delete_snapshot};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{CacheMode, SnapshotAction, SnapshotArgs};
use drystone_tools::img::info::{snapshot_header, snapshot_line};
use drystone_tools::img::open::cannot_open;
use drystone_tools::message::Failure;
use jiff::tz::TimeZone;

use crate::{image, info};

pub async fn run(client: &Client, args: &SnapshotArgs) -> Result<u8, Failure> {
    let writes = args.action != SnapshotAction::List;
    let reading = image::reading(&args.common, CacheMode::WRITEBACK, args.force_share);
    let mode = OpenMode { writable: writes, discard: writes, ..reading };
    let disk = image::open(client, &args.source, mode).await?;
    let done = act(client, args, &disk).await;
    let closed = image::close(disk).await;
    done?;
    closed.map(|()| 0)
}

async fn act(client: &Client, args: &SnapshotArgs, disk: &Image) -> Result<(), Failure> {
    let node = disk.node();
    let is_qcow2 = image::driver_of(client, disk) == "qcow2";
    match &args.action {
        SnapshotAction::List => {
            let snapshots = list(client, disk).await;
            let snapshots = snapshots.map_err(|error| cannot_open(&args.source.name, &error.to_string()))?;
            if snapshots.is_empty() {
                return Ok(());
            }
            let zone = TimeZone::system();
            let mut text = format!("Snapshot list:\n{}\n", snapshot_header());
            for snapshot in snapshots {
                text += &format!("{}\n", snapshot_line(&info::snapshot(snapshot), &zone));
            }
            crate::print(&text)
        }
        SnapshotAction::Create(tag) => {
            let failed = |why: &str| Failure::new(format!("Could not create snapshot '{tag}': {why}"));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let new = NewSnapshot {
                name: tag.clone(),
                // The format has 32 bits for it.
                seconds: now.as_secs() as u32,
                nanoseconds: now.subsec_nanos(),
                icount: Some(0),
                ..NewSnapshot::default()
            };
            let made = client.run(move |io| async move { create_snapshot(&io, node, &new).await }).await;
            made.map(drop).map_err(|error| failed(&reason(&error)))
        }
        SnapshotAction::Apply(tag) => {
            let failed = |why: &str| Failure::new(format!("Could not apply snapshot '{tag}': {why}"));
            if !is_qcow2 {
                return Err(failed("Block driver does not support snapshots"));
            }
            let choice = SnapshotChoice::IdOrName(tag.clone());
            let done = client.run(move |io| async move { apply_snapshot(&io, node, &choice).await }).await;
            done.map_err(|error| match fault(&error) {
                Some(Qcow2Error::CountsChanges) => failed(&error.to_string()),
                _ => failed(&format!("Failed to load snapshot: {}", reason(&error))),
            })
        }
        SnapshotAction::Delete(tag) => {
            let failed = |why: &str| Failure::new(format!("Could not delete snapshot '{tag}': {why}"));
            let snapshots = if is_qcow2 { list(client, disk).await } else { Ok(Vec::new()) };
            let snapshots = snapshots.map_err(|error| failed(&error.to_string()))?;
            let found = snapshots.into_iter().find(|snapshot| snapshot.name == *tag);
            let Some(found) = found else { return Err(failed("snapshot not found")) };
            let choice = SnapshotChoice::Both { id: Some(found.id), name: Some(found.name) };
            let done = client.run(move |io| async move { delete_snapshot(&io, node, &choice).await }).await;
            done.map_err(|error| failed(&reason(&error)))
        }
    }
}

async fn list(client: &Client, disk: &Image) -> Result<Vec<Snapshot>, Box<Error>> {
    let node = disk.node();
    let look = client.run(move |io| async move {
        let driver = io.driver(node);
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        match (qcow2, io.edge(node, Role::File)) {
            (Some(qcow2), Some(file)) => qcow2.snapshots(&io, file).await,
            _ => Ok(Vec::new()),
        }
    });
    look.await
}

/// What the image's format says is wrong, where it is the one to say.
fn fault(error: &Error) -> Option<&Qcow2Error> {
    match error {
        Error::Format { fault, .. } => fault.as_any().downcast_ref(),
        _ => None,
    }
}

/// The reference's words where it has some of its own, else ours, which say more.
fn reason(error: &Error) -> String {
    match (error, fault(error)) {
        (Error::Unsupported { .. }, _) | (_, Some(Qcow2Error::SnapshotOfDataFile)) => {
            "Operation not supported".into()
        }
        (_, Some(Qcow2Error::NoSnapshot)) => "No such file or directory".into(),
        _ => error.to_string(),
    }
}
