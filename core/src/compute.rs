//! CPU-heavy pure work as data, so that an executor may choose the thread it runs on.
//!
//! Start at [`Compute::run`]: bytes in, bytes out, no state, no I/O.

mod adc;

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::buf::Buf;
use crate::crypto::{Argon2Kind, Cipher, Direction, Pbkdf2Chain, Secret, argon2};

/// The compression methods of the formats; the first two are qcow2's. Source: \[qcow2\] "Header", `compression_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Codec {
    /// Raw deflate with a window of 4 KiB, QEMU's `zlib`.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
    /// Deflate in a zlib stream, with its checksum. Source: RFC 1950.
    ZlibStream,
}

/// How formats that are only read pack their chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// A zlib stream, with its header and checksum.
    Zlib,
    /// A bzip2 stream.
    Bzip2,
    /// LZFSE blocks.
    Lzfse,
    /// An xz stream of LZMA2.
    Xz,
    /// Apple Data Compression.
    Adc,
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
    /// Decompress `packed` into `plain`, which it must fill; what follows the compressed stream in `packed` is ignored.
    Decompress {
        /// How.
        codec: Codec,
        /// What.
        packed: Buf,
        /// Where to.
        plain: Buf,
    },
    /// Unpack `packed` into `plain`, which it must fill.
    Unpack {
        /// How.
        form: Form,
        /// What.
        packed: Buf,
        /// Where to.
        plain: Buf,
    },
    /// Encrypt or decrypt whole sectors: in place, or into other memory.
    Cipher {
        /// With what.
        cipher: Arc<Cipher>,
        /// Which of the two.
        direction: Direction,
        /// Number of the first sector, in units of 512 bytes.
        first: u64,
        /// What.
        data: Buf,
        /// Where to, as long as `data`; in place without one.
        into: Option<Buf>,
    },
    /// Do some more rounds of a key's making.
    Pbkdf2 {
        /// The part of the key.
        chain: Box<Pbkdf2Chain>,
        /// How many, at the most.
        rounds: u32,
    },
    /// Make a key with Argon2.
    Argon2 {
        /// Which function.
        kind: Argon2Kind,
        /// Of what.
        password: Secret,
        /// With what.
        salt: Vec<u8>,
        /// Passes over the memory.
        passes: u32,
        /// KiB of memory.
        memory_kib: u32,
        /// Lanes.
        lanes: u32,
        /// Bytes of the key.
        len: usize,
    },
}

/// What came of a [`Compute`]. Buffers that were given come back, whatever came of it.
#[derive(Debug)]
pub struct Computed {
    /// The bytes that were given.
    pub input: Buf,
    /// The bytes made; where there are none, what was there before, or nothing.
    pub output: Buf,
    /// What became of a key; apart, so that an outcome is no longer than what requests need.
    pub derived: Option<Box<Derived>>,
    /// Whether they were made.
    pub result: Result<(), ComputeError>,
}

impl Computed {
    fn new(input: Buf, output: Buf, result: Result<(), ComputeError>) -> Self {
        Self { input, output, derived: None, result }
    }

    fn of_key(key: DerivedKey) -> Self {
        let derived = Some(Box::new(Derived { key, took: Duration::ZERO }));
        Self { derived, ..Self::new(Buf::empty(), Buf::empty(), Ok(())) }
    }

    /// The same, with the time that a key took.
    #[must_use]
    pub fn within(mut self, took: Duration) -> Self {
        if let Some(derived) = &mut self.derived {
            derived.took = took;
        }
        self
    }
}

/// A key that is being made.
#[derive(Debug)]
pub struct Derived {
    /// As far as it is.
    pub key: DerivedKey,
    /// How long a processor worked on it. The executor says so; the work itself does not look at a clock.
    pub took: Duration,
}

/// What came of the making of a key.
#[derive(Debug)]
pub enum DerivedKey {
    /// A part of it, further than it was.
    Chain(Box<Pbkdf2Chain>),
    /// The key.
    Key(Zeroizing<Vec<u8>>),
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
    /// The function for keys has no such parameters.
    #[error("Argon2 does not take these parameters")]
    Argon2,
}

