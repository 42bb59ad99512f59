//! What passes between threads: the standard library's, or in unit tests that of shuttle, which runs the very same code in
//! many orders of its threads, one seed each.

#[cfg(test)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic, mpsc};
#[cfg(not(test))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic, mpsc};
