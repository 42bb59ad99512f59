//! Apple Data Compression, which the oldest disk images of macOS are packed with: runs of literal bytes, and runs of what came
//! before.
//!
//! | first byte | bytes | means                                                                       |
//! |------------|-------|-----------------------------------------------------------------------------|
//! | `1lllllll` | 1 + n | n = l + 1 bytes that follow                                                 |
//! | `01llllll` | 3     | l + 4 bytes from d + 1 back, where d is the next two bytes, big-endian      |
//! | `00lllldd` | 2     | l + 3 bytes from d + 1 back, where d is these two bits and the next byte    |

/// Unpacks until `plain` is full or `packed` ends; returns how many bytes came out, if the bytes mean something.
pub(super) fn unpack(packed: &[u8], plain: &mut [u8]) -> Option<usize> {
    let (mut rest, mut made) = (packed, 0);
    while made < plain.len() && !rest.is_empty() {
        let room = plain.len() - made;
        match *rest {
            [first, ref after @ ..] if first & 0x80 != 0 => {
                let len = usize::from(first & 0x7f) + 1;
                let literal = after.get(..len)?;
                let taken = len.min(room);
                plain[made..made + taken].copy_from_slice(&literal[..taken]);
                (rest, made) = (&after[len..], made + taken);
            }
            [first, high, low, ref after @ ..] if first & 0x40 != 0 => {
                let len = usize::from(first & 0x3f) + 4;
                made = repeat(plain, made, usize::from(u16::from_be_bytes([high, low])) + 1, len)?;
                rest = after;
            }
            [first, low, ref after @ ..] if first & 0x40 == 0 => {
                let len = usize::from(first >> 2) + 3;
                made = repeat(plain, made, usize::from(u16::from_be_bytes([first & 3, low])) + 1, len)?;
                rest = after;
            }
            _ => return None,
        }
    }
    Some(made)
}

/// Repeats what was made so far back, which may be some of what is being made; returns where that ends.
fn repeat(plain: &mut [u8], made: usize, back: usize, len: usize) -> Option<usize> {
    let from = made.checked_sub(back)?;
    let end = (made + len).min(plain.len());
    for at in made..end {
        plain[at] = plain[from + at - made];
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(packed: &[u8], len: usize, expected: Option<&[u8]>) {
        let mut plain = vec![0xee; len];
        let made = unpack(packed, &mut plain);
        assert_eq!(made.map(|made| &plain[..made]), expected, "{packed:02x?}");
    }

    #[test]
    fn runs_are_as_the_table_has_them() {
        check(&[0x82, 1, 2, 3], 3, Some(&[1, 2, 3]));
        // Three bytes from one back, twice: the shortest run of either kind overlaps itself.
        check(&[0x80, 7, 0x00, 0], 4, Some(&[7; 4]));
        check(&[0x80, 7, 0x40, 0, 0], 5, Some(&[7; 5]));
        check(&[0x82, 1, 2, 3, 0x04, 2], 7, Some(&[1, 2, 3, 1, 2, 3, 1]));
        let far: Vec<u8> = [vec![0xff; 129], vec![0xff; 129], vec![0x41, 0, 0xff]].concat();
        check(&far, 261, Some(&[0xff; 261]));
        // What does not fit is cut.
        check(&[0x80, 7, 0x3c, 0], 4, Some(&[7; 4]));
        check(&[0x83, 1, 2, 3, 4], 2, Some(&[1, 2]));
    }

    #[test]
    fn what_means_nothing_is_damaged() {
        check(&[0x82, 1, 2], 3, None);
        check(&[0x00, 0], 3, None);
        check(&[0x80, 7, 0x00, 1], 4, None);
        check(&[0x80, 7, 0x40, 0], 5, None);
        check(&[0x80, 7, 0x00], 5, None);
        check(&[], 5, Some(&[]));
    }
}
