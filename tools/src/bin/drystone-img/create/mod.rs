//! `create`, and making the target of `convert`. What a format takes from the options is in a file of its name, where
//! it is more than a line.

mod luks;
mod qcow2;
mod vhdx;
mod vmdk;
mod vpc;

pub use luks::open_options;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use drystone_core::error::Error;
use drystone_core::format::{parallels, qcow, qed, vdi};
use drystone_core::graph::open::{DriverSpec, ImageNames, NodeSpec, OpenMode, beside, names_protocol};
use drystone_core::intent::{Errno, Preallocation};
use drystone_core::job::{ImageSpec, create};
use drystone_exec_linux::Client;
use drystone_tools::img::args::{CreateArgs, Source};
use drystone_tools::img::create::{BackingFound, CreateOptions, CreateRequest, Known, option_help};
use drystone_tools::message::Failure;
use drystone_tools::options::ImageName;

use crate::{FORMATS, image};

/// What `create` says of a file that the host does not let grow so far.
const TOO_LARGE: &str = "The image size is too large for file format 'raw'";

/// The drivers that an image may name for its backing file: those of the reference's schema.
pub const DRIVERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "io_uring",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "nvme-io_uring",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "virtio-blk-vfio-pci",
    "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa",
    "vmdk",
    "vpc",
    "vvfat",
];

/// The formats, and the protocol that a file name has.
pub fn known(filename: &str) -> Known<'_> {
    let protocol = match filename.split_once(':') {
        Some(("nvme", _)) => Ok("nvme"),
        Some(("nbd" | "nbd+tcp" | "nbd+unix" | "nbds" | "nbds+unix", _)) => Ok("nbd"),
        Some((protocol, _)) if names_protocol(filename) && protocol != "file" => Err(protocol),
        _ => Ok("file"),
    };
    Known { drivers: FORMATS, protocol }
}

pub async fn run(client: &Client, args: &CreateArgs) -> Result<u8, Failure> {
    if args.asks_for_help() {
        let filename = (!args.filename.is_empty()).then_some(args.filename.as_str());
        crate::print(&option_help(&args.format, filename, known(&args.filename))?)?;
        return Ok(0);
    }
    let request = CreateRequest::new(args, known(&args.filename))?;
    let found = match request.backing_to_open() {
        None => None,
        Some((name, format)) => {
            let path = if names_protocol(name) { name.into() } else { beside(&args.filename, name) };
            Some(
                look(client, args.common.image_names, path, format)
                    .await
                    .map_err(|error| request.backing_failure(&error))?,
            )
        }
    };
    let options = request.finish(found.as_ref())?;
    if !args.quiet {
        crate::print(&options.formatting_line(&args.filename))?;
    }
    make(client, &args.filename, &options)
        .await
        .map_err(|error| if error.ends_with(": File too large") { TOO_LARGE.into() } else { error })
        .map_err(|error| Failure::new(format!("{}: {error}", args.filename)))?;
    Ok(0)
}

/// Length and format of a backing file.
async fn look(
    client: &Client,
    names: ImageNames,
    path: String,
    format: Option<&str>,
) -> Result<BackingFound, String> {
    let name = ImageName::from_filename(&path).map_err(|error| error.to_string())?;
    let source = Source { name, format: format.map(str::to_owned) };
    // Somebody may be writing to it: nothing is read of it but what it is, and the new image is opened later.
    let spec = image::spec(&source, OpenMode { names, force_share: true, ..OpenMode::default() });
    let prefix = format!("Could not open '{}': ", source.name.text());
    let spec = spec.map_err(|failure| {
        let text = first_message(&failure);
        text.strip_prefix(&prefix).map_or(text.clone(), str::to_owned)
    })?;
    let disk = client.open(&spec).await.map_err(|error| error.to_string())?;
    // The reference counts whole sectors.
    let virtual_size = disk.len().next_multiple_of(512);
    let found = BackingFound { virtual_size, format: image::driver_of(client, &disk).into() };
    image::close(disk).await.map_err(|failure| first_message(&failure))?;
    Ok(found)
}

fn first_message(failure: &Failure) -> String {
    let text = failure.render("");
    text.strip_prefix(": ").unwrap_or(&text).trim_end().to_owned()
}

