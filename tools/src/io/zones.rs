//! The commands of zoned devices. No node here has zones, so each ends as the reference's does on a disk without: what it
//! takes is read, and then it is refused.

use super::command::{Command, Refusal};
use super::flags::Flags;
use super::number::{REQUEST_MAX, number};

/// `zone_report OFFSET NUMBER`.
pub(super) fn report(flags: Flags) -> Result<Command, Refusal> {
    number(&flags.operands[0])?;
    match number(&flags.operands[1])? {
        0..=0xffff_ffff => unsupported("report"),
        _ => Err(Refusal::Said("Number of zones must be less than 2^32".into())),
    }
}

/// `zone_open OFFSET LEN`.
pub(super) fn open(flags: Flags) -> Result<Command, Refusal> {
    range(&flags, "open")
}

/// `zone_close OFFSET LEN`.
pub(super) fn close(flags: Flags) -> Result<Command, Refusal> {
    range(&flags, "close")
}

/// `zone_finish OFFSET LEN`.
pub(super) fn finish(flags: Flags) -> Result<Command, Refusal> {
    range(&flags, "finish")
}

/// `zone_reset OFFSET LEN`.
pub(super) fn reset(flags: Flags) -> Result<Command, Refusal> {
    range(&flags, "reset")
}

/// `zone_append OFFSET LEN [LEN..]`. The reference complains of the first word that looks like a flag, and goes on.
pub(super) fn append(flags: Flags) -> Result<Command, Refusal> {
    let flag = flags.operands.iter().position(|word| word.starts_with('-') && word.len() > 1);
    let mut numbers = flags.operands.iter().enumerate().filter(|(at, _)| Some(*at) != flag);
    let complaint = flag.map(|at| {
        let letter = flags.operands[at].chars().nth(1).unwrap_or_default();
        format!("zone_append: invalid option -- '{letter}'")
    });
    let mut read = || {
        if let Some((_, offset)) = numbers.next() {
            number(offset)?;
        }
        for (_, text) in numbers.by_ref() {
            if number(text)? > REQUEST_MAX {
                let text = format!("Argument '{text}' exceeds maximum size {REQUEST_MAX}");
                return Err(Refusal::Said(text));
            }
        }
        Ok(())
    };
    match (read(), complaint) {
        (Err(Refusal::Said(text)), complaint) => Ok(Command::Refused { complaint, text }),
        (Err(refusal), _) => Err(refusal),
        (Ok(()), complaint) => Ok(Command::Refused { complaint, text: said("append") }),
    }
}

fn range(flags: &Flags, what: &str) -> Result<Command, Refusal> {
    number(&flags.operands[0])?;
    number(&flags.operands[1])?;
    unsupported(what)
}

fn unsupported(what: &str) -> Result<Command, Refusal> {
    Err(Refusal::Said(said(what)))
}

fn said(what: &str) -> String {
    format!("zone {what} failed: Operation not supported")
}
