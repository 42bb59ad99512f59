//! Empty: an image that holds nothing, so that its parent, or zeros, show through.

use super::Vhdx;
use super::layout::PayloadEntry;
use super::space::Space;
use crate::engine::Io;
use crate::error::{Error, Result};

impl Vhdx {
    /// Takes all blocks out of the BAT. Whoever asks knows that guests see the same before and after, so that each entry may
    /// change by itself. The space is used again once no entry names it durably.
    pub(super) async fn take_all_out(&self, io: &Io) -> Result<()> {
        if self.metadata.leave_allocated {
            let (node, driver) = (self.name.clone(), "vhdx");
            return Err(Box::new(Error::Unsupported { node, driver, what: "emptying a fixed disk" }));
        }
        self.begin(io).await?;
        for index in 0..self.entries_for(self.size.get()) {
            let (slice, _) = self.slice_of(index);
            while self.cache.borrow().find(slice).is_none() {
                self.load_slice(io, slice).await?;
            }
            self.set_entry(index, PayloadEntry::NotPresent.encode());
        }
        self.flush_all(io).await?;
        *self.space.borrow_mut() = Space::default();
        Ok(())
    }
}
