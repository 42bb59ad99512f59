//! Command lines: `drystone-nbd [OPTION]… FILE`, `drystone-nbd -L [OPTION]…` and `drystone-nbd -d DEV`.

use drystone_core::graph::DetectZeroes;
use drystone_core::graph::open::ImageNames;
use drystone_core::intent::Aio;
use drystone_core::protocol::nbd::NbdAddress;
use drystone_core::protocol::nbd::limits::STRING_MAX;

use crate::docs;
use crate::getopt::{Getopt, OptionSpec, Order, Parsed, option};
use crate::img::args::{CacheMode, SnapshotName, append_options, parse_image_names, parse_snapshot};
use crate::io::command::{Refusal, aio};
use crate::message::{Failure, Message};
use crate::nbd::number;
use crate::object::{ObjectArg, ObjectDef, add_object, parse_object};
use crate::trace::{Added, EVENTS, Tracing};

/// The port where none is said.
const PORT: &str = "10809";

/// Where the socket of a device is, before the device's name; scripts of the reference look for it there.
const SOCKETS: &str = "/var/lock/qemu-nbd-";

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// What to say on the error stream before anything else.
    pub warnings: Vec<String>,
    /// What to trace.
    pub tracing: Tracing,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Print this and exit with 0.
    Print(String),
    /// List the exports of a server.
    List(ListArgs),
    /// Have a device of the kernel let go of its export.
    Disconnect(String),
    /// Serve an image.
    Serve(Box<ServeArgs>),
}

/// Whose exports are listed.
#[derive(Clone, Debug, PartialEq)]
pub struct ListArgs {
    /// Where the server is.
    pub server: NbdAddress,
    /// What of that was said, as in [`ServeArgs`].
    pub address_said: Option<&'static str>,
    /// How the connection is encrypted, if it is.
    pub tls: TlsArgs,
    /// The name that the server's certificate must have.
    pub hostname: Option<String>,
}

/// How connections are encrypted.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TlsArgs {
    /// `--tls-creds`: the id of an object, if they are.
    pub credentials: Option<String>,
    /// `--tls-authz`: the id of an object that says who may connect, if not everybody may.
    pub authorization: Option<String>,
    /// Objects, by which options refer to secrets and credentials.
    pub objects: Vec<ObjectDef>,
}

/// How an image is served.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeArgs {
    /// The image, as it was given.
    pub file: String,
    /// Whether it is given as a list of options.
    pub image_opts: bool,
    /// `-f`.
    pub format: Option<String>,
    /// Where clients connect.
    pub address: NbdAddress,
    /// What of the address was said, in the words for where that makes no sense.
    pub address_said: Option<&'static str>,
    /// Clients at once; 0 for any number.
    pub clients_max: usize,
    /// Whether to go on when the last client has gone.
    pub persistent: bool,
    /// Name of the export.
    pub name: String,
    /// Words about it.
    pub description: String,
    /// Seconds before transmission; 0 for any number.
    pub handshake_limit: u32,
    /// First byte of the image that is shown.
    pub offset: u64,
    /// Whether clients may ask for the depth at which data is allocated.
    pub depth: bool,
    /// Bitmaps that clients may ask for.
    pub bitmaps: Vec<String>,
    /// Whether nothing may be written.
    pub read_only: bool,
    /// Whether what is written goes to an overlay that is gone in the end.
    pub snapshot: bool,
    /// An internal snapshot to show in the place of the image.
    pub load_snapshot: Option<SnapshotName>,
    /// How the image is cached.
    pub cache: CacheMode,
    /// How it is read and written.
    pub aio: Aio,
    /// Whether discards reach the host.
    pub discard: bool,
    /// Whether zeros are looked for.
    pub detect_zeroes: DetectZeroes,
    /// Whether to go on in the background.
    pub fork: bool,
    /// Where the process's number is written.
    pub pid_file: Option<String>,
    /// The security context of the sockets that are listened on.
    pub selinux_label: Option<String>,
    /// What to open of the names that images hold.
    pub image_names: ImageNames,
    /// How connections are encrypted, and all objects.
    pub tls: TlsArgs,
    /// A device of the kernel that is to show the image.
    pub device: Option<String>,
    /// Whether errors are still told from the background, and a device is served in the foreground.
    pub verbose: bool,
}

