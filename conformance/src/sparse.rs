//! Bytes of a disk that may be mostly holes.
//!
//! Owns pages that were touched, shared between copies of a disk until one of them changes. Refuses to know what is
//! durable: that is [`disk`](crate::disk). Start at [`Sparse`].

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::sync::{Arc, LazyLock};

/// Bytes of a page, the unit of holes.
pub const PAGE: u64 = 4096;

const PAGE_LEN: usize = PAGE as usize;

type Page = Arc<[u8; PAGE_LEN]>;

/// All pages that hold zeros without being holes share this one.
static ZERO_PAGE: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE_LEN]));

/// A length and the pages below it that are not holes. What lies beyond the length is never stored.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

impl Sparse {
    /// Returns `len` bytes of hole.
    pub fn new(len: u64) -> Self {
        Self { pages: BTreeMap::new(), len }
    }

    /// Holds `bytes`; whole pages of zeros become holes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut sparse = Self::new(bytes.len() as u64);
        for (index, page) in bytes.chunks(PAGE_LEN).enumerate() {
            if !drystone_core::buf::is_zero(page) {
                sparse.write(index as u64 * PAGE, page);
            }
        }
        sparse
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Tells whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The byte behind the last one that is stored.
    pub fn stored_end(&self) -> u64 {
        self.pages.last_key_value().map_or(0, |(index, _)| ((index + 1) * PAGE).min(self.len))
    }

    /// Bytes that are stored.
    pub fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// The pages that are stored, with the offset of each.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8; PAGE as usize])> {
        self.pages.iter().map(|(index, page)| (index * PAGE, &**page))
    }

    /// Copies the bytes from `offset` on into `out`; what lies beyond the end is zero.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let end = offset + out.len() as u64;
        for (index, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = index * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
    }

    /// Returns `len` bytes from `offset` on.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.read(offset, &mut out);
        out
    }

    /// Returns all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes(0, usize::try_from(self.len).expect("a disk of a test fits in memory"))
    }

    /// Writes `bytes` at `offset`, growing where it must.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let (index, skip) = (at / PAGE, (at % PAGE) as usize);
            let len = (PAGE_LEN - skip).min((end - at) as usize);
            let from = (at - offset) as usize;
            let page = self.pages.entry(index).or_insert_with(|| Arc::clone(&ZERO_PAGE));
            Arc::make_mut(page)[skip..skip + len].copy_from_slice(&bytes[from..from + len]);
            at += len as u64;
        }
        self.len = self.len.max(end);
    }

    /// Makes `[start, end)` read as zeros, growing where it must. Whole pages become holes with `unmap`, and are stored
    /// as zeros without.
    pub fn zero(&mut self, start: u64, end: u64, unmap: bool) {
        let (first, last) = (start.next_multiple_of(PAGE), end - end % PAGE);
        if first > last || start == end {
            return self.zero_part(start, end);
        }
        self.zero_part(start, first);
        if unmap {
            let mut tail = self.pages.split_off(&(first / PAGE));
            self.pages.append(&mut tail.split_off(&(last / PAGE)));
        } else {
            for index in first / PAGE..last / PAGE {
                self.pages.insert(index, Arc::clone(&ZERO_PAGE));
            }
        }
        self.zero_part(last, end);
        self.len = self.len.max(end);
    }

    /// Zeros less than a page; a hole stays one.
    fn zero_part(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let stop = (at + PAGE - at % PAGE).min(end);
            if self.pages.contains_key(&(at / PAGE)) {
                self.write(at, &[0; PAGE_LEN][..(stop - at) as usize]);
            }
            at = stop;
        }
        self.len = self.len.max(end);
    }

    /// Changes the length; what is added is a hole, what is cut off is gone.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            drop(self.pages.split_off(&len.div_ceil(PAGE)));
            self.zero_part(len, len.next_multiple_of(PAGE));
        }
        self.len = len;
    }

    /// Says whether the page at `offset` is a hole, and how many bytes from `offset` on are like it.
    pub fn status(&self, offset: u64, len: u64) -> (u64, bool) {
        let first = offset / PAGE;
        let end = offset + len;
        let mut stored = self.pages.range(first..).map(|(index, _)| *index);
        let mut next = stored.next();
        if next != Some(first) {
            let stop = next.map_or(end, |index| (index * PAGE).min(end));
            return (stop - offset, true);
        }
        let mut last = first;
        while next == Some(last) && last * PAGE < end {
            last += 1;
            next = stored.next();
        }
        ((last * PAGE).min(end) - offset, false)
    }

    /// Tells whether `[start, end)` holds nothing but zeros.
    pub fn is_zero(&self, start: u64, end: u64) -> bool {
        self.pages.range(start / PAGE..end.div_ceil(PAGE)).all(|(index, page)| {
            let here = index * PAGE;
            let (from, to) = (start.max(here), end.min(here + PAGE));
            drystone_core::buf::is_zero(&page[(from - here) as usize..(to - here) as usize])
        })
    }

    /// Writes the bytes to a file of the host, holes as holes.
    ///
    /// # Errors
    /// What the host says.
    pub fn save(&self, file: &mut std::fs::File) -> std::io::Result<()> {
        file.set_len(self.len)?;
        for (index, page) in &self.pages {
            let start = index * PAGE;
            let len = PAGE.min(self.len.saturating_sub(start)) as usize;
            file.seek(SeekFrom::Start(start))?;
            file.write_all(&page[..len])?;
        }
        Ok(())
    }
}

