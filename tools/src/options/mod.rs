//! Option strings: how a command line names an image and its properties.
//!
//! ```text
//!   -o a=b,c=d ──────────▶ list::parse ─┐
//!   --image-opts a.b=c ──▶ list::parse ─┼─▶ flat map ─▶ dotted::nest ─▶ nested map ─▶ the engine
//!   json:{"a":{"b":1}} ──▶ json::parse ─┴─▶ dotted::flatten ─▶ …
//!   --object type,id=x ──▶ keyval::parse ────────────────────▶ nested map
//! ```
//!
//! This owns syntax only: which keys a driver knows, and what their values mean, is the engine's knowledge. Start at
//! [`ImageName`], which is what every FILENAME argument becomes.

mod dotted;
mod image;
pub mod json;
mod keyval;
mod list;

pub use dotted::{NestError, flatten, nest};
pub use image::{ImageName, ImageNameError, backing_warning, json_filename, refusal};
pub use keyval::{KeyvalError, parse_keyval};
pub use list::{IdError, Pair, asks_for_help, is_valid_list, is_well_formed_id, parse_list, switch_warnings};
