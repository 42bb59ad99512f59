//! Writes to the first sector of an image whose format was guessed.

use crate::engine::{Io, Op, Request};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Role};
use crate::graph::open::{PROBED_LEN, looks_like};
use crate::intent::Fua;

/// Bytes that no format's header may come to stand in: all that a format is told by, so that a guess which is made again sees
/// nothing that was not looked at here.
pub(super) const LEN: u64 = PROBED_LEN;

/// Whether the guard looks at a request. A whole sector of zeros is no format's.
pub(super) fn concerns(offset: u64, len: u64, access: Access) -> bool {
    match access {
        Access::Read => false,
        Access::Write => offset < LEN,
        Access::Zero => offset < LEN && (offset > 0 || len < LEN),
    }
}

/// Carries out a write, zeros or a discard within the first sector, unless the sector would then look like an image's; what is
/// discarded may come to read as zeros. Nobody else writes there meanwhile: two writes could make a header of two halves. The
/// disk begins at byte `window` of its file.
///
/// # Errors
/// [`Error::Restricted`], and what the file says.
pub(super) async fn write(io: &Io, request: &mut Request, window: u64) -> Result<()> {
    let shared = io.shared();
    let here = shared.graph.node(io.node());
    let _claim = here.claims.take(&shared.tasks, 0, LEN).await;
    let (file, at) = (io.child(Role::File), window + request.offset);
    let mut head = io.read_bytes("raw.guard/read", file, window, LEN as usize).await?;
    let changed = &mut head[request.offset as usize..][..request.len as usize];
    match request.op {
        Op::WriteZeroes(..) | Op::Discard => changed.fill(0),
        _ => request.data.copy_out(0, changed),
    }
    if let Some(format) = looks_like(&head) {
        return Err(Box::new(Error::Restricted { node: here.title.clone(), format }));
    }
    let fua = match request.op {
        Op::WriteZeroes(flags, _) => {
            return io.write_zeroes("raw.guard/zero", file, at, request.len, flags).await;
        }
        Op::Discard => return io.discard("raw.guard/discard", file, at, request.len).await,
        Op::Write(fua) => fua,
        _ => Fua::No,
    };
    let data = std::mem::take(&mut request.data);
    let (data, result) = io.write("raw.guard/write", file, at, data, fua).await;
    request.data = data;
    result
}
