//! `snapshot [-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT] [-U] FILENAME`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT, QUIET,
};
use super::{Action, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `snapshot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// What to do.
    pub action: SnapshotAction,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `-q`: changes nothing about what is printed.
    pub quiet: bool,
}

/// What `snapshot` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotAction {
    /// `-l`, and without any of them: lists the snapshots.
    List,
    /// `-c`: takes one of this name.
    Create(String),
    /// `-a`: goes back to the one of this id or name.
    Apply(String),
    /// `-d`: deletes the first of this name.
    Delete(String),
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "snapshot",
    about: "List, take, go back to and delete snapshots within an image",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        FORCE_SHARE,
        OptionSpec { long: &["list"], short: "l", value: None, help: "list the snapshots (the default)" },
        OptionSpec { long: &["create"], short: "c", value: Some("SNAPSHOT"), help: "take a snapshot" },
        OptionSpec {
            long: &["apply"],
            short: "a",
            value: Some("SNAPSHOT"),
            help: "make the disk what it was then; by id or name",
        },
        OptionSpec { long: &["delete"], short: "d", value: Some("SNAPSHOT"), help: "delete a snapshot" },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let mut action = None;
    let own = |option: &str, value: String| {
        let asked = match option {
            "list" => SnapshotAction::List,
            "create" => SnapshotAction::Create(value),
            "apply" => SnapshotAction::Apply(value),
            _ => SnapshotAction::Delete(value),
        };
        match action.replace(asked) {
            None => Ok(()),
            Some(_) => Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'")),
        }
    };
    let (image, filename) = match scan.one_image(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    let source = image.source(&mut scan, &filename)?;
    let ImageOptions { force_share, quiet, .. } = image;
    let action = action.unwrap_or(SnapshotAction::List);
    let args = SnapshotArgs { common: scan.common, source, action, force_share, quiet };
    Ok((Action::Run(Box::new(Command::Snapshot(args))), scan.warnings))
}
