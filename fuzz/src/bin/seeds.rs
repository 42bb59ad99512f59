//! Runs the suite, or a fuzz target, with one seed after the other.

use std::error::Error;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use drystone_conformance::cases;
use drystone_conformance::suite::Case;
use drystone_fuzz::meter::Meter;
use drystone_fuzz::{Check, Seeded, TARGETS, Target};

#[global_allocator]
static METER: Meter = Meter;

/// What one run may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

const HELP: &str = "\
Usage: seeds [--seed N] [--count N] [--seconds S] [--case NAME] [--check NAME]
       seeds --target NAME [--seed N] [--count N] [--seconds S]
       seeds --list

Runs the suite, or a fuzz target, with the seeds from N on, until COUNT of them
or so many seconds have passed (1000 seeds, without either). A failure prints
its seed and the command that repeats it; the exit code is then 1. --list
prints the names of the targets.
";

struct Args {
    seed: u64,
    count: Option<u64>,
    seconds: Option<u64>,
    case: Option<String>,
    checks: Vec<Check>,
    target: Option<Target>,
}

fn main() -> ExitCode {
    match parse() {
        Ok(Some(args)) => run(&args),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seeds: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse() -> Result<Option<Args>, Box<dyn Error>> {
    use lexopt::prelude::{Long, Short, ValueExt};
    let mut args =
        Args { seed: 0, count: None, seconds: None, case: None, checks: Check::ALL.to_vec(), target: None };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("seed") => args.seed = parser.value()?.parse()?,
            Long("count") => args.count = Some(parser.value()?.parse()?),
            Long("seconds") => args.seconds = Some(parser.value()?.parse()?),
            Long("case") => args.case = Some(parser.value()?.string()?),
            Long("check") => {
                let name = parser.value()?.string()?;
                args.checks.retain(|check| check.name() == name);
                if args.checks.is_empty() {
                    let names = Check::ALL.map(Check::name).join(", ");
                    return Err(format!("no check '{name}'; there are: {names}").into());
                }
            }
            Long("target") => {
                let name = parser.value()?.string()?;
                let target = TARGETS.into_iter().find(|target| target.name == name);
                args.target = Some(target.ok_or_else(|| format!("no target '{name}'; --list prints them"))?);
            }
            Long("list") => {
                TARGETS.iter().for_each(|target| println!("{}", target.name));
                std::process::exit(0);
            }
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    if args.count.is_none() && args.seconds.is_none() {
        args.count = Some(1000);
    }
    Ok(Some(args))
}

fn run(args: &Args) -> ExitCode {
    if let Some(target) = args.target {
        target.prepare();
        return seeds(args, &|seed| target.seeded(seed));
    }
    let mut all = cases::raw();
    match cases::qcow2_cases() {
        Ok(cases) => all.extend(cases),
        Err(report) => eprintln!("seeds: raw images only, because QEMU's tools make no qcow2: {report}"),
    }
    let chosen: Vec<&Case> =
        all.iter().filter(|case| args.case.as_ref().is_none_or(|name| *name == case.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
        eprintln!("seeds: no such case; there are:\n  {}", names.join("\n  "));
        return ExitCode::from(2);
    }
    seeds(args, &|seed| Seeded::new(&chosen, &args.checks, seed).run())
}

fn seeds(args: &Args, run: &dyn Fn(u64) -> Result<(), String>) -> ExitCode {
    let start = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    let (mut seed, mut failures) = (args.seed, 0u64);
    let within = |seed: u64| args.count.is_none_or(|count| seed - args.seed < count);
    let (running, watched) = mpsc::channel();
    std::thread::spawn(move || watch(&watched));
    while within(seed) && limit.is_none_or(|limit| start.elapsed() < limit) {
        running.send(seed).expect("the watch goes on as long as this");
        if let Err(report) = run(seed) {
            failures += 1;
            println!("{report}\n");
        }
        let Some(next) = seed.checked_add(1) else { break };
        seed = next;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{} seeds from {} in {seconds:.1} s, {failures} failures", seed - args.seed, args.seed);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the program when a run hangs.
fn watch(seeds: &mpsc::Receiver<u64>) {
    let mut running = None;
    loop {
        match seeds.recv_timeout(PATIENCE) {
            Ok(seed) => running = Some(seed),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!("seeds: seed {running:?} takes more than {} s", PATIENCE.as_secs());
                std::process::exit(1);
            }
        }
    }
}
