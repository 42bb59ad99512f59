//! What is to be sent: headers, and between them buffers of requests, which are sent from where they are, and bytes that
//! whoever sends has elsewhere.

use std::collections::VecDeque;

use crate::buf::BufList;

/// Bytes of headers kept for reuse once everything is sent.
const KEPT: usize = 16 << 10;

/// A queue of bytes with the buffers of requests in it.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// The headers of all pieces, one after the other; those before `taken` are sent.
    headers: Vec<u8>,
    taken: usize,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    len: usize,
}

#[derive(Debug)]
enum Piece {
    Headers(usize),
    Data { key: u64, data: BufList, len: usize },
    Elsewhere { key: u64, len: usize },
}

/// Bytes that whoever sends has elsewhere, and that come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// What they were announced by.
    pub key: u64,
    /// How many are sent.
    pub sent: usize,
    /// How many are not.
    pub left: usize,
}

impl Outgoing {
    /// Returns an empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.taken >= KEPT {
            self.headers.drain(..self.taken);
            self.taken = 0;
        }
        self.headers.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.pieces.back_mut() {
            Some(Piece::Headers(count)) => *count += bytes.len(),
            _ => self.pieces.push_back(Piece::Headers(bytes.len())),
        }
    }

    /// Appends the buffers of a request, which come back once they are sent.
    pub fn push_data(&mut self, key: u64, data: BufList) {
        let len = data.len_bytes();
        self.len += len;
        self.pieces.push_back(Piece::Data { key, data, len });
    }

    /// Appends bytes that whoever sends has, under a key of its own.
    pub fn push_elsewhere(&mut self, key: u64, len: usize) {
        self.len += len;
        self.pieces.push_back(Piece::Elsewhere { key, len });
    }

    /// The bytes that come next, where those are elsewhere; [`slices`](Self::slices) gives nothing then.
    pub fn elsewhere(&self) -> Option<Elsewhere> {
        match self.pieces.front() {
            Some(&Piece::Elsewhere { key, len }) => {
                Some(Elsewhere { key, sent: self.sent, left: len - self.sent })
            }
            _ => None,
        }
    }

    /// The bytes that wait, in their order, up to those that are elsewhere.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut header = self.taken;
        let mut skip = self.sent;
        let here = self.pieces.iter().take_while(|piece| !matches!(piece, Piece::Elsewhere { .. }));
        here.flat_map(move |piece| {
            let skipped = std::mem::take(&mut skip);
            let (headers, data) = match piece {
                Piece::Headers(count) => {
                    let start = header;
                    header += count - skipped;
                    (Some(&self.headers[start..header]), None)
                }
                Piece::Data { data, .. } => (None, Some(cut_front(data, skipped))),
                Piece::Elsewhere { .. } => unreachable!("left out above"),
            };
            headers.into_iter().chain(data.into_iter().flatten())
        })
    }

    /// Forgets the first `count` bytes, which are sent; hands back the buffers that are sent whole.
    ///
    /// # Panics
    /// When fewer bytes wait.
    pub fn advance(&mut self, count: usize, mut done: impl FnMut(u64, BufList)) {
        assert!(count <= self.len, "no more is sent than there was");
        self.len -= count;
        let mut left = count;
        loop {
            let (len, headers) = match self.pieces.front() {
                None => break,
                Some(Piece::Headers(count)) => (*count, true),
                Some(Piece::Data { len, .. } | Piece::Elsewhere { len, .. }) => (*len, false),
            };
            let rest = len - self.sent;
            let step = rest.min(left);
            self.taken += if headers { step } else { 0 };
            left -= step;
            if step < rest {
                self.sent += step;
                break;
            }
            self.sent = 0;
            if let Some(Piece::Data { key, data, .. }) = self.pieces.pop_front() {
                done(key, data);
            }
        }
        if self.pieces.is_empty() {
            self.headers.clear();
            self.headers.shrink_to(KEPT);
            self.taken = 0;
        }
    }

    /// Gives up everything that waits; hands back the buffers.
    pub fn clear(&mut self, mut done: impl FnMut(u64, BufList)) {
        let pieces = std::mem::take(self).pieces;
        for piece in pieces {
            if let Piece::Data { key, data, .. } = piece {
                done(key, data);
            }
        }
    }
}

fn cut_front(data: &BufList, skip: usize) -> impl Iterator<Item = &[u8]> {
    let mut skip = skip;
    data.windows().iter().filter_map(move |window| {
        let skipped = skip.min(window.len());
        skip -= skipped;
        (skipped < window.len()).then(|| &window[skipped..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;

    #[test]
    fn whatever_is_sent_at_once_the_bytes_are_the_same() {
        for step in 1..12 {
            let mut out = Outgoing::new();
            out.push(b"ab");
            out.push(b"cd");
            out.push_data(7, [b"efg", b"hij"].into_iter().map(|bytes| Buf::from(&bytes[..])).collect());
            out.push_data(8, BufList::new());
            out.push(b"kl");
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            while !out.is_empty() {
                let front: Vec<u8> = out.slices().flatten().copied().take(step).collect();
                out.advance(front.len(), |key, data| back.push((key, data.len_bytes())));
                bytes.extend(front);
            }
            assert_eq!(bytes, b"abcdefghijkl", "{step}");
            assert_eq!(back, [(7, 6), (8, 0)], "{step}");
        }
    }

    #[test]
    fn what_is_elsewhere_comes_between_what_is_here() {
        for step in 1..12 {
            let mut out = Outgoing::new();
            out.push(b"ab");
            out.push_elsewhere(5, 6);
            out.push(b"c");
            out.push_data(7, Buf::from(&b"de"[..]).into());
            out.push_elsewhere(6, 1);
            let mut bytes = Vec::new();
            while !out.is_empty() {
                let front: Vec<u8> = match out.elsewhere() {
                    Some(Elsewhere { key, sent, left }) => {
                        assert_eq!(out.slices().count(), 0, "they come first");
                        let there = if key == 5 { &b"uvwxyz"[..] } else { b"!" };
                        assert_eq!(sent + left, there.len());
                        there[sent..].iter().copied().take(step).collect()
                    }
                    None => out.slices().flatten().copied().take(step).collect(),
                };
                out.advance(front.len(), |_, _| {});
                bytes.extend(front);
            }
            assert_eq!(bytes, b"abuvwxyzcde!", "{step}");
        }
    }

    #[test]
    fn giving_up_gives_every_buffer_back() {
        let mut out = Outgoing::new();
        out.push(b"head");
        out.push_data(1, Buf::zeroed(9).into());
        out.advance(6, |_, _| panic!("it is not sent whole"));
        let mut back = Vec::new();
        out.clear(|key, data| back.push((key, data.len_bytes())));
        assert_eq!(back, [(1, 9)]);
        assert!(out.is_empty());
    }
}
