//! How `drystone-nbd` begins and ends beside the reference: sockets that a service manager hands over, numbers of processes
//! in files, and what becomes of discards.

mod served;

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use served::Place;

const NBD: &str = env!("CARGO_BIN_EXE_drystone-nbd");

/// Both tools.
const TOOLS: [&str; 2] = [NBD, "qemu-nbd"];

/// What is handed over as descriptor 3.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handed {
    Listener,
    File,
    Nothing,
}

/// A command as a service manager runs it: with descriptor 3, and variables that speak of `count` such.
fn activated(place: &Place, program: &str, line: &str, (handed, count): (Handed, u32)) -> Command {
    let redirected = match handed {
        Handed::Listener | Handed::File => "3<&0 </dev/null",
        Handed::Nothing => "3<&-",
    };
    let script = format!("export LISTEN_PID=$$ LISTEN_FDS={count}; exec {program} {line} {redirected}");
    let mut command = Command::new("timeout");
    command.args(["60", "sh", "-c", &script]).current_dir(place.folder.path());
    if handed == Handed::Listener {
        let socket = place.path("socket");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).expect("the folder takes it");
        command.stdin(Stdio::from(OwnedFd::from(listener)));
    } else {
        command.stdin(Stdio::null());
    }
    command
}

/// Has somebody read through the socket.
#[track_caller]
fn read(place: &Place) {
    place.make("qemu-io", &format!("-r -f raw -c length nbd+unix://?socket={}", place.path("socket")));
}

/// Exit code and words, whichever tool it was.
fn words(output: &Output, program: &str) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let name = Path::new(program).file_name().expect("a program").to_str().expect("UTF-8");
    (output.status.code(), text.replace(program, "TOOL").replace(name, "TOOL"))
}

fn kill(number: &str) {
    assert!(Command::new("kill").arg(number).status().expect("kill is there").success());
    let begun = Instant::now();
    while Path::new("/proc").join(number).join("exe").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_socket_that_is_handed_over_is_listened_on() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 1M");
    for tool in TOOLS {
        let one = (Handed::Listener, 1);
        // It ends with its first client, in the foreground and in the background.
        let mut child = activated(&place, tool, "-f raw plain.raw", one).spawn().expect("sh is there");
        read(&place);
        assert_eq!(child.wait().expect("it is ours").code(), Some(0), "{tool}");
        let pid = place.path("pid");
        let line = format!("-t --fork --pid-file {pid} -f raw plain.raw");
        let output = activated(&place, tool, &line, one).output().expect("sh is there");
        assert_eq!(words(&output, tool), (Some(0), String::new()), "in the background");
        read(&place);
        kill(std::fs::read_to_string(&pid).expect("it is written by then").trim());
        assert!(Path::new(&place.path("socket")).exists(), "it is not the server's to remove");
    }
}

#[test]
fn what_cannot_be_listened_on_is_refused_in_the_words_of_the_reference() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 1M");
    for (handed, line) in [
        ((Handed::File, 1), "-t -f raw plain.raw"),
        ((Handed::File, 1), "--fork -t -f raw plain.raw"),
        ((Handed::Nothing, 1), "-t -f raw plain.raw"),
        ((Handed::Nothing, 1), "--fork -t -f raw plain.raw"),
        ((Handed::Nothing, 1), "-L"),
        ((Handed::Listener, 1), "-L"),
        ((Handed::File, 1), "-L -k /nowhere"),
        ((Handed::Listener, 1), "-k /nowhere -f raw plain.raw"),
        ((Handed::Listener, 1), "-p 10888 -f raw plain.raw"),
        ((Handed::Listener, 1), "-b localhost -p 10888 -f raw plain.raw"),
        ((Handed::Listener, 1), "-c /dev/null -f raw plain.raw"),
        ((Handed::Listener, 1), "-f raw nothing"),
        ((Handed::Listener, 2), "-f raw plain.raw"),
    ] {
        let said = TOOLS
            .map(|tool| words(&activated(&place, tool, line, handed).output().expect("sh is there"), tool));
        assert_eq!(said[0], said[1], "{handed:?} {line}");
        assert_eq!(said[0].0, Some(1), "{handed:?} {line}: {said:?}");
    }
}

/// Discards are ignored unless they are asked for: what is trimmed keeps its blocks.
#[test]
fn discards_reach_the_host_where_the_reference_has_them_do() {
    let place = Place::new();
    for option in ["", "--discard=ignore", "--discard=unmap"] {
        let left = [Place::ours, Place::theirs].map(|serve| {
            served::noise(&place.path("plain.raw"), 8 << 20);
            let server = serve(&place, "socket", &format!("-t {option} -f raw plain.raw"));
            let line = ["-f", "raw", "-c", "discard 0 4M", &server.uri("")];
            assert!(place.run_args("qemu-io", &line).status.success());
            assert_eq!(server.stop(), Some(0));
            let _ = std::fs::remove_file(place.path("socket"));
            std::fs::metadata(place.path("plain.raw")).expect("it is there").blocks() * 512
        });
        assert_eq!(left[0], left[1], "{option}");
        assert_eq!(left[0] < 8 << 20, option == "--discard=unmap", "{option}: {left:?}");
    }
}

/// A process's number is in its file, which is its user's alone, stays in the end, and is nobody else's as long as it runs.
#[test]
fn a_process_keeps_the_file_with_its_number() {
    for tool in TOOLS {
        let place = Place::new();
        place.make("qemu-img", "create -q -f raw plain.raw 1M");
        let (socket, pid) = (place.path("socket"), place.path("pid"));
        std::os::unix::fs::symlink("target", &pid).expect("the folder takes it");
        let start = |more: &str| {
            let line = format!("-k {socket}{more} -r -t --fork --pid-file {pid} -f raw plain.raw");
            words(&place.run(tool, &line), tool)
        };
        assert_eq!(start(""), (Some(0), String::new()));
        let written = std::fs::read_to_string(&pid).expect("it is written by then");
        let mode = std::fs::metadata(&pid).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600, "{tool}");
        let locked = "TOOL: Cannot lock pid file: Resource temporarily unavailable\n";
        assert_eq!(start("2"), (Some(1), locked.into()), "{tool}");
        assert_eq!(std::fs::read_to_string(&pid).ok(), Some(written.clone()), "{tool}");
        kill(written.trim());
        assert_eq!(std::fs::read_to_string(&pid).ok(), Some(written), "{tool} leaves it");
        std::fs::write(&pid, "a longer text than any number").expect("it is ours");
        assert_eq!(start(""), (Some(0), String::new()));
        let next = std::fs::read_to_string(&pid).expect("it is written by then");
        kill(next.strip_suffix('\n').expect("a line"));
    }
}
