//! The simulator as an executor that the suite runs on.

use drystone_core::engine::{Reply, Request};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{NodeSpec, open};

use crate::scenario::{Ask, RunError, Runner};
use crate::sim::{FIRST, Sim, Stopped};

/// The first engine of a simulation as a [`Runner`].
pub struct SimRunner {
    /// The simulation.
    pub sim: Sim,
    node: Option<NodeId>,
}

impl SimRunner {
    /// Returns a runner that has nothing open.
    pub fn new(sim: Sim) -> Self {
        Self { sim, node: None }
    }

    fn node(&self) -> NodeId {
        self.node.expect("the suite opens an image before it uses one")
    }
}

impl Runner for SimRunner {
    fn open(&mut self, spec: &NodeSpec) -> Result<(), RunError> {
        let spec = spec.clone();
        self.node = Some(self.sim.run_job(|io| async move { open(&io, &spec).await })??);
        Ok(())
    }

    fn size(&mut self) -> u64 {
        self.sim.engine(FIRST).len(self.node())
    }

    fn submit(&mut self, batch: Vec<Ask>) {
        let node = self.node();
        for Ask { op, offset, len, data, tag } in batch {
            self.sim.submit(FIRST, Request { node, op, offset, len, data, tag });
        }
    }

    fn wait(&mut self) -> Result<Reply, Stopped> {
        let reply = self.sim.wait_reply()?;
        let (_, reply) = reply.expect("a reply is waited for only while a request is in flight");
        Ok(reply)
    }

    fn close(&mut self) -> Result<(), RunError> {
        let node = self.node();
        Ok(self.sim.run_job(move |io| async move { io.close(node).await })??)
    }
}
