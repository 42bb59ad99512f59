//! From what was said of an image to an open one.

use drystone_core::filter::FilterSpec;
use drystone_core::graph::open::{DriverSpec, ImageNames, NodeSpec, OpenMode};
use drystone_core::graph::options::{from_filename_and, from_options};
use drystone_core::graph::{NodeId, NodeInfo, Role};
use drystone_core::intent::{Aio, Permissions};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::CacheMode;
use drystone_tools::io::args::IoArgs;
use drystone_tools::io::command::{OpenCommand, Refusal, ReopenCommand};
use drystone_tools::options::{ImageName, backing_warning, parse_list, refusal, switch_warnings};
use serde_json::{Map, Value};

use crate::events::tell_events_of;
use crate::overlay::open_overlay;

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct How {
    path: Option<String>,
    format: Option<String>,
    options: Map<String, Value>,
    mode: OpenMode,
    snapshot: bool,
    copy_on_read: bool,
    /// Whether it was open before, so that messages need not say which image they are about.
    again: bool,
}

/// An image that is open.
pub struct Opened {
    pub image: Image,
    pub how: How,
    /// The image's own node, below a filter that was put on top of it.
    top: NodeId,
    read_only: bool,
}

impl Opened {
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub fn top(&self) -> NodeId {
        self.top
    }

    /// The image's own node.
    pub fn node(&self, client: &Client) -> NodeInfo {
        client.graph().into_iter().find(|info| info.id == self.top).expect("the image is open")
    }
}

/// Adds lists of options, and returns the warnings that they deserve.
fn add_options(options: &mut Map<String, Value>, lists: &[String]) -> Vec<String> {
    for pair in lists.iter().flat_map(|list| parse_list(list, None)) {
        options.insert(pair.key, Value::String(pair.value));
    }
    switch_warnings(lists)
}

impl How {
    /// What a command line says of its image; nothing where it names none.
    pub fn of_args(args: &IoArgs) -> Option<(Self, Vec<String>)> {
        let file = args.file.clone()?;
        let mut command = args.open.clone();
        match args.image_opts {
            true => command.options = vec![file],
            false => command.path = Some(file),
        }
        let (how, warnings) = Self::of_command(&command, args.image_names);
        Some((Self { format: args.format.clone(), ..how }, warnings))
    }

    /// What `open` says, and the warnings that it deserves.
    pub fn of_command(command: &OpenCommand, image_names: ImageNames) -> (Self, Vec<String>) {
        let mut options = Map::new();
        let mut warnings = add_options(&mut options, &command.options);
        warnings.extend(backing_warning(&options));
        // Unlike all other tools, this one has every write durable at once.
        let cache = command.cache.unwrap_or(CacheMode { writethrough: true, ..CacheMode::WRITEBACK });
        let mode = OpenMode {
            writable: !command.read_only,
            discard: command.discard.unwrap_or(true),
            aio: command.aio.unwrap_or(Aio::Auto),
            force_share: command.force_share,
            takes: Permissions::NONE,
            names: image_names,
            ..with_cache(OpenMode::default(), cache)
        };
        let (snapshot, copy_on_read) = (command.snapshot, command.copy_on_read);
        let (path, format, again) = (command.path.clone(), None, false);
        let how = Self { path, format, options, mode, snapshot, copy_on_read, again };
        (how, warnings)
    }

    /// The same, as `reopen` changes it, and the warnings that this deserves. `node` is the image's own.
    pub fn changed(&self, command: &ReopenCommand, node: &NodeInfo) -> (Result<Self, Refusal>, Vec<String>) {
        let mut options = Map::new();
        let warnings = add_options(&mut options, &command.options);
        (self.changed_by(command, options, node).map_err(Refusal::Reported), warnings)
    }

    fn changed_by(
        &self,
        command: &ReopenCommand,
        options: Map<String, Value>,
        node: &NodeInfo,
    ) -> Result<Self, String> {
        if self.snapshot {
            let text =
                "an image with a temporary overlay cannot be opened again: what was written would be lost";
            return Err(text.into());
        }
        if command.writable.is_some() && options.contains_key("read-only") {
            return Err("Cannot set both -r/-w and 'read-only'".into());
        }
        if command.cache.is_some() && options.keys().any(|key| key.starts_with("cache.")) {
            return Err("Cannot set both -c and the cache options".into());
        }
        let mut how = Self { again: true, ..self.clone() };
        for (key, value) in options {
            if self.is_new(&key, &value, node.driver)? {
                how.options.insert(key, value);
            }
        }
        how.mode.writable = command.writable.unwrap_or(how.mode.writable);
        if let Some(cache) = command.cache {
            how.mode = with_cache(how.mode, cache);
        }
        // What was guessed when it was opened is known by now.
        let named = how.format.is_some() || how.options.contains_key("driver") || how.path.is_none();
        let known =
            if named { how.clone() } else { Self { format: Some(node.driver.to_owned()), ..how.clone() } };
        known.spec().map_err(|why| match why.rsplit_once("does not support the option ") {
            Some((_, key)) => format!("Cannot change the option {key}"),
            None if why == "Block node is read-only" => {
                format!("Read-only block node '{}' cannot support read-write users", node.name)
            }
            None => why,
        })?;
        Ok(how)
    }

