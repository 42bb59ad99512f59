//! Commands that move or change data.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Op;
use drystone_core::error::{Error, Result as CoreResult};
use drystone_core::graph::open::take;
use drystone_core::graph::{Access, NodeId, Preallocate};
use drystone_core::intent::{Errno, Fua, Permissions, ZeroFlags};
use drystone_exec_linux::Image;
use drystone_tools::io::report::{Report, dump};
use drystone_tools::io::{DiscardArgs, Pattern, ReadArgs, Source, Vectored, WriteArgs};

use crate::shell::{Outcome, Shell, done_if, note_broken};
use crate::{print, say};

/// Bytes by which buffers miss their alignment (`-m`).
const MISALIGNED_BY: usize = 16;

/// Bytes of a sector. A disk has whole ones, even where its file ends within one.
const SECTOR: u64 = 512;

fn buffer(shell: &Shell, len: u64) -> Buf {
    let len = usize::try_from(len).expect("requests are below 2^31 bytes");
    match shell.args.misalign {
        true => Buf::zeroed(len + MISALIGNED_BY).split_off(MISALIGNED_BY),
        false => Buf::zeroed(len),
    }
}

fn buffers(shell: &Shell, lens: &[u64]) -> BufList {
    lens.iter().filter(|len| **len > 0).map(|len| buffer(shell, *len)).collect()
}

fn fill(data: &mut BufList, byte: u8) {
    data.windows_mut().iter_mut().for_each(|window| window.fill(byte));
}

/// Makes a disk that ends within a sector reach to the end of it, where a request does.
async fn reach(image: &Image, op: Op, end: u64) -> CoreResult<()> {
    let len = image.len();
    let changes = !matches!(op, Op::Read | Op::Flush);
    if !changes || end <= len || end > len.next_multiple_of(SECTOR) {
        return Ok(());
    }
    let node = image.node();
    image
        .client()
        .run(async move |io| io.resize(node, len.next_multiple_of(SECTOR), Preallocate::Off).await)
        .await
}

/// Carries a request out. What a disk lacks of its last sector reads as zeros.
async fn carry_out(image: &Image, op: Op, offset: u64, len: u64, data: BufList) -> (BufList, CoreResult<()>) {
    let end = offset.saturating_add(if data.is_empty() { len } else { data.len_bytes() as u64 });
    if let Err(error) = reach(image, op, end).await {
        return (data, Err(error));
    }
    let (size, mut data) = (image.len(), data);
    let within = op == Op::Read && end > size && end <= size.next_multiple_of(SECTOR);
    if !within {
        return image.transfer(op, offset, len, data).await;
    }
    let mut beyond = data;
    data = beyond.split_to(size.saturating_sub(offset) as usize);
    beyond.zero_from(0);
    if data.is_empty() {
        return (beyond, Ok(()));
    }
    let (mut data, result) = image.transfer(op, offset, 0, data).await;
    data.append(beyond);
    (data, result)
}

/// Carries a request out beside those in the background, and measures it.
async fn timed(
    shell: &Shell,
    op: Op,
    (offset, len): (u64, u64),
    data: BufList,
) -> (BufList, CoreResult<()>, Instant) {
    let begun = Instant::now();
    let image = &shell.opened().image;
    let (data, result) = shell.wait(carry_out(image, op, offset, len, data)).await;
    (data, result, begun)
}

fn failed(broken: &Cell<bool>, what: &str, error: &Error) -> Outcome {
    note_broken(broken, error);
    if !broken.get() {
        print(&format!("{what} failed: {}\n", error.errno()));
    }
    Outcome::Failed
}

/// Reads or writes the state of a machine (`-b`), and measures it.
async fn vmstate(
    shell: &Shell,
    access: Access,
    offset: u64,
    data: BufList,
) -> (BufList, CoreResult<()>, Instant) {
    let begun = Instant::now();
    let node = shell.opened().image.node();
    let done = shell.client.run(async move |io| Ok(io.vmstate(node, access, offset, data).await));
    match shell.wait(done).await {
        Ok((data, result)) => (data, result, begun),
        Err(error) => (BufList::new(), Err(error), begun),
    }
}

/// Compares what was read with a pattern; says where they differ.
fn verify(data: &BufList, offset: u64, pattern: Pattern) -> bool {
    let (mut skip, mut left) = (pattern.start as usize, pattern.len as usize);
    let same = data.windows().iter().all(|window| {
        let from = skip.min(window.len());
        skip -= from;
        let some = (window.len() - from).min(left);
        left -= some;
        window[from..from + some].iter().all(|byte| *byte == pattern.byte)
    });
    if !same {
        let at = offset + pattern.start;
        print(&format!("Pattern verification failed at offset {at}, {} bytes\n", pattern.len));
    }
    same
}

