//! Dotted keys and nested maps: `file.driver=nbd,file.server.0.host=x` is
//! `{"file": {"driver": "nbd", "server": [{"host": "x"}]}}`.

use serde_json::{Map, Value};

/// Dotted keys that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NestError {
    /// A key has a value of its own and members as well.
    #[error("Cannot reference an existing block device with additional options or a new filename")]
    ValueAndMembers {
        /// The key, with the keys above it.
        key: String,
    },
    /// The numbers among a key's members are not 0, 1, 2, …, or there are names among them.
    #[error("Option {key} is not a valid array")]
    Array {
        /// The key, with the keys above it.
        key: String,
    },
}

/// Turns nested maps and lists into dotted keys.
///
/// Empty maps and lists stay as they are. What is nested wins over a dotted key of the same name.
#[must_use]
pub fn flatten(map: Map<String, Value>) -> Map<String, Value> {
    let (mut flat, mut nested) = (Map::new(), Map::new());
    for (key, value) in map {
        let target = if is_leaf(&value) { &mut flat } else { &mut nested };
        flatten_into(target, &mut key.clone(), value);
    }
    flat.extend(nested);
    flat
}

fn is_leaf(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

/// Adds what is at `path`, which may be empty: a key can be.
fn flatten_into(flat: &mut Map<String, Value>, path: &mut String, value: Value) {
    let outer = path.len();
    let mut below = |path: &mut String, key: &str, value| {
        path.push('.');
        path.push_str(key);
        flatten_into(flat, path, value);
        path.truncate(outer);
    };
    match value {
        Value::Object(members) if !members.is_empty() => {
            members.into_iter().for_each(|(key, value)| below(path, &key, value));
        }
        Value::Array(items) if !items.is_empty() => {
            items.into_iter().enumerate().for_each(|(at, value)| below(path, &at.to_string(), value));
        }
        leaf => {
            flat.insert(path.clone(), leaf);
        }
    }
}

/// Turns dotted keys into nested maps, and maps whose keys are numbers into lists.
///
/// # Errors
/// [`NestError`], when the keys do not fit together.
pub fn nest(flat: Map<String, Value>) -> Result<Map<String, Value>, NestError> {
    nest_below(flat, "")
}

fn nest_below(flat: Map<String, Value>, above: &str) -> Result<Map<String, Value>, NestError> {
    let path = |key: &str| if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") };
    let mut nested: Map<String, Value> = Map::new();
    let mut groups: Vec<(String, Map<String, Value>)> = Vec::new();
    for (key, value) in flat {
        match key.split_once('.') {
            None => {
                nested.insert(key, value);
            }
            Some((first, rest)) => {
                let group = groups.iter_mut().find(|(name, _)| name == first);
                let (_, members) = match group {
                    Some(found) => found,
                    None => groups.push_mut((first.to_owned(), Map::new())),
                };
                members.insert(rest.to_owned(), value);
            }
        }
    }
    for (key, members) in groups {
        let path = path(&key);
        if nested.contains_key(&key) {
            return Err(NestError::ValueAndMembers { key: path });
        }
        let members = nest_below(members, &path)?;
        nested.insert(key, list_or_map(members, path)?);
    }
    Ok(nested)
}

fn list_or_map(mut members: Map<String, Value>, key: String) -> Result<Value, NestError> {
    if !members.keys().any(|name| name.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty()) {
        return Ok(Value::Object(members));
    }
    let items = (0..members.len()).map(|at| members.get_mut(&at.to_string()).map(Value::take));
    items.collect::<Option<_>>().map(Value::Array).ok_or(NestError::Array { key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn keys_nest() {
        let flat =
            json!({"driver": "qcow2", "file.server.0.host": "x", "file.driver": "nbd", "file.server.1": 1});
        let nested = json!({"driver": "qcow2", "file": {"driver": "nbd", "server": [{"host": "x"}, 1]}});
        let Value::Object(nested) = nested else { unreachable!() };
        assert_eq!(nest(object(flat)), Ok(nested));
    }

    #[test]
    fn keys_that_do_not_fit_are_refused() {
        let conflict = nest(object(json!({"file.filename": "a", "file": "x"})));
        assert_eq!(conflict, Err(NestError::ValueAndMembers { key: "file".into() }));
        for flat in [json!({"a.l.0": 1, "a.l.2": 1}), json!({"a.l.0": 1, "a.l.x": 1}), json!({"a.l.1": 1})] {
            assert_eq!(nest(object(flat)), Err(NestError::Array { key: "a.l".into() }));
        }
    }

    #[test]
    fn what_is_nested_wins() {
        let flat =
            flatten(object(json!({"file": {"filename": "a"}, "file.filename": "b", "e": {}, "l": []})));
        assert_eq!(Value::Object(flat), json!({"file.filename": "a", "e": {}, "l": []}));
    }

    /// Found by the fuzz target `options`: the dot behind an empty key was lost.
    #[test]
    fn keys_may_be_empty() {
        let nested = object(json!({"": {"a": {"": 1}}}));
        assert_eq!(Value::Object(flatten(nested.clone())), json!({".a.": 1}));
        assert_eq!(nest(flatten(nested.clone())), Ok(nested));
    }

    proptest! {
        #[test]
        fn nesting_undoes_flattening(value in tree()) {
            let map = object(value);
            prop_assert_eq!(nest(flatten(map.clone())), Ok(map));
        }
    }

    /// Maps with names as keys, to be told from lists.
    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<i64>().prop_map(Value::from), "[a-z.,0-9]{0,4}".prop_map(Value::from)];
        let inner = leaf.prop_recursive(4, 32, 4, |value| {
            prop_oneof![
                prop::collection::vec(value.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,3}", value, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        });
        prop::collection::btree_map("[a-z]{1,3}", inner, 0..4).prop_map(|map| map.into_iter().collect())
    }

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value} is no map") };
        map
    }
}
