//! `drystone-img`: connects the command line to the engine. Each command has a module of its own.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
#[path = "../shared/console.rs"]
mod console;
mod convert;
mod create;
mod dd;
#[path = "../shared/events.rs"]
mod events;
mod image;
mod info;
mod interrupt;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use console::say;
use drystone_exec_linux::{Client, Config};
use drystone_tools::img::args::{self, Action, Command, Common, Executor};
use drystone_tools::img::progress::{Line, Progress};
use drystone_tools::message::{Failure, Message, legible};
use drystone_tools::object::{give_objects, tls_credentials};
use drystone_tools::polling::{POLLING_VARIABLE, polling};

/// What the tool calls its formats, for `--help` and for checking `-f` and `-O`.
const FORMATS: &[&str] = &[
    "bochs",
    "cloop",
    "dmg",
    "file",
    "host_device",
    "luks",
    "nbd",
    "null-co",
    "nvme",
    "parallels",
    "qcow",
    "qcow2",
    "qed",
    "raw",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

fn main() -> ExitCode {
    let argv = match args::words(std::env::args_os()) {
        Ok(argv) => argv,
        Err(failure) => {
            say(&failure.render(env!("CARGO_BIN_NAME")));
            return ExitCode::from(failure.code);
        }
    };
    let name = args::tool_name(&argv).to_owned();
    let outcome = args::parse(&argv).and_then(|invocation| {
        for warning in invocation.warnings {
            say(&Message::Warning(warning).render(&name));
        }
        let trace = invocation.tracing.start()?;
        let polling = polling(std::env::var_os(POLLING_VARIABLE).as_deref())?;
        match invocation.action {
            Action::Help => print(&args::tool_help(&name, FORMATS)).map(|()| 0),
            Action::Print(text) => print(&text).map(|()| 0),
            Action::Run(command) => run(*command, &name, Config { trace, polling, ..Config::default() }),
        }
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            say(&failure.render(&name));
            ExitCode::from(failure.code)
        }
    }
}

fn run(command: Command, name: &str, config: Config) -> Result<u8, Failure> {
    match command {
        Command::Amend(args) => {
            on(&args.common.clone(), config, async |client| amend::run(&client, &args).await)
        }
        Command::Bench(args) => {
            on(&args.common.clone(), config, async |client| bench::run(&client, &args).await)
        }
        Command::Bitmap(args) => {
            on(&args.common.clone(), config, async |client| bitmap::run(&client, &args).await)
        }
        Command::Check(args) => {
            on(&args.common.clone(), config, async |client| check::run(&client, &args).await)
        }
        Command::Commit(args) => {
            on(&args.common.clone(), config, async |client| commit::run(&client, &args).await)
        }
        Command::Compare(args) => {
            on(&args.common.clone(), config, async |client| compare::run(&client, &args).await)
        }
        Command::Convert(args) => {
            on(&args.common.clone(), config, async |client| convert::run(&client, &args, name).await)
        }
        Command::Create(args) => {
            on(&args.common.clone(), config, async |client| create::run(&client, &args).await)
        }
        Command::Dd(args) => {
            on(&args.common.clone(), config, async |client| dd::run(&client, &args, name).await)
        }
        Command::Info(args) => {
            on(&args.common.clone(), config, async |client| info::run(&client, &args).await)
        }
        Command::Map(args) => on(&args.common.clone(), config, async |client| map::run(&client, &args).await),
        Command::Measure(args) => {
            on(&args.common.clone(), config, async |client| measure::run(&client, &args).await)
        }
        Command::Rebase(args) => {
            on(&args.common.clone(), config, async |client| rebase::run(&client, &args).await)
        }
        Command::Resize(args) => {
            on(&args.common.clone(), config, async |client| resize::run(&client, &args).await)
        }
        Command::Snapshot(args) => {
            on(&args.common.clone(), config, async |client| snapshot::run(&client, &args).await)
        }
    }
}

/// Runs a command on the executor that was asked for.
fn on(
    common: &Common,
    config: Config,
    command: impl AsyncFnOnce(Client) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let credentials = tls_credentials(&common.objects).map_err(Failure::new)?;
    let command = async move |client: Client| {
        let watched = client.clone();
        give_objects(&client, &common.objects, credentials);
        let result = command(client).await;
        events::tell_events(&watched);
        result
    };
    let ran = match common.executor {
        Executor::Tokio => drystone_exec_tokio::run(config, command),
        Executor::Monoio => drystone_exec_monoio::run(config, command),
        Executor::Glommio => drystone_exec_glommio::run(config, command),
    };
    ran.unwrap_or_else(|error| Err(Failure::new(format!("the executor could not start: {error}"))))
}

/// Writes to the standard output, progress lines too.
fn print(text: &str) -> Result<(), Failure> {
    console::put(&legible(text, true))
}

/// Shows how far a command is.
fn tell(progress: &mut Progress, done: u64, of: u64) {
    show(progress.update(done, of));
}

/// Writes a line of progress, where one is due. What cannot be written does not stop the command.
fn show(line: Option<Line>) {
    match line {
        Some(Line::Output(text)) => drop(print(&text)),
        Some(Line::Error(text)) => drop(std::io::stderr().lock().write_all(text.as_bytes())),
        None => {}
    }
}

/// Whether the standard output is a terminal.
fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}
