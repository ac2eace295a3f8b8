//! AVX-512 with VNNI: a vector is one register. With BF16 the processor multiplies pairs of bf16.

use super::{Simd, Work};
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const AMX: bool>(());

/// Does the work with AVX-512 VNNI.
///
/// # Safety
/// The processor has what `Isa::Avx512Vnni` asks for.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn vnni<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<false, false>(()))
}

/// Does the work with AVX-512 VNNI and BF16.
///
/// # Safety
/// The processor has what `Isa::Avx512Bf16` asks for.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(crate) unsafe fn bf16<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<true, false>(()))
}

/// Does the work with AVX-512 VNNI and BF16, and AMX where a kernel has use for it.
///
/// # Safety
/// The processor has what `Isa::Amx` asks for.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(crate) unsafe fn amx<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<true, true>(()))
}

// SAFETY of every block below: the value `self` proves that the processor has the instructions, and
// pointers are the caller's promise.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, stated above"
)]
impl<const BF16: bool, const AMX: bool> Simd for Avx512<BF16, AMX> {
    const ROWS: usize = 12;
    const TILES: usize = 2;
    const BIASED: bool = true;
    const AMX: bool = AMX;

    type I = __m512i;
    type F = __m512;
    type B = __m512i;
    type W = __m512i;
    type T = __m512i;
    type L = __m512;

    #[inline(always)]
    fn splat_i(self, value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, mask: i32) -> __m512i {
        unsafe { _mm512_and_si512(a, _mm512_set1_epi32(mask)) }
    }

    #[inline(always)]
    fn shift_right(self, a: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i(self, value: __m512i, to: *mut u8) {
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, value: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn scales_f32(self, from: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn scales_f16(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn scales_e8m0(self, from: *const u8) -> __m512 {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let bits = _mm512_slli_epi32::<23>(bytes);
            // Exponent 0 is 2⁻¹²⁷, a denormal.
            let zero = _mm512_testn_epi32_mask(bytes, bytes);
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(
                bits,
                zero,
                _mm512_set1_epi32(0x0040_0000),
            ))
        }
    }

    #[inline(always)]
    unsafe fn scales_e4m3(self, from: *const u8) -> __m512 {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let magnitude =
                _mm512_slli_epi32::<20>(_mm512_and_si512(bytes, _mm512_set1_epi32(0x7f)));
            // The product with 2¹²⁰ moves the exponent's bias, and normalizes denormals.
            let scaled = _mm512_mul_ps(
                _mm512_castsi512_ps(magnitude),
                _mm512_castsi512_ps(_mm512_set1_epi32((120 + 127) << 23)),
            );
            let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(bytes, _mm512_set1_epi32(0x80)));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(scaled), sign))
        }
    }

    #[inline(always)]
    unsafe fn load_b(self, from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_b(self, value: __m512i, to: *mut u8) {
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> __m512i {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibbles(self, a: __m512i, table: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let low = _mm512_and_si512(a, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(a), mask);
            (
                _mm512_shuffle_epi8(table, low),
                _mm512_shuffle_epi8(table, high),
            )
        }
    }

    #[inline(always)]
    fn weights(self, a: __m512i) -> __m512i {
        a
    }

    #[inline(always)]
    unsafe fn dot(self, acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    fn levels(self, table: &[f32; 16]) -> __m512 {
        unsafe { _mm512_loadu_ps(table.as_ptr()) }
    }

    #[inline(always)]
    fn lookup(self, table: __m512, at: __m512i) -> __m512 {
        unsafe { _mm512_permutexvar_ps(at, table) }
    }

    #[inline(always)]
    fn lookup_byte(self, table: &[f32; 256], at: __m512i) -> __m512 {
        unsafe {
            let at = _mm512_and_si512(at, _mm512_set1_epi32(255));
            _mm512_i32gather_ps::<4>(at, table.as_ptr())
        }
    }

    #[inline(always)]
    fn pair_bf16(self, first: __m512, second: __m512) -> __m512i {
        unsafe {
            if BF16 {
                // Denormals become zero here.
                let first = _mm512_cvtepu16_epi32(core::mem::transmute::<__m256bh, __m256i>(
                    _mm512_cvtneps_pbh(first),
                ));
                let second = _mm512_cvtepu16_epi32(core::mem::transmute::<__m256bh, __m256i>(
                    _mm512_cvtneps_pbh(second),
                ));
                return _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
            }
            let round = |value: __m512| {
                let bits = _mm512_castps_si512(value);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
            };
            let low = _mm512_srli_epi32::<16>(round(first));
            let high = _mm512_and_si512(
                round(second),
                _mm512_set1_epi32(0xffff_0000_u32.cast_signed()),
            );
            _mm512_or_si512(low, high)
        }
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, acc: __m512, w: __m512i, a: *const u8) -> __m512 {
        unsafe {
            let pair = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
            if BF16 {
                let w = core::mem::transmute::<__m512i, __m512bh>(w);
                return _mm512_dpbf16_ps(acc, core::mem::transmute::<__m512i, __m512bh>(pair), w);
            }
            let low = |pair: __m512i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
            let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let high = |pair: __m512i| _mm512_castsi512_ps(_mm512_and_si512(pair, mask));
            let acc = _mm512_fmadd_ps(low(w), low(pair), acc);
            _mm512_fmadd_ps(high(w), high(pair), acc)
        }
    }
}