/// Same length, same bytes; whether zeros are stored or holes makes no difference.
impl PartialEq for Sparse {
    fn eq(&self, other: &Self) -> bool {
        let zero = &*ZERO_PAGE;
        let same = |index: &u64| {
            let mine = self.pages.get(index).unwrap_or(zero);
            let theirs = other.pages.get(index).unwrap_or(zero);
            Arc::ptr_eq(mine, theirs) || mine == theirs
        };
        self.len == other.len && self.pages.keys().all(same) && other.pages.keys().all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any sequence of operations leaves what a plain vector holds.
    #[test]
    fn behaves_as_a_vector() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut flat = vec![0u8; 3 * PAGE_LEN + 100];
            let mut sparse = Sparse::new(flat.len() as u64);
            for step in 0..60u8 {
                let start = rng.usize(..5 * PAGE_LEN);
                let end = start + rng.usize(..2 * PAGE_LEN);
                match rng.u8(..4) {
                    0 => {
                        flat.resize(start, 0);
                        sparse.set_len(start as u64);
                    }
                    kind => {
                        flat.resize(flat.len().max(end), 0);
                        flat[start..end].fill(if kind == 1 { step | 1 } else { 0 });
                        match kind {
                            1 => sparse.write(start as u64, &vec![step | 1; end - start]),
                            _ => sparse.zero(start as u64, end as u64, kind == 2),
                        }
                    }
                }
                assert_eq!(sparse.to_vec(), flat, "seed {seed}, step {step}");
                assert_eq!(sparse, Sparse::from_bytes(&flat));
            }
        }
    }

    #[test]
    fn holes_are_found_and_kept() {
        let mut sparse = Sparse::new(10 * PAGE);
        sparse.write(2 * PAGE + 5, &[1; 10]);
        sparse.write(3 * PAGE, &[2; PAGE_LEN]);
        assert_eq!(sparse.status(100, 9 * PAGE), (2 * PAGE - 100, true));
        assert_eq!(sparse.status(2 * PAGE, 8 * PAGE), (2 * PAGE, false));
        assert_eq!(sparse.status(4 * PAGE, PAGE), (PAGE, true));
        sparse.zero(0, 3 * PAGE + 1, true);
        assert_eq!((sparse.allocated(), sparse.is_zero(0, 3 * PAGE + 1)), (PAGE, true));
        sparse.zero(4 * PAGE, 6 * PAGE, false);
        assert_eq!(sparse.allocated(), 3 * PAGE);
        let mut file = tempfile::tempfile().expect("a temporary file");
        sparse.save(&mut file).expect("the host takes it");
        let mut back = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("seeks");
        std::io::Read::read_to_end(&mut file, &mut back).expect("reads");
        assert_eq!(back, sparse.to_vec());
    }
}
