//! One file for each family of formats.

pub mod awq;
pub mod bnb4;
pub mod dynamic8;
pub mod gguf;
pub mod gptq;
pub mod int4;
pub mod int8;
pub mod k_quants;
pub mod llm_int8;
pub mod mx;
pub mod nested;
pub mod nvfp4;
