//! Amend: what a header promises, changed for an image that exists. Source: \[qcow2\] "Header".
//!
//! Order on disk: each change is one write of the header, durable before the next one begins; what a header names for the
//! first time is durable before it. So a crash leaves an image that has the first few of the changes, and is in order.
//! A version 3 image becomes a version 2 one last (`downgrade`), when nothing in it is left that version 2 cannot say.

use super::crypt::place_of_volume;
use super::generation::{Change, SnapshotTable};
use super::layout::{
    Autoclear, Compatible, Crypt, Header, Incompatible, RefcountWidth, Snapshot, extension_kind,
};
use super::stages::Stages;
use super::{Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::luks::{AmendKeyslots, Volume};
use crate::graph::driver::{Preallocate, Role};
use crate::job::Progress;

/// Clusters above this size have room for a table of feature names.
const FEATURE_NAMES_ABOVE: u64 = 4096;

/// What is to be different. `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amend {
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: Option<u32>,
    /// Bits of a refcount: a power of two, 1 to 64.
    pub refcount_bits: Option<u64>,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: Option<bool>,
    /// Whether the data file is to read as a raw image; it can only cease to.
    pub data_file_raw: Option<bool>,
    /// Name of the external data file, as the image is to state it; it must have one.
    pub data_file: Option<String>,
    /// Name of the backing file, which cannot change here.
    pub backing_file: Option<String>,
    /// Format of the backing file, which cannot change here.
    pub backing_format: Option<String>,
    /// Length of the disk.
    pub size: Option<u64>,
    /// Keyslots of the volume that encrypts the data.
    pub encrypt: Option<AmendKeyslots>,
}

impl Qcow2 {
    /// Changes an image, which nobody else uses meanwhile. Durable on return.
    ///
    /// # Errors
    /// The first thing that cannot be; what was changed before it stays changed.
    pub(crate) async fn amend(&self, io: &Io, to: &Amend, progress: Progress) -> Result<()> {
        if io.flags(io.node()).read_only {
            return Err(Box::new(Error::ReadOnly { node: self.name.clone() }));
        }
        let header = self.header();
        let version = to.version.unwrap_or(header.version);
        to.check(&header, version).map_err(|text| self.fail(Qcow2Error::Option(text.into())))?;
        let width = to.refcount_bits.filter(|bits| *bits != u64::from(header.refcount_width.bits()));
        let changes = [version != header.version, to.encrypt.is_some(), width.is_some()];
        let stages = Stages::new(changes.into_iter().filter(|change| *change).count() as u64, progress);
        if version > header.version {
            self.upgrade(io, &stages).await?;
            stages.end();
        }
        if let Some(change) = &to.encrypt {
            self.amend_keyslots(io, &header, change).await?;
        }
        if let Some(bits) = width {
            let width = RefcountWidth::new(bits.trailing_zeros()).expect("a power of two up to 64");
            self.change_width(io, width, &stages).await?;
            stages.end();
        }
        let raw = to.data_file_raw.unwrap_or(true);
        if to.data_file.is_some() || !raw {
            self.change_header(io, |header| {
                if let Some(name) = &to.data_file {
                    header.data_file = Some(name.clone()).filter(|name| !name.is_empty());
                }
                header.autoclear &= if raw { u64::MAX } else { !Autoclear::RAW_DATA_FILE };
            })
            .await?;
        }
        if let Some(lazy) = to.lazy_refcounts.filter(|lazy| *lazy != header.lazy_refcounts()) {
            self.change_header(io, |header| header.compatible ^= Compatible::LAZY_REFCOUNTS).await?;
            debug_assert_eq!(self.header.borrow().lazy_refcounts(), lazy);
        }
        if let Some(size) = to.size {
            self.change_len(io, size, Preallocate::Off).await?;
        }
        if version < self.header.borrow().version {
            self.downgrade(io, &stages).await?;
        }
        Ok(())
    }

    /// The volume's header stays where it is, and with it all that the image says of it.
    async fn amend_keyslots(&self, io: &Io, header: &Header, change: &AmendKeyslots) -> Result<()> {
        let place = place_of_volume(io, io.child(Role::File), header)?;
        let volume = Volume::load(io, place).await?;
        change.apply(io, place, &volume, self.key_secret.as_deref()).await.map(drop)
    }

