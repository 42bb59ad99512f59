//! Where a PCI device is in sysfs, and why it cannot be used if it cannot.

use std::path::{Path, PathBuf};

use crate::nvme::error::NvmeError;

/// The driver that gives devices to programs.
const VFIO_PCI: &str = "vfio-pci";

/// What sysfs says of a device that can be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its IOMMU group.
    pub(super) group: u32,
    /// Its own file, where the kernel has one for each device.
    pub(super) file: Option<PathBuf>,
}

/// Whether a name is a PCI address: domain, bus, device, function.
fn is_address(name: &str) -> bool {
    const SHAPE: &[u8] = b"0000:00:00.0";
    let fits = |(byte, shape): (u8, &u8)| match shape {
        b'0' => byte.is_ascii_hexdigit(),
        mark => byte == *mark,
    };
    name.len() == SHAPE.len() && name.bytes().zip(SHAPE).all(fits)
}

impl Place {
    /// Looks a device up below `root`, which is `/` but in tests.
    pub(super) fn find(root: &Path, address: &str) -> Result<Self, NvmeError> {
        let unusable = |text: String| Err(NvmeError::Unusable(text));
        if !is_address(address) {
            let text = format!("'{address}' is no PCI address; one looks like 0000:01:00.0");
            return unusable(text);
        }
        let folder = root.join("sys/bus/pci/devices").join(address);
        if !folder.exists() {
            return unusable(format!(
                "there is no PCI device {address}; `lspci -D` lists those that there are"
            ));
        }
        let users = users(root, &folder);
        if !users.is_empty() {
            let text = format!(
                "{address} is in use by the kernel: {}; end that before the device is given to vfio-pci",
                users.join(", ")
            );
            return unusable(text);
        }
        let Some(group) = name_of(&folder.join("iommu_group")).and_then(|group| group.parse().ok()) else {
            let text = format!(
                "{address} is in no IOMMU group: enable the IOMMU in the firmware and boot with intel_iommu=on or \
                 amd_iommu=on"
            );
            return unusable(text);
        };
        match name_of(&folder.join("driver")).as_deref() {
            Some(VFIO_PCI) => {
                let name = entries(&folder.join("vfio-dev")).into_iter().next().map(file_name);
                let file = name.map(|name| root.join("dev/vfio/devices").join(name));
                Ok(Self { group, file })
            }
            Some(other) => unusable(format!(
                "{address} is bound to the driver '{other}': give it to vfio-pci with `echo vfio-pci > \
                 /sys/bus/pci/devices/{address}/driver_override; echo {address} > \
                 /sys/bus/pci/devices/{address}/driver/unbind; echo {address} > /sys/bus/pci/drivers_probe`"
            )),
            None => unusable(format!(
                "{address} is bound to no driver: give it to vfio-pci with `modprobe vfio-pci; echo vfio-pci > \
                 /sys/bus/pci/devices/{address}/driver_override; echo {address} > /sys/bus/pci/drivers_probe`"
            )),
        }
    }
}