impl Compute {
    /// Does the work. Pure: the same input gives the same output, on any thread, in any workspace.
    pub fn run(self, workspace: &mut Workspace) -> Computed {
        match self {
            Self::Compress { codec, plain, limit } => {
                let mut output = Buf::zeroed(limit);
                let result = workspace.compress(codec, &plain, &mut output);
                drop(output.split_off(result.unwrap_or(0)));
                Computed::new(plain, output, result.map(drop))
            }
            Self::Decompress { codec, packed, plain: mut output } => {
                let result = workspace.decompress(codec, &packed, &mut output);
                Computed::new(packed, output, result)
            }
            Self::Unpack { form, packed, plain: mut output } => {
                let result = workspace.unpack(form, &packed, &mut output);
                Computed::new(packed, output, result)
            }
            Self::Cipher { cipher, direction, first, mut data, into: None } => {
                cipher.apply(direction, first, &mut data);
                Computed::new(Buf::empty(), data, Ok(()))
            }
            Self::Cipher { cipher, direction, first, data, into: Some(mut into) } => {
                cipher.apply_into(direction, first, &data, &mut into);
                Computed::new(data, into, Ok(()))
            }
            Self::Pbkdf2 { mut chain, rounds } => {
                chain.advance(rounds);
                Computed::of_key(DerivedKey::Chain(chain))
            }
            Self::Argon2 { kind, password, salt, passes, memory_kib, lanes, len } => {
                match argon2(kind, &password, &salt, (passes, memory_kib, lanes), len) {
                    Some(key) => Computed::of_key(DerivedKey::Key(key)),
                    None => Computed::new(Buf::empty(), Buf::empty(), Err(ComputeError::Argon2)),
                }
            }
        }
    }
}

/// log2 of the deflate window that QEMU writes and expects in qcow2.
const ZLIB_WINDOW_BITS: u8 = 12;

/// log2 of the window of a zlib stream.
const STREAM_WINDOW_BITS: u8 = 15;

/// The tables of the codecs, kept by a thread from one piece of work to the next: setting them up costs more than a small
/// cluster.
#[derive(Default)]
pub struct Workspace {
    deflate: Option<flate2::Compress>,
    inflate: Option<flate2::Decompress>,
    stream_deflate: Option<flate2::Compress>,
    stream_inflate: Option<flate2::Decompress>,
    lzfse: Option<Box<lzfse_rust::LzfseRingDecoder>>,
    zstd_compressor: Option<zstd::bulk::Compressor<'static>>,
    zstd_decompressor: Option<zstd::bulk::Decompressor<'static>>,
    zstd_decoder: Option<zstd::stream::raw::Decoder<'static>>,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").finish_non_exhaustive()
    }
}

impl Workspace {
    /// Returns how many bytes of `packed` were made: fewer than it has.
    fn compress(&mut self, codec: Codec, plain: &[u8], packed: &mut [u8]) -> Result<usize, ComputeError> {
        let len = match codec {
            Codec::Zlib => deflate(&mut self.deflate, false, plain, packed)?,
            Codec::ZlibStream => deflate(&mut self.stream_deflate, true, plain, packed)?,
            Codec::Zstd => self.zstd_compress(plain, packed)?,
        };
        if len < packed.len() { Ok(len) } else { Err(ComputeError::Incompressible) }
    }

    fn unpack(&mut self, form: Form, packed: &[u8], plain: &mut [u8]) -> Result<(), ComputeError> {
        let len = match form {
            Form::Zlib => inflate(&mut self.stream_inflate, true, packed, plain)?,
            Form::Bzip2 => unpack_bzip2(packed, plain)?,
            Form::Lzfse => {
                let mut reader = self.lzfse.get_or_insert_default().reader_bytes(packed);
                std::io::Read::read_exact(&mut reader, plain).map_err(|_| ComputeError::Damaged)?;
                plain.len()
            }
            Form::Xz => unpack_xz(packed, plain)?,
            Form::Adc => adc::unpack(packed, plain).ok_or(ComputeError::Damaged)?,
        };
        if len == plain.len() { Ok(()) } else { Err(ComputeError::Damaged) }
    }

