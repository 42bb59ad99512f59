//! The config file of a blkdebug node: sections `[inject-error]` and `[set-state]`, with lines `key = "value"`.

use super::rules::{Inject, IoType, Rules, SetState};
use crate::filter::{DebugEvent, FilterError};
use crate::intent::Errno;

/// Bytes of a config file at the most.
pub(super) const LEN_MAX: u64 = 1 << 20;

/// Bytes of a sector, in which rules count.
const SECTOR: u64 = 512;

/// The values of one rule, as they are written.
pub(crate) type Values = Vec<(String, String)>;

/// Which kind of rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    InjectError,
    SetState,
}

impl Section {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::InjectError => "inject-error",
            Self::SetState => "set-state",
        }
    }

    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::InjectError => &["event", "state", "iotype", "errno", "sector", "once", "immediately"],
            Self::SetState => &["event", "state", "new_state"],
        }
    }

    pub(crate) fn has(self, key: &str) -> bool {
        self.keys().contains(&key)
    }
}

/// Reads a config file.
pub(super) fn parse(text: &str) -> Result<Rules, FilterError> {
    let mut sections: Vec<(Section, Values)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let fault = |problem: String| FilterError::Config { line: index + 1, problem };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            // A section may have an id in quotes, which means nothing here.
            let name = head.strip_suffix(']').and_then(|head| head.split_whitespace().next());
            let known = [Section::InjectError, Section::SetState];
            let section = known.into_iter().find(|section| name == Some(section.name()));
            let section = section
                .ok_or_else(|| fault(format!("There is no option group '{}'", name.unwrap_or(head))))?;
            sections.push((section, Values::new()));
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| fault("neither section nor value".into()))?;
        let (key, value) = (key.trim(), value.trim());
        let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = quoted.ok_or_else(|| fault(format!("the value of '{key}' is not in quotes")))?;
        let Some((section, values)) = sections.last_mut() else {
            return Err(fault("no group defined".into()));
        };
        if !section.has(key) {
            return Err(fault(format!("Invalid parameter '{key}'")));
        }
        values.push((key.into(), value.into()));
    }
    let mut rules = Rules::default();
    sections.iter().try_for_each(|(section, values)| {
        add(&mut rules, *section, values).map_err(|problem| match problem {
            Problem::NoEvent => FilterError::NoEvent,
            Problem::Value(problem) => FilterError::Config { line: text.lines().count(), problem },
        })
    })?;
    Ok(rules)
}

/// What is wrong with the values of a rule.
pub(crate) enum Problem {
    NoEvent,
    Value(String),
}

/// Adds a rule.
pub(crate) fn add(rules: &mut Rules, section: Section, values: &Values) -> Result<(), Problem> {
    let value = |key: &str| values.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let wrong = |value: &str| Problem::Value(format!("invalid parameter value: {value}"));
    let number = |key: &str| match value(key) {
        None => Ok(None),
        Some(text) => text
            .parse::<i64>()
            .map(Some)
            .map_err(|_| Problem::Value(format!("Parameter '{key}' expects a number"))),
    };
    let switch = |key: &str| match value(key) {
        None | Some("off" | "no" | "false" | "n") => Ok(false),
        Some("on" | "yes" | "true" | "y") => Ok(true),
        Some(_) => Err(Problem::Value(format!("Parameter '{key}' expects 'on' or 'off'"))),
    };
    let event = value("event").ok_or(Problem::NoEvent)?;
    let event = DebugEvent::parse(event).ok_or_else(|| wrong(event))?;
    // A negative state is one that the node is never in.
    let state = number("state")?.unwrap_or(0) as u64;
    match section {
        Section::InjectError => {
            let io_type = match value("iotype") {
                None => None,
                Some(name) => Some(IoType::parse(name).ok_or_else(|| wrong(name))?),
            };
            let sector = number("sector")?.and_then(|sector| u64::try_from(sector).ok());
            rules.injects.push(Inject {
                event,
                state,
                io_type,
                errno: Errno(
                    number("errno")?.map_or(Errno::EIO.0, |errno| i32::try_from(errno).unwrap_or(0)),
                ),
                at: sector.map(|sector| sector.saturating_mul(SECTOR)),
                once: switch("once")?,
                immediately: switch("immediately")?,
            });
        }
        Section::SetState => {
            let new_state = number("new_state")?.unwrap_or(0) as u64;
            rules.states.push(SetState { event, state, new_state });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text).expect_err("refused").to_string()
    }

    #[test]
    fn sections_become_rules() {
        let text = "# two\n[inject-error]\nevent = \"l2_load\"\n state=\"3\"\nerrno = \"28\"\nonce = \"on\"\n\
                    sector = \"2\"\niotype = \"read\"\n\n[set-state \"x\"]\nevent = \"write_aio\"\nnew_state = \"2\"\n";
        let inject = Inject {
            event: DebugEvent::L2Load,
            state: 3,
            io_type: Some(IoType::Read),
            errno: Errno::ENOSPC,
            at: Some(1024),
            once: true,
            immediately: false,
        };
        let state = SetState { event: DebugEvent::WriteAio, state: 0, new_state: 2 };
        assert_eq!(parse(text).expect("legal"), Rules { injects: vec![inject], states: vec![state] });
        assert_eq!(parse("").expect("legal"), Rules::default());
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_line() {
        for (text, problem) in [
            ("[foo]", "line 1 of the blkdebug config file: There is no option group 'foo'"),
            ("\nevent = \"none\"", "line 2 of the blkdebug config file: no group defined"),
            ("[set-state]\nfoo = \"1\"", "line 2 of the blkdebug config file: Invalid parameter 'foo'"),
            ("[set-state]", "Missing event name for rule"),
            ("[inject-error", "line 1 of the blkdebug config file: There is no option group 'inject-error'"),
        ] {
            assert_eq!(refused(text), problem);
        }
        for line in ["event = none", "event = \"foo\"", "event", "once = \"maybe\"\nevent = \"none\""] {
            assert!(parse(&format!("[inject-error]\n{line}")).is_err(), "{line}");
        }
        let numbers = "[inject-error]\nevent = \"none\"\nstate = \"99999999999999999999\"";
        assert!(refused(numbers).contains("'state' expects a number"));
    }
}
