//! Memory that a device reaches, handed out as core's buffers: what lies in it is never copied on its way.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use drystone_core::buf::{Buf, Region};

use super::memory::DmaMemory;

/// One contiguous piece of DMA memory, of which whole pages are lent.
pub struct Arena {
    memory: DmaMemory,
    page: usize,
    /// What is not lent, as (first byte, bytes), in order, never two neighbours.
    free: Mutex<Vec<(usize, usize)>>,
}

impl Arena {
    pub(super) fn new(memory: DmaMemory, page: usize) -> Self {
        let free = Mutex::new(vec![(0, memory.len())]);
        Self { memory, page, free }
    }

    /// Lends a buffer of `len` bytes that begins at a page and holds anything; nothing while there is no room.
    pub fn buffer(self: &Arc<Self>, len: usize) -> Option<Buf> {
        if len == 0 {
            return Some(Buf::empty());
        }
        let whole = len.checked_next_multiple_of(self.page)?;
        let mut free = self.free.lock().expect("lending does not panic");
        let index = free.iter().position(|(_, room)| *room >= whole)?;
        let (at, room) = free[index];
        match room == whole {
            true => drop(free.remove(index)),
            false => free[index] = (at + whole, room - whole),
        }
        drop(free);
        let lent = Lent { arena: Arc::clone(self), at, len, whole };
        // SAFETY: the region was just made, and covers a part of the memory that is lent to nobody else.
        Some(unsafe { Buf::from_region(Arc::new(lent)) })
    }

    /// Bytes that are not lent.
    pub fn free_len(&self) -> usize {
        self.free.lock().expect("lending does not panic").iter().map(|(_, len)| len).sum()
    }

    fn give_back(&self, at: usize, len: usize) {
        let mut free = self.free.lock().expect("lending does not panic");
        let index = free.partition_point(|(start, _)| *start < at);
        free.insert(index, (at, len));
        let joins = |free: &[(usize, usize)], index: usize| {
            free.get(index + 1).is_some_and(|next| free[index].0 + free[index].1 == next.0)
        };
        if joins(&free, index) {
            free[index].1 += free.remove(index + 1).1;
        }
        if index > 0 && joins(&free, index - 1) {
            free[index - 1].1 += free.remove(index).1;
        }
    }

    /// Where it is: our address, bytes, the device's address.
    pub(super) fn place(&self) -> (usize, usize, u64) {
        (self.memory.start().as_ptr() as usize, self.memory.len(), self.memory.iova())
    }
}

/// A part of an arena while a buffer uses it.
struct Lent {
    arena: Arc<Arena>,
    at: usize,
    len: usize,
    whole: usize,
}

// SAFETY: the part stays mapped while the arena lives, and is lent to nobody else until this is dropped.
unsafe impl Region for Lent {
    fn bytes(&self) -> (NonNull<u8>, usize) {
        // SAFETY: the part lies inside the arena's memory.
        let start = unsafe { self.arena.memory.start().add(self.at) };
        (start, self.len)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.arena.give_back(self.at, self.whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An arena of heap memory, for lending alone.
    fn arena(pages: usize) -> Arc<Arena> {
        #[repr(align(4096))]
        #[allow(dead_code, reason = "only its alignment matters")]
        struct Page([u8; 4096]);
        let mut pages: Vec<Page> = (0..pages).map(|_| Page([0; 4096])).collect();
        let len = pages.len() * 4096;
        let start = NonNull::new(pages.as_mut_ptr().cast::<u8>()).expect("a vector is somewhere");
        let keeper: Arc<dyn std::any::Any + Send + Sync> = Arc::new(KeepPages(pages));
        struct KeepPages<T>(#[allow(dead_code, reason = "kept, not read")] Vec<T>);
        // SAFETY: the pages stay where they are while the keeper lives, and nobody else refers to them.
        let memory = unsafe { DmaMemory::new(start, len, 0x1_0000, keeper) };
        Arc::new(Arena::new(memory, 4096))
    }

    #[test]
    fn parts_come_back_and_grow_together() {
        let arena = arena(8);
        let a = arena.buffer(4096).expect("room");
        let b = arena.buffer(5000).expect("room");
        let c = arena.buffer(4096).expect("room");
        assert_eq!((b.len(), arena.free_len()), (5000, 4 * 4096));
        assert!(arena.buffer(5 * 4096).is_none());
        drop(b);
        drop(a);
        assert_eq!(arena.buffer(3 * 4096).expect("where a and b were").len(), 3 * 4096);
        drop(c);
        assert_eq!(arena.free.lock().expect("nothing panicked").as_slice(), [(0, 8 * 4096)]);
    }

    #[test]
    fn windows_of_a_part_keep_it() {
        let arena = arena(2);
        let mut a = arena.buffer(8192).expect("room");
        a.fill(7);
        let b = a.split_off(4096);
        drop(a);
        assert_eq!((arena.free_len(), b[0]), (0, 7));
        drop(b);
        assert_eq!(arena.free_len(), 8192);
    }
}
