//! GGUF's blocks against the real gguf package, and the quantizers of super-blocks against plain rounding.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Recorded, random};
use ferrotune_quant::{
    Cpu, GGUF_BLOCK, GgufFormat, Isa, KFormat, KQuant, Matrix, Packed, Q4_0, Q4K, Q6K, Q8_0,
    Quantized, View, With, from_blocks, to_blocks, to_blocks_into,
};
use proptest::prelude::*;
use safetensors::Dtype;

fn golden<F: GgufFormat>(file: &Recorded, method: &str) {
    let names = file.names();
    let cases = names.iter().filter_map(|name| name.strip_suffix("/x"));
    let mut seen = 0;
    for case in cases {
        let key = format!("{case}/{method}");
        if !file.has(&format!("{key}.blocks")) {
            continue;
        }
        let x = format!("{case}/x");
        let shape = file.matrix(&x);
        let expected = file.bytes(&format!("{key}.blocks"));
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa).unwrap();
            let found = if file.dtype(&x) == Dtype::F16 {
                let values = file.f16s(&x);
                let view = View::new(&values, shape[0], shape[1]).unwrap();
                Quantized::new(F::default(), view, &cpu).unwrap()
            } else {
                let values = file.floats(&x);
                let view = View::new(&values, shape[0], shape[1]).unwrap();
                Quantized::new(F::default(), view, &cpu).unwrap()
            };
            // Where 1 ÷ d overflows the peer's codes are casts of no defined value.
            if case != "tiny" {
                assert_eq!(to_blocks(&found).unwrap(), expected, "{key} {isa}");
            }
            assert_eq!(
                found.dequantize(&cpu),
                file.floats(&format!("{key}.dq")),
                "{key} {isa}"
            );
            let read = from_blocks::<F>(shape, &to_blocks(&found).unwrap()).unwrap();
            assert_eq!(read, found);
        }
        seen += 1;
    }
    assert!(seen >= 5, "{method}: {seen}");
}

#[test]
fn blocks_are_those_of_gguf() {
    let file = Recorded::open("gguf.safetensors");
    golden::<Q8_0>(&file, "q8_0");
    golden::<Q4_0>(&file, "q4_0");
}

fn super_blocks<K: KFormat>(file: &Recorded, key: &str) {
    let expected = file.floats(&format!("{key}.dq"));
    let [rows, cols] = file.matrix(&format!("{key}.dq"));
    let bytes = file.bytes(&format!("{key}.blocks"));
    let matrix = KQuant::<K>::from_blocks([rows, cols], &bytes[..]).unwrap();
    let cpu = Cpu::detect();
    let mut found = vec![0.0; rows * cols];
    matrix.dequantize_into(&mut found, &cpu).unwrap();
    assert_eq!(found, expected, "{key}");
    let packed = Packed::new(&matrix, &cpu).unwrap();
    let mut row = vec![0.0; cols];
    for (r, expected) in expected.chunks(cols).enumerate() {
        packed.dequantize_row(r, &mut row);
        assert_eq!(row, expected, "{key} packed");
    }
    let error = KQuant::<K>::from_blocks([rows, cols], &bytes[1..]).unwrap_err();
    assert!(error.to_string().contains("expected"), "{error}");
    assert!(KQuant::<K>::from_blocks([rows, 255], &bytes[..]).is_err());
}

#[test]
fn super_blocks_have_the_values_of_gguf() {
    let file = Recorded::open("gguf.safetensors");
    super_blocks::<Q4K>(&file, "random/q4_k");
    super_blocks::<Q6K>(&file, "random/q6_k");
}

/// Root mean square error over root mean square.
fn relative<K: KFormat>(values: &[f32], cols: usize) -> f64 {
    let cpu = Cpu::detect();
    let rows = values.len() / cols;
    let matrix = KQuant::<K>::new(View::new(values, rows, cols).unwrap(), &cpu).unwrap();
    let mut found = vec![0.0; values.len()];
    matrix.dequantize_into(&mut found, &cpu).unwrap();
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = squares(&mut found.iter().zip(values).map(|(a, b)| f64::from(a - b)));
    (error / squares(&mut values.iter().map(|x| f64::from(*x)))).sqrt()
}

