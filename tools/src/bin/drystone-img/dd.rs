//! `dd`.

use std::rc::Rc;

use drystone_core::graph::open::OpenMode;
use drystone_core::intent::Permissions;
use drystone_core::job::{Dd, Doing, dd};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{CacheMode, DdArgs, Source};
use drystone_tools::img::create::new_image;
use drystone_tools::message::{Failure, Message};
use drystone_tools::options::ImageName;

use crate::create::known;
use crate::interrupt::Interrupt;
use crate::{create, image};

pub async fn run(client: &Client, args: &DdArgs, tool: &str) -> Result<u8, Failure> {
    let interrupt = Rc::new(Interrupt::watch()?);
    let mode = image::reading(&args.common, CacheMode::WRITEBACK, args.force_share);
    let source = image::open(client, &args.source, mode).await?;
    let (from, len) = range(args, source.len());
    if from > source.len().next_multiple_of(512) {
        // As with dd, this is no failure.
        let text = format!("{}: cannot skip to specified offset", args.input);
        crate::say(&Message::Error(text).render(tool));
    }
    let options = new_image(&args.output_format, len, known(&args.output))?;
    let made = create::make(client, &args.output, &options).await;
    made.map_err(|error| {
        Failure::new(format!("{}: error while creating output image: {error}", args.output))
    })?;
    let target = open_target(client, args).await?;
    let plan = Dd { source: source.node(), from, len, target: target.node() };
    let asked = Rc::clone(&interrupt);
    let copied =
        client.run(move |io| async move { Ok(dd(&io, &plan, Rc::new(|_, _| {}), &|| asked.came()).await) });
    let copied = copied.await;
    let closed = image::close(target).await;
    image::close(source).await?;
    let copied = copied.map_err(|error| Failure::new(error.to_string()))?;
    if copied.is_err() {
        interrupt.obey();
    }
    copied.map_err(|stopped| {
        let reason = image::strerror(&stopped.source);
        let what = match stopped.doing {
            Doing::Read => "reading from input image file",
            _ => "writing to output image file",
        };
        Failure::new(format!("error while {what}: {reason}\n{stopped}"))
    })?;
    closed?;
    Ok(0)
}

/// First byte and length of what is copied of a disk; `skip` counts before `count` does.
fn range(args: &DdArgs, size: u64) -> (u64, u64) {
    // The reference counts whole sectors.
    let size = size.next_multiple_of(512);
    let from = args.skip.saturating_mul(args.block_size);
    let left = size.saturating_sub(from);
    (from, args.count.map_or(left, |count| count.saturating_mul(args.block_size).min(left)))
}

async fn open_target(client: &Client, args: &DdArgs) -> Result<Image, Failure> {
    let source =
        Source { name: ImageName::File(args.output.clone()), format: Some(args.output_format.clone()) };
    let mode = OpenMode {
        writable: true,
        takes: Permissions::NONE,
        names: args.common.image_names,
        ..OpenMode::default()
    };
    image::open(client, &source, mode).await
}
