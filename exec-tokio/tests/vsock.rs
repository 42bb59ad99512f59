//! An image that is served between a virtual machine and its host, or within one where the kernel has a loopback for that.
//!
//! Where it has none, there is nothing to connect to; `conformance/vm` runs this in a guest that has one.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use drystone_core::buf::{Buf, BufList};
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_filename;
use drystone_core::protocol::nbd::server::Export;
use drystone_exec_tokio::{Client, Config, Image, NbdExport, NbdPlan, run};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, getsockname, listen, socket,
};

/// This machine. Source: vsock(7).
const LOCAL: u32 = 1;

/// Any machine, or any port.
const ANY: u32 = u32::MAX;

fn new_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// A socket that listens, and its port.
fn listener() -> nix::Result<(OwnedFd, u32)> {
    let socket = new_socket()?;
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY, ANY))?;
    listen(&socket, Backlog::new(8)?)?;
    let address: VsockAddr = getsockname(socket.as_raw_fd())?;
    Ok((socket, address.port()))
}

async fn open(client: &Client, options: String) -> Image {
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let spec = from_filename(&format!("json:{options}"), None, mode).expect("plain options");
    client.open(&spec).await.expect("it is there")
}

#[test]
fn a_machine_reaches_its_own_server() {
    let reached = listener().and_then(|(kept, port)| {
        connect(new_socket()?.as_raw_fd(), &VsockAddr::new(LOCAL, port))?;
        drop(kept);
        Ok(())
    });
    if let Err(error) = reached {
        assert!(std::env::var_os("DRYSTONE_TEST_VSOCK").is_none(), "there should be a loopback: {error}");
        let _ = writeln!(std::io::stderr(), "skipped: this machine has no loopback of vsock ({error})");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![7; 1 << 20]).expect("room");
    let done = run(Config::default(), async |client| {
        let image = open(&client, format!(r#"{{"driver": "file", "filename": {file:?}}}"#)).await;
        let export =
            NbdExport { image: image.clone(), export: Export::new("", image.len()), bitmaps: Vec::new() };
        let (listener, port) = listener().expect("there was one before");
        let server = client.serve(NbdPlan::new(listener, vec![export])).expect("sockets are watched");
        let address = format!(r#"{{"type": "vsock", "cid": "{LOCAL}", "port": "{port}"}}"#);
        let leaf = format!(r#"{{"driver": "nbd", "connections": 3, "server": {address}}}"#);
        let disk = open(&client, format!(r#"{{"driver": "raw", "file": {leaf}}}"#)).await;
        disk.write(4096, BufList::from(Buf::from(vec![9; 70_000]))).await.1.expect("it is written");
        let (data, result) = disk.read(0, BufList::from(Buf::zeroed(1 << 20))).await;
        result.expect("it is read");
        let mut expected = vec![7; 1 << 20];
        expected[4096..][..70_000].fill(9);
        assert!(*data.into_single() == expected, "what was written is read");
        disk.close().await.expect("it is made durable");
        server.stop();
        server.ended().await;
        image.close().await.expect("it is made durable");
    });
    done.expect("it runs");
}
