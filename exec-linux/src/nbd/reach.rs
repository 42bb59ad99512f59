//! Reaching a server: from its address to a socket that is connected. On a thread that may wait.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::time::{Duration, Instant};

use drystone_core::intent::Errno;
use drystone_core::protocol::nbd::{InetFamily, InetHow, NbdAddress};
use nix::sys::socket::VsockAddr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::connect::Refused;
use super::resolve::resolve;

/// Bytes of a name in the kernel's namespace at the most: those of a path, without the zero in front.
const ABSTRACT_MAX: usize = 107;

/// Connects to a server. The descriptor does not block.
pub(super) fn reach(server: &NbdAddress, deadline: Instant) -> Result<OwnedFd, Refused> {
    let failed = |error: io::Error| -> Refused {
        let errno = super::errno_of(&error);
        (errno, format!("Failed to connect to '{server}': {errno}").into())
    };
    match server {
        NbdAddress::Unix { path } => unblocked(UnixStream::connect(path)).map_err(failed),
        NbdAddress::Abstract { name, tight } => {
            let connect = |address: UnixAddress| unblocked(UnixStream::connect_addr(&address));
            abstract_address(name, *tight).and_then(connect).map_err(failed)
        }
        NbdAddress::Vsock { cid, port } => to_vsock(*cid, *port, deadline).map_err(failed),
        NbdAddress::Fd { number } => inherited(*number),
        NbdAddress::Inet { host, port, how } => {
            let addresses = resolve(host, port).map_err(|why| -> Refused { (Errno::EIO, why.into()) })?;
            let mut last = io::Error::from_raw_os_error(Errno::ENXIO.0);
            let addresses = of_family(addresses, how.family);
            if addresses.is_empty() {
                let why = format!(
                    "address resolution failed for {server}: Address family for hostname not supported"
                );
                return Err((Errno::EIO, why.into()));
            }
            for address in addresses {
                match to_inet(&address, *how, deadline) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => last = error,
                }
            }
            Err(failed(last))
        }
    }
}

/// The time until then; none where it is over.
pub(super) fn left_until(deadline: Instant) -> Option<Timespec> {
    let left = deadline.saturating_duration_since(Instant::now());
    let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    (!left.is_zero()).then_some(time)
}

fn unblocked(stream: io::Result<UnixStream>) -> io::Result<OwnedFd> {
    let stream = stream?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

fn abstract_address(name: &str, tight: bool) -> io::Result<UnixAddress> {
    let mut name = name.as_bytes().to_vec();
    if !tight {
        name.resize(name.len().max(ABSTRACT_MAX), 0);
    }
    UnixAddress::from_abstract_name(name)
}

/// A copy of a descriptor, so that whoever opened it may close it; only this process's own are looked at.
fn inherited(number: i32) -> Result<OwnedFd, Refused> {
    let none =
        |_| -> Refused { (Errno::EINVAL, format!("File descriptor '{number}' is not a socket").into()) };
    let failed = |error: rustix::io::Errno| -> Refused {
        (Errno(error.raw_os_error()), format!("Failed to take descriptor {number}: {error}").into())
    };
    let this = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed)?;
    let socket = pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).map_err(none)?;
    sockopt::socket_type(&socket).map_err(none)?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
    Ok(socket)
}

/// The addresses of a kind. A host without any of IPv6 is reached all the same, at those that stand for its others.
fn of_family(addresses: Vec<SocketAddr>, family: Option<InetFamily>) -> Vec<SocketAddr> {
    let kept = |wanted: fn(&SocketAddr) -> bool| addresses.iter().copied().filter(wanted).collect::<Vec<_>>();
    match family {
        None => addresses,
        Some(InetFamily::V4) => kept(SocketAddr::is_ipv4),
        Some(InetFamily::V6) if addresses.iter().any(SocketAddr::is_ipv6) => kept(SocketAddr::is_ipv6),
        Some(InetFamily::V6) => {
            let mapped = |address: &SocketAddr| match address.ip() {
                IpAddr::V4(number) => SocketAddr::new(number.to_ipv6_mapped().into(), address.port()),
                IpAddr::V6(_) => *address,
            };
            addresses.iter().map(mapped).collect()
        }
    }
}

