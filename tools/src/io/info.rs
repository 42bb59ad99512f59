//! What `info` shows.

use serde_json::{Map, Value};

use super::report::amount;
use crate::img::info::render_specific;

/// What is known of an image.
#[derive(Clone, Debug)]
pub struct Info {
    /// The driver, twice where it is a protocol too.
    pub formats: Vec<&'static str>,
    /// Bytes of a cluster, and place of the machine's state; `None` where the driver knows neither.
    pub clusters: Option<(u64, u64)>,
    /// What only this format has.
    pub specific: Option<Map<String, Value>>,
}

impl Info {
    /// The text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text: String = self.formats.iter().map(|format| format!("format name: {format}\n")).collect();
        if let Some((cluster, vmstate)) = self.clusters {
            text += &format!("cluster size: {}\n", amount(cluster as f64));
            text += &format!("vm state offset: {}\n", amount(vmstate as f64));
        }
        if let Some(specific) = &self.specific {
            text += &render_specific(specific);
        }
        text
    }
}
