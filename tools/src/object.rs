//! `--object`: secrets, TLS credentials, throttle groups and lists of who may connect, which options refer to by id.
//!
//! This reads a definition and checks it against the properties that its type has, and then against what it refers to.
//! [`secret`] has what secrets hold, `tls` what connections are encrypted with, and `authorization` who may connect.

use serde_json::{Map, Value};

use crate::options::{IdError, is_well_formed_id, json, parse_keyval};
use crate::size::parse_number;

pub use authorization::{Authorization, find_authorization};
pub use secret::{Secret, find_passphrase, find_secret};
pub use tls::{find_tls, give_objects, tls_credentials};

mod authorization;
pub mod secret;
mod tls;

/// A user-defined object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectDef {
    /// Its type, one of those that `--object help` lists.
    pub qom_type: String,
    /// The name by which options refer to it.
    pub id: String,
    /// Its properties, each of the kind that the type asks for.
    pub properties: Map<String, Value>,
    /// What a secret holds, once [`add_object`] has read it.
    pub secret: Option<Secret>,
}

/// What an `--object` argument asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectArg {
    /// An object.
    Define(ObjectDef),
    /// The list of types or of a type's properties, to be printed.
    Help(String),
}

/// What a property may hold.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Bool,
    Integer,
    OneOf(&'static str, &'static [&'static str]),
    Limits,
    Rules,
}

/// A type of object: its name and its properties in alphabetical order.
struct Type {
    name: &'static str,
    properties: &'static [(&'static str, Kind)],
}

const ENDPOINT: Kind = Kind::OneOf("QCryptoTLSCredsEndpoint", &["client", "server"]);

const POLICY: Kind = Kind::OneOf("QAuthZListPolicy", &["deny", "allow"]);

/// What a rule of a list has; the last may be left out.
const RULE: [(&str, Kind); 3] = [
    ("match", Kind::Text),
    ("policy", POLICY),
    ("format", Kind::OneOf("QAuthZListFormat", &["exact", "glob"])),
];

const TYPES: &[Type] = &[
    Type { name: "authz-list", properties: &[("policy", POLICY), ("rules", Kind::Rules)] },
    Type { name: "authz-simple", properties: &[("identity", Kind::Text)] },
    Type {
        name: "secret",
        properties: &[
            ("data", Kind::Text),
            ("file", Kind::Text),
            ("format", Kind::OneOf("QCryptoSecretFormat", &["raw", "base64"])),
            ("iv", Kind::Text),
            ("keyid", Kind::Text),
        ],
    },
    Type { name: "throttle-group", properties: &[("limits", Kind::Limits)] },
    Type {
        name: "tls-creds-anon",
        properties: &[
            ("dir", Kind::Text),
            ("endpoint", ENDPOINT),
            ("priority", Kind::Text),
            ("verify-peer", Kind::Bool),
        ],
    },
    Type {
        name: "tls-creds-psk",
        properties: &[
            ("dir", Kind::Text),
            ("endpoint", ENDPOINT),
            ("priority", Kind::Text),
            ("username", Kind::Text),
            ("verify-peer", Kind::Bool),
        ],
    },
    Type {
        name: "tls-creds-x509",
        properties: &[
            ("dir", Kind::Text),
            ("endpoint", ENDPOINT),
            ("passwordid", Kind::Text),
            ("priority", Kind::Text),
            ("sanity-check", Kind::Bool),
            ("verify-peer", Kind::Bool),
        ],
    },
];

/// Types that the reference knows, and its tools for images do not make.
const UNMADE: &[&str] = &[
    "can-bus",
    "colo-compare",
    "cryptodev-backend",
    "dbus-vmstate",
    "filter-buffer",
    "filter-dump",
    "filter-mirror",
    "filter-redirector",
    "filter-replay",
    "filter-rewriter",
    "input-barrier",
    "input-linux",
    "iothread",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "rng-builtin",
    "rng-egd",
    "rng-random",
];

/// The limits of a throttle group; each also exists with the prefix `x-` at the object itself.
const LIMITS: &[&str] = &[
    "bps-read",
    "bps-read-max",
    "bps-read-max-length",
    "bps-total",
    "bps-total-max",
    "bps-total-max-length",
    "bps-write",
    "bps-write-max",
    "bps-write-max-length",
    "iops-read",
    "iops-read-max",
    "iops-read-max-length",
    "iops-size",
    "iops-total",
    "iops-total-max",
    "iops-total-max-length",
    "iops-write",
    "iops-write-max",
    "iops-write-max-length",
];

