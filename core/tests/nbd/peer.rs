//! A server of one disk in memory, and both ends of a stream.

use std::rc::Rc;

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::Errno;
use drystone_core::protocol::nbd::client::{self, Encryption, Negotiated, Purpose, Wishes};
use drystone_core::protocol::nbd::layout::{BlockSizes, Extent};
use drystone_core::protocol::nbd::server::{
    self, Answer, Command, Context, Export, Negotiation, Order, Security, Transmission,
};
use drystone_core::protocol::nbd::{Elsewhere, Mode, NbdError, Outgoing};

pub const LEN: usize = 4096;

pub fn export() -> Export {
    Export {
        name: "disk".into(),
        description: "stones".into(),
        len: LEN as u64,
        read_only: false,
        shared: true,
        sizes: BlockSizes { min: 1, preferred: 4096, max: 32 << 20 },
        contexts: vec![Context::Allocation, Context::Depth, Context::Bitmap("b0".into())],
    }
}

pub fn wishes(mode: Mode) -> Wishes {
    Wishes {
        export: "disk".into(),
        purpose: Purpose::Use,
        encryption: Encryption::Off,
        mode,
        context: Some("base:allocation".into()),
    }
}

/// A server, up to the client that it serves.
pub struct Server {
    exports: Rc<[Export]>,
    pub phase: Phase,
    pub disk: Vec<u8>,
    /// Orders that are not answered yet.
    waiting: Vec<Order>,
    unread: Vec<u8>,
    /// What answers have elsewhere, by their keys.
    elsewhere: Vec<Vec<u8>>,
}

pub enum Phase {
    Negotiating(Negotiation),
    Serving(Transmission),
}

impl Server {
    pub fn new(export: Export) -> Self {
        let disk = (0..export.len).map(|at| if at % 1024 < 512 { at as u8 | 1 } else { 0 }).collect();
        let exports: Rc<[Export]> = [export].into();
        let phase = Phase::Negotiating(Negotiation::new(Rc::clone(&exports), Security::Plain));
        Self { exports, phase, disk, waiting: Vec::new(), unread: Vec::new(), elsewhere: Vec::new() }
    }

    /// Begins anew with another client; the disk stays.
    pub fn accept(&mut self) {
        // What was taken is done, though nobody hears of it.
        for order in std::mem::take(&mut self.waiting) {
            self.carry_out(&order);
        }
        self.unread.clear();
        self.phase = Phase::Negotiating(Negotiation::new(Rc::clone(&self.exports), Security::Plain));
    }

    /// Takes bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        let mut all = std::mem::take(&mut self.unread);
        all.extend_from_slice(bytes);
        let mut input = &all[..];
        loop {
            match &mut self.phase {
                Phase::Negotiating(negotiation) => match negotiation.feed(&mut input)? {
                    None => return Ok(()),
                    Some(server::Step::Chosen(chosen)) => {
                        let out = std::mem::take(negotiation.out());
                        let next = Transmission::new(&self.exports[chosen.export], chosen, out);
                        self.phase = Phase::Serving(next);
                    }
                    Some(other) => panic!("nobody asked for {other:?}"),
                },
                Phase::Serving(transmission) => {
                    match transmission.feed(&mut input, |len| Buf::zeroed(len).into())? {
                        Some(order) => self.waiting.push(order),
                        None => {
                            self.unread = input.to_vec();
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Answers one order that waits; which one `choice` says. Tells whether there was one.
    pub fn answer(&mut self, choice: usize) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let order = self.waiting.swap_remove(choice % self.waiting.len());
        let answer = self.carry_out(&order);
        if let Phase::Serving(transmission) = &mut self.phase {
            transmission.answer(order.id, answer);
        }
        true
    }

    fn carry_out(&mut self, order: &Order) -> Answer {
        let range = order.offset as usize..(order.offset + order.len) as usize;
        match &order.command {
            Command::Read if order.offset == 13 => Answer::Failed(Errno::EIO, "bad sector".into()),
            // The odd ones lie in memory, the even ones elsewhere.
            Command::Read if order.offset.is_multiple_of(2) && order.len > 0 => {
                self.elsewhere.push(self.disk[range].to_vec());
                Answer::Elsewhere(self.elsewhere.len() as u64 - 1)
            }
            Command::Read => Answer::Data(Buf::from(&self.disk[range]).into()),
            Command::Write(_) => {
                order.data.copy_out(0, &mut self.disk[range]);
                Answer::Done
            }
            Command::WriteZeroes(..) | Command::Trim(_) => {
                self.disk[range].fill(0);
                Answer::Done
            }
            Command::Flush | Command::Cache => Answer::Done,
            Command::Status { contexts, .. } => {
                let zero = self.disk[order.offset as usize] == 0;
                let same = |byte: &&u8| (**byte == 0) == zero;
                let len = self.disk[range].iter().take_while(same).count() as u64;
                let extent = Extent { len, flags: if zero { 3 } else { 0 } };
                Answer::Status(contexts.iter().map(|id| (*id, vec![extent])).collect())
            }
        }
    }

    /// Takes up to `most` bytes that are to be sent.
    pub fn send(&mut self, most: usize) -> Vec<u8> {
        match &mut self.phase {
            Phase::Negotiating(negotiation) => take(negotiation.out(), most),
            Phase::Serving(transmission) => {
                let bytes: Vec<u8> = match transmission.out().elsewhere() {
                    Some(Elsewhere { key, sent, left }) => {
                        self.elsewhere[key as usize][sent..][..left.min(most)].to_vec()
                    }
                    None => transmission.out().slices().flatten().copied().take(most).collect(),
                };
                transmission.sent(bytes.len(), drop);
                bytes
            }
        }
    }
}

/// Takes up to `most` bytes off a queue.
pub fn take(out: &mut Outgoing, most: usize) -> Vec<u8> {
    let bytes: Vec<u8> = out.slices().flatten().copied().take(most).collect();
    out.advance(bytes.len(), |_, _| {});
    bytes
}

/// Negotiates with a server, `step` bytes at a time.
pub fn connect(server: &mut Server, wishes: Wishes, step: usize) -> Result<Negotiated, NbdError> {
    let mut client = client::Negotiation::new(wishes);
    loop {
        server.feed(&take(client.out(), step))?;
        let bytes = server.send(step);
        assert!(!bytes.is_empty() || !client.out().is_empty(), "both wait for each other");
        let mut input = &bytes[..];
        if let Some(step) = client.feed(&mut input)? {
            let client::Step::Use(negotiated) = step else { panic!("{step:?}") };
            assert!(input.is_empty(), "nothing follows before something is asked for");
            return Ok(negotiated);
        }
    }
}

pub fn filled(len: usize, byte: u8) -> BufList {
    Buf::from(vec![byte; len]).into()
}
