//! What a node is called: by a plain name where one describes it whole, else by `json:{…}` with its options.

use serde_json::{Map, Value, json};

use crate::options::{ImageName, flatten, json_filename};

/// What describes a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeName {
    /// A name that, given alone, opens the same: `disk.qcow2`, `blkdebug::disk.qcow2`.
    plain: Option<String>,
    /// The options that open the same: its driver, what decides about its content, and its children.
    options: Map<String, Value>,
    /// Whether a format above it may go by its name.
    protocol: bool,
}

impl NodeName {
    /// The name of a node of a driver, given the options that the user gave it, and the names of its children.
    ///
    /// `title` is the name of what no node is below of.
    #[must_use]
    pub fn of(
        driver: &str,
        title: &str,
        given: &Map<String, Value>,
        children: &[(&'static str, &NodeName)],
    ) -> Self {
        let mut options = Map::from_iter([("driver".to_owned(), json!(driver))]);
        let deciding = deciding(driver, given);
        let decides = !deciding.is_empty();
        let config = deciding.get("config").and_then(Value::as_str).unwrap_or_default().to_owned();
        let configured_alone = deciding.keys().all(|key| key == "config");
        options.extend(deciding);
        let child = |name: &str| children.iter().find(|(edge, _)| *edge == name).map(|(_, child)| *child);
        let plain = |name: &str| child(name).and_then(|child| child.plain.as_deref());
        // Null and, as of old, no name say that there is none.
        let other_backing = given.get("backing").is_some_and(|backing| !backing.is_null() && *backing != "");
        if children.is_empty() {
            let plain = match driver {
                "null-co" | "null-aio" => (!decides).then(|| format!("{driver}://")),
                _ => {
                    options.insert("filename".into(), title.into());
                    Some(title.to_owned())
                }
            };
            return Self { plain, options, protocol: true };
        }
        for (name, child) in children.iter().filter(|(name, _)| *name != "backing" || other_backing) {
            options.insert((*name).to_owned(), Value::Object(child.options.clone()));
        }
        let plain = match driver {
            "blkdebug" => {
                plain("image").filter(|_| configured_alone).map(|image| format!("blkdebug:{config}:{image}"))
            }
            "blkverify" => {
                plain("raw").zip(plain("test")).map(|(raw, test)| format!("blkverify:{raw}:{test}"))
            }
            "blklogwrites" | "compress" | "copy-on-read" | "preallocate" => None,
            _ => child("file")
                .filter(|file| file.protocol && !decides && !other_backing)
                .and_then(|file| file.plain.clone()),
        };
        Self { plain, options, protocol: matches!(driver, "blkdebug" | "blkverify") }
    }

    /// The name as it is shown.
    #[must_use]
    pub fn shown(&self) -> String {
        self.plain.clone().unwrap_or_else(|| json_filename(&self.options))
    }
}

/// The options that decide about what a node shows, flat; the others do not belong to its name.
fn deciding(driver: &str, given: &Map<String, Value>) -> Map<String, Value> {
    /// What every node takes, and children.
    const COMMON: &[&str] = &[
        "driver",
        "image",
        "node-name",
        "read-only",
        "auto-read-only",
        "force-share",
        "discard",
        "detect-zeroes",
        "cache",
    ];
    let decides = |key: &str| match driver {
        "raw" => matches!(key, "offset" | "size"),
        "null-co" | "null-aio" => matches!(key, "size" | "read-zeroes"),
        "blkdebug" => !COMMON.contains(&key.split('.').next().unwrap_or_default()),
        "blklogwrites" => key.starts_with("log-"),
        "luks" => key == "key-secret",
        "qcow2" | "qcow" => key == "encrypt.key-secret",
        _ => false,
    };
    let without_children = given.iter().filter(|(key, _)| *key != "image" && *key != "file");
    let flat = flatten(without_children.map(|(key, value)| (key.clone(), value.clone())).collect());
    flat.into_iter().filter(|(key, _)| decides(key)).collect()
}

/// The options that a name on the command line gives the node at the top; empty where it says nothing.
#[must_use]
pub fn given_options(name: &ImageName) -> Map<String, Value> {
    let mut options = name.options();
    if let Some(Value::String(text)) = options.get("filename")
        && !options.contains_key("file")
    {
        let file = of_protocol(text);
        options.insert("file".into(), Value::Object(file));
    }
    options
}

/// What `blkdebug:CONFIG:IMAGE` and `blkverify:RAW:IMAGE` say.
fn of_protocol(text: &str) -> Map<String, Value> {
    let node = |text: &str| Value::Object(of_protocol(text));
    let parts = text.split_once(':').and_then(|(protocol, rest)| Some((protocol, rest.split_once(':')?)));
    match parts {
        Some(("blkdebug", (config, image))) => {
            let mut options = Map::from_iter([("image".to_owned(), node(image))]);
            if !config.is_empty() {
                options.insert("config".into(), config.into());
            }
            options
        }
        Some(("blkverify", (raw, test))) => {
            Map::from_iter([("raw".to_owned(), node(raw)), ("test".to_owned(), node(test))])
        }
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_tells_and_what_takes_options() {
        let none = Map::new();
        let file = NodeName::of("file", "a", &none, &[]);
        let check = |driver: &str, given: Value, edge: &'static str, expected: &str| {
            let Value::Object(given) = given else { panic!("a map") };
            let name = NodeName::of(driver, "a", &given, &[(edge, &file)]);
            assert_eq!(name.shown(), expected);
        };
        check("qcow2", json!({"lazy-refcounts": "on"}), "file", "a");
        check("qcow2", json!({"backing": ""}), "file", "a");
        check("qcow2", json!({"backing": null}), "file", "a");
        check("blkdebug", json!({}), "image", "blkdebug::a");
        check("blkdebug", json!({"config": "c", "read-only": "on"}), "image", "blkdebug:c:a");
        check(
            "raw",
            json!({"offset": 512}),
            "file",
            r#"json:{"offset": 512, "driver": "raw", "file": {"driver": "file", "filename": "a"}}"#,
        );
        check(
            "compress",
            json!({}),
            "file",
            r#"json:{"driver": "compress", "file": {"driver": "file", "filename": "a"}}"#,
        );
        let raw = NodeName::of("raw", "a", &none, &[("file", &file)]);
        let above = NodeName::of("raw", "a", &none, &[("file", &raw)]);
        assert!(above.shown().starts_with("json:"), "a format below is no protocol");
    }

    #[test]
    fn prefixes_are_options_of_the_nodes_below() {
        let name = ImageName::File("blkdebug:c:blkverify:x:y".into());
        let given = given_options(&name);
        let below = json!({"config": "c", "image": {"raw": {}, "test": {}}});
        assert_eq!(given["file"], below);
    }
}
