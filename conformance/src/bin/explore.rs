//! Explores crashes and faults of every operation, and prints what was done as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use drystone_conformance::explore::cancel::{CANCELS, cancel_each};
use drystone_conformance::explore::changed::{CHANGES, change_each};
use drystone_conformance::explore::faults::{BLOWS, strike_each};
use drystone_conformance::explore::operations::all;
use drystone_conformance::explore::rules::{promises, rules};
use drystone_conformance::explore::{Explored, Operation, Thoroughness, explore, explore_lying};
use drystone_conformance::fault::Kind;
use drystone_conformance::lie::{Lie, Lies};
use drystone_conformance::meter::Meter;
use drystone_core::intent::Label;

#[global_allocator]
static METER: Meter = Meter;

const HELP: &str = "\
Usage: explore [--operation NAME] [--seed S] [--seeds N] [--disks N] [--samples N] [--qemu N] [--quick] [--no-faults]
       explore --break LABEL [--operation NAME] [--seed S] [--seeds N]
       explore --list

Runs every operation once for each of N seeds, from S on, and looks at all that
a crash at any moment may leave of it, or at so many samples of each moment
where that is too much. Then every intent fails in every way, the files change
before every intent, and the operation is given up at every await. --disks goes
on with further seeds until each format has so many crashed disks. One of N of
them goes to qemu-img check with --qemu. Prints a table; the exit code is 1 when
something is wrong.

--break has the executor lie about the intents whose labels begin with LABEL, one
label after the other, and says which operations notice.
";

struct Args {
    operation: Option<String>,
    seed: u64,
    seeds: u64,
    disks: u64,
    how: Thoroughness,
    faults: bool,
    breaks: Option<String>,
}

