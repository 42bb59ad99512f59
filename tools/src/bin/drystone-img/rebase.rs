//! `rebase`.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use drystone_core::error::Error;
use drystone_core::format::qcow2::{Qcow2, Qcow2Error};
use drystone_core::graph::open::{ChildSpec, DriverSpec, OpenMode, beside, names_protocol};
use drystone_core::graph::{CHAIN_MAX, NodeId, Role};
use drystone_core::job::{Doing, Rebase, Stopped, change_backing, rebase};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{RebaseArgs, Source};
use drystone_tools::img::convert::cannot_compress;
use drystone_tools::img::progress::Progress;
use drystone_tools::message::Failure;
use drystone_tools::options::ImageName;

use crate::create::DRIVERS;
use crate::image;
use crate::interrupt::Interrupt;

pub async fn run(client: &Client, args: &RebaseArgs, tool: &str) -> Result<u8, Failure> {
    let interrupt = Rc::new(Interrupt::watch()?);
    let disk = open_image(client, args).await?;
    image::warn_of_guess(client, &disk, &args.source, tool);
    let rebased = run_on(client, args, &disk, &interrupt).await;
    let closed = image::close(disk).await;
    if rebased.is_err() {
        interrupt.obey();
    }
    rebased?;
    closed?;
    Ok(0)
}

async fn open_image(client: &Client, args: &RebaseArgs) -> Result<Image, Failure> {
    let mode = OpenMode { writable: true, ..image::reading(&args.common, args.cache, false) };
    let mut spec = image::spec(&args.source, mode)?;
    if args.header_only
        && let DriverSpec::Qcow2 { backing, .. } | DriverSpec::Probe { backing, .. } = &mut spec.driver
    {
        *backing = ChildSpec::None;
    }
    image::open_spec(client, &args.source.name, &spec).await
}

async fn run_on(
    client: &Client,
    args: &RebaseArgs,
    disk: &Image,
    interrupt: &Rc<Interrupt>,
) -> Result<(), Failure> {
    check(client, args, disk).await?;
    let name = args.backing.as_deref().filter(|name| !name.is_empty());
    if !args.header_only {
        let (backing, opened) = match name {
            None => (None, None),
            Some(name) => match in_chain(client, disk, name).await? {
                Some(node) => (Some(node), None),
                None => {
                    let opened = open_backing(client, args, disk, name).await?;
                    (Some(opened.node()), Some(opened))
                }
            },
        };
        let plan = Rebase { image: disk.node(), backing, compress: args.compress };
        let copied = copy(client, args, plan, interrupt).await;
        if let Some(opened) = opened {
            image::close(opened).await?;
        }
        copied?;
    }
    let (node, backing, format) = (disk.node(), name.map(str::to_owned), args.backing_format.clone());
    let changed = client.run(move |io| async move {
        change_backing(&io, node, backing.as_deref().map(|name| (name, format.as_deref()))).await
    });
    changed.await.map_err(|error| cannot_change(args, &error))
}

