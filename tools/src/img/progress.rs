//! How far a command is, with `-p`.
//!
//! Scripts that read the output get `    (12.50/100%)` and a carriage return, as the reference writes it; a person at a
//! terminal gets a bar.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::SIGUSR1;

/// Shows how far a command is.
#[derive(Debug)]
pub enum Progress {
    /// Only to who asks with SIGUSR1.
    Hidden {
        /// When an answer is due.
        steps: Steps,
        /// Somebody asked.
        asked: Arc<AtomicBool>,
    },
    /// As text, which the methods return.
    Text(Steps),
    /// As a bar, which draws itself.
    Bar(ProgressBar),
}

/// A text to write at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// On the standard output.
    Output(String),
    /// On the error stream.
    Error(String),
}

impl Progress {
    /// `wanted` is `-p` without `-q`; `terminal` tells whether the standard output is one. Text is written again only
    /// after more than `step` percent. Without `wanted`, SIGUSR1 asks for one line from now on; with it, it does
    /// nothing.
    #[must_use]
    pub fn new(wanted: bool, terminal: bool, step: f32) -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        // Where this fails, the signal ends the command, as it does by default.
        let _ = signal_hook::flag::register(SIGUSR1, Arc::clone(&asked));
        let steps = Steps { step, written: 0.0, sum: 0.0 };
        match (wanted, terminal) {
            (false, _) => Self::Hidden { steps, asked },
            (true, false) => Self::Text(steps),
            (true, true) => Self::Bar(bar()),
        }
    }

    /// Whether the steps are those of the reference, for programs that read them.
    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    /// Notes that `done` of `total` are done, and returns what is to be written.
    pub fn update(&mut self, done: u64, total: u64) -> Option<Line> {
        self.show(percent(done, total), done, total)
    }

    /// Notes that one more of `total` is done. Percents are added up in single precision: the reference does so where its
    /// steps are pieces, and what that loses decides which of them are written.
    pub fn add(&mut self, total: u64) -> Option<Line> {
        let Self::Text(steps) = self else { return None };
        steps.sum = (steps.sum + percent(1, total)).min(100.0);
        let sum = steps.sum;
        self.show(sum, 0, 0)
    }

    fn show(&mut self, percent: f32, done: u64, total: u64) -> Option<Line> {
        match self {
            Self::Hidden { steps, asked } => {
                let due = steps.update(percent)?;
                asked.swap(false, Ordering::Relaxed).then(|| Line::Error(format!("    ({due:.2}/100%)\n")))
            }
            Self::Text(steps) => {
                let due = steps.update(percent)?;
                Some(Line::Output(format!("    ({due:.2}/100%)\r")))
            }
            Self::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                None
            }
        }
    }

    /// Ends the display, and returns what is to be written to the standard output.
    pub fn finish(&mut self) -> &'static str {
        match self {
            Self::Hidden { .. } => "",
            Self::Text(_) => "\n",
            Self::Bar(bar) => {
                bar.finish();
                ""
            }
        }
    }
}

/// The reference's display: it is written again only after more than a step, and at both ends.
#[derive(Debug)]
pub struct Steps {
    step: f32,
    written: f32,
    /// What was added up.
    sum: f32,
}

impl Steps {
    fn update(&mut self, percent: f32) -> Option<f32> {
        let current = percent.min(100.0);
        let due = current > self.written + self.step
            || current < self.written
            || current == 100.0
            || current == 0.0;
        due.then(|| {
            self.written = current;
            current
        })
    }
}

fn percent(done: u64, total: u64) -> f32 {
    if total == 0 { 100.0 } else { (100.0 * done as f64 / total as f64) as f32 }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {percent:>3}%  {binary_bytes_per_sec}, {eta} left");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
    bar.set_style(style.expect("the template is well formed"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(progress: &mut Progress, done: u64, total: u64) -> String {
        match progress.update(done, total) {
            Some(Line::Output(text)) => text,
            None => String::new(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_comes_in_steps_of_more_than_one_percent() {
        let mut progress = Progress::new(true, false, 1.0);
        let steps = [0, 0, 5, 10, 11, 500, 400, 999, 1000, 1000];
        let written: String = steps.iter().map(|done| text(&mut progress, *done, 1000)).collect();
        let shown = ["0.00", "0.00", "1.10", "50.00", "40.00", "99.90", "100.00", "100.00"];
        assert_eq!(written, shown.map(|percent| format!("    ({percent}/100%)\r")).concat());
        assert_eq!(progress.finish(), "\n");
    }

    #[test]
    fn nothing_is_shown_unless_asked_for() {
        let mut progress = Progress::new(false, false, 1.0);
        assert_eq!((progress.update(1, 1), progress.finish()), (None, ""));
        let Progress::Hidden { asked, .. } = &progress else { panic!() };
        asked.store(true, Ordering::Relaxed);
        assert_eq!(progress.update(1, 1), Some(Line::Error("    (100.00/100%)\n".into())));
        assert_eq!(progress.update(1, 1), None);
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert_eq!(text(&mut Progress::new(true, false, 1.0), 0, 0), "    (100.00/100%)\r");
    }
}
