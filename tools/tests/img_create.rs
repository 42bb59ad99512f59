//! `drystone-img create`, held beside the installed `qemu-img`.

mod reference;

use drystone_tools::img::args::{Action, Command, CreateArgs, parse};
use drystone_tools::img::create::{BackingFound, CreateRequest, Known, option_help};
use drystone_tools::message::Failure;
use reference::Reference;

const DRIVERS: &[&str] = &[
    "bochs",
    "file",
    "host_device",
    "luks",
    "nbd",
    "null-co",
    "parallels",
    "qcow",
    "qcow2",
    "qed",
    "raw",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

#[test]
fn images_are_announced_alike() {
    let reference = Reference::new();
    reference.make("create -q b.raw 1M");
    reference.make("create -q -f qcow2 b.qcow2 1M");
    reference.make("create -q -f vmdk b.vmdk 1M");
    let mut differences = String::new();
    for line in LINES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let run = reference.run(line);
        let Some(args) = create_args(line) else { panic!("{line}") };
        let ours = match request(&args, line) {
            Ok(announced) => (announced, String::new()),
            Err(failure) => (String::new(), failure.render("qemu-img")),
        };
        // What goes wrong after the announcement is the format's to say.
        let theirs =
            if run.stdout.is_empty() { (run.stdout, run.stderr) } else { (run.stdout, String::new()) };
        if ours != theirs {
            differences += &format!("{line}\n  ours: {ours:?}\ntheirs: {theirs:?}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// One command line a line.
const LINES: &str = "
    create x 1M
    create -f raw -o preallocation=falloc,nocow=on,extent_size_hint=1M x 1M
    create -f file -o size=1M,preallocation=off x
    create -f qcow2 x 1M
    create -f qcow2 -o size=1.5M x
    create -f qcow2 -o cluster_size=64K,cluster_size=32k,lazy_refcounts,noextended_l2 x 1M
    create -f qcow2 -o lazy_refcounts=yes,refcount_bits=0x10,compat=v3 x 1M
    create -f qcow2 -o compat=1,,1 x 1M
    create -f qcow2 -o compression_type=x,preallocation=y,id=z x 1M
    create -f qcow2 -o data_file=x.data,data_file_raw=on,encryption=off x 1M
    create -f qcow2 -u -o encryption=off,encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=a,encrypt.cipher-mode=b,encrypt.ivgen-alg=c,encrypt.ivgen-hash-alg=d,encrypt.hash-alg=e,encrypt.iter-time=3,preallocation=off,backing_file=a,backing_fmt=b,data_file=x,data_file_raw=on,nocow=off,extent_size_hint=1 x 1M
    create -f qcow2 -b b.raw -F raw x
    create -f qcow2 -b b.qcow2 -F qcow2 x 2M
    create -f qcow2 -b b.raw x
    create -f qcow2 -b b.qcow2 x
    create -f qcow2 -b b.qcow2 -F qcow2 -o backing_file=b.raw x
    create -f qcow2 -u -b a,b'c -F raw x 1M
    create -f qcow2 -u -b b.raw x 1M
    create -f qcow2 -u -b b.raw -F raw x
    create -f qcow2 -F raw x 1M
    create -f qcow2 -o backing_file=,size=1M x
    create -f qcow2 -b x -F qcow2 x 1M
    create -f qcow2 -b nope -F qcow2 x 1M
    create -f qcow2 -b nope x 1M
    create -f qcow2 -o size=2M x 1M
    create -f qcow2 x
    create -f qcow2 -o size=18446744073709551615 x
    create -f qcow2 -o size=15E x
    create -f qcow2 -o foo=1 x 1M
    create -f qcow2 -o foo x 1M
    create -f qcow2 -o =x x 1M
    create -f qcow2 -o size=foo x
    create -f qcow2 -o size=-1 x
    create -f qcow2 -o nosize x
    create -f qcow2 -o lazy_refcounts=foo x 1M
    create -f qcow2 -o lazy_refcounts=ON x 1M
    create -f qcow2 -o refcount_bits=8k x 1M
    create -f qcow2 -o refcount_bits=99999999999999999999 x 1M
    create -f qcow2 -o cluster_size=99999999999999999999 x 1M
    create -f foo x 1M
    create -f bochs x 1M
    create -f null-co x 1M
    create -b b.raw x 1M
    create -F raw x 1M
    create -f vdi -b b.raw -F raw x 1M
    create -o backing_fmt=raw x 1M
    create foo:x 1M
    create -f qcow x 1M
    create -f qcow -u -o encryption=off,encrypt.format=aes,encrypt.key-secret=s,backing_file=a,backing_fmt=b x 1M
    create -f qed -u -o table_size=8,cluster_size=32k,backing_file=a,backing_fmt=raw x 1M
    create -f vmdk x 1M
    create -f vmdk -b b.vmdk -F vmdk x
    create -f vmdk -u -o adapter_type=a,backing_file=b,backing_fmt=c,compat6=on,hwversion=4,subformat=x,toolsversion=3,zeroed_grain=off,nocow=off x 1M
    create -f vdi -o static=on,preallocation=metadata x 1M
    create -f vpc -o force_size,subformat=fixed x 1M
    create -f vhdx -o block_size=0,block_state_zero=off,log_size=1M,subformat=x x 1M
    create -f parallels -o cluster_size=64k x 1M
    create -f luks x 1M
    create -f luks -o cipher-alg=a,cipher-mode=b,detached-header=off,hash-alg=x,iter-time=1,ivgen-alg=c,ivgen-hash-alg=d,key-secret=e,nocow=on x 1M
    create -q -f qcow2 x 1M
    create -f raw nbd:unix:/nowhere 1M
    create -f raw -o nocow=on nbd:unix:/nowhere 1M
";

#[test]
fn options_are_listed_alike() {
    let reference = Reference::new();
    for format in DRIVERS.iter().chain(&["foo"]) {
        for filename in ["", "x", "foo:x", "nbd:unix:/nowhere"] {
            let line = format!("create -f {format} -o help {filename}");
            let run = reference.run(&line);
            let filename = (!filename.is_empty()).then_some(filename);
            let ours = match option_help(format, filename, known(filename.unwrap_or_default())) {
                Ok(text) => (theirs_of(&text), String::new()),
                Err(failure) => (String::new(), failure.render("qemu-img")),
            };
            assert_eq!(ours, (run.stdout, run.stderr), "{line}");
        }
    }
}

/// What the reference says too.
fn theirs_of(help: &str) -> String {
    help.split("\nOptions that qemu-img does not have:\n").next().unwrap_or_default().to_owned()
}

#[test]
fn options_of_our_own_are_listed_apart() {
    for filename in [None, Some("x")] {
        let text = option_help("luks", filename, known(filename.unwrap_or_default())).expect("a format");
        assert!(
            text.len() > theirs_of(&text).len() && text.ends_with(" luks1 (default) or luks2\n"),
            "{text}"
        );
        let text = option_help("raw", filename, known(filename.unwrap_or_default())).expect("a format");
        assert_eq!(text, theirs_of(&text));
    }
}

#[test]
fn options_can_be_asked_for_their_values() {
    let line = "create -f qcow2 -o lazy_refcounts,cluster_size=4k,compat=v3,extended_l2=n x 1M";
    let request = CreateRequest::new(&create_args(line).unwrap(), known("x")).unwrap();
    let options = request.finish(None).unwrap();
    assert_eq!((options.number("cluster_size"), options.number("refcount_bits")), (Some(4096), Some(16)));
    assert_eq!((options.switch("lazy_refcounts"), options.switch("extended_l2")), (Some(true), Some(false)));
    assert_eq!((options.switch("data_file_raw"), options.text("data_file")), (None, None));
    assert_eq!((options.text("compat"), options.text("compression_type")), (Some("v3"), Some("zlib")));
    assert_eq!(options.number("size"), Some(1 << 20));
}

fn request(args: &CreateArgs, line: &str) -> Result<String, Failure> {
    let request = CreateRequest::new(args, known(&args.filename))?;
    let found = match request.backing_to_open() {
        None => None,
        Some(("b.raw", None | Some("raw"))) => Some(found("raw")),
        Some(("b.qcow2", None | Some("qcow2"))) => Some(found("qcow2")),
        Some(("b.vmdk", _)) => Some(found("vmdk")),
        Some((name, _)) => {
            let error = format!("Could not open '{name}': No such file or directory");
            return Err(request.backing_failure(&error));
        }
    };
    let options = request.finish(found.as_ref())?;
    Ok(if line.contains(" -q ") { String::new() } else { options.formatting_line(&args.filename) })
}

fn found(format: &str) -> BackingFound {
    BackingFound { virtual_size: 1 << 20, format: format.into() }
}

fn known(filename: &str) -> Known<'_> {
    let protocol = match filename.split_once(':') {
        None => Ok("file"),
        Some((protocol, _)) if DRIVERS.contains(&protocol) => Ok(protocol),
        Some((protocol, _)) => Err(protocol),
    };
    Known { drivers: DRIVERS, protocol }
}

fn create_args(line: &str) -> Option<CreateArgs> {
    let argv: Vec<_> = format!("x {line}").split_whitespace().map(str::to_owned).collect();
    match parse(&argv).ok()?.action {
        Action::Run(command) => match *command {
            Command::Create(args) => Some(args),
            _ => None,
        },
        _ => None,
    }
}