const OPTIONS: &[OptionSpec] = &[
    option(&["port"], "p", Some("PORT"), "port to listen on (default: 10809)"),
    option(&["bind"], "b", Some("HOST"), "host to bind to, or with -L to ask (default: 0.0.0.0)"),
    option(&["socket"], "k", Some("PATH"), "socket in the file system to listen on"),
    option(&["shared"], "e", Some("NUM"), "clients at once; 0 for any number (default: 1)"),
    option(&["persistent"], "t", None, "go on when the last client has gone"),
    option(&["connect"], "c", Some("DEV"), "show the image as a device of the kernel, such as /dev/nbd0"),
    option(&["disconnect"], "d", None, "have the device FILE let go of its image"),
    option(&["export-name"], "x", Some("NAME"), "name of the export (default: empty)"),
    option(&["description"], "D", Some("TEXT"), "words about the export"),
    option(&["handshake-limit"], "", Some("N"), "seconds that a client may take to begin (default: 10)"),
    option(&["offset"], "o", Some("OFFSET"), "first byte of the image that is shown"),
    option(&["allocation-depth"], "A", None, "let clients ask which image of a chain holds data"),
    option(&["bitmap"], "B", Some("NAME"), "let clients ask for a dirty bitmap; may be repeated"),
    option(&["list"], "L", None, "list the exports of another server"),
    option(&["format"], "f", Some("FMT"), "format of the image (default: probed)"),
    option(&["image-opts"], "", None, "FILE is an option list such as driver=qcow2,file.filename=a.qcow2"),
    option(&["read-only"], "r", None, "let nothing be written"),
    option(&["snapshot"], "s", None, "write to an overlay that goes in the end"),
    option(&["load-snapshot"], "l", Some("SNAPSHOT"), "show an internal snapshot, for reading"),
    option(&["nocache"], "n", None, "the same as --cache=none"),
    option(&["cache"], "", Some("CACHE"), "cache mode (default: writeback)"),
    option(&["aio"], "", Some("AIO"), "threads, native or io_uring"),
    option(&["discard"], "", Some("MODE"), "ignore or unmap (default: ignore)"),
    option(&["detect-zeroes"], "", Some("MODE"), "off, on or unmap (default: off)"),
    option(&["fork"], "", None, "go on in the background once clients can connect"),
    option(&["pid-file"], "", Some("PATH"), "write the process's number to a file"),
    option(&["selinux-label"], "", Some("LABEL"), "security context of the sockets that are listened on"),
    option(
        &["object"],
        "",
        Some("OBJDEF"),
        "define an object, such as a secret or tls-creds-x509; may be repeated",
    ),
    option(&["tls-creds"], "", Some("ID"), "encrypt with the credentials of a tls-creds-x509 object"),
    option(&["tls-hostname"], "", Some("HOST"), "with -L, the name that the server's certificate must have"),
    option(&["tls-authz"], "", Some("ID"), "who may connect: the id of an authz-simple or authz-list object"),
    option(&["trace"], "T", Some("TRACE"), "trace events: [[enable=]PATTERN][,events=FILE][,file=FILE]"),
    option(
        &["image-names"],
        "",
        Some("follow|plain|forbid"),
        "what to open of the file names that images hold: all, paths alone, or none (default: follow)",
    ),
    option(&["help"], "h", None, "print this help and exit"),
    option(&["version"], "V", None, "print the version and exit"),
    option(
        &["verbose"],
        "v",
        None,
        "go on saying what is wrong after --fork; with -c, stay in the foreground",
    ),
    docs::COMPLETIONS,
    docs::MAN,
];

