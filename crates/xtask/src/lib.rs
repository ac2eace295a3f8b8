//! `cargo xtask`: the commands of this repository.
//!
//! It never links libtorch, since it is what brings libtorch. `main.rs` reads the command line; each
//! command is a module here, so that the tests can call it with a folder, wheels and a Python of
//! their own.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod check;
pub mod cli;
pub mod outside;
pub mod peers;
pub mod pins;
pub mod process;
pub mod quant;
pub mod readme;
pub mod setup;
pub mod wheel;
