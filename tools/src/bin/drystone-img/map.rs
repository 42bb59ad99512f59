//! `map`.

use std::rc::Rc;

use drystone_core::engine::{Io, Status};
use drystone_core::error::Result as CoreResult;
use drystone_core::graph::{CHAIN_MAX, Role};
use drystone_core::job::Statuses;
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{CacheMode, MapArgs, MapOutput};
use drystone_tools::img::map::{MapEntry, MapPrinter};
use drystone_tools::img::picture::{Picture, PictureFormat};
use drystone_tools::message::Failure;

use crate::image;

pub async fn run(client: &Client, args: &MapArgs) -> Result<u8, Failure> {
    let mode = image::reading(&args.common, CacheMode::WRITEBACK, args.force_share);
    let disk = image::open(client, &args.source, mode).await?;
    let start = args.start_offset;
    let end = args.max_length.map_or(disk.len(), |len| start.saturating_add(len).min(disk.len()));
    let node = disk.node();
    let mut writer = Writer::begin(client, args, &disk, (start, end)).await?;
    let statuses = Rc::new(Statuses::new(image::bytes_on_host));
    let (mut at, mut last) = (start, None::<MapEntry>);
    while at < end {
        // A batch at a time: the output goes out as it comes, and memory stays small.
        let guessing = Rc::clone(&statuses);
        let batch = client.run(move |io| async move { walk(&io, &guessing, node, at, end).await }).await;
        let batch = batch.map_err(|error| {
            let reason = image::strerror(&error);
            Failure::new(format!("Could not read file metadata: {reason}\n{error}"))
        })?;
        for entry in batch {
            at = entry.start + entry.length;
            last = Some(entry.clone());
            writer.push(entry)?;
        }
        writer.write_out()?;
    }
    // The reference counts whole sectors; what a file lacks of the last one reads as zeros.
    let whole = disk.len().next_multiple_of(512);
    let asked = args.max_length.map_or(whole, |len| start.saturating_add(len).min(whole));
    if let Some(last) = last.filter(|_| at == disk.len() && at < asked) {
        let offset = last.offset.map(|offset| offset + last.length);
        let missing = MapEntry { start: at, length: asked - at, zero: true, data: false, offset, ..last };
        writer.push(missing)?;
    }
    writer.finish(start)?;
    image::close(disk).await?;
    Ok(0)
}

/// What becomes of the entries.
enum Writer {
    /// The text goes out a batch at a time.
    Text(MapPrinter, String),
    Picture(Box<Picture>, PictureFormat),
}

impl Writer {
    async fn begin(
        client: &Client,
        args: &MapArgs,
        disk: &Image,
        (start, end): (u64, u64),
    ) -> Result<Self, Failure> {
        let format = match args.output {
            MapOutput::Text(format) => {
                let (printer, head) = MapPrinter::new(format);
                crate::print(&head)?;
                return Ok(Self::Text(printer, String::new()));
            }
            MapOutput::Picture(format) => format,
        };
        let node = disk.node();
        let layers = client.run(move |io| async move {
            let chain = std::iter::successors(Some(node), |image| io.edge(*image, Role::Backing));
            Ok(chain.take(CHAIN_MAX).map(|image| io.title(image)).collect())
        });
        let layers = layers.await.map_err(|error| Failure::new(error.to_string()))?;
        let picture = Picture::new(args.source.name.text(), layers, start, end);
        Ok(Self::Picture(Box::new(picture), format))
    }

    fn push(&mut self, entry: MapEntry) -> Result<(), Failure> {
        match self {
            Self::Text(printer, text) => match printer.push(entry) {
                Ok(more) => {
                    text.push_str(&more);
                    Ok(())
                }
                // What comes before the mistake is shown.
                Err(failure) => self.write_out().and(Err(failure)),
            },
            Self::Picture(picture, _) => {
                picture.push(&entry);
                Ok(())
            }
        }
    }

    fn write_out(&mut self) -> Result<(), Failure> {
        match self {
            Self::Text(_, text) => crate::print(&std::mem::take(text)),
            Self::Picture(..) => Ok(()),
        }
    }

    fn finish(mut self, start: u64) -> Result<(), Failure> {
        self.write_out()?;
        match self {
            Self::Text(printer, _) => crate::print(&printer.finish(start)?),
            Self::Picture(picture, format) => crate::print(&picture.render(format)),
        }
    }
}

async fn walk(
    io: &Io,
    statuses: &Statuses,
    node: drystone_core::graph::NodeId,
    start: u64,
    end: u64,
) -> CoreResult<Vec<MapEntry>> {
    /// Entries told at once.
    const BATCH: usize = 4096;
    let mut entries = Vec::new();
    let mut at = start;
    while at < end && entries.len() < BATCH {
        let status = statuses.status(io, node, at, end - at, None).await?;
        let length = status.len;
        entries.push(entry(io, at, status));
        at += length;
    }
    Ok(entries)
}

fn entry(io: &Io, start: u64, status: Status) -> MapEntry {
    // Of what a leaf without storage holds, nothing can be said.
    let stored = !status.allocated || status.data || status.zero;
    let place = status.place.filter(|_| stored);
    MapEntry {
        start,
        length: status.len,
        depth: status.depth,
        present: status.allocated && stored,
        zero: status.zero,
        data: status.data,
        compressed: status.compressed,
        offset: place.map(|(_, offset)| offset),
        filename: place.map(|(leaf, _)| io.title(leaf)),
    }
}