/// All that can be refused before anything is copied.
async fn check(client: &Client, args: &RebaseArgs, disk: &Image) -> Result<(), Failure> {
    if let Some(format) = args.backing_format.as_deref().filter(|format| !DRIVERS.contains(format)) {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    let (node, compress) = (disk.node(), args.compress);
    let backing = args.backing.clone().filter(|name| !name.is_empty());
    let format = args.backing_format.clone();
    let asked = client.run(move |io| async move {
        let driver = io.driver(node);
        if compress && !driver.as_ref().is_some_and(|driver| driver.compresses()) {
            return Ok(Err(None));
        }
        let unsupported = || {
            let (node, driver) = (io.title(node), "raw");
            Box::new(Error::Unsupported { node, driver, what: "a backing file" })
        };
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        let Some(qcow2) = qcow2 else { return Err(unsupported()) };
        let named = backing.as_deref().map(|name| (name, format.as_deref()));
        let fault = |fault| Box::new(Error::Format { node: io.title(node), fault: Box::new(fault) });
        qcow2.check_backing(named).map_err(fault)?;
        Ok(Ok(()))
    });
    match asked.await {
        Ok(Err(None::<()>)) => Err(cannot_compress()),
        Ok(_)
            if args.backing_format.is_none()
                && args.backing.as_ref().is_some_and(|name| !name.is_empty()) =>
        {
            let name = args.backing.as_deref().unwrap_or_default();
            let text =
                format!("Could not change the backing file to '{name}': backing format must be specified");
            Err(Failure::new(text))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(cannot_change(args, &error)),
    }
}

/// The reference's words, and below them what we know besides.
fn cannot_change(args: &RebaseArgs, error: &Error) -> Failure {
    let fault = match error {
        Error::Format { fault, .. } => fault.as_any().downcast_ref::<Qcow2Error>(),
        _ => None,
    };
    let reason = match fault {
        Some(Qcow2Error::HeaderTooLong { .. }) => "No space left in the file header".into(),
        Some(Qcow2Error::BackingNameLen { .. } | Qcow2Error::Option(_)) => "Invalid argument".into(),
        _ => image::strerror(error),
    };
    let name = args.backing.as_deref().unwrap_or_default();
    let more = fault.map_or(String::new(), |fault| format!("\n{fault}"));
    Failure::new(format!("Could not change the backing file to '{name}': {reason}{more}"))
}

/// The new backing file, where it is in the image's chain: it is open already.
async fn in_chain(client: &Client, disk: &Image, name: &str) -> Result<Option<NodeId>, Failure> {
    let (node, name) = (disk.node(), name.to_owned());
    let found = client.run(move |io| async move {
        let path = if names_protocol(&name) { name } else { beside(&io.title(node), &name) };
        let there = Path::new(&path).canonicalize().ok();
        let chain =
            std::iter::successors(io.edge(node, Role::Backing), |image| io.edge(*image, Role::Backing));
        Ok(chain.take(CHAIN_MAX).find(|image| {
            let title = io.title(*image);
            title == path || (there.is_some() && Path::new(&title).canonicalize().ok() == there)
        }))
    });
    found.await.map_err(|error| Failure::new(error.to_string()))
}

async fn open_backing(
    client: &Client,
    args: &RebaseArgs,
    disk: &Image,
    name: &str,
) -> Result<Image, Failure> {
    let failed = |error: String| Failure::new(format!("Could not open new backing file '{name}': {error}"));
    let node = disk.node();
    let title = client.run(move |io| async move { Ok(io.title(node)) }).await;
    let title = title.map_err(|error| failed(error.to_string()))?;
    let path = if names_protocol(name) { name.to_owned() } else { beside(&title, name) };
    let name = ImageName::from_filename(&path).map_err(|error| failed(error.to_string()))?;
    let source = Source { name, format: args.backing_format.clone() };
    let mode = image::reading(&args.common, args.backing_cache, args.force_share);
    let spec = image::spec(&source, mode)?;
    client.open(&spec).await.map_err(|error| failed(error.to_string()))
}

async fn copy(
    client: &Client,
    args: &RebaseArgs,
    plan: Rebase,
    interrupt: &Rc<Interrupt>,
) -> Result<(), Failure> {
    let progress = Rc::new(RefCell::new(Progress::new(args.progress, crate::on_terminal(), 1.0)));
    let (shown, asked) = (Rc::clone(&progress), Rc::clone(interrupt));
    let copied = client.run(move |io| async move {
        let tell = Rc::new(move |done, of| crate::tell(&mut shown.borrow_mut(), done, of));
        Ok(rebase(&io, &plan, tell, &|| asked.came()).await)
    });
    let copied = copied.await;
    crate::print(progress.borrow_mut().finish())?;
    let copied = copied.map_err(|error| Failure::new(error.to_string()))?;
    copied.map_err(|stopped| stopped_at(&stopped))
}

/// The reference's words, and below them what we know besides.
fn stopped_at(stopped: &Stopped) -> Failure {
    let reason = image::strerror(&stopped.source);
    let what = match stopped.doing {
        Doing::Status => "reading image metadata",
        Doing::Read => "reading from old or new backing file",
        _ => "writing to COW image",
    };
    Failure::new(format!("error while {what}: {reason}\n{stopped}"))
}
