//! What `check` shows.

use drystone_core::format::CheckReport as Found;
use serde_json::{Map, Value};

use super::args::OutputFormat;
use crate::message::Failure;
use crate::options::json::to_pages;

/// What a check found in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The image, as it was named.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// What was found.
    pub found: Found,
}

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckError {
    /// The format has no checks.
    NotSupported,
    /// An I/O error; the text is the host's for its errno, such as `Input/output error`.
    Io(String),
}

impl CheckError {
    /// The failure of the command.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self {
            Self::NotSupported => Failure::new("This image format does not support checks").with_code(63),
            Self::Io(text) => Failure::new(format!("Check failed: {text}")),
        }
    }
}

impl CheckReport {
    /// Whether something was repaired, so that the image is to be checked again, without repairs.
    #[must_use]
    pub fn repaired(&self) -> bool {
        self.found.corruptions_fixed > 0 || self.found.leaks_fixed > 0
    }

    /// What people read between the two checks.
    #[must_use]
    pub fn repair_summary(&self) -> String {
        format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...\n",
            self.found.leaks_fixed, self.found.corruptions_fixed
        )
    }

    /// This report, of the second check, with the repairs of the first.
    #[must_use]
    pub fn with_repairs_of(mut self, first: &Self) -> Self {
        self.found.corruptions_fixed = first.found.corruptions_fixed;
        self.found.leaks_fixed = first.found.leaks_fixed;
        self
    }

    /// The report in the form asked for.
    #[must_use]
    pub fn render(&self, format: OutputFormat) -> String {
        match format {
            OutputFormat::Human => self.human(),
            OutputFormat::Json => self.json(),
        }
    }

    /// How the command ends after the report is shown.
    ///
    /// # Errors
    /// Exit code 1 with a message when the check was incomplete.
    pub fn exit_code(&self) -> Result<u8, Failure> {
        match self.found {
            Found { check_errors: 1.., .. } => Err(Failure::new("Check failed")),
            Found { corruptions: 1.., .. } => Ok(2),
            Found { leaks: 1.., .. } => Ok(3),
            _ => Ok(0),
        }
    }

    fn human(&self) -> String {
        let mut text = String::new();
        if (self.found.corruptions, self.found.leaks, self.found.check_errors) == (0, 0, 0) {
            text += "No errors were found on the image.\n";
        }
        if self.found.corruptions > 0 {
            text += &format!(
                "\n{} errors were found on the image.\n\
                 Data may be corrupted, or further writes to the image may corrupt it.\n",
                self.found.corruptions
            );
        }
        if self.found.leaks > 0 {
            text += &format!(
                "\n{} leaked clusters were found on the image.\n\
                 This means waste of disk space, but no harm to data.\n",
                self.found.leaks
            );
        }
        if self.found.check_errors > 0 {
            text +=
                &format!("\n{} internal errors have occurred during the check.\n", self.found.check_errors);
        }
        if self.found.total_clusters > 0 && self.found.allocated_clusters > 0 {
            let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
            let (allocated, total) = (self.found.allocated_clusters, self.found.total_clusters);
            text += &format!(
                "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
                percent(allocated, total),
                percent(self.found.fragmented_clusters, allocated),
                percent(self.found.compressed_clusters, allocated),
            );
        }
        if self.found.image_end_offset > 0 {
            text += &format!("Image end offset: {}\n", self.found.image_end_offset);
        }
        text
    }

    fn json(&self) -> String {
        let mut map = Map::new();
        map.insert("filename".into(), self.filename.as_str().into());
        map.insert("format".into(), self.format.as_str().into());
        map.insert("check-errors".into(), self.found.check_errors.into());
        for (key, number) in [
            ("image-end-offset", self.found.image_end_offset),
            ("corruptions", self.found.corruptions),
            ("leaks", self.found.leaks),
            ("corruptions-fixed", self.found.corruptions_fixed),
            ("leaks-fixed", self.found.leaks_fixed),
            ("total-clusters", self.found.total_clusters),
            ("allocated-clusters", self.found.allocated_clusters),
            ("fragmented-clusters", self.found.fragmented_clusters),
            ("compressed-clusters", self.found.compressed_clusters),
        ] {
            if number > 0 {
                map.insert(key.into(), number.into());
            }
        }
        to_pages(&Value::Object(map)) + "\n"
    }
}
