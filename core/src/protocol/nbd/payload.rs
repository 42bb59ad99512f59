//! The part of a request's buffers that the next bytes from the peer belong to.

use crate::buf::BufList;

/// The windows of `data` between two offsets, cut to them, in order.
pub fn windows_between(data: &mut BufList, from: usize, to: usize) -> impl Iterator<Item = &mut [u8]> {
    let mut start = 0;
    data.windows_mut().iter_mut().filter_map(move |window| {
        let (first, last) = (from.max(start), to.min(start + window.len()));
        let cut = (first < last).then(|| first - start..last - start);
        start += window.len();
        cut.map(|cut| &mut window[cut])
    })
}

/// Copies the front of `input` into `data` between two offsets, and returns how much that was.
pub(super) fn copy_front(data: &mut BufList, from: usize, to: usize, input: &mut &[u8]) -> usize {
    let count = input.len().min(to - from);
    let (front, rest) = input.split_at(count);
    data.copy_in(from, front);
    *input = rest;
    count
}

/// Moves the front of `input` to `partial` until that has `needed` bytes, and tells whether it has.
pub(super) fn collect(partial: &mut Vec<u8>, needed: usize, input: &mut &[u8]) -> bool {
    let count = input.len().min(needed.saturating_sub(partial.len()));
    let (front, rest) = input.split_at(count);
    partial.extend_from_slice(front);
    *input = rest;
    partial.len() >= needed
}

/// Fills `data` between two offsets with zeros.
pub(super) fn zero_between(data: &mut BufList, from: usize, to: usize) {
    windows_between(data, from, to).for_each(|window| window.fill(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;

    #[test]
    fn windows_are_cut_at_both_ends() {
        let mut data: BufList = [vec![0u8; 4], vec![0; 4], vec![0; 4]].into_iter().map(Buf::from).collect();
        for (from, to, lengths) in
            [(0, 12, vec![4, 4, 4]), (2, 7, vec![2, 3]), (4, 8, vec![4]), (5, 5, vec![])]
        {
            let found: Vec<_> = windows_between(&mut data, from, to).map(|window| window.len()).collect();
            assert_eq!(found, lengths, "{from}..{to}");
        }
        let mut input = &[1, 2, 3, 4][..];
        assert_eq!(copy_front(&mut data, 3, 6, &mut input), 3);
        assert_eq!(input, [4]);
        let (mut partial, mut input) = (vec![7], &[8, 9][..]);
        assert!(collect(&mut partial, 2, &mut input) && collect(&mut partial, 1, &mut input));
        assert!(partial == [7, 8] && input == [9] && !collect(&mut partial, 4, &mut input));
        zero_between(&mut data, 4, 5);
        assert_eq!(&*data.into_single(), [0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0]);
    }
}
