//! The shell: takes lines, and has their commands carried out.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use drystone_core::error::Error;
use drystone_core::filter::FilterError;
use drystone_exec_linux::Client;
use drystone_tools::io::args::IoArgs;
use drystone_tools::io::command::{self, Command, Needs, Refusal, Spec};
use drystone_tools::io::help;
use drystone_tools::message::Message;

use crate::background::Background;
use crate::debug::{self, Breakpoints};
use crate::events::tell_events;
use crate::input::Input;
use crate::open::{How, Opened, open};
use crate::{print, say, show, transfer};

/// What became of a command.
pub enum Outcome {
    /// All went well.
    Done,
    /// It failed, and has said so.
    Failed,
    /// It is the last one.
    Quit,
}

/// What all commands share.
pub struct Shell {
    pub client: Client,
    pub args: IoArgs,
    /// The name of the tool as it was called.
    pub name: String,
    pub image: Option<Opened>,
    pub background: Rc<Background>,
    pub breakpoints: Rc<Breakpoints>,
    /// Two copies of a disk differ: nothing more is to be done with them.
    pub broken: Rc<Cell<bool>>,
}

impl Shell {
    pub fn new(client: Client, args: IoArgs, name: String) -> Self {
        let background = Rc::new(Background::default());
        let breakpoints = Rc::new(Breakpoints::new(Rc::clone(&background)));
        Self { client, args, name, image: None, background, breakpoints, broken: Rc::default() }
    }

    /// Carries out everything. Tells whether all of it went well.
    pub async fn run(mut self) -> bool {
        if let Some((how, warnings)) = How::of_args(&self.args) {
            self.warn(warnings);
            if !self.open(how).await {
                return false;
            }
        }
        let good = match self.args.commands.is_empty() {
            true => self.interactive().await,
            false => self.script().await,
        };
        self.close().await && good && !self.broken.get()
    }

    async fn script(&mut self) -> bool {
        let mut good = true;
        for line in std::mem::take(&mut self.args.commands) {
            match self.line(&line).await {
                Outcome::Done => {}
                Outcome::Failed => good = false,
                Outcome::Quit => break,
            }
            if self.broken.get() {
                break;
            }
        }
        good
    }

    async fn interactive(&mut self) -> bool {
        let input = Input::new(&self.client);
        let mut good = true;
        while !self.broken.get() {
            print(&format!("{}> ", self.name));
            let Some(line) = self.background.beside(input.next()).await else { break };
            match self.line(&line).await {
                Outcome::Done => {}
                Outcome::Failed => good = false,
                Outcome::Quit => break,
            }
        }
        good
    }

    /// Carries out one line.
    async fn line(&mut self, line: &str) -> Outcome {
        let words = command::words(line);
        let Some(name) = words.first() else { return Outcome::Done };
        let spec = match command::find(name) {
            Ok(spec) => spec,
            Err(refusal) => return self.refuse(refusal, None),
        };
        match self.admit(spec, &words) {
            Ok(command) => self.carry_out(command).await,
            Err(refusal) => self.refuse(refusal, Some(spec)),
        }
    }

    fn admit(&self, spec: &Spec, words: &[String]) -> Result<Command, Refusal> {
        if spec.needs != Needs::Nothing && self.image.is_none() {
            return Err(Refusal::Complained("no file open, try 'help open'".into()));
        }
        spec.check_count(words)?;
        if spec.needs == Needs::WritableImage && self.image.as_ref().is_some_and(Opened::is_read_only) {
            return Err(Refusal::Reported("Block node is read-only".into()));
        }
        spec.parse(words)
    }

    pub fn refuse(&self, refusal: Refusal, spec: Option<&Spec>) -> Outcome {
        match refusal {
            Refusal::Said(text) => print(&format!("{text}\n")),
            Refusal::Complained(text) => say(&format!("{text}\n")),
            Refusal::Reported(text) => self.report(&text),
            Refusal::After(warnings, refusal) => {
                self.warn(warnings);
                return self.refuse(*refusal, spec);
            }
            Refusal::Usage(complaint) => {
                if let Some(complaint) = complaint {
                    say(&format!("{complaint}\n"));
                }
                if let Some(spec) = spec {
                    print(&spec.usage_line());
                }
            }
        }
        Outcome::Failed
    }

    /// Says what is wrong, under the name of the tool.
    pub fn report(&self, text: &str) {
        say(&Message::Error(text.into()).render(&self.name));
    }

    fn warn(&self, warnings: Vec<String>) {
        for warning in warnings {
            say(&Message::Warning(warning).render(&self.name));
        }
    }

    /// The image; commands that need one are only carried out when there is one.
    pub fn opened(&self) -> &Opened {
        self.image.as_ref().expect("checked before the command was read")
    }

