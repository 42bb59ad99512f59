//! Until transmission: flags, options, and the choice of an export.
//!
//! ```text
//!   Greeting ─▶ OldGreeting ─▶ done            (an old server)
//!      │
//!      ▼ flags
//!    Flags ─▶ StartTls ─▶ Encrypting ─▶ ExtendedHeaders ─▶ StructuredReply ─▶ SetContext ─▶ Go ─▶ done
//!                                             │                                 │           │ not known
//!                                             ▼ to list                         ▼ old       ▼
//!                                            List ─▶ Info ─▶ Contexts ─▶ …      ExportName ─▶ done
//! ```
//!
//! Each state waits for one message, or for the replies to one option. Refusals lead to the next best state; of
//! encryption that was asked for there is no next best.

use std::collections::VecDeque;

use super::Listing;
use crate::protocol::nbd::layout::{
    BlockSizes, ClientFlags, EXPORT_NAME_PADDING, GREETING_LEN, HandshakeFlags, InfoReply, InfoRequest,
    MetaQuery, OLD_GREETING_LEN, OPTION_REPLY_LEN, OldGreeting, OptionCode, OptionHeader, OptionReply,
    ReplyCode, TransmissionFlags, parse_export_answer, parse_greeting, parse_meta_context, parse_server,
    text,
};
use crate::protocol::nbd::limits::{
    CONTEXTS_MAX, EXPORTS_MAX, HANDSHAKE_BYTES_MAX, OPTION_LEN_MAX, PAYLOAD_MAX, STRING_MAX,
};
use crate::protocol::nbd::{Mode, NbdError, Outgoing};

/// What a client wants of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// The export, by its name; of a server that has but one, the empty name is that.
    pub export: String,
    /// To use it, or to be told.
    pub purpose: Purpose,
    /// Whether the connection is to be encrypted.
    pub encryption: Encryption,
    /// The best that is asked for.
    pub mode: Mode,
    /// The meta context whose block status is wanted.
    pub context: Option<String>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reading and writing.
    Use,
    /// Being told of all exports.
    List,
}

/// Whether a connection is encrypted. There is no way in between: who could remove the offer could read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Plain.
    Off,
    /// Encrypted, or not at all.
    Required,
}

/// What came of a negotiation that leads to transmission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Bytes.
    pub len: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// Sizes of requests.
    pub sizes: BlockSizes,
    /// How replies look.
    pub mode: Mode,
    /// The number of the meta context that was asked for, if the server has it.
    pub context: Option<u32>,
}

/// What a negotiation has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Once everything is sent, encryption is to begin; then [`Negotiation::encrypted`] goes on.
    StartTls,
    /// Transmission begins with the next byte.
    Use(Negotiated),
    /// All exports; the connection is of no further use once everything is sent.
    Listed(Vec<Listing>),
}

/// A negotiation.
#[derive(Debug)]
pub struct Negotiation {
    wishes: Wishes,
    state: State,
    /// The front of a message that has not come whole.
    partial: Vec<u8>,
    /// Bytes so far.
    received: u64,
    agreed: Agreed,
    listing: Lists,
    out: Outgoing,
}

/// What both sides agreed on; forgotten when encryption begins.
#[derive(Debug, Default)]
struct Agreed {
    no_padding: bool,
    mode: Mode,
    context: Option<u32>,
    about: Option<(u64, TransmissionFlags)>,
    sizes: Option<BlockSizes>,
}

#[derive(Debug, Default)]
struct Lists {
    waiting: VecDeque<Listing>,
    done: Vec<Listing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    OldGreeting,
    Flags,
    StartTls,
    Encrypting,
    ExtendedHeaders,
    StructuredReply,
    SetContext,
    Go,
    ExportName,
    List,
    /// About the first export that waits.
    Info,
    /// Of the first export that waits.
    Contexts,
    Ended,
}

impl Negotiation {
    /// Begins; the server speaks first.
    pub fn new(wishes: Wishes) -> Self {
        Self {
            wishes,
            state: State::Greeting,
            partial: Vec::new(),
            received: 0,
            agreed: Agreed::default(),
            listing: Lists::default(),
            out: Outgoing::new(),
        }
    }

    /// What is to be sent.
    pub fn out(&mut self) -> &mut Outgoing {
        &mut self.out
    }