    fn decompress(&mut self, codec: Codec, packed: &[u8], plain: &mut [u8]) -> Result<(), ComputeError> {
        let len = match codec {
            Codec::Zlib => inflate(&mut self.inflate, false, packed, plain)?,
            Codec::ZlibStream => inflate(&mut self.stream_inflate, true, packed, plain)?,
            Codec::Zstd => self.zstd_decompress(packed, plain)?,
        };
        if len == plain.len() { Ok(()) } else { Err(ComputeError::Damaged) }
    }

    fn zstd_compress(&mut self, plain: &[u8], packed: &mut [u8]) -> Result<usize, ComputeError> {
        if self.zstd_compressor.is_none() {
            let new = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL);
            self.zstd_compressor = Some(new.map_err(|_| ComputeError::Incompressible)?);
        }
        let compressor = self.zstd_compressor.as_mut().expect("made above");
        compressor.compress_to_buffer(plain, packed).map_err(|_| ComputeError::Incompressible)
    }

    /// Decodes frames until `plain` is full, which must be the end of a frame; a cluster's sectors may hold other bytes after
    /// the stream. A frame that goes on beyond the cluster is damaged, as for QEMU 10.0.2.
    ///
    /// One frame of the whole cluster, which is what everyone writes, goes straight into `plain`; a stream of several takes
    /// the way through the decoder's own window.
    fn zstd_decompress(&mut self, packed: &[u8], plain: &mut [u8]) -> Result<usize, ComputeError> {
        if let Ok(frame) = zstd::zstd_safe::find_frame_compressed_size(packed)
            && let Some(len) = self.zstd_decompress_frame(&packed[..frame], plain)
            && len == plain.len()
        {
            return Ok(len);
        }
        self.zstd_decompress_frames(packed, plain)
    }

    fn zstd_decompress_frame(&mut self, frame: &[u8], plain: &mut [u8]) -> Option<usize> {
        if self.zstd_decompressor.is_none() {
            self.zstd_decompressor = zstd::bulk::Decompressor::new().ok();
        }
        self.zstd_decompressor.as_mut()?.decompress_to_buffer(frame, plain).ok()
    }

    fn zstd_decompress_frames(&mut self, packed: &[u8], plain: &mut [u8]) -> Result<usize, ComputeError> {
        use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
        let damaged = |_| ComputeError::Damaged;
        match &mut self.zstd_decoder {
            Some(decoder) => decoder.reinit().map_err(damaged)?,
            none => *none = Some(Decoder::new().map_err(damaged)?),
        }
        let decoder = self.zstd_decoder.as_mut().expect("made above");
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(plain);
        let mut left = 0;
        while output.pos() < output.capacity() {
            let before = (input.pos(), output.pos());
            left = decoder.run(&mut input, &mut output).map_err(damaged)?;
            if before == (input.pos(), output.pos()) {
                break;
            }
        }
        if left == 0 { Ok(output.pos()) } else { Err(ComputeError::Damaged) }
    }
}

/// Returns how many bytes came out. A stream that goes on beyond them is left where it is.
fn unpack_bzip2(packed: &[u8], plain: &mut [u8]) -> Result<usize, ComputeError> {
    let mut stream = bzip2::Decompress::new(false);
    loop {
        let (read, made) = (stream.total_in(), stream.total_out());
        let rest = (&packed[read as usize..], &mut plain[made as usize..]);
        let status = stream.decompress(rest.0, rest.1).map_err(|_| ComputeError::Damaged)?;
        let after = (stream.total_in(), stream.total_out());
        if status == bzip2::Status::StreamEnd || after == (read, made) {
            return Ok(after.1 as usize);
        }
    }
}

/// KiB of memory that unpacking an xz stream takes at the most: a dictionary as long as the longest chunk, and what is beside it.
const XZ_MEMORY_KIB: u32 = (64 << 10) + 1024;

/// Returns how many bytes came out. A stream that goes on beyond them is left where it is.
fn unpack_xz(packed: &[u8], plain: &mut [u8]) -> Result<usize, ComputeError> {
    let mut stream = lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB);
    std::io::Read::read_exact(&mut stream, plain).map_err(|_| ComputeError::Damaged)?;
    Ok(plain.len())
}

