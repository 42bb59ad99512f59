//! `check`.

use std::any::Any;

use drystone_core::error::Error;
use drystone_core::format;
use drystone_core::format::qcow2::{Qcow2Error, check};
use drystone_core::format::qed;
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{self, CheckArgs, OutputFormat};
use drystone_tools::img::check::{CheckError, CheckReport};
use drystone_tools::img::open::cannot_open;
use drystone_tools::message::Failure;

use crate::image;

pub async fn run(client: &Client, args: &CheckArgs) -> Result<u8, Failure> {
    let mode = image::reading(&args.common, args.cache, args.force_share);
    let mode = OpenMode { writable: args.repair.is_some(), ..mode };
    let spec = for_check(image::spec(&args.source, mode)?);
    let disk = image::open_spec(client, &args.source.name, &spec).await?;
    let found = examine(client, &disk, args).await;
    let closed = image::close(disk).await;
    let report = found?;
    closed?;
    if !args.quiet {
        crate::print(&report.render(args.output))?;
    }
    report.exit_code()
}

/// Checks, and once more where something was repaired.
async fn examine(client: &Client, disk: &Image, args: &CheckArgs) -> Result<CheckReport, Failure> {
    let repair = args.repair.map(|repair| match repair {
        args::Repair::Leaks => check::Repair::Leaks,
        args::Repair::All => check::Repair::All,
    });
    let report = once(client, disk, args, repair).await?;
    if !report.repaired() {
        return Ok(report);
    }
    if !args.quiet && args.output == OutputFormat::Human {
        crate::print(&report.repair_summary())?;
    }
    Ok(once(client, disk, args, None).await?.with_repairs_of(&report))
}

async fn once(
    client: &Client,
    disk: &Image,
    args: &CheckArgs,
    repair: Option<check::Repair>,
) -> Result<CheckReport, Failure> {
    let node = disk.node();
    let found = client.run(move |io| async move {
        let driver = io.driver(node);
        let name = driver.as_ref().map_or("file", |driver| driver.name());
        let mut say = |line: String| crate::say(&format!("{line}\n"));
        let report = match (name, repair) {
            ("qcow2", Some(what)) => check::repair(&io, node, what, &mut say, &|_, _| {}).await?,
            ("qed", Some(check::Repair::All)) => qed::repair(&io, node).await?,
            ("qed", Some(check::Repair::Leaks)) => qed::check(&io, node).await?,
            // Its log was replayed as it was opened for writing; nothing else is repaired.
            ("vhdx", Some(_)) => format::check(&io, node, &mut say, &|_, _| {}).await?,
            (_, None) => match format::check(&io, node, &mut say, &|_, _| {}).await {
                Err(error) if matches!(*error, Error::Unsupported { .. }) => return Ok(None),
                report => report?,
            },
            _ => return Ok(None),
        };
        Ok(Some((name, report)))
    });
    let found = found.await.map_err(|error| match &*error {
        Error::Format { fault, .. } if is_lost(fault.as_any()) => {
            CheckError::Io("Input/output error".into()).into_failure()
        }
        _ => cannot_open(&args.source.name, &error.to_string()),
    })?;
    let (name, found) = found.ok_or_else(|| CheckError::NotSupported.into_failure())?;
    Ok(CheckReport {
        filename: args.source.name.text().to_owned(),
        format: name.into(),
        check_errors: found.check_errors,
        corruptions: found.corruptions,
        leaks: found.leaks,
        corruptions_fixed: found.corruptions_fixed,
        leaks_fixed: found.leaks_fixed,
        image_end_offset: found.image_end_offset,
        total_clusters: found.total_clusters,
        allocated_clusters: found.allocated_clusters,
        fragmented_clusters: found.fragmented_clusters,
        compressed_clusters: found.compressed_clusters,
    })
}

/// Whether refcounts have to be rebuilt, which `-r leaks` does not do.
fn is_lost(fault: &dyn Any) -> bool {
    fault.downcast_ref::<Qcow2Error>() == Some(&Qcow2Error::RefcountsLost)
}

/// What is wrong with an image is no reason not to open it.
fn for_check(mut spec: NodeSpec) -> NodeSpec {
    if let DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } = &mut spec.driver {
        options.for_check = true;
    }
    spec
}