pub async fn read(shell: &Shell, args: &ReadArgs) -> Outcome {
    let data = buffers(shell, &[args.count]);
    let (data, result, begun) = match args.vmstate {
        true => vmstate(shell, Access::Read, args.offset, data).await,
        false => timed(shell, Op::Read, (args.offset, args.count), data).await,
    };
    let elapsed = begun.elapsed();
    if let Err(error) = result {
        return failed(&shell.broken, "read", &error);
    }
    let good = args.pattern.is_none_or(|pattern| verify(&data, args.offset, pattern));
    if !args.quiet {
        if args.dump {
            print(&dump(args.offset, &data.into_single()));
        }
        report("read", (args.offset, args.count), elapsed, args.machine);
    }
    done_if(good)
}

/// Shows the statistics of a request.
fn report(verb: &'static str, (offset, count): (u64, u64), elapsed: std::time::Duration, machine: bool) {
    print(&Report { verb, offset, count, elapsed, machine }.render());
}

pub async fn readv(shell: &Shell, args: Vectored) -> Outcome {
    let data = buffers(shell, &args.lens);
    let (data, result, begun) = timed(shell, Op::Read, (args.offset, args.count()), data).await;
    let elapsed = begun.elapsed();
    match result {
        Err(error) => failed(&shell.broken, "readv", &error),
        Ok(()) => done_if(read_vectored(&args, data, elapsed)),
    }
}

/// Shows what was read into several buffers. Tells whether it is what it should be.
fn read_vectored(args: &Vectored, data: BufList, elapsed: std::time::Duration) -> bool {
    let count = args.count();
    let pattern = args.pattern.map(|byte| Pattern { byte, start: 0, len: count });
    let good = pattern.is_none_or(|pattern| verify(&data, args.offset, pattern));
    if !args.quiet {
        if args.dump {
            print(&dump(args.offset, &data.into_single()));
        }
        report("read", (args.offset, count), elapsed, args.machine);
    }
    good
}

/// What a write is to the engine: its verb, and its data. An error has been said.
fn prepare(shell: &Shell, args: &WriteArgs) -> Result<(Op, BufList), Outcome> {
    let fua = if args.fua { Fua::Yes } else { Fua::No };
    let byte = match &args.source {
        Source::Zeroes { may_unmap, no_fallback } => {
            let flags = ZeroFlags { may_unmap: *may_unmap, no_fallback: *no_fallback };
            return Ok((Op::WriteZeroes(flags, fua), BufList::new()));
        }
        Source::Byte(byte) => Ok(*byte),
        Source::File(path) => Err(path),
    };
    let mut data = buffers(shell, &[args.count]);
    match byte {
        Ok(byte) => fill(&mut data, byte),
        Err(path) => fill_from(&mut data, path).map_err(|text| {
            say(&format!("{path}: {text}\n"));
            Outcome::Failed
        })?,
    }
    let op = if args.compressed { Op::WriteCompressed } else { Op::Write(fua) };
    Ok((op, data))
}

/// Fills buffers with the content of a file, over and over.
fn fill_from(data: &mut BufList, path: &str) -> Result<(), String> {
    use std::io::Read;
    let words = |error: std::io::Error| {
        error.raw_os_error().map_or(error.to_string(), |code| Errno(code).to_string())
    };
    let len = data.len_bytes();
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(words)?;
    file.take(len as u64).read_to_end(&mut content).map_err(words)?;
    if content.is_empty() {
        return Err("file is empty".into());
    }
    let mut at = 0;
    while at < len {
        let some = content.len().min(len - at);
        data.copy_in(at, &content[..some]);
        at += some;
    }
    Ok(())
}

/// Refuses compressed writes that the image cannot take.
async fn check_compressed(shell: &Shell, args: &WriteArgs) -> Result<(), Errno> {
    let node: NodeId = shell.opened().image.node();
    let (offset, end) = (args.offset, args.offset.saturating_add(args.count));
    let checked = shell.client.run(async move |io| {
        if end > io.len(node).next_multiple_of(SECTOR) {
            return Ok(Err(Errno::EIO));
        }
        let Some(driver) = io.driver(node).filter(|driver| driver.compresses()) else {
            return Ok(Err(Errno::ENOTSUP));
        };
        let unit = driver.granularity();
        let whole = offset.is_multiple_of(unit) && (end.is_multiple_of(unit) || end == io.len(node));
        Ok(if whole || end > io.len(node) { Ok(()) } else { Err(Errno::EINVAL) })
    });
    shell.wait(checked).await.unwrap_or_else(|error| Err(error.errno()))
}

