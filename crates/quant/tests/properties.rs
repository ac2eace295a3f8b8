//! What holds for every format and every input: round trips within the stated worst case, the same bits
//! on every instruction set, for any number of threads, from any alignment, for any tail.
#![allow(clippy::unwrap_used)]

mod common;

use ferrotune_quant::{
    Activations, Cpu, Dynamic8, DynamicMap, Element, Error, Extent, Format, Fp4, Grouping, Int8,
    Int8Asymmetric, Isa, LlmInt8, Matrix, Mode, MxFp4, MxFp8E4m3, MxFp8E5m2, Nf4, NonFinite, NvFp4,
    Packed, Quantized, ScaleRounding, Scratch, View, With, bf16, f16, quantize_into, sizes,
};
use proptest::prelude::*;

/// Few enough for an interpreter.
const CASES: u32 = if cfg!(miri) { 3 } else { 200 };

/// Calls a generic function with each format.
macro_rules! formats {
    ($call:ident($($argument:expr),*)) => {{
        $call(Int8(Grouping::Tensor), $($argument),*);
        $call(Int8(Grouping::Row), $($argument),*);
        $call(Int8(Grouping::Block(32)), $($argument),*);
        $call(Int8(Grouping::Block(7)), $($argument),*);
        $call(Int8Asymmetric(Grouping::Tensor), $($argument),*);
        $call(Int8Asymmetric(Grouping::Row), $($argument),*);
        $call(Int8Asymmetric(Grouping::Block(24)), $($argument),*);
        $call(LlmInt8, $($argument),*);
        $call(Nf4::new(64).unwrap(), $($argument),*);
        $call(Fp4::new(32).unwrap(), $($argument),*);
        $call(Dynamic8::new(DynamicMap::Signed, 64).unwrap(), $($argument),*);
        $call(MxFp4(ScaleRounding::Floor), $($argument),*);
        $call(MxFp4(ScaleRounding::Rceil), $($argument),*);
        $call(MxFp8E4m3(ScaleRounding::Floor), $($argument),*);
        $call(MxFp8E4m3(ScaleRounding::Rceil), $($argument),*);
        $call(MxFp8E5m2(ScaleRounding::Floor), $($argument),*);
        $call(MxFp8E5m2(ScaleRounding::Rceil), $($argument),*);
    }};
}

/// Values of one magnitude or many, with zeros and repeated ones among them.
fn values(n: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        4 => -1.0_f32..1.0,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => Just(1.0),
        1 => Just(-1.0),
        1 => (-30_i32..30, -1.0_f32..1.0).prop_map(|(e, x)| x * 2_f32.powi(e)),
    ];
    proptest::collection::vec(value, n)
}

