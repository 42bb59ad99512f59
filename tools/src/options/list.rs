//! Comma-separated option lists: `a=b,c=d`, with `,,` for a comma inside a value.
//!
//! Such a list never fails to parse; what can be wrong with it (an unknown key, a value that is no number) depends on
//! who asked for it. A key without a value is a switch: `lazy_refcounts` means on, `nolazy_refcounts` off.

/// One entry of an option list, in the order of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key; for a switch written `noKEY`, without the `no`.
    pub key: String,
    /// The value, with doubled commas made single.
    pub value: String,
    /// Whether the value was left out, so that the key acts as a switch (a deprecated spelling in some places).
    pub switch: bool,
}

impl Pair {
    /// The warning that the reference gives for a switch in a list where they are deprecated; two lines, the first to
    /// be prefixed with `NAME: warning: `.
    #[must_use]
    pub fn switch_warning(&self) -> Option<String> {
        let prefix = if self.value == "off" { "no" } else { "" };
        let Self { key, value, .. } = self;
        self.switch.then(|| {
            format!("short-form boolean option '{prefix}{key}' deprecated\nPlease use {key}={value} instead")
        })
    }
}

/// The warnings that lists of options without an implied key deserve.
#[must_use]
pub fn switch_warnings(lists: &[String]) -> Vec<String> {
    lists.iter().flat_map(|list| parse_list(list, None)).filter_map(|pair| pair.switch_warning()).collect()
}

/// Splits an option list.
///
/// When the first entry has no `=`, it is the value of `implied` (if there is such a key), so that `a.img,x=y` can mean
/// `file=a.img,x=y`.
#[must_use]
pub fn parse_list(text: &str, implied: Option<&str>) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut rest = text;
    let mut implied = implied;
    while !rest.is_empty() {
        let key_end = rest.find(['=', ',']).unwrap_or(rest.len());
        let pair = if rest[key_end..].starts_with('=') {
            let key = rest[..key_end].to_owned();
            rest = &rest[key_end + 1..];
            Pair { key, value: take_value(&mut rest), switch: false }
        } else if let Some(key) = implied {
            Pair { key: key.to_owned(), value: take_value(&mut rest), switch: false }
        } else {
            let word = &rest[..key_end];
            rest = &rest[key_end..];
            switch(word)
        };
        pairs.push(pair);
        rest = rest.strip_prefix(',').unwrap_or(rest);
        implied = None;
    }
    pairs
}

/// Tells whether `text` can be joined with another list by a comma: it is not empty, and neither starts with a comma
/// nor ends with a single one.
#[must_use]
pub fn is_valid_list(text: &str) -> bool {
    let trailing = text.bytes().rev().take_while(|b| *b == b',').count();
    !text.is_empty() && !text.starts_with(',') && trailing % 2 == 0
}

/// Tells whether an entry of the list is `help` or `?`, which asks for the list of options.
#[must_use]
pub fn asks_for_help(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let entry_end = entry_len(rest);
        if matches!(&rest[..entry_end], "help" | "?") {
            return true;
        }
        rest = &rest[entry_end..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    false
}

/// An identifier that does not follow the rules; [`is_well_formed_id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Parameter '{0}' expects an identifier\n\
     Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
)]
pub struct IdError(pub &'static str);

/// Tells whether `id` can name an object or a node: a letter, then letters, digits, `-`, `.`, `_`.
#[must_use]
pub fn is_well_formed_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// The length of the first entry: up to a comma that is not doubled.
fn entry_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b',' {
            if bytes.get(at + 1) != Some(&b',') {
                break;
            }
            at += 1;
        }
        at += 1;
    }
    at
}

/// Takes the value at the start of `rest`, and leaves `rest` at the comma after it.
pub(super) fn take_value(rest: &mut &str) -> String {
    let (value, after) = rest.split_at(entry_len(rest));
    *rest = after;
    value.replace(",,", ",")
}

fn switch(word: &str) -> Pair {
    match word.strip_prefix("no") {
        Some(key) => Pair { key: key.to_owned(), value: "off".into(), switch: true },
        None => Pair { key: word.to_owned(), value: "on".into(), switch: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_split_at_single_commas() {
        check("a=b,c=d", &[("a", "b"), ("c", "d")]);
        check("a=b,,c,d=e", &[("a", "b,c"), ("d", "e")]);
        check("a=b,,", &[("a", "b,")]);
        check("a=b=c", &[("a", "b=c")]);
        check("a=", &[("a", "")]);
        check("a=b,", &[("a", "b")]);
        check("=x", &[("", "x")]);
        check("", &[]);
    }

    #[test]
    fn a_key_alone_is_a_switch() {
        check("lazy", &[("lazy", "on")]);
        check("nolazy,a=1", &[("lazy", "off"), ("a", "1")]);
        // A doubled comma is no escape in a key.
        check("a,,b", &[("a", "on"), ("", "on"), ("b", "on")]);
        assert!(parse_list("x", None)[0].switch);
    }

    #[test]
    fn the_first_entry_may_belong_to_an_implied_key() {
        let pairs = parse_list("a,,b,c", Some("file"));
        assert_eq!(pairs[0], Pair { key: "file".into(), value: "a,b".into(), switch: false });
        assert_eq!(pairs[1].key, "c");
        assert_eq!(parse_list("x=1", Some("file"))[0].key, "x");
    }

    #[test]
    fn lists_that_cannot_be_joined_are_refused() {
        for bad in ["", ",", ",a=1", "a=1,", "a=1,,,"] {
            assert!(!is_valid_list(bad), "{bad}");
        }
        for good in ["a", "a=1", "a=1,,", "a=1,b=2"] {
            assert!(is_valid_list(good), "{good}");
        }
    }

    #[test]
    fn help_is_an_entry_of_its_own() {
        for yes in ["help", "?", "a=1,help", "help,a=1", "a,?", ",help"] {
            assert!(asks_for_help(yes), "{yes}");
        }
        for no in ["", "helpme", "a=help", "a=1,,help", "a?"] {
            assert!(!asks_for_help(no), "{no}");
        }
    }

    fn check(text: &str, expected: &[(&str, &str)]) {
        let pairs = parse_list(text, None);
        let found: Vec<_> = pairs.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }
}
