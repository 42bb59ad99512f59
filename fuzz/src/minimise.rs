//! Makes an input that fails smaller, as long as it goes on failing in the same way.

use std::time::{Duration, Instant};

use crate::Target;

/// Time that making an input smaller may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Returns a smaller input that fails in the same way, as far as its report says; the same one, when there is none.
pub fn minimise(target: &Target, input: &[u8]) -> Vec<u8> {
    let mut best = input.to_vec();
    let Err(report) = target.check(input) else { return best };
    let kind = kind_of(&report);
    let begun = Instant::now();
    let fails = |input: &[u8]| target.check(input).is_err_and(|report| kind_of(&report) == kind);
    let mut piece = best.len().next_power_of_two() / 2;
    while piece > 0 && begun.elapsed() < TIME_MAX {
        let mut at = 0;
        while at < best.len() && begun.elapsed() < TIME_MAX {
            let end = (at + piece).min(best.len());
            let shorter = [&best[..at], &best[end..]].concat();
            let mut zeroed = best.clone();
            zeroed[at..end].fill(0);
            if fails(&shorter) {
                best = shorter;
            } else if zeroed != best && fails(&zeroed) {
                best = zeroed;
                at = end;
            } else {
                at = end;
            }
        }
        piece /= 2;
    }
    best
}

/// The first line of a report without its numbers: what is wrong rather than where.
fn kind_of(report: &str) -> String {
    report.lines().next().unwrap_or_default().chars().filter(|c| !c.is_ascii_hexdigit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PARSER;

    #[test]
    fn an_input_shrinks_to_what_makes_it_fail() {
        fn run(data: &[u8]) {
            assert!(!data.contains(&7), "seven at {:?}", data.iter().position(|byte| *byte == 7));
            assert!(data.first() != Some(&9), "nine first");
        }
        let target = Target { name: "sevens", run, ..PARSER };
        assert_eq!(minimise(&target, &[1, 2, 3, 4, 7, 5, 6]), [7]);
        assert_eq!(minimise(&target, &[9, 2, 3, 4]), [9], "another failure is another");
        assert_eq!(minimise(&target, &[1, 2, 3]), [1, 2, 3], "what does not fail stays");
    }
}
