//! `info [-f FMT | --image-opts] [--backing-chain] [-U] [--output human|json] FILENAME`

use crate::getopt::{Getopt, OptionSpec};

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, OUTPUT, Step, one_operand,
    parse_output,
};
use super::{Action, Command, CommandSpec, Common, OutputFormat, ParsedCommand, Scan, Source};

/// Arguments of `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `--backing-chain`: show the backing files too.
    pub backing_chain: bool,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `--output`.
    pub output: OutputFormat,
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "info",
    about: "Show what an image is",
    operands: "FILENAME",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec { long: &["backing-chain"], short: "b", value: None, help: "show the backing files too" },
        FORCE_SHARE,
        OUTPUT,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut format, mut output) = (None, None);
    let (mut image_opts, mut backing_chain, mut force_share) = (false, false, false);
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "format" => format = Some(value),
                "image-opts" => image_opts = true,
                "backing-chain" => backing_chain = true,
                "force-share" => force_share = true,
                _ => output = Some(value),
            },
        }
    }
    let operands = getopt.take_operands();
    let filename = one_operand(&operands)?;
    let output = parse_output(output.as_deref())?;
    let source = scan.source(filename, format.as_deref(), image_opts)?;
    let args = InfoArgs { common: scan.common, source, backing_chain, force_share, output };
    Ok((Action::Run(Box::new(Command::Info(args))), scan.warnings))
}
