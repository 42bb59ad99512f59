//! The way of data through a cipher: what a volume's node, and an encrypted qcow2 image's, does with requests.
//!
//! A read fills the caller's buffers and decrypts them where they are; a write encrypts into other memory, which is kept
//! for the next one. Both are cut into pieces for the executor's threads, unless they are small. Parts of a sector are
//! read, changed and written under a claim, which every write takes: what one of them read must not be old when it writes
//! it back.

use std::cell::RefCell;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::buf::{Buf, BufList};
use crate::compute::Compute;
use crate::crypto::{Cipher, Direction, SECTOR};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::NodeId;
use crate::intent::Fua;

/// Bytes that are worked on at once by one thread: enough that handing it over costs little, small enough for the
/// second cache of a core.
const PIECE: usize = 128 << 10;

/// Bytes up to which work is done where it is: handing it to a thread would take longer.
const INLINE_MAX: usize = 16 << 10;

/// Buffers that are kept for the next writes, and how long each is at the most.
const SPARES_MAX: usize = 16;
const SPARE_LEN_MAX: usize = 2 << 20;

/// A cipher, and where its sectors are.
pub(in crate::format) struct Sectors {
    cipher: Arc<Cipher>,
    /// The byte of the child that is the node's first.
    offset: u64,
    /// What is added to sector numbers, in units of 512 bytes.
    tweak: u64,
    spares: RefCell<Vec<Buf>>,
}

impl Sectors {
    pub(in crate::format) fn new(cipher: Cipher, offset: u64, tweak: u64) -> Self {
        Self { cipher: Arc::new(cipher), offset, tweak, spares: RefCell::default() }
    }

    /// Bytes of a sector.
    pub(in crate::format) fn sector_len(&self) -> u64 {
        self.cipher.sector_len() as u64
    }

    /// The byte of the child that is the node's first.
    pub(in crate::format) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads what `child` holds encrypted.
    pub(in crate::format) async fn read(
        &self,
        io: &Io,
        child: NodeId,
        offset: u64,
        data: &mut BufList,
    ) -> Result<()> {
        let unit = self.sector_len();
        let len = data.len_bytes() as u64;
        let whole = |len: usize| (len as u64).is_multiple_of(unit);
        if offset.is_multiple_of(unit) && data.windows().iter().all(|window| whole(window.len())) {
            let (back, result) =
                io.read("crypt.read/data", child, self.offset + offset, std::mem::take(data)).await;
            *data = back;
            result?;
            self.decrypt(io, offset, data).await;
            return Ok(());
        }
        let start = offset - offset % unit;
        let sectors = self.read_sectors(io, child, start, (offset + len).next_multiple_of(unit)).await?;
        data.copy_in(0, &sectors[(offset - start) as usize..][..len as usize]);
        Ok(())
    }

    /// Reads and decrypts whole sectors.
    async fn read_sectors(&self, io: &Io, child: NodeId, start: u64, end: u64) -> Result<Buf> {
        let room = Buf::zeroed((end - start) as usize);
        let (mut data, result) = io.read("crypt.read/sectors", child, self.offset + start, room).await;
        result?;
        self.decrypt(io, start, &mut data).await;
        Ok(data.into_single())
    }

    /// Decrypts whole sectors where they are.
    async fn decrypt(&self, io: &Io, offset: u64, data: &mut BufList) {
        let first = self.number_of(offset);
        if data.len_bytes() <= INLINE_MAX {
            let mut at = first;
            for window in data.windows_mut() {
                self.cipher.apply(Direction::Decrypt, at, window);
                at = at.wrapping_add(window.len() as u64 / SECTOR);
            }
            return;
        }
        let pieces = self.pieces(std::mem::take(data), first);
        let works = pieces.into_iter().map(|(first, data)| self.work(Direction::Decrypt, first, data, None));
        for computed in io.compute_all("crypt.decrypt", works).await {
            data.push(computed.output);
        }
    }

