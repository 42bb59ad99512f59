//! AES in XTS on processors whose AES instructions take two blocks at once, without AVX-512.
//!
//! The `aes` crate uses these instructions only together with AVX-512, and whoever uses it works in passes: tweaks, blocks,
//! tweaks again. Here a group of 16 blocks goes from memory through tweak, rounds and tweak in registers, which is four times
//! as fast. Processors without the instructions, and other ciphers, go the way of [`Cipher`](super::Cipher); a test
//! holds the two together.
//!
//! ```text
//!   lanes of a pair      T      T*x                  T = E2(iv), in the field of 2^128 elements
//!   pairs of a group     *1  *x^2  *x^4 ... *x^14    eight of them, each from the first
//!   the next group       *x^16, each pair by itself
//! ```
//!
//! Source: FIPS 197 (key expansion, the equivalent inverse cipher), IEEE 1619 (tweaks). Nothing here branches on, or looks
//! up in memory by, a key or data.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::inout::{InOut, InOutBuf};
use zeroize::Zeroize;

use super::Direction;

type Block = Array<u8, U16>;

/// Blocks that are in registers together: two in each of eight, so that a round's results are ready when the next begins.
type Group = Array<Block, U16>;

/// Round keys at the most: those of AES-256.
const KEYS_MAX: usize = 15;

/// A round key for each round, and the one before the first.
type Schedule = [[u8; 16]; KEYS_MAX];

/// An expanded key, both ways.
pub(super) struct WideXts {
    encrypt: Schedule,
    decrypt: Schedule,
    /// Round keys of both: 11, 13 or 15.
    keys: usize,
}

impl Drop for WideXts {
    fn drop(&mut self) {
        self.encrypt.zeroize();
        self.decrypt.zeroize();
    }
}

impl WideXts {
    /// The data's key of 16, 24 or 32 bytes. `None` where the processor has other instructions.
    pub(super) fn new(key: &[u8]) -> Option<Box<Self>> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq");
        if !has_all || !matches!(key.len(), 16 | 24 | 32) {
            return None;
        }
        let (encrypt, decrypt) = (Schedule::default(), Schedule::default());
        // Where it stays: what is moved would leave keys behind.
        let mut made = Box::new(Self { encrypt, decrypt, keys: key.len() / 4 + 7 });
        // SAFETY: the processor has the instructions, which was just asked.
        unsafe { expand(key, &mut made) };
        Some(made)
    }

    /// Works on whole sectors of so many `blocks`, the first of which begin with the tweaks `starts`.
    pub(super) fn apply(&self, direction: Direction, starts: &[Block], blocks: InOutBuf<'_, '_, Block>) {
        let (groups, rest) = blocks.into_chunks::<U16>();
        assert!(
            rest.is_empty() && !starts.is_empty() && groups.len().is_multiple_of(starts.len()),
            "whole sectors"
        );
        match direction {
            // SAFETY: there is a `Self`, so the processor has the instructions.
            Direction::Encrypt => unsafe { sectors::<true>(&self.encrypt[..self.keys], starts, groups) },
            // SAFETY: as above.
            Direction::Decrypt => unsafe { sectors::<false>(&self.decrypt[..self.keys], starts, groups) },
        }
    }
}

