//! `measure`.

use std::rc::Rc;

use drystone_core::format::qcow2::{Qcow2, Shape};
use drystone_core::graph::{NodeId, Role};
use drystone_core::job::{Statuses, measure};
use drystone_exec_linux::Client;
use drystone_tools::img::args::{CacheMode, MeasureArgs, MeasureSubject};
use drystone_tools::img::measure::MeasureTarget;
use drystone_tools::img::open::cannot_open;
use drystone_tools::message::Failure;

use crate::create::known;
use crate::image;

pub async fn run(client: &Client, args: &MeasureArgs) -> Result<u8, Failure> {
    let measured = match &args.subject {
        MeasureSubject::Size(size) => MeasureTarget::new(args, known(""))?.sum(*size, None)?,
        MeasureSubject::Image(source) => {
            let mode = image::reading(&args.common, CacheMode::WRITEBACK, args.force_share);
            let disk = image::open_at(client, source, mode, args.snapshot.as_ref()).await?;
            let target = MeasureTarget::new(args, known(""))?;
            let size = disk.len();
            let node = disk.node();
            let data = if target.needs_content() { data_len(client, node, target).await? } else { 0 };
            let mut measured = target.sum(size.next_multiple_of(512), Some(data))?;
            if let MeasureTarget::Qcow2 { shape, bitmaps: true, .. } = target {
                let bitmaps = bitmaps_len(client, node, shape).await;
                measured.bitmaps = bitmaps.map_err(|error| cannot_open(&source.name, &error.to_string()))?;
            }
            image::close(disk).await?;
            measured
        }
    };
    crate::print(&measured.render(args.output))?;
    Ok(0)
}

async fn data_len(client: &Client, node: NodeId, target: MeasureTarget) -> Result<u64, Failure> {
    let counted = client.run(move |io| async move {
        let statuses = Statuses::new(image::bytes_on_host);
        Ok(measure(&io, &statuses, node, target.cluster_size(), Rc::new(|_, _| {})).await)
    });
    let counted = counted.await.map_err(|error| Failure::new(error.to_string()))?;
    counted.map_err(|stopped| {
        let reason = image::strerror(&stopped.source);
        Failure::new(format!("Unable to get block status: {reason}\n{stopped}"))
    })
}

/// Bytes for the bitmaps of an image; `None` for one of a format without bitmaps.
async fn bitmaps_len(
    client: &Client,
    node: NodeId,
    shape: Shape,
) -> drystone_core::error::Result<Option<u64>> {
    let asked = client.run(move |io| async move {
        let driver = io.driver(node);
        // One in a Parallels image is not carried along.
        if driver.as_ref().is_some_and(|driver| driver.name() == "parallels") {
            return Ok(Some(0));
        }
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        let (Some(qcow2), Some(file)) = (qcow2, io.edge(node, Role::File)) else { return Ok(None) };
        if qcow2.header().version < 3 {
            return Ok(None);
        }
        let bitmaps = qcow2.bitmaps(&io, file).await?;
        Ok(Some(shape.bitmaps_len(io.len(node), &bitmaps)))
    });
    asked.await
}
