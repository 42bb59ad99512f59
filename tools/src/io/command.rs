//! The commands: from a line to what it asks for.

use std::time::Duration;

use drystone_core::graph::Preallocate;

use super::flags::{self, Flags};
use super::number::{milliseconds, number};
use super::transfer::{self, DiscardArgs, ReadArgs, Vectored, WriteArgs};
use super::zones;
use crate::img::args::CacheMode;
use crate::options::switch_warnings;

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the commands")]
pub enum Command {
    Read(ReadArgs),
    Readv(Vectored),
    Write(WriteArgs),
    Writev(Vectored),
    AioRead(Vectored),
    AioWrite(Vectored),
    AioFlush,
    Flush,
    Discard(DiscardArgs),
    Truncate {
        len: u64,
        preallocation: Preallocate,
    },
    Alloc {
        offset: u64,
        count: u64,
    },
    Map,
    Length,
    Info,
    Open(OpenCommand),
    Close,
    Reopen(ReopenCommand),
    Sleep(Duration),
    Raise(i32),
    Abort,
    Help(Option<String>),
    Quit,
    Break {
        event: String,
        tag: String,
    },
    RemoveBreak(String),
    Resume(String),
    WaitBreak(String),
    /// What nothing here can do: the complaint goes to the error stream, the text to the standard output.
    Refused {
        complaint: Option<String>,
        text: String,
    },
}

/// `open`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenCommand {
    /// `-r`.
    pub read_only: bool,
    /// `-s`: write to an overlay that goes when the image is closed.
    pub snapshot: bool,
    /// `-C`.
    pub copy_on_read: bool,
    /// `-U`.
    pub force_share: bool,
    /// `-t`, `-n`; without either, writes are durable when they complete.
    pub cache: Option<CacheMode>,
    /// `-d`: whether discards reach the host.
    pub discard: Option<bool>,
    /// `-i`, `-k`.
    pub aio: Option<drystone_core::intent::Aio>,
    /// `-o`: options, in lists.
    pub options: Vec<String>,
    /// The file name.
    pub path: Option<String>,
}

/// `reopen`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReopenCommand {
    /// `-w` or `-r`.
    pub writable: Option<bool>,
    /// `-c`.
    pub cache: Option<CacheMode>,
    /// `-o`.
    pub options: Vec<String>,
}

/// Why a line is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This is said on the standard output.
    Said(String),
    /// This is said on the error stream.
    Complained(String),
    /// This is said on the error stream, with the name of the tool before it.
    Reported(String),
    /// How the command is used is said on the standard output, and this on the error stream before.
    Usage(Option<String>),
    /// The warnings that lists of options deserve, and then why.
    After(Vec<String>, Box<Refusal>),
}

impl Refusal {
    /// The same, behind the warnings that lists of options deserve.
    fn after(self, lists: &[String]) -> Self {
        match switch_warnings(lists) {
            none if none.is_empty() => self,
            warnings => Self::After(warnings, Box::new(self)),
        }
    }

    /// Refuses a flag that the command does not have.
    pub(super) fn of_bad(flags: &Flags) -> Result<(), Self> {
        match &flags.bad {
            None => Ok(()),
            Some(bad) => Err(Self::Usage(Some(bad.0.clone()))),
        }
    }
}

/// What a command needs of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None at all.
    Nothing,
    /// One that is open.
    Image,
    /// One that is open for writing.
    WritableImage,
}

/// One command.
#[derive(Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// A shorter one.
    pub alias: Option<&'static str>,
    /// What it takes.
    pub usage: &'static str,
    /// A line about it.
    pub about: &'static str,
    /// Its flags; a colon follows those with a value.
    pub(super) flags: &'static str,
    /// Words after the name, at the least and at the most.
    pub(super) words: (usize, Option<usize>),
    /// What it needs.
    pub needs: Needs,
    parse: fn(Flags) -> Result<Command, Refusal>,
}

