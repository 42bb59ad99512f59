//! Ciphers over sectors: a block cipher, a mode, and how each sector gets its initialisation vector.
//!
//! ```text
//!   XTS    tweak = E2(iv);  block i: E1(plain ^ tweak * 2^i) ^ tweak * 2^i          all blocks of a sector at once
//!   CBC    block i: E(plain ^ block i-1), the first with the iv                      decryption: all blocks at once
//! ```
//!
//! Source: IEEE 1619 (XTS), NIST SP 800-38A (CBC, CTR, ECB), \[LUKS1\] "Cipher modes" for the vectors.

use std::fmt;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::Hash;
#[cfg(target_arch = "x86_64")]
use super::wide::WideXts;

/// Bytes that initialisation vectors count.
pub const SECTOR: u64 = 512;

/// Blocks that are worked on at once: those of 15 sectors. What AES is done with takes 8, 30 or 64 blocks at a time, by the
/// processor, and those that are left over one by one; here none are for the first two, and all stay in the first cache.
const RUN: usize = 480;

/// Blocks of a sector at the most.
const BLOCKS_MAX: usize = 256;

/// Sectors that begin within a run at the most.
const STARTS: usize = RUN * 16 / SECTOR as usize;

type Block = Array<u8, U16>;

/// What a cipher is called: `aes`, and `xts-plain64` or `cbc-essiv:sha256`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CipherName {
    /// The block cipher.
    pub cipher: String,
    /// How blocks are chained.
    pub mode: String,
    /// How initialisation vectors are made.
    pub iv: String,
    /// The hash that the vectors need, if they need one.
    pub iv_hash: Option<String>,
}

impl CipherName {
    /// Reads a cipher's name and its mode, as LUKS1 headers have them. `None` where the mode has no vectors.
    pub fn parse(cipher: &str, mode: &str) -> Option<Self> {
        let (mode, iv) = match mode.split_once('-') {
            Some(parts) => parts,
            None if mode == "ecb" => (mode, "null"),
            None => return None,
        };
        let (iv, iv_hash) = match iv.split_once(':') {
            Some((iv, hash)) => (iv, Some(hash.to_owned())),
            None => (iv, None),
        };
        Some(Self { cipher: cipher.into(), mode: mode.into(), iv: iv.into(), iv_hash })
    }

    /// Reads both in one, as LUKS2 has them: `aes-xts-plain64`.
    pub fn parse_whole(text: &str) -> Option<Self> {
        let (cipher, mode) = text.split_once('-')?;
        Self::parse(cipher, mode)
    }

    /// The mode as headers have it.
    pub fn mode_text(&self) -> String {
        match &self.iv_hash {
            Some(hash) => format!("{}-{}:{hash}", self.mode, self.iv),
            None if self.mode == "ecb" && self.iv == "null" => self.mode.clone(),
            None => format!("{}-{}", self.mode, self.iv),
        }
    }

    /// Bits of one key of the block cipher, where all keys together have so many bytes: XTS takes two.
    pub fn key_bits(&self, key_len: usize) -> usize {
        key_len * 8 / if self.mode == "xts" { 2 } else { 1 }
    }
}

impl fmt::Display for CipherName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.cipher, self.mode_text())
    }
}

/// Why there is no such cipher.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CipherError {
    #[error("Algorithm '{cipher}' with a key size of {bits} bits is not supported")]
    Algorithm { cipher: String, bits: usize },
    #[error("Unsupported cipher mode {0}")]
    Mode(String),
    #[error("Unsupported IV generator '{0}'")]
    Iv(String),
    #[error("Hash algorithm '{0}' is not supported")]
    Hash(String),
    #[error("IV generator 'essiv' needs a hash whose digest is a key of the cipher, and '{0}' has none")]
    EssivHash(String),
}

/// What is to be done with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Direction {
    Encrypt,
    Decrypt,
}

