//! The invariants that the `unsafe` of `buf` rests on, tried out exhaustively on small buffers: windows never overlap, and
//! memory lives exactly as long as its last window. Meant to run under Miri too:
//! `cargo +nightly miri test -p drystone-core --test buf`.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use drystone_core::buf::{Buf, BufList, Region};

/// Memory that counts its end.
struct Counted {
    bytes: Box<[UnsafeCell<u8>]>,
    gone: Arc<AtomicUsize>,
}

// SAFETY: the bytes are touched through windows only, which are exclusive.
unsafe impl Send for Counted {}
// SAFETY: as above; nothing gives access through a shared reference.
unsafe impl Sync for Counted {}

// SAFETY: the box never moves its bytes, and only windows touch them.
unsafe impl Region for Counted {
    fn bytes(&self) -> (NonNull<u8>, usize) {
        (NonNull::from(&*self.bytes).cast(), self.bytes.len())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gone.fetch_add(1, Ordering::Relaxed);
    }
}

/// A window on all of a region of its own.
fn counted(len: usize) -> (Buf, Arc<AtomicUsize>) {
    let gone = Arc::new(AtomicUsize::new(0));
    let bytes = (0..len).map(|_| UnsafeCell::new(0)).collect();
    let region = Arc::new(Counted { bytes, gone: Arc::clone(&gone) });
    // SAFETY: the region was just made, and nobody else has it.
    (unsafe { Buf::from_region(region) }, gone)
}

/// Writes to every window after all were made, then reads all: an overlap would show, as would memory that is gone.
fn assert_exclusive(windows: &mut [Buf]) {
    for (mark, window) in (1..).zip(windows.iter_mut()) {
        window.fill(mark);
    }
    for (mark, window) in (1..).zip(windows.iter()) {
        assert!(window.iter().all(|byte| *byte == mark));
    }
}

#[test]
fn every_way_to_cut_in_three_and_grow_together_again() {
    const LEN: usize = 5;
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (first, second) in (0..=LEN).flat_map(|first| (first..=LEN).map(move |second| (first, second))) {
        for order in ORDERS {
            let (whole, gone) = counted(LEN);
            let mut parts = cut(whole, first, second);
            assert_exclusive(&mut parts);
            let lens = parts.each_ref().map(Buf::len);
            assert_eq!(lens, [first, second - first, LEN - second]);
            let mut parts = parts.map(Some);
            // All windows go, in any order; the memory goes with the last that has any of it.
            for (left, index) in order.into_iter().enumerate() {
                assert_eq!(gone.load(Ordering::Relaxed), 0, "{} windows are left", 3 - left);
                drop(parts[index].take());
            }
            assert_eq!(gone.load(Ordering::Relaxed), 1);
        }
        let (whole, gone) = counted(LEN);
        let [mut a, mut b, c] = cut(whole, first, second);
        b.unsplit(c).expect("neighbours");
        assert_exclusive(std::slice::from_mut(&mut b));
        a.unsplit(b).expect("neighbours");
        assert_eq!(a.len(), LEN);
        assert_exclusive(std::slice::from_mut(&mut a));
        drop(a);
        assert_eq!(gone.load(Ordering::Relaxed), 1);
    }
}

fn cut(mut whole: Buf, first: usize, second: usize) -> [Buf; 3] {
    let head = whole.split_to(first);
    let tail = whole.split_off(second - first);
    [head, whole, tail]
}

#[test]
fn strangers_never_grow_together() {
    for len in 1..4 {
        let (mut a, _) = counted(len);
        let (b, _) = counted(len);
        // Whatever their addresses.
        let b = a.unsplit(b).expect_err("two regions");
        let mut both = [a, b];
        assert_exclusive(&mut both);
        // Nor do neighbours in the wrong order, or with a gap.
        let [a, b, c] = cut(Buf::zeroed_aligned(3, 1), 1, 2);
        let mut c = c;
        let a = c.unsplit(a).expect_err("a gap, and the wrong order");
        let mut b = b;
        let a = b.unsplit(a).expect_err("the wrong order");
        let mut a = a;
        let c = a.unsplit(c).expect_err("a gap");
        assert_exclusive(&mut [a, b, c]);
    }
}

