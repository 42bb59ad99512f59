//! What a FILENAME argument names: a path, a `json:{…}` text, or (with `--image-opts`) an option list.

use drystone_core::error::Error;
use drystone_core::graph::open::names_protocol;
use drystone_core::intent::Errno;
use serde_json::{Map, Value, json};

use super::dotted::{NestError, flatten, nest};
use super::json::{JsonError, parse, to_line};
use super::list::{IdError, Pair, is_well_formed_id, parse_list};

/// A way to name an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// A path or a URL, as written.
    File(String),
    /// Options of a node, nested; from `json:{…}` or `--image-opts`.
    Options {
        /// What the user wrote; messages say `Could not open 'TEXT'`.
        text: String,
        /// The options.
        options: Map<String, Value>,
    },
}

/// A name that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageNameError {
    /// What follows `json:` is not JSON.
    #[error("Could not parse the JSON options: {0}")]
    Json(#[from] JsonError),
    /// What follows `json:` is no map.
    #[error("Invalid JSON object given")]
    NotAMap,
    /// Keys of the options do not fit together.
    #[error(transparent)]
    Nest(#[from] NestError),
    /// The option list has an `id` that is no identifier.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl ImageName {
    /// Reads a FILENAME argument.
    ///
    /// # Errors
    /// [`ImageNameError`] when it starts with `json:` and is not a map of options.
    pub fn from_filename(text: &str) -> Result<Self, ImageNameError> {
        let Some(json) = text.strip_prefix("json:") else { return Ok(Self::File(text.to_owned())) };
        let Value::Object(map) = parse(json)? else { return Err(ImageNameError::NotAMap) };
        Ok(Self::Options { text: text.to_owned(), options: nest(flatten(map))? })
    }

    /// Reads a FILENAME argument under `--image-opts`; also returns the warnings it deserves.
    ///
    /// The first entry may be the bare name of an existing node, which becomes the option `file`.
    ///
    /// # Errors
    /// [`ImageNameError`] when the keys do not fit together.
    pub fn from_image_opts(text: &str) -> Result<(Self, Vec<String>), ImageNameError> {
        let pairs = parse_list(text, Some("file"));
        let first_id = pairs.iter().find(|pair| pair.key == "id" && !pair.switch);
        if first_id.is_some_and(|pair| !is_well_formed_id(&pair.value)) {
            return Err(IdError("id").into());
        }
        let warnings = pairs.iter().filter_map(Pair::switch_warning).collect();
        let mut flat = Map::new();
        for pair in pairs {
            flat.insert(pair.key, Value::String(pair.value));
        }
        let options = match nest(flat.clone()) {
            // Which driver the name would be for is only known when the image is opened.
            Err(NestError::ValueAndMembers { .. }) => flat,
            nested => nested?,
        };
        Ok((Self::Options { text: text.to_owned(), options }, warnings))
    }

    /// The warning that an outdated way to leave out the backing file deserves.
    #[must_use]
    pub fn backing_warning(&self) -> Option<String> {
        let Self::Options { options, .. } = self else { return None };
        backing_warning(options)
    }

    /// The text that the user wrote.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::File(text) | Self::Options { text, .. } => text,
        }
    }

    /// The name as options of a node: a file becomes `{"filename": …}`.
    #[must_use]
    pub fn options(&self) -> Map<String, Value> {
        match self {
            Self::Options { options, .. } => options.clone(),
            Self::File(path) => Map::from_iter([("filename".to_owned(), json!(path))]),
        }
    }
}

/// The `json:{…}` name of a node that no plain file name describes.
#[must_use]
pub fn json_filename(options: &Map<String, Value>) -> String {
    format!("json:{}", to_line(&Value::Object(options.clone())))
}

/// What is said of options that were refused. As the reference opens what is below a driver before it looks at what the
/// driver does not have, a file that is not there comes first. `path` is the file's where the options do not name it.
#[must_use]
pub fn refusal(error: &Error, path: Option<&str>, options: &Map<String, Value>) -> String {
    let missing = || match path.map(ImageName::from_filename) {
        Some(Ok(ImageName::File(path))) if names_protocol(&path) => None,
        Some(Ok(ImageName::File(path))) => missing(&path),
        Some(Ok(ImageName::Options { options, .. })) => missing_file(&options),
        Some(Err(_)) => None,
        None => missing_file(&nest(flatten(options.clone())).ok()?),
    };
    match error {
        Error::UnknownOption(text) => missing().unwrap_or_else(|| text.clone()),
        _ => error.to_string(),
    }
}

/// What is wrong with the file at the bottom of a node that is to be opened, where the host does not have it.
fn missing_file(options: &Map<String, Value>) -> Option<String> {
    if let Some(Value::Object(below)) = options.get("file").or_else(|| options.get("image")) {
        return missing_file(below);
    }
    let on_host = options.get("driver").is_none_or(|driver| driver == "file" || driver == "host_device");
    let path = options.get("filename").and_then(Value::as_str).filter(|_| on_host)?;
    missing(path)
}

fn missing(path: &str) -> Option<String> {
    let errno = std::fs::metadata(path).err()?.raw_os_error()?;
    Some(format!("Could not open '{path}': {}", Errno(errno)))
}

/// The warning that an outdated way to leave out the backing file deserves.
#[must_use]
pub fn backing_warning(options: &Map<String, Value>) -> Option<String> {
    let qcow2 = options.get("driver").is_none_or(|driver| driver == "qcow2");
    let empty = qcow2 && options.get("backing").is_some_and(|backing| backing == "");
    empty.then(|| r#"Use of "backing": "" is deprecated; use "backing": null instead"#.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_stay_as_they_are() {
        for text in ["a.img", "nbd://x/y", " json:{}", "a,b=c", ""] {
            assert_eq!(ImageName::from_filename(text), Ok(ImageName::File(text.into())));
        }
    }

    #[test]
    fn json_names_and_option_lists_become_nested_options() {
        let expected = json!({"driver": "qcow2", "file": {"driver": "file", "filename": "a,b"}});
        let json = "json:{'driver': 'qcow2', 'file.driver': 'file', 'file': {'filename': 'a,b'}}";
        assert_eq!(Value::Object(ImageName::from_filename(json).unwrap().options()), expected);
        let list = "driver=raw,driver=qcow2,file.driver=file,file.filename=a,,b";
        let (name, warnings) = ImageName::from_image_opts(list).unwrap();
        assert_eq!((Value::Object(name.options()), warnings), (expected, vec![]));
        assert_eq!(name.text(), list);
    }

    #[test]
    fn a_bare_first_entry_names_a_node() {
        let (name, _) = ImageName::from_image_opts("disk0,driver=raw").unwrap();
        assert_eq!(Value::Object(name.options()), json!({"file": "disk0", "driver": "raw"}));
    }

    #[test]
    fn switches_earn_a_warning() {
        let (_, warnings) = ImageName::from_image_opts("driver=qcow2,nolazy-refcounts").unwrap();
        let expected =
            "short-form boolean option 'nolazy-refcounts' deprecated\nPlease use lazy-refcounts=off instead";
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn names_that_cannot_be_understood() {
        let message = |text: &str| ImageName::from_filename(text).unwrap_err().to_string();
        assert_eq!(message("json:[]"), "Invalid JSON object given");
        assert_eq!(message("json:"), "Could not parse the JSON options: Expecting a JSON value");
        assert!(ImageName::from_image_opts("id=1,driver=raw").is_err());
    }
}
