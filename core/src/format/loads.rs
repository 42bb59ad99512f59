//! Loads of slices of a format's tables: what several miss at once is read once.

use std::cell::RefCell;

use super::HostOffset;
use crate::engine::task::{Tasks, WaitList};
use crate::error::Result;

/// The loads that are under way.
#[derive(Default)]
pub(in crate::format) struct Loads {
    under_way: RefCell<Vec<HostOffset>>,
    ended: WaitList,
}

impl Loads {
    /// Has `read` bring the slice at `at` into memory, unless it `is_there`, or somebody else brings it.
    pub(in crate::format) async fn once(
        &self,
        tasks: &Tasks,
        at: HostOffset,
        is_there: impl Fn() -> bool,
        read: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let mine = self.ended.wait(tasks, || {
            if is_there() {
                return Some(false);
            }
            let mut under_way = self.under_way.borrow_mut();
            (!under_way.contains(&at)).then(|| {
                under_way.push(at);
                true
            })
        });
        if !mine.await {
            return Ok(());
        }
        let _under_way = UnderWay { loads: self, tasks, at };
        read.await
    }
}

/// A load that is under way, until it is dropped: those who wait for it look again.
struct UnderWay<'a> {
    loads: &'a Loads,
    tasks: &'a Tasks,
    at: HostOffset,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.loads.under_way.borrow_mut().retain(|other| *other != self.at);
        self.loads.ended.notify(self.tasks);
    }
}
