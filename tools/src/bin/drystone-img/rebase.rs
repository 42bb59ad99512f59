//! `rebase`.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use drystone_core::error::{Error, FormatError};
use drystone_core::format::qcow2::{Qcow2, Qcow2Error};
use drystone_core::format::qed::Qed;
use drystone_core::graph::open::{ChildSpec, OpenMode, beside, names_protocol};
use drystone_core::graph::{CHAIN_MAX, NodeId, Role};
use drystone_core::job::{Count, Doing, Rebase, Stopped, change_backing, rebase};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{RebaseArgs, Source};
use drystone_tools::img::convert::cannot_compress;
use drystone_tools::img::progress::Progress;
use drystone_tools::message::{Failure, Message};
use drystone_tools::options::ImageName;

use crate::create::DRIVERS;
use crate::image;
use crate::interrupt::Interrupt;

pub async fn run(client: &Client, args: &RebaseArgs) -> Result<u8, Failure> {
    let interrupt = Rc::new(Interrupt::watch()?);
    let disk = open_image(client, args).await?;
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
        && let Some(backing) = spec.backing_mut()
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
    check_format(client, args, disk).await?;
    let name = args.backing.as_deref().filter(|name| !name.is_empty());
    if args.header_only {
        check_backing(client, args, disk).await?;
    } else {
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
        // What can be refused at the end is refused before anything is copied.
        let copied = match check_backing(client, args, disk).await {
            Ok(()) => {
                let plan =
                    Rebase { image: disk.node(), backing, compress: args.compress, count: Count::Disk };
                copy(client, args, plan, interrupt).await
            }
            Err(refused) => Err(refused),
        };
        if let Some(opened) = opened {
            image::close(opened).await?;
        }
        copied?;
    }
    let (node, backing, format) = (disk.node(), name.map(str::to_owned), args.backing_format.clone());
    let changed = client.run(move |io| async move {
        change_backing(&io, node, backing.as_deref().map(|name| (name, format.as_deref()))).await
    });
    changed.await.map_err(|error| cannot_change(args, &error))?;
    if args.header_only {
        let mut progress = Progress::new(args.progress, crate::on_terminal(), 1.0);
        crate::tell(&mut progress, 0, 1);
        crate::tell(&mut progress, 1, 1);
        crate::print(progress.finish())?;
    }
    Ok(())
}

/// What can be refused before the new backing file is opened.
async fn check_format(client: &Client, args: &RebaseArgs, disk: &Image) -> Result<(), Failure> {
    if let Some(format) = args.backing_format.as_deref().filter(|format| !DRIVERS.contains(format)) {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    let node = disk.node();
    let asked = client
        .run(move |io| async move { Ok(io.driver(node).is_some_and(|driver| driver.compresses())) })
        .await;
    match args.compress && !asked.unwrap_or(false) {
        true => Err(cannot_compress()),
        false => Ok(()),
    }
}

/// Whether the image can name the new backing file.
async fn check_backing(client: &Client, args: &RebaseArgs, disk: &Image) -> Result<(), Failure> {
    let backing = args.backing.clone().filter(|name| !name.is_empty());
    if let (Some(name), None) = (&backing, &args.backing_format) {
        let text = format!("Could not change the backing file to '{name}': backing format must be specified");
        return Err(Failure::new(text));
    }
    let (node, format) = (disk.node(), args.backing_format.clone());
    let asked = client.run(move |io| async move {
        let driver = io.driver(node);
        let fault = |fault: Box<dyn FormatError>| Box::new(Error::Format { node: io.title(node), fault });
        if let Some(qed) = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qed>()) {
            return qed.check_backing(backing.as_deref()).map_err(|wrong| fault(Box::new(wrong)));
        }
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        let Some(qcow2) = qcow2 else {
            let (node, driver) = (io.title(node), "raw");
            return Err(Box::new(Error::Unsupported { node, driver, what: "a backing file" }));
        };
        let named = backing.as_deref().map(|name| (name, format.as_deref()));
        qcow2.check_backing(named).map_err(|wrong| fault(Box::new(wrong)))
    });
    asked.await.map_err(|error| cannot_change(args, &error))
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
    let spec = image::spec(&source, mode).map_err(|failure| match &failure.messages[..] {
        [Message::Error(text)] => {
            let said = format!("Could not open '{path}': ");
            failed(text.strip_prefix(&said).unwrap_or(text).to_owned())
        }
        _ => failure.clone(),
    })?;
    client.open(&spec).await.map_err(|error| failed(error.to_string()))
}

async fn copy(
    client: &Client,
    args: &RebaseArgs,
    plan: Rebase,
    interrupt: &Rc<Interrupt>,
) -> Result<(), Failure> {
    let progress = Progress::new(args.progress, crate::on_terminal(), 2.0);
    let text = progress.is_text();
    let plan = Rebase { count: if text { Count::Data } else { Count::Disk }, ..plan };
    let progress = Rc::new(RefCell::new(progress));
    let (shown, asked) = (Rc::clone(&progress), Rc::clone(interrupt));
    let copied = client.run(move |io| async move {
        let tell = Rc::new(move |done, of| match &mut *shown.borrow_mut() {
            progress if text && done > 0 => crate::show(progress.add(of)),
            progress => crate::tell(progress, done, of),
        });
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
