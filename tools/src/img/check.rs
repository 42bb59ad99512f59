//! What `check` shows.

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
    /// Errors of the check itself, which leave it incomplete.
    pub check_errors: u64,
    /// Errors that can cost data.
    pub corruptions: u64,
    /// Clusters that are counted as used but are not.
    pub leaks: u64,
    /// Errors that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// The first byte behind the last cluster in use; 0 when the format does not say.
    pub image_end_offset: u64,
    /// Clusters of the guest's disk; 0 when the format does not count them.
    pub total_clusters: u64,
    /// Those that have data.
    pub allocated_clusters: u64,
    /// Those that do not lie behind the one before them.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
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
        self.corruptions_fixed > 0 || self.leaks_fixed > 0
    }

    /// What people read between the two checks.
    #[must_use]
    pub fn repair_summary(&self) -> String {
        format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...\n",
            self.leaks_fixed, self.corruptions_fixed
        )
    }

    /// This report, of the second check, with the repairs of the first.
    #[must_use]
    pub fn with_repairs_of(self, first: &Self) -> Self {
        Self { corruptions_fixed: first.corruptions_fixed, leaks_fixed: first.leaks_fixed, ..self }
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
        match self {
            Self { check_errors: 1.., .. } => Err(Failure::new("Check failed")),
            Self { corruptions: 1.., .. } => Ok(2),
            Self { leaks: 1.., .. } => Ok(3),
            _ => Ok(0),
        }
    }

    fn human(&self) -> String {
        let mut text = String::new();
        if (self.corruptions, self.leaks, self.check_errors) == (0, 0, 0) {
            text += "No errors were found on the image.\n";
        }
        if self.corruptions > 0 {
            text += &format!(
                "\n{} errors were found on the image.\n\
                 Data may be corrupted, or further writes to the image may corrupt it.\n",
                self.corruptions
            );
        }
        if self.leaks > 0 {
            text += &format!(
                "\n{} leaked clusters were found on the image.\n\
                 This means waste of disk space, but no harm to data.\n",
                self.leaks
            );
        }
        if self.check_errors > 0 {
            text += &format!("\n{} internal errors have occurred during the check.\n", self.check_errors);
        }
        if self.total_clusters > 0 && self.allocated_clusters > 0 {
            let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
            let (allocated, total) = (self.allocated_clusters, self.total_clusters);
            text += &format!(
                "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
                percent(allocated, total),
                percent(self.fragmented_clusters, allocated),
                percent(self.compressed_clusters, allocated),
            );
        }
        if self.image_end_offset > 0 {
            text += &format!("Image end offset: {}\n", self.image_end_offset);
        }
        text
    }

    fn json(&self) -> String {
        let mut map = Map::new();
        map.insert("filename".into(), self.filename.as_str().into());
        map.insert("format".into(), self.format.as_str().into());
        map.insert("check-errors".into(), self.check_errors.into());
        for (key, number) in [
            ("image-end-offset", self.image_end_offset),
            ("corruptions", self.corruptions),
            ("leaks", self.leaks),
            ("corruptions-fixed", self.corruptions_fixed),
            ("leaks-fixed", self.leaks_fixed),
            ("total-clusters", self.total_clusters),
            ("allocated-clusters", self.allocated_clusters),
            ("fragmented-clusters", self.fragmented_clusters),
            ("compressed-clusters", self.compressed_clusters),
        ] {
            if number > 0 {
                map.insert(key.into(), number.into());
            }
        }
        to_pages(&Value::Object(map)) + "\n"
    }
}
