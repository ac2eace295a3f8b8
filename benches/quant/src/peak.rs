//! What the cores can do at most: loops over registers, without memory.

use ferrotune_quant::{Isa, Parallel, Rayon};
use std::time::Instant;

/// An instruction that multiplies and adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// VPDPBUSD on 64 bytes.
    Vnni,
    /// VDPBF16PS on 32 pairs.
    Bf16,
    /// VFMADD on 16 floats.
    Fma,
    /// TDPBUSD on a tile.
    AmxInt8,
    /// TDPBF16PS on a tile.
    AmxBf16,
}

impl Unit {
    /// What int8 products run on.
    pub fn int8(isa: Isa) -> Self {
        match isa {
            Isa::Amx => Self::AmxInt8,
            _ => Self::Vnni,
        }
    }

    /// What bf16 products run on; f32's where the processor has nothing for bf16.
    pub fn bf16(isa: Isa) -> Self {
        match isa {
            Isa::Amx => Self::AmxBf16,
            Isa::Avx512Bf16 => Self::Bf16,
            _ => Self::Fma,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vnni => "VPDPBUSD",
            Self::Bf16 => "VDPBF16PS",
            Self::Fma => "VFMADD512PS",
            Self::AmxInt8 => "TDPBUSD",
            Self::AmxBf16 => "TDPBF16PS",
        }
    }

    /// Operations a second of all threads, a multiplication and an addition being two: the best of a
    /// few loops of some milliseconds. None where this program has no loop, or the processor no such
    /// instruction.
    pub fn measure(self) -> Option<f64> {
        let peak = self.peak()?;
        let threads = Rayon.threads();
        let seconds = (0..5).map(|_| {
            let begin = Instant::now();
            // SAFETY: `peak` has loops only of instructions that the processor has.
            Rayon.run(threads, &|_| unsafe { (peak.run)(ROUNDS) });
            begin.elapsed().as_secs_f64()
        });
        let best = seconds.fold(f64::INFINITY, f64::min);
        Some((threads * ROUNDS * peak.instructions * peak.operations) as f64 / best)
    }

    #[cfg(target_arch = "x86_64")]
    fn peak(self) -> Option<Peak> {
        use std::arch::is_x86_feature_detected as has;
        use x86::CHAINS;
        let amx = || Isa::available().any(|isa| isa == Isa::Amx);
        let peak = |instructions, operations, run: unsafe fn(usize)| Peak {
            instructions,
            operations,
            run,
        };
        match self {
            Self::Vnni if has!("avx512vnni") => Some(peak(CHAINS, 128, x86::vnni)),
            Self::Bf16 if has!("avx512bf16") => Some(peak(CHAINS, 64, x86::bf16)),
            Self::Fma if has!("avx512f") => Some(peak(CHAINS, 32, x86::fma)),
            Self::AmxInt8 if amx() => Some(peak(4, 2 * 16 * 16 * 64, x86::amx_int8)),
            Self::AmxBf16 if amx() => Some(peak(4, 2 * 16 * 16 * 32, x86::amx_bf16)),
            _ => None,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn peak(self) -> Option<Peak> {
        None
    }
}

/// A loop.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "there is no loop")
)]
struct Peak {
    /// In a round.
    instructions: usize,
    /// Of an instruction.
    operations: usize,
    /// Runs so many rounds. The processor must have the instruction.
    run: unsafe fn(usize),
}

const ROUNDS: usize = 200_000;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sums that do not wait for each other: enough for two instructions a cycle, each ready after 5.
    pub const CHAINS: usize = 20;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn vnni(rounds: usize) {
        let (a, b) = (
            _mm512_set1_epi32(0x0102_0304),
            _mm512_set1_epi32(0x0302_0105),
        );
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16(rounds: usize) {
        // SAFETY: both are 64 bytes of which every pattern is valid.
        let ones: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(0x3f80_3f80)) };
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub fn fma(rounds: usize) {
        let (a, b) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(1.5)));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    /// What LDTILECFG reads: tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Shapes([u8; 64]);

    impl Shapes {
        fn all_whole() -> Self {
            let mut shapes = [0; 64];
            shapes[0] = 1;
            for tile in 0..8 {
                shapes[16 + 2 * tile] = 64;
                shapes[48 + tile] = 16;
            }
            Self(shapes)
        }
    }

    macro_rules! amx {
        ($name:ident, $instruction:literal) => {
            /// # Safety
            /// The processor has AMX, and this process may use it.
            pub unsafe fn $name(rounds: usize) {
                if rounds == 0 {
                    return;
                }
                // SAFETY: the caller's promise; registers that are written are named, and the tiles are
                // given back before the end.
                unsafe {
                    asm!(
                        "ldtilecfg [{shapes}]",
                        "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                        "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                        "2:",
                        concat!($instruction, " tmm0, tmm4, tmm6"),
                        concat!($instruction, " tmm1, tmm4, tmm7"),
                        concat!($instruction, " tmm2, tmm5, tmm6"),
                        concat!($instruction, " tmm3, tmm5, tmm7"),
                        "dec {rounds}",
                        "jnz 2b",
                        "tilerelease",
                        shapes = in(reg) &Shapes::all_whole(),
                        rounds = inout(reg) rounds => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        };
    }

    amx!(amx_int8, "tdpbusd");
    amx!(amx_bf16, "tdpbf16ps");
}
