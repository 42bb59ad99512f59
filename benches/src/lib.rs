//! What Drystone costs: `cargo bench -p drystone-benches` for the engine alone, and the program `ratios` for
//! executors and whole tools beside their peers. What was measured is in `RESULTS.md`.

#[path = "../../core/tests/null/mod.rs"]
pub mod null;