/// What manual page and completions are made from.
fn docs() -> docs::Tool {
    docs::Tool {
        summary: "serves disk images to the network",
        subject: "Disk images",
        reference: "qemu-nbd",
        operands: "FILE",
        description: &[
            "Serves a disk image to clients of the network block device protocol, or with -L lists what another server has.",
            "SIGTERM ends it once what was written is durable.",
        ],
        options: OPTIONS,
        commands: Vec::new(),
        lines: Vec::new(),
        exit: "0 when all went well, 1 when not.",
    }
}

/// What a command line says, before it is put together.
#[derive(Default)]
struct Raw {
    port: Option<String>,
    bind: Option<String>,
    socket: Option<String>,
    list: bool,
    fork: bool,
    tls_hostname: Option<String>,
    disconnect: bool,
    /// Something was said that a list has no use for.
    about_device: bool,
    cache_said: bool,
    aio_said: bool,
    discard_said: bool,
}

/// Reads a command line; `argv[0]` is the tool's path.
///
/// # Errors
/// What is wrong with it.
pub fn parse(argv: &[String], name: &str) -> Result<Invocation, Failure> {
    let mut raw = Raw::default();
    let mut args = ServeArgs::new();
    let mut warnings = Vec::new();
    let mut tracing = Tracing::default();
    let mut getopt = Getopt::new(OPTIONS, Order::Permute, argv.to_vec());
    while let Some(parsed) = getopt.next_option() {
        let Parsed::Option(option, value) = parsed else {
            return Err(unusable(getopt.complaint(), Message::Error(hint(name))));
        };
        let print = |text| {
            let tracing = Tracing::default();
            Ok(Invocation { warnings: Vec::new(), tracing, action: Action::Print(text) })
        };
        match option {
            "help" => return print(help(name)),
            "version" => return print(version(name)),
            "man" => return print(docs().man(name)),
            "completions" => return print(docs().completions(name, &value)?),
            "trace" => match tracing.add(&value)? {
                Added::Help => return print(EVENTS.into()),
                Added::Warnings(more) => warnings.extend(more),
            },
            "object" => match parse_object(&value).map_err(Failure::new)? {
                ObjectArg::Help(text) => return print(text),
                ObjectArg::Define(object) => {
                    add_object(&mut args.tls.objects, object).map_err(Failure::new)?;
                }
            },
            "load-snapshot" => {
                args.load_snapshot = Some(parse_snapshot(&value, &mut warnings).map_err(quoted_back)?);
                (args.read_only, raw.about_device) = (true, true);
            }
            _ => set(&mut args, &mut raw, option, value)?,
        }
    }
    let action = finish(args, raw, getopt.take_operands(), name)?;
    Ok(Invocation { warnings, tracing, action })
}

/// What else a misused command line is answered with.
fn hint(name: &str) -> String {
    format!("Try `{name} --help' for more information.")
}

/// A failure in the reference's words, which are those of C's library here.
fn unusable(text: &str, hint: Message) -> Failure {
    let mut failure = Failure::new(text);
    failure.messages.push(hint);
    failure
}

/// The same failure with the reference's quotes around what could not be parsed, which differ from `qemu-img`'s.
fn quoted_back(mut failure: Failure) -> Failure {
    for message in &mut failure.messages {
        if let Message::Error(text) = message
            && text.starts_with("Failed in parsing")
        {
            *text = text.replacen('\'', "`", 1);
        }
    }
    failure
}

/// As the reference's, without the word that its other tools have before the number.
fn version(name: &str) -> String {
    crate::io::help::version(name).replacen(" version ", " ", 1)
}

fn help(name: &str) -> String {
    let mut text = format!(
        "Usage: {name} [OPTION]... FILE\n  or:  {name} -L [OPTION]...\n  or:  {name} -d DEV\n\n\
         Serves an image to clients of the network block device protocol.\n\nOptions:\n"
    );
    append_options(&mut text, OPTIONS);
    text
}