    async fn carry_out(&mut self, command: Command) -> Outcome {
        match command {
            Command::Read(args) => transfer::read(self, &args).await,
            Command::Readv(args) => transfer::readv(self, args).await,
            Command::Write(args) => transfer::write(self, &args).await,
            Command::Writev(args) => transfer::writev(self, args).await,
            Command::AioRead(args) => transfer::aio_read(self, args).await,
            Command::AioWrite(args) => transfer::aio_write(self, args).await,
            Command::AioFlush => {
                self.background.all().await;
                Outcome::Done
            }
            Command::Flush => transfer::flush(self).await,
            Command::Discard(args) => transfer::discard(self, &args).await,
            Command::Truncate { len, preallocation } => transfer::truncate(self, len, preallocation).await,
            Command::Alloc { offset, count } => show::alloc(self, offset, count).await,
            Command::Map => show::map(self).await,
            Command::Length => show::length(self),
            Command::Info => show::info(self).await,
            Command::Open(command) => {
                let (how, warnings) = How::of_command(&command, self.args.image_names);
                self.warn(warnings);
                if self.image.is_some() {
                    // The reference reports it under its name.
                    self.report("file open already, try 'help close'");
                    return Outcome::Failed;
                }
                done_if(self.open(how).await)
            }
            Command::Close => done_if(self.close().await),
            Command::Reopen(command) => self.reopen(&command).await,
            Command::Sleep(time) => {
                let slept = self.client.run(async move |io| {
                    io.sleep(time).await;
                    Ok(())
                });
                done_if(self.background.beside(slept).await.is_ok())
            }
            Command::Raise(signal) => match signal {
                0 => Outcome::Done,
                signal => done_if(signal_hook::low_level::raise(signal).is_ok()),
            },
            Command::Abort => std::process::abort(),
            Command::Help(None) => {
                print(&help::of_commands());
                Outcome::Done
            }
            Command::Help(Some(name)) => match command::find(&name) {
                Ok(spec) => {
                    print(&help::of_command(spec));
                    Outcome::Done
                }
                Err(_) => {
                    print(&format!("command {name} not found\n"));
                    Outcome::Failed
                }
            },
            Command::Quit => Outcome::Quit,
            Command::Break { event, tag } => debug::set_break(self, event, tag).await,
            Command::RemoveBreak(tag) => debug::remove_break(self, tag).await,
            Command::Resume(tag) => debug::resume(self, tag).await,
            Command::WaitBreak(tag) => debug::wait_break(self, tag).await,
            Command::Refused { complaint, text } => {
                if let Some(complaint) = complaint {
                    say(&format!("{complaint}\n"));
                }
                self.refuse(Refusal::Said(text), None)
            }
        }
    }

    /// Opens an image, and says why when that fails.
    async fn open(&mut self, how: How) -> bool {
        let opened = self.background.beside(open(&self.client, how, &self.args)).await;
        match opened {
            Ok(opened) => {
                self.breakpoints.listen(&self.client, opened.image.node()).await;
                self.image = Some(opened);
                true
            }
            Err(text) => {
                self.report(&text);
                false
            }
        }
    }

    /// Waits for the requests in the background, and closes the image, if there is one.
    async fn close(&mut self) -> bool {
        let Some(opened) = self.image.take() else { return true };
        self.breakpoints.resume_all(&self.client, opened.image.node()).await;
        self.background.all().await;
        let closed = opened.image.close().await;
        tell_events(&self.client);
        match closed {
            Ok(()) => true,
            Err(error) => {
                self.report(&error.to_string());
                false
            }
        }
    }

    async fn reopen(&mut self, command: &command::ReopenCommand) -> Outcome {
        let old = self.opened().how.clone();
        let node = self.opened().node(&self.client);
        let (changed, warnings) = old.changed(command, &node);
        self.warn(warnings);
        let new = match changed {
            Ok(new) => new,
            Err(refusal) => return self.refuse(refusal, None),
        };
        if !self.close().await {
            return Outcome::Failed;
        }
        if self.open(new).await {
            return Outcome::Done;
        }
        self.open(old).await;
        Outcome::Failed
    }

    /// Waits for a coroutine of the engine, or for anything else, beside the requests in the background.
    pub async fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let value = self.background.beside(future).await;
        // What an image says of itself comes before what became of the request.
        tell_events(&self.client);
        value
    }
}

pub fn done_if(good: bool) -> Outcome {
    if good { Outcome::Done } else { Outcome::Failed }
}

/// Says so when two copies of a disk differ, which ends everything.
pub fn note_broken(broken: &Cell<bool>, error: &Error) {
    if let Error::Format { fault, .. } = error
        && let Some(FilterError::Mismatch { .. } | FilterError::Outcomes { .. }) =
            fault.as_any().downcast_ref::<FilterError>()
        && !broken.replace(true)
    {
        say(&format!("{fault}\n"));
    }
}
