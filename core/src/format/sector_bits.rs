//! Bitmaps with a bit for each sector, as VHDX and VHD keep them: how far they say the same.

/// Which bit of a byte is that of its first sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) enum FirstBit {
    Lowest,
    Highest,
}

/// How many bits from `first` on, at most `max`, are the same; and whether they are set.
pub(in crate::format) fn run_of_bits(
    bytes: &[u8],
    order: FirstBit,
    first: usize,
    max: usize,
) -> (usize, bool) {
    let is_set = |bit: usize| match order {
        FirstBit::Lowest => bytes[bit / 8] >> (bit % 8) & 1 != 0,
        FirstBit::Highest => bytes[bit / 8] & 0x80 >> (bit % 8) != 0,
    };
    let set = is_set(first);
    let whole = if set { 0xff } else { 0 };
    let end = (first + max).min(bytes.len() * 8);
    let mut bit = first + 1;
    while bit < end {
        if bit.is_multiple_of(8) && bytes[bit / 8] == whole {
            bit += 8;
        } else if is_set(bit) == set {
            bit += 1;
        } else {
            break;
        }
    }
    (bit.min(end) - first, set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_bits_ends_where_they_change() {
        let lowest = [0b1111_0000, 0xff, 0xff, 0b0000_0001];
        let highest = lowest.map(u8::reverse_bits);
        for (first, max, expected) in [
            (0, 100, (4, false)),
            (0, 32, (4, false)),
            (4, 100, (21, true)),
            (4, 28, (21, true)),
            (4, 7, (7, true)),
            (25, 100, (7, false)),
            (25, 7, (7, false)),
            (31, 1, (1, false)),
            (8, 16, (16, true)),
        ] {
            assert_eq!(run_of_bits(&lowest, FirstBit::Lowest, first, max), expected, "{first} {max}");
            assert_eq!(run_of_bits(&highest, FirstBit::Highest, first, max), expected, "{first} {max}");
        }
    }
}