/// All commands, in alphabetical order.
pub const COMMANDS: &[Spec] = &[
    spec("abort", None, "", "end as a crash would, with nothing written out")
        .words(0, 0, |_| Ok(Command::Abort)),
    spec("aio_flush", None, "", "wait for all requests in the background")
        .words(0, 0, |_| Ok(Command::AioFlush))
        .on_image(),
    spec("aio_read", None, "[-Ciqrv] [-P pattern] off len [len..]", "read in the background")
        .flags("CP:iqrv", |flags| transfer::vectored(flags).map(Command::AioRead))
        .on_image(),
    spec("aio_write", None, "[-Cfiqruz] [-P pattern] off len [len..]", "write in the background")
        .flags("CfiP:qruz", |flags| transfer::vectored(flags).map(Command::AioWrite))
        .on_writable(),
    spec("alloc", None, "offset [count]", "tell how much of a range the image itself holds")
        .words(1, 2, alloc)
        .on_image(),
    spec("break", None, "event tag", "hold up the next request that comes to the event")
        .words(2, 2, set_break)
        .on_image(),
    spec("close", Some("c"), "", "close the image").words(0, 0, |_| Ok(Command::Close)).on_image(),
    spec("discard", Some("d"), "[-Cq] off len", "give up the content of a range")
        .flags("Cq", |flags| transfer::discard(flags).map(Command::Discard))
        .on_writable(),
    spec("flush", Some("f"), "", "make durable what was written")
        .words(0, 0, |_| Ok(Command::Flush))
        .on_image(),
    spec("help", Some("?"), "[command]", "tell about all commands, or more about one")
        .words(0, 1, |flags| Ok(Command::Help(flags.operands.into_iter().next()))),
    spec("info", Some("i"), "", "tell about the image").words(0, 0, |_| Ok(Command::Info)).on_image(),
    spec("length", Some("l"), "", "tell how long the image is")
        .words(0, 0, |_| Ok(Command::Length))
        .on_image(),
    spec("map", None, "", "tell which ranges the image itself holds")
        .words(0, 0, |_| Ok(Command::Map))
        .on_image(),
    spec(
        "open",
        Some("o"),
        "[-rsCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]",
        "open an image",
    )
    .at_least(1, "snCro:ki:t:d:U", open),
    spec("quit", Some("q"), "", "end").at_least(0, "", |_| Ok(Command::Quit)),
    spec("read", Some("r"), "[-bCpqrv] [-P pattern [-s off] [-l len]] off len", "read")
        .flags("bCl:pP:qrs:v", |flags| transfer::read(flags).map(Command::Read))
        .on_image(),
    spec("readv", None, "[-Cqrv] [-P pattern] off len [len..]", "read into several buffers")
        .flags("CP:qrv", |flags| transfer::vectored(flags).map(Command::Readv))
        .on_image(),
    spec("remove_break", None, "tag", "take a breakpoint back")
        .words(1, 1, |flags| Ok(Command::RemoveBreak(first(flags))))
        .on_image(),
    spec("reopen", None, "[(-r|-w)] [-c cache] [-o options]", "open the image again, in another way")
        .at_least(0, "c:o:rw", reopen)
        .on_image(),
    spec("resume", None, "tag", "let a request go on")
        .words(1, 1, |flags| Ok(Command::Resume(first(flags))))
        .on_image(),
    spec("sigraise", None, "signal", "end by a signal").words(1, 1, sigraise),
    spec("sleep", None, "milliseconds", "let time pass").words(1, 1, sleep),
    spec("truncate", Some("t"), "[-m prealloc_mode] off", "change the length of the image")
        .between(1, 3, "m:", truncate)
        .on_writable(),
    spec("wait_break", None, "tag", "wait until a request is held up")
        .words(1, 1, |flags| Ok(Command::WaitBreak(first(flags))))
        .on_image(),
    spec("write", Some("w"), "[-bcCfnpqruz] [-P pattern | -s source_file] off len", "write")
        .flags("bcCfnpP:qrs:uz", |flags| transfer::write(flags).map(Command::Write))
        .on_writable(),
    spec("writev", None, "[-Cfqr] [-P pattern] off len [len..]", "write from several buffers")
        .flags("CfP:qr", |flags| transfer::vectored(flags).map(Command::Writev))
        .on_writable(),
    spec("zone_append", Some("zap"), "offset len [len..]", "write at the end of a zone")
        .words(3, 4, zones::append)
        .on_image(),
    spec("zone_close", Some("zc"), "offset len", "close zones").words(2, 2, zones::close).on_image(),
    spec("zone_finish", Some("zf"), "offset len", "call zones full").words(2, 2, zones::finish).on_image(),
    spec("zone_open", Some("zo"), "offset len", "open zones").words(2, 2, zones::open).on_image(),
    spec("zone_report", Some("zrp"), "offset number", "tell about zones")
        .words(2, 2, zones::report)
        .on_image(),
    spec("zone_reset", Some("zrs"), "offset len", "empty zones").words(2, 2, zones::reset).on_image(),
];

const fn spec(
    name: &'static str,
    alias: Option<&'static str>,
    usage: &'static str,
    about: &'static str,
) -> Spec {
    let (flags, words, needs) = ("", (0, None), Needs::Nothing);
    Spec { name, alias, usage, about, flags, words, needs, parse: |_| Err(Refusal::Usage(None)) }
}

type Parse = fn(Flags) -> Result<Command, Refusal>;

impl Spec {
    /// Without flags, so that words are taken as they are.
    const fn words(self, min: usize, max: usize, parse: Parse) -> Self {
        Self { words: (min, Some(max)), parse, ..self }
    }