/// A block cipher with its key.
trait Blocks: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync> Blocks for C {
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

fn keyed(cipher: &str, key: &[u8]) -> Result<Box<dyn Blocks>, CipherError> {
    fn boxed<C: KeyInit + Blocks + 'static>(key: &[u8]) -> Option<Box<dyn Blocks>> {
        C::new_from_slice(key).ok().map(|cipher| Box::new(cipher) as Box<dyn Blocks>)
    }
    let made = match (cipher, key.len()) {
        ("aes", 16) => boxed::<aes::Aes128>(key),
        ("aes", 24) => boxed::<aes::Aes192>(key),
        ("aes", 32) => boxed::<aes::Aes256>(key),
        ("serpent", 16 | 24 | 32) => boxed::<serpent::Serpent>(key),
        ("twofish", 16 | 24 | 32) => boxed::<twofish::Twofish>(key),
        _ => None,
    };
    made.ok_or_else(|| CipherError::Algorithm { cipher: cipher.into(), bits: key.len() * 8 })
}

/// What no other processor has.
#[cfg(not(target_arch = "x86_64"))]
enum WideXts {}

#[cfg(not(target_arch = "x86_64"))]
impl WideXts {
    fn new(_: &[u8]) -> Option<Box<Self>> {
        None
    }

    fn apply(&self, _: Direction, _: &[Block], _: InOutBuf<'_, '_, Block>) {
        match *self {}
    }
}

enum Mode {
    /// With the cipher of the tweaks, and what does AES in this mode by itself where the processor can.
    Xts {
        tweaks: Box<dyn Blocks>,
        wide: Option<Box<WideXts>>,
    },
    Cbc,
    Ctr,
    Ecb,
}

enum Iv {
    Null,
    Plain,
    Plain64,
    Plain64Be,
    /// The number of the sector's first block, counted from 1.
    Benbi,
    /// With the cipher that encrypts sector numbers.
    Essiv(Box<dyn Blocks>),
}

/// A cipher with its keys, for sectors of one size.
pub struct Cipher {
    blocks: Box<dyn Blocks>,
    mode: Mode,
    iv: Iv,
    sector_len: usize,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("sector_len", &self.sector_len).finish_non_exhaustive()
    }
}

impl Cipher {
    /// A cipher for sectors of 512 to 4096 bytes, a power of two.
    ///
    /// # Errors
    /// When there is no such cipher, mode or vector, or the key has another length.
    pub fn new(name: &CipherName, key: &[u8], sector_len: usize) -> Result<Self, CipherError> {
        assert!(sector_len.is_power_of_two() && (512..=4096).contains(&sector_len), "sizes of sectors");
        let (data_key, mode) = match name.mode.as_str() {
            "xts" => {
                let (data, tweak) = key.split_at(key.len() / 2);
                let wide = (name.cipher == "aes").then(|| WideXts::new(data)).flatten();
                (data, Mode::Xts { tweaks: keyed(&name.cipher, tweak)?, wide })
            }
            "cbc" => (key, Mode::Cbc),
            "ctr" => (key, Mode::Ctr),
            "ecb" => (key, Mode::Ecb),
            _ => return Err(CipherError::Mode(name.mode.clone())),
        };
        let iv = match name.iv.as_str() {
            "null" => Iv::Null,
            "plain" => Iv::Plain,
            "plain64" => Iv::Plain64,
            "plain64be" => Iv::Plain64Be,
            "benbi" => Iv::Benbi,
            "essiv" => Iv::Essiv(essiv(name, key)?),
            _ => return Err(CipherError::Iv(name.iv.clone())),
        };
        Ok(Self { blocks: keyed(&name.cipher, data_key)?, mode, iv, sector_len })
    }

    /// Bytes of a sector.
    pub fn sector_len(&self) -> usize {
        self.sector_len
    }

    /// Encrypts or decrypts whole sectors in place. Vectors count 512 bytes each, whatever the sectors' size; `first` is
    /// the number of the first.
    pub fn apply(&self, direction: Direction, first: u64, data: &mut [u8]) {
        assert!(data.len().is_multiple_of(self.sector_len), "whole sectors");
        if let Mode::Xts { tweaks, wide } = &self.mode {
            let (blocks, _) = Block::slice_as_chunks_mut(data);
            return self.xts(direction, first, tweaks.as_ref(), wide.as_deref(), blocks.into());
        }
        let sectors = data.chunks_exact_mut(self.sector_len).zip(self.numbers(first));
        sectors.for_each(|(sector, number)| self.apply_to_sector(direction, number, sector));
    }

