//! What Drystone's executors share on Linux: open files, image locks, an io_uring, a pool of threads, and the
//! [`Client`] by which programs use an engine.
//!
//! ```text
//!   Client, Image ─▶ Session ─▶ Engine (core)
//!                       │ ▲
//!                intents▼ │outcomes
//!                     Backend ─▶ Ring (io_uring) ─▶ kernel
//!                       ├──────▶ Pool (threads)  ─▶ OpenLeaf: blocking calls
//!                       ├──────▶ Lanes (NVMe queue pairs, polled on this thread)
//!                       └──────▶ Links (NBD connections)
//! ```
//!
//! Knows nothing of any async runtime: a runtime's crate waits until [`Session::as_fd`](session::Session) is readable
//! and pumps. Start at [`client::Client`]; what one system call each does is in `leaf`.
#![deny(unsafe_code)]

mod backend;
mod blocking;
mod client;
mod config;
mod doorbell;
mod gather;
mod handle;
mod host;
mod image;
mod leaf;
mod limits;
mod lock;
#[cfg(feature = "nvme")]
mod namespace;
#[cfg(not(feature = "nvme"))]
#[path = "no_namespace.rs"]
mod namespace;
mod nbd;
mod opened;
mod page_cache;
mod pool;
mod promise;
mod ring;
mod session;
mod sync;
mod timer;
mod words;

pub use backend::Backend;
pub use blocking::run;
pub use client::Client;
pub use config::{BackendKind, Config, Polling, Trace};
pub use handle::{Handle, RemoteImage};
pub use host::Host;
pub use image::{Image, Transfer};
pub use nbd::device::{NbdAttached, NbdDevice};
pub use nbd::resolve::resolve;
pub use nbd::server::{DirtyRanges, NbdBitmap, NbdExport, NbdPlan, NbdServer};
pub use nbd::{TlsClient, TlsCredentials, TlsEndpoint, TlsError, TlsServer, X509Folder, list_exports};
pub use promise::Ticket;
pub use ring::try_io_uring;
pub use session::{Session, drive};
pub use words::io_error_words;