/// A shape and its values; rows of nibbles have even lengths.
fn matrices() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let most: usize = if cfg!(miri) { 40 } else { 150 };
    (1_usize..6, 1..most / 2).prop_flat_map(|(rows, half)| {
        let cols = if rows == 1 { 2 * half - 1 } else { 2 * half };
        values(rows * cols).prop_map(move |values| (rows, cols, values))
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn round_trips_stay_within_the_worst_case((rows, cols, values) in matrices()) {
        formats!(round_trip(rows, cols, &values));
        round_trip(NvFp4, rows, cols, &values);
    }

    #[test]
    fn instructions_threads_and_strides_change_no_bit((rows, cols, values) in matrices()) {
        formats!(same_bits(rows, cols, &values));
        same_bits(NvFp4, rows, cols, &values);
    }

    #[test]
    fn packing_loses_nothing((rows, cols, values) in matrices()) {
        packs(Int8(Grouping::Row), rows, cols, &values);
        packs(Int8(Grouping::Block(32)), rows, cols, &values);
        packs(Int8Asymmetric(Grouping::Block(24)), rows, cols, &values);
        packs(MxFp4(ScaleRounding::Floor), rows, cols, &values);
        packs(MxFp8E4m3(ScaleRounding::Rceil), rows, cols, &values);
        packs(NvFp4, rows, cols, &values);
    }
}

fn round_trip<F: Format>(format: F, rows: usize, cols: usize, values: &[f32]) {
    let cpu = Cpu::detect();
    let view = View::new(values, rows, cols).unwrap();
    let quantized = Quantized::new(format.clone(), view, &cpu).unwrap();
    let found = quantized.dequantize(&cpu);
    let grouping = format.grouping();
    let whole = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    for group in 0..grouping.count(rows, cols) {
        let range = grouping.range(group, rows, cols);
        let amax = values[range.clone()]
            .iter()
            .fold(0.0_f32, |a, b| a.max(b.abs()));
        // NVFP4's scales have a smallest, of which a half may be lost.
        let floor = if F::NAME == "nvfp4" {
            whole / 2688.0 * 2_f32.powi(-6) * 6.0
        } else {
            0.0
        };
        let bound = f64::from(format.worst_error()) * f64::from(amax.max(floor));
        for i in range {
            let error = (f64::from(found[i]) - f64::from(values[i])).abs();
            // The last bits of a scale and of its reciprocal.
            let slack = 4e-7 * f64::from(amax) + 1e-37;
            assert!(
                error <= bound + slack,
                "{format:?} {i}: {} became {}, amax {amax}",
                values[i],
                found[i]
            );
        }
    }
}

fn same_bits<F: Format>(format: F, rows: usize, cols: usize, values: &[f32]) {
    let scalar = Cpu::with_isa(Isa::Scalar).unwrap();
    let view = View::new(values, rows, cols).unwrap();
    let expected = Quantized::new(format.clone(), view, &scalar).unwrap();
    let value = expected.dequantize(&scalar);
    let backwards = With::new(3, |n, piece: &(dyn Fn(usize) + Sync)| {
        (0..n).rev().for_each(piece)
    });
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa).unwrap().with_threads(&backwards);
        let found = Quantized::new(format.clone(), view, &cpu).unwrap();
        assert_eq!(found, expected, "{isa}");
        assert_eq!(found.dequantize(&cpu), value, "{isa}");
    }
    // Rows that lie apart, from an odd address.
    if matches!(format.grouping(), Grouping::Flat(_)) && rows > 1 {
        return;
    }
    let stride = cols + 3;
    let mut apart = vec![f32::NAN; 1 + rows * stride];
    for row in 0..rows {
        apart[1 + row * stride..][..cols].copy_from_slice(&values[row * cols..][..cols]);
    }
    let view = View::with_stride(&apart[1..], rows, cols, stride).unwrap();
    assert_eq!(
        Quantized::new(format, view, &Cpu::detect()).unwrap(),
        expected
    );
}

fn packs<F: Format>(format: F, rows: usize, cols: usize, values: &[f32]) {
    let cpu = Cpu::detect();
    let view = View::new(values, rows, cols).unwrap();
    let quantized = Quantized::new(format, view, &cpu).unwrap();
    let packed = Packed::new(&quantized, &cpu).unwrap();
    // From bytes at an odd address, as a file may have them.
    let odd = |bytes: &[u8]| [&[0], bytes].concat();
    let (codes, scales, shifts) = (
        odd(packed.codes()),
        odd(packed.scales()),
        odd(packed.shifts()),
    );
    let structure = packed.structure().clone();
    let mapped = Packed::from_parts(
        [rows, cols],
        structure,
        &codes[1..],
        &scales[1..],
        &shifts[1..],
    )
    .unwrap();
    assert_eq!(mapped, packed);
    let mut codes = vec![0; cols];
    let mut scales = vec![0.0; cols.div_ceil(packed.structure().group)];
    let mut shifts = scales.clone();
    for row in 0..rows {
        mapped.unpack_row(row, &mut codes, &mut scales, &mut shifts);
        for (col, code) in codes.iter().enumerate() {
            assert_eq!(*code, quantized.code(row, col));
        }
    }
    // And multiplied, since a tail is where a kernel reads too far.
    let x: Vec<f32> = (0..3 * cols).map(|i| (i as f32).sin()).collect();
    for mode in [Mode::F32, Mode::Bf16, Mode::Int8PerRow, Mode::Int8PerGroup] {
        let Ok(mut activations) = Activations::new(&mapped, mode) else {
            continue;
        };
        for m in [1, 3] {
            activations
                .set(View::new(&x[..m * cols], m, cols).unwrap(), &cpu)
                .unwrap();
            let (mut a, mut b) = (vec![0.0; m * rows], vec![0.0; m * rows]);
            mapped
                .gemm(&activations, &mut a, &mut Scratch::new(), &cpu)
                .unwrap();
            packed
                .gemm(&activations, &mut b, &mut Scratch::new(), &cpu)
                .unwrap();
            assert_eq!(a, b);
        }
    }
}

