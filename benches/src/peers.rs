//! The other qcow2 libraries, each as its own documentation uses it.

use std::io;
use std::path::Path;
use std::rc::Rc;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_uring;

use crate::{BLOCK, CLUSTER, DEPTH, Random};

/// What is done with an image that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Reads blocks in no order.
    Reads(u64),
    /// Writes so many clusters in order.
    Writes(u64),
}

/// imago, whose file storage calls the kernel directly: its requests run one after the other, from as many
/// buffers as others have in flight.
///
/// # Errors
/// The kernel's, or the image's.
pub fn imago(load: Load, path: &str) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let writable = matches!(load, Load::Writes(_));
        let image = Qcow2::<File>::builder_path(path).write(writable);
        let disk = FormatAccess::new(image.open(PermissiveImplicitOpenGate::default()).await?);
        match load {
            Load::Reads(count) => {
                let (mut random, mut buffers) = (Random::new(1), vec![vec![0; BLOCK]; DEPTH]);
                for request in 0..count {
                    let data = &mut buffers[request as usize % DEPTH];
                    disk.read(&mut data[..], random.block(disk.size())).await?;
                }
            }
            Load::Writes(clusters) => {
                let buffers = vec![vec![0x5a; CLUSTER]; DEPTH];
                for cluster in 0..clusters {
                    let data = &buffers[cluster as usize % DEPTH];
                    disk.write(&data[..], cluster * CLUSTER as u64).await?;
                }
            }
        }
        disk.flush().await
    })
}

/// qcow2-rs on tokio-uring, one task a request in flight.
pub fn qcow2_rs(load: Load, path: &str) {
    tokio_uring::start(async {
        let params = Qcow2DevParams::new(9, None, None, matches!(load, Load::Reads(_)), false);
        let disk = Rc::new(qcow2_setup_dev_uring(Path::new(path), &params).await.expect("opens"));
        let tasks: Vec<_> = (0..DEPTH as u64)
            .map(|n| {
                let disk = Rc::clone(&disk);
                tokio_uring::spawn(async move {
                    let (mut random, len) = (Random::new(n + 1), disk.info.virtual_size());
                    match load {
                        Load::Reads(count) => {
                            let mut data = Qcow2IoBuf::<u8>::new(BLOCK);
                            for _ in (n..count).step_by(DEPTH) {
                                disk.read_at(&mut data, random.block(len)).await.expect("reads");
                            }
                        }
                        Load::Writes(clusters) => {
                            let mut data = Qcow2IoBuf::<u8>::new(CLUSTER);
                            data.fill(0x5a);
                            for cluster in (n..clusters).step_by(DEPTH) {
                                disk.write_at(&data, cluster * CLUSTER as u64).await.expect("writes");
                            }
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no task panics");
        }
        if matches!(load, Load::Writes(_)) {
            disk.flush_meta().await.expect("flushes");
        }
    });
}
