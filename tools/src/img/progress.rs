//! How far a command is, with `-p`.
//!
//! Scripts that read the output get `    (12.50/100%)` and a carriage return, as the reference writes it; a person at a
//! terminal gets a bar.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a command is.
#[derive(Debug)]
pub enum Progress {
    /// Not at all.
    Hidden,
    /// As text, which the methods return.
    Text(TextProgress),
    /// As a bar, which draws itself.
    Bar(ProgressBar),
}

impl Progress {
    /// `wanted` is `-p` without `-q`; `terminal` tells whether the standard output is one. Text is written again only
    /// after more than `step` percent.
    #[must_use]
    pub fn new(wanted: bool, terminal: bool, step: f32) -> Self {
        match (wanted, terminal) {
            (false, _) => Self::Hidden,
            (true, false) => Self::Text(TextProgress { step, written: 0.0 }),
            (true, true) => Self::Bar(bar()),
        }
    }

    /// Notes that `done` of `total` bytes are done, and returns what is to be written to the standard output at once.
    pub fn update(&mut self, done: u64, total: u64) -> String {
        match self {
            Self::Hidden => String::new(),
            Self::Text(text) => text.update(percent(done, total)),
            Self::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                String::new()
            }
        }
    }

    /// Ends the display, and returns what is to be written to the standard output.
    pub fn finish(&mut self) -> &'static str {
        match self {
            Self::Hidden => "",
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
pub struct TextProgress {
    step: f32,
    written: f32,
}

impl TextProgress {
    fn update(&mut self, percent: f32) -> String {
        let current = percent.min(100.0);
        let due = current > self.written + self.step
            || current < self.written
            || current == 100.0
            || current == 0.0;
        if !due {
            return String::new();
        }
        self.written = current;
        format!("    ({current:.2}/100%)\r")
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

    #[test]
    fn text_comes_in_steps_of_more_than_one_percent() {
        let mut progress = Progress::new(true, false, 1.0);
        let steps = [0, 0, 5, 10, 11, 500, 400, 999, 1000, 1000];
        let text: String = steps.iter().map(|done| progress.update(*done, 1000)).collect();
        let shown = ["0.00", "0.00", "1.10", "50.00", "40.00", "99.90", "100.00", "100.00"];
        assert_eq!(text, shown.map(|percent| format!("    ({percent}/100%)\r")).concat());
        assert_eq!(progress.finish(), "\n");
    }

    #[test]
    fn nothing_is_shown_unless_asked_for() {
        let mut progress = Progress::new(false, false, 1.0);
        assert_eq!((progress.update(1, 1), progress.finish()), (String::new(), ""));
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert_eq!(Progress::new(true, false, 1.0).update(0, 0), "    (100.00/100%)\r");
    }
}