    /// What is going on, for who tells why it did not come to an end.
    pub fn during(&self) -> &'static str {
        match self.state {
            State::Greeting | State::OldGreeting | State::Flags => "the greeting",
            State::StartTls | State::Encrypting => "the beginning of encryption",
            _ => "the negotiation of options",
        }
    }

    /// Takes bytes from the front of `input`, up to the next step; with none, `input` is used up.
    ///
    /// # Errors
    /// What the server did wrong, or refuses; the connection is of no further use then.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Step>, NbdError> {
        loop {
            if matches!(self.state, State::Encrypting | State::Ended) {
                return Ok(None);
            }
            let needed = self.needed()?;
            let count = input.len().min(needed - self.partial.len());
            let (front, rest) = input.split_at(count);
            self.partial.extend_from_slice(front);
            *input = rest;
            self.received += count as u64;
            if self.received > HANDSHAKE_BYTES_MAX {
                let (found, max) = (self.received, HANDSHAKE_BYTES_MAX);
                return Err(NbdError::TooMuch { what: "bytes before transmission", found, max });
            }
            if self.partial.len() < needed {
                return Ok(None);
            }
            // The header of a reply says how much there is of it.
            if self.needed()? > needed {
                continue;
            }
            let message = std::mem::take(&mut self.partial);
            if let Some(step) = self.message(&message)? {
                return Ok(Some(step));
            }
        }
    }

    /// Goes on, once the connection is encrypted. What was agreed on before is forgotten: it came from anyone.
    ///
    /// # Panics
    /// When encryption was not to begin.
    pub fn encrypted(&mut self) {
        assert_eq!(self.state, State::Encrypting, "encryption begins when the server has agreed");
        self.agreed = Agreed { no_padding: self.agreed.no_padding, ..Agreed::default() };
        self.partial.clear();
        self.ask_for_mode();
    }

    /// Bytes of the message that the state waits for, as far as is known.
    fn needed(&self) -> Result<usize, NbdError> {
        Ok(match self.state {
            State::Greeting => 16,
            State::OldGreeting => OLD_GREETING_LEN - 16,
            State::Flags => GREETING_LEN - 16,
            State::ExportName if self.agreed.no_padding => 10,
            State::ExportName => 10 + EXPORT_NAME_PADDING,
            _ => match self.partial.get(..OPTION_REPLY_LEN) {
                None => OPTION_REPLY_LEN,
                Some(header) => {
                    let len = OptionReply::parse(header)?.len;
                    if len as usize > OPTION_LEN_MAX {
                        let (found, max) = (len.into(), OPTION_LEN_MAX as u64);
                        return Err(NbdError::TooMuch { what: "bytes of a reply to an option", found, max });
                    }
                    OPTION_REPLY_LEN + len as usize
                }
            },
        })
    }

    fn message(&mut self, message: &[u8]) -> Result<Option<Step>, NbdError> {
        match self.state {
            State::Greeting => {
                self.state = if parse_greeting(message)? { State::Flags } else { State::OldGreeting };
                if self.state == State::OldGreeting {
                    self.check_old()?;
                }
                Ok(None)
            }
            State::OldGreeting => {
                let OldGreeting { len, flags } = OldGreeting::parse(message)?;
                Ok(Some(self.chosen(len, flags)))
            }
            State::Flags => self.flags(message).map(|()| None),
            State::ExportName => {
                let (len, flags) = parse_export_answer(message)?;
                Ok(Some(self.chosen(len, flags)))
            }
            _ => {
                let (header, data) = message.split_at(OPTION_REPLY_LEN);
                let reply = OptionReply::parse(header)?;
                let asked = self.asked();
                if reply.option != asked {
                    let found = reply.option.0.into();
                    return Err(NbdError::Value {
                        what: "option of a reply",
                        found,
                        expected: "the one asked for",
                    });
                }
                self.reply(reply.code, data)
            }
        }
    }

    /// The option whose replies the state waits for.
    fn asked(&self) -> OptionCode {
        match self.state {
            State::StartTls => OptionCode::STARTTLS,
            State::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            State::StructuredReply => OptionCode::STRUCTURED_REPLY,
            State::SetContext => OptionCode::SET_META_CONTEXT,
            State::Go => OptionCode::GO,
            State::List => OptionCode::LIST,
            State::Info => OptionCode::INFO,
            State::Contexts => OptionCode::LIST_META_CONTEXT,
            State::Greeting
            | State::OldGreeting
            | State::Flags
            | State::Encrypting
            | State::ExportName
            | State::Ended => unreachable!("this state waits for no reply to an option"),
        }
    }

    /// An old server has one export without a name, and nothing else.
    fn check_old(&self) -> Result<(), NbdError> {
        if self.wishes.encryption == Encryption::Required {
            return Err(NbdError::Unsupported("Server does not support STARTTLS"));
        }
        if self.wishes.purpose == Purpose::List {
            return Err(NbdError::Unsupported("Server does not support export lists"));
        }
        if !self.wishes.export.is_empty() {
            return Err(NbdError::Unsupported("Server does not support non-empty export names"));
        }
        Ok(())
    }

    fn flags(&mut self, message: &[u8]) -> Result<(), NbdError> {
        let flags =
            HandshakeFlags(u16::from_be_bytes(message.try_into().expect("two bytes were waited for")));
        let fixed = flags.has(HandshakeFlags::FIXED_NEWSTYLE);
        let no_zeroes = flags.has(HandshakeFlags::NO_ZEROES);
        let answer = ClientFlags::NONE
            .with_if(fixed, ClientFlags::FIXED_NEWSTYLE)
            .with_if(no_zeroes, ClientFlags::NO_ZEROES);
        self.out.push(&answer.0.to_be_bytes());
        self.agreed.no_padding = no_zeroes;
        if self.wishes.export.len() > STRING_MAX {
            let (found, max) = (self.wishes.export.len() as u64, STRING_MAX as u64);
            return Err(NbdError::TooMuch { what: "name of the export", found, max });
        }
        match (fixed, self.wishes.encryption) {
            (true, Encryption::Required) => self.ask(State::StartTls, &[]),
            (true, Encryption::Off) => self.ask_for_mode(),
            (false, Encryption::Required) => {
                return Err(NbdError::Unsupported("Server does not support STARTTLS"));
            }
            (false, Encryption::Off) if self.wishes.purpose == Purpose::List => {
                return Err(NbdError::Unsupported("Server does not support export lists"));
            }
            // Whatever such a server does not know makes it leave.
            (false, Encryption::Off) => self.ask_by_name(),
        }
        Ok(())
    }

    fn ask(&mut self, state: State, data: &[u8]) {
        self.state = state;
        let header = OptionHeader { option: self.asked(), len: data.len() as u32 };
        self.out.push(&header.encode());
        self.out.push(data);
    }

    fn ask_for_mode(&mut self) {
        match self.wishes.mode {
            Mode::Extended => self.ask(State::ExtendedHeaders, &[]),
            Mode::Structured => self.ask(State::StructuredReply, &[]),
            Mode::Simple => self.ask_for_purpose(),
        }
    }

    fn ask_for_purpose(&mut self) {
        match (self.wishes.purpose, &self.wishes.context) {
            (Purpose::List, _) => self.ask(State::List, &[]),
            (Purpose::Use, Some(context)) if self.agreed.mode != Mode::Simple => {
                let query = MetaQuery { export: self.wishes.export.clone(), queries: vec![context.clone()] };
                self.ask(State::SetContext, &query.encode());
            }
            (Purpose::Use, _) => self.ask_to_go(),
        }
    }

    fn ask_to_go(&mut self) {
        let data = InfoRequest::encode(&self.wishes.export, &[InfoRequest::BLOCK_SIZE]);
        self.ask(State::Go, &data);
    }

    fn ask_by_name(&mut self) {
        self.state = State::ExportName;
        let name = self.wishes.export.as_bytes();
        let header = OptionHeader { option: OptionCode::EXPORT_NAME, len: name.len() as u32 };
        self.out.push(&header.encode());
        self.out.push(name);
    }

    fn chosen(&mut self, len: u64, flags: TransmissionFlags) -> Step {
        self.state = State::Ended;
        let mut sizes = self.agreed.sizes.unwrap_or(BlockSizes::UNSAID);
        sizes.max = sizes.max.min(PAYLOAD_MAX.max(sizes.min));
        // Whole blocks: what is left over could not be reached.
        let len = len - len % u64::from(sizes.min);
        Step::Use(Negotiated { len, flags, sizes, mode: self.agreed.mode, context: self.agreed.context })
    }

    fn reply(&mut self, code: ReplyCode, data: &[u8]) -> Result<Option<Step>, NbdError> {
        if code.is_error() {
            return self.refused(code, data);
        }
        match (self.state, code) {
            (State::StartTls, ReplyCode::ACK) => {
                self.state = State::Encrypting;
                return Ok(Some(Step::StartTls));
            }
            (State::ExtendedHeaders, ReplyCode::ACK) => {
                self.agreed.mode = Mode::Extended;
                self.ask_for_purpose();
            }
            (State::StructuredReply, ReplyCode::ACK) => {
                self.agreed.mode = Mode::Structured;
                self.ask_for_purpose();
            }
            (State::SetContext, ReplyCode::META_CONTEXT) => {
                let (id, name) = parse_meta_context(data)?;
                if Some(&name) != self.wishes.context.as_ref() || self.agreed.context.is_some() {
                    return Err(NbdError::Unsupported(
                        "the server chose a meta context that was not asked for",
                    ));
                }
                self.agreed.context = Some(id);
            }
            (State::SetContext, ReplyCode::ACK) => self.ask_to_go(),
            (State::Go, ReplyCode::INFO) => self.learn(data)?,
            (State::Go, ReplyCode::ACK) => {
                let Some((len, flags)) = self.agreed.about else {
                    return Err(NbdError::Unsupported("the server did not say how large the export is"));
                };
                return Ok(Some(self.chosen(len, flags)));
            }
            (State::List, ReplyCode::SERVER) => {
                let (name, description) = parse_server(data)?;
                let description = Some(description).filter(|text| !text.is_empty());
                if self.listing.waiting.len() >= EXPORTS_MAX {
                    let (found, max) = (EXPORTS_MAX as u64 + 1, EXPORTS_MAX as u64);
                    return Err(NbdError::TooMuch { what: "exports in a list", found, max });
                }
                let mode = self.agreed.mode;
                self.listing.waiting.push_back(Listing { name, description, mode, ..Listing::default() });
            }
            (State::List | State::Contexts, ReplyCode::ACK) => return Ok(self.next_listing()),
            (State::Info, ReplyCode::INFO) => self.learn(data)?,
            (State::Info, ReplyCode::ACK) => return Ok(self.described()),
            (State::Contexts, ReplyCode::META_CONTEXT) => {
                let (_, name) = parse_meta_context(data)?;
                let contexts = &mut self.first().contexts;
                if contexts.len() >= CONTEXTS_MAX {
                    let (found, max) = (CONTEXTS_MAX as u64 + 1, CONTEXTS_MAX as u64);
                    return Err(NbdError::TooMuch { what: "meta contexts of an export", found, max });
                }
                contexts.push(name);
            }
            _ => {
                let found = code.0.into();
                return Err(NbdError::Value {
                    what: "type of a reply",
                    found,
                    expected: "one that fits the option",
                });
            }
        }
        Ok(None)
    }

    /// Takes note of a fact about an export.
    fn learn(&mut self, data: &[u8]) -> Result<(), NbdError> {
        let info = InfoReply::parse(data)?;
        match info {
            InfoReply::Export { len, flags } => self.agreed.about = Some((len, flags)),
            InfoReply::BlockSize(sizes) => self.agreed.sizes = Some(sizes),
            InfoReply::Description(text) if self.state == State::Info => {
                self.first().description = Some(text)
            }
            InfoReply::Name(_) | InfoReply::Description(_) | InfoReply::Unknown(_) => {}
        }
        Ok(())
    }

    fn first(&mut self) -> &mut Listing {
        self.listing.waiting.front_mut().expect("the state is about the first export that waits")
    }

    fn described(&mut self) -> Option<Step> {
        let (about, sizes) = (self.agreed.about.take(), self.agreed.sizes.take());
        let first = self.first();
        (first.about, first.sizes) = (about, sizes);
        let export = first.name.clone();
        match self.agreed.mode {
            Mode::Simple => self.next_listing(),
            _ => {
                self.ask(State::Contexts, &MetaQuery { export, queries: Vec::new() }.encode());
                None
            }
        }
    }

    /// Is done with the first export that waits, unless the list has just come, and asks about the next.
    fn next_listing(&mut self) -> Option<Step> {
        if self.state != State::List {
            self.listing.done.extend(self.listing.waiting.pop_front());
        }
        let Some(next) = self.listing.waiting.front() else {
            self.state = State::Ended;
            self.out.push(&OptionHeader { option: OptionCode::ABORT, len: 0 }.encode());
            return Some(Step::Listed(std::mem::take(&mut self.listing.done)));
        };
        let asked = [InfoRequest::DESCRIPTION, InfoRequest::BLOCK_SIZE];
        let data = InfoRequest::encode(&next.name, &asked);
        self.ask(State::Info, &data);
        None
    }

    fn refused(&mut self, code: ReplyCode, data: &[u8]) -> Result<Option<Step>, NbdError> {
        let unknown = code == ReplyCode::ERR_UNSUP;
        match self.state {
            // A server that wants encryption first says so again about what there is no doing without.
            State::ExtendedHeaders => self.ask(State::StructuredReply, &[]),
            State::StructuredReply => self.ask_for_purpose(),
            // Without the context, everything is data.
            State::SetContext => {
                self.agreed.context = None;
                self.ask_to_go();
            }
            State::Go if unknown => self.ask_by_name(),
            // A server that does not describe its exports, or not this one.
            State::Info => {
                (self.agreed.about, self.agreed.sizes) = (None, None);
                return Ok(self.next_listing());
            }
            State::Contexts => return Ok(self.next_listing()),
            _ => return Err(self.refusal(code, data)),
        }
        Ok(None)
    }

    fn refusal(&self, code: ReplyCode, data: &[u8]) -> NbdError {
        let words = &data[..data.len().min(STRING_MAX)];
        let message = text("message of a server", words).ok().filter(|words| !words.is_empty());
        if code == ReplyCode::ERR_UNKNOWN {
            return NbdError::NoExport { name: self.wishes.export.clone(), message };
        }
        NbdError::Refused { option: self.asked(), why: code, message }
    }
}
