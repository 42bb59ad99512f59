//! The anti-forensic splitter: a key spread over many stripes, each of which is needed to get it back.
//! Source: \[LUKS1\] "Anti-forensic splitting".

use zeroize::{Zeroize, Zeroizing};

use super::Hash;

/// Puts the key of `len` bytes together again; `material` holds whole stripes.
pub fn af_merge(hash: Hash, material: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let (last, before) = last_stripe(material, len);
    let mut key = sum_of(hash, before, len);
    xor(&mut key, last);
    key
}

/// Splits a key: all stripes of `material` but the last hold random bytes, and the last one is made.
pub fn af_split(hash: Hash, material: &mut [u8], key: &[u8]) {
    let len = key.len();
    let at = material.len() - len;
    let mut last = sum_of(hash, &material[..at], len);
    xor(&mut last, key);
    material[at..].copy_from_slice(&last);
}

fn last_stripe(material: &[u8], len: usize) -> (&[u8], &[u8]) {
    let (before, last) = material.split_at(material.len() - len);
    (last, before)
}

fn sum_of(hash: Hash, stripes: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; len]);
    for stripe in stripes.chunks_exact(len) {
        xor(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    sum
}

fn xor(sum: &mut [u8], stripe: &[u8]) {
    sum.iter_mut().zip(stripe).for_each(|(sum, byte)| *sum ^= byte);
}

/// Each part as long as a digest becomes the digest of its number and itself; a shorter last one, the beginning of it.
fn diffuse(hash: Hash, bytes: &mut [u8]) {
    for (part, number) in bytes.chunks_mut(hash.digest_len()).zip(0u32..) {
        let mut digest = hash.digest(&[&number.to_be_bytes(), part]);
        part.copy_from_slice(&digest[..part.len()]);
        digest.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_split_merges() {
        for hash in Hash::ALL {
            for len in [16, 32, 64] {
                let key: Vec<u8> = (0..len as u8).map(|byte| byte.wrapping_mul(37)).collect();
                let mut material: Vec<u8> = (0..len * 10).map(|at| (at * 101 % 251) as u8).collect();
                af_split(hash, &mut material, &key);
                assert_eq!(*af_merge(hash, &material, len), key);
                material[0] ^= 1;
                assert_ne!(*af_merge(hash, &material, len), key);
            }
        }
    }
}
