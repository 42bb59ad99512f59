//! What is explored: an image, and a coroutine that works with it.
//!
//! ```
//! use drystone_conformance::explore::{Operation, explore, qcow2, Thoroughness};
//! use drystone_core::format::qcow2::CreateOptions;
//!
//! let options = CreateOptions { cluster_size: 512, ..CreateOptions::new(16 << 10) };
//! let operation = Operation::new("two writes", "qcow2", qcow2(&options)).doing(|guest| async move {
//!     guest.write(0, 512).await?;
//!     guest.flush().await?;
//!     guest.write(4096, 512).await
//! });
//! let explored = explore(&operation, &Thoroughness::quick(), 1).expect("no crash breaks it");
//! assert!(explored.states > 100);
//! ```

use std::future::Future;
use std::rc::Rc;

use drystone_core::buf::Buf;
use drystone_core::engine::LocalFuture;
use drystone_core::error::Result;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Label;
use drystone_core::job::{ImageSpec, create};

use super::guest::Guest;
use super::straight::straight;
use super::{Checked, Found, content, looked, read_checked};
use crate::cases::WRITABLE;
use crate::disk::DiskConfig;
use crate::qemu::{HEAD_LEN, secret_option};
use crate::sim::SECRETS;
use crate::sparse::Sparse;
use crate::world::World;

/// The path of the image that an operation is about.
pub const TOP: &str = "top";

/// A coroutine that works with an image.
pub type Body = Rc<dyn Fn(Guest) -> LocalFuture<'static, Result<()>>>;

/// Looks at the files that a crash left, beside what is looked at anyway.
pub type Inspect = Box<dyn Fn(&World) -> std::result::Result<(), String>>;

/// One operation on one kind of image.
pub struct Operation {
    /// Its name, for reports.
    pub name: &'static str,
    /// The format of [`TOP`], as QEMU names it.
    pub format: &'static str,
    pub(super) world: World,
    pub(super) content: Sparse,
    /// Other ways to see the image, that must go on showing what they showed: its snapshots.
    pub(super) views: Vec<(NodeSpec, Vec<u8>)>,
    pub(super) access: Access,
    /// How much harm a check finds in the image until it is repaired; none where it is in order.
    pub(super) flaws: Option<u64>,
    /// Bytes of a machine's state that count as a part of the disk, behind its end.
    pub(super) state_len: usize,
    /// The option that names the secret of an encrypted image.
    secret: Option<&'static str>,
    /// A filter above the image, by its driver's name.
    filter: Option<&'static str>,
    /// Whether the image is opened for direct I/O.
    direct: bool,
    /// Labels of intents that nobody need hear of when they fail.
    pub(super) best_effort: Vec<Label>,
    pub(super) body: Body,
    pub(super) inspect: Vec<Inspect>,
    /// Whether QEMU's tools read the image as it is meant.
    pub(super) known_to_qemu: bool,
}

/// What an operation wants of the image [`TOP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is opened for writing.
    Write,
    /// It is opened for reading only, and no disk may change.
    Read,
    /// It comes into being.
    Make,
    /// The operation opens it as it needs it.
    Own,
}

/// A world with an empty qcow2 image.
///
/// # Panics
/// When the options do not go together.
pub fn qcow2(options: &CreateOptions) -> World {
    qcow2_in(World::new(), options)
}

/// The same beside files that are there already.
///
/// # Panics
/// When the options do not go together.
pub fn qcow2_in(world: World, options: &CreateOptions) -> World {
    image_in(world, &ImageSpec::Qcow2(options.clone()))
}

