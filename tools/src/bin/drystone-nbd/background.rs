//! Going on in the background: the tool starts itself anew, and ends once that one says that clients can connect.
//!
//! The new process says so on its standard output, which is a pipe; its standard error is the old one's until then.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use drystone_tools::message::Failure;

/// Tells the new process that it is one.
const CHILD: &str = "DRYSTONE_NBD_IN_BACKGROUND";

/// What the new process says once clients can connect.
const READY: &[u8] = b"ready";

/// Whether this is the process that goes on in the background.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Starts the process that goes on in the background, and waits until clients can connect, or for its exit code.
#[allow(clippy::zombie_processes, reason = "what goes on in the background outlives this process")]
pub fn start(argv: &[String]) -> Result<u8, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("Failed to fork: {error}"));
    let (name, arguments) = argv.split_first().expect("a command line has a name");
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(arguments).env(CHILD, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut said = Vec::new();
    let mut pipe = child.stdout.take().expect("it was asked for");
    pipe.read_to_end(&mut said).map_err(failed)?;
    if said == READY {
        return Ok(0);
    }
    let status = child.wait().map_err(failed)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Tells who started this process that clients can connect, and lets go of its terminal; of its standard error only
/// where nobody wants to hear of what goes wrong later.
pub fn detach(verbose: bool) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("Failed to daemonize: {error}"));
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    // Who leads a session already has let go of the terminal.
    let _ = rustix::process::setsid();
    let mut out = std::io::stdout().lock();
    out.write_all(READY).and_then(|()| out.flush()).map_err(failed)?;
    if !verbose {
        rustix::stdio::dup2_stderr(&nothing).map_err(|error| failed(error.into()))?;
    }
    rustix::stdio::dup2_stdout(&nothing).map_err(|error| failed(error.into()))
}
