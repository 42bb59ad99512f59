//! `bench`.

use std::time::Instant;

use drystone_core::graph::open::OpenMode;
use drystone_core::intent;
use drystone_core::job::{Bench, bench};
use drystone_exec_linux::Client;
use drystone_tools::img::args::{Aio, BenchArgs};
use drystone_tools::img::bench as shown;
use drystone_tools::message::Failure;

use crate::image;

pub async fn run(client: &Client, args: &BenchArgs) -> Result<u8, Failure> {
    let aio = match args.aio {
        None if args.native => intent::Aio::Native,
        None => intent::Aio::Auto,
        Some(Aio::Threads) => intent::Aio::Threads,
        Some(Aio::Native) => intent::Aio::Native,
        Some(Aio::IoUring) => intent::Aio::IoUring,
    };
    let mode =
        OpenMode { writable: args.write, aio, ..image::reading(&args.common, args.cache, args.force_share) };
    let disk = image::open(client, &args.source, mode).await?;
    let plan = Bench {
        node: disk.node(),
        count: u64::from(args.count),
        depth: u64::from(args.depth),
        len: u64::from(args.buffer_size),
        step: u64::from(if args.step == 0 { args.buffer_size } else { args.step }),
        offset: args.offset,
        write: args.write.then_some(args.pattern),
        flush_every: args.flush.map_or(0, |flush| u64::from(flush.requests)),
        drain: args.flush.is_some_and(|flush| flush.drain),
    };
    // The reference prints this and the result with -q too.
    crate::print(&shown::announcement(args))?;
    let begun = Instant::now();
    let result = client.run(move |io| async move { bench(&io, plan).await }).await;
    let elapsed = begun.elapsed();
    let closed = image::close(disk).await;
    result.map_err(|error| shown::failure(&image::strerror(&error)))?;
    closed?;
    crate::print(&shown::result(elapsed))?;
    Ok(0)
}
