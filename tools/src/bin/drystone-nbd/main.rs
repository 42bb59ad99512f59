//! `drystone-nbd`: connects the command line to the server. `image` opens what is served, `listen` makes the sockets,
//! `device` shows it as a disk of the kernel, `background` has the process go on by itself, `serve` puts them together.

mod background;
#[path = "../shared/console.rs"]
mod console;
mod device;
#[path = "../shared/events.rs"]
mod events;
mod image;
mod listen;
#[path = "../shared/overlay.rs"]
mod overlay;
mod serve;

use std::process::ExitCode;

use console::say;
use drystone_exec_linux::{Config, list_exports};
use drystone_tools::img::args::{tool_name, words};
use drystone_tools::message::{Failure, Message, legible};
use drystone_tools::nbd::args::{self, Action, ListArgs};
use drystone_tools::nbd::list;
use drystone_tools::object::{find_tls, tls_credentials};

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
        match invocation.action {
            Action::Print(text) => console::put(&legible(&text, false)).map(|()| 0),
            Action::List(args) => list_them(&args, &name),
            Action::Disconnect(path) => {
                device::disconnect(&path)?;
                console::put(&legible(&format!("{path} disconnected\n"), false)).map(|()| 0)
            }
            Action::Serve(args) if args.goes_on_in_background() && !background::is_child() => {
                background::start(&argv)
            }
            Action::Serve(args) => serve::run(&args, &name, Config { trace, ..Config::default() }),
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

/// Lists the exports of a server.
fn list_them(args: &ListArgs, name: &str) -> Result<u8, Failure> {
    if listen::inherited(name, args.address_said)?.is_some() {
        return Err(Failure::new("List mode is incompatible with socket activation"));
    }
    let failed = |text: String| Failure::new(format!("Failed to get TLS creds: {text}"));
    let credentials = tls_credentials(&args.tls.objects).map_err(Failure::new)?;
    let client = match &args.tls.credentials {
        None => None,
        Some(id) => {
            let found = find_tls(&args.tls.objects, &credentials, id).map_err(failed)?;
            Some((found.for_client().map_err(|text| failed(text.into()))?, args.hostname.as_deref()))
        }
    };
    let exports = list_exports(&args.server, client).map_err(Failure::new)?;
    console::put(&legible(&list::render(&exports), false)).map(|()| 0)
}