#[test]
fn values_that_are_not_finite_are_refused_by_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        formats!(refuses(bad));
        refuses(NvFp4, bad);
    }
}

fn refuses<F: Format>(format: F, bad: f32) {
    let mut values = common::random(4 * 70, 1);
    (values[75], values[200]) = (bad, f32::NAN);
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa).unwrap();
        let view = View::new(&values, 4, 70).unwrap();
        let error = Quantized::new(format.clone(), view, &cpu).unwrap_err();
        let Error::NonFinite {
            index, row, col, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((index, row, col), (75, 1, 5), "{isa} {}", F::NAME);
    }
}

#[test]
fn values_that_are_not_finite_can_be_replaced() {
    formats!(replaces());
    replaces(NvFp4);
}

fn replaces<F: Format>(format: F) {
    let cpu = Cpu::detect();
    let mut bad = common::random(64, 1);
    let mut good = bad.clone();
    let largest = bad.iter().enumerate().filter(|(i, _)| ![3, 40].contains(i));
    let largest = largest.fold(0.0_f32, |a, (_, b)| a.max(b.abs()));
    // One row of 64 in one group, or in groups in which the largest value is the same.
    for start in (0..64).step_by(format.grouping().size().unwrap_or(64)) {
        (bad[start], good[start]) = (largest, largest);
        if start + 1 < 64 {
            (bad[start + 1], good[start + 1]) = (-largest, -largest);
        }
    }
    (bad[3], good[3]) = (f32::NAN, 0.0);
    (bad[40], good[40]) = (f32::NEG_INFINITY, -largest);
    let quantize = |values: &[f32], policy| {
        Quantized::with(
            format.clone(),
            View::new(values, 1, 64).unwrap(),
            policy,
            &cpu,
        )
        .unwrap()
    };
    assert_eq!(
        quantize(&bad, NonFinite::Replace),
        quantize(&good, NonFinite::Refuse),
        "{}",
        F::NAME
    );
}

#[test]
fn the_smallest_and_the_largest_values_survive() {
    formats!(extremes());
    extremes(NvFp4);
}

