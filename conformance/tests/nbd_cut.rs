//! Connections that end after any byte of a session, plain or encrypted, on every executor: the other side ends with an
//! error or goes on with a new connection; nothing hangs, and nothing is left behind.
//!
//! By itself in its process, because it counts the descriptors and threads of all of it. A byte in so many is tried, so
//! that all executors together try each.

#[path = "../../tools/tests/authority/mod.rs"]
#[allow(dead_code, reason = "other tests revoke certificates and let them expire")]
mod authority;

use std::path::Path;
use std::time::{Duration, Instant};

use authority::{Authority, Time};
use drystone_conformance::over_nbd::{Proxy, Served, at, give_credentials, raw_on};
use drystone_conformance::qemu::Folder;
use drystone_conformance::real::{Executor, Machine, RealRunner};
use drystone_conformance::scenario::{Ask, RunError, Runner};
use drystone_conformance::wire::Towards;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Op;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_core::intent::Fua;
use drystone_core::protocol::nbd::NbdTls;
use drystone_exec_linux::{BackendKind, TlsCredentials, TlsEndpoint, X509Folder};

const LEN: usize = 4096;

/// How long what was used may take to be given back.
const PATIENCE: Duration = Duration::from_secs(20);

/// Threads that may be there beside those that there were at first: pools grow while a machine is busy, but not with every
/// session.
const THREADS_MORE: usize = 16;

/// Descriptors and threads of this process.
fn used() -> (usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).expect("the kernel tells").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// Waits until no more is used than before.
fn settles(before: (usize, usize), when: &str) {
    let begun = Instant::now();
    loop {
        let now = used();
        if now.0 <= before.0 && now.1 <= before.1 + THREADS_MORE {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{when}: descriptors and threads {before:?} became {now:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn credentials(folder: &Path, endpoint: TlsEndpoint) -> TlsCredentials {
    let folder = X509Folder {
        dir: folder.to_owned(),
        endpoint,
        verify_peer: true,
        sanity_check: true,
        priority: None,
    };
    TlsCredentials::load(&folder).expect("they were made for this")
}

/// Opens, writes, makes durable, reads, and closes; the first error, if there is one.
fn session(client: &Machine, spec: &NodeSpec, byte: u8) -> Result<(), RunError> {
    let mut runner = RealRunner::new(client);
    runner.open(spec)?;
    let mut result: Result<(), RunError> = Ok(());
    for (tag, op) in [Op::Write(Fua::No), Op::Flush, Op::Read].into_iter().enumerate() {
        let data: BufList = match op {
            Op::Flush => BufList::new(),
            _ => Buf::from(vec![byte; 20]).into(),
        };
        runner.submit(vec![Ask {
            op,
            offset: if op == Op::Flush { 0 } else { 7 },
            len: 0,
            data,
            tag: tag as u64,
        }]);
        let reply = runner.wait()?;
        if reply.result.is_ok() && op == Op::Read {
            assert_eq!(*reply.data.into_single(), [byte; 20], "what was written is read");
        }
        result = result.and(reply.result.map_err(RunError::from));
    }
    let closed = runner.close();
    result.and(closed)
}

/// Cuts sessions off after every `stride`th byte of each way, from `first` on; returns how many were.
fn cut_everywhere(
    (server, client): (&Machine, &Machine),
    encrypted: bool,
    (first, stride): (u64, u64),
    name: &str,
) -> u64 {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.raw"), vec![1; LEN]).expect("the folder is ours");
    let mut tls = None;
    if encrypted {
        let authority = Authority::new("ours");
        authority.folder(&path("pki"));
        authority.sign(&path("pki"), "server", Time::Holds);
        authority.sign(&path("pki"), "client", Time::Holds);
        let of_server = credentials(&path("pki"), TlsEndpoint::Server);
        tls = Some(of_server.for_server().expect("it is one").clone());
        give_credentials(client, "t", credentials(&path("pki"), TlsEndpoint::Client));
    }
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let file = NodeSpec::raw(NodeSpec::file(path("a.raw").to_str().expect("a plain name"), mode));
    let served = Served::begin(server, &file, &path("server"), tls).expect("it opens");
    let proxy = Proxy::start(&path("proxy"), &served.path);
    let mut location = at(&proxy.path);
    if encrypted {
        location.tls = Some(NbdTls { credentials: "t".into(), hostname: Some("localhost".into()) });
    }
    session(client, &raw_on(location.clone()), 2).expect("nothing is in its way");
    std::thread::sleep(Duration::from_millis(50));
    let before = used();
    let mut tried = 0;
    for towards in [Towards::Server, Towards::Client] {
        for turn in 0.. {
            let after = first + turn * stride;
            let when = format!("{name}, cut {towards:?} after {after} bytes");
            location.connections = 1 + turn as usize / 2 % 2;
            location.reconnect_delay = Duration::from_secs(if turn % 2 == 0 { 60 } else { 0 });
            let (spec, byte) = (raw_on(location.clone()), turn as u8 | 1);
            let connections = proxy.connections();
            proxy.cut(towards, after);
            let result = session(client, &spec, byte);
            settles(before, &when);
            match result {
                Ok(()) => {}
                Err(error) => {
                    assert!(proxy.was_cut(), "{when}: {error}");
                    // Who has a connection once, and time, makes another.
                    let opened = proxy.connections() > connections + 1;
                    assert!(turn % 2 == 1 || !opened, "{when}: {error}");
                }
            }
            tried += 1;
            if !proxy.was_cut() {
                assert!(after > 150, "{when}: a session is longer");
                break;
            }
        }
    }
    drop(proxy);
    served.close().expect("the image is as it was");
    tried
}

#[test]
fn a_connection_may_end_after_any_byte() {
    let machines: Vec<Machine> = Executor::ALL
        .into_iter()
        .map(|executor| Machine::start(executor, BackendKind::Auto).expect("every kernel has threads"))
        .collect();
    for (encrypted, stride) in [(false, 3), (true, 21)] {
        let mut tried = 0;
        for turn in 0..3 {
            let pair = (&machines[turn], &machines[(turn + 1) % 3]);
            let name = format!("{:?} serves {:?}", Executor::ALL[turn], Executor::ALL[(turn + 1) % 3]);
            tried += cut_everywhere(pair, encrypted, (turn as u64 * stride / 3, stride), &name);
        }
        assert!(tried > 200, "{tried} cuts are too few for a session");
    }
}
