//! `drystone-img`: the disk image utility.
//!
//! ```text
//!   argv ─▶ args::parse ─▶ CreateArgs, InfoArgs, … ─▶ (the engine) ─▶ ImageInfo, MapEntry, … ─▶ text
//! ```
//!
//! [`args`] says what was asked for; each other module here renders what one command shows. The engine's side, in
//! between, is the binary's.

pub mod args;
pub mod bench;
pub mod check;
pub mod compare;
pub mod convert;
pub mod create;
pub mod info;
pub mod inspect;
pub mod luks;
pub mod map;
pub mod measure;
pub mod open;
pub mod picture;
pub mod progress;
