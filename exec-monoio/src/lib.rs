//! Runs Drystone's engine on a monoio runtime.
//!
//! ```
//! use drystone_core::buf::Buf;
//! use drystone_core::graph::open::{NodeSpec, OpenMode};
//! use drystone_exec_monoio::{Config, run};
//!
//! let path = std::env::temp_dir().join(format!("drystone-monoio-{}", std::process::id()));
//! std::fs::write(&path, vec![0; 65536])?;
//! let mode = OpenMode { writable: true, ..OpenMode::default() };
//! let spec = NodeSpec::raw(NodeSpec::file(path.to_str().expect("UTF-8"), mode));
//!
//! run(Config::default(), async |client| {
//!     let disk = client.open(&spec).await?;
//!     disk.write(4096, Buf::from(&b"stones without mortar"[..])).await.1?;
//!     disk.flush().await?;
//!     let (data, result) = disk.read(4103, Buf::zeroed(7)).await;
//!     result?;
//!     assert_eq!(&*data.into_single(), b"without");
//!     disk.close().await
//! })?
//! .expect("a file that was just made");
//!
//! assert_eq!(&std::fs::read(&path)?[4096..4102], b"stones");
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), std::io::Error>(())
//! ```
#![deny(unsafe_code)]

use std::io;
use std::os::unix::net::UnixStream as Descriptor;
use std::rc::Rc;

use drystone_exec_linux::{Session, drive};
use monoio::net::UnixStream;
use monoio::task::JoinHandle;
use monoio::{FusionDriver, RuntimeBuilder};

pub use drystone_exec_linux::{
    BackendKind, Client, Config, DirtyRanges, Handle, Image, NbdBitmap, NbdExport, NbdPlan, NbdServer,
    Polling, RemoteImage, Ticket, TlsClient, TlsCredentials, TlsEndpoint, TlsError, TlsServer, Transfer,
    X509Folder, list_exports,
};

/// Starts an engine on this thread; a task of its own drives it. Call it within a runtime.
///
/// # Errors
/// The kernel's, where it refuses what `config` asks for.
pub fn start(config: Config) -> io::Result<Client> {
    let session = Session::new(&config)?;
    spawn_driver(&session)?;
    Ok(Client::new(session))
}

fn spawn_driver(session: &Rc<Session>) -> io::Result<JoinHandle<io::Result<()>>> {
    // monoio polls no descriptor but a socket's. It does nothing else with one than what is asked of it, and polling is
    // the same for all.
    let ready = UnixStream::from_std(Descriptor::from(session.readiness_fd()?))?;
    let driver = drive(Rc::clone(session), async move || ready.readable(false).await);
    Ok(monoio::spawn(driver))
}

/// Builds a runtime on this thread, and runs `main` in it with an engine.
///
/// Returns when `main` has, and everything that it left in flight has ended.
///
/// # Errors
/// The kernel's, where it refuses the runtime or what `config` asks for.
pub fn run<T>(config: Config, main: impl AsyncFnOnce(Client) -> T) -> io::Result<T> {
    let mut runtime = RuntimeBuilder::<FusionDriver>::new().build()?;
    runtime.block_on(async {
        let session = Session::new(&config)?;
        let driver = spawn_driver(&session)?;
        let value = main(Client::new(Rc::clone(&session))).await;
        session.close();
        driver.await?;
        Ok(value)
    })
}
