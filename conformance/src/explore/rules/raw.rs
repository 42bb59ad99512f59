//! Rules of raw files.

use super::{Rule, barrier};

pub(super) const RULES: &[Rule] =
    &[barrier("raw.flush", "what a flush of a raw image covers is durable when it is answered", "writes")];
