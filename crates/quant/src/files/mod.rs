//! Quantized weights in the formats of the field's files, read where they lie: codes are borrowed from
//! the file's bytes, which may be mapped.
//!
//! | | reads | writes |
//! |---|---|---|
//! | bitsandbytes NF4 and FP4, plain and nested | [`bnb::read4`] | [`bnb::tensors4`] |
//! | bitsandbytes LLM.int8 | [`bnb::read8`] | [`bnb::tensors8`] |
//! | compressed-tensors `pack-quantized` | [`compressed::read`] | [`compressed::PackQuantized::tensors`] |
//! | GPTQ of 4 bits | [`gptq::read`] | [`gptq::tensors`] |
//! | AWQ of 4 bits | [`awq::read`] | [`awq::tensors`] |
//! | NVFP4 of compressed-tensors and ModelOpt | [`nvfp4::read`] | [`nvfp4::tensors`] |
//! | MXFP4 of gpt-oss | [`mxfp4::read`] | [`mxfp4::tensors`] |
//! | matrices packed for this crate's products | [`packed::read`] | [`packed::tensors`] |
//! | GGUF | [`gguf::Gguf`] | [`gguf::GgufWriter`] |
//!
//! All but GGUF are sets of tensors in a [`Safetensors`] file, found by the prefix of their names;
//! [`SafetensorsWriter`] writes them. [`Scheme`] does either by a name such as `nf4`.
//!
//! Nothing a file says is believed: lengths, counts and offsets are checked against the bytes that there
//! are before anything is allocated for them. An [`Error`] names the file and the key.

pub mod awq;
pub mod bnb;
pub mod compressed;
mod convert;
mod error;
pub mod gguf;
pub mod gptq;
mod mapped;
pub mod mxfp4;
pub mod nvfp4;
pub mod packed;
mod replace;
mod scheme;
mod tensors;
mod words;
mod writer;

pub use bnb::TorchDtype;
pub use convert::{Converted, Outcome, convert};
pub use error::{Error, Result};
pub use mapped::Mapped;
pub use scheme::Scheme;
pub use tensors::{Safetensors, SafetensorsFile, Tensor};
pub use writer::{NewTensor, SafetensorsWriter};
