//! What `drystone-img convert` decides before it copies, held beside the installed `qemu-img`.

mod reference;

use drystone_tools::img::args::{Action, Command, ConvertArgs, ConvertTarget, parse};
use drystone_tools::img::convert::{
    cannot_create, check_bitmaps, check_snapshot, no_bitmaps, no_snapshot, plan_target,
};
use drystone_tools::img::create::Known;
use drystone_tools::img::open::{cannot_open, guessed_raw};
use drystone_tools::message::Failure;
use drystone_tools::options::ImageName;
use reference::Reference;

const DRIVERS: &[&str] =
    &["bochs", "file", "null-co", "parallels", "qcow", "qcow2", "qed", "raw", "vdi", "vmdk"];

/// Command lines that fail between opening the sources and making the target.
const LINES: &str = "
    convert -O foo r o
    convert -O bochs r o
    convert -O null-co r o
    convert r foo:o
    convert r null-co://
    convert -o foo=1 r o
    convert -O qcow2 -o lazy_refcounts=x r o
    convert -O qcow2 -o size=x r o
    convert -O qcow2 -B b -F raw r r o
    convert -O qcow2 -o backing_file=b,backing_fmt=raw r r o
    convert -O qcow2 -o backing_file=b r o
    convert -O qcow2 -B b r o
    convert -O qcow2 -o backing_file=x -B b r o
    convert -B b -F raw r o
    convert -F raw r o
    convert -O vdi -B b -F raw r o
    convert -c r o
    convert -c -O vdi r o
    convert -c -O qed r o
    convert -c -O parallels r o
    convert -c -O qcow2 -o encryption=on r o
    convert -c -O qcow2 -o encrypt.format=luks r o
    convert -c -O qcow2 -o preallocation=falloc r o
    convert --bitmaps -O qcow2 r r o
    convert --bitmaps r o
    convert --bitmaps q o
    convert -l x r r o
    convert -l x q o
    convert -l snapshot.name=x q q o
    convert r nowhere/o
";

#[test]
fn what_does_not_fit_is_told_alike() {
    let reference = Reference::new();
    for line in ["create -q r 1M", "create -q b 1M", "create -q -f qcow2 q 1M"] {
        reference.make(line);
    }
    let mut differences = String::new();
    for line in LINES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let run = reference.run(line);
        let ours = match go(&arguments(line)) {
            Ok(()) => (String::new(), 0),
            Err(failure) => (failure.render("qemu-img"), i32::from(failure.code)),
        };
        if ours != (run.stderr.clone(), run.code) {
            differences += &format!("{line}\n  ours: {ours:?}\ntheirs: {run:?}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// The steps of the command on images that are known: `q` is a qcow2 image without snapshots, all others are raw.
fn go(args: &ConvertArgs) -> Result<(), Failure> {
    check_snapshot(args)?;
    if args.snapshot.is_some() {
        return Err(no_snapshot());
    }
    let plan = plan_target(args, known(args), 1 << 20)?;
    check_bitmaps(args, args.sources[0].name.text() == "q")?;
    assert!(plan.options.is_some());
    if args.bitmaps && args.target_format.as_deref() == Some("raw") {
        return Err(no_bitmaps("raw"));
    }
    Err(cannot_create(args, "Could not create 'nowhere/o': No such file or directory"))
}

#[test]
fn a_target_that_can_be_made() {
    let args = arguments("convert -c -O qcow2 -o preallocation=off,size=5 -B b -F raw r o");
    let plan = plan_target(&args, known(&args), (1 << 20) + 1).unwrap();
    let options = plan.options.unwrap();
    assert_eq!(options.number("size"), Some((1 << 20) + 512));
    assert_eq!((options.text("backing_file"), options.text("backing_fmt")), (Some("b"), Some("raw")));
    assert!(plan.has_backing);
    let args = arguments("convert -n -O qcow2 -B b r o");
    let plan = plan_target(&args, known(&args), 512).unwrap();
    assert!(plan.options.is_none() && plan.has_backing);
}

#[test]
fn a_backing_file_contradicts_a_zero_target() {
    let args = arguments("convert -n --target-is-zero -O qcow2 -B b -F raw r o");
    let failure = plan_target(&args, known(&args), 512).unwrap_err();
    let text = "qemu-img: Cannot use --target-is-zero when the destination image has a backing file\n";
    assert_eq!((failure.render("qemu-img").as_str(), failure.code), (text, 1));
}

#[test]
fn trouble_with_opening_is_told_alike() {
    let reference = Reference::new();
    reference.make("create -q r 1M");
    let name = ImageName::from_filename("nowhere").unwrap();
    let failure = cannot_open(&name, "Could not open 'nowhere': No such file or directory");
    assert_eq!(failure.render("qemu-img"), reference.run("info nowhere").stderr);
    assert_eq!(guessed_raw("r").render("qemu-img"), reference.run("bench -w -c 1 r").stderr);
}

fn known(args: &ConvertArgs) -> Known<'_> {
    let Some(ConvertTarget::File(name)) = &args.target else { panic!() };
    let protocol = match name.split_once(':') {
        None => Ok("file"),
        Some((protocol, _)) if DRIVERS.contains(&protocol) => Ok(protocol),
        Some((protocol, _)) => Err(protocol),
    };
    Known { drivers: DRIVERS, protocol }
}

fn arguments(line: &str) -> ConvertArgs {
    let argv: Vec<_> = format!("x {line}").split_whitespace().map(str::to_owned).collect();
    match parse(&argv).map(|invocation| invocation.action) {
        Ok(Action::Run(command)) => match *command {
            Command::Convert(args) => args,
            other => panic!("{other:?}"),
        },
        other => panic!("{line}: {other:?}"),
    }
}
