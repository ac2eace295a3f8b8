//! Every instruction set that this machine has, against the scalar specification and against f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::random;
use ferrotune_quant::{
    Activations, Cpu, Format, Fp4, Grouping, Int4, Int8, Int8Asymmetric, Isa, Matrix, Mode, MxFp4,
    MxFp8E4m3, MxFp8E5m2, Nf4, NvFp4, Packed, Quantized, ScaleRounding, Scratch, View,
};

fn packed<F: Format>(format: F, rows: usize, cols: usize) -> (Vec<f32>, Packed<'static>) {
    let weights = random(rows * cols, (rows * cols) as u64);
    let cpu = Cpu::detect();
    let quantized = Quantized::new(format, View::new(&weights, rows, cols).unwrap(), &cpu).unwrap();
    let packed = Packed::new(&quantized, &cpu).unwrap();
    let mut row = vec![0.0; cols];
    let mut values = Vec::new();
    for r in 0..rows {
        Matrix::dequantize_row(&quantized, r, &mut row);
        values.extend_from_slice(&row);
        // The same values, but for the rounding of a product and a sum.
        let mut again = vec![0.0; cols];
        packed.dequantize_row(r, &mut again);
        for (a, b) in again.iter().zip(&row) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
        }
    }
    (values, packed)
}

fn product(packed: &Packed, x: &[f32], m: usize, mode: Mode, cpu: &Cpu) -> Vec<f32> {
    let [rows, cols] = packed.shape();
    let mut activations = Activations::new(packed, mode).unwrap();
    activations
        .set(View::new(x, m, cols).unwrap(), cpu)
        .unwrap();
    let mut y = vec![f32::NAN; m * rows];
    packed
        .gemm(&activations, &mut y, &mut Scratch::new(), cpu)
        .unwrap();
    y
}