pub async fn write(shell: &Shell, args: &WriteArgs) -> Outcome {
    let (op, data) = match prepare(shell, args) {
        Ok(prepared) => prepared,
        Err(outcome) => return outcome,
    };
    if args.compressed
        && let Err(errno) = check_compressed(shell, args).await
    {
        print(&format!("write failed: {errno}\n"));
        return Outcome::Failed;
    }
    let (_, result, begun) = match args.vmstate {
        true => vmstate(shell, Access::Write, args.offset, data).await,
        false => timed(shell, op, (args.offset, args.count), data).await,
    };
    let elapsed = begun.elapsed();
    if let Err(error) = result {
        return failed(&shell.broken, "write", &error);
    }
    if !args.quiet {
        report("wrote", (args.offset, args.count), elapsed, args.machine);
    }
    Outcome::Done
}

/// The verb and the data of a write from several buffers.
fn prepare_vectored(shell: &Shell, args: &Vectored) -> (Op, BufList) {
    let fua = if args.fua { Fua::Yes } else { Fua::No };
    if let Some(may_unmap) = args.zeroes {
        return (Op::WriteZeroes(ZeroFlags { may_unmap, no_fallback: false }, fua), BufList::new());
    }
    let mut data = buffers(shell, &args.lens);
    fill(&mut data, args.pattern.unwrap_or(0xcd));
    (Op::Write(fua), data)
}

pub async fn writev(shell: &Shell, args: Vectored) -> Outcome {
    let (op, data) = prepare_vectored(shell, &args);
    let (_, result, begun) = timed(shell, op, (args.offset, args.count()), data).await;
    let elapsed = begun.elapsed();
    if let Err(error) = result {
        return failed(&shell.broken, "writev", &error);
    }
    if !args.quiet {
        report("wrote", (args.offset, args.count()), elapsed, args.machine);
    }
    Outcome::Done
}

pub async fn aio_read(shell: &Shell, args: Vectored) -> Outcome {
    if args.invalid {
        print("injecting invalid read request\n");
        return Outcome::Done;
    }
    let data = buffers(shell, &args.lens);
    let (image, broken) = (shell.opened().image.clone(), Rc::clone(&shell.broken));
    let request = async move {
        let begun = Instant::now();
        match carry_out(&image, Op::Read, args.offset, args.count(), data).await {
            (_, Err(error)) => drop(failed(&broken, "readv", &error)),
            (data, Ok(())) => drop(read_vectored(&args, data, begun.elapsed())),
        }
    };
    shell.background.start(request).await;
    Outcome::Done
}

pub async fn aio_write(shell: &Shell, args: Vectored) -> Outcome {
    if args.invalid {
        print("injecting invalid write request\n");
        return Outcome::Done;
    }
    let (op, data) = prepare_vectored(shell, &args);
    let (image, broken) = (shell.opened().image.clone(), Rc::clone(&shell.broken));
    let request = async move {
        let begun = Instant::now();
        match carry_out(&image, op, args.offset, args.count(), data).await.1 {
            Err(error) => drop(failed(&broken, "aio_write", &error)),
            Ok(()) if args.quiet => {}
            Ok(()) => report("wrote", (args.offset, args.count()), begun.elapsed(), args.machine),
        }
    };
    shell.background.start(request).await;
    Outcome::Done
}

pub async fn flush(shell: &Shell) -> Outcome {
    let result = shell.wait(shell.opened().image.flush()).await;
    done_if(result.is_ok())
}

pub async fn discard(shell: &Shell, args: &DiscardArgs) -> Outcome {
    let (_, result, begun) = timed(shell, Op::Discard, (args.offset, args.count), BufList::new()).await;
    let elapsed = begun.elapsed();
    if let Err(error) = result {
        return failed(&shell.broken, "discard", &error);
    }
    if !args.quiet {
        report("discard", (args.offset, args.count), elapsed, args.machine);
    }
    Outcome::Done
}

pub async fn truncate(shell: &Shell, len: u64, preallocation: Preallocate) -> Outcome {
    let node = shell.opened().image.node();
    let changed = shell.client.run(async move |io| {
        take(&io, node, Permissions::RESIZE).await?;
        io.resize(node, len, preallocation).await
    });
    match shell.wait(changed).await {
        Ok(()) => Outcome::Done,
        Err(error) => {
            shell.report(&error.to_string());
            Outcome::Failed
        }
    }
}
