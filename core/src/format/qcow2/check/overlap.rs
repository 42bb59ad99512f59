//! Ranges of a file that may overlap, each named some number of times, as ranges that do not.

/// Bytes of the file, and how many times they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) times: u64,
}

/// The same bytes, each in one range, with how often it is named in all; in the order of the file.
pub(super) fn disjoint(ranges: impl IntoIterator<Item = Named>) -> Vec<Named> {
    let mut edges = Vec::new();
    for Named { start, end, times } in ranges {
        if start < end {
            edges.push((start, i128::from(times)));
            edges.push((end, -i128::from(times)));
        }
    }
    edges.sort_unstable();
    let mut all: Vec<Named> = Vec::new();
    let (mut start, mut times) = (0, 0);
    for (at, change) in edges {
        if times > 0 && at > start {
            match all.last_mut() {
                Some(last) if last.end == start && i128::from(last.times) == times => last.end = at,
                _ => all.push(Named { start, end: at, times: times as u64 }),
            }
        }
        (start, times) = (at, times + change);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_keeps_its_count() {
        let named = |start, end, times| Named { start, end, times };
        let all = [named(0, 10, 1), named(5, 20, 2), named(5, 7, 1), named(30, 31, 9), named(20, 25, 2)];
        let split = disjoint(all);
        for byte in 0..40 {
            let count = |ranges: &[Named]| {
                ranges.iter().filter(|r| (r.start..r.end).contains(&byte)).map(|r| r.times).sum::<u64>()
            };
            assert_eq!(count(&all), count(&split), "byte {byte}");
        }
        assert!(split.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert_eq!(split.len(), 5);
    }
}