#[test]
fn super_blocks_fit_better_than_plain_rounding() {
    let values = random(64 * 512, 9);
    // ggml's own quantizers (llama-cpp-python 0.3.36) on the very same values: 0.07005 and 0.01727.
    let four = relative::<Q4K>(&values, 512);
    let six = relative::<Q6K>(&values, 512);
    assert!(four < 0.07005, "{four}");
    assert!(six < 0.01727, "{six}");
    // A magnitude changes nothing but the rounding of f16 scales.
    for magnitude in [1e-3_f32, 1e3] {
        let scaled: Vec<f32> = values.iter().map(|x| x * magnitude).collect();
        assert!((relative::<Q4K>(&scaled, 512) - four).abs() < 2e-3);
        assert!((relative::<Q6K>(&scaled, 512) - six).abs() < 2e-3);
    }
    // Groups of nothing, of one value, of one sign.
    let mut odd = vec![0.0; 512];
    odd[32..64].fill(0.75);
    odd[64..96].fill(-0.75);
    odd[100] = 3.0;
    for (i, x) in odd[128..160].iter_mut().enumerate() {
        *x = 5.0 + 0.01 * i as f32;
    }
    let cpu = Cpu::detect();
    let matrix = KQuant::<Q4K>::new(View::new(&odd, 1, 512).unwrap(), &cpu).unwrap();
    let mut found = vec![0.0; 512];
    matrix.dequantize_into(&mut found, &cpu).unwrap();
    for (i, (found, x)) in found.iter().zip(&odd).enumerate() {
        assert!((found - x).abs() <= 0.18, "{i}: {x} became {found}");
    }
    assert!(relative::<Q6K>(&odd, 512) < 0.02);
}

#[test]
fn what_is_not_finite_is_refused() {
    let cpu = Cpu::detect();
    let mut values = random(512, 1);
    values[300] = f32::NAN;
    let error = KQuant::<Q4K>::new(View::new(&values, 2, 256).unwrap(), &cpu).unwrap_err();
    assert!(
        error.to_string().contains("element 300 (row 1, column 44)"),
        "{error}"
    );
    let mut blocks = vec![0; 34];
    blocks[..2].copy_from_slice(&ferrotune_quant::f16::INFINITY.to_le_bytes());
    assert!(
        from_blocks::<Q8_0>([1, 32], &blocks)
            .unwrap_err()
            .to_string()
            .starts_with("scale 0")
    );
    assert!(from_blocks::<Q8_0>([1, 33], &blocks).is_err());
    let mut block = vec![0; 144];
    block[..2].copy_from_slice(&ferrotune_quant::f16::NAN.to_le_bytes());
    block[4] = 1;
    assert!(KQuant::<Q4K>::from_blocks([1, 256], block).is_err());
}

#[test]
fn super_blocks_with_a_scale_that_is_not_finite_are_named() {
    for (bytes, halves) in [(Q4K::BYTES, &[0, 2][..]), (Q6K::BYTES, &[208])] {
        for at in halves {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                // All else is 0, so that no product but 0 · d gives it away.
                let mut blocks = vec![0; 2 * bytes];
                let half = ferrotune_quant::f16::from_f32(bad).to_le_bytes();
                blocks[bytes + at..][..2].copy_from_slice(&half);
                let error = if bytes == Q4K::BYTES {
                    KQuant::<Q4K>::from_blocks([1, 512], blocks).unwrap_err()
                } else {
                    KQuant::<Q6K>::from_blocks([1, 512], blocks).unwrap_err()
                };
                let text = error.to_string();
                assert!(text.starts_with("scale of super-block 1 is "), "{text}");
            }
        }
    }
}

/// Quantizes one block.
fn block<F: GgufFormat>(values: [f32; GGUF_BLOCK]) -> Quantized<'static, F> {
    let view = View::new(&values, 1, GGUF_BLOCK).unwrap();
    Quantized::new(F::default(), view, &Cpu::detect()).unwrap()
}

/// The given values, and zeros.
fn filled<const N: usize>(first: [f32; N]) -> [f32; GGUF_BLOCK] {
    core::array::from_fn(|i| first.get(i).copied().unwrap_or(0.0))
}

#[test]
fn ties_go_where_ggml_sends_them() {
    // d = 1: away from zero, where to even would give 0, 2, 2, 4.
    let q8 = block::<Q8_0>(filled([127.0, 0.5, 1.5, 2.5, 3.5, -0.5, -2.5, -126.5]));
    let codes: Vec<i8> = q8.codes()[..9].iter().map(|c| c.cast_signed()).collect();
    assert_eq!(codes, [127, 1, 2, 3, 4, -1, -3, -127, 0]);
    // d = 1: up, but for what would be 16.
    let q4 = block::<Q4_0>(filled([-8.0, 0.5, -0.5, 1.5, -1.5, 6.5, 7.5, 8.0]));
    let codes: Vec<u8> = (0..9).map(|col| q4.code(0, col)).collect();
    assert_eq!(codes, [0, 9, 8, 10, 7, 15, 15, 15, 8]);
    // Of two values of one magnitude the first has the end that is reached.
    for (values, d) in [([3.0, -3.0], -0.375), ([-3.0, 3.0], 0.375)] {
        let q4 = block::<Q4_0>(filled(values));
        assert_eq!(q4.scales()[0].to_f32(), d);
        assert_eq!([q4.code(0, 0), q4.code(0, 1)], [0, 15]);
    }
}

