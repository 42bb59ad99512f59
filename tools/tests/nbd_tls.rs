//! Encrypted connections: ours with ours, with the reference and with nbdkit, and everything that must not become one.

mod authority;
mod served;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use authority::{Authority, Time};
use drystone_core::protocol::nbd::NbdAddress;
use drystone_exec_linux::{TlsCredentials, TlsEndpoint, X509Folder, list_exports};
use rcgen::{DnType, DnValue};
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

/// Who may connect is asked by the distinguished name, which is written as the reference writes it: lists are made for that.
#[test]
fn clients_are_chosen_by_the_names_in_their_certificates() {
    let place = place();
    let ours = Authority::new("ours");
    let folder = |name: &str| place.folder.path().join(name);
    let text = |text: &str| DnValue::from(text);
    let custom = |last| DnType::CustomDnType(vec![2, 5, 4, last]);
    let mail = || DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]);
    let pilot = |last| DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, last]);
    let subjects = [
        vec![(DnType::CommonName, text("one"))],
        vec![
            (DnType::CountryName, DnValue::PrintableString("DE".try_into().expect("it can be printed"))),
            (DnType::OrganizationName, text("Stone, Inc.")),
            (DnType::OrganizationalUnitName, text(" a+b ")),
            (DnType::LocalityName, text("Köln")),
            (DnType::StateOrProvinceName, text("#1")),
            (DnType::CommonName, text("\"q\" <z>;\\y=e")),
        ],
        vec![
            (custom(4), text("s")),
            (custom(5), DnValue::PrintableString("99".try_into().expect("it can be printed"))),
            (custom(9), text("street 1")),
            (custom(12), text("t")),
            (custom(13), text("d")),
            (custom(17), text("50667")),
            (custom(20), DnValue::PrintableString("555".try_into().expect("it can be printed"))),
            (custom(41), text("n")),
            (custom(42), text("g")),
            (custom(43), text("i")),
            (custom(65), text("p")),
            (pilot(1), text("u7")),
            (pilot(25), DnValue::Ia5String("org".try_into().expect("it is ASCII"))),
            (mail(), DnValue::Ia5String("a@b.c".try_into().expect("it is ASCII"))),
            (DnType::CommonName, DnValue::BmpString("K☃".try_into().expect("it has no more than 16 bits"))),
        ],
    ];
    ours.folder(&folder("chooses"));
    ours.sign(&folder("chooses"), "server", Time::Holds);
    let names: Vec<String> = (0..subjects.len()).map(|number| format!("client{number}")).collect();
    for (name, subject) in names.iter().zip(subjects) {
        ours.folder(&folder(name));
        ours.sign_for(&folder(name), "client", Time::Holds, (&[], subject));
    }
    ours.folder(&folder("nobody"));
    let info = |name: &str| {
        let object = object(&place, "client", name);
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},tls-creds=t,tls-hostname=localhost",
            place.path("socket")
        );
        place.run(IMG, &format!("info --object {object} --image-opts {options}")).status.code()
    };
    // With whom `rules` lets in; returns who came in, and what the server said.
    let try_all = |program: &str, rules: &str| {
        let _ = std::fs::remove_file(place.path("socket"));
        let log = std::fs::File::create(place.path("log")).expect("the folder is ours");
        let credentials = object(&place, "server", "chooses");
        let socket = place.path("socket");
        let mut server = std::process::Command::new(program)
            .args(["-k", &socket, "-t", "-e", "9", "-f", "raw", "--object", &credentials, "--object", rules])
            .args(["--tls-creds", "t", "--tls-authz", "a", &place.path("a.raw")])
            .stderr(log)
            .spawn()
            .expect("it is there");
        let begun = std::time::Instant::now();
        while !std::path::Path::new(&socket).exists() {
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(20),
                "{program} {rules}: it does not listen"
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let codes: Vec<_> = names.iter().map(String::as_str).chain(["nobody"]).map(info).collect();
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&server),
            rustix::process::Signal::TERM,
        )
        .expect("it is ours");
        assert!(server.wait().expect("it is ours").success(), "{program} {rules}");
        let said = std::fs::read_to_string(place.path("log")).expect("it is there");
        (codes, said)
    };
    let denied = |said: &str| {
        let find = |line: &str| Some(line.split_once("authz check for ")?.1.to_owned());
        said.lines().filter_map(find).collect::<Vec<_>>()
    };
    let nobody = "authz-simple,id=a,identity=nobody";
    let (codes, theirs) = try_all("qemu-nbd", nobody);
    assert!(codes.iter().all(|code| *code == Some(1)), "{theirs}");
    let (codes, said) = try_all(NBD, nobody);
    assert!(codes.iter().all(|code| *code == Some(1)), "{said}");
    assert_eq!(denied(&said), denied(&theirs));
    assert_eq!(denied(&said).len(), names.len(), "{said}");
    for (rules, let_in) in [
        ("authz-simple,id=a,identity=CN=one", [true, false, false]),
        ("authz-list,id=a,policy=allow,rules.0.match=CN=one,rules.0.policy=deny", [false, true, true]),
        (
            "authz-list,id=a,rules.0.match=C=DE,,*,rules.0.policy=deny,rules.0.format=glob,rules.1.match=*CN=*,\
             rules.1.policy=allow,rules.1.format=glob",
            [true, false, true],
        ),
    ] {
        for program in [NBD, "qemu-nbd"] {
            let (codes, said) = try_all(program, rules);
            let expected: Vec<_> = let_in.iter().map(|yes| Some(i32::from(!yes))).chain([Some(1)]).collect();
            assert_eq!(codes, expected, "{program} {rules}: {said}");
        }
    }
}

/// A server's certificate without names of hosts counts for its common name, as in the reference.
#[test]
fn a_common_name_will_do_where_a_certificate_has_no_other() {
    let place = place();
    let ours = Authority::new("ours");
    let folder = |name: &str| place.folder.path().join(name);
    let common = |name: &str| (DnType::CommonName, DnValue::from(name));
    for (number, (hosts, subject, asked, taken)) in [
        (&[][..], vec![common("Disk.example.org")], "disk.example.org", true),
        (&[], vec![common("*.example.org")], "disk.example.org", true),
        (&[], vec![common("disk.example.org")], "other.example.org", false),
        (&[], vec![common("127.0.0.1")], "127.0.0.1", false),
        (&["localhost"], vec![common("disk.example.org")], "disk.example.org", false),
        (&[], vec![(DnType::OrganizationName, DnValue::from("disk"))], "disk", false),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("named{number}");
        ours.folder(&folder(&name));
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        ours.sign_for(&folder(&name), "server", Time::Holds, (&hosts, subject));
        ours.sign(&folder(&name), "client", Time::Holds);
        let server = serve(&place, NBD, &name);
        let object = object(&place, "client", &name);
        let options = options(&server, &format!(",tls-hostname={asked}"));
        for tool in [IMG, "qemu-img"] {
            let output = place.run(tool, &format!("info --object {object} --image-opts {options}"));
            let code = Some(i32::from(!taken));
            assert_eq!(output.status.code(), code, "{tool} {asked}, certificate {number}: {output:?}");
        }
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
