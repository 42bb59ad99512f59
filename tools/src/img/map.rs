//! What `map` shows: where each stretch of the guest's disk lies.
//!
//! [`MapPrinter`] takes entries in guest order as the engine finds them, joins neighbours, and hands out text piece by
//! piece, so that an image of any length needs no more memory than one line.

use super::args::OutputFormat;
use crate::message::Failure;

/// A stretch of the guest's disk that is alike all over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Its first guest byte.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
    /// Which image of the backing chain decides about it; 0 is the top.
    pub depth: u32,
    /// Whether that image, and not the absence of all others, decides.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether there is data behind it.
    pub data: bool,
    /// Whether that data is compressed.
    pub compressed: bool,
    /// Where it lies in its file, if it lies there as it is.
    pub offset: Option<u64>,
    /// The name of that file.
    pub filename: Option<String>,
}

impl MapEntry {
    /// The only entry of an image, or of a part of one, that has no bytes.
    #[must_use]
    pub fn empty(start: u64) -> Self {
        Self {
            start,
            length: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
            filename: None,
        }
    }

    /// Whether `next` goes on where and as this entry ends.
    fn continues_in(&self, next: &Self) -> bool {
        let offset_at_end = self.offset.map(|offset| offset + self.length);
        let alike = |entry: &Self| (entry.depth, entry.present, entry.zero, entry.data, entry.compressed);
        alike(self) == alike(next) && self.filename == next.filename && offset_at_end == next.offset
    }

    fn json(&self) -> String {
        let Self { start, length, depth, present, zero, data, compressed, .. } = self;
        let offset = self.offset.map_or(String::new(), |offset| format!(", \"offset\": {offset}"));
        format!(
            "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \
             \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}{offset}}}"
        )
    }

    /// A line for people; only data that a reader could find in a file by itself has one.
    fn human(&self) -> Result<String, Failure> {
        if self.data && self.offset.is_none() {
            return Err(Failure::new("File contains external, encrypted or compressed clusters."));
        }
        let (Some(offset), true, false) = (self.offset, self.data, self.zero) else {
            return Ok(String::new());
        };
        let hex = |number: u64| if number == 0 { "0".to_owned() } else { format!("{number:#x}") };
        let filename = self.filename.as_deref().unwrap_or_default();
        Ok(format!("{:<16}{:<16}{:<16}{filename}\n", hex(self.start), hex(self.length), hex(offset)))
    }
}

/// Joins entries and turns them into text.
#[derive(Debug)]
pub struct MapPrinter {
    format: OutputFormat,
    /// The entry that may still grow.
    pending: Option<MapEntry>,
    /// What stands between the last piece of JSON and the next.
    opening: &'static str,
}

impl MapPrinter {
    /// Starts a map; the second value is its first text.
    #[must_use]
    pub fn new(format: OutputFormat) -> (Self, String) {
        let head = match format {
            OutputFormat::Human => format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to"),
            OutputFormat::Json => "[".into(),
        };
        (Self { format, pending: None, opening: "" }, head)
    }

    /// Takes the next entry, and returns the text of the one before it if that is complete.
    ///
    /// # Errors
    /// For people, an entry whose data no offset describes ends the map.
    pub fn push(&mut self, entry: MapEntry) -> Result<String, Failure> {
        match &mut self.pending {
            Some(pending) if pending.continues_in(&entry) => {
                pending.length += entry.length;
                Ok(String::new())
            }
            pending => match pending.replace(entry) {
                Some(complete) => self.text_of(&complete),
                None => Ok(String::new()),
            },
        }
    }

    /// Ends the map; `start` is where it began, which matters when it has no entry.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self, start: u64) -> Result<String, Failure> {
        let last = self.pending.take().unwrap_or_else(|| MapEntry::empty(start));
        let text = self.text_of(&last)?;
        Ok(text + if self.format == OutputFormat::Json { "]\n" } else { "" })
    }

    fn text_of(&mut self, entry: &MapEntry) -> Result<String, Failure> {
        match self.format {
            OutputFormat::Human => entry.human(),
            OutputFormat::Json => {
                let opening = std::mem::replace(&mut self.opening, ",\n");
                Ok(format!("{opening}{}", entry.json()))
            }
        }
    }
}