    /// Writes every refcount with another number of bits.
    ///
    /// The progress is the reference's, which goes through the refcount table three times: to take clusters for new blocks,
    /// to see that these are all, and to fill them. Ours are two steps, and are told as one and as two of its three.
    async fn change_width(&self, io: &Io, width: RefcountWidth, stages: &Stages) -> Result<()> {
        let entries = self.refcounts.borrow().table.len() as u64;
        let node = io.shared().graph.node(io.node());
        let still = self.stand_still(io, &node).await?;
        stages.tell(0..=entries, 3 * entries);
        let change = Change { width, ..Change::of(self) };
        self.switch(io, &still, change).await?;
        stages.tell(entries + 1..=3 * entries, 3 * entries);
        Ok(())
    }

    /// Version 3 knows all that version 2 says; but its snapshots say how long the disk was.
    async fn upgrade(&self, io: &Io, stages: &Stages) -> Result<()> {
        stages.tell(0..=0, 2);
        let snapshots = self.snapshots(io, io.child(Role::File)).await?;
        if snapshots.iter().any(|snapshot| snapshot.disk_size.is_none()) {
            self.lengthen_snapshots(io).await?;
        }
        stages.tell(1..=1, 2);
        self.change_header(io, |header| {
            header.version = 3;
            let named = header.extension(extension_kind::FEATURE_NAMES).is_some();
            if !named && header.cluster_bits.size() > FEATURE_NAMES_ABOVE {
                header.extensions.push(Header::feature_name_table());
            }
        })
        .await?;
        stages.tell(2..=2, 2);
        Ok(())
    }

    /// Rewrites the snapshot table with all the extra data of version 3.
    async fn lengthen_snapshots(&self, io: &Io) -> Result<()> {
        let node = io.shared().graph.node(io.node());
        let still = self.stand_still(io, &node).await?;
        let (snapshots, table) = self.snapshot_table(io).await?;
        let size = self.header.borrow().size;
        let mut kept = Vec::new();
        for snapshot in &snapshots {
            let disk_size = snapshot.disk_size.or(Some(size));
            kept.extend(Snapshot { disk_size, ..snapshot.clone() }.encode());
        }
        let mut change = Change::of(self);
        change.retired = self.old_snapshot_table(table.len() as u64);
        change.snapshots = Some(SnapshotTable { kept, kept_count: snapshots.len() as u32, new: None });
        self.switch(io, &still, change).await
    }
}

impl Amend {
    /// Whether the changes go together with each other and with the image. The messages are `qemu-img`'s.
    fn check(&self, header: &Header, version: u32) -> Result<(), &'static str> {
        let (named, held) =
            ((&self.backing_file, &self.backing_format), (&header.backing_file, &header.backing_format));
        // Who names the one without the other names none for the other, as with the reference.
        if named != (&None, &None) && named != held {
            return Err("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
        }
        if self.encrypt.is_some() && header.crypt != Crypt::Luks {
            return Err(match header.crypt {
                Crypt::None => "Can't amend encryption options - encryption not present",
                _ => "Only LUKS encryption options can be amended for qcow2 with amend",
            });
        }
        if self.data_file.is_some() && !header.has(Incompatible::DATA_FILE) {
            return Err("data-file can only be set for images that use an external data file");
        }
        let raw = header.autoclear & Autoclear::RAW_DATA_FILE != 0;
        if self.data_file_raw == Some(true) && !raw {
            return Err("data-file-raw cannot be set on existing images");
        }
        if let Some(bits) = self.refcount_bits {
            if !bits.is_power_of_two() || bits > 64 {
                return Err("Refcount width must be a power of two and may not exceed 64 bits");
            }
            if version < 3 && bits != u64::from(header.refcount_width.bits()) && bits != 16 {
                return Err(
                    "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 \
                            or greater)",
                );
            }
        }
        if self.lazy_refcounts == Some(true) && version < 3 {
            return Err(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            );
        }
        Ok(())
    }
}