fn main() -> ExitCode {
    match parse() {
        Ok(Some(args)) => match &args.breaks {
            Some(beginning) => break_rules(&args, beginning),
            None => run(&args),
        },
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("explore: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse() -> Result<Option<Args>, lexopt::Error> {
    use lexopt::prelude::{Long, Short, ValueExt};
    let mut args = Args {
        operation: None,
        seed: 0,
        seeds: 1,
        disks: 0,
        how: Thoroughness::full(),
        faults: true,
        breaks: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("operation") => args.operation = Some(parser.value()?.string()?),
            Long("seed") => args.seed = parser.value()?.parse()?,
            Long("seeds") => args.seeds = parser.value()?.parse()?,
            Long("disks") => args.disks = parser.value()?.parse()?,
            Long("samples") => args.how.samples = parser.value()?.parse()?,
            Long("qemu") => args.how.qemu_every = parser.value()?.parse()?,
            Long("quick") => args.how = Thoroughness::quick(),
            Long("no-faults") => args.faults = false,
            Long("break") => args.breaks = Some(parser.value()?.string()?),
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

/// What was done with an operation, or with all of a format.
#[derive(Default)]
struct Done {
    explored: Explored,
    struck: u64,
    changed: u64,
    given_up: u64,
}

impl Done {
    fn add(&mut self, other: Self) {
        self.explored.add(other.explored);
        self.struck += other.struck;
        self.changed += other.changed;
        self.given_up += other.given_up;
    }
}

fn run(args: &Args) -> ExitCode {
    let operations = all();
    let wanted =
        |operation: &&Operation| args.operation.as_ref().is_none_or(|name| operation.name.contains(name));
    let operations: Vec<&Operation> = operations.iter().filter(wanted).collect();
    let (mut formats, mut failures) = (BTreeMap::<&str, Done>::new(), Vec::new());
    println!(
        "| format | operation | moments | crashed disks | different ones | recoveries crashed | by qemu-img | faults | \
         changed | given up | disks a second | opened a second |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for operation in &operations {
        let mut done = Done::default();
        for seed in args.seed..args.seed + args.seeds {
            done.add(all_of(operation, args, seed, &mut failures));
        }
        row(operation.format, operation.name, &done);
        formats.entry(operation.format).or_default().add(done);
    }
    for (format, done) in &mut formats {
        let mut seed = args.seed + args.seeds;
        while done.explored.states < args.disks && failures.is_empty() {
            for operation in operations.iter().filter(|operation| operation.format == *format) {
                crash(operation, args, seed, &mut done.explored, &mut failures);
            }
            seed += 1;
        }
        row(format, &format!("all, with {} seeds", seed - args.seed), done);
    }
    let mut total = Done::default();
    formats.into_values().for_each(|done| total.add(done));
    row("", "all", &total);
    failures.iter().for_each(|report| println!("\n{report}"));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Breaks rules of order in every operation, and prints which of them notice.
fn break_rules(args: &Args, beginning: &str) -> ExitCode {
    let operations = all();
    let labels = rules().map(|rule| rule.label).chain(promises().map(|(label, _)| *label));
    let labels: BTreeSet<Label> = labels.filter(|label| label.starts_with(beginning)).collect();
    let wanted =
        |operation: &&Operation| args.operation.as_ref().is_none_or(|name| operation.name.contains(name));
    for label in labels {
        for operation in operations.iter().filter(wanted) {
            for lie in [Lie::Skipped, Lie::Late] {
                match broken_once(operation, args, label, lie) {
                    Some(Ok(report)) => {
                        println!("{label}: {lie:?}: noticed by '{}': {report}", operation.name)
                    }
                    Some(Err(())) => println!("{label}: {lie:?}: nothing to '{}'", operation.name),
                    None => {}
                }
            }
        }
    }
    ExitCode::SUCCESS
}

/// What notices that a label's intents are not done, or are done late; none where the operation has none of that kind.
fn broken_once(operation: &Operation, args: &Args, label: Label, lie: Lie) -> Option<Result<String, ()>> {
    let mut there = false;
    for seed in args.seed..args.seed + args.seeds {
        let lies = Lies::about_label(label, lie);
        match explore_lying(operation, &Thoroughness::quick(), seed, lies) {
            Err(report) => return Some(Ok(report.lines().next().unwrap_or_default().to_owned())),
            Ok(explored) => {
                let fits = |(kind, found): &(Kind, Label)| {
                    *found == label && (*kind == Kind::Flush) == (lie == Lie::Skipped)
                };
                there |= explored.labels.iter().any(fits);
            }
        }
    }
    there.then_some(Err(()))
}

fn all_of(operation: &Operation, args: &Args, seed: u64, failures: &mut Vec<String>) -> Done {
    let mut done = Done::default();
    crash(operation, args, seed, &mut done.explored, failures);
    if !args.faults {
        return done;
    }
    let mut count = |counted: Result<u64, String>| {
        counted.unwrap_or_else(|report| {
            failures.push(report);
            0
        })
    };
    for blow in BLOWS {
        done.struck += count(strike_each(operation, blow, seed));
    }
    for change in CHANGES {
        done.changed += count(change_each(operation, change, seed));
    }
    for how in CANCELS {
        done.given_up += count(cancel_each(operation, how, seed));
    }
    done
}

fn crash(operation: &Operation, args: &Args, seed: u64, explored: &mut Explored, failures: &mut Vec<String>) {
    match explore(operation, &args.how, seed) {
        Ok(more) => explored.add(more),
        Err(report) => failures.push(report),
    }
}

fn row(format: &str, name: &str, done: &Done) {
    let Done { explored, struck, changed, given_up } = done;
    let Explored { moments, states, different, recovery_states, by_qemu, .. } = explored;
    let a_second = |count: u64| count as f64 / explored.time.as_secs_f64().max(1e-9);
    let (built, opened) = (a_second(states + recovery_states), a_second(explored.opened));
    println!(
        "| {format} | {name} | {moments} | {states} | {different} | {recovery_states} | {by_qemu} | {struck} | \
         {changed} | {given_up} | {built:.0} | {opened:.0} |"
    );
}