    /// Encrypts or decrypts whole sectors of `from` into `to`, which is as long.
    pub fn apply_into(&self, direction: Direction, first: u64, from: &[u8], to: &mut [u8]) {
        assert!(from.len() == to.len() && from.len().is_multiple_of(self.sector_len), "whole sectors");
        if let Mode::Xts { tweaks, wide } = &self.mode {
            let ((from, _), (to, _)) = (Block::slice_as_chunks(from), Block::slice_as_chunks_mut(to));
            let blocks = InOutBuf::new(from, to).expect("they are of one length");
            return self.xts(direction, first, tweaks.as_ref(), wide.as_deref(), blocks);
        }
        let sectors = from.chunks_exact(self.sector_len).zip(to.chunks_exact_mut(self.sector_len));
        for ((from, to), number) in sectors.zip(self.numbers(first)) {
            to.copy_from_slice(from);
            self.apply_to_sector(direction, number, to);
        }
    }

    /// The numbers of sectors from `first` on.
    fn numbers(&self, first: u64) -> impl Iterator<Item = u64> + use<> {
        let step = self.sector_len as u64 / SECTOR;
        (0..).map(move |nth: u64| first.wrapping_add(nth.wrapping_mul(step)))
    }

    /// A sector in a mode other than XTS.
    fn apply_to_sector(&self, direction: Direction, number: u64, sector: &mut [u8]) {
        let (blocks, _) = Block::slice_as_chunks_mut(sector);
        let mut vector = self.vector(number);
        match (&self.mode, direction) {
            (Mode::Xts { .. }, _) => unreachable!("XTS works on many sectors at once"),
            (Mode::Cbc, Direction::Encrypt) => {
                for block in blocks {
                    xor(block, &vector);
                    self.blocks.encrypt(std::slice::from_mut(block));
                    vector = *block;
                }
            }
            (Mode::Cbc, Direction::Decrypt) => {
                let mut chain = [Block::default(); BLOCKS_MAX];
                chain[0] = vector;
                chain[1..blocks.len()].copy_from_slice(&blocks[..blocks.len() - 1]);
                self.blocks.decrypt(blocks);
                blocks.iter_mut().zip(&chain).for_each(|(block, last)| xor(block, last));
            }
            (Mode::Ctr, _) => {
                let mut stream = [Block::default(); BLOCKS_MAX];
                let mut counter = u128::from_be_bytes(vector.0);
                for block in &mut stream[..blocks.len()] {
                    block.0 = counter.to_be_bytes();
                    counter = counter.wrapping_add(1);
                }
                self.blocks.encrypt(&mut stream[..blocks.len()]);
                blocks.iter_mut().zip(&stream).for_each(|(block, key)| xor(block, key));
            }
            (Mode::Ecb, Direction::Encrypt) => self.blocks.encrypt(blocks),
            (Mode::Ecb, Direction::Decrypt) => self.blocks.decrypt(blocks),
        }
    }

    /// Whole sectors in XTS.
    fn xts(
        &self,
        direction: Direction,
        first: u64,
        tweaks: &dyn Blocks,
        wide: Option<&WideXts>,
        mut blocks: InOutBuf<'_, '_, Block>,
    ) {
        let Some(wide) = wide else { return self.xts_in_passes(direction, first, tweaks, blocks) };
        let mut numbers = self.numbers(first);
        let of_sector = self.sector_len / 16;
        while !blocks.is_empty() {
            let sectors = (blocks.len() / of_sector).min(STARTS);
            let (run, rest) = blocks.split_at(sectors * of_sector);
            blocks = rest;
            let mut starts = [Block::default(); STARTS];
            let starts = &mut starts[..sectors];
            starts.iter_mut().zip(&mut numbers).for_each(|(start, number)| *start = self.vector(number));
            tweaks.encrypt(starts);
            wide.apply(direction, starts, run);
        }
    }

