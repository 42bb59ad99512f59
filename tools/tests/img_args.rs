//! Command lines of `drystone-img`, held beside the installed `qemu-img`.
//!
//! Debian's build words option errors differently from the release that it is made of; [`as_released`] undoes that, so
//! that the rest (which mistake is found first, exit codes, all other words) can be compared.

mod reference;
mod released;

use drystone_tools::img::args::{
    Action, CacheMode, Command, ConvertTarget, Executor, OutputFormat, SnapshotName, parse, tool_help,
    tool_name,
};
use drystone_tools::options::ImageName;
use reference::Reference;
use released::as_released;

#[test]
fn mistakes_are_told_in_the_words_of_the_reference() {
    let reference = Reference::new();
    let lines = MISTAKES.lines().map(str::trim).filter(|line| !line.is_empty()).map(words);
    let others = [
        &["create", "-f", "qcow2", "-o", "", "a"][..],
        &["create", "a", ""],
        &["create", "a", " "],
        &["convert", "-m", "", "a", "b"],
        &["convert", "-l", "snapshot.id=1,snapshot.", "a", "b"],
        &["info", "--image-opts", "id=1,driver=raw"],
        &[],
        &["--trace", "y=1", "info"],
        &["-T", "foo", "info"],
    ];
    let others = others.iter().map(|args| args.iter().map(|arg| (*arg).to_owned()).collect());
    let differences: Vec<_> =
        lines.chain(others).filter_map(|args: Vec<_>| difference(&reference, &args)).collect();
    assert!(differences.is_empty(), "{}", differences.concat());
}

