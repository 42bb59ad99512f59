//! Breakpoints of blkdebug nodes.

use std::cell::RefCell;
use std::rc::Rc;

use drystone_core::engine::Io;
use drystone_core::filter::{Blkdebug, DebugEvent, Notice};
use drystone_core::graph::NodeId;
use drystone_core::intent::Errno;
use drystone_exec_linux::Client;

use crate::background::Background;
use crate::print;
use crate::shell::{Outcome, Shell};

/// Who waits at a breakpoint, as far as the node has told.
pub struct Breakpoints {
    suspended: RefCell<Vec<String>>,
    background: Rc<Background>,
}

impl Breakpoints {
    pub fn new(background: Rc<Background>) -> Self {
        Self { suspended: RefCell::default(), background }
    }

    /// Shows what the blkdebug node below an image tells, where there is one.
    pub async fn listen(self: &Rc<Self>, client: &Client, node: NodeId) {
        let this = Rc::clone(self);
        let listening = client.run(async move |io| {
            Blkdebug::find(&io, node, |debug, _| debug.listen(Rc::new(move |notice| this.hear(notice))));
            Ok(())
        });
        listening.await.expect("listening does not fail");
    }

    /// Lets everybody go on.
    pub async fn resume_all(&self, client: &Client, node: NodeId) {
        if self.suspended.borrow().is_empty() {
            return;
        }
        let resumed = client.run(async move |io| {
            Blkdebug::find(&io, node, |debug, io| debug.resume_all(io));
            Ok(())
        });
        self.background.beside(resumed).await.expect("resuming does not fail");
    }

    fn hear(&self, notice: Notice) {
        let mut suspended = self.suspended.borrow_mut();
        match notice {
            Notice::Suspended(tag) => {
                print(&format!("blkdebug: Suspended request '{tag}'\n"));
                suspended.push(tag);
            }
            Notice::Resuming(tag) => {
                print(&format!("blkdebug: Resuming request '{tag}'\n"));
                let at = suspended.iter().position(|other| *other == tag);
                at.map(|at| suspended.remove(at));
            }
        }
        drop(suspended);
        self.background.wake();
    }

    fn is_suspended(&self, tag: &str) -> bool {
        self.suspended.borrow().iter().any(|other| other == tag)
    }
}

/// Does something to the blkdebug node below the image.
async fn with_node(
    shell: &Shell,
    action: impl FnOnce(&Blkdebug, &Io) -> Result<(), Errno> + 'static,
) -> Result<(), Errno> {
    let node = shell.opened().image.node();
    let found = shell.client.run(async move |io| Ok(Blkdebug::find(&io, node, action)));
    match shell.wait(found).await {
        Ok(Some(result)) => result,
        Ok(None) => Err(Errno::ENOTSUP),
        Err(error) => Err(error.errno()),
    }
}

fn outcome(result: Result<(), Errno>, what: &str) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(errno) => {
            print(&format!("Could not {what}: {errno}\n"));
            Outcome::Failed
        }
    }
}

fn found(found: bool) -> Result<(), Errno> {
    if found { Ok(()) } else { Err(Errno::ENOENT) }
}

pub async fn set_break(shell: &Shell, event: String, tag: String) -> Outcome {
    let set = with_node(shell, move |debug, _| {
        let event = DebugEvent::parse(&event).ok_or(Errno::ENOENT)?;
        debug.set_break(event, &tag);
        Ok(())
    });
    outcome(set.await, "set breakpoint")
}

pub async fn remove_break(shell: &Shell, tag: String) -> Outcome {
    let what = format!("remove breakpoint {tag}");
    let removed = with_node(shell, move |debug, io| found(debug.remove_break(io, &tag)));
    outcome(removed.await, &what)
}

pub async fn resume(shell: &Shell, tag: String) -> Outcome {
    let resumed = with_node(shell, move |debug, io| found(debug.resume(io, &tag)));
    outcome(resumed.await, "resume request")
}

pub async fn wait_break(shell: &Shell, tag: String) -> Outcome {
    if let Err(errno) = with_node(shell, |_, _| Ok(())).await {
        return outcome(Err(errno), &format!("wait for breakpoint {tag}"));
    }
    // Nobody is left who could come to it: the reference would wait for ever.
    let came = shell.background.until(|| shell.breakpoints.is_suspended(&tag)).await;
    outcome(found(came), &format!("wait for breakpoint {tag}"))
}
