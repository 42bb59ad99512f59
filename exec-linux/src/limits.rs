//! What a block device says of itself in sysfs. Source: the kernel's `Documentation/ABI/stable/sysfs-block`.

use std::path::{Path, PathBuf};

use drystone_core::intent::Errno;

/// The limits of a block device's request queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceLimits {
    /// Bytes of the smallest unit that the device can be asked for.
    pub(crate) logical_block: u32,
    /// Bytes of a request that suit the device best; the size of its own blocks, where it names none.
    pub(crate) preferred: u32,
    /// Bytes of one command at the most; 0 where it does not say.
    pub(crate) transfer_max: u32,
    /// Bytes of the unit in which the device gives up space; nothing where it gives up none.
    pub(crate) discard_granularity: Option<u32>,
    /// Whether the device zeroes ranges by itself.
    pub(crate) zeroes: bool,
}

impl DeviceLimits {
    /// Reads the limits of the device of that number; nothing where sysfs does not show it.
    ///
    /// # Errors
    /// `ENOTSUP` for a device that is written in zones, each from its start.
    pub(crate) fn of(device: u64) -> Result<Option<Self>, Errno> {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let here = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition has the queue of its disk.
        let queue = [here.join("queue"), here.join("../queue")];
        queue.iter().find(|queue| queue.is_dir()).map(|queue| Self::read(queue)).transpose()
    }

    /// Reads a folder of the form `/sys/block/NAME/queue`.
    fn read(queue: &Path) -> Result<Self, Errno> {
        let text = |name| std::fs::read_to_string(queue.join(name)).unwrap_or_default();
        let number = |name| text(name).trim().parse::<u64>().unwrap_or(0);
        // A device that only would like to be written in zones takes any write.
        if text("zoned").trim() == "host-managed" {
            return Err(Errno::ENOTSUP);
        }
        let bytes = |name| u32::try_from(number(name)).unwrap_or(0);
        let logical_block = power_of_two(bytes("logical_block_size")).unwrap_or(512);
        let preferred = match bytes("optimal_io_size") {
            0 => bytes("physical_block_size"),
            optimal => optimal,
        };
        let granularity = power_of_two(bytes("discard_granularity")).unwrap_or(logical_block);
        let transfer_max = number("max_sectors_kb").saturating_mul(1024);
        Ok(Self {
            logical_block,
            preferred,
            transfer_max: u32::try_from(transfer_max).unwrap_or(0),
            discard_granularity: (number("discard_max_bytes") > 0).then_some(granularity.max(logical_block)),
            zeroes: number("write_zeroes_max_bytes") > 0,
        })
    }
}

fn power_of_two(number: u32) -> Option<u32> {
    number.is_power_of_two().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue with what the files say.
    fn queue(name: &str, files: &[(&str, &str)]) -> Result<DeviceLimits, Errno> {
        let folder = std::env::temp_dir().join(format!("drystone-queue-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        for (file, content) in files {
            std::fs::write(folder.join(file), content).expect("a temporary file");
        }
        let limits = DeviceLimits::read(&folder);
        std::fs::remove_dir_all(&folder).expect("it is there");
        limits
    }

    #[test]
    fn what_a_disk_says() {
        // As an NVMe disk has it.
        let limits = queue(
            "disk",
            &[
                ("logical_block_size", "4096\n"),
                ("physical_block_size", "8192\n"),
                ("optimal_io_size", "131072\n"),
                ("max_sectors_kb", "512\n"),
                ("discard_granularity", "16384\n"),
                ("discard_max_bytes", "2199023255040\n"),
                ("write_zeroes_max_bytes", "131072\n"),
                ("zoned", "none\n"),
            ],
        );
        let expected = DeviceLimits {
            logical_block: 4096,
            preferred: 131_072,
            transfer_max: 512 << 10,
            discard_granularity: Some(16_384),
            zeroes: true,
        };
        assert_eq!(limits, Ok(expected));
    }

    #[test]
    fn what_a_disk_does_not_say() {
        let files =
            [("physical_block_size", "4096\n"), ("optimal_io_size", "0\n"), ("zoned", "host-aware\n")];
        let expected = DeviceLimits {
            logical_block: 512,
            preferred: 4096,
            transfer_max: 0,
            discard_granularity: None,
            zeroes: false,
        };
        assert_eq!(queue("silent", &files), Ok(expected));
    }

    #[test]
    fn zones_that_must_be_written_from_their_start_are_refused() {
        assert_eq!(queue("zoned", &[("zoned", "host-managed\n")]), Err(Errno::ENOTSUP));
    }
}
