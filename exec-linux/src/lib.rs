//! What the executors share on Linux.
