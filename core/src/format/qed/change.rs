//! Changes of the header: a longer disk, another backing file.
//!
//! Order on disk: what a longer disk shows, or another name, a barrier, then the header, a barrier. The name goes where the
//! old one is not, and one write of the header switches to it.

use super::layout::Features;
use super::{Qed, QedError};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result as CoreResult};
use crate::graph::driver::{Preallocate, Role};
use crate::intent::{Fua, ZeroFlags};

/// Where names go that are not the image's first: one or the other is free.
const NAME_PLACES: [u64; 2] = [512, 2304];

/// Bytes of such a name at the most.
const NAME_LEN_MAX: u64 = 1023;

impl Qed {
    /// Makes the disk longer. What is new reads as zeros, whatever the backing file says.
    pub(super) async fn change_len(&self, io: &Io, len: u64, how: Preallocate) -> CoreResult<()> {
        let header = self.header.get();
        if how != Preallocate::Off {
            let (node, driver, what) = (self.name.clone(), "qed", "preallocation");
            return Err(Box::new(Error::Unsupported { node, driver, what }));
        }
        if len < header.size {
            return Err(self.fail(QedError::Shrinks));
        }
        let max = header.size_max();
        if len > max || !len.is_multiple_of(512) {
            return Err(self.fail(QedError::Size { found: len, max }));
        }
        self.tables.lengthen(len.div_ceil(header.table_len() / 8 * header.cluster_len()));
        self.shown_len.set(Some(len));
        let changed = self.lengthen(io, header.size, len).await;
        self.shown_len.set(None);
        changed
    }

    async fn lengthen(&self, io: &Io, old: u64, len: u64) -> CoreResult<()> {
        let (node, file) = (io.node(), io.child(Role::File));
        let backed = io.try_child(Role::Backing).map_or(0, |backing| io.len(backing));
        // The last cluster may hold more than the disk had.
        let end = old.next_multiple_of(self.header.get().cluster_len()).max(backed).min(len);
        if old < end {
            io.write_zeroes("qed.resize/zero", node, old, end - old, ZeroFlags::default()).await?;
        }
        self.tables.flush(io, "qed.resize/before_header").await?;
        self.write_header(io, "qed.resize/header", |header| header.size = len).await?;
        io.flush("qed.resize/after", file).await
    }

    /// Whether the header has room for the name of a backing file.
    ///
    /// # Errors
    /// When it has not.
    pub fn check_backing(&self, name: Option<&str>) -> Result<(), QedError> {
        let len = name.map_or(0, |name| name.len() as u64);
        let max = NAME_LEN_MAX.min(self.header.get().header_len().saturating_sub(NAME_PLACES[1]));
        if len > max { Err(QedError::BackingLen { len, max }) } else { Ok(()) }
    }

    /// Names another backing file, or none. What the image holds is durable before that.
    ///
    /// # Errors
    /// When the name is too long, or the file cannot be written.
    pub async fn change_backing(&self, io: &Io, backing: Option<(&str, bool)>) -> CoreResult<()> {
        self.check_backing(backing.map(|(name, _)| name)).map_err(|fault| self.fail(fault))?;
        self.tables.flush(io, "qed.change_backing/before").await?;
        let file = io.child(Role::File);
        let header = self.header.get();
        let len = backing.map_or(0, |(name, _)| name.len() as u64);
        let old = header.backing_at.into()..u64::from(header.backing_at) + u64::from(header.backing_len);
        let is_free = |at: &u64| *at + NAME_LEN_MAX <= old.start || old.end <= *at;
        let at = NAME_PLACES.into_iter().find(is_free);
        let Some(at) = at else { return Err(self.fail(QedError::BackingLen { len, max: 0 })) };
        if let Some((name, _)) = backing {
            io.write("qed.change_backing/name", file, at, Buf::from(name.as_bytes()), Fua::No).await.1?;
            io.flush("qed.change_backing/before_header", file).await?;
        }
        self.write_header(io, "qed.change_backing/header", |header| {
            let raw = backing.is_some_and(|(_, raw)| raw);
            let features = header.features.with(Features::BACKING, backing.is_some());
            header.features = features.with(Features::BACKING_RAW, raw);
            (header.backing_at, header.backing_len) = backing.map_or((0, 0), |_| (at as u32, len as u32));
        })
        .await?;
        self.backing.replace(backing.map(|(name, _)| name.to_owned()));
        io.flush("qed.change_backing/after", file).await
    }
}
