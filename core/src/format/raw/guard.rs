//! Writes to the first sector of an image whose format was guessed.

use crate::engine::{Io, Op, Request};
use crate::error::{Error, Result};
use crate::graph::driver::Role;
use crate::graph::open::looks_like;
use crate::intent::Fua;

/// Bytes that no format's header may come to stand in: what formats are told by.
pub(super) const LEN: u64 = 512;

/// Carries out a write within the first sector, unless the sector would then look like an image's. Nobody else writes there
/// meanwhile: two writes could make a header of two halves. The disk begins at byte `window` of its file.
///
/// # Errors
/// [`Error::Restricted`], and what the file says.
pub(super) async fn write(io: &Io, request: &mut Request, window: u64) -> Result<()> {
    let shared = io.shared();
    let here = shared.graph.node(io.node());
    let _claim = here.claims.take(&shared.tasks, 0, LEN).await;
    let (file, at) = (io.child(Role::File), request.offset as usize);
    let mut head = io.read_bytes("raw.guard/read", file, window, LEN as usize).await?;
    request.data.copy_out(0, &mut head[at..at + request.len as usize]);
    if let Some(format) = looks_like(&head) {
        return Err(Box::new(Error::Restricted { node: here.title.clone(), format }));
    }
    let fua = match request.op {
        Op::Write(fua) => fua,
        _ => Fua::No,
    };
    let data = std::mem::take(&mut request.data);
    let (data, result) = io.write("raw.guard/write", file, window + request.offset, data, fua).await;
    request.data = data;
    result
}
