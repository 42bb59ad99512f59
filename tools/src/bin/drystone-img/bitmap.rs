//! `bitmap`, and the bitmaps of `convert`.

use drystone_core::format::qcow2::{DirtyBitmap, Qcow2, Qcow2Error, find_bitmap};
use drystone_core::graph::Role;
use drystone_core::graph::open::{ChildSpec, OpenMode};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{BitmapArgs, BitmapStep, CacheMode, Source};
use drystone_tools::message::Failure;

use crate::image;

pub async fn run(client: &Client, args: &BitmapArgs) -> Result<u8, Failure> {
    let mode = image::reading(&args.common, CacheMode::WRITEBACK, false);
    let writing = OpenMode { writable: true, ..mode };
    let disk = open_alone(client, &args.source, writing).await?;
    let changed = change(client, args, &disk, mode).await;
    let closed = image::close(disk).await;
    changed?;
    closed?;
    Ok(0)
}

/// Opens an image without those below it: its bitmaps say nothing of them, and one of them may be the image that another's
/// bitmap is merged into.
async fn open_alone(client: &Client, source: &Source, mode: OpenMode) -> Result<Image, Failure> {
    let mut spec = image::spec(source, mode)?;
    if let Some(backing) = spec.backing_mut() {
        *backing = ChildSpec::None;
    }
    image::open_spec(client, &source.name, &spec).await
}

async fn change(client: &Client, args: &BitmapArgs, disk: &Image, mode: OpenMode) -> Result<(), Failure> {
    let other = match &args.merge_from {
        None => None,
        Some(source) => {
            let image = open_alone(client, source, mode).await?;
            let loaded = load(client, &image).await;
            let size = image.len();
            image::close(image).await?;
            Some((loaded?, size))
        }
    };
    let (size, granularity) = (disk.len(), args.granularity);
    let (name, steps) = (args.name.clone(), args.steps.clone());
    on_image(client, disk, move |qcow2| {
        for step in steps {
            let failed = |why: String| {
                Failure::new(format!("Operation {} on bitmap {name} failed: {why}", step.name()))
            };
            let Some(qcow2) = qcow2 else {
                let why = match step {
                    BitmapStep::Add => {
                        "Can't store persistent bitmaps to the image: Operation not supported".into()
                    }
                    _ => Qcow2Error::NoBitmap { name: name.clone() }.to_string(),
                };
                return Err(failed(why));
            };
            let done = match &step {
                BitmapStep::Add => qcow2.add_bitmap(&name, granularity, true),
                BitmapStep::Remove => qcow2.remove_bitmap(&name),
                BitmapStep::Clear => qcow2.clear_bitmap(&name),
                BitmapStep::Enable => qcow2.enable_bitmap(&name, true),
                BitmapStep::Disable => qcow2.enable_bitmap(&name, false),
                BitmapStep::Merge(from) => match &other {
                    None => qcow2.bitmap(from).and_then(|from| qcow2.merge_bitmap(&name, &from, size)),
                    Some((all, size)) => {
                        find_bitmap(all, from).and_then(|from| qcow2.merge_bitmap(&name, from, *size))
                    }
                },
            };
            done.map_err(|fault| failed(fault.to_string()))?;
        }
        Ok(())
    })
    .await
}

/// Does something to an image that may be of another format.
async fn on_image<T: 'static>(
    client: &Client,
    image: &Image,
    act: impl FnOnce(Option<&Qcow2>) -> Result<T, Failure> + 'static,
) -> Result<T, Failure> {
    let node = image.node();
    let done = client.run(move |io| async move {
        let driver = io.driver(node);
        Ok(act(driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>())))
    });
    done.await.map_err(|error| Failure::new(error.to_string()))?
}

/// The bitmaps of an image that is open for reading; none in other formats.
pub async fn load(client: &Client, image: &Image) -> Result<Vec<DirtyBitmap>, Failure> {
    let node = image.node();
    let loaded = client.run(move |io| async move {
        let driver = io.driver(node);
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        match (qcow2, io.edge(node, Role::File)) {
            (Some(qcow2), Some(file)) => qcow2.load_bitmaps(&io, file).await,
            _ => Ok(Vec::new()),
        }
    });
    loaded.await.map_err(|error| Failure::new(error.to_string()))
}

/// Whether an image has a place for bitmaps.
pub async fn can_be_kept(client: &Client, image: &Image) -> Result<bool, Failure> {
    on_image(client, image, |qcow2| Ok(qcow2.is_some_and(|qcow2| qcow2.header().version >= 3))).await
}

/// The bitmaps of `source` that `convert` copies.
///
/// # Errors
/// Names one that is inconsistent, unless those are left out.
pub async fn to_copy(
    client: &Client,
    source: &Image,
    skip_broken: bool,
) -> Result<Vec<DirtyBitmap>, Failure> {
    let all = load(client, source).await?;
    // The reference finds the last one first.
    if let Some(broken) = all.iter().rfind(|bitmap| bitmap.about.in_use).filter(|_| !skip_broken) {
        let name = &broken.about.name;
        return Err(Failure::new(format!(
            "Cannot copy inconsistent bitmap '{name}'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to \
             delete it"
        )));
    }
    Ok(all)
}

/// Adds copies of bitmaps to the target of a conversion.
pub async fn copy(
    client: &Client,
    target: &Image,
    mut all: Vec<DirtyBitmap>,
    tool: &str,
) -> Result<(), Failure> {
    let broken: Vec<_> = all.extract_if(.., |bitmap| bitmap.about.in_use).collect();
    for broken in broken.iter().rev() {
        let name = &broken.about.name;
        crate::say(&format!("{tool}: warning: Skipping inconsistent bitmap '{name}'\n"));
    }
    let size = target.len();
    on_image(client, target, move |qcow2| {
        let Some(qcow2) = qcow2 else { return Ok(()) };
        for from in all {
            let (name, about) = (&from.about.name, &from.about);
            let added = qcow2.add_bitmap(name, Some(about.granularity), about.auto);
            added.map_err(|fault| Failure::new(format!("Failed to create bitmap {name}: {fault}")))?;
            let merged = qcow2.merge_bitmap(name, &from, size);
            merged.map_err(|fault| Failure::new(format!("Failed to populate bitmap {name}: {fault}")))?;
        }
        Ok(())
    })
    .await
}
