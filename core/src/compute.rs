//! CPU-heavy pure work as data, so that an executor may choose the thread it runs on.
//!
//! Start at [`Compute::run`]: bytes in, bytes out, no state, no I/O.

use crate::buf::Buf;

/// The compression methods of qcow2. Source: \[qcow2\] "Header", `compression_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Codec {
    /// Raw deflate with a window of 4 KiB, QEMU's `zlib`.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// One piece of work.
#[derive(Debug)]
#[non_exhaustive]
pub enum Compute {
    /// Compress `plain`; the result is refused when it is not shorter than `limit` bytes.
    Compress {
        /// How.
        codec: Codec,
        /// What.
        plain: Buf,
        /// Bytes that the result must stay below.
        limit: usize,
    },
    /// Decompress `packed` into exactly `plain_len` bytes; what follows the compressed stream in `packed` is ignored.
    Decompress {
        /// How.
        codec: Codec,
        /// What.
        packed: Buf,
        /// Bytes that must come out.
        plain_len: usize,
    },
}

/// What came of a [`Compute`]. The input buffer comes back.
#[derive(Debug)]
pub struct Computed {
    /// The buffer that was given.
    pub input: Buf,
    /// The bytes made.
    pub result: Result<Buf, ComputeError>,
}

/// Why a [`Compute`] gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError {
    /// The data does not shrink below the limit.
    #[error("the data does not compress")]
    Incompressible,
    /// The packed bytes are no stream of this codec, or one that is too short or too long.
    #[error("the compressed data is damaged")]
    Damaged,
}

impl Compute {
    /// Does the work. Pure: the same input gives the same output, on any thread, in any workspace.
    pub fn run(self, workspace: &mut Workspace) -> Computed {
        match self {
            Self::Compress { codec, plain, limit } => {
                let result = workspace.compress(codec, &plain, limit);
                Computed { input: plain, result }
            }
            Self::Decompress { codec, packed, plain_len } => {
                let result = workspace.decompress(codec, &packed, plain_len);
                Computed { input: packed, result }
            }
        }
    }
}

/// log2 of the deflate window that QEMU writes and expects.
const ZLIB_WINDOW_BITS: u8 = 12;

/// The tables of the codecs, kept by a thread from one piece of work to the next: setting them up costs more than a small
/// cluster.
#[derive(Default)]
pub struct Workspace {
    deflate: Option<flate2::Compress>,
    inflate: Option<flate2::Decompress>,
    zstd_compressor: Option<zstd::bulk::Compressor<'static>>,
    zstd_decoder: Option<zstd::stream::raw::Decoder<'static>>,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").finish_non_exhaustive()
    }
}

impl Workspace {
    fn compress(&mut self, codec: Codec, plain: &[u8], limit: usize) -> Result<Buf, ComputeError> {
        let mut packed = Buf::zeroed(limit);
        let len = match codec {
            Codec::Zlib => self.deflate(plain, &mut packed)?,
            Codec::Zstd => self.zstd_compress(plain, &mut packed)?,
        };
        if len >= limit {
            return Err(ComputeError::Incompressible);
        }
        drop(packed.split_off(len));
        Ok(packed)
    }

    fn decompress(&mut self, codec: Codec, packed: &[u8], plain_len: usize) -> Result<Buf, ComputeError> {
        let mut plain = Buf::zeroed(plain_len);
        let len = match codec {
            Codec::Zlib => self.inflate(packed, &mut plain)?,
            Codec::Zstd => self.zstd_decompress(packed, &mut plain)?,
        };
        if len == plain_len { Ok(plain) } else { Err(ComputeError::Damaged) }
    }

