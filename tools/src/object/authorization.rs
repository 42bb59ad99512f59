//! Who may connect: `authz-simple`, which is one name, and `authz-list`, which is rules of which the first that fits counts.

use serde_json::{Map, Value};

use super::ObjectDef;

/// Says who may connect, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// One, and nobody else.
    Simple(String),
    /// Whoever the first rule that fits allows.
    List {
        /// The rules, in their order.
        rules: Vec<Rule>,
        /// Whether those may whom none fits.
        otherwise: bool,
    },
}

/// A rule of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A name, or a pattern.
    pub name: String,
    /// Whether `*` in it stands for any characters, and `?` for one.
    pub is_pattern: bool,
    /// Whether those may whom it fits.
    pub allows: bool,
}

impl Authorization {
    /// Whether somebody of that name may connect.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        match self {
            Self::Simple(one) => one == name,
            Self::List { rules, otherwise } => {
                rules.iter().find(|rule| rule.fits(name)).map_or(*otherwise, |rule| rule.allows)
            }
        }
    }
}

impl Rule {
    fn fits(&self, name: &str) -> bool {
        if self.is_pattern { fits(&self.name, name) } else { self.name == name }
    }
}

/// The object that `--tls-authz` names.
///
/// # Errors
/// A message in the words of the reference, when there is no such object, or it says nothing about who may connect.
pub fn find_authorization(objects: &[ObjectDef], id: &str) -> Result<Authorization, String> {
    let found = objects.iter().find(|object| object.id == id);
    let object = found.ok_or_else(|| format!("Cannot find QAuthZ object ID {id}"))?;
    let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let allows = |map: &Map<String, Value>| text(map, "policy").is_some_and(|policy| policy == "allow");
    match object.qom_type.as_str() {
        "authz-simple" => {
            let name = text(&object.properties, "identity");
            Ok(Authorization::Simple(name.expect("it was looked for when the object was made")))
        }
        "authz-list" => {
            let all = object.properties.get("rules").and_then(Value::as_array);
            let rule = |rule: &Map<String, Value>| Rule {
                name: text(rule, "match").expect("it was looked for when the object was made"),
                is_pattern: text(rule, "format").is_some_and(|format| format == "glob"),
                allows: allows(rule),
            };
            let rules = all.into_iter().flatten().filter_map(Value::as_object).map(rule).collect();
            Ok(Authorization::List { rules, otherwise: allows(&object.properties) })
        }
        _ => Err(format!("Object '{id}' is not a QAuthZ subclass")),
    }
}

/// Whether a pattern fits all of a text. Takes as many steps as both are long, multiplied, at the most.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // The last star, and how much of the text was behind what it stood for.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(&expected) if expected == '?' || expected == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((place, from)) = star else { return false };
                star = Some((place, from + 1));
                (at, seen) = (place + 1, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|character| *character == '*')
}

#[cfg(test)]
mod tests {
    use super::super::{ObjectArg, add_object, parse_object};
    use super::*;

    fn found(definition: &str) -> Result<Authorization, String> {
        let Ok(ObjectArg::Define(object)) = parse_object(definition) else { panic!("{definition}") };
        let mut objects = vec![];
        add_object(&mut objects, object).expect("there is none before it");
        find_authorization(&objects, "a")
    }

    #[test]
    fn patterns_fit_all_of_a_name() {
        for (pattern, text, expected) in [
            ("CN=*", "CN=one", true),
            ("CN=*", "O=x,CN=one", false),
            ("*CN=on?", "O=x,CN=one", true),
            ("*", "", true),
            ("", "x", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
            ("???", "Zoë", true),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern}, {text}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let list = found(
            "authz-list,id=a,policy=deny,rules.0.match=CN=bad,rules.0.policy=deny,rules.1.match=CN=*,\
             rules.1.policy=allow,rules.1.format=glob,rules.2.match=O=*,rules.2.policy=allow",
        )
        .expect("it is one");
        let allowed = ["CN=bad", "CN=good", "O=x", "O=*", ""].map(|name| list.allows(name));
        assert_eq!(allowed, [false, true, false, true, false]);
        let simple = found("authz-simple,id=a,identity=CN=one").expect("it is one");
        assert!(simple.allows("CN=one") && !simple.allows("CN=one2") && !simple.allows(""));
        assert!(found("authz-list,id=a,policy=allow").expect("it is one").allows("x"));
        assert!(!found("authz-list,id=a").expect("it is one").allows("x"));
        assert_eq!(found("secret,id=a,data=x"), Err("Object 'a' is not a QAuthZ subclass".into()));
        assert_eq!(find_authorization(&[], "a"), Err("Cannot find QAuthZ object ID a".into()));
    }
}
