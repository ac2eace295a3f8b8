//! The few vector operations that the kernels are written in, once for each instruction set.
//!
//! A vector has 16 lanes, one for each row of a tile. Kernels are generic over [`Simd`] and always
//! inlined into [`run`]'s entry of an instruction set, so that the compiler sees the intrinsics of that
//! set and nothing else.

#![allow(
    clippy::missing_safety_doc,
    reason = "the contract is the trait's, see `Simd`"
)]

use crate::cpu::Isa;

#[cfg(target_arch = "x86_64")]
#[cfg_attr(
    miri,
    allow(dead_code, reason = "an interpreter has no tile registers")
)]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

/// Rows of a tile, lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A vector of an instruction set.
///
/// # Safety
/// A value of an implementing type exists only where the processor has its instructions: only [`run`]
/// makes one. Pointers must be valid for what an operation reads or writes; none need be aligned.
pub(crate) trait Simd: Copy {
    /// Rows of activations that a GEMM kernel multiplies at a time, and tiles. 12 is a multiple of it.
    const ROWS: usize;
    /// Tiles side by side in a GEMM kernel.
    const TILES: usize;
    /// Whether [`Simd::dot`] takes weights as they are stored, 128 too large.
    const BIASED: bool;
    /// Whether there are tile registers beside the vectors.
    #[cfg(target_arch = "x86_64")]
    const AMX: bool = false;

    /// 16 × i32
    type I: Copy;
    /// 16 × f32
    type F: Copy;
    /// 64 bytes: four of each lane
    type B: Copy;
    /// [`Simd::B`] as [`Simd::dot`] wants it
    type W: Copy;
    /// 16 bytes to look nibbles up in
    type T: Copy;
    /// 16 floats to look nibbles up in
    type L: Copy;

    fn splat_i(self, value: i32) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and(self, a: Self::I, mask: i32) -> Self::I;
    fn shift_right(self, a: Self::I, bits: u32) -> Self::I;
    unsafe fn load_i(self, from: *const u8) -> Self::I;
    unsafe fn store_i(self, value: Self::I, to: *mut u8);

    fn splat(self, value: f32) -> Self::F;
    fn to_float(self, a: Self::I) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn load(self, from: *const f32) -> Self::F;
    unsafe fn store(self, value: Self::F, to: *mut f32);

    /// Asks for a cache line, as far as the second level: the first has too few requests under way to
    /// keep memory busy.
    fn prefetch(self, at: *const u8);

    /// Of 16 × f32, f16, E8M0, E4M3 in memory.
    unsafe fn scales_f32(self, from: *const u8) -> Self::F;
    unsafe fn scales_f16(self, from: *const u8) -> Self::F;
    unsafe fn scales_e8m0(self, from: *const u8) -> Self::F;
    unsafe fn scales_e4m3(self, from: *const u8) -> Self::F;

    unsafe fn load_b(self, from: *const u8) -> Self::B;
    unsafe fn store_b(self, value: Self::B, to: *mut u8);
    fn table(self, table: &[u8; 16]) -> Self::T;
    /// What the low nibbles of all bytes stand for, and the high ones.
    fn nibbles(self, a: Self::B, table: Self::T) -> (Self::B, Self::B);
    fn weights(self, a: Self::B) -> Self::W;
    /// `acc + Σ w · a` over each lane's four bytes and the four i8 at `a`, which are at least −127.
    unsafe fn dot(self, acc: Self::I, w: Self::W, a: *const i8) -> Self::I;

    fn levels(self, table: &[f32; 16]) -> Self::L;
    /// Entries of a table of 16; the lanes are below 16.
    fn lookup(self, table: Self::L, at: Self::I) -> Self::F;
    /// Entries of a table of 256; the lanes are below 256.
    fn lookup_byte(self, table: &[f32; 256], at: Self::I) -> Self::F;

    /// Each lane's two values rounded to bf16, the first in the low half.
    fn pair_bf16(self, first: Self::F, second: Self::F) -> Self::I;
    /// `acc + w₀ · a₀ + w₁ · a₁` of bf16 pairs.
    unsafe fn dot_bf16(self, acc: Self::F, w: Self::I, a: *const u8) -> Self::F;
}

/// Work that can be done in any instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Work {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Does the work in an instruction set that [`has`] said is there; a [`crate::Cpu`] holds no other.
#[inline]
pub(crate) fn run<W: Work>(isa: Isa, work: W) -> W::Output {
    debug_assert!(has(isa));
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::Avx2 => unsafe { avx2::plain(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::AvxVnni => unsafe { avx2::vnni(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::Avx512Vnni => unsafe { avx512::vnni(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::Avx512Bf16 => unsafe { avx512::bf16(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::Amx => unsafe { avx512::amx(work) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::Neon => unsafe { neon::plain(work) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Cpu` is made after `has(isa)`.
        Isa::NeonDotprod => unsafe { neon::dotprod(work) },
        _ => work.run(scalar::Scalar),
    }
}

/// How many bytes ahead a kernel that streams through memory should ask for more: Intel's processors
/// gain a quarter by 4 KiB, since their own prefetching ends with each page; AMD's lose by it, and ask for
/// what they are about to read.
pub(crate) fn bytes_ahead() -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::sync::atomic::{AtomicUsize, Ordering};
        // CPUID is a trap to the hypervisor on virtual machines: ask once.
        static AHEAD: AtomicUsize = AtomicUsize::new(usize::MAX);
        let known = AHEAD.load(Ordering::Relaxed);
        if known != usize::MAX {
            return known;
        }
        let vendor = core::arch::x86_64::__cpuid(0);
        let intel = vendor.ebx == u32::from_le_bytes(*b"Genu");
        let ahead = if intel { 4096 } else { 0 };
        AHEAD.store(ahead, Ordering::Relaxed);
        ahead
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    0
}

/// Whether this processor has an instruction set, or without `std`, whether the build asks for it.
pub(crate) fn has(isa: Isa) -> bool {
    #[cfg(all(target_arch = "x86_64", feature = "std", not(miri)))]
    macro_rules! all {
        ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    #[cfg(all(target_arch = "x86_64", not(feature = "std"), not(miri)))]
    macro_rules! all {
        ($($feature:tt),*) => { $(cfg!(target_feature = $feature))&&* };
    }
    match isa {
        Isa::Scalar => true,
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        Isa::Avx2 => all!("avx2", "fma", "f16c"),
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        Isa::AvxVnni => all!("avx2", "fma", "f16c", "avxvnni"),
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        Isa::Avx512Vnni => all!(
            "avx2",
            "fma",
            "f16c",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512vnni"
        ),
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        Isa::Avx512Bf16 => has(Isa::Avx512Vnni) && all!("avx512bf16"),
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        Isa::Amx => has(Isa::Avx512Bf16) && amx::allowed(),
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        Isa::Neon => true,
        #[cfg(all(target_arch = "aarch64", feature = "std", not(miri)))]
        Isa::NeonDotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
        #[cfg(all(target_arch = "aarch64", not(feature = "std"), not(miri)))]
        Isa::NeonDotprod => cfg!(target_feature = "dotprod"),
        _ => false,
    }
}
