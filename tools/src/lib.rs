//! Drystone's command-line tools, as a library: what they accept, what they print, how they exit.
//!
//! Nothing here opens a file, reads a clock or prints: arguments become structs, and structs become text. The binaries
//! connect these to the engine. The aim is that a script cannot tell `drystone-img` from `qemu-img`, so the words,
//! spacing, key order and exit codes follow that tool (10.0.2), and the tests run it beside ours.
//!
//! | module | what it owns |
//! |---|---|
//! | [`img`] | `drystone-img`: arguments and output |
//! | [`io`] | `drystone-io`: commands and output |
//! | [`getopt`] | option parsing as C's `getopt_long` does it |
//! | [`nbd`] | `drystone-nbd`: arguments and output |
//! | [`message`] | errors and warnings, exit codes |
//! | [`object`] | `--object` definitions |
//! | [`options`] | option strings: `a=b,c=d` lists, dotted keys, `json:{…}` names, JSON text in the reference's key order |
//! | [`polling`] | the environment variable that says how devices are polled |
//! | [`trace`] | `--trace`: the one module that writes |
//! | [`size`] | sizes as people write them and as `info` prints them |

#![deny(unsafe_code)]

mod docs;
pub mod getopt;
pub mod img;
pub mod io;
pub mod message;
pub mod nbd;
pub mod object;
pub mod options;
pub mod polling;
pub mod size;
pub mod trace;
