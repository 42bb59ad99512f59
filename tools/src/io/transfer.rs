//! Commands that move or change data: what they take.

use super::command::Refusal;
use super::flags::Flags;
use super::number::{REQUEST_MAX, number, pattern, whole_sectors};

/// What the bytes that are read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Each of them.
    pub byte: u8,
    /// From this byte of the request on.
    pub start: u64,
    /// So many.
    pub len: u64,
}

/// `read`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadArgs {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub count: u64,
    /// `-P`, `-s`, `-l`.
    pub pattern: Option<Pattern>,
    /// `-v`: show the bytes.
    pub dump: bool,
    /// `-q`: say nothing of success.
    pub quiet: bool,
    /// `-C`: say it for machines.
    pub machine: bool,
    /// `-b`: the state of the machine rather than the disk.
    pub vmstate: bool,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This byte, over and over.
    Byte(u8),
    /// The content of a file, over and over (`-s`).
    File(String),
    /// Zeros, as such (`-z`).
    Zeroes {
        /// `-u`.
        may_unmap: bool,
        /// `-n`.
        no_fallback: bool,
    },
}

/// `write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteArgs {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub count: u64,
    /// What.
    pub source: Source,
    /// `-c`: compressed.
    pub compressed: bool,
    /// `-f`: durable on completion.
    pub fua: bool,
    /// `-q`: say nothing of success.
    pub quiet: bool,
    /// `-C`: say it for machines.
    pub machine: bool,
    /// `-b`: the state of the machine rather than the disk.
    pub vmstate: bool,
}

/// `readv`, `writev`, `aio_read`, `aio_write`: a request with several buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vectored {
    /// First byte.
    pub offset: u64,
    /// Bytes of each buffer.
    pub lens: Vec<u64>,
    /// `-P`: what is written, or what must be read.
    pub pattern: Option<u8>,
    /// `-v`: show the bytes.
    pub dump: bool,
    /// `-q`: say nothing of success.
    pub quiet: bool,
    /// `-C`: say it for machines.
    pub machine: bool,
    /// `-f`: durable on completion.
    pub fua: bool,
    /// `-z`, and `-u`: zeros, which may unmap.
    pub zeroes: Option<bool>,
    /// `-i`: no request at all; it only counts as an invalid one.
    pub invalid: bool,
}

impl Vectored {
    /// Bytes of all buffers.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.lens.iter().sum()
    }
}

/// `discard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscardArgs {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub count: u64,
    /// `-q`: say nothing of success.
    pub quiet: bool,
    /// `-C`: say it for machines.
    pub machine: bool,
}

fn said(text: impl Into<String>) -> Refusal {
    Refusal::Said(text.into())
}

/// The two operands of a request.
fn offset_and_count(flags: &Flags) -> Result<(u64, &str), Refusal> {
    match flags.operands.as_slice() {
        [offset, count] => Ok((number(offset)?, count)),
        _ => Err(Refusal::Usage(None)),
    }
}

fn at_most(count: u64, text: &str, max: u64, note: &str) -> Result<(), Refusal> {
    match count <= max {
        true => Ok(()),
        false => Err(said(format!("length cannot exceed {REQUEST_MAX}{note}, given {text}"))),
    }
}

pub(super) fn read(flags: Flags) -> Result<ReadArgs, Refusal> {
    let (mut byte, mut start, mut len) = (None, None, None);
    let (mut dump, mut quiet, mut machine, mut vmstate, mut registered) = (false, false, false, false, false);
    for (flag, value) in &flags.flags {
        match flag {
            'b' => vmstate = true,
            'C' => machine = true,
            'l' => len = Some(number(value)?),
            'P' => byte = Some(pattern(value)?),
            'q' => quiet = true,
            'r' => registered = true,
            's' => start = Some(number(value)?),
            'v' => dump = true,
            // `-p` chooses nothing: reads have one way.
            _ => {}
        }
    }
    Refusal::of_bad(&flags)?;
    let (offset, text) = offset_and_count(&flags)?;
    let count = number(text)?;
    at_most(count, text, REQUEST_MAX, "")?;
    if byte.is_none() && (start.is_some() || len.is_some()) {
        return Err(Refusal::Usage(None));
    }
    let first = start.unwrap_or(0);
    let checked = match len {
        Some(len) => Some(len),
        None => count.checked_sub(first),
    };
    let checked = checked.filter(|len| len.checked_add(first).is_some_and(|end| end <= count));
    let checked = checked.ok_or_else(|| said("pattern verification range exceeds end of read data"))?;
    if vmstate {
        whole_sectors(offset, count)?;
        // Otherwise it chooses nothing: buffers are the executor's.
        if registered {
            return Err(said("I/O buffer registration is not supported when reading from vmstate"));
        }
    }
    let pattern = byte.map(|byte| Pattern { byte, start: first, len: checked });
    Ok(ReadArgs { offset, count, pattern, dump, quiet, machine, vmstate })
}