/// The last part of where a link leads.
fn name_of(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// What of the kernel uses the device's namespaces, in words.
fn users(root: &Path, folder: &Path) -> Vec<String> {
    let disks: Vec<String> = entries(&folder.join("nvme"))
        .into_iter()
        .flat_map(|controller| {
            let number = file_name(controller.clone());
            entries(&controller).into_iter().filter_map(move |disk| disk_name(&number, &file_name(disk)))
        })
        .collect();
    let is_part = |name: &str| {
        disks.iter().any(|disk| {
            let part = name.strip_prefix(disk.as_str());
            part.is_some_and(|part| part.is_empty() || part.starts_with('p'))
        })
    };
    let of_disk = |device: &str| device.strip_prefix("/dev/").is_some_and(is_part);
    let lines = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut users = Vec::new();
    for line in lines("proc/mounts").lines() {
        let mut words = line.split(' ');
        if let (Some(device), Some(at)) = (words.next(), words.next())
            && of_disk(device)
        {
            users.push(format!("{device} is mounted at {at}"));
        }
    }
    for line in lines("proc/swaps").lines() {
        if let Some(device) = line.split_whitespace().next()
            && of_disk(device)
        {
            users.push(format!("{device} is swap space"));
        }
    }
    // Volumes, encrypted disks and arrays, whatever is mounted of them.
    for block in entries(&root.join("sys/class/block")) {
        let holders = entries(&block.join("holders"));
        let name = file_name(block);
        for holder in holders.into_iter().filter(|_| is_part(&name)) {
            users.push(format!("/dev/{name} is a part of /dev/{}", file_name(holder)));
        }
    }
    users
}

/// The disk that an entry below a controller stands for: `nvme0n1`, or `nvme0c0n1` for one way of several to `nvme0n1`.
fn disk_name(controller: &str, entry: &str) -> Option<String> {
    let rest = entry.strip_prefix(controller)?;
    let namespace = rest.rfind('n').map(|at| &rest[at..])?;
    (rest.starts_with('n') || rest.starts_with('c')).then(|| format!("{controller}{namespace}"))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn file_name(path: PathBuf) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ADDRESS: &str = "0000:01:00.0";

    /// A tree as sysfs and procfs have it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("drystone-pci-{}-{name}", std::process::id()));
            std::fs::create_dir_all(root.join("sys/bus/pci/devices").join(ADDRESS)).expect("a folder");
            std::fs::create_dir_all(root.join("proc")).expect("a folder");
            Self(root)
        }

        fn device(&self) -> PathBuf {
            self.0.join("sys/bus/pci/devices").join(ADDRESS)
        }

        fn find(&self) -> Result<Place, String> {
            Place::find(&self.0, ADDRESS).map_err(|error| error.to_string())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            // What is left is in the temporary folder.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn addresses() {
        assert!(is_address(ADDRESS) && is_address("abcd:ef:1f.7"));
        for wrong in
            ["", "01:00.0", "0000:01:00:0", "0000:01:00.0x", "0000.01:00.0", "000g:01:00.0", "../../../etc"]
        {
            assert!(!is_address(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_device_that_is_ready_has_a_group() {
        let tree = Tree::new("ready");
        symlink("../../../kernel/iommu_groups/17", tree.device().join("iommu_group")).expect("a link");
        symlink("../../../bus/pci/drivers/vfio-pci", tree.device().join("driver")).expect("a link");
        assert_eq!(tree.find(), Ok(Place { group: 17, file: None }));
        std::fs::create_dir_all(tree.device().join("vfio-dev/vfio3")).expect("a folder");
        let file = Some(tree.0.join("dev/vfio/devices/vfio3"));
        assert_eq!(tree.find(), Ok(Place { group: 17, file }));
    }

    #[test]
    fn a_device_that_is_not_ready_says_what_to_do() {
        let tree = Tree::new("unready");
        let error = tree.find().expect_err("no group");
        assert!(error.contains("is in no IOMMU group: enable the IOMMU"), "{error}");
        symlink("../../../kernel/iommu_groups/17", tree.device().join("iommu_group")).expect("a link");
        let error = tree.find().expect_err("no driver");
        assert!(error.contains("is bound to no driver: give it to vfio-pci with `modprobe"), "{error}");
        symlink("../../../bus/pci/drivers/nvme", tree.device().join("driver")).expect("a link");
        let error = tree.find().expect_err("another driver");
        assert!(error.contains("is bound to the driver 'nvme': give it to vfio-pci with `echo"), "{error}");
        // One way to nvme0n1, and attributes.
        for entry in ["nvme0c0n1", "dev", "device", "model"] {
            std::fs::create_dir_all(tree.device().join("nvme/nvme0").join(entry)).expect("a folder");
        }
        std::fs::write(
            tree.0.join("proc/mounts"),
            "dev /dev devtmpfs rw\n/dev/nvme0n1p2 /srv ext4 rw 0 0\n/dev/nvme0n10 / ext4 rw\n",
        )
        .expect("a file");
        let error = tree.find().expect_err("mounted");
        let expected = "0000:01:00.0 is in use by the kernel: /dev/nvme0n1p2 is mounted at /srv; end that before the \
                        device is given to vfio-pci";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_device_that_others_are_made_of_is_in_use() {
        let tree = Tree::new("held");
        symlink("../../../kernel/iommu_groups/17", tree.device().join("iommu_group")).expect("a link");
        symlink("../../../bus/pci/drivers/nvme", tree.device().join("driver")).expect("a link");
        std::fs::create_dir_all(tree.device().join("nvme/nvme0/nvme0n1")).expect("a folder");
        for (disk, holder) in [("nvme0n1p3", "dm-0"), ("nvme0n1", "md127"), ("nvme1n1", "dm-1")] {
            let block = tree.0.join("sys/class/block").join(disk);
            std::fs::create_dir_all(block.join("holders").join(holder)).expect("a folder");
        }
        let error = tree.find().expect_err("held");
        let expected = "is in use by the kernel: /dev/nvme0n1 is a part of /dev/md127, /dev/nvme0n1p3 is a part of /dev/dm-0; ";
        assert!(error.contains(expected) && !error.contains("nvme1n1"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let error = Place::find("/".as_ref(), "ffff:ff:1f.7").expect_err("no such device").to_string();
        assert_eq!(error, "there is no PCI device ffff:ff:1f.7; `lspci -D` lists those that there are");
    }
}
