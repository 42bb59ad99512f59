//! Running subjects in turns, and what the kernel says that each used.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wait4::Wait4;

/// What one process used, from its start to its end.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Time on the clock.
    pub wall: Duration,
    /// Processor time in all its threads, in user and kernel mode.
    pub cpu: Duration,
    /// Resident memory at the most, in bytes.
    pub resident_max: u64,
}

/// Runs a command to its end.
///
/// # Errors
/// When it does not start, or does not succeed.
pub fn once(command: &mut Command) -> io::Result<Usage> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let end = child.wait4()?;
    if !end.status.success() {
        return Err(io::Error::other(format!("{command:?}: {}", end.status)));
    }
    let cpu = end.rusage.utime + end.rusage.stime;
    Ok(Usage { wall: start.elapsed(), cpu, resident_max: end.rusage.maxrss })
}

/// This program again, doing what one subject is measured by. Images are made so too: a process inherits what the
/// kernel calls the resident memory of the one that starts it.
///
/// # Errors
/// When this program does not know where it is.
pub fn myself(name: &str, file: impl AsRef<OsStr>, count: u64) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["subject", name]).arg(file).arg(count.to_string());
    Ok(command)
}

/// One of those that are compared.
pub struct Subject {
    /// What the table calls it.
    pub name: String,
    /// Brings about what each run finds, unmeasured.
    pub prepare: Box<dyn FnMut() -> io::Result<()>>,
    /// What is measured.
    pub command: Command,
}

impl Subject {
    /// A subject that needs no preparation.
    pub fn new(name: &str, command: Command) -> Self {
        Self { name: name.into(), prepare: Box::new(|| Ok(())), command }
    }

    /// Has `prepare` run before each run.
    pub fn after(mut self, prepare: impl FnMut() -> io::Result<()> + 'static) -> Self {
        self.prepare = Box::new(prepare);
        self
    }
}

/// Has the subjects take turns, and returns the median of each: of every figure on its own.
///
/// # Errors
/// The first run that fails.
pub fn in_turns(subjects: &mut [Subject], rounds: usize) -> io::Result<Vec<Usage>> {
    let mut runs: Vec<Vec<Usage>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds.max(1) {
        for (subject, runs) in subjects.iter_mut().zip(&mut runs) {
            (subject.prepare)()?;
            runs.push(once(&mut subject.command)?);
        }
    }
    Ok(runs.iter().map(|runs| median(runs)).collect())
}

fn median(runs: &[Usage]) -> Usage {
    fn middle<T: Ord + Copy>(runs: &[Usage], figure: impl Fn(&Usage) -> T) -> T {
        let mut figures: Vec<T> = runs.iter().map(figure).collect();
        figures.sort_unstable();
        figures[figures.len() / 2]
    }
    Usage {
        wall: middle(runs, |usage| usage.wall),
        cpu: middle(runs, |usage| usage.cpu),
        resident_max: middle(runs, |usage| usage.resident_max),
    }
}

/// Prints what a request costs each subject, and its ratio to the first one.
pub fn print_requests(title: &str, subjects: &[Subject], usages: &[Usage], requests: u64) {
    println!("\n{title}\n");
    println!("| subject | CPU µs a request | times the first | requests/s | times the first |");
    println!("|---|---|---|---|---|");
    for (subject, usage) in subjects.iter().zip(usages) {
        let first = &usages[0];
        println!(
            "| {} | {:.2} | {:.2} | {:.0} | {:.2} |",
            subject.name,
            usage.cpu.as_secs_f64() * 1e6 / requests as f64,
            usage.cpu.as_secs_f64() / first.cpu.as_secs_f64(),
            requests as f64 / usage.wall.as_secs_f64(),
            first.wall.as_secs_f64() / usage.wall.as_secs_f64(),
        );
    }
}

/// Prints what a whole process costs beside its peer, the last of the two.
pub fn print_processes(title: &str, usages: &[Usage]) {
    let [ours, theirs] = usages else { panic!("a pair is compared") };
    println!(
        "| {title} | {:.2} s, {:.2} s | {:.2} | {:.2} s, {:.2} s | {:.2} | {} MiB, {} MiB |",
        ours.wall.as_secs_f64(),
        theirs.wall.as_secs_f64(),
        theirs.wall.as_secs_f64() / ours.wall.as_secs_f64(),
        ours.cpu.as_secs_f64(),
        theirs.cpu.as_secs_f64(),
        ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64(),
        ours.resident_max >> 20,
        theirs.resident_max >> 20,
    );
}
