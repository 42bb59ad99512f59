//! Command lines: `drystone-io [OPTION]… [-c COMMAND]… [FILE]`.

use drystone_core::graph::open::ImageNames;

use super::command::{self, OpenCommand, Refusal};
use super::help;
use crate::docs;
use crate::getopt::{Getopt, OptionSpec, Order, option};
use crate::img::args::CacheMode;
use crate::img::args::{Executor, parse_executor, parse_image_names};
use crate::message::Failure;
use crate::object::{ObjectArg, ObjectDef, add_object, parse_object};
use crate::trace::{Added, EVENTS, Tracing};

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
    /// Run commands.
    Run(Box<IoArgs>),
}

/// How commands are run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IoArgs {
    /// The commands; from the standard input where there are none.
    pub commands: Vec<String>,
    /// How the image is opened, when there is one.
    pub open: OpenCommand,
    /// Whether the image is given as a list of options.
    pub image_opts: bool,
    /// `-f`.
    pub format: Option<String>,
    /// The image.
    pub file: Option<String>,
    /// `-m`: buffers are not aligned for direct I/O.
    pub misalign: bool,
    /// `--object`.
    pub objects: Vec<ObjectDef>,
    /// What does the I/O.
    pub executor: Executor,
    /// What to open of the names that images hold.
    pub image_names: ImageNames,
}

/// The options.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option(&["cmd"], "c", Some("COMMAND"), "run a command; may be repeated"),
    option(&["format"], "f", Some("FMT"), "format of the image (default: probed)"),
    option(&["image-opts"], "", None, "FILE is an option list such as driver=qcow2,file.filename=a.qcow2"),
    option(&["read-only"], "r", None, "open the image for reading"),
    option(&["snapshot"], "s", None, "write to an overlay that goes in the end"),
    option(&["copy-on-read"], "C", None, "keep what is read from backing files"),
    option(&["nocache"], "n", None, "the same as -t none"),
    option(&["cache"], "t", Some("CACHE"), "cache mode (default: writethrough)"),
    option(&["discard"], "d", Some("MODE"), "ignore or unmap (default: unmap)"),
    option(&["aio"], "i", Some("AIO"), "threads, native or io_uring"),
    option(&["native-aio"], "k", None, "the same as -i native"),
    option(&["misalign"], "m", None, "use buffers that are not aligned"),
    option(&["force-share"], "U", None, "open the image even while another process writes to it"),
    option(
        &["object"],
        "",
        Some("OBJDEF"),
        "define an object, such as a secret or tls-creds-x509; may be repeated",
    ),
    option(&["trace"], "T", Some("TRACE"), "trace events: [[enable=]PATTERN][,events=FILE][,file=FILE]"),
    option(&["executor"], "", Some("tokio|monoio|glommio"), "what does the I/O (default: tokio)"),
    option(
        &["image-names"],
        "",
        Some("follow|plain|forbid"),
        "what to open of the file names that images hold: all, paths alone, or none (default: follow)",
    ),
    option(&["help"], "h", None, "print this help and exit"),
    option(&["version"], "V", None, "print the version and exit"),
    docs::COMPLETIONS,
    docs::MAN,
];

/// What manual page and completions are made from.
fn docs() -> docs::Tool {
    let line = |spec: &command::Spec| (format!("{} {}", spec.name, spec.usage).trim().to_owned(), spec.about);
    docs::Tool {
        summary: "reads and writes disk images by hand",
        subject: "Disk images",
        reference: "qemu-io",
        operands: "[FILE]",
        description: &[
            "Reads and writes a disk image by commands, which come from -c or from the standard input.",
            "Offsets and lengths are bytes, or end in k, M, G, T, P or E (powers of 1024). The command help, with the name \
             of another, says more about that one.",
        ],
        options: OPTIONS,
        commands: Vec::new(),
        lines: command::COMMANDS.iter().map(line).collect(),
        exit: "0 when all commands did what they should, 1 when one failed or the image could not be opened.",
    }
}

