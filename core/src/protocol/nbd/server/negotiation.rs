//! Until transmission: the client's flags, and its options one after the other.
//!
//! ```text
//!   ClientFlags ─▶ Option ─▶ OptionData ─▶ Option …  ─▶ Chosen
//!                    ▲   └─▶ Skipping ──┘         └───▶ Encrypting ─▶ Option …
//!                    └──────────────────┘         └───▶ Ended
//! ```
//!
//! What a client says wrong about an option is answered, and the next option may follow; what is no option ends the
//! connection, and so do too many of them. Nothing of an export is touched before it is chosen.

use std::rc::Rc;

use super::{Context, Export};
use crate::protocol::nbd::layout::{
    ClientFlags, HandshakeFlags, InfoReply, InfoRequest, MetaQuery, OPTION_HEADER_LEN, OptionCode,
    OptionHeader, OptionReply, ReplyCode, export_answer, greeting, meta_context, server, text,
};
use crate::protocol::nbd::limits::{HANDSHAKE_BYTES_MAX, OPTION_LEN_MAX, OPTIONS_MAX, STRING_MAX};
use crate::protocol::nbd::payload::collect;
use crate::protocol::nbd::{Mode, NbdError, Outgoing};

/// Whether a server encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// It cannot.
    Plain,
    /// Nothing is told, and no export given, before encryption has begun.
    Required,
}

/// What a negotiation has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Once everything is sent, encryption begins; then [`Negotiation::encrypted`] goes on. Bytes that are there already
    /// were sent too early, and by anyone.
    StartTls,
    /// Transmission begins with the next byte.
    Chosen(Chosen),
    /// The client leaves, once everything is sent.
    Left,
}

/// What the client has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The export's place among those that there are.
    pub export: usize,
    /// How replies look.
    pub mode: Mode,
    /// The numbers of the meta contexts that the client wants, in ascending order.
    pub contexts: Vec<u32>,
}

/// A negotiation.
#[derive(Debug)]
pub struct Negotiation {
    exports: Rc<[Export]>,
    security: Security,
    state: State,
    /// The front of what the state waits for.
    partial: Vec<u8>,
    client: ClientFlags,
    agreed: Agreed,
    options: u32,
    received: u64,
    out: Outgoing,
}

/// What both sides agreed on; forgotten when encryption begins.
#[derive(Debug, Default)]
struct Agreed {
    mode: Mode,
    /// Contexts, and of which export.
    contexts: Option<(usize, Vec<u32>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    OptionData {
        header: OptionHeader,
    },
    /// Data that is too long is left out, and the option answered then.
    Skipping {
        option: OptionCode,
        left: u32,
    },
    Encrypting,
    Ended,
}

impl Negotiation {
    /// Begins: the server speaks first.
    pub fn new(exports: Rc<[Export]>, security: Security) -> Self {
        let mut out = Outgoing::new();
        out.push(&greeting(HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES)));
        Self {
            exports,
            security,
            state: State::ClientFlags,
            partial: Vec::new(),
            client: ClientFlags::NONE,
            agreed: Agreed::default(),
            options: 0,
            received: 0,
            out,
        }
    }

    /// What is to be sent.
    pub fn out(&mut self) -> &mut Outgoing {
        &mut self.out
    }

    /// Goes on, once the connection is encrypted. What was agreed on before is forgotten: it came from anyone.
    ///
    /// # Panics
    /// When encryption was not to begin.
    pub fn encrypted(&mut self) {
        assert_eq!(self.state, State::Encrypting, "encryption begins when the client has asked for it");
        self.state = State::Option;
        self.security = Security::Plain;
        self.agreed = Agreed::default();
        self.partial.clear();
    }

