//! Encrypted connections: ours with ours, with the reference and with nbdkit, and everything that must not become one.

mod authority;
mod served;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use authority::{Authority, Time};
use drystone_core::protocol::nbd::NbdAddress;
use drystone_exec_linux::{TlsCredentials, TlsEndpoint, X509Folder, list_exports};
use served::{Place, Served, have, noise};

const IMG: &str = env!("CARGO_BIN_EXE_drystone-img");
const IO: &str = env!("CARGO_BIN_EXE_drystone-io");
const NBD: &str = env!("CARGO_BIN_EXE_drystone-nbd");

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// Folders with credentials: `good`, `foreign` (of another authority), `expired`, `alone` (trusts, and has no client's
/// certificate), `revokes1` and `revokes2` (the server's, the client's), and `broken` (another's key).
fn place() -> Place {
    let place = Place::new();
    let folder = |name: &str| place.folder.path().join(name);
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let fill = |authority: &Authority, name: &str, time| {
        authority.folder(&folder(name));
        authority.sign(&folder(name), "server", time);
        authority.sign(&folder(name), "client", time);
    };
    for name in ["good", "revokes1", "revokes2", "broken", "mixed"] {
        fill(&ours, name, Time::Holds);
    }
    fill(&ours, "expired", Time::IsOver);
    fill(&other, "foreign", Time::Holds);
    ours.folder(&folder("alone"));
    ours.revoke(&folder("revokes1"), 1);
    ours.revoke(&folder("revokes2"), 2);
    let copy = |from: &str, to: &str| std::fs::copy(folder(from), folder(to)).expect("both are there");
    copy("foreign/server-key.pem", "broken/server-key.pem");
    copy("foreign/ca-cert.pem", "mixed/ca-cert.pem");
    noise(&place.path("a.raw"), 8 << 20);
    place
}

fn object(place: &Place, endpoint: &str, folder: &str) -> String {
    let (name, rest) =
        folder.split_once(',').map_or((folder, String::new()), |(name, rest)| (name, format!(",{rest}")));
    format!("tls-creds-x509,id=t,endpoint={endpoint},dir={}{rest}", place.path(name))
}

/// A server that encrypts; `program` is ours or the reference's.
fn serve(place: &Place, program: &str, folder: &str) -> Served {
    let _ = std::fs::remove_file(place.path("socket"));
    let (socket, object) = (place.path("socket"), object(place, "server", folder));
    let line = format!("-k {socket} -t -e 9 -f raw --object {object} --tls-creds t a.raw");
    place.serve(program, "socket", &line)
}

fn options(server: &Served, more: &str) -> String {
    format!("driver=nbd,server.type=unix,server.path={},tls-creds=t{more}", server.socket.display())
}

