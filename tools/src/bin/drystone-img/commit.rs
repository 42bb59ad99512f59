//! `commit`.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use drystone_core::engine::Io;
use drystone_core::graph::open::{OpenMode, beside, names_protocol};
use drystone_core::graph::{CHAIN_MAX, NodeId, Role};
use drystone_core::intent::Permissions;
use drystone_core::job::{Commit, Count, Doing, Stopped, commit};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::CommitArgs;
use drystone_tools::img::progress::Progress;
use drystone_tools::message::Failure;

use crate::image;
use crate::interrupt::Interrupt;

pub async fn run(client: &Client, args: &CommitArgs) -> Result<u8, Failure> {
    let interrupt = Rc::new(Interrupt::watch()?);
    let progress = Progress::new(args.progress, crate::on_terminal(), 1.0);
    let depth = match &args.base {
        None => 1,
        Some(base) => depth_of(client, args, base).await?,
    };
    let mode = OpenMode {
        writable: true,
        commits_down: depth,
        takes: Permissions::RESIZE,
        ..image::reading(&args.common, args.cache, false)
    };
    let disk = image::open(client, &args.source, mode).await?;
    let Some(base) = backing_at(client, &disk, depth).await? else {
        image::close(disk).await?;
        return Err(Failure::new("Image does not have a backing file"));
    };
    let plan = Commit {
        image: disk.node(),
        base,
        empty: !args.drop,
        rate: args.rate_limit,
        count: if progress.is_text() { Count::Data } else { Count::Disk },
    };
    let progress = Rc::new(RefCell::new(progress));
    let (shown, asked) = (Rc::clone(&progress), Rc::clone(&interrupt));
    let committed = client.run(move |io| async move {
        let tell = Rc::new(move |done, of| crate::tell(&mut shown.borrow_mut(), done, of));
        Ok(commit(&io, &plan, tell, &|| asked.came()).await)
    });
    let committed = committed.await;
    let closed = image::close(disk).await;
    crate::print(progress.borrow_mut().finish())?;
    let committed = committed.map_err(|error| Failure::new(error.to_string()))?;
    if committed.is_err() {
        interrupt.obey();
    }
    committed.map_err(|stopped| stopped_at(args, &stopped))?;
    closed?;
    if !args.quiet {
        crate::print("Image committed.\n")?;
    }
    Ok(0)
}

/// The reference's words, and below them what we know besides.
fn stopped_at(args: &CommitArgs, stopped: &Stopped) -> Failure {
    let reason = image::strerror(&stopped.source);
    match stopped.doing {
        Doing::Empty => {
            let name = args.source.name.text();
            Failure::new(format!("Could not empty {name}: {reason}\n{stopped}"))
        }
        _ => Failure::new(format!("Block job failed: {reason}\n{stopped}")),
    }
}

/// How many images down the chain the base is. It is looked for without being written to.
async fn depth_of(client: &Client, args: &CommitArgs, base: &str) -> Result<usize, Failure> {
    let disk = image::open(client, &args.source, image::reading(&args.common, args.cache, false)).await?;
    let (node, name) = (disk.node(), base.to_owned());
    let found = client.run(move |io| async move { Ok(depth_in(&io, node, &name)) });
    let found = found.await.map_err(|error| Failure::new(error.to_string()))?;
    image::close(disk).await?;
    let image = args.source.name.text();
    found.ok_or_else(|| Failure::new(format!("Did not find '{base}' in the backing chain of '{image}'")))
}

/// A name in a chain is relative to the image above the one that it names.
fn depth_in(io: &Io, top: NodeId, name: &str) -> Option<usize> {
    let mut above = top;
    for depth in 1..=CHAIN_MAX {
        let backing = io.edge(above, Role::Backing)?;
        let title = io.title(backing);
        let path = if names_protocol(name) { name.to_owned() } else { beside(&io.title(above), name) };
        let same_file =
            || Some(Path::new(&path).canonicalize().ok()? == Path::new(&title).canonicalize().ok()?);
        if path == title || same_file() == Some(true) {
            return Some(depth);
        }
        above = backing;
    }
    None
}

/// The image so many images down the chain.
async fn backing_at(client: &Client, disk: &Image, depth: usize) -> Result<Option<NodeId>, Failure> {
    let node = disk.node();
    let found = client.run(move |io| async move {
        Ok((0..depth).try_fold(node, |image, _| io.edge(image, Role::Backing)))
    });
    found.await.map_err(|error| Failure::new(error.to_string()))
}
