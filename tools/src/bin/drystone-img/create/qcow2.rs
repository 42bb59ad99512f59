//! qcow2: what its images are made with.

use drystone_core::compute::Codec;
use drystone_core::format::luks::CreateOptions as Volume;
use drystone_core::format::qcow2::CreateOptions as Qcow2;
use drystone_core::graph::Preallocate;
use drystone_core::job::ImageSpec;
use drystone_tools::img::create::CreateOptions;
use drystone_tools::img::luks::LuksChoice;

use super::DRIVERS;

/// The image that the options describe.
pub fn image_spec(options: &CreateOptions) -> Result<ImageSpec, String> {
    let size = options.number("size").unwrap_or(0);
    let preallocation = match options.text("preallocation").unwrap_or("off") {
        "off" => Preallocate::Off,
        "metadata" => Preallocate::Metadata,
        "falloc" => Preallocate::Falloc,
        "full" => Preallocate::Full,
        other => return Err(format!("Parameter 'preallocation' does not accept value '{other}'")),
    };
    let encrypt = encryption(options)?;
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
    Ok(ImageSpec::Qcow2(Qcow2 {
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
        encrypt,
    }))
}

/// The volume that encrypts the data, where there is to be one.
fn encryption(options: &CreateOptions) -> Result<Option<Volume>, String> {
    let old = options.switch("encryption") == Some(true);
    let format = match options.text("encrypt.format") {
        Some(_) if old => {
            return Err("'encrypt.format' and its alias 'encryption' can't be used at the same time".into());
        }
        None if old => "aes",
        Some(format) => format,
        None if ENCRYPT.iter().any(|name| options.text(name).is_some()) => {
            return Err("Parameter 'encrypt.format' is missing".into());
        }
        None => return Ok(None),
    };
    match format {
        "luks" => {
            let choice = LuksChoice::parse(options, "encrypt.")?;
            choice.volume(0, options.number("encrypt.iter-time")).map(Some)
        }
        "aes" => {
            Err("images with AES encryption, which is not safe, are only read; use encrypt.format=luks"
                .into())
        }
        other => Err(format!("Parameter 'format' does not accept value '{other}'")),
    }
}

/// What only an encrypted image has.
const ENCRYPT: &[&str] = &[
    "encrypt.key-secret",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
];
