//! A client of a server that says what it is told to, whether that makes sense or not.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use drystone_core::protocol::nbd::Mode;
use drystone_core::protocol::nbd::layout::{
    CommandCode, CommandFlags, InfoRequest, OptionCode, OptionHeader, Request,
};

/// How long a server may take to say something.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a reply without data.
const REPLY: [usize; 3] = [16, 16, 32];

/// A connection.
pub struct Peer {
    pub stream: UnixStream,
    mode: Mode,
}

impl Peer {
    /// Connects, and reads the greeting.
    pub fn connect(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket can be");
        stream.read_exact(&mut [0; 18]).expect("it greets");
        Self { stream, mode: Mode::Simple }
    }

    /// Connects, and begins transmission with the default export.
    pub fn serving(socket: &Path, mode: Mode) -> Self {
        let mut peer = Self { mode, ..Self::connect(socket) };
        peer.say(&3u32.to_be_bytes());
        match mode {
            Mode::Simple => {}
            Mode::Structured => drop(peer.option(OptionCode::STRUCTURED_REPLY, &[])),
            Mode::Extended => drop(peer.option(OptionCode::EXTENDED_HEADERS, &[])),
        }
        peer.say(&option(OptionCode::GO, &InfoRequest::encode("", &[])));
        while peer.reply() != 1 {}
        peer
    }

    /// Says that it knows the protocol, and asks an option without data; returns the type of the first reply.
    pub fn option_after_flags(&mut self, code: OptionCode) -> u32 {
        self.say(&3u32.to_be_bytes());
        self.option(code, &[])
    }

    /// Asks an option; returns the type of the reply.
    pub fn option(&mut self, code: OptionCode, data: &[u8]) -> u32 {
        self.say(&option(code, data));
        self.reply()
    }

    /// Reads a reply to an option; returns its type.
    fn reply(&mut self) -> u32 {
        let head = self.hear(20);
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four"));
        self.hear(number(16) as usize);
        number(12)
    }

    /// Asks for something `count` times.
    pub fn ask(&mut self, count: usize, command: CommandCode, offset: u64, len: u64) {
        let flags = CommandFlags::NONE;
        let (bytes, used) = Request { flags, command, cookie: 7, offset, len }.encode(self.mode);
        self.say(&bytes[..used].repeat(count));
    }

    /// Reads in simple mode; returns what was read.
    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.ask(1, CommandCode::READ, offset, len as u64);
        assert_eq!(self.hear(16)[4..8], [0; 4], "the read works");
        self.hear(len)
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it listens");
    }

    pub fn hear(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("it answers in time");
        bytes
    }

    /// Replies without data that have come by now.
    pub fn replies_by_now(&mut self) -> usize {
        self.stream.set_nonblocking(true).expect("a socket can be");
        let mut bytes = Vec::new();
        let ended = self.stream.read_to_end(&mut bytes).expect_err("it has not let go");
        assert_eq!(ended.kind(), ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).expect("a socket can be");
        bytes.len() / REPLY[self.mode as usize]
    }
}

/// An option as it is sent.
pub fn option(option: OptionCode, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { option, len: data.len() as u32 }.encode()[..], data].concat()
}