    /// Whole sectors, in runs of blocks that may end within one.
    fn xts_in_passes(
        &self,
        direction: Direction,
        first: u64,
        tweaks: &dyn Blocks,
        mut blocks: InOutBuf<'_, '_, Block>,
    ) {
        let mut numbers = self.numbers(first);
        // A power of two.
        let of_sector = self.sector_len / 16;
        // The tweak of each block of a run; the next block's place in its sector, and its tweak, unless it is the first.
        let (mut all, mut within, mut tweak) = ([0u128; RUN], 0, 0u128);
        while !blocks.is_empty() {
            let len = blocks.len().min(RUN);
            let (mut run, rest) = blocks.split_at(len);
            blocks = rest;
            let before = (of_sector - within) & (of_sector - 1);
            let mut starts = [Block::default(); STARTS];
            let starts = &mut starts[..len.saturating_sub(before).div_ceil(of_sector)];
            starts.iter_mut().zip(&mut numbers).for_each(|(start, number)| *start = self.vector(number));
            tweaks.encrypt(starts);
            let mut starts = starts.iter();
            for (mut block, kept) in run.reborrow().into_iter().zip(&mut all) {
                if within == 0 {
                    let start = starts.next().expect("as many as sectors begin here");
                    tweak = u128::from_le_bytes(start.0);
                }
                *kept = tweak;
                block.get_out().0 = (u128::from_le_bytes(block.get_in().0) ^ tweak).to_le_bytes();
                // Times x in the field of 2^128 elements; without a branch that would depend on the key.
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
                within = (within + 1) & (of_sector - 1);
            }
            let run = run.get_out();
            match direction {
                Direction::Encrypt => self.blocks.encrypt(run),
                Direction::Decrypt => self.blocks.decrypt(run),
            }
            for (block, tweak) in run.iter_mut().zip(&all) {
                block.0 = (u128::from_le_bytes(block.0) ^ tweak).to_le_bytes();
            }
        }
    }

    fn vector(&self, number: u64) -> Block {
        let mut vector = Block::default();
        match &self.iv {
            Iv::Null => {}
            Iv::Plain => vector[..4].copy_from_slice(&(number as u32).to_le_bytes()),
            Iv::Plain64 => vector[..8].copy_from_slice(&number.to_le_bytes()),
            Iv::Plain64Be => vector[8..].copy_from_slice(&number.to_be_bytes()),
            Iv::Benbi => {
                let block = number.wrapping_mul(SECTOR / 16).wrapping_add(1);
                vector[8..].copy_from_slice(&block.to_be_bytes());
            }
            Iv::Essiv(cipher) => {
                vector[..8].copy_from_slice(&number.to_le_bytes());
                cipher.encrypt(std::slice::from_mut(&mut vector));
            }
        }
        vector
    }
}

fn xor(block: &mut Block, with: &Block) {
    block.0 = (u128::from_ne_bytes(block.0) ^ u128::from_ne_bytes(with.0)).to_ne_bytes();
}