pub(super) fn write(flags: Flags) -> Result<WriteArgs, Refusal> {
    let (mut byte, mut file) = (None, None);
    for (flag, value) in &flags.flags {
        match flag {
            'P' => byte = Some(pattern(value)?),
            's' => file = Some(value.clone()),
            _ => {}
        }
    }
    Refusal::of_bad(&flags)?;
    let set = |letter: char| flags.flags.iter().any(|(flag, _)| *flag == letter);
    if flags.operands.len() != 2 {
        return Err(Refusal::Usage(None));
    }
    for (wrong, text) in [
        (set('b') && set('z'), "-b and -z cannot be specified at the same time"),
        (set('f') && (set('b') || set('c')), "-f and -b or -c cannot be specified at the same time"),
        (set('n') && !set('z'), "-n requires -z to be specified"),
        (set('u') && !set('z'), "-u requires -z to be specified"),
        (set('z') && set('r'), "cannot combine zero write with registered I/O buffer"),
        (
            usize::from(set('z')) + usize::from(byte.is_some()) + usize::from(file.is_some()) > 1,
            "Only one of -z, -P, and -s can be specified at the same time",
        ),
    ] {
        if wrong {
            return Err(said(text));
        }
    }
    let (offset, text) = offset_and_count(&flags)?;
    let count = number(text)?;
    match (set('z'), set('n')) {
        (true, true) => {}
        (true, false) => at_most(count, text, REQUEST_MAX, " without -n")?,
        _ => at_most(count, text, REQUEST_MAX, "")?,
    }
    if set('b') || set('c') {
        whole_sectors(offset, count)?;
    }
    let source = match (set('z'), file) {
        (true, _) => Source::Zeroes { may_unmap: set('u'), no_fallback: set('n') },
        (false, Some(file)) => Source::File(file),
        (false, None) => Source::Byte(byte.unwrap_or(FILL)),
    };
    Ok(WriteArgs {
        offset,
        count,
        source,
        // The state of a machine is written as it is.
        compressed: set('c') && !set('z') && !set('b'),
        fua: set('f'),
        quiet: set('q'),
        machine: set('C'),
        vmstate: set('b'),
    })
}

/// The byte that is written where none is given.
pub(super) const FILL: u8 = 0xcd;

pub(super) fn vectored(flags: Flags) -> Result<Vectored, Refusal> {
    let mut byte = None;
    for (flag, value) in &flags.flags {
        if *flag == 'P' {
            byte = Some(pattern(value)?);
        }
    }
    let set = |letter: char| flags.flags.iter().any(|(flag, _)| *flag == letter);
    // The reference counts a request as invalid as soon as it meets the flag.
    let invalid = set('i');
    if invalid {
        let none = Vectored {
            offset: 0,
            lens: Vec::new(),
            pattern: None,
            dump: false,
            quiet: false,
            machine: false,
            fua: false,
            zeroes: None,
            invalid,
        };
        return Ok(none);
    }
    Refusal::of_bad(&flags)?;
    let Some((offset, lens)) = flags.operands.split_first().filter(|(_, lens)| !lens.is_empty()) else {
        return Err(Refusal::Usage(None));
    };
    for (wrong, text) in [
        (set('z') && lens.len() > 1, "-z supports only a single length parameter"),
        (set('z') && set('r'), "cannot combine zero write with registered I/O buffer"),
        (set('u') && !set('z'), "-u requires -z to be specified"),
    ] {
        if wrong {
            return Err(said(text));
        }
    }
    let offset = number(offset)?;
    let mut all = 0;
    let mut buffers = Vec::new();
    for text in lens {
        let len = number(text)?;
        if len > REQUEST_MAX {
            return Err(said(format!("Argument '{text}' exceeds maximum size {REQUEST_MAX}")));
        }
        all += len;
        if all > REQUEST_MAX {
            return Err(said(format!("The total number of bytes exceed the maximum size {REQUEST_MAX}")));
        }
        buffers.push(len);
    }
    Ok(Vectored {
        offset,
        lens: buffers,
        pattern: byte,
        dump: set('v'),
        quiet: set('q'),
        machine: set('C'),
        fua: set('f'),
        zeroes: set('z').then(|| set('u')),
        invalid,
    })
}

pub(super) fn discard(flags: Flags) -> Result<DiscardArgs, Refusal> {
    Refusal::of_bad(&flags)?;
    let (offset, text) = offset_and_count(&flags)?;
    let count = number(text)?;
    at_most(count, text, REQUEST_MAX, "")?;
    let set = |letter: char| flags.flags.iter().any(|(flag, _)| *flag == letter);
    Ok(DiscardArgs { offset, count, quiet: set('q'), machine: set('C') })
}
