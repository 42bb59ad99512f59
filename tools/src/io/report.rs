//! What commands show: statistics, bytes, ranges.

use std::fmt::Write as _;
use std::time::Duration;

/// A request that succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What it did: `read`, `wrote`, `discard`.
    pub verb: &'static str,
    /// First byte.
    pub offset: u64,
    /// Bytes that were asked for, all of which were moved.
    pub count: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether it is for machines (`-C`).
    pub machine: bool,
}

impl Report {
    /// The statistics of the request.
    #[must_use]
    pub fn render(&self) -> String {
        let Self { verb, offset, count, .. } = *self;
        // A request too fast for the clock took a nanosecond.
        let seconds = self.elapsed.max(Duration::from_nanos(1)).as_secs_f64();
        let (bytes, operations) = (count as f64 / seconds, 1.0 / seconds);
        if self.machine {
            return format!("{count},1,{},{bytes:.3},{operations:.3}\n", clock(self.elapsed));
        }
        format!(
            "{verb} {count}/{count} bytes at offset {offset}\n\
             {}, 1 ops; {} ({}/sec and {operations:.4} ops/sec)\n",
            amount(count as f64),
            time(self.elapsed),
            amount(bytes)
        )
    }
}

/// Hours, minutes, seconds and hundredths.
fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}.{:02}", seconds % 60, elapsed.subsec_millis() / 10)
}

/// Seconds, or more where it was more than a minute.
fn time(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..60 => format!("{:02}.{:02} sec", elapsed.as_secs(), elapsed.subsec_millis() / 10),
        _ => clock(elapsed),
    }
}

/// An amount of bytes: in the largest unit of which there is one, with three digits behind the point unless all are zero;
/// bytes have six.
#[must_use]
pub fn amount(bytes: f64) -> String {
    const UNITS: [&str; 6] = [" EiB", " PiB", " TiB", " GiB", " MiB", " KiB"];
    let unit = UNITS.iter().enumerate().map(|(at, name)| (1024_f64.powi(6 - at as i32), name));
    let (number, suffix) = match unit.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => (format!("{:.3}", bytes / unit), *name),
        None => (format!("{bytes:.6}"), " bytes"),
    };
    let whole = number.find(".000").map_or(number.as_str(), |point| &number[..point]);
    format!("{whole}{suffix}")
}

/// Bytes in hexadecimal and as characters, sixteen a line; `offset` is the place of the first.
#[must_use]
pub fn dump(offset: u64, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 5);
    for (at, line) in (offset..).step_by(16).zip(bytes.chunks(16)) {
        write!(text, "{at:08x}:  ").expect("writing to a string does not fail");
        for byte in line {
            write!(text, "{byte:02x} ").expect("writing to a string does not fail");
        }
        text.push(' ');
        let shown = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' };
        text.extend(line.iter().map(shown));
        text.push('\n');
    }
    text
}

/// A line of `map`.
#[must_use]
pub fn range(allocated: bool, offset: u64, len: u64) -> String {
    let what = if allocated { "    allocated" } else { "not allocated" };
    format!(
        "{} ({len:#x}) bytes {what} at offset {} ({offset:#x})\n",
        amount(len as f64),
        amount(offset as f64)
    )
}

/// What `alloc` says.
#[must_use]
pub fn allocated(allocated: u64, of: u64, offset: u64) -> String {
    format!("{allocated}/{of} bytes allocated at offset {}\n", amount(offset as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (bytes, text) in [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (0.477_955, "0.477955 bytes"),
            (1023.5, "1023.500000 bytes"),
            (1024.0, "1 KiB"),
            (1536.0, "1.500 KiB"),
            (1_048_576.0, "1 MiB"),
            (1_677_721.6, "1.600 MiB"),
            (1.5 * (1u64 << 40) as f64, "1.500 TiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }

    #[test]
    fn statistics_have_their_shape() {
        let report = Report {
            verb: "read",
            offset: 4096,
            count: 512,
            elapsed: Duration::from_millis(20),
            machine: false,
        };
        assert_eq!(
            report.render(),
            "read 512/512 bytes at offset 4096\n512 bytes, 1 ops; 00.02 sec (25 KiB/sec and 50.0000 ops/sec)\n"
        );
        let machine = Report { machine: true, elapsed: Duration::from_secs(3723), ..report };
        assert_eq!(machine.render(), "512,1,1:02:03.00,0.138,0.000\n");
    }

    #[test]
    fn bytes_are_shown_as_they_are() {
        let expected = "00000003:  41 0a 7f 20 7a  A...z\n";
        assert_eq!(dump(3, b"A\n\x7f z"), expected);
        assert_eq!(dump(0, &[0; 17]).lines().count(), 2);
    }
}
