//! Low-bit weights on slices: INT8, LLM.int8, NF4, FP4, MXFP4, MXFP8, NVFP4, GGUF, GPTQ and AWQ, with fast
//! products on any CPU and without a tensor framework.
//!
//! ```
//! use ferrotune_quant::{Activations, Cpu, Mode, Nf4, Packed, Quantized, Scratch, View};
//!
//! let weights: Vec<f32> = (0..64 * 128).map(|i| (i as f32 * 0.7).sin()).collect(); // [64, 128]
//! let x: Vec<f32> = (0..2 * 128).map(|i| (i as f32).cos()).collect();              // [2, 128]
//! let cpu = Cpu::detect(); // the fastest instructions there are, on the calling thread
//!
//! let nf4 = Quantized::new(Nf4::new(64)?, View::new(&weights, 64, 128)?, &cpu)?;
//! assert_eq!(nf4.bits_per_weight(), 4.5);
//!
//! let packed = Packed::new(&nf4, &cpu)?; // once, for any number of products
//! let mut activations = Activations::new(&packed, Mode::Int8PerGroup)?;
//! activations.set(View::new(&x, 2, 128)?, &cpu)?;
//! let mut y = vec![0.0; 2 * 64];
//! packed.gemm(&activations, &mut y, &mut Scratch::new(), &cpu)?; // y = x · Wᵀ
//! # Ok::<(), ferrotune_quant::Error>(())
//! ```
//!
//! - A [`Format`] says what a group of weights becomes; [`Quantized`] is a matrix in one, borrowed or
//!   owned; [`quantize_into`] writes into the caller's memory.
//! - [`Packed`] is the layout that products read. [`Activations`] name the [`Mode`] that a product computes
//!   in, and `bound` has its error bound.
//! - [`Cpu`] chooses instructions ([`Isa`]) and threads ([`Parallel`]: none, rayon, or the caller's).
//!   Neither changes a bit of any code, scale or int8 product.
//! - `calibrate` rounds with activations in view (GPTQ, AWQ); `files` reads and writes what bitsandbytes,
//!   GPTQ, AWQ, compressed-tensors, ModelOpt, gpt-oss and GGUF store, by mmap and without copies.
//!
//! Codes, scales and values are those of bitsandbytes, torchao and gguf, ties and denormals included; the
//! tests compare with their recorded outputs. The chapter [Four bits, explained][chapter] works every format
//! by hand, and has the table of all formats: bits a weight, worst error, who reads it.
//!
//! # Features and dependencies
//!
//! | feature | brings |
//! |---|---|
//! | `std` (default) | run-time detection of instructions, `bound`, `calibrate` |
//! | `rayon` | [`Rayon`](Parallel): the pool of the calling thread |
//! | `ndarray` | a [`View`] of an `ArrayView2` |
//! | `files` | safetensors and GGUF, with `memmap2`, `safetensors`, `serde` and `serde_json` |
//!
//! Without features this is a `no_std` crate on `alloc`. Always there: `half` (the types f16 and bf16),
//! `thiserror` (the error type), `libm` (a fused multiply-add and a rounding where there is no `std`).
//!
//! # Instructions
//!
//! Kernels are written once over a small vector trait and compiled for: scalar Rust (the specification);
//! AVX2 with FMA and F16C; AVX-VNNI; AVX-512 VNNI; AVX-512 BF16; AMX int8 and bf16; NEON; NEON with SDOT.
//! Each that the test machine has is tested against scalar, integer sums identical. NEON is tested under
//! emulation; no run on AArch64 hardware is on record.
//!
//! # What it does not do
//!
//! Formats of 2, 3 and 5 bits, GPU kernels (tensors come in a crate of their own), importance matrices for
//! GGUF, big-endian files.
//!
//! [chapter]: https://github.com/ferrotune/ferrotune/blob/main/docs/four-bits.md
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
mod format;
mod formats;
mod kernels;
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
    gguf::{GGUF_BLOCK, GgufFormat, Q4_0, Q8_0, from_blocks, to_blocks, to_blocks_into},
    gptq::{Gptq, GptqTensors, ZeroConvention},
    int4::{Int4, Int4Scale},
    int8::{Int8, Int8Asymmetric, ScaleZero},
    k_quants::{KFormat, KQuant, Q4K, Q6K, SUPER_BLOCK},
    llm_int8::LlmInt8,
    mx::{MX_BLOCK, MxFp4, MxFp8E4m3, MxFp8E5m2, ScaleRounding},
    nested::NestedAbsmax,
    nvfp4::{GlobalScale, NvFp4},
};
pub use half::{bf16, f16};
pub use matrix::{Matrix, ScaleType, Structure};
pub use packed::{Packed, PackedSizes, Scratch};
#[cfg(feature = "rayon")]
pub use parallel::Rayon;
pub use parallel::{Parallel, Serial, With};
pub use view::View;

/// The chapter's programs are run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/four-bits.md")]
pub struct FourBits;
