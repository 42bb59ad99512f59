//! `resize`.

use drystone_core::error::Error;
use drystone_core::graph::Preallocate;
use drystone_core::graph::open::OpenMode;
use drystone_core::intent::Permissions;
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{CacheMode, ResizeArgs};
use drystone_tools::message::{Failure, Message};

use crate::image;

/// What is said where an image would become shorter, and nobody allowed it.
const SHRINKS: &str = "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
                       operation, make sure there is no important data there.";

pub async fn run(client: &Client, args: &ResizeArgs) -> Result<u8, Failure> {
    let reading = image::reading(&args.common, CacheMode::WRITEBACK, false);
    let mode = OpenMode { writable: true, takes: Permissions::RESIZE, ..reading };
    let disk = image::open(client, &args.source, mode).await?;
    let done = resize(client, args, &disk).await;
    let closed = image::close(disk).await;
    done?;
    closed.map_err(resized_all_the_same)?;
    if !args.quiet {
        crate::print("Image resized.\n")?;
    }
    Ok(0)
}

/// What holds where a resized image could not be closed: what it keeps until then, its bitmaps above all, may be lost.
fn resized_all_the_same(mut failure: Failure) -> Failure {
    let holds =
        "The image has its new size. Closing it failed: bitmaps may be out of use, and clusters leaked.";
    failure.messages.push(Message::Plain(holds.into()));
    failure
}

async fn resize(client: &Client, args: &ResizeArgs, disk: &Image) -> Result<(), Failure> {
    // The reference counts whole sectors.
    let now = disk.len().next_multiple_of(512);
    let Some(len) = args.size.from(now) else { return Err(Failure::new("New image size must be positive")) };
    if len <= now && args.preallocation != Preallocate::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if len < now && !args.shrink {
        let mut failure = Failure::new("Use the --shrink option to perform a shrink operation.");
        failure.messages.push(Message::Warning(SHRINKS.into()));
        return Err(failure);
    }
    let (node, how) = (disk.node(), args.preallocation);
    let done = client.run(move |io| async move { io.resize(node, len, how).await }).await;
    done.map_err(|error| {
        Failure::new(match &*error {
            Error::Unsupported { what: "a change of length", .. } => {
                "Image format driver does not support resize".to_owned()
            }
            Error::Leaf { operation: "change of length", errno, .. } => {
                format!("Failed to resize the file: {errno}")
            }
            _ => error.to_string(),
        })
    })
}
