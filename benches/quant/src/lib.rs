//! What the benchmarks of `ferrotune-quant` share: random matrices ([`data`]), what the
//! machine can do ([`memory`], [`peak`]), measurements that take turns ([`rounds`]), and what a product
//! may be off by ([`check`]). The README of `benches/` says how to run them and how to read the numbers.

pub mod check;
pub mod data;
pub mod memory;
pub mod peak;
pub mod rounds;
pub mod threads;