/// One command line a line.
const MISTAKES: &str = "
    foo
    -q
    --foo
    -T
    create
    create -Z
    create --foo x
    create -f
    create a -f
    create --back x
    create a b
    create a 1Z
    create a 1M x
    create a -- -1
    create a 9223372036854775808
    create a 99999999999999999999
    create -o , a
    create -o a=1 -o ,a=1 a
    create --object foo a
    create --object secret a
    create --object secret,id=1 a
    create --object secret,id=s,data=1,file=2 a
    create --object secret,id=s,foo=2 a
    create --object secret,id=s,format=x a
    create --object secret,id=s,data=1 --object secret,id=s,data=1 a
    create --object tls-creds-x509,id=t,verify-peer=x a
    create --object tls-creds-x509,id=t,endpoint=x a
    create --object throttle-group,id=t,x-bps-total=x a
    create --object throttle-group,id=t,limits=1 a
    create --object throttle-group,id=t,limits.foo=1 a
    create --object {'qom-type':1,'id':'x'} a
    create --object {'qom-type':'secret','id':1} a
    create --object {'qom-type':'secret','id':'s','data':1} a
    create --object {'qom-type':'throttle-group','id':'s','limits':{'iops-total':1.5}} a
    create --object {'qom-type':'tls-creds-psk','id':'s','verify-peer':'on'} a
    create --object {'qom-type' a
    info
    info a b
    info a -U b
    info -- -U b
    info --output
    info --output=foo a
    info --o json a
    info -V
    info -f raw --image-opts a
    info json:{
    info json:[]
    info --object
    check
    check -r foo a
    check -T foo a
    check --output x a
    check -f raw --image-opts driver=raw
    check -T foo --image-opts -f raw a
    map
    map a b
    map --output x a
    map --start-offset x a
    map -s -1 a
    map --max-length=-1 a
    map -l x a
    map --image-opts -f raw a
    compare
    compare a
    compare a b c
    compare -T x a b
    compare --image-opts -f raw a b
    compare json:[] b
    convert
    convert a
    convert -S 1 a b
    convert -S foo a b
    convert -S -1 a b
    convert -S 16777728 a b
    convert -m 0 a b
    convert -m 17 a b
    convert -m 4x a b
    convert -m -1 a b
    convert -r x a b
    convert -r -1 a b
    convert -c -C a b
    convert -S 0 -C a b
    convert -C --salvage a b
    convert -n -o a=b a b
    convert --target-is-zero a b
    convert --skip-broken-bitmaps a b
    convert --image-opts -f raw a b
    convert --target-image-opts a b
    convert -T foo a b
    convert -o , a b
    convert -l snapshot.foo=x a b
    convert -l snapshot. a b
    convert -l snapshot.id,foo=1 a b
    bench
    bench a b
    bench -c 0 a
    bench -c x a
    bench -c 2147483648 a
    bench -d x a
    bench -d 0 a
    bench -o x a
    bench -s 0 a
    bench -s x a
    bench -t foo a
    bench -i foo a
    bench --pattern 256 a
    bench --flush-interval 1 a
    bench --flush-interval x a
    bench -w --flush-interval 1 a
    bench -f raw --image-opts a
";

/// `None` when ours is the same.
fn difference(reference: &Reference, args: &[String]) -> Option<String> {
    let run = reference.run_args(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let argv = [vec!["/usr/bin/qemu-img".to_owned()], args.to_vec()].concat();
    let ours = match parse(&argv) {
        Err(failure) => (failure.render(tool_name(&argv)), i32::from(failure.code)),
        Ok(parsed) => (format!("{parsed:?}"), 0),
    };
    let theirs = (as_released(&run.stderr), run.code);
    (ours != theirs).then(|| format!("{args:?}\n  ours: {ours:?}\ntheirs: {theirs:?}\n"))
}

#[test]
fn the_element_finished_last_is_blamed() {
    // What the release prints here is the element before getopt's position; Debian's build prints something else.
    for (line, text) in [
        ("--help=1", "unrecognized option '--help=1'"),
        ("create --quiet=1", "unrecognized option '--quiet=1'"),
        ("create a -Zq", "unrecognized option 'a'"),
        ("create -qZ a", "unrecognized option '-qZ'"),
        ("create a -qf", "missing argument for option '-qf'"),
    ] {
        let failure = parse(&words(&format!("qemu-img {line}"))).unwrap_err();
        let expected = format!("x: {text}\nTry 'x --help' for more information\n");
        assert_eq!(failure.render("x"), expected);
    }
}

#[test]
fn convert_understands_all_its_options() {
    let line = "x convert -qpc -W -O qcow2 -ocompression_type=zstd,cluster_size=64k -o lazy_refcounts -B base -F raw \
                -S 64k -m 4 -r 1M -T none -t writethrough -l snapshot.name=s -U --bitmaps --skip-broken-bitmaps \
                --salvage --executor monoio a -f qcow2 b c";
    let Command::Convert(args) = run(line) else { panic!() };
    assert_eq!(args.options.as_deref(), Some("compression_type=zstd,cluster_size=64k,lazy_refcounts"));
    assert_eq!((args.backing.as_deref(), args.backing_format.as_deref()), (Some("base"), Some("raw")));
    assert_eq!((args.sparse_size, args.parallel, args.rate_limit), (65536, 4, 1 << 20));
    assert_eq!(args.snapshot, Some(SnapshotName::Both { id: None, name: Some("s".into()) }));
    assert!(args.compress && args.out_of_order && args.force_share && args.bitmaps && args.salvage);
    assert!(args.skip_broken_bitmaps && args.quiet && !args.progress && !args.no_create);
    assert_eq!(args.sources.len(), 2);
    assert_eq!(args.sources[1].format.as_deref(), Some("qcow2"));
    assert_eq!(args.target, Some(ConvertTarget::File("c".into())));
    assert!(args.source_cache.direct && args.target_cache.writethrough);
    assert_eq!(args.common.executor, Executor::Monoio);
}

#[test]
fn convert_defaults() {
    let Command::Convert(args) = run("x convert a b") else { panic!() };
    assert_eq!((args.sparse_size, args.parallel, args.rate_limit), (4096, 8, 0));
    assert_eq!(args.target_format.as_deref(), Some("raw"));
    assert_eq!((args.source_cache, args.target_cache), (CacheMode::WRITEBACK, CacheMode::UNSAFE));
    let Command::Convert(args) = run("x convert -n --target-image-opts --target-is-zero a driver=raw") else {
        panic!()
    };
    assert_eq!(args.target_format, None);
    assert!(matches!(args.target, Some(ConvertTarget::Options(ImageName::Options { .. }))));
}

#[test]
fn help_for_options_needs_no_file() {
    let Command::Create(args) = run("x create -f qcow2 -o size=1,help") else { panic!() };
    assert!(args.asks_for_help() && args.filename.is_empty());
    let Command::Convert(args) = run("x convert -O qcow2 -o ?") else { panic!() };
    assert!(args.asks_for_help() && args.target.is_none());
}

#[test]
fn other_commands_understand_their_options() {
    let Command::Info(args) =
        run("x info -U --backing-chain --output=json --image-opts driver=raw,file.filename=a")
    else {
        panic!()
    };
    assert!(args.force_share && args.backing_chain && args.output == OutputFormat::Json);
    assert_eq!(args.source.name.options()["driver"], "raw");
    let Command::Bench(args) = run(
        "x bench -w -c 10 -d 2 -s 64k -S 1M -o 0x1000 --pattern 0xff --flush-interval 4 --no-drain -i io_uring -n a",
    ) else {
        panic!()
    };
    assert_eq!((args.count, args.depth, args.buffer_size, args.step), (10, 2, 65536, 1 << 20));
    assert_eq!((args.offset, args.pattern), (4096, 255));
    assert!(args.flush.is_some_and(|flush| flush.requests == 4 && !flush.drain));
    let Command::Map(args) = run("x map -s 1k --max-length 1M a") else { panic!() };
    assert_eq!((args.start_offset, args.max_length), (1024, Some(1 << 20)));
    let object = "--object={'qom-type':'secret','id':'s0','data':'x'}";
    let Command::Compare(args) = run(&format!("x compare -sp -T unsafe -f raw --b-f qcow2 {object} a b"))
    else {
        panic!()
    };
    assert!(args.strict && args.progress && args.cache.no_flush);
    assert_eq!((args.first.format.as_deref(), args.second.format.as_deref()), (Some("raw"), Some("qcow2")));
    assert_eq!(
        (args.common.objects[0].id.as_str(), &args.common.objects[0].properties["data"]),
        ("s0", &"x".into())
    );
}

#[test]
fn object_help_is_the_same() {
    let reference = Reference::new();
    for object in ["secret", "throttle-group", "tls-creds-anon", "tls-creds-psk", "tls-creds-x509"] {
        let line = format!("create --object {object},help");
        let Ok(invocation) = parse(&words(&format!("x {line}"))) else { panic!() };
        assert_eq!(invocation.action, Action::Print(reference.make(&line)));
    }
}

#[test]
fn help_and_version() {
    let commands = [
        "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map",
        "measure", "rebase", "resize", "snapshot",
    ];
    for command in commands {
        for line in [format!("drystone-img {command} --help"), format!("drystone-img {command} a -qh")] {
            let Ok(invocation) = parse(&words(&line)) else { continue };
            let Action::Print(text) = invocation.action else { panic!() };
            insta::assert_snapshot!(format!("help_{command}"), text);
        }
    }
    assert_eq!(parse(&words("drystone-img -h")).unwrap().action, Action::Help);
    insta::assert_snapshot!("help_tool", tool_help("drystone-img", &["qcow2", "raw"]));
    let Action::Print(version) = parse(&words("x -V")).unwrap().action else { panic!() };
    assert!(version.starts_with("x version 10.0.2 (Drystone "));
}

fn run(line: &str) -> Command {
    match parse(&words(line)).map(|invocation| invocation.action) {
        Ok(Action::Run(command)) => *command,
        other => panic!("{line}: {other:?}"),
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_name_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let name = std::ffi::OsString::from_vec(b"n\xe9w.raw".to_vec());
    let argv = ["drystone-img".into(), "info".into(), name];
    let failure = drystone_tools::img::args::words(argv.into_iter()).expect_err("no such word");
    let expected = "x: argument 2, \"n\\xE9w.raw\", is not UTF-8; give the file another name\n";
    assert_eq!(failure.render("x"), expected);
}