    const fn flags(self, flags: &'static str, parse: Parse) -> Self {
        Self { flags, words: (2, None), parse, ..self }
    }

    const fn at_least(self, min: usize, flags: &'static str, parse: Parse) -> Self {
        Self { flags, words: (min, None), parse, ..self }
    }

    const fn between(self, min: usize, max: usize, flags: &'static str, parse: Parse) -> Self {
        Self { flags, words: (min, Some(max)), parse, ..self }
    }

    const fn on_image(self) -> Self {
        Self { needs: Needs::Image, ..self }
    }

    const fn on_writable(self) -> Self {
        Self { needs: Needs::WritableImage, ..self }
    }

    /// How it is used, in one line.
    #[must_use]
    pub fn usage_line(&self) -> String {
        let space = if self.usage.is_empty() { "" } else { " " };
        format!("{}{space}{} -- {}\n", self.name, self.usage, self.about)
    }

    /// Refuses too few words, or too many; `words` has the command's name first.
    ///
    /// # Errors
    /// [`Refusal::Complained`].
    pub fn check_count(&self, words: &[String]) -> Result<(), Refusal> {
        let (count, (min, max)) = (words.len() - 1, self.words);
        if count >= min && max.is_none_or(|max| count <= max) {
            return Ok(());
        }
        let expected = match max {
            None => format!("at least {min} arguments"),
            Some(max) if max == min => format!("{min} arguments"),
            Some(max) => format!("between {min} and {max} arguments"),
        };
        Err(Refusal::Complained(format!("bad argument count {count} to {}, expected {expected}", words[0])))
    }

    /// Reads the words of a line, the command's name first.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(&self, words: &[String]) -> Result<Command, Refusal> {
        let flags = match self.flags {
            "" => Flags { flags: Vec::new(), bad: None, operands: words[1..].to_vec(), first: None },
            known => flags::read(known, words),
        };
        (self.parse)(flags)
    }
}

/// The words of a line. Blanks are all that separates them; nothing quotes.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The command of that name.
///
/// # Errors
/// [`Refusal::Complained`] when there is none.
pub fn find(name: &str) -> Result<&'static Spec, Refusal> {
    let found = COMMANDS.iter().find(|spec| spec.name == name || spec.alias == Some(name));
    found.ok_or_else(|| Refusal::Complained(format!("command \"{name}\" not found")))
}

fn first(flags: Flags) -> String {
    flags.operands.into_iter().next().unwrap_or_default()
}

fn alloc(flags: Flags) -> Result<Command, Refusal> {
    let offset = number(&flags.operands[0])?;
    let count = flags.operands.get(1).map_or(Ok(super::number::SECTOR), |text| number(text))?;
    Ok(Command::Alloc { offset, count })
}

fn set_break(flags: Flags) -> Result<Command, Refusal> {
    let [event, tag] = <[String; 2]>::try_from(flags.operands).map_err(|_| Refusal::Usage(None))?;
    Ok(Command::Break { event, tag })
}

fn sleep(flags: Flags) -> Result<Command, Refusal> {
    milliseconds(&first(flags)).map(|time| Command::Sleep(Duration::from_millis(time)))
}

/// Signals beyond this number do not exist.
const SIGNAL_MAX: u64 = 65;

fn sigraise(flags: Flags) -> Result<Command, Refusal> {
    let text = first(flags);
    let signal = number(&text)?;
    match i32::try_from(signal) {
        Ok(number) if signal <= SIGNAL_MAX => Ok(Command::Raise(number)),
        _ => Err(Refusal::Said(format!("signal argument '{text}' is too large to be a valid signal"))),
    }
}

fn truncate(flags: Flags) -> Result<Command, Refusal> {
    let mut preallocation = Preallocate::Off;
    for (_, mode) in &flags.flags {
        preallocation = match mode.as_str() {
            "off" => Preallocate::Off,
            "metadata" => Preallocate::Metadata,
            "falloc" => Preallocate::Falloc,
            "full" => Preallocate::Full,
            other => return Err(Refusal::Reported(format!("Invalid preallocation mode '{other}'"))),
        };
    }
    Refusal::of_bad(&flags)?;
    // Where there is no length, or none that is a number, the reference names what comes first, flags as well.
    let Some(first) = &flags.first else { return Err(Refusal::Usage(None)) };
    let len = flags.operands.first().map_or("", String::as_str);
    let len = number(len).map_err(|refusal| match refusal {
        Refusal::Said(text) => {
            Refusal::Said(format!("{} -- {first}", text.strip_suffix(&format!(" -- {len}")).unwrap_or(&text)))
        }
        other => other,
    })?;
    Ok(Command::Truncate { len, preallocation })
}

