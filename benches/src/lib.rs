//! What the benchmarks share: the model and the work ([`workload`]), what the machine could do
//! ([`limits`]), and the comparison with the Python peers step by step ([`peer`], [`worker`],
//! [`pairs`]), on top of `ferrotune-benches-common`. The README beside this crate says how to run them and how to read the numbers.

pub mod limits;
pub mod pairs;
pub mod peer;
pub mod worker;
pub mod workload;
