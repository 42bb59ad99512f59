//! LUKS. `tests/luks.rs` cuts the power at every intent of a change of keyslots, and breaks each barrier of one; the files that
//! state an order are listed here.

use super::Stated;

pub(super) const STATED: &[Stated] =
    &[("format/luks/amend.rs", &[]), ("format/luks/copies.rs", &[]), ("format/luks/create.rs", &[])];
