//! `convert`.

use std::cell::RefCell;
use std::rc::Rc;

use drystone_core::graph::Role;
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::graph::options::{from_filename_and, from_options};
use drystone_core::intent::Permissions;
use drystone_core::job::{Convert, Count, Doing, Stopped, convert};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{ConvertArgs, ConvertTarget};
use drystone_tools::img::convert::{
    TargetPlan, cannot_compress, cannot_create, check_bitmaps, check_snapshot, no_bitmaps, plan_target,
};
use drystone_tools::img::create::option_help;
use drystone_tools::img::open::cannot_open;
use drystone_tools::img::progress::Progress;
use drystone_tools::message::{Failure, Message};
use drystone_tools::options::{ImageName, refusal};

use crate::console::say;
use crate::create::known;
use crate::interrupt::Interrupt;
use crate::{bitmap, create, image};

pub async fn run(client: &Client, args: &ConvertArgs, tool: &str) -> Result<u8, Failure> {
    let filename = match &args.target {
        Some(ConvertTarget::File(name)) => name.as_str(),
        _ => "",
    };
    if args.asks_for_help() {
        let format = args.target_format.as_deref().unwrap_or("raw");
        let filename = (!filename.is_empty()).then_some(filename);
        crate::print(&option_help(format, filename, known(filename.unwrap_or_default()))?)?;
        return Ok(0);
    }
    check_snapshot(args)?;
    let interrupt = Rc::new(Interrupt::watch()?);
    let progress = Progress::new(args.progress && !args.quiet, crate::on_terminal(), 1.0);
    let mut sources = Vec::new();
    for source in &args.sources {
        let reading = image::reading(&args.common, args.source_cache, args.force_share);
        // What is copied must not change meanwhile.
        let denies = Permissions::WRITE.with(Permissions::RESIZE);
        let mode = OpenMode { denies, ..reading };
        sources.push(image::open_at(client, source, mode, args.snapshot.as_ref()).await?);
    }
    let bitmaps = match (args.bitmaps, sources.first()) {
        (true, Some(first)) => {
            check_bitmaps(args, image::driver_of(client, first) == "qcow2")?;
            if let Some(format) = args.target_format.as_deref().filter(|format| *format != "qcow2") {
                return Err(no_bitmaps(format));
            }
            bitmap::to_copy(client, first, args.skip_broken_bitmaps).await?
        }
        _ => Vec::new(),
    };
    // Sources begin at sectors.
    let bytes = sources.iter().fold(0, |end: u64, source| end.next_multiple_of(512) + source.len());
    let plan = plan_target(args, known(filename), bytes)?;
    if let Some(options) = &plan.options {
        let made = create::make(client, filename, options).await;
        made.map_err(|error| cannot_create(args, &error))?;
    }
    let target = open_target(client, args, &plan).await?;
    if target.len() < bytes {
        return Err(Failure::new("output file is smaller than input file"));
    }
    if args.bitmaps && !bitmap::can_be_kept(client, &target).await? {
        return Err(no_bitmaps(image::driver_of(client, &target)));
    }
    let asked = Rc::clone(&interrupt);
    let copied = copy(client, args, &plan, (&sources, &target), (progress, asked), tool).await;
    let copied = match copied {
        Ok(()) => bitmap::copy(client, &target, bitmaps, tool).await,
        stopped => stopped,
    };
    let closed = image::close(target).await;
    for source in sources {
        image::close(source).await?;
    }
    if copied.is_err() {
        interrupt.obey();
    }
    copied?;
    closed?;
    Ok(0)
}

