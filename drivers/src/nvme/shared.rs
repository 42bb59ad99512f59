//! One device for all threads of a process, by its name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::device::{Device, Options};
use super::error::NvmeError;
use super::vfio::Vfio;

/// The devices that are open, each behind a lock of its own: opening one takes a while.
static DEVICES: Mutex<BTreeMap<String, Arc<Place>>> = Mutex::new(BTreeMap::new());

type Place = Mutex<Weak<Device>>;

fn place(name: &str) -> Arc<Place> {
    let mut devices = DEVICES.lock().expect("looking up does not panic");
    Arc::clone(devices.entry(name.to_owned()).or_default())
}

/// Opens the controller at a PCI address, or another reference to it if this process has it open; then the options are
/// those of the first who opened it.
///
/// With the feature `sim`, the name `sim:NAME` means a simulated controller that was
/// registered (`Sim::register`).
///
/// # Errors
/// What the controller or the host says.
pub fn open(name: &str, options: Options) -> Result<Arc<Device>, NvmeError> {
    let place = place(name);
    let mut open: MutexGuard<'_, Weak<Device>> = place.lock().expect("opening does not panic");
    if let Some(device) = open.upgrade() {
        return Ok(device);
    }
    #[cfg(any(test, feature = "sim"))]
    if let Some(name) = name.strip_prefix("sim:") {
        let device = Device::open(super::sim::Sim::registered(name)?, options)?;
        *open = Arc::downgrade(&device);
        return Ok(device);
    }
    let transport = Vfio::open(name, options.completions)?;
    let device = Device::open(Arc::new(transport), options)?;
    *open = Arc::downgrade(&device);
    Ok(device)
}
