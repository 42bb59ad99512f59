//! The strict option list of `--object`: `type,id=x,a.b=c`, straight into a nested map.
//!
//! Unlike the lists of `-o`, every key is checked, dots make members, and numbers make list items. All values are
//! strings; what type they should have is for their reader to say.

use serde_json::{Map, Value};

use super::list::take_value;

/// A strict option list that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyvalError {
    /// A key is not made of names and indices joined by dots.
    #[error("Invalid parameter '{0}'")]
    InvalidKey(String),
    /// An entry has no `=`.
    #[error("Expected '=' after parameter '{0}'")]
    MissingValue(String),
    /// The same key is used as a value, as a map or as a list in different entries.
    #[error("Parameters '{0}.*' used inconsistently")]
    Inconsistent(String),
    /// A list has a gap.
    #[error("Parameter '{0}' missing")]
    MissingItem(String),
}

/// Parses a strict option list into a nested map.
///
/// The first entry may leave out the key `implied`. A later entry for the same key replaces the earlier one.
///
/// # Errors
/// [`KeyvalError`], in the words of the reference.
pub fn parse_keyval(text: &str, implied: &str) -> Result<Map<String, Value>, KeyvalError> {
    let mut root = Map::new();
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        let key_end = rest.find(['=', ',']).unwrap_or(rest.len());
        let has_value = rest[key_end..].starts_with('=');
        let key = if !has_value && first && key_end > 0 {
            implied
        } else if has_value || key_end == 0 {
            let key = &rest[..key_end];
            check_key(key)?;
            rest = &rest[key_end + 1..];
            key
        } else {
            check_key(&rest[..key_end])?;
            return Err(KeyvalError::MissingValue(rest[..key_end].to_owned()));
        };
        insert(&mut root, key, take_value(&mut rest))?;
        rest = rest.strip_prefix(',').unwrap_or(rest);
        first = false;
    }
    let mut path = String::new();
    listify_members(&mut root, &mut path)?;
    Ok(root)
}

/// A key is `name.name.0.name`; the first part is a name.
fn check_key(key: &str) -> Result<(), KeyvalError> {
    let legal = key.split('.').enumerate().all(|(at, part)| is_name(part) || (at > 0 && is_index(part)));
    if legal { Ok(()) } else { Err(KeyvalError::InvalidKey(key.to_owned())) }
}

fn is_index(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

/// A name of the schema: a letter, then letters, digits, `-`, `_`; possibly behind a vendor's `__domain_`.
fn is_name(part: &str) -> bool {
    let word = match part.strip_prefix("__") {
        Some(vendor) => match vendor.split_once('_') {
            Some((_, word)) => word,
            None => return false,
        },
        None => part,
    };
    word.len() < 128
        && word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn insert(root: &mut Map<String, Value>, key: &str, value: String) -> Result<(), KeyvalError> {
    let mut at = root;
    let mut seen = String::new();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        // List items are kept under their number without leading zeros, until the list is complete.
        let part = if is_index(part) { part.trim_start_matches('0') } else { part };
        let part = if part.is_empty() { "0" } else { part };
        seen.push_str(if seen.is_empty() { "" } else { "." });
        seen.push_str(part);
        if parts.peek().is_none() {
            return match at.insert(part.to_owned(), Value::String(value)) {
                Some(Value::Object(_)) => Err(KeyvalError::Inconsistent(seen)),
                _ => Ok(()),
            };
        }
        let next = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(members) = next else { return Err(KeyvalError::Inconsistent(seen)) };
        at = members;
    }
    Ok(())
}

/// Turns every map whose keys are all numbers into a list, from the leaves up.
fn listify_members(map: &mut Map<String, Value>, path: &mut String) -> Result<(), KeyvalError> {
    for (key, value) in map.iter_mut() {
        let Value::Object(members) = value else { continue };
        let outer = path.len();
        path.push_str(if outer == 0 { "" } else { "." });
        path.push_str(key);
        listify_members(members, path)?;
        if let Some(list) = as_list(members, path)? {
            *value = list;
        }
        path.truncate(outer);
    }
    Ok(())
}

fn as_list(members: &mut Map<String, Value>, path: &str) -> Result<Option<Value>, KeyvalError> {
    let numbers = members.keys().filter(|key| is_index(key)).count();
    if numbers == 0 {
        return Ok(None);
    }
    if numbers < members.len() {
        return Err(KeyvalError::Inconsistent(path.to_owned()));
    }
    let item = |at: usize| {
        members
            .get_mut(&at.to_string())
            .map(Value::take)
            .ok_or_else(|| KeyvalError::MissingItem(format!("{path}.{at}")))
    };
    (0..numbers).map(item).collect::<Result<_, _>>().map(|items| Some(Value::Array(items)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dots_make_members_and_numbers_make_items() {
        let parsed = parse_keyval("secret,id=s,a.b=1,a.c=2,l.0=x,l.01.y=z,v=1,,2", "qom-type").unwrap();
        let expected = json!({
            "qom-type": "secret", "id": "s", "a": {"b": "1", "c": "2"}, "l": ["x", {"y": "z"}], "v": "1,2",
        });
        assert_eq!(Value::Object(parsed), expected);
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        assert_eq!(parse_keyval("a=1,a=2,", "t").unwrap()["a"], "2");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, message) in [
            ("x,a.b=1,a=2", "Parameters 'a.*' used inconsistently"),
            ("x,a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
            ("x,a.0=x,a.b=y", "Parameters 'a.*' used inconsistently"),
            ("x,1=2", "Invalid parameter '1'"),
            ("x,a..b=2", "Invalid parameter 'a..b'"),
            ("x,.a=1", "Invalid parameter '.a'"),
            ("x,=x", "Invalid parameter ''"),
            (",", "Invalid parameter ''"),
            ("=", "Invalid parameter ''"),
            ("x,a.=x", "Invalid parameter 'a.'"),
            ("x,a.1b=1", "Invalid parameter 'a.1b'"),
            ("x,a b=1", "Invalid parameter 'a b'"),
            ("x,0.a=1", "Invalid parameter '0.a'"),
            ("x,a.0=x,a.2=y", "Parameter 'a.1' missing"),
            ("x,a.1=x", "Parameter 'a.0' missing"),
            ("x,foo", "Expected '=' after parameter 'foo'"),
        ] {
            assert_eq!(parse_keyval(text, "t").unwrap_err().to_string(), message, "{text}");
        }
    }
}
