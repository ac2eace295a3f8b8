//! Which instructions an operation uses, and which threads.

use crate::error::{Error, Result};
use crate::parallel::{Parallel, Serial};
use crate::simd;
use alloc::vec::Vec;
use core::fmt;

/// A set of instructions that kernels exist for. Int8 products give the same bits on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the specification that the others are tested against.
    Scalar,
    /// x86-64: AVX2, FMA, F16C.
    Avx2,
    /// AVX2 with 256-bit VPDPBUSD.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ with VNNI.
    Avx512Vnni,
    /// AVX-512 VNNI with VDPBF16PS.
    Avx512Bf16,
    /// AVX-512 with AMX int8 and bf16 for products with several rows.
    Amx,
    /// AArch64: NEON.
    Neon,
    /// NEON with SDOT.
    NeonDotprod,
}

impl Isa {
    const ALL: [Self; 8] = [
        Self::Scalar,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Amx,
        Self::Neon,
        Self::NeonDotprod,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
        }
    }

    /// Those that this processor can run, the plainest first and the fastest last. With the feature
    /// `std` the processor is asked (once, the answer is cached); without it, what the build was
    /// compiled for counts.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| simd::has(*isa))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Instructions and threads for an operation.
///
/// ```
/// use ferrotune_quant::{Cpu, Isa};
///
/// let cpu = Cpu::detect();                         // the best instructions, the calling thread
/// let specification = Cpu::with_isa(Isa::Scalar)?; // to compare with
/// # let _ = (cpu, specification);
/// # Ok::<(), ferrotune_quant::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Cpu<'a> {
    isa: Isa,
    parallel: &'a dyn Parallel,
}

impl Cpu<'static> {
    /// The fastest instructions that this processor has, on the calling thread alone.
    pub fn detect() -> Self {
        Self {
            isa: Isa::available().last().unwrap_or(Isa::Scalar),
            parallel: &Serial,
        }
    }

    /// Instructions of the caller's choice, on the calling thread alone.
    ///
    /// # Errors
    /// This processor or build does not have them.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        if !simd::has(isa) {
            let available: Vec<&str> = Isa::available().map(Isa::name).collect();
            return Err(Error::Isa {
                isa: isa.name(),
                available: available.join(", "),
            });
        }
        Ok(Self {
            isa,
            parallel: &Serial,
        })
    }
}

impl<'a> Cpu<'a> {
    /// The same instructions on the caller's threads.
    #[must_use]
    pub fn with_threads<'b>(self, parallel: &'b dyn Parallel) -> Cpu<'b> {
        Cpu {
            isa: self.isa,
            parallel,
        }
    }

    /// The instructions.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn parallel(&self) -> &'a dyn Parallel {
        self.parallel
    }
}

impl fmt::Debug for Cpu<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("isa", &self.isa)
            .field("threads", &self.parallel.threads())
            .finish()
    }
}

impl Default for Cpu<'static> {
    fn default() -> Self {
        Self::detect()
    }
}
