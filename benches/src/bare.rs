//! The floor: the same requests with nothing between the program and the kernel.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::{IoUring, opcode, types::Fd};

use crate::{BLOCK, CLUSTER, DEPTH, Random};

/// Reads blocks of the file in no order.
///
/// # Errors
/// The kernel's.
pub fn read(path: &str, count: u64) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    let mut ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(256)?;
    let mut buffers = vec![[0u8; BLOCK]; DEPTH];
    let mut random = Random::new(1);
    let mut push = |ring: &mut IoUring, slot: usize| {
        let address = buffers[slot].as_mut_ptr();
        let read = opcode::Read::new(Fd(file.as_raw_fd()), address, BLOCK as u32);
        let entry = read.offset(random.block(len)).build().user_data(slot as u64);
        // SAFETY: the buffer lives longer than the loop that waits for every read, and nothing else touches it.
        unsafe { ring.submission().push(&entry) }.expect("the queue has room");
    };
    for slot in 0..DEPTH {
        push(&mut ring, slot);
    }
    let (mut done, mut free) = (0, Vec::with_capacity(DEPTH));
    while done < count {
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            assert_eq!(completion.result(), BLOCK as i32);
            free.push(completion.user_data() as usize);
        }
        done += free.len() as u64;
        for slot in free.drain(..) {
            push(&mut ring, slot);
        }
    }
    ring.submit_and_wait(DEPTH)?;
    Ok(())
}

/// Writes clusters to a new file in order, by plain calls, from as many buffers as others have in flight.
///
/// # Errors
/// The kernel's.
pub fn write(path: &str, clusters: u64) -> io::Result<()> {
    let file = std::fs::File::create(path)?;
    let buffers = vec![vec![0x5a; CLUSTER]; DEPTH];
    for cluster in 0..clusters {
        file.write_all_at(&buffers[cluster as usize % DEPTH], cluster * CLUSTER as u64)?;
    }
    Ok(())
}
