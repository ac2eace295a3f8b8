//! What the examples share.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkpoint;
pub mod cli;
pub mod corpus;
pub mod demo;
pub mod exam;
pub mod finetune;
pub mod pretrain;
pub mod training;