/// Packs into a stream of deflate, with the header and checksum of a zlib stream where it `wraps`.
fn deflate(
    kept: &mut Option<flate2::Compress>,
    wraps: bool,
    plain: &[u8],
    packed: &mut [u8],
) -> Result<usize, ComputeError> {
    let level = flate2::Compression::default();
    let window_bits = if wraps { STREAM_WINDOW_BITS } else { ZLIB_WINDOW_BITS };
    let stream =
        kept.get_or_insert_with(|| flate2::Compress::new_with_window_bits(level, wraps, window_bits));
    stream.reset();
    match stream.compress(plain, packed, flate2::FlushCompress::Finish) {
        Ok(flate2::Status::StreamEnd) => {
            Ok(usize::try_from(stream.total_out()).expect("the stream fits in its buffer"))
        }
        _ => {
            // A stream that still holds output keeps its place in the buffer of that across a reset, and runs out of
            // room later. Observed with zlib-rs 0.6.8.
            *kept = None;
            Err(ComputeError::Incompressible)
        }
    }
}

fn inflate(
    kept: &mut Option<flate2::Decompress>,
    wraps: bool,
    packed: &[u8],
    plain: &mut [u8],
) -> Result<usize, ComputeError> {
    let stream = kept.get_or_insert_with(|| flate2::Decompress::new(wraps));
    stream.reset(wraps);
    stream.decompress(packed, plain, flate2::FlushDecompress::Finish).map_err(|_| ComputeError::Damaged)?;
    Ok(usize::try_from(stream.total_out()).expect("the stream fits in its buffer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(workspace: &mut Workspace, codec: Codec, plain: &[u8]) {
        let limit = plain.len();
        let done = Compute::Compress { codec, plain: Buf::from(plain), limit }.run(workspace);
        assert_eq!((done.result, &*done.input), (Ok(()), plain));
        let packed = done.output;
        assert!(packed.len() < limit);
        let mut with_tail = Buf::zeroed(packed.len() + 300);
        with_tail.fill(0xa5);
        with_tail[..packed.len()].copy_from_slice(&packed);
        for packed in [packed, with_tail] {
            let mut dirty = Buf::zeroed(limit);
            dirty.fill(0x5a);
            let done = Compute::Decompress { codec, packed, plain: dirty }.run(workspace);
            assert_eq!((done.result, &*done.output), (Ok(()), plain));
        }
    }

    #[test]
    fn all_codecs_round_trip_and_ignore_what_follows() {
        let plain: Vec<u8> = (0..65536u32).map(|i| (i / 37 % 251) as u8).collect();
        let workspace = &mut Workspace::default();
        for codec in
            [Codec::Zlib, Codec::Zstd, Codec::ZlibStream, Codec::Zlib, Codec::Zstd, Codec::ZlibStream]
        {
            round_trip(workspace, codec, &plain);
        }
    }

    /// Both as qemu-io 10.0.2 reads such clusters.
    #[test]
    fn a_zstd_stream_may_have_several_frames_but_ends_with_the_cluster() {
        let workspace = &mut Workspace::default();
        let mut plain = vec![1; 3000];
        plain.extend([2; 1096]);
        let pack = |plain: &[u8]| zstd::bulk::compress(plain, 3).expect("compresses");
        let two_frames = [pack(&plain[..3000]), pack(&plain[3000..])].concat();
        let too_long = pack(&[&plain[..], &[3; 5000]].concat());
        let too_short = pack(&plain[..4095]);
        for (packed, expected) in [
            (two_frames, Ok(())),
            (too_long, Err(ComputeError::Damaged)),
            (too_short, Err(ComputeError::Damaged)),
        ] {
            let (packed, room) = (Buf::from(packed), Buf::zeroed(plain.len()));
            let done = Compute::Decompress { codec: Codec::Zstd, packed, plain: room }.run(workspace);
            assert_eq!(done.result, expected);
            assert!(expected.is_err() || *done.output == plain);
        }
    }

    /// The 100,000 bytes below, by liblzma 5.4 at its level 6.
    const XZ: &str = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4YafAXpdAABuIklMCc580MglCCAoQnAEsPS2cyUNx7QbgURFi9h4mvrUdxz97KhlebvY\
         8IJg6X72WuWuxX6OVaN9jkZUhrf83eZd0kFQtYi56XdOZApHRUm2EdzZXRaF9Och1tcCkS6w41RaguBk2ad7NcalXpyLRopXYFzd\
         LxX3NiY3w41DHyEVul5zd/Qo8vUSGXluxFuJ+va1BpFFMfXAUaXP+rt6f3EcwnLCUxprs14gX5boqZCSOsWeJWQXViQYhOhZWfAd\
         gNiUGVbSvxjbWD4tuwqyeIbACWqiw0wvRSz2jaKCCltucBZGFMkAjbBG6j6+pgX4/0D2qVKhZECdoAcnEqa/Cbpt02QPKEX18uu5\
         2NrYkzVkbQhrEfw3bxTF2nsmuqHVnL26w/7Tzm65rxNlYZ5cU7fhzMTXHaukZvCw6Y/Xnv0xDoFADpwlUKxs8w8U23nGi+m9kVjh\
         jE7TBf8VJEnIngyMpZ1qrcf2Nyt+5MJqkJHSRP4CYcwAAAAAADMoQyjqFpk3AAGWA6CNBgADbRa9scRn+wIAAAAABFla";

    #[test]
    fn chunks_of_each_form_unpack_or_are_damaged() {
        use std::io::Write;
        let plain: Vec<u8> = (0..100_000u32).map(|i| (i / 37 % 251) as u8).collect();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&plain).expect("memory takes all");
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&plain).expect("memory takes all");
        let mut lzfse = Vec::new();
        lzfse_rust::encode_bytes(&plain, &mut lzfse).expect("memory takes all");
        let packed = [
            (Form::Zlib, zlib.finish().expect("memory takes all")),
            (Form::Bzip2, bzip2.finish().expect("memory takes all")),
            (Form::Lzfse, lzfse),
            (Form::Xz, base64::Engine::decode(&base64::prelude::BASE64_STANDARD, XZ).expect("base64")),
            (Form::Adc, plain.chunks(100).flat_map(|run| [&[0x80 | 99], run].concat()).collect()),
        ];
        let workspace = &mut Workspace::default();
        let mut unpack = |form, packed: &[u8], len| {
            Compute::Unpack { form, packed: Buf::from(packed), plain: Buf::zeroed(len) }.run(workspace)
        };
        for (form, packed) in packed {
            for _ in 0..2 {
                let done = unpack(form, &packed, plain.len());
                assert_eq!((done.result, &*done.output), (Ok(()), &plain[..]), "{form:?}");
                assert_eq!(unpack(form, &packed, plain.len() + 1).result, Err(ComputeError::Damaged));
                let half = &packed[..packed.len() / 2];
                assert_eq!(unpack(form, half, plain.len()).result, Err(ComputeError::Damaged), "{form:?}");
                assert_eq!(unpack(form, &[7; 100], 512).result, Err(ComputeError::Damaged), "{form:?}");
            }
        }
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    /// Streams of zlib-rs 0.6.8 that were left before their end broke after some hundred resets.
    #[test]
    fn incompressible_clusters_leave_nothing_behind() {
        let noise = noise(512 * 1024);
        let workspace = &mut Workspace::default();
        for cluster in noise.chunks(512).chain(noise.chunks(65536)) {
            for codec in [Codec::Zlib, Codec::ZlibStream, Codec::Zstd] {
                let work = Compute::Compress { codec, plain: Buf::from(cluster), limit: cluster.len() - 1 };
                assert_eq!(work.run(workspace).result, Err(ComputeError::Incompressible));
            }
        }
        round_trip(workspace, Codec::Zlib, &[7; 512]);
    }

    #[test]
    fn noise_is_incompressible_and_garbage_is_damaged() {
        let noise = noise(4096);
        let workspace = &mut Workspace::default();
        for codec in [Codec::Zlib, Codec::ZlibStream, Codec::Zstd] {
            let work = Compute::Compress { codec, plain: Buf::from(&noise[..]), limit: noise.len() };
            assert_eq!(work.run(workspace).result, Err(ComputeError::Incompressible));
            for packed in [Buf::from(&noise[..]), Buf::empty()] {
                let done = Compute::Decompress { codec, packed, plain: Buf::zeroed(4096) }.run(workspace);
                assert_eq!((done.result, done.output.len()), (Err(ComputeError::Damaged), 4096));
            }
        }
    }
}
