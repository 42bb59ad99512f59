//! Runs a fuzz target with one seed after the other.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use drystone_conformance::meter::Meter;
use drystone_fuzz::minimise::minimise;
use drystone_fuzz::{TARGETS, Target};

#[global_allocator]
static METER: Meter = Meter;

/// What one run may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

const HELP: &str = "\
Usage: drystone-fuzz TARGET [--seed S] [--runs N] [--seconds T]
       drystone-fuzz TARGET --replay --seed S
       drystone-fuzz TARGET --replay --input FILE
       drystone-fuzz --all [--seed S] [--runs N] [--seconds T]
       drystone-fuzz --list

Runs a target, or all of them, with the seeds from S on, until N of them or T
seconds are over (1000 runs, without either). A failure prints its report and
its seed; its input is made smaller and kept as a file, and the exit code is 1.
--replay prints the intents of one run, a line each, up to the step that fails,
and the hash of these lines. --list prints the names of the targets.
";

#[derive(Default)]
struct Args {
    targets: Vec<Target>,
    seed: u64,
    runs: Option<u64>,
    seconds: Option<u64>,
    replay: bool,
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Reports are printed where it is known what they are about.
    std::panic::set_hook(Box::new(|_| {}));
    match parse() {
        Ok(Some(args)) if args.replay => replay(&args),
        Ok(Some(args)) => {
            let failed = args.targets.iter().filter(|target| !run(target, &args)).count();
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drystone-fuzz: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse() -> Result<Option<Args>, Box<dyn Error>> {
    use lexopt::prelude::{Long, Short, Value, ValueExt};
    let mut args = Args::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(name) => {
                let name = name.string()?;
                let target = Target::named(&name);
                args.targets.push(target.ok_or_else(|| format!("no target '{name}'; --list prints them"))?);
            }
            Long("all") => args.targets.extend(TARGETS),
            Long("seed") => args.seed = parser.value()?.parse()?,
            Long("runs") => args.runs = Some(parser.value()?.parse()?),
            Long("seconds") => args.seconds = Some(parser.value()?.parse()?),
            Long("replay") => args.replay = true,
            Long("input") => args.input = Some(parser.value()?.into()),
            Long("list") => {
                TARGETS.iter().for_each(|target| println!("{}", target.name));
                return Ok(None);
            }
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if args.targets.is_empty() {
        return Err("which target?".into());
    }
    if args.input.is_some() && !args.replay {
        return Err("--input goes with --replay".into());
    }
    if args.runs.is_none() && args.seconds.is_none() {
        args.runs = Some(1000);
    }
    Ok(Some(args))
}

fn replay(args: &Args) -> ExitCode {
    let mut failed = false;
    for target in &args.targets {
        target.prepare();
        let input = match &args.input {
            None => target.input(args.seed),
            Some(path) => match std::fs::read(path) {
                Ok(input) => input,
                Err(error) => {
                    eprintln!("drystone-fuzz: {}: {error}", path.display());
                    return ExitCode::from(2);
                }
            },
        };
        match target.replay(&input, |line| println!("{line}")) {
            Ok(()) => match target.trace_hash(&input) {
                Ok(hash) => {
                    println!("{}: {} bytes, nothing is wrong, trace {hash:016x}", target.name, input.len())
                }
                Err(report) => println!("{}: fails only the second time: {report}", target.name),
            },
            Err(report) => {
                failed = true;
                println!("{}: {} bytes: {report}", target.name, input.len());
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Returns whether nothing was wrong.
fn run(target: &Target, args: &Args) -> bool {
    target.prepare();
    let start = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    let (mut seed, mut failures) = (args.seed, 0u64);
    let within = |seed: u64| args.runs.is_none_or(|runs| seed - args.seed < runs);
    let (running, watched) = mpsc::channel();
    std::thread::spawn(move || watch(&watched));
    while within(seed) && limit.is_none_or(|limit| start.elapsed() < limit) {
        running.send(Some(seed)).expect("the watch goes on as long as this");
        let input = target.input(seed);
        if let Err(report) = target.check(&input) {
            failures += 1;
            running.send(None).expect("the watch goes on as long as this");
            failed(target, seed, &input, &report);
        }
        let Some(next) = seed.checked_add(1) else { break };
        seed = next;
    }
    let (runs, seconds) = (seed - args.seed, start.elapsed().as_secs_f64());
    let rate = runs as f64 / seconds.max(1e-9);
    println!(
        "{}: {runs} runs from seed {} in {seconds:.1} s, {rate:.0} a second, {failures} failures",
        target.name, args.seed
    );
    failures == 0
}

fn failed(target: &Target, seed: u64, input: &[u8], report: &str) {
    let name = target.name;
    println!("{name}, seed {seed}: {report}");
    println!("trace: cargo run --release -p drystone-fuzz -- {name} --seed {seed} --replay");
    let smaller = minimise(target, input);
    let path = std::env::temp_dir().join(format!("drystone-fuzz-{name}-{seed}"));
    match std::fs::write(&path, &smaller) {
        Ok(()) => println!(
            "{} of {} bytes do it: cargo run --release -p drystone-fuzz -- {name} --replay --input {}\n",
            smaller.len(),
            input.len(),
            path.display()
        ),
        Err(error) => println!("the smaller input cannot be kept: {}: {error}\n", path.display()),
    }
}

/// Ends the program when a run hangs.
fn watch(seeds: &mpsc::Receiver<Option<u64>>) {
    let mut running = None;
    loop {
        match seeds.recv_timeout(PATIENCE) {
            Ok(seed) => running = seed,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let Some(seed) = running else { continue };
                println!("drystone-fuzz: seed {seed} takes more than {} s", PATIENCE.as_secs());
                std::process::exit(1);
            }
        }
    }
}