/// The spelling of values: an option list has texts only, JSON has types.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    List,
    Json,
}

/// Reads an `--object` argument: `type,id=ID,key=value,…`, a JSON map, or a request for help.
///
/// # Errors
/// A message in the words of the reference.
pub fn parse_object(text: &str) -> Result<ObjectArg, String> {
    let (spelling, mut members) = if text.starts_with('{') {
        let Value::Object(map) = json::parse(text).map_err(|error| error.to_string())? else {
            unreachable!("a value that starts with a brace is a map")
        };
        (Spelling::Json, map)
    } else {
        if let Some(help) = help_text(text) {
            return Ok(ObjectArg::Help(help));
        }
        (Spelling::List, parse_keyval(text, "qom-type").map_err(|error| error.to_string())?)
    };
    let qom_type = take_text(&mut members, "qom-type")?;
    let Some(known) = TYPES.iter().find(|known| known.name == qom_type) else {
        if UNMADE.contains(&qom_type.as_str()) {
            return Err(format!("invalid object type: {qom_type}"));
        }
        return Err(format!("Parameter 'qom-type' does not accept value '{qom_type}'"));
    };
    let id = take_text(&mut members, "id")?;
    let properties = convert(known, members, spelling)?;
    if !is_well_formed_id(&id) {
        return Err(IdError("id").to_string());
    }
    check_whole(known, &properties)?;
    Ok(ObjectArg::Define(ObjectDef { qom_type, id, properties, secret: None }))
}

fn take_text(members: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match members.shift_remove(key) {
        None => Err(format!("Parameter '{key}' is missing")),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("Invalid parameter type for '{key}', expected: string")),
    }
}

fn convert(
    known: &Type,
    members: Map<String, Value>,
    spelling: Spelling,
) -> Result<Map<String, Value>, String> {
    let mut properties = Map::new();
    for (key, value) in members {
        let listed = known.properties.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind);
        let limit = key.strip_prefix("x-").is_some_and(|limit| LIMITS.contains(&limit));
        let kind = match listed {
            Some(kind) => kind,
            None if known.name == "throttle-group" && limit => Kind::Integer,
            None => return Err(format!("Parameter '{key}' is unexpected")),
        };
        let value = typed(&key, value, kind, spelling)?;
        properties.insert(key, value);
    }
    Ok(properties)
}

fn typed(path: &str, value: Value, kind: Kind, spelling: Spelling) -> Result<Value, String> {
    let wrong = |expected: &str| Err(format!("Invalid parameter type for '{path}', expected: {expected}"));
    match (kind, value) {
        (Kind::Limits, Value::Object(limits)) => {
            let one = |(key, value): (String, Value)| {
                let path = format!("{path}.{key}");
                if !LIMITS.contains(&key.as_str()) {
                    return Err(format!("Parameter '{path}' is unexpected"));
                }
                typed(&path, value, Kind::Integer, spelling).map(|value| (key, value))
            };
            limits.into_iter().map(one).collect::<Result<Map<_, _>, _>>().map(Value::Object)
        }
        (Kind::Limits, _) => wrong("object"),
        (Kind::Rules, Value::Array(rules)) => {
            let one = |(at, rule)| typed_rule(&item(path, at, spelling), rule, spelling);
            rules.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>().map(Value::Array)
        }
        (Kind::Rules, _) => wrong("array"),
        (Kind::Text, text @ Value::String(_)) => Ok(text),
        (Kind::OneOf(_, legal), Value::String(word)) if legal.contains(&word.as_str()) => Ok(word.into()),
        (Kind::OneOf(..), Value::String(word)) => {
            let key = path.rsplit('.').next().unwrap_or(path);
            Err(format!("Parameter '{key}' does not accept value '{word}'"))
        }
        (Kind::Text | Kind::OneOf(..), _) => wrong("string"),
        (Kind::Bool, Value::String(word)) if spelling == Spelling::List => match word.as_str() {
            "on" | "yes" | "true" | "y" => Ok(true.into()),
            "off" | "no" | "false" | "n" => Ok(false.into()),
            _ => Err(format!("Parameter '{path}' expects 'on' or 'off'")),
        },
        (Kind::Bool, yes @ Value::Bool(_)) => Ok(yes),
        (Kind::Bool, _) => wrong("boolean"),
        (Kind::Integer, Value::String(digits)) if spelling == Spelling::List => {
            let number = parse_number(&digits).map_err(|_| format!("Parameter '{path}' expects integer"))?;
            Ok((number as i64).into())
        }
        (Kind::Integer, Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.into()),
        (Kind::Integer, _) => wrong("integer"),
    }
}

