//! `amend`.

use std::cell::RefCell;
use std::rc::Rc;

use drystone_core::format::qcow2::Amend;
use drystone_core::graph::open::OpenMode;
use drystone_core::job::{amend, amend_keyslots};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::AmendArgs;
use drystone_tools::img::create::{AmendOptions, amend_help};
use drystone_tools::img::progress::Progress;
use drystone_tools::message::Failure;

use crate::{FORMATS, image};

pub async fn run(client: &Client, args: &AmendArgs) -> Result<u8, Failure> {
    let Some(source) = &args.source else {
        let format = args.format.as_deref().unwrap_or_default();
        crate::print(&amend_help(format, FORMATS)?)?;
        return Ok(0);
    };
    let reading = image::reading(&args.common, args.cache, false);
    let mode = OpenMode { writable: true, ..reading };
    let disk = image::open(client, source, mode).await?;
    let done = change(client, args, &disk).await;
    let closed = image::close(disk).await;
    done?;
    closed.map(|()| 0)
}

async fn change(client: &Client, args: &AmendArgs, disk: &Image) -> Result<(), Failure> {
    let format = image::driver_of(client, disk);
    if args.asks_for_help() {
        return crate::print(&amend_help(format, FORMATS)?);
    }
    let options = AmendOptions::parse(format, &args.options)?;
    let progress = Rc::new(RefCell::new(Progress::new(args.progress, crate::on_terminal(), 1.0)));
    let shown = Rc::clone(&progress);
    let tell = Rc::new(move |done, of| crate::tell(&mut shown.borrow_mut(), done, of));
    tell(0, 1);
    let node = disk.node();
    let done = match format {
        "luks" => {
            let change = options.keyslots("", args.force)?.unwrap_or_default();
            client.run(move |io| async move { amend_keyslots(&io, node, &change).await }).await
        }
        _ => {
            let to = wanted(&options, args.force)?;
            let tell = Rc::clone(&tell);
            client.run(move |io| async move { amend(&io, node, &to, tell).await }).await
        }
    };
    // Also after a failure, as the reference does.
    tell(1, 1);
    crate::print(progress.borrow_mut().finish())?;
    done.map_err(|error| Failure::new(error.to_string()))
}

fn wanted(options: &AmendOptions, force: bool) -> Result<Amend, Failure> {
    let version = match options.text("compat") {
        None => None,
        Some("0.10" | "v2") => Some(2),
        Some("1.1" | "v3") => Some(3),
        Some(other) => return Err(Failure::new(format!("Unknown compatibility level {other}"))),
    };
    let text = |name: &str| options.text(name).map(str::to_owned);
    Ok(Amend {
        version,
        refcount_bits: options.number("refcount_bits"),
        lazy_refcounts: options.switch("lazy_refcounts"),
        data_file_raw: options.switch("data_file_raw"),
        data_file: text("data_file"),
        backing_file: text("backing_file"),
        backing_format: text("backing_fmt"),
        size: options.number("size"),
        encrypt: options.keyslots("encrypt.", force)?,
    })
}