fn check<F: Format>(format: F, rows: usize, cols: usize, relative: f64, int8: bool) {
    let (weights, packed) = packed(format, rows, cols);
    let modes = [
        // Longer sums round more often.
        (Mode::F32, 1e-6 * (cols as f64 / 1088.0).sqrt().max(1.0)),
        (Mode::Bf16, 6e-3),
        (Mode::Int8PerRow, relative),
        (Mode::Int8PerGroup, relative),
    ];
    for m in [1, 2, 3, 5, 8, 13, 25, 40] {
        let x = random(m * cols, 7 + m as u64);
        for (mode, relative) in modes.iter().take(if int8 { 4 } else { 2 }) {
            let expected = product(&packed, &x, m, *mode, &Cpu::with_isa(Isa::Scalar).unwrap());
            for row in 0..m {
                for out in 0..rows {
                    let terms = (0..cols)
                        .map(|k| f64::from(x[row * cols + k]) * f64::from(weights[out * cols + k]));
                    let exact: f64 = terms.clone().sum();
                    let norm = terms.map(|term| term * term).sum::<f64>().sqrt();
                    let found = f64::from(expected[row * rows + out]);
                    assert!(
                        (found - exact).abs() <= relative * 6.0 * norm + 1e-12,
                        "{} {mode:?} m {m}, row {row}, out {out}: {found} {exact} norm {norm}",
                        F::NAME
                    );
                }
            }
            for isa in Isa::available() {
                let found = product(&packed, &x, m, *mode, &Cpu::with_isa(isa).unwrap());
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    if matches!(mode, Mode::Int8PerRow | Mode::Int8PerGroup) {
                        assert_eq!(
                            found.to_bits(),
                            expected.to_bits(),
                            "{isa} {} {mode:?} {m} {i}",
                            F::NAME
                        );
                    } else {
                        let norm = (cols as f32).sqrt();
                        let error = (found - expected).abs();
                        assert!(
                            error <= 2e-5 * norm,
                            "{isa} {} {mode:?} m {m} {i}: {found} {expected}",
                            F::NAME
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_specification() {
    for (rows, cols) in [(1, 64), (16, 64), (37, 192), (33, 1088)] {
        check(Int8(Grouping::Row), rows, cols, 0.01, true);
        check(Int8(Grouping::Tensor), rows, cols, 0.01, true);
        check(Int8(Grouping::Block(32)), rows, cols, 0.01, true);
        check(Int8Asymmetric(Grouping::Block(64)), rows, cols, 0.02, true);
        check(Nf4::new(64).unwrap(), rows, cols, 0.02, true);
        check(Fp4::new(64).unwrap(), rows, cols, 0.02, true);
        check(MxFp4(ScaleRounding::Floor), rows, cols, 0.01, true);
        check(NvFp4, rows, cols, 0.01, true);
        check(MxFp8E4m3(ScaleRounding::Rceil), rows, cols, 0.0, false);
        check(MxFp8E5m2(ScaleRounding::Floor), rows, cols, 0.0, false);
    }
    // Groups of whole tiles of AMX, and rows of 4 bits with one scale.
    for (rows, cols) in [(37, 128), (33, 1152)] {
        check(Int8(Grouping::Block(128)), rows, cols, 0.01, true);
        let two = Int4::new(Some(128), true).unwrap();
        check(two, rows, cols, 0.02, true);
        check(Int4::new(None, false).unwrap(), rows, cols, 0.03, true);
    }
    // Rows that end within a vector and within a group.
    for (rows, cols) in [(5, 1), (17, 30), (18, 70), (3, 100)] {
        check(Int8(Grouping::Row), rows, cols, 0.02, true);
        check(Int8(Grouping::Block(32)), rows, cols, 0.02, true);
        if cols % 2 == 0 {
            check(MxFp4(ScaleRounding::Rceil), rows, cols, 0.02, true);
        }
    }
}

#[test]
fn more_rows_than_are_multiplied_at_a_time_have_the_bits_that_each_has_alone() {
    const M: usize = 530;
    for cols in [192, 1152] {
        let (_, per_row) = packed(Int8(Grouping::Row), 35, cols);
        let (_, in_groups) = packed(Int8Asymmetric(Grouping::Block(32)), 35, cols);
        let (_, nibbles) = packed(Nf4::new(64).unwrap(), 35, cols);
        let x = random(M * cols, 3);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa).unwrap();
            for (packed, mode) in [
                (&per_row, Mode::Int8PerRow),
                (&in_groups, Mode::Int8PerGroup),
                (&nibbles, Mode::Int8PerGroup),
                (&nibbles, Mode::F32),
                (&nibbles, Mode::Bf16),
            ] {
                let all = product(packed, &x, M, mode, &cpu);
                for (row, found) in all.chunks(35).enumerate() {
                    let alone = product(packed, &x[row * cols..][..cols], 1, mode, &cpu);
                    assert_eq!(found, alone, "{isa} {mode:?} {cols} row {row}");
                }
            }
        }
    }
}

/// Groups of several tiles of AMX, and of more columns than it multiplies at a time.
#[test]
fn long_groups_are_those_of_the_specification() {
    for group in [192, 256, 384, 512, 640] {
        check(Int8(Grouping::Block(group)), 33, 2 * group, 0.01, true);
        check(
            Int4::new(Some(group), false).unwrap(),
            17,
            2 * group,
            0.03,
            true,
        );
    }
}

#[test]
fn outliers_beside_int8_are_those_of_the_specification() {
    eprintln!(
        "instruction sets here: {:?}",
        Isa::available().collect::<Vec<_>>()
    );
    let (_, packed) = packed(Int8(Grouping::Row), 37, 1088);
    for m in [1, 5, 40] {
        let x = random(m * 1088, 5);
        let products = Isa::available().map(|isa| {
            let cpu = Cpu::with_isa(isa).unwrap();
            let mut activations = Activations::new(&packed, Mode::LlmInt8).unwrap();
            activations.set_threshold(1.5);
            let view = View::new(&x, m, 1088).unwrap();
            activations.set(view, &cpu).unwrap();
            assert!(!activations.outlier_columns().is_empty());
            let mut y = vec![0.0; m * 37];
            packed
                .gemm(&activations, &mut y, &mut Scratch::new(), &cpu)
                .unwrap();
            y
        });
        let products: Vec<Vec<f32>> = products.collect();
        assert!(products.iter().all(|y| *y == products[0]), "{m}");
    }
}