/// The place of an item of a list.
fn item(path: &str, at: usize, spelling: Spelling) -> String {
    match spelling {
        Spelling::List => format!("{path}.{at}"),
        Spelling::Json => format!("{path}[{at}]"),
    }
}

fn typed_rule(path: &str, rule: Value, spelling: Spelling) -> Result<Value, String> {
    let Value::Object(mut rule) = rule else {
        return Err(format!("Invalid parameter type for '{path}', expected: object"));
    };
    let mut properties = Map::new();
    for (key, kind) in RULE {
        let path = format!("{path}.{key}");
        match rule.shift_remove(key) {
            Some(value) => _ = properties.insert(key.into(), typed(&path, value, kind, spelling)?),
            None if key == "format" => {}
            None => return Err(format!("Parameter '{path}' is missing")),
        }
    }
    match rule.keys().next() {
        None => Ok(Value::Object(properties)),
        Some(key) => Err(format!("Parameter '{path}.{key}' is unexpected")),
    }
}

/// What no single property can tell.
fn check_whole(known: &Type, properties: &Map<String, Value>) -> Result<(), String> {
    if known.name == "authz-simple" && !properties.contains_key("identity") {
        return Err("Parameter 'identity' is missing".into());
    }
    if known.name == "secret" {
        return match (properties.contains_key("file"), properties.contains_key("data")) {
            (true, true) => Err("'file' and 'data' are mutually exclusive".into()),
            (false, false) => Err("Either 'file' or 'data' must be provided".into()),
            _ => Ok(()),
        };
    }
    Ok(())
}

/// Adds an object to those that there are; a secret is read, and decrypted.
///
/// # Errors
/// A message in the words of the reference, when there is one of that name, or something that it refers to is missing.
pub fn add_object(objects: &mut Vec<ObjectDef>, mut object: ObjectDef) -> Result<(), String> {
    if objects.iter().any(|other| other.id == object.id) {
        let id = object.id;
        return Err(format!("attempt to add duplicate property '{id}' to object (type 'container')"));
    }
    if object.qom_type == "secret" {
        object.secret = Some(secret::load(&object, objects)?);
    }
    objects.push(object);
    Ok(())
}

/// The text that `help` or `TYPE,help` asks for.
fn help_text(text: &str) -> Option<String> {
    if matches!(text, "help" | "?") {
        let names = TYPES.iter().map(|known| format!("  {}\n", known.name));
        return Some(format!("List of user creatable objects:\n{}", names.collect::<String>()));
    }
    let name = text.strip_suffix(",help").or_else(|| text.strip_suffix(",?"))?;
    let Some(known) = TYPES.iter().find(|known| known.name == name) else { return help_text("help") };
    let mut lines = vec![];
    for (key, kind) in known.properties {
        let kind = match kind {
            Kind::Text => "string",
            Kind::Bool => "bool",
            Kind::Integer => "int",
            Kind::OneOf(name, _) => name,
            Kind::Limits => "ThrottleLimits",
            Kind::Rules => "QAuthZListRule",
        };
        lines.push(format!("  {key}=<{kind}>\n"));
    }
    if name == "throttle-group" {
        // The reference compares lines with their `=`, which sorts a longer key first.
        let mut limits: Vec<_> = LIMITS.iter().map(|key| format!("  x-{key}=<int>\n")).collect();
        limits.sort();
        lines.extend(limits);
    }
    Some(format!("{name} options:\n{}", lines.concat()))
}

/// The secrets among objects, by their ids.
#[must_use]
fn secrets(objects: &[ObjectDef]) -> Vec<(String, drystone_core::crypto::Secret)> {
    let secret = |object: &ObjectDef| {
        let bytes = object.secret.as_ref()?.bytes().to_vec();
        Some((object.id.clone(), drystone_core::crypto::Secret::new(bytes)))
    };
    objects.iter().filter_map(secret).collect()
}