impl ServeArgs {
    fn new() -> Self {
        Self {
            file: String::new(),
            image_opts: false,
            format: None,
            address: NbdAddress::inet("0.0.0.0", PORT),
            address_said: None,
            clients_max: 1,
            persistent: false,
            name: String::new(),
            description: String::new(),
            handshake_limit: 10,
            offset: 0,
            depth: false,
            bitmaps: Vec::new(),
            read_only: false,
            snapshot: false,
            load_snapshot: None,
            cache: CacheMode::WRITEBACK,
            aio: Aio::Auto,
            discard: false,
            detect_zeroes: DetectZeroes::Off,
            fork: false,
            pid_file: None,
            selinux_label: None,
            image_names: ImageNames::default(),
            tls: TlsArgs::default(),
            device: None,
            verbose: false,
        }
    }

    /// Whether to go on in the background: as asked for, or for a device that nobody wants to hear of.
    pub fn goes_on_in_background(&self) -> bool {
        self.fork || (self.device.is_some() && !self.verbose)
    }
}

fn set(args: &mut ServeArgs, raw: &mut Raw, option: &str, value: String) -> Result<(), Failure> {
    let once = |said: &mut bool, text: &str| match std::mem::replace(said, true) {
        false => Ok(()),
        true => Err(Failure::new(text)),
    };
    raw.about_device |= !matches!(
        option,
        "port"
            | "bind"
            | "socket"
            | "list"
            | "fork"
            | "verbose"
            | "image-names"
            | "image-opts"
            | "detect-zeroes"
            | "handshake-limit"
            | "persistent"
            | "pid-file"
            | "read-only"
            | "selinux-label"
            | "shared"
            | "snapshot"
            | "tls-creds"
            | "tls-hostname"
            | "tls-authz"
    );
    match option {
        "port" => raw.port = Some(value),
        "bind" => raw.bind = Some(value),
        "socket" if !value.starts_with('/') => return Err(Failure::new("socket path must be absolute")),
        "socket" => raw.socket = Some(value),
        "shared" => {
            let invalid = || Failure::new(format!("Invalid shared device number '{value}'"));
            args.clients_max = number::parse_small(&value).ok_or_else(invalid)? as usize;
        }
        "persistent" => args.persistent = true,
        "export-name" | "description" => {
            if value.len() > STRING_MAX {
                let what = if option == "description" { "export description" } else { "export name" };
                return Err(Failure::new(format!("{what} '{value}' too long")));
            }
            *(if option == "description" { &mut args.description } else { &mut args.name }) = value;
        }
        "handshake-limit" => {
            let invalid = || Failure::new(format!("Invalid handshake limit '{value}'"));
            args.handshake_limit = number::parse_small(&value).ok_or_else(invalid)?;
        }
        "offset" => {
            let invalid = || Failure::new(format!("Invalid offset '{value}'"));
            // The reference carries it in 64 bits with a sign, whatever it was.
            let offset = number::parse(&value).ok_or_else(invalid)? as i64;
            let beyond = |_| Failure::new(format!("Value '{offset}' is out of range for parameter 'offset'"));
            args.offset = u64::try_from(offset).map_err(beyond)?;
        }
        "allocation-depth" => args.depth = true,
        "bitmap" => args.bitmaps.push(value),
        "list" => raw.list = true,
        "format" => args.format = Some(value),
        "image-opts" => args.image_opts = true,
        "read-only" => args.read_only = true,
        "snapshot" => args.snapshot = true,
        "nocache" | "cache" => {
            once(&mut raw.cache_said, "-n and --cache can only be specified once")?;
            let mode = if option == "nocache" { "none" } else { &value };
            let invalid = || Failure::new(format!("Invalid cache mode `{value}'"));
            args.cache = CacheMode::parse(mode).ok_or_else(invalid)?;
        }
        "aio" => {
            once(&mut raw.aio_said, "--aio can only be specified once")?;
            args.aio =
                aio(&value).map_err(|_: Refusal| Failure::new(format!("Invalid aio mode '{value}'")))?;
        }
        "discard" => {
            once(&mut raw.discard_said, "--discard can only be specified once")?;
            args.discard = match value.as_str() {
                "ignore" | "off" => false,
                "unmap" | "on" => true,
                _ => return Err(Failure::new(format!("Invalid discard mode `{value}'"))),
            };
        }
        "detect-zeroes" => {
            args.detect_zeroes = match value.as_str() {
                "off" => DetectZeroes::Off,
                "on" => DetectZeroes::On,
                "unmap" => DetectZeroes::Unmap,
                _ => {
                    return Err(Failure::new(format!(
                        "Failed to parse detect_zeroes mode: invalid parameter value: {value}"
                    )));
                }
            }
        }
        "fork" => (args.fork, raw.fork) = (true, true),
        "pid-file" => args.pid_file = Some(value),
        "selinux-label" => args.selinux_label = Some(value),
        "tls-creds" => args.tls.credentials = Some(value),
        "tls-hostname" => raw.tls_hostname = Some(value),
        "tls-authz" => args.tls.authorization = Some(value),
        "verbose" => args.verbose = true,
        "connect" => args.device = Some(value),
        "disconnect" => raw.disconnect = true,
        "image-names" => args.image_names = parse_image_names(&value)?,
        other => unreachable!("an option of the table: {other}"),
    }
    Ok(())
}