fn extremes<F: Format>(format: F) {
    let cpu = Cpu::detect();
    for value in [
        f32::MIN_POSITIVE / 8.0,
        f32::MIN_POSITIVE,
        1e-30,
        1e30,
        f32::MAX / 256.0,
    ] {
        let values: Vec<f32> = (0..64)
            .map(|i| value * [1.0, -1.0, 0.5, 0.0][i % 4])
            .collect();
        let view = View::new(&values, 1, 64).unwrap();
        let quantized = Quantized::new(format.clone(), view, &cpu).unwrap();
        for (found, value) in quantized.dequantize(&cpu).iter().zip(&values) {
            assert!(found.is_finite(), "{}: {value} became {found}", F::NAME);
            if value.abs() >= 1e-30 && value.abs() <= 1e30 {
                let error = (found - value).abs();
                assert!(
                    error <= 0.26 * value.abs(),
                    "{}: {value} became {found}",
                    F::NAME
                );
            }
        }
    }
    // Blocks of zeros among others, and nothing at all.
    let zeros = vec![0.0; 128];
    let quantized =
        Quantized::new(format.clone(), View::new(&zeros, 2, 64).unwrap(), &cpu).unwrap();
    assert!(
        quantized.dequantize(&cpu).iter().all(|x| *x == 0.0),
        "{}",
        F::NAME
    );
    for (rows, cols) in [(0, 64), (3, 0)] {
        let view = View::<f32>::new(&[], rows, cols).unwrap();
        let nothing = Quantized::new(format.clone(), view, &cpu).unwrap();
        assert!(nothing.dequantize(&cpu).is_empty());
        if let Ok(packed) = Packed::new(&nothing, &cpu) {
            let mut activations = Activations::new(&packed, Mode::F32).unwrap();
            activations
                .set(View::<f32>::new(&vec![0.0; cols], 1, cols).unwrap(), &cpu)
                .unwrap();
            let mut y = vec![1.0; rows];
            packed
                .gemm(&activations, &mut y, &mut Scratch::new(), &cpu)
                .unwrap();
            assert!(y.iter().all(|y| *y == 0.0));
        }
    }
}

#[test]
fn sixteen_bits_are_quantized_as_the_same_values_in_32() {
    formats!(sixteen());
    sixteen(NvFp4);
}

fn sixteen<F: Format>(format: F) {
    let values = common::random(6 * 96, 5);
    fn of<F: Format, T: Element>(format: &F, values: &[f32]) {
        let cpu = Cpu::detect();
        let narrow: Vec<T> = values.iter().map(|x| T::from_f32(*x)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        let narrow = Quantized::new(format.clone(), View::new(&narrow, 6, 96).unwrap(), &cpu);
        let wide = Quantized::new(format.clone(), View::new(&wide, 6, 96).unwrap(), &cpu);
        assert_eq!(narrow.unwrap(), wide.unwrap(), "{} {}", F::NAME, T::DTYPE);
    }
    of::<F, f16>(&format, &values);
    of::<F, bf16>(&format, &values);
}

#[test]
fn lengths_and_blocks_that_do_not_fit_are_refused() {
    let cpu = Cpu::detect();
    let values = common::random(128, 1);
    let view = View::new(&values, 2, 64).unwrap();
    let nf4 = Nf4::new(64).unwrap();
    let [codes, scales] = sizes(&nf4, 2, 64).unwrap();
    assert_eq!([codes, scales], [64, 2]);
    let mut room = (vec![0; codes - 1], vec![0.0; scales]);
    let refused = NonFinite::Refuse;
    let error = quantize_into(&nf4, view, &mut room.0, &mut room.1, refused, &cpu).unwrap_err();
    assert_eq!(error.to_string(), "codes: 63 elements, expected 64");
    for size in [0, 16, 48, 8192] {
        let error = Nf4::new(size).unwrap_err();
        assert!(error.to_string().contains(&size.to_string()), "{error}");
    }
    assert!(View::new(&values, 3, 64).is_err());
    assert!(View::<f32>::new(&[], usize::MAX, 2).is_err());
    assert!(View::with_stride(&values, 2, 64, 63).is_err());
    assert!(View::with_stride(&values, 2, 64, 65).is_err());
    let odd = View::new(&values[..126], 42, 3).unwrap();
    assert!(Quantized::new(MxFp4::default(), odd, &cpu).is_err());
    let error = Quantized::from_parts(nf4, [2, 64], (), vec![0; 64], vec![1.0, f32::NAN]);
    assert!(error.unwrap_err().to_string().starts_with("scale 1 is NaN"));
    let apart = View::with_stride(&values, 2, 40, 64).unwrap();
    assert!(
        Quantized::new(nf4, apart, &cpu)
            .unwrap_err()
            .to_string()
            .contains("across rows")
    );
    assert!(Quantized::new(Int8(Grouping::Block(0)), view, &cpu).is_err());
    let nothing = nf4.fit(&(), Extent::NOTHING);
    assert_eq!(nothing.0, 0.0);
}