/// Round keys of a key of 16, 24 or 32 bytes.
#[target_feature(enable = "aes")]
fn expand(key: &[u8], made: &mut WideXts) {
    let (of_key, keys) = (key.len() / 4, made.keys);
    let substituted =
        |word: u32| _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(_mm_set1_epi32(word as i32))) as u32;
    let mut words = [0u32; 4 * KEYS_MAX];
    for (word, bytes) in words.iter_mut().zip(key.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    let mut constant = 1u32;
    for at in of_key..4 * keys {
        let mut last = words[at - 1];
        if at % of_key == 0 {
            last = substituted(last).rotate_right(8) ^ constant;
            constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
        } else if of_key == 8 && at % of_key == 4 {
            last = substituted(last);
        }
        words[at] = words[at - of_key] ^ last;
    }
    for (round, key) in words.chunks_exact(4).take(keys).enumerate() {
        for (bytes, word) in made.encrypt[round].chunks_exact_mut(4).zip(key) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    words.zeroize();
    for round in 0..keys {
        let forward = made.encrypt[keys - 1 - round];
        let inner = round != 0 && round != keys - 1;
        let mixed = _mm_aesimc_si128(load_one(&forward));
        made.decrypt[round] = if inner { stored_one(mixed) } else { forward };
    }
}

/// Sectors, as many as there are tweaks to begin with; `keys` has round keys in the order of use.
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
fn sectors<const ENCRYPT: bool>(keys: &[[u8; 16]], starts: &[Block], groups: InOutBuf<'_, '_, Group>) {
    let mut both = [_mm256_setzero_si256(); KEYS_MAX];
    for (both, key) in both.iter_mut().zip(keys) {
        *both = _mm256_broadcastsi128_si256(load_one(key));
    }
    let of_sector = groups.len() / starts.len();
    let mut groups = groups.into_iter();
    for start in starts {
        let start = _mm256_broadcastsi128_si256(load_one(&start.0));
        let pair = _mm256_blend_epi32::<0xf0>(start, times_x::<1, 63>(start));
        let mut tweaks = [
            pair,
            times_x::<2, 62>(pair),
            times_x::<4, 60>(pair),
            times_x::<6, 58>(pair),
            times_x::<8, 56>(pair),
            times_x::<10, 54>(pair),
            times_x::<12, 52>(pair),
            times_x::<14, 50>(pair),
        ];
        for nth in 0..of_sector {
            if nth > 0 {
                for tweak in &mut tweaks {
                    *tweak = times_x::<16, 48>(*tweak);
                }
            }
            let group = groups.next().expect("as many as the sectors have");
            through::<ENCRYPT>(&both[..keys.len()], &tweaks, group);
        }
    }
    both.zeroize();
}

/// One group: tweaks, rounds, tweaks.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn through<const ENCRYPT: bool>(keys: &[__m256i], tweaks: &[__m256i; 8], mut group: InOut<'_, '_, Group>) {
    let [first, rounds @ .., last] = keys else { unreachable!("eleven keys at least") };
    let mut pairs = [_mm256_setzero_si256(); 8];
    for nth in 0..8 {
        pairs[nth] = _mm256_xor_si256(load(group.get_in(), nth), _mm256_xor_si256(tweaks[nth], *first));
    }
    for key in rounds {
        for pair in &mut pairs {
            *pair =
                if ENCRYPT { _mm256_aesenc_epi128(*pair, *key) } else { _mm256_aesdec_epi128(*pair, *key) };
        }
    }
    // The last round ends with its key; the tweak comes with it.
    for nth in 0..8 {
        let last = _mm256_xor_si256(*last, tweaks[nth]);
        let done = if ENCRYPT {
            _mm256_aesenclast_epi128(pairs[nth], last)
        } else {
            _mm256_aesdeclast_epi128(pairs[nth], last)
        };
        store(group.get_out(), nth, done);
    }
}

/// Both lanes times x^`K`; `REST` is 64 - `K`. What leaves a lane at the top comes back at the bottom times 0x87.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_x<const K: i32, const REST: i32>(lanes: __m256i) -> __m256i {
    const { assert!(K + REST == 64, "of a half lane") };
    let over = _mm256_srli_epi64::<REST>(lanes);
    let carried = _mm256_slli_si256::<8>(over);
    let reduced = _mm256_clmulepi64_epi128::<0x01>(over, _mm256_set_epi64x(0, 0x87, 0, 0x87));
    _mm256_xor_si256(_mm256_slli_epi64::<K>(lanes), _mm256_xor_si256(carried, reduced))
}

#[inline]
#[target_feature(enable = "sse2")]
fn load_one(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are read, wherever they lie.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn stored_one(of: __m128i) -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: 16 bytes are written, wherever they lie.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), of) }
    bytes
}

/// The pair of blocks `nth` of a group.
#[inline]
#[target_feature(enable = "avx2")]
fn load(group: &Group, nth: usize) -> __m256i {
    let pair: &[Block] = &group[2 * nth..2 * nth + 2];
    // SAFETY: two blocks of 16 bytes are read, wherever they lie.
    unsafe { _mm256_loadu_si256(pair.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(group: &mut Group, nth: usize, blocks: __m256i) {
    let pair: &mut [Block] = &mut group[2 * nth..2 * nth + 2];
    // SAFETY: two blocks of 16 bytes are written, wherever they lie.
    unsafe { _mm256_storeu_si256(pair.as_mut_ptr().cast(), blocks) }
}
