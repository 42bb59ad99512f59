//! Flags of a command, as C's `getopt` reads them: one letter each, in clusters, anywhere before `--`.

/// A flag that a command does not have, or that lacks its value: what `getopt` itself says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad(pub(super) String);

/// Flags in their order, each with its value where it has one, up to the first bad one; and the words that are no flags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) flags: Vec<(char, String)>,
    pub(super) bad: Option<Bad>,
    pub(super) operands: Vec<String>,
    /// What comes first once flags stand before all else.
    pub(super) first: Option<String>,
}

/// Reads `words`, of which the first is the command's name. `known` lists the letters; a colon follows those with values.
pub(super) fn read(known: &str, words: &[String]) -> Flags {
    let flag = words.iter().skip(1).find(|word| word.len() > 1 && word.starts_with('-'));
    let first = flag.or(words.get(1)).cloned();
    let mut found = Flags { flags: Vec::new(), bad: None, operands: Vec::new(), first };
    let name = words.first().map_or("", String::as_str);
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        if word == "--" {
            found.operands.extend(rest.cloned());
            break;
        }
        let Some(cluster) = word.strip_prefix('-').filter(|cluster| !cluster.is_empty()) else {
            found.operands.push(word.clone());
            continue;
        };
        for (at, letter) in cluster.char_indices() {
            let place = known.find(letter).filter(|_| letter != ':');
            let Some(place) = place else {
                found.bad = Some(Bad(format!("{name}: invalid option -- '{letter}'")));
                return found;
            };
            if !known[place + letter.len_utf8()..].starts_with(':') {
                found.flags.push((letter, String::new()));
                continue;
            }
            let attached = &cluster[at + letter.len_utf8()..];
            let value = if attached.is_empty() { rest.next().cloned() } else { Some(attached.to_owned()) };
            match value {
                Some(value) => found.flags.push((letter, value)),
                None => {
                    found.bad = Some(Bad(format!("{name}: option requires an argument -- '{letter}'")));
                    return found;
                }
            }
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Flags {
        read("bP:qs:", &line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_stand_anywhere_and_in_clusters() {
        for line in ["read -qP 3 0 512", "read 0 512 -q -P3", "read -q 0 -P 3 512", "read -qP3 -- 0 512"] {
            let flags = of(line);
            assert_eq!(flags.flags, [('q', String::new()), ('P', "3".into())], "{line}");
            assert_eq!((flags.bad, flags.operands.join(" ")), (None, "0 512".into()), "{line}");
        }
        assert_eq!(of("read -- -q").operands, ["-q"]);
    }

    #[test]
    fn what_is_unknown_or_lacks_its_value_ends_the_reading() {
        for (line, bad) in [
            ("read -Z 0", "read: invalid option -- 'Z'"),
            ("read -1", "read: invalid option -- '1'"),
            ("read --foo", "read: invalid option -- '-'"),
            ("read -q:", "read: invalid option -- ':'"),
            ("read 0 -P", "read: option requires an argument -- 'P'"),
        ] {
            assert_eq!(of(line).bad, Some(Bad(bad.into())), "{line}");
        }
    }
}