#[test]
fn images_are_read_and_written_over_encrypted_connections_in_both_directions() {
    let place = place();
    let object = object(&place, "client", "good");
    for (program, tools) in [(NBD, &[IMG, "qemu-img"][..]), ("qemu-nbd", &[IMG])] {
        let server = serve(&place, program, "good");
        let options = options(&server, ",tls-hostname=localhost");
        for tool in tools {
            let executors: &[&str] = if *tool == IMG { &["tokio", "monoio", "glommio"] } else { &[""] };
            for executor in executors {
                let how = if executor.is_empty() { String::new() } else { format!("--executor {executor} ") };
                let line = format!("convert {how}--object {object} --image-opts {options} -O raw out.raw");
                place.make(tool, &line);
                let read = |name: &str| std::fs::read(place.path(name)).expect("it is there");
                assert!(read("out.raw") == read("a.raw"), "{program} to {tool} {executor}");
            }
        }
        let io = if program == NBD { "qemu-io" } else { IO };
        for io in [IO, io] {
            let commands = [
                "--object",
                &object,
                "-c",
                "write -P 5 1M 3M",
                "-c",
                "write -z 2M 64k",
                "-c",
                "aio_read 0 4M",
                "-c",
                "aio_write -P 9 5M 1M",
                "-c",
                "aio_flush",
                "-c",
                "flush",
                "-c",
                "read -P 5 1M 1M",
                "-c",
                "read -P 0 2M 64k",
                "-c",
                "read -P 9 5M 1M",
                "--image-opts",
                &options,
            ];
            let output = place.run_args(io, &commands);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && !text.contains("failed"), "{io} at {program}: {text}");
        }
        let line = format!(
            "-L -k {} --object {object} --tls-creds t --tls-hostname localhost",
            server.socket.display()
        );
        assert_eq!(place.make(NBD, &line), place.make("qemu-nbd", &line), "{program}");
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn a_server_that_is_not_there_makes_no_image() {
    let place = Place::new();
    for line in ["create -f qcow2 nbd+unix:///x?socket=/nonexistent 1M", "create -f raw nbd://localhost:1 1M"]
    {
        let said = |tool: &str| {
            let output = place.run(tool, line);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let (_, words) = text.split_once(": ").expect("a tool names itself");
            (output.status.code(), words.to_owned())
        };
        assert_eq!(said(IMG), said("qemu-img"), "{line}");
    }
}

/// CVE-2024-7383: who the server is, is looked at over a socket of the file system, too; without a name to look for there is no
/// connection.
#[test]
fn who_is_not_trusted_is_refused() {
    let place = place();
    for program in [NBD, "qemu-nbd"] {
        let refused = |server: &Served, folder: &str, more: &str, expected: &str| {
            let (object, options) = (object(&place, "client", folder), options(server, more));
            let line = format!("info --object {object} --image-opts {options}");
            // The reference's clients do not read `ca-crl.pem` (10.0.2); its servers do.
            let tools = if folder == "revokes1" { &[IMG][..] } else { &[IMG, "qemu-img"] };
            for tool in tools.iter().copied() {
                let output = place.run(tool, &line);
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let alike = tool != IMG || text.contains(expected);
                assert!(output.status.code() == Some(1) && alike, "{program}, {tool} {line}: {text}");
            }
        };
        let named = ",tls-hostname=localhost";
        let server = serve(&place, program, "good");
        refused(&server, "good", "", "No hostname for certificate validation");
        refused(&server, "good", ",tls-hostname=other", "Certificate does not match the hostname other");
        refused(&server, "foreign", named, "The certificate hasn't got a known issuer");
        refused(&server, "revokes1", named, "The certificate has been revoked");
        // The client sees no more of these than what its server says before it leaves.
        refused(&server, "alone", named, "Could not open");
        refused(&server, "foreign,verify-peer=off", named, "Could not open");
        refused(&server, "expired,sanity-check=off", named, "Could not open");
        for tool in [IMG, "qemu-img"] {
            let output = place.run(tool, &format!("info {}", server.uri("")));
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let expected = "TLS negotiation required before option 7 (go)\nDid you forget a valid tls-creds?\n\
                            server reported: Option 0x7 not permitted before TLS\n";
            assert!(output.status.code() == Some(1) && text.ends_with(expected), "{program}: {text}");
        }
        assert_eq!(server.stop(), Some(0));
        let server = serve(&place, program, "expired,sanity-check=off");
        refused(&server, "good", named, "The certificate is not trusted: it has expired");
        assert_eq!(server.stop(), Some(0));
        let server = serve(&place, program, "revokes2");
        refused(&server, "good", named, "Could not open");
        assert_eq!(server.stop(), Some(0));
        let server = serve(&place, program, "good,verify-peer=off");
        let object = object(&place, "client", "alone");
        place.make(IMG, &format!("info --object {object} --image-opts {}", options(&server, named)));
        // Not killed: what the kernel still does for who was holds the image's locks a while longer.
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn what_is_wrong_with_credentials_is_said_as_by_the_reference() {
    let place = place();
    let none = place.path("none");
    for (objects, more) in [
        (format!("tls-creds-x509,id=t,endpoint=server,dir={none}"), "--tls-creds t"),
        ("tls-creds-x509,id=t,endpoint=server".into(), "--tls-creds t"),
        (object(&place, "server", "alone"), "--tls-creds t"),
        (object(&place, "server", "expired"), "--tls-creds t"),
        (object(&place, "client", "expired"), "--tls-creds t"),
        (object(&place, "server", "mixed"), "--tls-creds t"),
        (object(&place, "client", "mixed"), "--tls-creds t"),
        (object(&place, "server", "broken"), "--tls-creds t"),
        (object(&place, "client", "good"), "--tls-creds t"),
        (object(&place, "server", "good"), "--tls-creds u"),
        ("secret,id=t,data=x".into(), "--tls-creds t"),
        (object(&place, "server", "good"), "--tls-creds t -L"),
    ] {
        let said = |tool: &str| {
            let line = format!("-k {none} --object {objects} {more}");
            let file = if more.ends_with("-L") { "" } else { " -f raw a.raw" };
            let output = place.run(tool, &(line + file));
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let (_, words) = text.split_once(": ").expect("a tool names itself");
            (output.status.code(), words.to_owned())
        };
        assert_eq!(said(NBD), said("qemu-nbd"), "{objects} {more}");
    }
}

/// Encrypted connections that come and go leave nothing behind.
#[test]
fn many_encrypted_clients_leave_nothing() {
    const LEFT_MAX: u64 = 500;
    let place = place();
    let server = serve(&place, NBD, "good");
    let folder = X509Folder {
        dir: place.folder.path().join("good"),
        endpoint: TlsEndpoint::Client,
        verify_peer: true,
        sanity_check: true,
        priority: None,
    };
    let credentials = TlsCredentials::load(&folder).expect("they are good");
    let client = credentials.for_client().expect("they are a client's");
    let address = NbdAddress::Unix { path: place.path("socket") };
    let come_and_go = |count| {
        for _ in 0..count {
            let listed = list_exports(&address, Some((client, Some("localhost")))).expect("it answers");
            assert_eq!(listed.len(), 1);
        }
    };
    // More than it keeps sessions of.
    come_and_go(600);
    let before = server.memory();
    come_and_go(2000);
    let left = server.memory().saturating_sub(before);
    assert!(left < 2000 * LEFT_MAX, "{left} bytes are left of 2,000 clients");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn nbdkit_and_nbdinfo_speak_with_ours() {
    if !have("nbdkit", "nbdkit") || !have("nbdinfo", "libnbd-bin") {
        return;
    }
    let place = place();
    let folder = place.path("good");
    let server = serve(&place, NBD, "good");
    let socket = place.path("socket");
    let uri = |scheme: &str, folder: &str| {
        format!("{scheme}+unix://localhost/?socket={socket}&tls-certificates={}", place.path(folder))
    };
    assert_eq!(place.make("nbdinfo", &format!("--size {}", uri("nbds", "good"))).trim(), "8388608");
    assert!(!place.run("nbdinfo", &format!("--size {}", uri("nbds", "foreign"))).status.success());
    assert!(!place.run("nbdinfo", &format!("--size nbd+unix:///?socket={socket}")).status.success());
    assert_eq!(server.stop(), Some(0));
    let line =
        format!("-f --tls=require --tls-certificates={folder} --tls-verify-peer -U {socket} file a.raw");
    let server = place.serve("nbdkit", "socket", &line);
    let info = |folder: &str| {
        let options = options(&server, ",tls-hostname=localhost");
        place.run(IMG, &format!("info --object {} --image-opts {options}", object(&place, "client", folder)))
    };
    assert!(info("good").status.success());
    assert!(!info("foreign").status.success() && !info("alone").status.success());
    assert!(!place.run(IMG, &format!("info {}", server.uri(""))).status.success());
}

/// An option with its data.
fn option(code: u32, data: &[u8]) -> Vec<u8> {
    [&IHAVEOPT.to_be_bytes()[..], &code.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

/// A reply without data.
fn reply(option: u32, code: u32) -> Vec<u8> {
    [&OPTION_REPLY.to_be_bytes()[..], &option.to_be_bytes(), &code.to_be_bytes(), &[0; 4]].concat()
}

/// What our server says to a client that sends this in one piece behind its flags, until it ends the connection.
fn said_to(server: &Served, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(&server.socket).expect("it listens");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("it is a time");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("it speaks first");
    stream.write_all(&[&[0, 0, 0, 3], bytes].concat()).expect("it reads");
    let mut said = Vec::new();
    // Bytes that it never read make the end a reset.
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("it does not end: {error}")
        }
        _ => said,
    }
}

/// CVE-2021-3716: what stands behind STARTTLS in one piece was said by anyone.
#[test]
fn plain_options_behind_starttls_are_not_taken_by_our_server() {
    let place = place();
    let server = serve(&place, NBD, "good");
    let (start, go) = (option(5, &[]), option(7, &[0; 6]));
    let said = said_to(&server, &[&start[..], &go, &option(3, &[])].concat());
    assert!(said.is_empty() || said == reply(5, 1), "{said:?}");
    // What comes later, and is no encryption, ends it too.
    let said = said_to(&server, &[&go[..], &option(1, b"")].concat());
    let refusal = [&OPTION_REPLY.to_be_bytes()[..], &7_u32.to_be_bytes(), &0x8000_0005_u32.to_be_bytes()];
    assert!(said.starts_with(&refusal.concat()), "{said:?}");
    assert_eq!(said.windows(8).filter(|bytes| *bytes == OPTION_REPLY.to_be_bytes()).count(), 1);
}

/// A server that answers STARTTLS with this, and what a client says to it afterwards.
fn answer_starttls(place: &Place, answer: Vec<u8>) -> (String, usize) {
    let path = PathBuf::from(place.path("fake"));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("the folder is ours");
    let fake = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client comes");
        let greeting = [&b"NBDMAGIC"[..], b"IHAVEOPT", &[0, 3]].concat();
        stream.write_all(&greeting).expect("it reads");
        let mut asked = [0; 4 + 16];
        stream.read_exact(&mut asked).expect("flags and STARTTLS");
        assert_eq!(asked[4..], option(5, &[]));
        stream.write_all(&answer).expect("it reads");
        let mut more = Vec::new();
        let _ = stream.read_to_end(&mut more);
        more.len()
    });
    let object = object(place, "client", "good");
    let options = format!("driver=nbd,path={},tls-creds=t,tls-hostname=localhost", path.display());
    let output = place.run(IMG, &format!("info --object {object} --image-opts {options}"));
    assert_eq!(output.status.code(), Some(1));
    (String::from_utf8_lossy(&output.stderr).into_owned(), fake.join().expect("it ends"))
}

/// CVE-2019-14842: encryption that is refused, or that somebody has spoken behind, never becomes a plain connection.
#[test]
fn a_server_that_does_not_encrypt_is_not_used() {
    let place = place();
    let (text, more) = answer_starttls(&place, reply(5, 0x8000_0002));
    assert!(text.contains("Denied by server for option 5 (starttls)"), "{text}");
    assert_eq!(more, 0, "nothing is said in the clear");
    let (text, more) = answer_starttls(&place, reply(5, 0x8000_0001));
    assert!(text.contains("for option 5 (starttls)"), "{text}");
    assert_eq!(more, 0, "nothing is said in the clear");
    let (text, more) = answer_starttls(&place, [reply(5, 1), reply(8, 1)].concat());
    assert!(text.contains("the server went on before anything was asked for"), "{text}");
    assert_eq!(more, 0, "nothing is said in the clear");
}