fn open(flags: Flags) -> Result<Command, Refusal> {
    let mut open = OpenCommand::default();
    match read_open(&mut open, &flags) {
        Ok(()) => Ok(Command::Open(open)),
        Err(refusal) => Err(refusal.after(&open.options)),
    }
}

fn read_open(open: &mut OpenCommand, flags: &Flags) -> Result<(), Refusal> {
    for (flag, value) in &flags.flags {
        match flag {
            's' => open.snapshot = true,
            'n' => open.cache = Some(CacheMode { direct: true, ..CacheMode::WRITEBACK }),
            'C' => open.copy_on_read = true,
            'r' => open.read_only = true,
            'k' => open.aio = Some(drystone_core::intent::Aio::Native),
            't' => open.cache = Some(cache(value)?),
            'd' => open.discard = Some(discard(value)?),
            'i' => open.aio = Some(aio(value)?),
            'o' => open.options.push(value.clone()),
            _ => open.force_share = true,
        }
    }
    Refusal::of_bad(flags)?;
    match flags.operands.as_slice() {
        [] => {}
        [path] => open.path = Some(path.clone()),
        _ => return Err(Refusal::Usage(None)),
    }
    Ok(())
}

fn reopen(flags: Flags) -> Result<Command, Refusal> {
    let mut reopen = ReopenCommand::default();
    match read_reopen(&mut reopen, &flags) {
        Ok(()) => Ok(Command::Reopen(reopen)),
        Err(refusal) => Err(refusal.after(&reopen.options)),
    }
}

fn read_reopen(reopen: &mut ReopenCommand, flags: &Flags) -> Result<(), Refusal> {
    for (flag, value) in &flags.flags {
        match flag {
            'c' => reopen.cache = Some(cache(value)?),
            'o' => reopen.options.push(value.clone()),
            _ if reopen.writable.is_some() => {
                return Err(Refusal::Reported("Only one -r/-w option may be given".into()));
            }
            flag => reopen.writable = Some(*flag == 'w'),
        }
    }
    Refusal::of_bad(flags)?;
    match flags.operands.is_empty() {
        true => Ok(()),
        false => Err(Refusal::Usage(None)),
    }
}

/// Reads a cache mode.
pub(super) fn cache(name: &str) -> Result<CacheMode, Refusal> {
    CacheMode::parse(name).ok_or_else(|| Refusal::Reported(format!("Invalid cache option: {name}")))
}

/// Reads whether discards reach the host.
pub(super) fn discard(name: &str) -> Result<bool, Refusal> {
    match name {
        "ignore" | "off" => Ok(false),
        "unmap" | "on" => Ok(true),
        _ => Err(Refusal::Reported(format!("Invalid discard option: {name}"))),
    }
}

/// Reads an interface of the kernel.
pub(crate) fn aio(name: &str) -> Result<drystone_core::intent::Aio, Refusal> {
    use drystone_core::intent::Aio;
    match name {
        "threads" => Ok(Aio::Threads),
        "native" => Ok(Aio::Native),
        "io_uring" => Ok(Aio::IoUring),
        _ => Err(Refusal::Reported(format!("Invalid aio option: {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, Refusal> {
        let words = words(line);
        let spec = find(&words[0])?;
        spec.check_count(&words)?;
        spec.parse(&words)
    }

    #[test]
    fn commands_stand_in_order() {
        assert!(COMMANDS.is_sorted_by_key(|spec| spec.name));
    }

    #[test]
    fn lines_are_read() {
        let read = ReadArgs {
            offset: 512,
            count: 1024,
            pattern: Some(transfer::Pattern { byte: 8, start: 0, len: 1024 }),
            dump: false,
            quiet: true,
            machine: false,
            vmstate: false,
        };
        assert_eq!(parsed("read  -P 010 0x200 1k -q"), Ok(Command::Read(read.clone())));
        assert_eq!(parsed("r -qP8 .5k 1024b"), Ok(Command::Read(read)));
        assert_eq!(parsed("alloc 1k"), Ok(Command::Alloc { offset: 1024, count: 512 }));
        let falloc = Command::Truncate { len: 1 << 20, preallocation: Preallocate::Falloc };
        assert_eq!(parsed("truncate -m falloc 1M"), Ok(falloc));
    }

    #[test]
    fn hostile_lines_are_refused() {
        for line in [
            "read",
            "read 0 9999999999999999999999",
            "read 16E 1",
            "read 0 3G",
            "read -P 256 0 1",
            "read -P 0 -s 8E -l 8E 0 1",
            "write -n 0 1",
            "write -s",
            "readv 0 2G 2G",
            "readv 0 1G 1G 1G",
            "sleep -1",
            "sigraise 66",
            "truncate",
            "truncate -m x 1",
            "open a b",
            "reopen -rw",
            "discard 0 -1",
            "unheard-of",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
