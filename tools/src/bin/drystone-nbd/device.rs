//! Showing an export as a device of the kernel: a thread that connects it and waits in the kernel until it ends.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use drystone_exec_linux::{NbdDevice, io_error_words};
use drystone_tools::message::{Failure, Message};
use drystone_tools::nbd::args::ServeArgs;

use crate::background;

/// The thread of a device.
pub struct Feeding(JoinHandle<Result<(), String>>);

/// Has a device let go of its export.
pub fn disconnect(path: &str) -> Result<(), Failure> {
    open(path).map_err(|why| Failure::new(format!("Cannot open {path}: {why}")))?.disconnect();
    Ok(())
}

fn open(path: &str) -> Result<NbdDevice, String> {
    NbdDevice::open(Path::new(path)).map_err(|error| io_error_words(&error))
}

/// Has a device show the export, which is being served. When that fails, or has come to its end, `ended` says so.
pub fn feed(path: &str, args: &ServeArgs, tool: &str, mut ended: UnixStream) -> Result<Feeding, Failure> {
    let device = open(path).map_err(|why| Failure::new(format!("Failed to open {path}: {why}")))?;
    let (args, path, tool) = (args.clone(), path.to_owned(), tool.to_owned());
    let work = move || {
        let fed = feed_to_end(device, &args, &path, &tool);
        // Nobody waits for it any more where that fails.
        let _ = ended.write_all(&[0]);
        fed
    };
    let spawned = std::thread::Builder::new().name("nbd-device".into()).spawn(work);
    spawned.map(Feeding).map_err(|error| Failure::new(format!("Failed to create client thread: {error}")))
}

fn feed_to_end(device: NbdDevice, args: &ServeArgs, path: &str, tool: &str) -> Result<(), String> {
    let attached = device.attach(&args.address, &args.name)?;
    // The kernel looks for partitions when somebody opens the device, which works only once it is being served.
    let (shown, verbose) = (path.to_owned(), args.verbose);
    let look = move || drop(std::fs::File::open(shown));
    std::thread::Builder::new().name("nbd-look".into()).spawn(look).map_err(|error| error.to_string())?;
    if background::is_child() {
        background::detach(args.verbose).map_err(|failure| failure.render(tool))?;
    } else if verbose {
        crate::say(
            &Message::Plain(format!("NBD device {path} is now connected to {}", args.file)).render(tool),
        );
    }
    attached.serve().map_err(|error| format!("'{path}' ended: {error}"))
}

impl Feeding {
    /// Waits for the end, which the end of the server brings about.
    pub fn end(self) -> Result<(), Failure> {
        self.0.join().expect("the thread does not panic").map_err(Failure::new)
    }
}