fn to_inet(address: &SocketAddr, how: InetHow, deadline: Instant) -> io::Result<OwnedFd> {
    let stream = match how.multipath {
        true => {
            let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let socket = stream_socket(family, Some(ipproto::MPTCP))?;
            settle(&socket, rustix::net::connect(&socket, address), deadline)?;
            TcpStream::from(socket)
        }
        false => {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            TcpStream::connect_timeout(address, left)?
        }
    };
    sockopt::set_socket_keepalive(&stream, how.keep_alive)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

fn to_vsock(cid: u32, port: u32, deadline: Instant) -> io::Result<OwnedFd> {
    let socket = stream_socket(AddressFamily::VSOCK, None)?;
    let connected = nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(cid, port));
    settle(&socket, connected.map_err(|error| rustix::io::Errno::from_raw_os_error(error as i32)), deadline)?;
    Ok(socket)
}

fn stream_socket(family: AddressFamily, protocol: Option<Protocol>) -> rustix::io::Result<OwnedFd> {
    socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)
}

/// Waits until a connection that begins to be made is there.
fn settle(socket: &OwnedFd, begun: rustix::io::Result<()>, deadline: Instant) -> io::Result<()> {
    match begun {
        Err(rustix::io::Errno::INPROGRESS) => {}
        begun => return Ok(begun?),
    }
    loop {
        let left = left_until(deadline).ok_or(io::Error::from_raw_os_error(Errno::ETIMEDOUT.0))?;
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&left)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(sockopt::socket_error(socket)??),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn names_that_the_kernel_keeps_are_tight_or_filled_up() {
        for tight in [true, false] {
            let name = format!("drystone-{}-{tight}", std::process::id());
            let address = abstract_address(&name, tight).expect("it is short");
            let _listener = UnixListener::bind_addr(&address).expect("nobody else has it");
            let found = |tight| reach(&NbdAddress::Abstract { name: name.clone(), tight }, soon()).is_ok();
            assert!(found(tight) && !found(!tight), "{tight}");
        }
        assert!(abstract_address(&"x".repeat(ABSTRACT_MAX + 1), false).is_err());
    }

    #[test]
    fn a_host_has_addresses_of_a_kind() {
        let all = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let (both, fours) = (all(&["[::1]:5", "1.2.3.4:5"]), all(&["1.2.3.4:5"]));
        for (given, family, expected) in [
            (&both, None, both.clone()),
            (&both, Some(InetFamily::V4), fours.clone()),
            (&both, Some(InetFamily::V6), all(&["[::1]:5"])),
            (&fours, Some(InetFamily::V6), all(&["[::ffff:1.2.3.4]:5"])),
            (&all(&["[::1]:5"]), Some(InetFamily::V4), Vec::new()),
        ] {
            assert_eq!(of_family(given.clone(), family), expected, "{given:?}, {family:?}");
        }
    }

    #[test]
    fn a_host_is_reached_as_it_is_said() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a loopback");
        let port = listener.local_addr().expect("it is bound").port().to_string();
        let reached = |how| {
            let server = NbdAddress::Inet { host: "127.0.0.1".into(), port: port.clone(), how };
            reach(&server, soon())
        };
        let plain = InetHow::default();
        let kept = |socket: &OwnedFd| sockopt::socket_keepalive(socket).expect("it is a socket");
        assert!(!kept(&reached(plain).expect("it listens")));
        assert!(kept(&reached(InetHow { keep_alive: true, ..plain }).expect("it listens")));
        reached(InetHow { family: Some(InetFamily::V4), ..plain }).expect("it listens");
        // Where the kernel has it; a listener without it is reached all the same.
        if stream_socket(AddressFamily::INET, Some(ipproto::MPTCP)).is_ok() {
            let socket = reached(InetHow { multipath: true, ..plain }).expect("it listens");
            assert_eq!(sockopt::socket_protocol(&socket).expect("it is a socket"), Some(ipproto::MPTCP));
        }
    }
}
