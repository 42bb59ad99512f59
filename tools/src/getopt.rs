//! Options in the manner of C's `getopt_long`, which scripts rely on in more ways than one would think: options after
//! file names, `-qf raw`, `-fraw`, `--output=json`, and long names cut short while they stay unique.
//!
//! One table of [`OptionSpec`] serves parsing and help.

use crate::message::Failure;

/// An option of a command.
#[derive(Debug)]
pub struct OptionSpec {
    /// Its long names without dashes; the first is how the parser calls it. Empty when it has none.
    pub long: &'static [&'static str],
    /// Its one-letter names.
    pub short: &'static str,
    /// What its argument is called in help; `None` when it takes no argument.
    pub value: Option<&'static str>,
    /// What it does, for help.
    pub help: &'static str,
}

/// A line of a table.
pub(crate) const fn option(
    long: &'static [&'static str],
    short: &'static str,
    value: Option<&'static str>,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { long, short, value, help }
}

/// Options that the reference does not have. They are never cut short, so that what it takes for another option stays
/// that option.
const WHOLE: &[&str] = &["executor", "image-names", "completions", "man", "inspect"];

/// What came of one step of parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An option, by its first long name, with its argument.
    Option(&'static str, String),
    /// An option that the table does not have, that is ambiguous, or that got an argument it does not take.
    ///
    /// The text is the element of the command line that was finished last, which in the middle of a cluster of short
    /// options is the one before it; the reference reports it so.
    Unrecognized(String),
    /// An option without the argument that it needs.
    MissingArgument(String),
}

impl Parsed {
    /// An option that the table has, with its argument.
    pub(crate) fn recognized(self) -> Result<(&'static str, String), Failure> {
        match self {
            Self::Option(name, value) => Ok((name, value)),
            Self::Unrecognized(element) => Err(Failure::usage(format!("unrecognized option '{element}'"))),
            Self::MissingArgument(element) => {
                Err(Failure::usage(format!("missing argument for option '{element}'")))
            }
        }
    }
}

/// Whether options may follow file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// They may.
    Permute,
    /// The first element that is no option ends them.
    OptionsFirst,
}

/// Walks a command line.
#[derive(Debug)]
pub struct Getopt<'a> {
    specs: &'a [OptionSpec],
    order: Order,
    /// The command line, element 0 being the command's name. File names are moved behind options as they are passed.
    elements: Vec<String>,
    /// The next element to look at.
    next: usize,
    /// The file names passed so far lie in `skipped..skipped_end`.
    skipped: usize,
    skipped_end: usize,
    /// The rest of a cluster of short options, as an offset into the element `next`.
    cluster: Option<usize>,
    complaint: String,
    /// Whether an element that begins as a negative number is an operand, where one came before it.
    takes_numbers: bool,
}

impl<'a> Getopt<'a> {
    /// Starts at the first element after the command's name.
    #[must_use]
    pub fn new(specs: &'a [OptionSpec], order: Order, elements: Vec<String>) -> Self {
        Self {
            specs,
            order,
            elements,
            next: 1,
            skipped: 1,
            skipped_end: 1,
            cluster: None,
            complaint: String::new(),
            takes_numbers: false,
        }
    }

    /// Takes what begins as a negative number for an operand, where one came before it.
    pub fn take_numbers(&mut self) {
        self.takes_numbers = true;
    }

    /// What C's library says of the option that was refused last.
    #[must_use]
    pub fn complaint(&self) -> &str {
        &self.complaint
    }

    /// The next option; `None` after the last.
    pub fn next_option(&mut self) -> Option<Parsed> {
        if let Some(at) = self.cluster {
            return Some(self.short(at));
        }
        self.move_skipped();
        if self.order == Order::Permute {
            while self.elements.get(self.next).is_some_and(|element| !self.is_option(element)) {
                self.next += 1;
            }
            self.skipped_end = self.next;
        }
        let element = self.elements.get(self.next)?;
        if element == "--" {
            self.next += 1;
            self.move_skipped();
            // All that follows are file names.
            self.skipped_end = self.elements.len();
            self.next = self.elements.len();
            return None;
        }
        if !self.is_option(element) {
            return None;
        }
        if element.starts_with("--") {
            return Some(self.long());
        }
        Some(self.short(1))
    }

