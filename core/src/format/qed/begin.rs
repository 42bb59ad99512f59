//! What happens before the first change of the tables, and after the last.
//!
//! Order on disk: the mark that the tables need a check, a barrier, then their first change; and once everything is durable,
//! the mark goes. Who finds the mark looks for what a crash left before it changes anything.

use super::check::{Fix, examine};
use super::layout::{Features, Header};
use super::{Qed, QedError};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::Role;
use crate::intent::{Fua, Label};

impl Qed {
    /// Makes the image ready for the first change of its tables.
    pub(super) async fn begin(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.begins.enter(&io.shared().tasks).await;
        if self.begun.get() {
            return Ok(());
        }
        let header = self.header.get();
        if header.features.has(Features::NEED_CHECK) {
            let report = examine(self, io, io.child(Role::File), Fix::Errors).await?;
            if report.corruptions > 0 {
                return Err(self.fail(QedError::Broken { corruptions: report.corruptions }));
            }
        } else {
            self.write_header(io, "qed.begin/mark", |header| {
                header.features = header.features.with(Features::NEED_CHECK, true);
                // What nobody here knows does not hold any more.
                header.autoclear_features = 0;
            })
            .await?;
            io.flush("qed.begin/barrier", io.child(Role::File)).await?;
        }
        self.begun.set(true);
        Ok(())
    }

    /// Makes everything durable and takes the mark away, if the tables were changed.
    pub(super) async fn end(&self, io: &Io) -> Result<()> {
        // Data too, of clusters that were there before: a closed image is durable.
        self.tables.flush(io, "qed.flush").await?;
        if !self.begun.get() {
            return Ok(());
        }
        self.clear_mark(io).await
    }

    pub(super) async fn clear_mark(&self, io: &Io) -> Result<()> {
        if !self.header.get().features.has(Features::NEED_CHECK) {
            return Ok(());
        }
        self.write_header(io, "qed.close/mark", |header| {
            header.features = header.features.with(Features::NEED_CHECK, false);
        })
        .await?;
        io.flush("qed.close", io.child(Role::File)).await
    }

    /// Writes the header with a change. It is less than a sector, so that a crash leaves one or the other.
    pub(super) async fn write_header(
        &self,
        io: &Io,
        label: Label,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let _one_at_a_time = self.headers.enter(&io.shared().tasks).await;
        let mut header = self.header.get();
        change(&mut header);
        let bytes = Buf::from(&header.encode()[..]);
        io.write(label, io.child(Role::File), 0, bytes, Fua::No).await.1?;
        self.header.set(header);
        Ok(())
    }
}
