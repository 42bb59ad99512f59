//! Explores crashes and faults of every operation, and prints what was done as a table.

use std::process::ExitCode;

use drystone_conformance::explore::faults::{EFFECTS, strike_each};
use drystone_conformance::explore::operations::all;
use drystone_conformance::explore::{Explored, Operation, Thoroughness, explore};

const HELP: &str = "\
Usage: explore [--operation NAME] [--seed S] [--seeds N] [--samples N] [--qemu N] [--quick] [--no-faults]
       explore --list

Runs every operation once for each of N seeds, from S on, and looks at all that
a crash at any moment may leave of it, or at so many samples of each moment
where that is too much; then has every intent fail, once with EIO, once with
ENOSPC, once short. One of N crashed disks goes to qemu-img check with --qemu.
Prints a table; the exit code is 1 when something is wrong.
";

struct Args {
    operation: Option<String>,
    seed: u64,
    seeds: u64,
    how: Thoroughness,
    faults: bool,
}

fn main() -> ExitCode {
    match parse() {
        Ok(Some(args)) => run(&args),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("explore: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse() -> Result<Option<Args>, lexopt::Error> {
    use lexopt::prelude::{Long, Short, ValueExt};
    let mut args = Args { operation: None, seed: 0, seeds: 1, how: Thoroughness::full(), faults: true };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("operation") => args.operation = Some(parser.value()?.string()?),
            Long("seed") => args.seed = parser.value()?.parse()?,
            Long("seeds") => args.seeds = parser.value()?.parse()?,
            Long("samples") => args.how.samples = parser.value()?.parse()?,
            Long("qemu") => args.how.qemu_every = parser.value()?.parse()?,
            Long("quick") => args.how = Thoroughness::quick(),
            Long("no-faults") => args.faults = false,
            Long("list") => {
                all().iter().for_each(|operation| println!("{}", operation.name));
                return Ok(None);
            }
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(args))
}

fn run(args: &Args) -> ExitCode {
    let operations = all();
    let wanted =
        |operation: &&Operation| args.operation.as_ref().is_none_or(|name| operation.name.contains(name));
    let (mut total, mut faults, mut failures) = (Explored::default(), 0, 0);
    println!(
        "| format | operation | moments | crashed disks | different ones | recoveries crashed | by qemu-img | faults | disks a second | opened a second |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    for operation in operations.iter().filter(wanted) {
        let mut explored = Explored::default();
        let mut struck = 0;
        for seed in args.seed..args.seed + args.seeds {
            match explore(operation, &args.how, seed) {
                Ok(more) => explored.add(more),
                Err(report) => {
                    failures += 1;
                    println!("{report}\n");
                }
            }
            for effect in EFFECTS.into_iter().filter(|_| args.faults) {
                match strike_each(operation, effect, seed) {
                    Ok(more) => struck += more,
                    Err(report) => {
                        failures += 1;
                        println!("{report}\n");
                    }
                }
            }
        }
        row(operation.format, operation.name, &explored, struck);
        total.add(explored);
        faults += struck;
    }
    row("", "all", &total, faults);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn row(format: &str, name: &str, explored: &Explored, faults: u64) {
    let Explored { moments, states, different, recovery_states, by_qemu, .. } = explored;
    let a_second = |count: u64| count as f64 / explored.time.as_secs_f64().max(1e-9);
    let (built, opened) = (a_second(states + recovery_states), a_second(explored.opened));
    println!(
        "| {format} | {name} | {moments} | {states} | {different} | {recovery_states} | {by_qemu} | {faults} | {built:.0} | {opened:.0} |"
    );
}
