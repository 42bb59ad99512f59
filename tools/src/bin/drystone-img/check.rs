//! `check`.

use drystone_core::format::qcow2::{Qcow2, check};
use drystone_exec_linux::Client;
use drystone_tools::img::args::CheckArgs;
use drystone_tools::img::check::{CheckError, CheckReport};
use drystone_tools::img::open::cannot_open;
use drystone_tools::message::Failure;

use crate::image;

pub async fn run(client: &Client, args: &CheckArgs) -> Result<u8, Failure> {
    if args.repair.is_some() {
        return Err(Failure::new(
            "repairing images (-r) is not supported yet; check without it, or use a copy",
        ));
    }
    let mode = image::reading(&args.common, args.cache, args.force_share);
    let disk = image::open(client, &args.source, mode).await?;
    let node = disk.node();
    let found = client.run(move |io| async move {
        let is_qcow2 = io.driver(node).is_some_and(|driver| driver.as_any().is::<Qcow2>());
        if !is_qcow2 {
            return Ok(None);
        }
        let mut say = |line: String| crate::say(&format!("{line}\n"));
        check::check(&io, node, &mut say, &|_, _| {}).await.map(Some)
    });
    let found = found.await.map_err(|error| cannot_open(&args.source.name, &error.to_string()));
    let closed = image::close(disk).await;
    let Some(found) = found? else { return Err(CheckError::NotSupported.into_failure()) };
    closed?;
    let report = CheckReport {
        filename: args.source.name.text().to_owned(),
        format: "qcow2".into(),
        check_errors: found.check_errors,
        corruptions: found.corruptions,
        leaks: found.leaks,
        corruptions_fixed: 0,
        leaks_fixed: 0,
        image_end_offset: found.image_end_offset,
        total_clusters: found.total_clusters,
        allocated_clusters: found.allocated_clusters,
        fragmented_clusters: found.fragmented_clusters,
        compressed_clusters: found.compressed_clusters,
    };
    if !args.quiet {
        crate::print(&report.render(args.output))?;
    }
    report.exit_code()
}