#[test]
fn a_block_is_laid_out_as_ggml_does() {
    let q4 = block::<Q4_0>(core::array::from_fn(|i| (i % 16) as f32 - 8.0));
    let mut expected = vec![0x00, 0x3c];
    expected.extend((0..16_u8).map(|j| j | j << 4));
    assert_eq!(to_blocks(&q4).unwrap(), expected);
    // Planar: neighbours share a byte.
    assert_eq!(q4.codes()[..2], [0x10, 0x32]);
}

fn small<F: GgufFormat>() {
    for value in [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-30] {
        let quantized = block::<F>([value; GGUF_BLOCK]);
        let cpu = Cpu::detect();
        assert_eq!(quantized.dequantize(&cpu), [0.0; GGUF_BLOCK], "{value}");
        let blocks = to_blocks(&quantized).unwrap();
        assert_eq!(from_blocks::<F>([1, 32], &blocks).unwrap(), quantized);
    }
    // A scale beyond f16 is the largest there is, and a matrix can be read back.
    let large = block::<F>(filled([f32::MAX, -f32::MAX, 1.0]));
    let read = from_blocks::<F>([1, 32], &to_blocks(&large).unwrap()).unwrap();
    assert_eq!(read.scales()[0].to_f32().abs(), 65504.0);
}

fn lengths<F: GgufFormat>() {
    let bytes = 6 * F::BLOCK_BYTES;
    let matrix = from_blocks::<F>([3, 64], &vec![0; bytes]).unwrap();
    for wrong in [0, bytes - 1, bytes + 1] {
        let error = from_blocks::<F>([3, 64], &vec![0; wrong]).unwrap_err();
        let expected = format!("blocks, in bytes: {wrong} elements, expected {bytes}");
        assert_eq!(error.to_string(), expected);
        let error = to_blocks_into(&matrix, &mut vec![0; wrong]).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert!(from_blocks::<F>([6, 31], &vec![0; bytes]).is_err());
    assert!(from_blocks::<F>([usize::MAX, 64], &[]).is_err());
    from_blocks::<F>([0, 64], &[]).unwrap();
    let values = [1.0; 48];
    let view = View::new(&values, 1, 48).unwrap();
    let short = Quantized::new(F::default(), view, &Cpu::detect()).unwrap();
    assert!(to_blocks(&short).unwrap_err().to_string().contains("48"));
}

#[test]
fn zeros_denormals_giants_and_wrong_lengths() {
    small::<Q8_0>();
    small::<Q4_0>();
    lengths::<Q8_0>();
    lengths::<Q4_0>();
}

/// Few enough for an interpreter.
const CASES: u32 = if cfg!(miri) { 3 } else { 200 };

/// Whole rows of `unit` elements, of one magnitude or many, with zeros, ties and repeated ones.
fn rows_of(unit: usize) -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let value = prop_oneof![
        4 => -1.0_f32..1.0,
        2 => (-16_i32..=16).prop_map(|n| n as f32 / 16.0),
        1 => prop_oneof![Just(0.0_f32), Just(-0.0), Just(1.0), Just(-1.0)],
        1 => (-30_i32..0, -1.0_f32..1.0).prop_map(|(e, x)| x * 2_f32.powi(e)),
    ];
    (1_usize..4, 1_usize..4, -20_i32..14).prop_flat_map(move |(rows, units, magnitude)| {
        let cols = units * unit;
        proptest::collection::vec(value.clone(), rows * cols).prop_map(move |mut values| {
            values.iter_mut().for_each(|x| *x *= 2_f32.powi(magnitude));
            (rows, cols, values)
        })
    })
}

