//! Low-bit weights on slices: INT8, NF4, FP4, MXFP4, NVFP4, GGUF, GPTQ and AWQ, without a tensor
//! framework.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod activations;
#[cfg(feature = "std")]
pub mod bound;
mod bytes;
#[cfg(feature = "std")]
pub mod calibrate;
mod cpu;
mod element;
mod error;
#[cfg(feature = "files")]
pub mod files;
pub mod float;
mod float_kernel;
mod format;
mod formats;
mod int8_kernel;
mod matrix;
mod packed;
mod parallel;
mod product;
mod simd;
mod view;

pub use activations::{Activations, Mode};
pub use cpu::{Cpu, Isa};
pub use element::Element;
pub use error::{Error, Result};
pub use format::{
    CodeLayout, Extent, Format, Grouping, Levels, NonFinite, Quantized, quantize_into, sizes,
};
pub use formats::{
    awq::{AWQ_ORDER, Awq},
    bnb4::{FP4, Fp4, NF4, Nf4},
    dynamic8::{Dynamic8, DynamicMap, SIGNED_MAP, UNSIGNED_MAP},
    gguf::{GGUF_BLOCK, GgufFormat, Q4_0, Q8_0, from_blocks, to_blocks},
    gptq::{Gptq, GptqTensors, ZeroConvention},
    int4::{Int4, Int4Scale},
    int8::{Int8, Int8Asymmetric, ScaleZero},
    k_quants::{KFormat, KQuant, Q4K, Q6K, SUPER_BLOCK},
    llm_int8::LlmInt8,
    mx::{MX_BLOCK, MxFp4, MxFp8E4m3, MxFp8E5m2, ScaleRounding},
    nvfp4::{GlobalScale, NvFp4},
};
pub use half::{bf16, f16};
pub use matrix::{Matrix, ScaleType, Structure};
pub use packed::{Packed, PackedSizes, Scratch};
#[cfg(feature = "rayon")]
pub use parallel::Rayon;
pub use parallel::{Parallel, Serial, With};
pub use view::View;
