//! Runs Drystone's engine on a glommio runtime.
//!
//! ```
//! use drystone_core::buf::Buf;
//! use drystone_core::graph::open::{NodeSpec, OpenMode};
//! use drystone_exec_glommio::{Config, run};
//!
//! let path = std::env::temp_dir().join(format!("drystone-glommio-{}", std::process::id()));
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
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;

use drystone_exec_linux::{Session, drive, try_io_uring};
use glommio::io::BufferedFile;
use glommio::{LocalExecutorBuilder, Task};

pub use drystone_exec_linux::{
    BackendKind, Client, Config, DirtyRanges, Handle, Image, NbdBitmap, NbdExport, NbdPlan, NbdServer,
    Polling, RemoteImage, Ticket, TlsClient, TlsCredentials, TlsEndpoint, TlsError, TlsServer, Transfer,
    X509Folder, list_exports,
};

/// Starts an engine on this thread; a task of its own drives it. Call it within a `LocalExecutor`.
///
/// # Errors
/// The kernel's, where it refuses what `config` asks for.
pub fn start(config: Config) -> io::Result<Client> {
    let session = Session::new(&config)?;
    spawn_driver(&session)?.detach();
    Ok(Client::new(session))
}

#[allow(unsafe_code)]
fn spawn_driver(session: &Rc<Session>) -> io::Result<Task<io::Result<()>>> {
    let fd = session.counter_fd()?.into_raw_fd();
    // SAFETY: nobody else owns the number that `into_raw_fd` gave.
    let counter = unsafe { BufferedFile::from_raw_fd(fd) };
    // glommio polls no descriptor, but it reads any asynchronously.
    let driver = drive(Rc::clone(session), async move || match counter.read_at(0, 8).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    });
    Ok(glommio::spawn_local(driver))
}

/// Builds an executor on this thread, and runs `main` in it with an engine.
///
/// Returns when `main` has, and everything that it left in flight has ended.
///
/// # Errors
/// The kernel's, where it refuses the executor or what `config` asks for.
pub fn run<T>(config: Config, main: impl AsyncFnOnce(Client) -> T) -> io::Result<T> {
    // glommio has no other way, and panics without.
    try_io_uring()?;
    let executor = LocalExecutorBuilder::default().make()?;
    executor.run(async {
        let session = Session::new(&config)?;
        let driver = spawn_driver(&session)?;
        let value = main(Client::new(Rc::clone(&session))).await;
        session.close();
        driver.await?;
        Ok(value)
    })
}