    /// Writes encrypted, and whole sectors at once; of a sector that is written in part, the rest stays.
    ///
    /// The claim is on the node of `io`.
    pub(in crate::format) async fn write(
        &self,
        io: &Io,
        child: NodeId,
        offset: u64,
        data: &mut BufList,
        fua: Fua,
    ) -> Result<()> {
        let unit = self.sector_len();
        let len = data.len_bytes() as u64;
        let (start, end) = (offset - offset % unit, (offset + len).next_multiple_of(unit));
        let node = io.shared().graph.node(io.node());
        let _claim = node.claims.take(&io.shared().tasks, start, end).await;
        let whole = |len: usize| (len as u64).is_multiple_of(unit);
        if start == offset && data.windows().iter().all(|window| whole(window.len())) {
            let packed = self.encrypt(io, offset, data).await;
            return self.put(io, child, offset, packed, fua).await;
        }
        let mut sectors = Buf::zeroed((end - start) as usize);
        if start < offset {
            let head = self.read_sectors(io, child, start, start + unit).await?;
            sectors[..unit as usize].copy_from_slice(&head);
        }
        if offset + len < end && !(start < offset && end - start == unit) {
            let tail = self.read_sectors(io, child, end - unit, end).await?;
            let at = sectors.len() - unit as usize;
            sectors[at..].copy_from_slice(&tail);
        }
        let at = (offset - start) as usize;
        data.copy_out(0, &mut sectors[at..at + len as usize]);
        let mut plain = BufList::from(sectors);
        let packed = self.encrypt(io, start, &mut plain).await;
        self.put(io, child, start, packed, fua).await
    }

    async fn put(&self, io: &Io, child: NodeId, offset: u64, packed: Buf, fua: Fua) -> Result<()> {
        let (back, result) = io.write("crypt.write/data", child, self.offset + offset, packed, fua).await;
        let back = back.into_single();
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES_MAX && back.is_whole() && back.len() <= SPARE_LEN_MAX {
            spares.push(back);
        }
        result
    }

    /// Encrypts whole sectors into other memory.
    async fn encrypt(&self, io: &Io, offset: u64, data: &mut BufList) -> Buf {
        let first = self.number_of(offset);
        let mut packed = self.room(data.len_bytes());
        if data.len_bytes() <= INLINE_MAX {
            let mut at = 0;
            for window in data.windows() {
                let to = &mut packed[at..at + window.len()];
                let first = first.wrapping_add(at as u64 / SECTOR);
                self.cipher.apply_into(Direction::Encrypt, first, window, to);
                at += window.len();
            }
            return packed;
        }
        let pieces = self.pieces(std::mem::take(data), first);
        let works = pieces.into_iter().map(|(first, data)| {
            let into = packed.split_to(data.len());
            self.work(Direction::Encrypt, first, data, Some(into))
        });
        let done = io.compute_all("crypt.encrypt", works.collect::<SmallVec<[Compute; 4]>>()).await;
        for computed in done {
            data.push(computed.input);
            packed.unsplit(computed.output).expect("pieces of one buffer, in their order");
        }
        packed
    }

    /// A buffer of that length, of what was kept or new.
    fn room(&self, len: usize) -> Buf {
        let mut spares = self.spares.borrow_mut();
        match spares.iter().position(|spare| spare.len() == len) {
            Some(at) => spares.swap_remove(at),
            None => {
                // What has another length is not what this node is asked for any more.
                if spares.len() == SPARES_MAX {
                    spares.remove(0);
                }
                Buf::zeroed(len)
            }
        }
    }

    /// Cuts whole sectors into pieces, each with the number of its first sector.
    fn pieces(&self, data: BufList, first: u64) -> SmallVec<[(u64, Buf); 4]> {
        let (mut data, mut at) = (data, first);
        let mut pieces = SmallVec::new();
        for window in data.windows_mut() {
            let mut window = std::mem::take(window);
            while !window.is_empty() {
                let piece = window.split_to(window.len().min(PIECE));
                let len = piece.len() as u64;
                pieces.push((at, piece));
                at = at.wrapping_add(len / SECTOR);
            }
        }
        pieces
    }

    fn work(&self, direction: Direction, first: u64, data: Buf, into: Option<Buf>) -> Compute {
        Compute::Cipher { cipher: Arc::clone(&self.cipher), direction, first, data, into }
    }

    /// The number of the sector at a byte of the node.
    fn number_of(&self, offset: u64) -> u64 {
        self.tweak.wrapping_add(offset / SECTOR)
    }
}