/// The cipher of encrypted sector numbers, whose key is a digest of the data's key.
fn essiv(name: &CipherName, key: &[u8]) -> Result<Box<dyn Blocks>, CipherError> {
    let hash = name.iv_hash.as_deref().unwrap_or_default();
    let known = Hash::parse(hash).ok_or_else(|| CipherError::Hash(hash.into()))?;
    let digest = zeroize::Zeroizing::new(known.digest(&[key]));
    keyed(&name.cipher, &digest).map_err(|_| CipherError::EssivHash(hash.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    }

    /// IEEE 1619, vectors 4 and 10: the first bytes of a sector of 512 bytes.
    #[test]
    fn aes_xts_gives_the_vectors_of_the_standard() {
        let plain: Vec<u8> = (0..512).map(|at| at as u8).collect();
        for (keys, sector, encrypted) in [
            (
                ["27182818284590452353602874713526", "31415926535897932384626433832795"],
                0,
                "27a7479befa1d476489f308cd4cfa6e2",
            ),
            (
                [
                    "2718281828459045235360287471352662497757247093699959574966967627",
                    "3141592653589793238462643383279502884197169399375105820974944592",
                ],
                0xff,
                "1c3b3a102f770386e4836c99e370cf9b",
            ),
        ] {
            let name = CipherName::parse("aes", "xts-plain64").expect("a name");
            let cipher = Cipher::new(&name, &hex(&keys.concat()), 512).expect("a cipher");
            let mut data = plain.clone();
            cipher.apply(Direction::Encrypt, sector, &mut data);
            assert_eq!(data[..16], hex(encrypted));
            cipher.apply(Direction::Decrypt, sector, &mut data);
            assert_eq!(data, plain);
        }
    }

    #[test]
    fn every_cipher_decrypts_what_it_encrypts_and_sectors_stand_alone() {
        let key: Vec<u8> = (0..64).collect();
        let modes = [
            "xts-plain64",
            "cbc-essiv:sha256",
            "cbc-plain64",
            "cbc-plain",
            "ctr-plain64",
            "ecb",
            "cbc-plain64be",
            "xts-benbi",
        ];
        for (cipher, mode, len) in ["aes", "serpent", "twofish"]
            .into_iter()
            .flat_map(|cipher| modes.into_iter().map(move |mode| (cipher, mode)))
            .flat_map(|(cipher, mode)| [16, 24, 32].into_iter().map(move |len| (cipher, mode, len)))
        {
            let name = CipherName::parse(cipher, mode).expect("a name");
            assert_eq!(name.mode_text(), mode);
            let len = if name.mode == "xts" { 2 * len } else { len };
            for sector_len in [512, 4096] {
                let cipher = Cipher::new(&name, &key[..len], sector_len).expect("a cipher");
                // More than two runs, which end within sectors.
                let plain: Vec<u8> = (0..33 * sector_len).map(|at| (at / 7) as u8).collect();
                let mut all = plain.clone();
                cipher.apply(Direction::Encrypt, 1 << 33, &mut all);
                assert_ne!(all, plain);
                let mut copied = vec![0; all.len()];
                cipher.apply_into(Direction::Encrypt, 1 << 33, &plain, &mut copied);
                assert_eq!(copied, all, "{name} {sector_len}");
                for (at, number) in (0..all.len()).step_by(sector_len).zip(0_u64..) {
                    let mut alone = plain[at..at + sector_len].to_vec();
                    cipher.apply(
                        Direction::Encrypt,
                        (1 << 33) + number * sector_len as u64 / 512,
                        &mut alone,
                    );
                    assert_eq!(alone, all[at..at + sector_len], "{name} {sector_len}");
                }
                let mut back = vec![0; all.len()];
                cipher.apply_into(Direction::Decrypt, 1 << 33, &all, &mut back);
                assert_eq!(back, plain, "{name} {sector_len}");
                // The way of processors that do it in passes.
                let Mode::Xts { tweaks, .. } = cipher.mode else { continue };
                let cipher = Cipher { mode: Mode::Xts { tweaks, wide: None }, ..cipher };
                let mut passes = plain.clone();
                cipher.apply(Direction::Encrypt, 1 << 33, &mut passes);
                assert_eq!(passes, all, "{name} {sector_len}");
                cipher.apply_into(Direction::Decrypt, 1 << 33, &all, &mut passes);
                assert_eq!(passes, plain, "{name} {sector_len}");
            }
        }
    }

    #[test]
    fn what_there_is_not_is_refused() {
        for (cipher, mode, len) in [
            ("cast5", "cbc-plain64", 16),
            ("aes", "xts-plain64", 16),
            ("aes", "lrw-benbi", 32),
            ("aes", "cbc-eboiv", 32),
            ("aes", "cbc-essiv:md4", 32),
            ("aes", "cbc-essiv:sha1", 32),
            ("aes", "cbc-essiv", 32),
        ] {
            let name = CipherName::parse(cipher, mode).expect("a name");
            assert!(Cipher::new(&name, &vec![1; len], 512).is_err(), "{name}");
        }
        assert_eq!(CipherName::parse("aes", "xts"), None);
    }
}