/// How [`TOP`] is opened as an image of a format; an encrypted one with an option that names a secret.
///
/// # Panics
/// When there is no such format.
pub fn spec_of(format: &str, secret: Option<(&str, &str)>, mode: OpenMode) -> NodeSpec {
    let Some((option, id)) = secret else { return from_filename(TOP, Some(format), mode).expect("a path") };
    let file = format!(r#"{{"driver":"file","filename":"{TOP}"}}"#);
    let whole = format!(r#"json:{{"driver":"{format}","{option}":"{id}","file":{file}}}"#);
    from_filename(&whole, None, mode).expect("legal options")
}

/// A world with an image beside the files of another one.
///
/// # Panics
/// When the image cannot be made.
pub fn image_in(world: World, spec: &ImageSpec) -> World {
    let spec = spec.clone();
    let (made, world) = straight(world, |io| async move { create(&io, TOP, &spec).await });
    made.expect("the simulator makes an image");
    world
}

impl Operation {
    /// Returns an operation that does nothing with the image [`TOP`] of a world.
    ///
    /// # Panics
    /// When the image does not open.
    pub fn new(name: &'static str, format: &'static str, world: World) -> Self {
        let mut operation = Self {
            name,
            format,
            world,
            content: Sparse::default(),
            views: Vec::new(),
            access: Access::Write,
            flaws: None,
            state_len: 0,
            secret: None,
            filter: None,
            direct: false,
            best_effort: Vec::new(),
            body: Rc::new(|_| Box::pin(async { Ok(()) })),
            inspect: Vec::new(),
            known_to_qemu: true,
        };
        let head = operation.world.disk(TOP).map(|disk| disk.view().bytes(0, HEAD_LEN));
        operation.secret = secret_option(format, &head.unwrap_or_default());
        operation.content = Sparse::from_bytes(&operation.seen(operation.spec(false)));
        operation
    }

    /// Returns an operation that makes the image [`TOP`], which is to hold these bytes once it has ended.
    pub fn making(name: &'static str, format: &'static str, world: World, content: &[u8]) -> Self {
        Self {
            name,
            format,
            world,
            content: Sparse::from_bytes(content),
            views: Vec::new(),
            access: Access::Make,
            flaws: None,
            state_len: 0,
            secret: None,
            filter: None,
            direct: false,
            best_effort: Vec::new(),
            body: Rc::new(|_| Box::pin(async { Ok(()) })),
            inspect: Vec::new(),
            known_to_qemu: true,
        }
    }

    /// The image that is made is an encrypted one; the option of this name says which secret opens it.
    #[must_use]
    pub fn locked_by(mut self, option: &'static str) -> Self {
        self.secret = Some(option);
        self
    }

    /// Has an image be worked with before anything is explored.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn after<F: Future<Output = Result<()>> + 'static>(
        mut self,
        before: impl Fn(Guest) -> F + 'static,
    ) -> Self {
        let guest = Guest::preparing(&self);
        let world = std::mem::take(&mut self.world);
        let spec = self.spec(true);
        let body: Body = Rc::new(move |guest| Box::pin(before(guest)));
        let (done, world) = straight(world, |io| async move { guest.run(&io, Some(&spec), &body).await });
        done.unwrap_or_else(|error| panic!("{}: preparing the image: {error}", self.name));
        self.world = world;
        self.content = Sparse::from_bytes(&self.seen(self.spec(false)));
        self
    }

    /// Changes the files before anything is explored.
    ///
    /// # Panics
    /// When the image does not open afterwards.
    #[must_use]
    pub fn patched(mut self, patch: impl FnOnce(&mut World)) -> Self {
        patch(&mut self.world);
        self.content = Sparse::from_bytes(&self.seen(self.spec(false)));
        self
    }

    /// What is explored.
    #[must_use]
    pub fn doing<F: Future<Output = Result<()>> + 'static>(
        mut self,
        body: impl Fn(Guest) -> F + 'static,
    ) -> Self {
        self.body = Rc::new(move |guest| Box::pin(body(guest)));
        self
    }

    /// So many bytes of a machine's state are looked at too, as if they were the end of the disk: [`Guest::save`] writes
    /// them. The disk keeps its length.
    #[must_use]
    pub fn with_state(mut self, len: usize) -> Self {
        self.state_len = len;
        self.content = Sparse::from_bytes(&self.seen(self.spec(false)));
        self
    }

    /// The image is opened for reading, and nothing may change.
    #[must_use]
    pub fn reading(mut self) -> Self {
        self.access = Access::Read;
        self
    }

    /// The disks keep or lose 4096 bytes as one, and are read and written past the host's cache, in as many.
    #[must_use]
    pub fn on_large_sectors(mut self) -> Self {
        const LEN: u32 = 4096;
        let large = |config: &mut DiskConfig| {
            (config.sector, config.request_align, config.memory_align) = (u64::from(LEN), LEN, LEN);
        };
        large(&mut self.world.default_config);
        let paths: Vec<String> = self.world.paths().map(str::to_owned).collect();
        for path in paths {
            large(&mut self.world.disk_mut(&path).expect("a path of the world").config);
        }
        self.direct = true;
        self
    }

    /// What is explored opens the image itself: a job that needs more than one file, or a repair.
    #[must_use]
    pub fn opening_it_itself(mut self) -> Self {
        self.access = Access::Own;
        self
    }

    /// The guest works through a filter above the image.
    #[must_use]
    pub fn through(mut self, driver: &'static str) -> Self {
        self.filter = Some(driver);
        self
    }

    /// The image is to be repaired: until the operation has done that, a check may find what does no more harm than what is
    /// wrong before, and repairing whatever a crash leaves brings all of the disk back.
    ///
    /// # Panics
    /// When the image does not open.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        let found = looked(self.world.clone(), self.spec(false), Checked::Yes, self.state_len);
        self.flaws = match found {
            Ok(Found::Disk(_, flaws)) => Some(flaws.harm),
            _ => panic!("{}: too much is wrong with the image", self.name),
        };
        self
    }

    /// Intents of this label may fail without anybody hearing of it, because nobody waits for what they do.
    #[must_use]
    pub fn making_do_without(mut self, label: Label) -> Self {
        self.best_effort.push(label);
        self
    }

    /// What this opens is to show the same at every moment: a snapshot, say.
    ///
    /// # Panics
    /// When it does not open.
    #[must_use]
    pub fn with_view(mut self, view: NodeSpec) -> Self {
        let content = self.seen(view.clone());
        self.views.push((view, content));
        self
    }

    /// What else must hold of the files after any crash.
    #[must_use]
    pub fn holding(mut self, inspect: impl Fn(&World) -> std::result::Result<(), String> + 'static) -> Self {
        self.inspect.push(Box::new(inspect));
        self
    }

    /// The bytes of a file before anything is explored.
    ///
    /// # Panics
    /// When there is no such file.
    pub(super) fn bytes_of(&self, path: &str) -> Vec<u8> {
        self.world.disk(path).expect("a file of the operation").view().to_vec()
    }

    /// QEMU's tools cannot read such an image.
    #[must_use]
    pub fn unknown_to_qemu(mut self) -> Self {
        self.known_to_qemu = false;
        self
    }

    /// What is wanted of the image.
    pub fn access(&self) -> Access {
        self.access
    }

    /// How the image is opened.
    pub fn spec(&self, writable: bool) -> NodeSpec {
        let mode = OpenMode { writable, direct: self.direct, ..WRITABLE };
        match self.filter {
            Some(filter) if writable => {
                let file = format!(r#"{{"driver":"file","filename":"{TOP}"}}"#);
                let image = format!(r#"{{"driver":"{}","file":{file}}}"#, self.format);
                let whole = format!(r#"json:{{"driver":"{filter}","file":{image}}}"#);
                from_filename(&whole, None, mode).expect("legal options")
            }
            _ => spec_of(self.format, self.secret.map(|option| (option, SECRETS[0].0)), mode),
        }
    }

    /// How the guest gets at the image; none where the operation opens it itself, or makes it.
    pub(super) fn guest_spec(&self) -> Option<NodeSpec> {
        match self.access {
            Access::Write => Some(self.spec(true)),
            Access::Read => Some(self.spec(false)),
            Access::Make | Access::Own => None,
        }
    }

    pub(super) fn seen(&self, spec: NodeSpec) -> Vec<u8> {
        let state_len = self.state_len;
        let (found, _) = straight(self.world.clone(), |io| async move {
            let node = open(&io, &spec).await?;
            let found = content(&io, node, state_len).await;
            io.close(node).await?;
            found
        });
        found.unwrap_or_else(|error| panic!("{}: reading the image: {error}", self.name)).to_vec()
    }

    /// Whether all that is to hold beside the disk holds of what a crash left: other views, and what else was declared.
    pub(super) fn holds(&self, world: &World) -> std::result::Result<(), String> {
        for (view, expected) in &self.views {
            let shown = read_checked(world.clone(), view.clone(), Checked::No, self.state_len);
            let shown = shown.map_err(|error| format!("another view: {error}"))?;
            if *shown != expected[..] {
                return Err("another view of the image shows something else than before".into());
            }
        }
        self.inspect.iter().try_for_each(|inspect| inspect(world))
    }

    /// What the image holds on disks that a crash left.
    pub(super) fn look(&self, world: World) -> std::result::Result<Buf, String> {
        read_checked(world, self.spec(false), Checked::Yes, self.state_len)
    }
}
