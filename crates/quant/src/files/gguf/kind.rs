//! The types of GGUF's tensors.

use std::fmt;

/// A type of ggml, by its number. One that is not known has a number too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(pub u32);

macro_rules! kinds {
    ($($name:ident = $id:literal: $block:literal in $bytes:literal,)*) => {
        #[allow(missing_docs, reason = "the names are ggml's")]
        impl GgmlType {
            $(pub const $name: Self = Self($id);)*
        }

        /// Number, name, elements of a block, bytes of a block (gguf 0.19, `GGML_QUANT_SIZES`).
        const KINDS: &[(u32, &str, usize, usize)] = &[
            $(($id, stringify!($name), $block, $bytes),)*
        ];
    };
}

kinds! {
    F32 = 0: 1 in 4,
    F16 = 1: 1 in 2,
    Q4_0 = 2: 32 in 18,
    Q4_1 = 3: 32 in 20,
    Q5_0 = 6: 32 in 22,
    Q5_1 = 7: 32 in 24,
    Q8_0 = 8: 32 in 34,
    Q8_1 = 9: 32 in 40,
    Q2_K = 10: 256 in 84,
    Q3_K = 11: 256 in 110,
    Q4_K = 12: 256 in 144,
    Q5_K = 13: 256 in 176,
    Q6_K = 14: 256 in 210,
    Q8_K = 15: 256 in 292,
    IQ2_XXS = 16: 256 in 66,
    IQ2_XS = 17: 256 in 74,
    IQ3_XXS = 18: 256 in 98,
    IQ1_S = 19: 256 in 50,
    IQ4_NL = 20: 32 in 18,
    IQ3_S = 21: 256 in 110,
    IQ2_S = 22: 256 in 82,
    IQ4_XS = 23: 256 in 136,
    I8 = 24: 1 in 1,
    I16 = 25: 1 in 2,
    I32 = 26: 1 in 4,
    I64 = 27: 1 in 8,
    F64 = 28: 1 in 8,
    IQ1_M = 29: 256 in 56,
    BF16 = 30: 1 in 2,
    TQ1_0 = 34: 256 in 54,
    TQ2_0 = 35: 256 in 66,
    MXFP4 = 39: 32 in 17,
    NVFP4 = 40: 64 in 36,
    Q1_0 = 41: 128 in 18,
}

impl GgmlType {
    /// Elements and bytes of a block, of a type that is known.
    pub fn block(self) -> Option<(usize, usize)> {
        let kind = KINDS.iter().find(|kind| kind.0 == self.0);
        kind.map(|(_, _, block, bytes)| (*block, *bytes))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match KINDS.iter().find(|kind| kind.0 == self.0) {
            Some((_, name, ..)) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}
