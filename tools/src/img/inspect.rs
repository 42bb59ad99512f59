//! `info --inspect`: the names of other files that an image holds, none of which is opened.
//!
//! An image that somebody else made can name any file of the host, also within a `json:` description. Who takes images
//! from strangers looks at these names first.

use serde_json::{Map, Value, json};

use super::args::OutputFormat;
use crate::options::json::{parse, to_pages};

/// Descriptions within descriptions that are looked into.
const DEPTH_MAX: usize = 32;

/// What an image says of other files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The image.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// The names.
    pub names: Vec<OutsideName>,
}

/// A name that an image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideName {
    /// What it is to the image: `backing file`, `data file`.
    pub role: &'static str,
    /// The name, as the image holds it.
    pub name: String,
    /// The format that the image says it has.
    pub format: Option<String>,
    /// The path that would be opened; `None` when the name is no path.
    pub path: Option<String>,
    /// What a `json:` description names, by key.
    pub within: Vec<(String, String)>,
}

impl OutsideName {
    /// A name and what it names; `path` is for a name that is a path.
    #[must_use]
    pub fn new(role: &'static str, name: &str, format: Option<&str>, path: Option<String>) -> Self {
        let mut within = Vec::new();
        collect_json(name, "", 0, &mut within);
        Self { role, name: name.into(), format: format.map(str::to_owned), path, within }
    }
}

/// Adds the names in a `json:` description; one that cannot be read has none.
fn collect_json(name: &str, key: &str, depth: usize, names: &mut Vec<(String, String)>) {
    if let Some(json) = name.strip_prefix("json:")
        && let Ok(value) = parse(json)
    {
        collect(&value, key, depth, names);
    }
}

/// Every text of a description but the drivers' names may lead somewhere: a path, a host, a node.
fn collect(value: &Value, key: &str, depth: usize, names: &mut Vec<(String, String)>) {
    if depth > DEPTH_MAX {
        return;
    }
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::String(_) if key == "driver" || key.ends_with(".driver") => {}
        Value::String(text) => {
            names.push((key.to_owned(), text.clone()));
            collect_json(text, key, depth + 1, names);
        }
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| collect(value, &below(name), depth + 1, names));
        }
        Value::Array(list) => {
            let numbered = list.iter().enumerate();
            numbered.for_each(|(n, value)| collect(value, &below(&n.to_string()), depth + 1, names));
        }
        _ => {}
    }
}

impl Inspection {
    /// The names in the form asked for.
    #[must_use]
    pub fn render(&self, format: OutputFormat) -> String {
        match format {
            OutputFormat::Human => self.human(),
            OutputFormat::Json => to_pages(&self.value()) + "\n",
        }
    }

    fn human(&self) -> String {
        let mut text = format!("image: {}\nfile format: {}\n", shown(&self.filename), self.format);
        if self.names.is_empty() {
            text += "names no other file\n";
        }
        for name in &self.names {
            text += &format!("{}: {}\n", name.role, shown(&name.name));
            if let Some(format) = &name.format {
                text += &format!("    format: {}\n", shown(format));
            }
            if let Some(path) = &name.path {
                text += &format!("    path: {}\n", shown(path));
            }
            for (key, value) in &name.within {
                text += &format!("    {}: {}\n", shown(key), shown(value));
            }
        }
        text
    }

    fn value(&self) -> Value {
        let names = self.names.iter().map(|name| {
            let mut map = Map::new();
            map.insert("role".into(), json!(name.role));
            map.insert("name".into(), json!(name.name));
            if let Some(format) = &name.format {
                map.insert("format".into(), json!(format));
            }
            if let Some(path) = &name.path {
                map.insert("path".into(), json!(path));
            }
            if !name.within.is_empty() {
                let within = name.within.iter().map(|(key, value)| json!({ "key": key, "value": value }));
                map.insert("within".into(), within.collect());
            }
            Value::Object(map)
        });
        json!({ "filename": self.filename, "format": self.format, "names": names.collect::<Vec<_>>() })
    }
}

/// A name on a terminal, which must not be its master.
fn shown(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_looked_into() {
        let nested = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/etc/passwd"},"backing":"json:{\"file.filename\":\"/x\"}"}"#;
        let name = OutsideName::new("backing file", nested, None, None);
        let keys: Vec<_> = name.within.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert!(keys.contains(&("file.filename", "/etc/passwd")), "{keys:?}");
        assert!(keys.contains(&("backing.file.filename", "/x")), "{keys:?}");
        assert!(!keys.iter().any(|(key, _)| key.ends_with("driver")));
        let quoted = OutsideName::new("backing file", "json:{'file':{'filename':'/etc/passwd'}}", None, None);
        assert_eq!(quoted.within, [("file.filename".to_owned(), "/etc/passwd".to_owned())]);
    }

    #[test]
    fn names_do_not_speak_to_terminals() {
        let name = OutsideName::new("backing file", "a\u{1b}[2J", None, Some("a\nb".into()));
        let inspection = Inspection { filename: "i".into(), format: "qcow2".into(), names: vec![name] };
        let text = inspection.render(OutputFormat::Human);
        assert!(!text.contains('\u{1b}') && text.contains("path: a\\nb\n"), "{text}");
    }
}
