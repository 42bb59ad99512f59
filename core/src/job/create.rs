//! Create: a new image file.
//!
//! Order on disk: the file and its locks first, so that an image that somebody uses is never emptied; then the format's
//! own order.

use crate::engine::Io;
use crate::error::Result;
use crate::format::{luks, parallels, qcow, qcow2, qed, vdi, vhdx, vmdk, vpc};
use crate::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open};
use crate::graph::options::location;
use crate::graph::{NodeId, Preallocate};
use crate::intent::{Location, Permissions, Preallocation};

/// An image to make.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageSpec {
    /// A file of zeros.
    Raw {
        /// Length in bytes.
        size: u64,
        /// How its space is reserved.
        preallocation: Preallocation,
    },
    /// An empty Parallels image.
    Parallels(parallels::CreateOptions),
    /// An encrypted volume.
    Luks(luks::CreateOptions),
    /// An empty qcow image.
    Qcow(qcow::CreateOptions),
    /// An empty QED image.
    Qed(qed::CreateOptions),
    /// An empty VDI image.
    Vdi(vdi::CreateOptions),
    /// An empty VMDK image, with its extents.
    Vmdk(vmdk::CreateOptions),
    /// An empty VHDX image.
    Vhdx(vhdx::CreateOptions),
    /// An empty VHD image.
    Vpc(vpc::CreateOptions),
    /// An empty qcow2 image; its external data file, where it has one, is made too.
    Qcow2(qcow2::CreateOptions),
}

/// Makes the image.
///
/// # Errors
/// When the options do not go together, the file is in use, or the host fails.
pub async fn create(io: &Io, path: &str, image: &ImageSpec) -> Result<()> {
    let location = location(path)?;
    match image {
        ImageSpec::Raw { size, preallocation } => io.create_leaf(&location, *size, *preallocation).await,
        ImageSpec::Parallels(options) => {
            in_new_file(io, &location, async |file| parallels::create(io, file, options).await).await
        }
        ImageSpec::Luks(options) => {
            in_new_file(io, &location, async |file| luks::create(io, file, options).await).await
        }
        ImageSpec::Qcow(options) => {
            in_new_file(io, &location, async |file| qcow::create(io, file, options).await).await
        }
        ImageSpec::Qed(options) => {
            in_new_file(io, &location, async |file| qed::create(io, file, options).await).await
        }
        ImageSpec::Vdi(options) => {
            in_new_file(io, &location, async |file| vdi::create(io, file, options).await).await
        }
        ImageSpec::Vmdk(options) => {
            for new in options.files(io, path).await? {
                // Names of extents are paths, whatever they begin with.
                let location =
                    if new.path == path { location.clone() } else { Location::Path(new.path.clone()) };
                in_new_file(io, &location, async |file| vmdk::create(io, file, &new).await).await?;
            }
            Ok(())
        }
        ImageSpec::Vhdx(options) => {
            in_new_file(io, &location, async |file| vhdx::create(io, file, options).await).await
        }
        ImageSpec::Vpc(options) => {
            in_new_file(io, &location, async |file| vpc::create(io, file, options).await).await
        }
        ImageSpec::Qcow2(options) => {
            let refused = |fault| crate::error::Error::format(path, fault);
            options.check().map_err(refused)?;
            if let Some(name) = &options.data_file {
                if name == path {
                    let text = "the data file and the image are the same file";
                    return Err(refused(qcow2::Qcow2Error::Option(text.into())));
                }
                let data = Location::Path(name.clone());
                io.create_leaf(&data, options.size, options.preallocation.of_file()).await?;
            }
            in_new_file(io, &location, async |file| qcow2::create(io, file, options).await).await?;
            match options.preallocates() {
                Preallocate::Off => Ok(()),
                how => preallocate(io, location, how, options).await,
            }
        }
    }
}

/// Makes an empty file that nobody else uses, has `make` fill it, and closes it.
async fn in_new_file(
    io: &Io,
    location: &Location,
    make: impl AsyncFnOnce(NodeId) -> Result<()>,
) -> Result<()> {
    let file = create_file(io, location).await?;
    let made = make(file).await;
    made.and(io.close(file).await)
}

/// Makes an empty file that nobody else uses, and opens it.
async fn create_file(io: &Io, location: &Location) -> Result<NodeId> {
    io.create_leaf(location, 0, Preallocation::Off).await?;
    let mode = OpenMode { writable: true, denies: Permissions::ALL, ..OpenMode::default() };
    open(io, &NodeSpec::leaf(location.clone(), mode)).await
}

/// Opens the new image, without its backing file, and reserves space for its disk.
async fn preallocate(
    io: &Io,
    location: Location,
    how: Preallocate,
    options: &qcow2::CreateOptions,
) -> Result<()> {
    let volume = options.encrypt.as_ref();
    let encrypt = qcow2::EncryptOptions {
        format: None,
        key_secret: volume.and_then(|volume| volume.key_secret.clone()),
    };
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let driver = DriverSpec::Qcow2 {
        file: Box::new(NodeSpec::leaf(location, mode)),
        backing: ChildSpec::None,
        data_file: ChildSpec::FromImage,
        options: qcow2::Qcow2Options { encrypt, ..qcow2::Qcow2Options::default() },
    };
    let node = open(io, &NodeSpec { node_name: None, mode, driver }).await?;
    let made = qcow2::preallocate(io, node, how).await;
    let closed = io.close(node).await;
    made.and(closed)
}