    fn deflate(&mut self, plain: &[u8], packed: &mut [u8]) -> Result<usize, ComputeError> {
        let level = flate2::Compression::default();
        let new = || flate2::Compress::new_with_window_bits(level, false, ZLIB_WINDOW_BITS);
        let stream = self.deflate.get_or_insert_with(new);
        stream.reset();
        match stream.compress(plain, packed, flate2::FlushCompress::Finish) {
            Ok(flate2::Status::StreamEnd) => {
                Ok(usize::try_from(stream.total_out()).expect("the stream fits in its buffer"))
            }
            _ => Err(ComputeError::Incompressible),
        }
    }

    fn inflate(&mut self, packed: &[u8], plain: &mut [u8]) -> Result<usize, ComputeError> {
        let stream = self.inflate.get_or_insert_with(|| flate2::Decompress::new(false));
        stream.reset(false);
        stream
            .decompress(packed, plain, flate2::FlushDecompress::Finish)
            .map_err(|_| ComputeError::Damaged)?;
        Ok(usize::try_from(stream.total_out()).expect("the stream fits in its buffer"))
    }

    fn zstd_compress(&mut self, plain: &[u8], packed: &mut [u8]) -> Result<usize, ComputeError> {
        if self.zstd_compressor.is_none() {
            let new = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL);
            self.zstd_compressor = Some(new.map_err(|_| ComputeError::Incompressible)?);
        }
        let compressor = self.zstd_compressor.as_mut().expect("made above");
        compressor.compress_to_buffer(plain, packed).map_err(|_| ComputeError::Incompressible)
    }

    /// Decodes frames until `plain` is full; a cluster's sectors may hold other bytes after the stream.
    fn zstd_decompress(&mut self, packed: &[u8], plain: &mut [u8]) -> Result<usize, ComputeError> {
        use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
        let damaged = |_| ComputeError::Damaged;
        match &mut self.zstd_decoder {
            Some(decoder) => decoder.reinit().map_err(damaged)?,
            none => *none = Some(Decoder::new().map_err(damaged)?),
        }
        let decoder = self.zstd_decoder.as_mut().expect("made above");
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(plain);
        while output.pos() < output.capacity() {
            let before = (input.pos(), output.pos());
            decoder.run(&mut input, &mut output).map_err(damaged)?;
            if before == (input.pos(), output.pos()) {
                break;
            }
        }
        Ok(output.pos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(codec: Codec, plain: &[u8]) {
        let limit = plain.len();
        let packed = Compute::Compress { codec, plain: Buf::from(plain), limit }
            .run(&mut Workspace::default())
            .result
            .expect("compressible");
        assert!(packed.len() < limit);
        let mut with_tail = Buf::zeroed(packed.len() + 300);
        with_tail.fill(0xa5);
        with_tail[..packed.len()].copy_from_slice(&packed);
        for packed in [packed, with_tail] {
            let unpacked =
                Compute::Decompress { codec, packed, plain_len: limit }.run(&mut Workspace::default());
            assert_eq!(&*unpacked.result.expect("our own stream"), plain);
        }
    }

    #[test]
    fn both_codecs_round_trip_and_ignore_what_follows() {
        let plain: Vec<u8> = (0..65536u32).map(|i| (i / 37 % 251) as u8).collect();
        round_trip(Codec::Zlib, &plain);
        round_trip(Codec::Zstd, &plain);
    }

    #[test]
    fn noise_is_incompressible_and_garbage_is_damaged() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(4096)
        .collect();
        for codec in [Codec::Zlib, Codec::Zstd] {
            let work = Compute::Compress { codec, plain: Buf::from(&noise[..]), limit: noise.len() };
            assert_eq!(work.run(&mut Workspace::default()).result.unwrap_err(), ComputeError::Incompressible);
            let work = Compute::Decompress { codec, packed: Buf::from(&noise[..]), plain_len: 4096 };
            assert_eq!(work.run(&mut Workspace::default()).result.unwrap_err(), ComputeError::Damaged);
            let work = Compute::Decompress { codec, packed: Buf::empty(), plain_len: 4096 };
            assert_eq!(work.run(&mut Workspace::default()).result.unwrap_err(), ComputeError::Damaged);
        }
    }
}
