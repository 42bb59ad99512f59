//! The codecs alone, with the settings of qcow2: what compression costs with no image around it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::CLUSTER;

/// log2 of the window of qcow2's deflate streams.
const WINDOW_BITS: u8 = 12;

/// Packs each cluster of `from` into `to`: its length as four bytes, then its bytes; one that does not shrink as it is.
///
/// # Errors
/// The kernel's.
pub fn pack(zstd: bool, from: &str, to: &str) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, BufWriter::with_capacity(1 << 20, File::create(to)?));
    let (mut plain, mut packed) = (vec![0; CLUSTER], vec![0; CLUSTER]);
    let new = || Compress::new_with_window_bits(Compression::default(), false, WINDOW_BITS);
    let mut deflate = new();
    let mut compressor = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
    while from.read_exact(&mut plain).is_ok() {
        let len = if zstd {
            compressor.compress_to_buffer(&plain, &mut packed[..]).unwrap_or(CLUSTER)
        } else {
            deflate.reset();
            match deflate.compress(&plain, &mut packed, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => deflate.total_out() as usize,
                _ => {
                    // A stream that was left before its end cannot be reset (zlib-rs 0.6.8).
                    deflate = new();
                    CLUSTER
                }
            }
        };
        to.write_all(&(len as u32).to_le_bytes())?;
        to.write_all(if len < CLUSTER { &packed[..len] } else { &plain })?;
    }
    to.flush()
}

/// The inverse of [`pack`].
///
/// # Errors
/// The kernel's, or a codec's.
pub fn unpack(zstd: bool, from: &str, to: &str) -> io::Result<()> {
    let mut from = BufReader::with_capacity(1 << 20, File::open(from)?);
    let mut to = File::create(to)?;
    let (mut plain, mut len) = (vec![0; CLUSTER], [0; 4]);
    let mut inflate = Decompress::new(false);
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    while from.read_exact(&mut len).is_ok() {
        let mut packed = vec![0; u32::from_le_bytes(len) as usize];
        from.read_exact(&mut packed)?;
        if packed.len() == CLUSTER {
            plain.copy_from_slice(&packed);
        } else if zstd {
            decompressor.decompress_to_buffer(&packed, &mut plain[..])?;
        } else {
            inflate.reset(false);
            inflate.decompress(&packed, &mut plain, FlushDecompress::Finish).map_err(io::Error::other)?;
        }
        to.write_all(&plain)?;
    }
    Ok(())
}