    /// Whether an option says something new. One that says what the node is, or what is below it, cannot change.
    fn is_new(&self, key: &str, value: &Value, driver: &str) -> Result<bool, String> {
        let cannot_change = |key: &str| Err(format!("Cannot change the option '{key}'"));
        if self.options.get(key) == Some(value) {
            return Ok(false);
        }
        match key.split_once('.') {
            None if key == "driver" && value == driver => Ok(false),
            Some(("file", "filename")) if self.path.as_deref() == value.as_str() => Ok(false),
            Some(("file", "driver")) if self.path.is_some() && value == "file" => Ok(false),
            None if matches!(key, "driver" | "node-name" | "filename" | "force-share" | "data-file") => {
                cannot_change(key)
            }
            None if matches!(key, "backing" | "file") => {
                let name = value.as_str().unwrap_or_default();
                Err(format!("Cannot find device='' nor node-name='{name}'"))
            }
            Some(("file" | "backing" | "data-file", below)) => {
                cannot_change(below.rsplit('.').next().unwrap_or(below))
            }
            _ => Ok(true),
        }
    }

    fn spec(&self) -> Result<NodeSpec, String> {
        let mut options = self.options.clone();
        // This tool gives up space unless it is told otherwise, which `detect-zeroes=unmap` asks for.
        if options.contains_key("detect-zeroes") && !options.contains_key("discard") && self.mode.discard {
            options.insert("discard".into(), "unmap".into());
        }
        let read_only = self.says_read_only();
        if self.snapshot && self.mode.writable && read_only == Some(true) {
            return Err("Block node is read-only".into());
        }
        // What is below an overlay is only read. Without one, what the options say counts for more than `-r`.
        let writable = !self.snapshot && (self.mode.writable || read_only == Some(false));
        let mode = OpenMode { writable, ..self.mode };
        let spec = match &self.path {
            Some(path) => from_filename_and(Some(path), self.format.as_deref(), options.clone(), mode),
            None => from_options(options.clone(), mode),
        };
        let mut spec = spec.map_err(|error| refusal(&error, self.path.as_deref(), &options))?;
        if let DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } = &mut spec.driver {
            options.pack_fresh_only = true;
        }
        Ok(spec)
    }

    /// What the options, or a description as a name, say of the image itself.
    fn says_read_only(&self) -> Option<bool> {
        let named = self.path.as_deref().and_then(|path| ImageName::from_filename(path).ok());
        let named = named.map(|name| name.options()).unwrap_or_default();
        match self.options.get("read-only").or_else(|| named.get("read-only"))? {
            Value::Bool(read_only) => Some(*read_only),
            Value::String(text) if text == "on" => Some(true),
            Value::String(text) if text == "off" => Some(false),
            _ => None,
        }
    }

    fn cannot(&self, why: impl std::fmt::Display) -> String {
        match &self.path {
            _ if self.again => why.to_string(),
            Some(path) => format!("can't open device {path}: {why}"),
            None => format!("can't open: {why}"),
        }
    }
}

fn with_cache(mode: OpenMode, cache: CacheMode) -> OpenMode {
    OpenMode { direct: cache.direct, no_flush: cache.no_flush, write_through: cache.writethrough, ..mode }
}

/// Opens an image; also returns what is to be said of it.
pub async fn open(client: &Client, how: How, args: &IoArgs) -> Result<Opened, String> {
    if !args.objects.is_empty() && how.path.is_none() && how.options.is_empty() {
        return Err(how.cannot("there is nothing that could use the objects"));
    }
    let spec = how.spec().map_err(|why| how.cannot(why))?;
    let opened = match (how.snapshot, how.copy_on_read) {
        (true, _) => open_overlay(client, spec, how.mode).await,
        (false, true) if !how.mode.writable => Err("Can't use copy-on-read on read-only device".into()),
        (false, true) => open_copying(client, spec).await,
        (false, false) => {
            client.open(&spec).await.map(|image| (image.node(), image)).map_err(|error| error.to_string())
        }
    };
    tell_events_of(client, how.path.as_deref());
    let (top, image) = opened.map_err(|why| how.cannot(why))?;
    let graph = client.graph();
    let about = |node| graph.iter().find(|info| info.id == node).expect("the image is open");
    let read_only = about(image.node()).flags.read_only;
    Ok(Opened { image, how, top, read_only })
}

/// Opens an image below a filter that keeps what is read from backing files.
async fn open_copying(client: &Client, spec: NodeSpec) -> Result<(NodeId, Image), String> {
    let mode = spec.mode;
    let file = Box::new(NodeSpec { mode: OpenMode { write_through: false, ..mode }, ..spec });
    let filter = Box::new(FilterSpec::CopyOnRead { bottom: None });
    let spec = NodeSpec { node_name: None, mode, driver: DriverSpec::Filter { file, filter } };
    let image = client.open(&spec).await.map_err(|error| error.to_string())?;
    let node = image.node();
    let top = client.run(async move |io| Ok(io.edge(node, Role::File))).await;
    let top = top.map_err(|error| error.to_string())?.expect("a filter has a file");
    Ok((top, image))
}
