//! AVX2 with FMA and F16C, and the same with VNNI: a vector is two registers, lanes 0 to 7 and 8 to 15.

use super::{Simd, Work};
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

/// Does the work with AVX2.
///
/// # Safety
/// The processor has what `Isa::Avx2` asks for.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn plain<W: Work>(work: W) -> W::Output {
    work.run(Avx2::<false>(()))
}

/// Does the work with AVX2 and AVX-VNNI.
///
/// # Safety
/// The processor has what `Isa::AvxVnni` asks for.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(crate) unsafe fn vnni<W: Work>(work: W) -> W::Output {
    work.run(Avx2::<true>(()))
}

type I = [__m256i; 2];
type F = [__m256; 2];

/// Bytes as `dot` multiplies them: as stored with VNNI, else their magnitudes and themselves.
#[derive(Clone, Copy)]
pub(crate) struct Weights {
    unsigned: I,
    signed: I,
}

#[inline(always)]
fn both<A: Copy, B>(a: [A; 2], f: impl Fn(A) -> B) -> [B; 2] {
    [f(a[0]), f(a[1])]
}

// SAFETY of every block below: the value `self` proves that the processor has the instructions, and
// pointers are the caller's promise.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, stated above"
)]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const ROWS: usize = 4;
    const TILES: usize = 1;
    const BIASED: bool = VNNI;

    type I = I;
    type F = F;
    type B = I;
    type W = Weights;
    type T = __m256i;
    type L = F;

    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        [unsafe { _mm256_set1_epi32(value) }; 2]
    }

    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn and(self, a: I, mask: i32) -> I {
        both(a, |a| unsafe {
            _mm256_and_si256(a, _mm256_set1_epi32(mask))
        })
    }

    #[inline(always)]
    fn shift_right(self, a: I, bits: u32) -> I {
        let bits = unsafe { _mm_cvtsi32_si128(bits.cast_signed()) };
        both(a, |a| unsafe { _mm256_srl_epi32(a, bits) })
    }

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_i(self, value: I, to: *mut u8) {
        unsafe {
            _mm256_storeu_si256(to.cast(), value[0]);
            _mm256_storeu_si256(to.add(32).cast(), value[1]);
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn to_float(self, a: I) -> F {
        both(a, |a| unsafe { _mm256_cvtepi32_ps(a) })
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, value: F, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn scales_f32(self, from: *const u8) -> F {
        unsafe { self.load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn scales_f16(self, from: *const u8) -> F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales_e8m0(self, from: *const u8) -> F {
        let bytes = unsafe { self.widen(from) };
        both(bytes, |bytes| unsafe {
            // Exponent 0 is 2⁻¹²⁷, a denormal.
            let zero = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
            let denormal = _mm256_and_si256(zero, _mm256_set1_epi32(0x0040_0000));
            _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32::<23>(bytes), denormal))
        })
    }

    #[inline(always)]
    unsafe fn scales_e4m3(self, from: *const u8) -> F {
        let bytes = unsafe { self.widen(from) };
        both(bytes, |bytes| unsafe {
            let magnitude =
                _mm256_slli_epi32::<20>(_mm256_and_si256(bytes, _mm256_set1_epi32(0x7f)));
            // The product with 2¹²⁰ moves the exponent's bias, and normalizes denormals.
            let scaled = _mm256_mul_ps(
                _mm256_castsi256_ps(magnitude),
                _mm256_castsi256_ps(_mm256_set1_epi32((120 + 127) << 23)),
            );
            let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(bytes, _mm256_set1_epi32(0x80)));
            _mm256_or_ps(scaled, _mm256_castsi256_ps(sign))
        })
    }

    #[inline(always)]
    unsafe fn load_b(self, from: *const u8) -> I {
        unsafe { self.load_i(from) }
    }

    #[inline(always)]
    unsafe fn store_b(self, value: I, to: *mut u8) {
        unsafe { self.store_i(value, to) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> __m256i {
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibbles(self, a: I, table: __m256i) -> (I, I) {
        let mask = unsafe { _mm256_set1_epi8(15) };
        (
            both(a, |a| unsafe {
                _mm256_shuffle_epi8(table, _mm256_and_si256(a, mask))
            }),
            both(a, |a| unsafe {
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(a), mask);
                _mm256_shuffle_epi8(table, high)
            }),
        )
    }

    #[inline(always)]
    fn weights(self, a: I) -> Weights {
        if VNNI {
            return Weights {
                unsigned: a,
                signed: a,
            };
        }
        let signed = both(a, |a| unsafe {
            _mm256_xor_si256(a, _mm256_set1_epi8(-128))
        });
        Weights {
            unsigned: both(signed, |a| unsafe { _mm256_abs_epi8(a) }),
            signed,
        }
    }

    #[inline(always)]
    unsafe fn dot(self, acc: I, w: Weights, a: *const i8) -> I {
        let a = unsafe { _mm256_set1_epi32(a.cast::<i32>().read_unaligned()) };
        let half = |i: usize| unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(acc[i], w.unsigned[i], a);
            }
            // |w| · (a with w's sign): at most 128 · 127 · 2 in a sum of two, which 16 bits hold.
            let a = _mm256_sign_epi8(a, w.signed[i]);
            let pairs = _mm256_maddubs_epi16(w.unsigned[i], a);
            _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        };
        [half(0), half(1)]
    }

    #[inline(always)]
    fn levels(self, table: &[f32; 16]) -> F {
        unsafe { self.load(table.as_ptr()) }
    }

    #[inline(always)]
    fn lookup(self, table: F, at: I) -> F {
        both(at, |at| unsafe {
            let low = _mm256_permutevar8x32_ps(table[0], at);
            let high = _mm256_permutevar8x32_ps(table[1], at);
            // Bit 3 becomes the sign, which chooses.
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at)))
        })
    }

    #[inline(always)]
    fn lookup_byte(self, table: &[f32; 256], at: I) -> F {
        both(at, |at| unsafe {
            let at = _mm256_and_si256(at, _mm256_set1_epi32(255));
            _mm256_i32gather_ps::<4>(table.as_ptr(), at)
        })
    }

    #[inline(always)]
    fn pair_bf16(self, first: F, second: F) -> I {
        let round = |value: __m256| unsafe {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)))
        };
        let half = |i: usize| unsafe {
            let low = _mm256_srli_epi32::<16>(round(first[i]));
            _mm256_blend_epi16::<0b1010_1010>(low, round(second[i]))
        };
        [half(0), half(1)]
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, acc: F, w: I, a: *const u8) -> F {
        let pair = unsafe { a.cast::<u32>().read_unaligned() };
        let half = |i: usize| unsafe {
            let low = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[i]));
            let high = _mm256_castsi256_ps(_mm256_blend_epi16::<0b0101_0101>(
                w[i],
                _mm256_setzero_si256(),
            ));
            let acc = _mm256_fmadd_ps(low, _mm256_set1_ps(f32::from_bits(pair << 16)), acc[i]);
            _mm256_fmadd_ps(
                high,
                _mm256_set1_ps(f32::from_bits(pair & 0xffff_0000)),
                acc,
            )
        };
        [half(0), half(1)]
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    /// 16 bytes as 16 × i32.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn widen(self, from: *const u8) -> I {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            [
                _mm256_cvtepu8_epi32(bytes),
                _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)),
            ]
        }
    }
}