/// Half a step of the smallest f16, times the largest code, is what a denormal scale may lose beside the
/// worst case that the format states.
fn round_trip<F: GgufFormat>(largest: f32, rows: usize, cols: usize, values: &[f32]) {
    let cpu = Cpu::detect();
    let view = View::new(values, rows, cols).unwrap();
    let quantized = Quantized::new(F::default(), view, &cpu).unwrap();
    let found = quantized.dequantize(&cpu);
    for (found, values) in found.chunks(GGUF_BLOCK).zip(values.chunks(GGUF_BLOCK)) {
        let amax = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let worst = F::default().worst_error() * amax * (1.0 + 1e-6) + largest * 2_f32.powi(-25);
        for (found, value) in found.iter().zip(values) {
            assert!((found - value).abs() <= worst, "{value} {found} of {amax}");
        }
    }
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa).unwrap();
        let other = Quantized::new(F::default(), view, &cpu).unwrap();
        assert_eq!(other, quantized, "{isa}");
    }
    let blocks = to_blocks(&quantized).unwrap();
    let read = from_blocks::<F>([rows, cols], &blocks).unwrap();
    assert_eq!(read, quantized);
    packs(&quantized, &found);
}

/// Packing keeps every value.
fn packs(matrix: &dyn Matrix, values: &[f32]) {
    let packed = Packed::new(matrix, &Cpu::detect()).unwrap();
    let [_, cols] = matrix.shape();
    let mut row = vec![0.0; cols];
    for (r, values) in values.chunks(cols).enumerate() {
        packed.dequantize_row(r, &mut row);
        assert_eq!(row, values, "packed row {r}");
        matrix.dequantize_row(r, &mut row);
        assert_eq!(row, values, "row {r}");
    }
}

fn any_blocks<K: KFormat>(mut bytes: Vec<u8>) {
    // A finite d and dmin, of either sign.
    for block in bytes.chunks_exact_mut(K::BYTES) {
        for at in K::HALVES {
            block[at + 1] &= 0xbf;
        }
    }
    let count = bytes.len() / K::BYTES;
    let matrix = KQuant::<K>::from_blocks([count, 256], &bytes[..count * K::BYTES]).unwrap();
    let mut found = vec![0.0; count * 256];
    let cpu = Cpu::detect();
    matrix.dequantize_into(&mut found, &cpu).unwrap();
    assert!(found.iter().all(|value| value.is_finite()));
    packs(&matrix, &found);
    assert!(matrix.dequantize_into(&mut found[1..], &cpu).is_err());
}

/// `worst`, over the super-block's largest magnitude, is loose: groups have steps of small integers.
fn super_round_trip<K: KFormat>(worst: f32, rows: usize, cols: usize, values: &[f32]) {
    let view = View::new(values, rows, cols).unwrap();
    let matrix = KQuant::<K>::new(view, &Cpu::detect()).unwrap();
    let backwards = With::new(3, |n, piece: &(dyn Fn(usize) + Sync)| {
        (0..n).rev().for_each(piece)
    });
    let cpu = Cpu::detect().with_threads(&backwards);
    assert_eq!(KQuant::<K>::new(view, &cpu).unwrap(), matrix);
    KQuant::<K>::from_blocks([rows, cols], matrix.blocks()).unwrap();
    let mut found = vec![0.0; values.len()];
    matrix.dequantize_into(&mut found, &cpu).unwrap();
    for (found, values) in found.chunks(256).zip(values.chunks(256)) {
        let amax = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        for (found, value) in found.iter().zip(values) {
            let error = (found - value).abs();
            assert!(error <= worst * amax + 1e-3, "{value} {found} of {amax}");
        }
    }
    packs(&matrix, &found);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn round_trips_stay_within_the_worst_case((rows, cols, values) in rows_of(GGUF_BLOCK)) {
        round_trip::<Q8_0>(127.0, rows, cols, &values);
        round_trip::<Q4_0>(8.0, rows, cols, &values);
    }

    #[test]
    fn super_blocks_are_read_as_they_stand(bytes in proptest::collection::vec(any::<u8>(), 640)) {
        any_blocks::<Q4K>(bytes.clone());
        any_blocks::<Q6K>(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES / 8 + 1,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn super_blocks_are_near_what_they_were_made_of((rows, cols, values) in rows_of(256)) {
        super_round_trip::<Q4K>(0.2, rows, cols, &values);
        super_round_trip::<Q6K>(0.05, rows, cols, &values);
    }

    #[test]
    fn no_finite_values_break_the_quantizers(bits in proptest::collection::vec(any::<u32>(), 256)) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let values: Vec<f32> = values.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
        let (view, cpu) = (View::new(&values, 1, 256).unwrap(), Cpu::detect());
        let four = KQuant::<Q4K>::new(view, &cpu).unwrap();
        KQuant::<Q4K>::from_blocks([1, 256], four.blocks()).unwrap();
        let six = KQuant::<Q6K>::new(view, &cpu).unwrap();
        KQuant::<Q6K>::from_blocks([1, 256], six.blocks()).unwrap();
    }
}
