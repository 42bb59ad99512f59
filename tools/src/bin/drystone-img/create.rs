//! `create`, and making the target of `convert`.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use drystone_core::compute::Codec;
use drystone_core::error::Error;
use drystone_core::format::{qcow2, vdi};
use drystone_core::graph::Preallocate;
use drystone_core::graph::open::{ImageNames, OpenMode, beside, names_protocol};
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
    let spec = image::spec(&source, OpenMode { names, ..OpenMode::default() });
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
    let shown = path.clone();
    let made = client.run(move |io| async move { create(&io, &path, &image).await }).await;
    made.map_err(|error| match (&*error, std::fs::metadata(&shown)) {
        (Error::Create { errno: Errno::ENOSPC, .. }, Ok(there)) if !there.is_file() => {
            "Cannot grow device files".into()
        }
        _ => error.to_string(),
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

fn image_spec(options: &CreateOptions) -> Result<ImageSpec, String> {
    let size = options.number("size").unwrap_or(0);
    let preallocation = options.text("preallocation").unwrap_or("off");
    if options.format() != "qcow2" {
        let preallocation = match preallocation {
            "off" => Preallocation::Off,
            "falloc" => Preallocation::Falloc,
            "full" => Preallocation::Full,
            "metadata" => return Err("Unsupported preallocation mode: metadata".into()),
            other => return Err(format!("invalid parameter value: {other}")),
        };
        let size = size.next_multiple_of(512);
        return Ok(match options.format() {
            "vdi" => {
                let fixed = options.switch("static").unwrap_or(false);
                ImageSpec::Vdi(vdi::CreateOptions { size, fixed, preallocation })
            }
            _ => ImageSpec::Raw { size, preallocation },
        });
    }
    let preallocation = match preallocation {
        "off" => Preallocate::Off,
        "metadata" => Preallocate::Metadata,
        "falloc" => Preallocate::Falloc,
        "full" => Preallocate::Full,
        other => return Err(format!("Parameter 'preallocation' does not accept value '{other}'")),
    };
    if options.switch("encryption") == Some(true) || options.text("encrypt.format").is_some() {
        return Err("encryption is not supported yet".into());
    }
    if options.text("backing_fmt").is_some() && options.text("backing_file").is_none() {
        return Err("Backing format cannot be used without backing file".into());
    }
    if let Some(format) = options.text("backing_fmt").filter(|format| !DRIVERS.contains(format)) {
        return Err(format!("Parameter 'backing-fmt' does not accept value '{format}'"));
    }
    if size > i64::MAX as u64 / 512 * 512 {
        return Err("Could not resize image: Image size cannot be negative".into());
    }
    let number = |name: &str, default: u64| options.number(name).unwrap_or(default);
    let version = match options.text("compat").unwrap_or("1.1") {
        "0.10" | "v2" => 2,
        "1.1" | "v3" => 3,
        other => return Err(format!("Parameter 'version' does not accept value '{other}'")),
    };
    let compression = match options.text("compression_type").unwrap_or("zlib") {
        "zlib" => Codec::Zlib,
        "zstd" => Codec::Zstd,
        other => return Err(format!("Parameter 'compression-type' does not accept value '{other}'")),
    };
    let text = |name: &str| options.text(name).map(str::to_owned);
    let refcount_bits = u32::try_from(number("refcount_bits", 16)).unwrap_or(u32::MAX);
    Ok(ImageSpec::Qcow2(qcow2::CreateOptions {
        size: size.next_multiple_of(512),
        version,
        cluster_size: number("cluster_size", 65536),
        refcount_bits,
        extended_l2: options.switch("extended_l2").unwrap_or(false),
        compression,
        lazy_refcounts: options.switch("lazy_refcounts").unwrap_or(false),
        backing: text("backing_file").map(|name| (name, text("backing_fmt"))),
        data_file: text("data_file"),
        data_file_raw: options.switch("data_file_raw").unwrap_or(false),
        preallocation,
    }))
}