async fn open_target(client: &Client, args: &ConvertArgs, plan: &TargetPlan) -> Result<Image, Failure> {
    let cache = args.target_cache;
    let mode = OpenMode { writable: true, ..image::reading(&args.common, cache, false) };
    let (name, spec) = match &args.target {
        Some(ConvertTarget::File(name)) => {
            let image = ImageName::File(name.clone());
            // What was made with a key is opened with it.
            let options = plan.options.as_ref().map(create::open_options).unwrap_or_default();
            let spec = from_filename_and(Some(name), args.target_format.as_deref(), options, mode);
            (image, spec)
        }
        Some(ConvertTarget::Options(name)) => (name.clone(), from_options(name.options(), mode)),
        None => return Err(Failure::new("Must specify image file name")),
    };
    let mut spec: NodeSpec =
        spec.map_err(|error| cannot_open(&name, &refusal(&error, None, &name.options())))?;
    if args.compress
        && let DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } = &mut spec.driver
    {
        options.pack_fresh_only = true;
    }
    let target = image::open_spec(client, &name, &spec).await?;
    if args.compress && plan.options.is_none() {
        let node = target.node();
        let compresses = client
            .run(move |io| async move { Ok(io.driver(node).is_some_and(|driver| driver.compresses())) });
        if !compresses.await.unwrap_or(false) {
            image::close(target).await?;
            return Err(cannot_compress());
        }
    }
    Ok(target)
}

async fn copy(
    client: &Client,
    args: &ConvertArgs,
    plan: &TargetPlan,
    (sources, target): (&[Image], &Image),
    (progress, interrupt): (Progress, Rc<Interrupt>),
    tool: &str,
) -> Result<(), Failure> {
    let node = target.node();
    let about = client.run(move |io| async move {
        let backing = io.edge(node, Role::Backing).map(|backing| io.len(backing));
        let compresses = io.driver(node).is_some_and(|driver| driver.only_compresses());
        Ok((io.starts_as_zeroes(node), backing, compresses))
    });
    let (empty, backing_len, only_compresses) =
        about.await.map_err(|error| Failure::new(error.to_string()))?;
    let work = Convert {
        sources: sources.iter().map(Image::node).collect(),
        target: target.node(),
        above: None,
        compress: args.compress || only_compresses,
        sparse: args.sparse_size,
        workers: usize::from(args.parallel),
        out_of_order: args.out_of_order,
        target_is_zero: args.target_is_zero || (plan.options.is_some() && empty),
        target_has_backing: plan.has_backing,
        // Of a target that has none after all, what the sources' own images do not hold stays as it is.
        backing_len: backing_len.unwrap_or(u64::MAX),
        copy_range: args.copy_range,
        salvage: args.salvage,
        rate: args.rate_limit,
        count: if progress.is_text() { Count::Data } else { Count::Disk },
    };
    let progress = Rc::new(RefCell::new(progress));
    let shown = Rc::clone(&progress);
    let (quiet, tool) = (args.quiet, tool.to_owned());
    let copied = client.run(move |io| async move {
        let tell = Rc::new(move |done, of| crate::tell(&mut shown.borrow_mut(), done, of));
        let lost = |lost: &Stopped| {
            if !quiet {
                say(&Message::Warning(lost_at(lost)).render(&tool));
            }
        };
        Ok(convert(&io, &work, tell, &|| interrupt.came(), &lost).await)
    });
    let copied = copied.await;
    crate::print(progress.borrow_mut().finish())?;
    match copied {
        Ok(copied) => copied.map_err(|stopped| stopped_at(&stopped)),
        Err(error) => Err(Failure::new(format!("error while converting: {error}"))),
    }
}

/// What `--salvage` says of a sector that it goes on from, in the reference's words.
fn lost_at(lost: &Stopped) -> String {
    let what = if lost.doing == Doing::Status { "reading block status at" } else { "reading" };
    format!("error while {what} offset {}: {}", lost.at, image::strerror(&lost.source))
}

/// The reference's words, and below them what we know besides.
fn stopped_at(stopped: &Stopped) -> Failure {
    let Stopped { doing, at, source, .. } = stopped;
    let reason = image::strerror(source);
    let what = match doing {
        Doing::Status => format!("reading block status at offset {at}"),
        Doing::Read => format!("reading at byte {at}"),
        Doing::Write => format!("writing at byte {at}"),
        Doing::Flush | Doing::Empty => format!("flushing the target at byte {at}"),
    };
    Failure::new(format!("error while {what}: {reason}\n{source}"))
}