/// Reads a command line; `argv[0]` is the tool's path.
///
/// # Errors
/// What is wrong with it.
pub fn parse(argv: &[String], name: &str) -> Result<Invocation, Failure> {
    let mut args = IoArgs::default();
    let mut warnings = Vec::new();
    let mut tracing = Tracing::default();
    let mut getopt = Getopt::new(OPTIONS, Order::Permute, argv.to_vec());
    while let Some(parsed) = getopt.next_option() {
        let (option, value) = parsed.recognized().map_err(|failure| failure.after(warnings.clone()))?;
        let print = |text| {
            let tracing = Tracing::default();
            Ok(Invocation { warnings: Vec::new(), tracing, action: Action::Print(text) })
        };
        match option {
            "help" => return print(help::of_tool(name)),
            "version" => return print(help::version(name)),
            "man" => return print(docs().man(name)),
            "completions" => return print(docs().completions(name, &value)?),
            "trace" => match tracing.add(&value)? {
                Added::Help => return print(EVENTS.into()),
                Added::Warnings(more) => warnings.extend(more),
            },
            "object" => match parse_object(&value).map_err(Failure::new)? {
                ObjectArg::Help(text) => return print(text),
                ObjectArg::Define(object) => {
                    add_object(&mut args.objects, object).map_err(Failure::new)?;
                }
            },
            _ => set(&mut args, option, value).map_err(|failure| failure.after(warnings.clone()))?,
        }
    }
    match getopt.take_operands().as_slice() {
        [] => {}
        [file] => args.file = Some(file.clone()),
        _ => return Err(Failure::usage("Expecting one image file name").after(warnings)),
    }
    if args.image_opts && args.format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive").after(warnings));
    }
    Ok(Invocation { warnings, tracing, action: Action::Run(Box::new(args)) })
}

fn set(args: &mut IoArgs, option: &str, value: String) -> Result<(), Failure> {
    let refused = |refusal| match refusal {
        Refusal::Reported(text) | Refusal::Said(text) | Refusal::Complained(text) => Failure::new(text),
        Refusal::Usage(_) | Refusal::After(..) => unreachable!("a value alone is refused"),
    };
    match option {
        "cmd" => args.commands.push(value),
        "format" => args.format = Some(value),
        "image-opts" => args.image_opts = true,
        "read-only" => args.open.read_only = true,
        "snapshot" => args.open.snapshot = true,
        "copy-on-read" => args.open.copy_on_read = true,
        "nocache" => args.open.cache = Some(CacheMode { direct: true, ..CacheMode::WRITEBACK }),
        "cache" => args.open.cache = Some(command::cache(&value).map_err(refused)?),
        "discard" => args.open.discard = Some(command::discard(&value).map_err(refused)?),
        "aio" => args.open.aio = Some(command::aio(&value).map_err(refused)?),
        "native-aio" => args.open.aio = Some(drystone_core::intent::Aio::Native),
        "misalign" => args.misalign = true,
        "force-share" => args.open.force_share = true,
        "executor" => args.executor = parse_executor(&value)?,
        "image-names" => args.image_names = parse_image_names(&value)?,
        other => unreachable!("an option of the table: {other}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, Failure> {
        let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&argv, "drystone-io")
    }

    #[test]
    fn options_and_commands_mix() {
        let invocation = parsed("io -rf raw -c length a.img -c map --cache=none").expect("legal");
        let Action::Run(args) = invocation.action else { panic!("commands are run") };
        assert_eq!((args.commands.join(" "), args.file.as_deref()), ("length map".into(), Some("a.img")));
        assert_eq!((args.format.as_deref(), args.open.read_only), (Some("raw"), true));
        assert!(args.open.cache.is_some_and(|cache| cache.direct && !cache.writethrough));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "io a b",
            "io -Z",
            "io -f",
            "io -t foo",
            "io -d foo",
            "io -i foo",
            "io --object foo",
            "io --image-opts -f raw x",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
