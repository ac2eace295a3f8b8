//! bitsandbytes: NF4, FP4 and LLM.int8 as its layers save them (bitsandbytes 0.50,
//! `QuantState.as_dict(packed=True)` and `Linear8bitLt._save_to_state_dict`).
//!
//! 4 bit, of a layer `P` with `n` weights in blocks of `b`:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.weight` | U8 `[⌈n/2⌉, 1]` | codes, the first of two in the high half; also in BF16, F16 or F32 of as many bytes (`bnb_4bit_quant_storage`) |
//! | `P.weight.absmax` | F32 `[⌈n/b⌉]` | of each block; U8 if nested |
//! | `P.weight.quant_map` | F32 `[16]` | the table of the codes |
//! | `P.weight.nested_absmax` | F32 `[⌈n/b/256⌉]` | nested only |
//! | `P.weight.nested_quant_map` | F32 `[256]` | nested only |
//! | `P.weight.quant_state.bitsandbytes__nf4`, or `__fp4` | U8 | JSON: quant_type, blocksize, dtype, shape, and nested_blocksize, nested_dtype, nested_offset |
//!
//! Nested, the absmax of a block is `nested_quant_map[code] · nested_absmax + nested_offset`, rounded
//! after each operation.
//!
//! LLM.int8: `P.weight` I8 `[out, in]`, `P.SCB` F32 `[out]` (each row's absmax), `P.weight_format` U8,
//! 0 for rows; older files have none.

mod eight;
mod four;

pub use eight::{read8, tensors8};
pub use four::{Bnb4, Bnb4Format, Bnb4Matrix, has4, read4, tensors4};

use serde::{Deserialize, Serialize};

/// The type that weights had before they were quantized, and have again when a peer dequantizes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TorchDtype {
    /// 32 bits.
    #[serde(rename = "float32")]
    F32,
    /// 16 bits.
    #[serde(rename = "float16")]
    F16,
    /// 16 bits, the upper half of an f32.
    #[serde(rename = "bfloat16")]
    BF16,
}

impl TorchDtype {
    /// That of an element.
    pub fn of<T: crate::Element>() -> Self {
        match T::DTYPE {
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            _ => Self::F32,
        }
    }

    /// Its name in torch.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}
