//! What every executor refuses, in the same words.
//!
//! Start at [`refusals`].

use drystone_core::buf::Buf;
use drystone_core::engine::Op;
use drystone_core::error::{Error, FaultKind};
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec};
use drystone_core::intent::{Errno, Fua, Location, ZeroFlags};

use crate::scenario::{Ask, RunError, Runner, one};

/// What became of a request that is refused, or of one beside it that is not: for comparison between executors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked.
    pub what: String,
    /// The kind of error, its number, and its words; the bytes that were read, where it worked.
    pub answer: Answer,
}

type Answer = Result<Vec<u8>, (FaultKind, Errno, String)>;

/// Opens an image for reading and then for writing, asks for what cannot be, and returns the answers; then tries to
/// open what is not there.
///
/// # Errors
/// When something works or fails that must not, whatever the image.
pub fn refusals(runner: &mut dyn Runner, spec: &NodeSpec) -> Result<Vec<Refusal>, String> {
    let reading = reading(spec);
    let mut answers = Vec::new();
    for (mode, spec) in [("read-only", &reading), ("writable", spec)] {
        runner.open(spec).map_err(|error| format!("{mode}: open: {error}"))?;
        let size = runner.size();
        for Probe { name, op, offset, len, wanted } in probes(size, mode == "writable") {
            let answer = ask(runner, op, offset, len)?;
            let what = format!("{mode}: {name}: {op:?} {offset}+{len} of {size}");
            let right = match (&answer, wanted) {
                (Ok(_), Wanted::Works) => true,
                (Err((kind, errno, _)), Wanted::Misuse) => *kind == FaultKind::Misuse && *errno == Errno::EIO,
                (Err((_, errno, _)), Wanted::ReadOnly) => *errno == Errno::EPERM,
                _ => false,
            };
            if !right {
                return Err(format!("{what}: {wanted:?} was wanted, not {answer:?}"));
            }
            answers.push(Refusal { what, answer });
        }
        runner.close().map_err(|error| format!("{mode}: close: {error}"))?;
    }
    let absent = renamed(&reading);
    answers.push(match runner.open(&absent) {
        Ok(()) => return Err("a file that is not there was opened".into()),
        Err(error) => Refusal { what: "absent".into(), answer: Err(described(error)?) },
    });
    Ok(answers)
}

struct Probe {
    name: &'static str,
    op: Op,
    offset: u64,
    len: u64,
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    Works,
    /// Refused as a mistake of the caller.
    Misuse,
    /// Refused because the image is open for reading.
    ReadOnly,
}

fn probes(size: u64, writable: bool) -> Vec<Probe> {
    let zeroes = Op::WriteZeroes(ZeroFlags::default(), Fua::No);
    let changes = [Op::Write(Fua::No), Op::Write(Fua::Yes), zeroes, Op::Discard];
    let places = [
        ("at the end", size, 1),
        ("across the end", size - 100, 101),
        ("far beyond", size + (1 << 40), 512),
        ("past every offset", u64::MAX - 5, 6),
        ("whose end overflows", u64::MAX, 2),
        ("larger than any disk", 0, i64::MAX as u64 + 1),
    ];
    let mut probes = vec![
        Probe { name: "the last byte", op: Op::Read, offset: size - 1, len: 1, wanted: Wanted::Works },
        Probe { name: "a flush", op: Op::Flush, offset: 0, len: 0, wanted: Wanted::Works },
    ];
    for op in [Op::Read].into_iter().chain(changes) {
        // Data has to be somewhere, so there is no more of it than memory.
        let carries = matches!(op, Op::Read | Op::Write(_));
        let possible = places.iter().filter(|(.., len)| !carries || *len < 1 << 20);
        let wanted = if writable || op == Op::Read { Wanted::Misuse } else { Wanted::ReadOnly };
        probes.extend(possible.map(|&(name, offset, len)| Probe { name, op, offset, len, wanted }));
    }
    if !writable {
        let inside =
            changes.map(|op| Probe { name: "inside", op, offset: 0, len: 512, wanted: Wanted::ReadOnly });
        probes.extend(inside);
    }
    probes.push(Probe {
        name: "the same byte again",
        op: Op::Read,
        offset: size - 1,
        len: 1,
        wanted: Wanted::Works,
    });
    probes
}

fn ask(runner: &mut dyn Runner, op: Op, offset: u64, len: u64) -> Result<Answer, String> {
    let carries = matches!(op, Op::Read | Op::Write(_));
    let data = if carries { Buf::zeroed(len as usize).into() } else { drystone_core::buf::BufList::new() };
    match one(runner, Ask { op, offset, len, data, tag: 7 }) {
        Ok(reply) if op == Op::Read => Ok(Ok(reply.data.into_single().to_vec())),
        Ok(_) => Ok(Ok(Vec::new())),
        Err(error) => Ok(Err(described(error)?)),
    }
}

fn described(error: RunError) -> Result<(FaultKind, Errno, String), String> {
    match error {
        RunError::Stopped(stopped) => Err(stopped.to_string()),
        RunError::Core(error) => Ok((error.kind(), error.errno(), Error::with_file(&error))),
    }
}

/// The same tree, opened for reading.
fn reading(spec: &NodeSpec) -> NodeSpec {
    let mut spec = spec.clone();
    each_node(&mut spec, &mut |node| node.mode.writable = false);
    spec
}

/// The same tree of files that are not there.
fn renamed(spec: &NodeSpec) -> NodeSpec {
    let mut spec = spec.clone();
    each_node(&mut spec, &mut |node| {
        if let DriverSpec::Leaf(Location::Path(path)) = &mut node.driver {
            path.push_str(".absent");
        }
    });
    spec
}

fn each_node(spec: &mut NodeSpec, change: &mut dyn FnMut(&mut NodeSpec)) {
    change(spec);
    let mut children: Vec<&mut NodeSpec> = Vec::new();
    let mut named = Vec::new();
    match &mut spec.driver {
        DriverSpec::Raw { file, .. } => children.push(file),
        DriverSpec::Qcow2 { file, backing, data_file, .. } => {
            children.push(file);
            named.extend([backing, data_file]);
        }
        DriverSpec::Probe { file, backing, .. } | DriverSpec::Image { file, backing, .. } => {
            children.push(file);
            named.push(backing);
        }
        _ => {}
    }
    children.extend(named.into_iter().filter_map(|child| match child {
        ChildSpec::Spec(spec) => Some(&mut **spec),
        _ => None,
    }));
    children.into_iter().for_each(|child| each_node(child, change));
}
