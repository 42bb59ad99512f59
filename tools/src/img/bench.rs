//! What `bench` shows.

use std::time::Duration;

use super::args::BenchArgs;
use crate::message::Failure;

/// The lines before the first request.
#[must_use]
pub fn announcement(args: &BenchArgs) -> String {
    let kind = if args.write { "write" } else { "read" };
    let BenchArgs { count, buffer_size, depth, offset, step, .. } = args;
    let mut text = format!(
        "Sending {count} {kind} requests, {buffer_size} bytes each, {depth} in parallel \
         (starting at offset {offset}, step size {step})\n"
    );
    if let Some(flush) = args.flush {
        text += &format!("Sending flush every {} requests\n", flush.requests);
    }
    text
}

/// The line after the last answer.
#[must_use]
pub fn result(elapsed: Duration) -> String {
    format!("Run completed in {:.3} seconds.\n", elapsed.as_secs_f64())
}

/// A request failed; `error` is the host's text for its errno.
#[must_use]
pub fn failure(error: &str) -> Failure {
    Failure::new(format!("Failed request: {error}"))
}