    /// Takes what is left when there are no more options: the file names, in their order.
    #[must_use]
    pub fn take_operands(&mut self) -> Vec<String> {
        let start = if self.skipped == self.skipped_end { self.next } else { self.skipped };
        self.elements.split_off(start.min(self.elements.len()))
    }

    /// Moves the options seen since the last file name in front of the file names.
    fn move_skipped(&mut self) {
        if self.skipped != self.skipped_end {
            let behind = self.next - self.skipped_end;
            self.elements[self.skipped..self.next].rotate_right(behind);
            self.skipped += behind;
        } else {
            self.skipped = self.next;
        }
        self.skipped_end = self.next;
    }

    /// Whether the element that is looked at now is an option.
    fn is_option(&self, element: &str) -> bool {
        let is_number = element.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        let operand = self.takes_numbers && is_number && self.skipped < self.next;
        element.len() > 1 && element.starts_with('-') && !operand
    }

    fn finished(&self) -> String {
        self.elements.get(self.next - 1).cloned().unwrap_or_default()
    }

    fn short(&mut self, at: usize) -> Parsed {
        let element = self.elements[self.next].clone();
        let letter = element[at..].chars().next().expect("a cluster is left at a letter");
        let rest = at + letter.len_utf8();
        self.cluster = (rest < element.len()).then_some(rest);
        if self.cluster.is_none() {
            self.next += 1;
        }
        let Some(spec) = self.specs.iter().find(|spec| spec.short.contains(letter)) else {
            self.complaint = format!("invalid option -- '{letter}'");
            return Parsed::Unrecognized(self.finished());
        };
        if spec.value.is_none() {
            return Parsed::Option(spec.long[0], String::new());
        }
        if self.cluster.take().is_some() {
            self.next += 1;
            return Parsed::Option(spec.long[0], element[rest..].to_owned());
        }
        self.argument(spec, || format!("option requires an argument -- '{letter}'"))
    }

