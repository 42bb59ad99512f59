//! An engine on a thread without an async runtime.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::client::Client;
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::session::Session;

/// Runs `main` with an engine on this thread, which sleeps in the kernel while there is nothing to do.
///
/// Returns when `main` has, and everything that it left in flight has ended. For programs that want no runtime: there
/// are no tasks but `main`.
///
/// ```
/// use drystone_core::buf::Buf;
/// use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
/// use drystone_core::intent::Location;
/// use drystone_exec_linux::{Config, run};
///
/// let location = Location::Null { len: 1 << 20, read_zeroes: true };
/// let spec = NodeSpec { node_name: None, mode: OpenMode::default(), driver: DriverSpec::Leaf(location) };
/// run(Config::default(), async |client| {
///     let disk = client.open(&spec).await?;
///     let (data, result) = disk.read(0, Buf::from(&b"anything"[..])).await;
///     result?;
///     assert!(data.is_zero());
///     disk.close().await
/// })?
/// .expect("null leaves do not fail");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// The kernel's, where it refuses what `config` asks for.
pub fn run<T>(config: Config, main: impl AsyncFnOnce(Client) -> T) -> io::Result<T> {
    let session = Session::new(&config)?;
    let alarm = Arc::new(Alarm {
        woken: AtomicBool::new(true),
        asleep: AtomicBool::new(false),
        bell: session.bell(),
    });
    let waker = Waker::from(Arc::clone(&alarm));
    let mut cx = Context::from_waker(&waker);
    let mut main = pin!(main(Client::new(Rc::clone(&session))));
    let value = loop {
        if alarm.woken.swap(false, Ordering::AcqRel)
            && let Poll::Ready(value) = main.as_mut().poll(&mut cx)
        {
            break value;
        }
        session.pump()?;
        if !alarm.woken.load(Ordering::Acquire) {
            alarm.asleep.store(true, Ordering::SeqCst);
            if !alarm.woken.load(Ordering::SeqCst) {
                session.wait()?;
            }
            alarm.asleep.store(false, Ordering::Relaxed);
        }
    };
    session.close();
    loop {
        session.pump()?;
        if session.is_over() {
            return Ok(value);
        }
        session.wait()?;
    }
}

/// Wakes the thread, wherever the waking comes from. It rings only for one that sleeps, or is about to: that one says so
/// and then looks once more whether it was woken; who wakes says so and then looks whether it sleeps.
struct Alarm {
    woken: AtomicBool,
    asleep: AtomicBool,
    bell: Arc<Doorbell>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.bell.ring();
        }
    }
}