    /// Takes bytes from the front of `input`, up to the next step; with none, `input` is used up.
    ///
    /// # Errors
    /// What the client did wrong; the connection is of no further use then.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Step>, NbdError> {
        loop {
            let before = input.len();
            let step = self.feed_one(input);
            self.received += (before - input.len()) as u64;
            if self.received > HANDSHAKE_BYTES_MAX {
                let (found, max) = (self.received, HANDSHAKE_BYTES_MAX);
                return Err(NbdError::TooMuch { what: "bytes before transmission", found, max });
            }
            match step? {
                Some(Progress::Step(step)) => return Ok(Some(step)),
                Some(Progress::Message) => {}
                None => return Ok(None),
            }
        }
    }

    fn feed_one(&mut self, input: &mut &[u8]) -> Result<Option<Progress>, NbdError> {
        match self.state {
            State::Ended | State::Encrypting => Ok(None),
            State::ClientFlags => {
                let Some(bytes) = self.collect(4, input) else { return Ok(None) };
                let flags = ClientFlags(u32::from_be_bytes(bytes.try_into().expect("four were collected")));
                let known = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
                if flags.without(known) != ClientFlags::NONE {
                    let (found, expected) = (flags.0.into(), "the two that are known");
                    return Err(NbdError::Value { what: "flags of the client", found, expected });
                }
                self.client = flags;
                self.state = State::Option;
                Ok(Some(Progress::Message))
            }
            State::Option => {
                let Some(bytes) = self.collect(OPTION_HEADER_LEN, input) else { return Ok(None) };
                let header = OptionHeader::parse(&bytes)?;
                self.options += 1;
                if self.options > OPTIONS_MAX {
                    let (found, max) = (self.options.into(), OPTIONS_MAX.into());
                    return Err(NbdError::TooMuch { what: "options", found, max });
                }
                self.state = match header.len as usize > OPTION_LEN_MAX {
                    true => State::Skipping { option: header.option, left: header.len },
                    false => State::OptionData { header },
                };
                Ok(Some(Progress::Message))
            }
            State::OptionData { header } => {
                let Some(data) = self.collect(header.len as usize, input) else { return Ok(None) };
                self.state = State::Option;
                let step = self.option(header.option, &data)?;
                Ok(Some(step.map_or(Progress::Message, Progress::Step)))
            }
            State::Skipping { option, left } => {
                let count = input.len().min(left as usize);
                *input = &input[count..];
                let left = left - count as u32;
                self.state = State::Skipping { option, left };
                if left > 0 {
                    return Ok(None);
                }
                if option == OptionCode::EXPORT_NAME {
                    let (found, max) = (OPTION_LEN_MAX as u64 + 1, STRING_MAX as u64);
                    return Err(NbdError::TooMuch { what: "name of an export", found, max });
                }
                self.state = State::Option;
                self.refuse(option, ReplyCode::ERR_TOO_BIG, "the option is too long");
                Ok(Some(Progress::Message))
            }
        }
    }

    /// Takes bytes until there are `needed`, and returns them then.
    fn collect(&mut self, needed: usize, input: &mut &[u8]) -> Option<Vec<u8>> {
        collect(&mut self.partial, needed, input).then(|| std::mem::take(&mut self.partial))
    }

    fn answer(&mut self, option: OptionCode, code: ReplyCode, data: &[u8]) {
        self.out.push(&OptionReply { option, code, len: data.len() as u32 }.encode());
        self.out.push(data);
    }

    fn refuse(&mut self, option: OptionCode, code: ReplyCode, message: &str) {
        let mut end = message.len().min(STRING_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.answer(option, code, &message.as_bytes()[..end]);
    }

    fn option(&mut self, option: OptionCode, data: &[u8]) -> Result<Option<Step>, NbdError> {
        let fixed = self.client.has(ClientFlags::FIXED_NEWSTYLE);
        if !fixed && option != OptionCode::EXPORT_NAME {
            return Err(NbdError::Unsupported(
                "a client that knows no answers to options gave one that has some",
            ));
        }
        let plain_only = matches!(option, OptionCode::STARTTLS | OptionCode::ABORT);
        if self.security == Security::Required && !plain_only {
            if option == OptionCode::EXPORT_NAME {
                return Err(NbdError::Unsupported("the client chose an export before encryption had begun"));
            }
            self.refuse(
                option,
                ReplyCode::ERR_TLS_REQD,
                &format!("Option {:#x} not permitted before TLS", option.0),
            );
            return Ok(None);
        }
        match option {
            OptionCode::EXPORT_NAME => self.export_name(data).map(Some),
            OptionCode::ABORT => {
                self.answer(option, ReplyCode::ACK, &[]);
                self.state = State::Ended;
                Ok(Some(Step::Left))
            }
            OptionCode::LIST => {
                self.list(data);
                Ok(None)
            }
            OptionCode::STARTTLS => Ok(self.start_tls(data)),
            OptionCode::INFO | OptionCode::GO => Ok(self.info(option, data)),
            OptionCode::STRUCTURED_REPLY | OptionCode::EXTENDED_HEADERS => {
                self.mode(option, data);
                Ok(None)
            }
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                self.contexts(option, data);
                Ok(None)
            }
            _ => {
                self.refuse(option, ReplyCode::ERR_UNSUP, "there is no such option");
                Ok(None)
            }
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.exports.iter().position(|export| export.name == name)
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Step, NbdError> {
        if data.len() > STRING_MAX {
            let (found, max) = (data.len() as u64, STRING_MAX as u64);
            return Err(NbdError::TooMuch { what: "name of an export", found, max });
        }
        let name = text("name of an export", data)?;
        // There is no way to say no but to leave.
        let Some(index) = self.find(&name) else { return Err(NbdError::NoExport { name, message: None }) };
        let export = &self.exports[index];
        let answer = export_answer(export.len, export.flags(self.agreed.mode));
        let shown = if self.client.has(ClientFlags::NO_ZEROES) { 10 } else { answer.len() };
        self.out.push(&answer[..shown]);
        Ok(self.chosen(index))
    }

    fn chosen(&mut self, export: usize) -> Step {
        self.state = State::Ended;
        // Contexts are those of one export.
        let contexts = self.agreed.contexts.take().filter(|(of, _)| *of == export);
        Step::Chosen(Chosen {
            export,
            mode: self.agreed.mode,
            contexts: contexts.map_or_else(Vec::new, |(_, contexts)| contexts),
        })
    }

    fn list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            return self.refuse(OptionCode::LIST, ReplyCode::ERR_INVALID, "this option has no data");
        }
        for export in Rc::clone(&self.exports).iter() {
            self.answer(OptionCode::LIST, ReplyCode::SERVER, &server(&export.name, &export.description));
        }
        self.answer(OptionCode::LIST, ReplyCode::ACK, &[]);
    }

    fn start_tls(&mut self, data: &[u8]) -> Option<Step> {
        let option = OptionCode::STARTTLS;
        if !data.is_empty() {
            self.refuse(option, ReplyCode::ERR_INVALID, "this option has no data");
            return None;
        }
        if self.security == Security::Plain {
            self.refuse(option, ReplyCode::ERR_POLICY, "TLS not configured");
            return None;
        }
        self.answer(option, ReplyCode::ACK, &[]);
        self.state = State::Encrypting;
        Some(Step::StartTls)
    }

    fn mode(&mut self, option: OptionCode, data: &[u8]) {
        if !data.is_empty() {
            return self.refuse(option, ReplyCode::ERR_INVALID, "this option has no data");
        }
        let wanted = if option == OptionCode::EXTENDED_HEADERS { Mode::Extended } else { Mode::Structured };
        match self.agreed.mode {
            Mode::Extended if wanted == Mode::Structured => {
                self.refuse(option, ReplyCode::ERR_EXT_HEADER_REQD, "extended headers are agreed on");
            }
            mode if mode >= wanted => {
                self.refuse(option, ReplyCode::ERR_INVALID, "this is agreed on already");
            }
            _ => {
                self.agreed.mode = wanted;
                self.answer(option, ReplyCode::ACK, &[]);
            }
        }
    }

    fn info(&mut self, option: OptionCode, data: &[u8]) -> Option<Step> {
        let (name, asked) = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(error) => {
                self.refuse(option, ReplyCode::ERR_INVALID, &error.to_string());
                return None;
            }
        };
        let Some(index) = self.find(&name) else {
            self.refuse(option, ReplyCode::ERR_UNKNOWN, &format!("export '{name}' not present"));
            return None;
        };
        let export = &self.exports[index];
        let knows_sizes = asked.contains(&InfoRequest::BLOCK_SIZE);
        if option == OptionCode::GO && !knows_sizes && export.sizes.min > 1 {
            self.refuse(option, ReplyCode::ERR_BLOCK_SIZE_REQD, "the client must heed block sizes");
            return None;
        }
        let mut replies = Vec::new();
        if asked.contains(&InfoRequest::NAME) {
            replies.push(InfoReply::Name(name));
        }
        if asked.contains(&InfoRequest::DESCRIPTION) && !export.description.is_empty() {
            replies.push(InfoReply::Description(export.description.clone()));
        }
        replies.push(InfoReply::BlockSize(export.sizes));
        replies.push(InfoReply::Export { len: export.len, flags: export.flags(self.agreed.mode) });
        for reply in replies {
            self.answer(option, ReplyCode::INFO, &reply.encode());
        }
        self.answer(option, ReplyCode::ACK, &[]);
        (option == OptionCode::GO).then(|| self.chosen(index))
    }

    fn contexts(&mut self, option: OptionCode, data: &[u8]) {
        let lists = option == OptionCode::LIST_META_CONTEXT;
        // Whatever comes of it, an earlier choice is over.
        if !lists {
            self.agreed.contexts = None;
        }
        if self.agreed.mode == Mode::Simple {
            return self.refuse(option, ReplyCode::ERR_INVALID, "structured replies must be agreed on first");
        }
        let MetaQuery { export: name, queries } = match MetaQuery::parse(data) {
            Ok(query) => query,
            Err(error) => return self.refuse(option, ReplyCode::ERR_INVALID, &error.to_string()),
        };
        let Some(index) = self.find(&name) else {
            let message = format!("export '{name}' not present");
            return self.refuse(option, ReplyCode::ERR_UNKNOWN, &message);
        };
        let exports = Rc::clone(&self.exports);
        let named = |context: &Context| match queries.is_empty() {
            true => lists,
            false => queries.iter().any(|query| context.answers(query, lists)),
        };
        let found = exports[index].contexts.iter().enumerate().filter(|(_, context)| named(context));
        let mut chosen = Vec::new();
        for (id, context) in found {
            let id = id as u32;
            self.answer(
                option,
                ReplyCode::META_CONTEXT,
                &meta_context(if lists { 0 } else { id }, &context.name()),
            );
            chosen.push(id);
        }
        if !lists {
            self.agreed.contexts = Some((index, chosen));
        }
        self.answer(option, ReplyCode::ACK, &[]);
    }
}

/// What came of a message.
enum Progress {
    Step(Step),
    Message,
}