    fn long(&mut self) -> Parsed {
        let element = self.elements[self.next].clone();
        self.next += 1;
        let (name, value) = match element[2..].split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (&element[2..], None),
        };
        let found = match self.find_long(name).as_slice() {
            [] => {
                self.complaint = format!("unrecognized option '{element}'");
                None
            }
            [one] => Some(*one),
            several => {
                let names: String = several.iter().map(|(long, _)| format!(" '--{long}'")).collect();
                self.complaint = format!("option '{element}' is ambiguous; possibilities:{names}");
                None
            }
        };
        match (found, value) {
            (None, _) => Parsed::Unrecognized(self.finished()),
            (Some((long, spec)), Some(_)) if spec.value.is_none() => {
                self.complaint = format!("option '--{long}' doesn't allow an argument");
                Parsed::Unrecognized(self.finished())
            }
            (Some((_, spec)), Some(value)) => Parsed::Option(spec.long[0], value.to_owned()),
            (Some((_, spec)), None) if spec.value.is_none() => Parsed::Option(spec.long[0], String::new()),
            (Some((long, spec)), None) => {
                self.argument(spec, || format!("option '--{long}' requires an argument"))
            }
        }
    }

    /// The options of an exact name, or that have one which begins so: what is meant, where it is one.
    fn find_long(&self, name: &str) -> Vec<(&'a str, &'a OptionSpec)> {
        let named = |fits: &dyn Fn(&str) -> bool| {
            let one = |spec: &'a OptionSpec| Some((*spec.long.iter().find(|long| fits(long))?, spec));
            self.specs.iter().filter_map(one).collect::<Vec<_>>()
        };
        let exact = named(&|long| long == name);
        if !exact.is_empty() {
            return exact;
        }
        let mut found = named(&|long| long.starts_with(name));
        found.retain(|(_, spec)| !WHOLE.contains(&spec.long[0]));
        found
    }

    /// The next element, whatever it looks like.
    fn argument(&mut self, spec: &OptionSpec, complaint: impl Fn() -> String) -> Parsed {
        match self.elements.get(self.next) {
            Some(value) => {
                self.next += 1;
                Parsed::Option(spec.long[0], value.clone())
            }
            None => {
                self.complaint = complaint();
                Parsed::MissingArgument(self.finished())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec { long: &["quiet"], short: "q", value: None, help: "" },
        OptionSpec { long: &["format", "source-format"], short: "f", value: Some("FMT"), help: "" },
        OptionSpec { long: &["output"], short: "", value: Some("OFMT"), help: "" },
        OptionSpec { long: &["object"], short: "", value: Some("DEF"), help: "" },
    ];

    #[test]
    fn options_and_file_names_mix() {
        let expected = (vec![option("quiet", ""), option("format", "raw")], vec!["a", "b"]);
        for line in [
            "-q -f raw a b",
            "a -q b -fraw",
            "a b -qf raw",
            "-q --format=raw -- a b",
            "a -qfraw -- b",
            "--qui --source raw a b",
            "a --quiet --f raw b",
        ] {
            let (parsed, names) = run(line, Order::Permute);
            assert_eq!((parsed, names.iter().map(String::as_str).collect()), expected, "{line}");
        }
    }

    #[test]
    fn a_negative_number_may_be_an_operand() {
        for line in ["a -1M -q", "-q a -1M", "a -q -1M", "-q -- a -1M", "a -q -- -1M"] {
            let mut getopt = Getopt::new(SPECS, Order::Permute, words(&format!("cmd {line}")));
            getopt.take_numbers();
            let parsed: Vec<_> = std::iter::from_fn(|| getopt.next_option()).collect();
            assert_eq!(
                (parsed, getopt.take_operands()),
                (vec![option("quiet", "")], words("a -1M")),
                "{line}"
            );
        }
        // The first operand is no number, and neither is an option's argument.
        let (parsed, _) = run("-1M a", Order::Permute);
        assert_eq!(parsed[0], Parsed::Unrecognized("cmd".into()));
        assert_eq!(run("a -f -1M", Order::Permute), (vec![option("format", "-1M")], words("a")));
    }

    #[test]
    fn options_may_have_to_come_first() {
        let (parsed, names) = run("-q info -f raw", Order::OptionsFirst);
        assert_eq!((parsed.len(), names.join(" ")), (1, "info -f raw".into()));
        assert_eq!(run("-- -q", Order::OptionsFirst).1, ["-q"]);
    }

    #[test]
    fn two_dashes_end_options_and_one_is_a_name() {
        assert_eq!(run("- -q -- -f a", Order::Permute), (vec![option("quiet", "")], words("- -f a")));
    }

    #[test]
    fn what_is_wrong_is_the_element_finished_last() {
        for (line, bad) in [
            ("-Z", Parsed::Unrecognized("-Z".into())),
            ("a -qZ", Parsed::Unrecognized("-qZ".into())),
            ("-q -Zq", Parsed::Unrecognized("-q".into())),
            ("a -Zq", Parsed::Unrecognized("a".into())),
            ("--foo=1", Parsed::Unrecognized("--foo=1".into())),
            ("--o x", Parsed::Unrecognized("--o".into())),
            ("--quiet=1", Parsed::Unrecognized("--quiet=1".into())),
            ("a -qf", Parsed::MissingArgument("-qf".into())),
            ("--outp", Parsed::MissingArgument("--outp".into())),
        ] {
            let (parsed, _) = run(line, Order::Permute);
            assert_eq!(parsed.iter().find(|p| !matches!(p, Parsed::Option(..))), Some(&bad), "{line}");
        }
    }

    proptest! {
        #[test]
        fn names_keep_their_order_and_nothing_is_lost(line in "((-q|-f x|--output=y|--|a|b|-qf z|--obj w) ){0,12}") {
            let (parsed, names) = run(&line, Order::Permute);
            prop_assert!(parsed.iter().all(|p| matches!(p, Parsed::Option(..))));
            let before = line.split(" -- ").next().unwrap_or_default();
            let options = before.matches("-q").count() + before.matches("f x").count() + before.matches('=').count()
                + before.matches("obj").count() + before.matches("f z").count();
            if !line.starts_with("-- ") {
                prop_assert_eq!(parsed.len(), options);
            }
            let tail = line.split_once("-- ").map_or("", |(_, tail)| tail);
            prop_assert!(names.join(" ").ends_with(tail.trim()));
        }
    }

    fn run(line: &str, order: Order) -> (Vec<Parsed>, Vec<String>) {
        let mut getopt = Getopt::new(SPECS, order, words(&format!("cmd {line}")));
        let parsed = std::iter::from_fn(|| getopt.next_option()).collect();
        (parsed, getopt.take_operands())
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn option(name: &'static str, value: &str) -> Parsed {
        Parsed::Option(name, value.into())
    }
}