/// What makes no sense about encryption.
fn check_tls(args: &ServeArgs, raw: &Raw) -> Result<(), Failure> {
    let refused = match (&args.tls.credentials, args.tls.authorization.is_some(), &raw.tls_hostname) {
        (None, true, _) => "--tls-authz is not permitted without --tls-creds",
        (None, false, Some(_)) => "--tls-hostname is not permitted without --tls-creds",
        (Some(_), true, _) if raw.list => "TLS authorization is incompatible with export list",
        (Some(_), _, Some(_)) if !raw.list => "TLS hostname is only supported with export list",
        _ => return Ok(()),
    };
    Err(Failure::new(refused))
}

/// Security contexts are for sockets of the file system.
fn check_label(args: &ServeArgs) -> Result<(), Failure> {
    match (&args.selinux_label, &args.address) {
        (Some(_), NbdAddress::Inet { .. }) => {
            Err(Failure::new("--selinux-label is not permitted without --socket"))
        }
        _ => Ok(()),
    }
}

fn finish(mut args: ServeArgs, raw: Raw, operands: Vec<String>, name: &str) -> Result<Action, Failure> {
    check_tls(&args, &raw)?;
    args.address_said = match &raw {
        Raw { socket: Some(_), .. } => Some("Unix socket"),
        Raw { bind: Some(_), .. } => Some("The interface"),
        Raw { port: Some(_), .. } => Some("TCP port number"),
        _ => None,
    };
    if let Some(path) = raw.socket {
        args.address = NbdAddress::Unix { path };
    } else if let Some(device) = &args.device {
        let name = device.rsplit('/').next().unwrap_or_default();
        args.address = NbdAddress::Unix { path: format!("{SOCKETS}{name}") };
    } else {
        // The reference looks for a server there, too, where no host is said.
        let host = match raw.bind {
            None => "0.0.0.0".into(),
            // All that there are: a socket of IPv6 takes those of IPv4 as well.
            Some(host) if host.is_empty() => "::".into(),
            Some(host) => host,
        };
        args.address = NbdAddress::inet(host, raw.port.unwrap_or_else(|| PORT.into()));
    }
    if raw.list {
        if !operands.is_empty() {
            return Err(Failure::new("List mode is incompatible with a file name"));
        }
        if raw.about_device {
            return Err(Failure::new("List mode is incompatible with per-device settings"));
        }
        if raw.fork {
            return Err(Failure::new("List mode is incompatible with forking"));
        }
        check_label(&args)?;
        let host = args.address.host().map(str::to_owned);
        let (server, tls, hostname) = (args.address, args.tls, raw.tls_hostname.or(host));
        let address_said = args.address_said;
        return Ok(Action::List(ListArgs { server, address_said, tls, hostname }));
    }
    let [file] = operands.as_slice() else {
        return Err(unusable("Invalid number of arguments", Message::Plain(hint(name))));
    };
    if raw.disconnect {
        return Ok(Action::Disconnect(file.clone()));
    }
    check_label(&args)?;
    args.file.clone_from(file);
    if args.image_opts && args.format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    if args.detect_zeroes == DetectZeroes::Unmap && !(raw.discard_said && args.discard) {
        let text = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";
        return Err(Failure::new(text));
    }
    Ok(Action::Serve(Box::new(args)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action, String> {
        let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let failed =
            |failure: Failure| failure.render("drystone-nbd").lines().next().unwrap_or("").to_owned();
        parse(&argv, "drystone-nbd").map(|invocation| invocation.action).map_err(failed)
    }

    #[test]
    fn options_say_how_an_image_is_served() {
        let Ok(Action::Serve(args)) = parsed("nbd -tAr -k /s -x exp -e 5 -B b0 -B b1 -o 512 a.img") else {
            panic!("it is legal");
        };
        assert_eq!(args.address, NbdAddress::Unix { path: "/s".into() });
        assert!(args.persistent && args.depth && args.read_only);
        assert_eq!(args.address_said, Some("Unix socket"));
        assert_eq!((args.clients_max, args.offset, args.bitmaps.len()), (5, 512, 2));
        assert_eq!((args.name.as_str(), args.file.as_str()), ("exp", "a.img"));
        let Ok(Action::List(listed)) = parsed("nbd -L -p 5 --tls-creds t --tls-hostname h") else {
            panic!("it is legal");
        };
        assert_eq!(listed.server, NbdAddress::inet("0.0.0.0", "5"));
        assert_eq!((listed.tls.credentials.as_deref(), listed.hostname.as_deref()), (Some("t"), Some("h")));
        let Ok(Action::Serve(args)) = parsed("nbd -c /dev/nbd7 a.img") else { panic!("it is legal") };
        assert_eq!(args.address, NbdAddress::Unix { path: "/var/lock/qemu-nbd-nbd7".into() });
        assert!(args.goes_on_in_background());
        assert_eq!(parsed("nbd -d /dev/nbd7"), Ok(Action::Disconnect("/dev/nbd7".into())));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_the_words_of_the_reference() {
        for (line, expected) in [
            ("nbd", "Invalid number of arguments"),
            ("nbd a b", "Invalid number of arguments"),
            ("nbd -e -1 a", "Invalid shared device number '-1'"),
            ("nbd -k rel a", "socket path must be absolute"),
            ("nbd -o 2M a", "Invalid offset '2M'"),
            ("nbd --cache=foo a", "Invalid cache mode `foo'"),
            ("nbd -n --cache=none a", "-n and --cache can only be specified once"),
            ("nbd --aio=foo a", "Invalid aio mode 'foo'"),
            ("nbd --discard=foo a", "Invalid discard mode `foo'"),
            ("nbd -L a", "List mode is incompatible with a file name"),
            ("nbd -d", "Invalid number of arguments"),
            ("nbd -d a b", "Invalid number of arguments"),
            ("nbd -L -c /dev/nbd0", "List mode is incompatible with per-device settings"),
            ("nbd -L -x foo", "List mode is incompatible with per-device settings"),
            ("nbd --image-opts -f raw a", "--image-opts and -f are mutually exclusive"),
            ("nbd --handshake-limit=x a", "Invalid handshake limit 'x'"),
            ("nbd --tls-authz x a", "--tls-authz is not permitted without --tls-creds"),
            ("nbd --tls-hostname x a", "--tls-hostname is not permitted without --tls-creds"),
            ("nbd --tls-creds t --tls-hostname x a", "TLS hostname is only supported with export list"),
            ("nbd -L --tls-creds t --tls-authz x", "TLS authorization is incompatible with export list"),
        ] {
            assert_eq!(parsed(line), Err(format!("drystone-nbd: {expected}")), "{line}");
        }
    }
}