/// Makes the image that the options describe.
///
/// # Errors
/// The text that follows the file's name in the message.
pub async fn make(client: &Client, path: &str, options: &CreateOptions) -> Result<(), String> {
    let image = image_spec(options)?;
    let path = path.strip_prefix("file:").unwrap_or(path).to_owned();
    if let ImageSpec::Qcow2(image) = &image
        && let Some(data) = image.data_file.as_deref().filter(|data| same_file(&path, data))
    {
        return Err(format!("the data file '{data}' and the image are the same file"));
    }
    expect_existing(client, options.format(), &path).await?;
    let shown = path.clone();
    let made = client.run(move |io| async move { create(&io, &path, &image).await }).await;
    made.map_err(|error| match (&*error, std::fs::metadata(&shown)) {
        (Error::Create { errno: Errno::ENOSPC, .. }, Ok(there)) if !there.is_file() => {
            "Cannot grow device files".into()
        }
        (Error::Create { errno: Errno::ENOSPC, .. }, Err(_)) if known(&shown).protocol == Ok("nbd") => {
            "Cannot grow NBD nodes".into()
        }
        _ => error.to_string(),
    })
}

/// Refuses a name that a protocol which makes nothing does not have.
async fn expect_existing(client: &Client, protocol: &str, path: &str) -> Result<(), String> {
    let opened = match protocol {
        "nbd" if known(path).protocol != Ok("nbd") => {
            Err("File name string for NBD must start with 'nbd:'".to_owned())
        }
        "nvme" if known(path).protocol != Ok("nvme") => Err("'device' option is required".to_owned()),
        "host_device" => {
            let mode = OpenMode { writable: true, ..OpenMode::default() };
            let spec = NodeSpec { node_name: None, mode, driver: DriverSpec::Device(path.into()) };
            match client.open(&spec).await {
                Ok(device) => device.close().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        }
        _ => Ok(()),
    };
    opened.map_err(|why| {
        format!(
            "Protocol driver '{protocol}' does not support creating new images, so an existing image must be selected as \
             the target; however, opening the given target as an existing image failed: {why}"
        )
    })
}

/// Whether two names lead to one file, through whatever links; a file that is not there yet leads nowhere.
fn same_file(a: &str, b: &str) -> bool {
    let identity = |name: &str| {
        let path = Path::new(name);
        match std::fs::metadata(path) {
            Ok(there) => Some((there.dev(), there.ino(), OsString::new())),
            // It would be made in this folder.
            Err(_) => {
                let folder =
                    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
                let folder = std::fs::metadata(folder).ok()?;
                Some((folder.dev(), folder.ino(), path.file_name()?.to_owned()))
            }
        }
    };
    identity(a).is_some_and(|one| identity(b) == Some(one))
}

/// The image that the options describe; each format reads its own.
fn image_spec(options: &CreateOptions) -> Result<ImageSpec, String> {
    let size = options.number("size").unwrap_or(0).next_multiple_of(512);
    match options.format() {
        "luks" => luks::image_spec(options),
        "qcow2" => qcow2::image_spec(options),
        "parallels" => {
            // The header's file is too short for its space to be worth reserving; the modes are those that a file has.
            preallocation(options)?;
            let cluster_size = options.number("cluster_size").unwrap_or(1 << 20);
            Ok(ImageSpec::Parallels(parallels::CreateOptions { size, cluster_size }))
        }
        "vhdx" => vhdx::image_spec(options),
        "vpc" => vpc::image_spec(options, preallocation(options)?),
        "vdi" => {
            let fixed = options.switch("static").unwrap_or(false);
            Ok(ImageSpec::Vdi(vdi::CreateOptions { size, fixed, preallocation: preallocation(options)? }))
        }
        "qcow" => {
            if options.switch("encryption") == Some(true) || options.text("encrypt.format").is_some() {
                return Err("encryption is not supported for qcow images".into());
            }
            let backing = options.text("backing_file").map(str::to_owned);
            Ok(ImageSpec::Qcow(qcow::CreateOptions { size, backing }))
        }
        "qed" => {
            let raw = options.text("backing_fmt") == Some("raw");
            Ok(ImageSpec::Qed(qed::CreateOptions {
                size,
                cluster_size: options.number("cluster_size").unwrap_or(65536),
                table_size: options.number("table_size").unwrap_or(4),
                backing: options.text("backing_file").map(|name| (name.to_owned(), raw)),
            }))
        }
        "vmdk" => vmdk::image_spec(options),
        _ => Ok(ImageSpec::Raw { size, preallocation: preallocation(options)? }),
    }
}

/// How the space of a file is reserved, for formats that leave that to the file.
fn preallocation(options: &CreateOptions) -> Result<Preallocation, String> {
    match options.text("preallocation").unwrap_or("off") {
        "off" => Ok(Preallocation::Off),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        "metadata" => Err("Unsupported preallocation mode: metadata".into()),
        other => Err(format!("invalid parameter value: {other}")),
    }
}
