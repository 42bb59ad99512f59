//! `drystone-io`: connects the commands to the engine.

mod background;
#[path = "../shared/console.rs"]
mod console;
mod debug;
#[path = "../shared/events.rs"]
mod events;
mod input;
mod open;
#[path = "../shared/overlay.rs"]
mod overlay;
mod shell;
mod show;
mod transfer;

use std::process::ExitCode;

use console::say;
use drystone_exec_linux::{Client, Config};
use drystone_tools::img::args::{Executor, tool_name, words};
use drystone_tools::io::args::{self, Action, IoArgs};
use drystone_tools::message::{Failure, Message, legible};
use drystone_tools::object::{give_objects, tls_credentials};
use drystone_tools::polling::{POLLING_VARIABLE, polling};
use shell::Shell;

fn main() -> ExitCode {
    let argv = match words(std::env::args_os()) {
        Ok(argv) => argv,
        Err(failure) => {
            say(&failure.render(env!("CARGO_BIN_NAME")));
            return ExitCode::from(failure.code);
        }
    };
    let name = tool_name(&argv).to_owned();
    let outcome = args::parse(&argv, &name).and_then(|invocation| {
        for warning in invocation.warnings {
            say(&Message::Warning(warning).render(&name));
        }
        let trace = invocation.tracing.start()?;
        let polling = polling(std::env::var_os(POLLING_VARIABLE).as_deref())?;
        match invocation.action {
            Action::Print(text) => {
                print(&text);
                Ok(true)
            }
            Action::Run(args) => run(*args, name.clone(), Config { trace, polling, ..Config::default() }),
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            say(&failure.render(&name));
            ExitCode::from(failure.code)
        }
    }
}

/// Runs the commands on the executor that was asked for. Tells whether all of them succeeded.
fn run(args: IoArgs, name: String, config: Config) -> Result<bool, Failure> {
    let executor = args.executor;
    let credentials = tls_credentials(&args.objects).map_err(Failure::new)?;
    let commands = async |client: Client| {
        give_objects(&client, &args.objects, credentials);
        Shell::new(client, args, name).run().await
    };
    let ran = match executor {
        Executor::Tokio => drystone_exec_tokio::run(config, commands),
        Executor::Monoio => drystone_exec_monoio::run(config, commands),
        Executor::Glommio => drystone_exec_glommio::run(config, commands),
    };
    ran.map_err(|error| Failure::new(format!("the executor could not start: {error}")))
}

/// Writes to the standard output, at once. Where that fails, there is nobody who listens.
fn print(text: &str) {
    let _ = console::put(&legible(text, false));
}
