//! Model families: a configuration and a map of names over one decoder.

mod decoder;
mod family;

pub use decoder::{Decoder, DecoderLayer, Mlp, SelfAttention};
pub use family::{FAMILIES, Family};
