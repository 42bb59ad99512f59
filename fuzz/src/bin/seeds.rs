//! Runs the suite with one seed after the other.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use drystone_conformance::cases;
use drystone_conformance::suite::Case;
use drystone_fuzz::{Check, Seeded};

const HELP: &str = "\
Usage: seeds [--seed N] [--count N] [--seconds S] [--case NAME] [--check NAME]

Runs the suite with the seeds from N on, until COUNT of them or so many
seconds have passed (1000 seeds, without either). A failure prints its seed
and the command that repeats it; the exit code is then 1.
";

struct Args {
    seed: u64,
    count: Option<u64>,
    seconds: Option<u64>,
    case: Option<String>,
    checks: Vec<Check>,
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
    let mut args = Args { seed: 0, count: None, seconds: None, case: None, checks: Check::ALL.to_vec() };
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
    let start = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    let (mut seed, mut failures) = (args.seed, 0u64);
    let within = |seed: u64| args.count.is_none_or(|count| seed - args.seed < count);
    while within(seed) && limit.is_none_or(|limit| start.elapsed() < limit) {
        if let Err(report) = Seeded::new(&chosen, &args.checks, seed).run() {
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