#[test]
fn windows_of_one_region_belong_to_threads_of_their_own() {
    const PARTS: usize = 4;
    for _ in 0..4 {
        let (mut rest, gone) = counted(PARTS * 3);
        let threads: Vec<_> = (0..PARTS)
            .map(|mark| {
                let mut part = rest.split_to(3);
                std::thread::spawn(move || {
                    part.fill(mark as u8);
                    let mut tail = part.split_off(1);
                    tail[0] = 0xff;
                    part.unsplit(tail).expect("neighbours");
                    part
                })
            })
            .collect();
        let mut whole = rest;
        for (mark, thread) in threads.into_iter().enumerate() {
            let part = thread.join().expect("does not panic");
            assert_eq!(*part, [mark as u8, 0xff, mark as u8]);
            whole.unsplit(part).expect("in order");
        }
        assert!(whole.is_whole());
        // Dropped on another thread than it was made on.
        std::thread::spawn(move || drop(whole)).join().expect("does not panic");
        assert_eq!(gone.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn lists_split_anywhere_and_keep_their_windows_apart() {
    let total = 7;
    for (first, second) in (0..=total).flat_map(|first| (first..=total).map(move |second| (first, second))) {
        let mut list: BufList = [3, 1, 3].into_iter().map(|len| Buf::zeroed_aligned(len, 1)).collect();
        let mut front = list.split_to(first);
        let mut middle = list.split_to(second - first);
        for (mark, part) in [(1, &mut front), (2, &mut middle), (3, &mut list)] {
            for window in part.windows_mut() {
                window.fill(mark);
            }
        }
        front.append(middle);
        front.append(list);
        let bytes = front.into_single();
        let expected: Vec<u8> =
            (0..total).map(|at| if at < first { 1 } else { 3 - u8::from(at < second) }).collect();
        assert_eq!(*bytes, *expected);
    }
}

#[test]
fn alignments_are_kept_and_nothing_is_allocated_for_nothing() {
    for align in [1, 2, 64, 4096, 8192] {
        for len in [1, 3, 4096, 5000] {
            let buf = Buf::zeroed_aligned(len, align);
            assert_eq!((buf.as_ptr().addr() % align, buf.len()), (0, len));
            assert!(buf.iter().all(|byte| *byte == 0) && buf.is_whole());
        }
        let mut none = Buf::zeroed_aligned(0, align);
        assert!(none.is_empty() && none.split_off(0).is_empty());
        none.unsplit(Buf::zeroed_aligned(2, align)).expect("an empty window is everyone's neighbour");
        assert_eq!(none.len(), 2);
    }
}

/// Pages of memory that this process really has, by the host's count.
#[cfg(target_os = "linux")]
fn resident() -> i64 {
    let said = std::fs::read_to_string("/proc/self/statm").expect("Linux says it");
    said.split(' ').nth(1).expect("a second figure").parse().expect("a figure")
}

/// Not under Miri, which has no memory of its own to count.
#[test]
#[cfg(target_os = "linux")]
#[cfg_attr(miri, ignore)]
fn a_large_buffer_takes_memory_once_something_is_in_it() {
    const LEN: usize = 256 << 20;
    let before = resident();
    let mut buf = Buf::zeroed(LEN);
    assert_eq!(buf.as_ptr().align_offset(drystone_core::buf::BUF_ALIGN), 0);
    assert!(resident() - before < (LEN as i64 / 4096) / 16, "nothing was touched");
    assert_eq!((buf[0], buf[LEN / 2], buf[LEN - 1]), (0, 0, 0));
    buf[..LEN / 2].fill(1);
    assert!(resident() - before > (LEN as i64 / 4096) / 4, "a half was");
}
