//! Calibrated quantization against slow and plain versions of itself, and against rounding.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::random;
use ferrotune_quant::calibrate::{
    self, AwqOptions, Gptq, GptqOptions, Gram, awq, gptq, output_error, round_to_nearest,
};
use ferrotune_quant::{
    Cpu, Error, Extent, Format, Fp4, Grouping, Int4, Int8, Int8Asymmetric, Isa, MxFp4, Nf4, NvFp4,
    Parallel, Q4_0, Quantized, ScaleRounding, View, With, bf16,
};
use proptest::prelude::*;

/// Activations `Z · A`: each channel mixes a third as many hidden ones and some noise of its own, and
/// every 29th is 20 times as large.
fn correlated(n: usize, cols: usize, seed: u64) -> Vec<f32> {
    let hidden = cols.div_ceil(3);
    let (z, a) = (random(n * hidden, seed), random(hidden * cols, seed + 1));
    let own = random(n * cols, seed + 2);
    let mut x = vec![0.0; n * cols];
    for r in 0..n {
        for c in 0..cols {
            let sum: f32 = (0..hidden)
                .map(|k| z[r * hidden + k] * a[k * cols + c])
                .sum();
            let value = sum / (hidden as f32).sqrt() + 0.3 * own[r * cols + c];
            x[r * cols + c] = if c % 29 == 5 { 20.0 * value } else { value };
        }
    }
    x
}

fn gram(x: &[f32], cols: usize) -> Gram {
    let mut gram = Gram::new(cols).unwrap();
    let x = View::new(x, x.len() / cols, cols).unwrap();
    gram.add(x, &Cpu::detect()).unwrap();
    gram
}

fn nf4() -> Nf4 {
    Nf4::new(64).unwrap()
}

/// `‖(W − Ŵ) Xᵀ‖² ÷ ‖W Xᵀ‖²` from the activations themselves.
fn direct(w: &[f32], values: &[f32], x: &[f32], cols: usize, divisors: &[f32]) -> f64 {
    let (mut noise, mut signal) = (0.0, 0.0);
    for (w, v) in w.chunks(cols).zip(values.chunks(cols)) {
        for x in x.chunks(cols) {
            let (mut exact, mut found) = (0.0, 0.0);
            for c in 0..cols {
                exact += f64::from(w[c]) * f64::from(x[c]);
                found += f64::from(v[c]) * (f64::from(x[c]) / f64::from(divisors[c]));
            }
            noise += (exact - found).powi(2);
            signal += exact * exact;
        }
    }
    noise / signal
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} {b}");
}

fn better<F: Format>(name: &str, format: F, scaling_helps: bool) {
    let (rows, cols) = (40, 256);
    let cpu = Cpu::detect();
    let x = correlated(512, cols, 7);
    let w = random(rows * cols, 11);
    let gram = gram(&x, cols);
    let view = View::new(&w, rows, cols).unwrap();
    let solved = gptq(format.clone(), view, &gram, GptqOptions::default(), &cpu).unwrap();
    let options = GptqOptions {
        act_order: true,
        ..GptqOptions::default()
    };
    let ordered = gptq(format.clone(), view, &gram, options, &cpu).unwrap();
    let scaled = awq(format.clone(), view, &gram, AwqOptions::default(), &cpu).unwrap();
    let clip = AwqOptions {
        clip: true,
        ..AwqOptions::default()
    };
    let clipped = awq(format, view, &gram, clip, &cpu).unwrap();
    println!(
        "{name:16} rtn {:.3e}  gptq {:.3e}  act_order {:.3e}  awq {:.3e} (alpha {:.2})  clip {:.3e}",
        solved.report.rtn_error,
        solved.report.error,
        ordered.report.error,
        scaled.report.error,
        scaled.alpha,
        clipped.report.error,
    );
    // What is reported is what a layer gets.
    let ones = vec![1.0; cols];
    for Gptq { quantized, report } in [&solved, &ordered] {
        close(
            report.error,
            direct(&w, &quantized.dequantize(&cpu), &x, cols, &ones),
        );
        assert!(report.error < 0.8 * report.rtn_error, "{name} {report:?}");
    }
    for found in [&scaled, &clipped] {
        let values = found.quantized.dequantize(&cpu);
        close(
            found.report.error,
            direct(&w, &values, &x, cols, &found.scales),
        );
        close(found.report.rtn_error, solved.report.rtn_error);
    }
    if scaling_helps {
        assert!(scaled.alpha > 0.0, "{name}");
        assert!(
            scaled.report.error < 0.9 * scaled.report.rtn_error,
            "{name}"
        );
    }
    assert!(clipped.report.error < scaled.report.rtn_error, "{name}");
    assert!(clipped.report.error <= scaled.report.error);
}

#[test]
fn calibration_beats_rounding_on_correlated_activations() {
    better("nf4", nf4(), true);
    better("fp4", Fp4::new(64).unwrap(), true);
    better("mxfp4", MxFp4(ScaleRounding::Floor), false);
    better("mxfp4 rceil", MxFp4(ScaleRounding::Rceil), true);
    better("nvfp4", NvFp4, true);
    better("int8 block 32", Int8(Grouping::Block(32)), true);
    better("int8 row", Int8(Grouping::Row), true);
    better("int8 tensor", Int8(Grouping::Tensor), true);
    better("int4", Int4::new(Some(64), true).unwrap(), true);
    better("int4 with zeros", Int4::new(Some(64), false).unwrap(), true);
    better("q4_0", Q4_0, true);
    better("int8-asym 24", Int8Asymmetric(Grouping::Block(24)), true);
}

/// The inverse of a symmetric matrix, by Gauss and Jordan with pivots.
fn invert(matrix: &[f64], n: usize) -> Vec<f64> {
    let width = 2 * n;
    let mut a = vec![0.0; n * width];
    for i in 0..n {
        a[i * width..i * width + n].copy_from_slice(&matrix[i * n..(i + 1) * n]);
        a[i * width + n + i] = 1.0;
    }
    for i in 0..n {
        let pivot = (i..n)
            .max_by(|p, q| a[p * width + i].abs().total_cmp(&a[q * width + i].abs()))
            .unwrap();
        for j in 0..width {
            a.swap(i * width + j, pivot * width + j);
        }
        let scale = a[i * width + i];
        (0..width).for_each(|j| a[i * width + j] /= scale);
        for k in (0..n).filter(|k| *k != i) {
            let factor = a[k * width + i];
            (0..width).for_each(|j| a[k * width + j] -= factor * a[i * width + j]);
        }
    }
    (0..n)
        .flat_map(|i| a[i * width + n..(i + 1) * width].to_vec())
        .collect()
}

fn extent(values: impl Iterator<Item = f64>) -> Extent {
    let mut extent = Extent::NOTHING;
    for value in values.map(|value| value as f32) {
        if value.abs() > extent.amax {
            (extent.amax, extent.peak) = (value.abs(), value);
        }
        extent.min = extent.min.min(value);
        extent.max = extent.max.max(value);
    }
    extent
}

/// Optimal brain quantization in a fixed order (equations 2 and 3 of the paper): after each column the
/// inverse of what is left of H is updated by elimination. All in f64, without blocks. Returns codes.
fn naive<F: Format>(
    format: &F,
    w: &[f32],
    x: &[f32],
    [rows, cols]: [usize; 2],
    act_order: bool,
) -> Vec<u8> {
    let mut h = vec![0.0; cols * cols];
    for x in x.chunks(cols) {
        for i in 0..cols {
            for j in 0..cols {
                h[i * cols + j] += f64::from(x[i]) * f64::from(x[j]);
            }
        }
    }
    let energy: Vec<f64> = (0..cols).map(|i| h[i * cols + i]).collect();
    let alive = energy.iter().filter(|energy| **energy > 0.0).count();
    let mean = energy.iter().sum::<f64>() / alive as f64;
    for i in 0..cols {
        h[i * cols + i] += if energy[i] == 0.0 { mean } else { 0.01 * mean };
    }
    let mut order: Vec<usize> = (0..cols).collect();
    if act_order {
        order.sort_by(|a, b| energy[*b].total_cmp(&energy[*a]));
    }
    let tensor = format.tensor(w.iter().fold(0.0, |a, b| a.max(b.abs())));
    let whole = extent(w.iter().map(|w| f64::from(*w)));
    let grouping = format.grouping();
    let mut codes = vec![0; rows * cols];
    for r in 0..rows {
        let mut inverse = invert(&h, cols);
        let mut w: Vec<f64> = w[r * cols..(r + 1) * cols]
            .iter()
            .map(|w| f64::from(*w))
            .collect();
        (0..cols)
            .filter(|i| energy[*i] == 0.0)
            .for_each(|i| w[i] = 0.0);
        let original = w.clone();
        let mut fitted = format.fit(&tensor, whole);
        let mut group = usize::MAX;
        for &i in &order {
            let now = grouping.of(r * cols + i, cols);
            if grouping != Grouping::Tensor && (act_order || now != group) {
                group = now;
                let range = grouping.range(group, rows, cols);
                let from = if act_order { &original } else { &w };
                let range = range.start - r * cols..range.end - r * cols;
                fitted = format.fit(&tensor, extent(from[range].iter().copied()));
            }
            let (scale, encoder) = &fitted;
            let code = F::encode(encoder, &[w[i] as f32; 16])[0];
            codes[r * cols + i] = code;
            let error = w[i] - f64::from(format.decode(&tensor, *scale, code));
            let pivot = inverse[i * cols + i];
            let row = inverse[i * cols..(i + 1) * cols].to_vec();
            for j in 0..cols {
                w[j] -= error / pivot * row[j];
                for k in 0..cols {
                    inverse[j * cols + k] -= row[j] * row[k] / pivot;
                }
            }
        }
    }
    codes
}

fn as_the_paper<F: Format>(format: F, [rows, cols]: [usize; 2], dead: &[usize]) {
    let mut x = correlated(3 * cols, cols, (rows * cols) as u64);
    for row in x.chunks_mut(cols) {
        dead.iter().for_each(|channel| row[*channel] = 0.0);
    }
    let w = random(rows * cols, 5);
    let gram = gram(&x, cols);
    for act_order in [false, true] {
        let options = GptqOptions {
            act_order,
            ..GptqOptions::default()
        };
        let view = View::new(&w, rows, cols).unwrap();
        let found = gptq(format.clone(), view, &gram, options, &Cpu::detect()).unwrap();
        let expected = naive(&format, &w, &x, [rows, cols], act_order);
        for (i, expected) in expected.iter().enumerate() {
            let code = found.quantized.code(i / cols, i % cols);
            assert_eq!(
                code,
                *expected,
                "{} {act_order} row {} col {}",
                F::NAME,
                i / cols,
                i % cols
            );
        }
    }
}

#[test]
fn gptq_is_the_papers_column_loop() {
    as_the_paper(nf4(), [3, 192], &[]);
    as_the_paper(Fp4::new(32).unwrap(), [18, 64], &[0, 40]);
    as_the_paper(MxFp4::default(), [3, 160], &[7]);
    as_the_paper(NvFp4, [17, 80], &[79]);
    as_the_paper(Int8(Grouping::Row), [2, 141], &[]);
    as_the_paper(Int8(Grouping::Tensor), [3, 150], &[3]);
    // Groups that no block of 128 holds a whole number of, longer than one, and cut short.
    as_the_paper(Int4::new(Some(32), false).unwrap(), [3, 160], &[7]);
    as_the_paper(Q4_0, [3, 96], &[]);
    as_the_paper(Int8(Grouping::Block(24)), [3, 170], &[]);
    as_the_paper(Int8(Grouping::Block(150)), [2, 310], &[]);
    as_the_paper(Int8Asymmetric(Grouping::Block(40)), [3, 150], &[]);
}

#[test]
fn the_gram_matrix_is_the_sum_of_products() {
    let (n, cols) = (301, 37);
    let x = correlated(n, cols, 3);
    let cpu = Cpu::detect();
    let mut gram = Gram::new(cols).unwrap();
    // Batches of different sizes, one of them with gaps between rows.
    gram.add(View::new(&x[..130 * cols], 130, cols).unwrap(), &cpu)
        .unwrap();
    let wide: Vec<f32> = x[130 * cols..]
        .chunks(cols)
        .flat_map(|row| row.iter().copied().chain([f32::NAN; 3]))
        .collect();
    gram.add(
        View::with_stride(&wide, n - 130, cols, cols + 3).unwrap(),
        &cpu,
    )
    .unwrap();
    assert_eq!((gram.count(), gram.cols()), (n, cols));
    for i in 0..cols {
        for j in 0..cols {
            let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                x.chunks(cols)
                    .map(|x| f(f64::from(x[i]), f64::from(x[j])))
                    .sum()
            };
            let (expected, magnitude) = (sum(&|a, b| a * b), sum(&|a, b| (a * b).abs()));
            assert!((gram.sum_of_products(i, j) - expected).abs() <= 1e-13 * magnitude);
        }
        let mean = x.chunks(cols).map(|x| f64::from(x[i].abs())).sum::<f64>() / n as f64;
        assert!((f64::from(gram.mean_magnitudes()[i]) - mean).abs() < 1e-6 * mean);
    }
    // 16-bit activations are taken as what they stand for.
    let half: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
    let full: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    let mut of_half = Gram::new(cols).unwrap();
    of_half
        .add(View::new(&half, n, cols).unwrap(), &cpu)
        .unwrap();
    let mut of_full = Gram::new(cols).unwrap();
    of_full
        .add(View::new(&full, n, cols).unwrap(), &cpu)
        .unwrap();
    assert_eq!(of_half, of_full);
}

#[test]
fn the_output_error_is_that_of_the_outputs() {
    for (rows, cols) in [(1, 1), (5, 33), (70, 48)] {
        let (w, v) = (random(rows * cols, 1), random(rows * cols, 2));
        let x = correlated(90, cols, 9);
        let view = |values| View::new(values, rows, cols).unwrap();
        let found = output_error(view(&w), view(&v), &gram(&x, cols), &Cpu::detect()).unwrap();
        close(found.relative(), direct(&w, &v, &x, cols, &vec![1.0; cols]));
        let same = output_error(view(&w), view(&w), &gram(&x, cols), &Cpu::detect()).unwrap();
        assert_eq!(same.relative(), 0.0);
    }
}

#[test]
fn without_correlation_gptq_is_rounding() {
    fn check<F: Format>(format: F) {
        let (rows, cols) = (20, 192);
        // The identity, in twelfths of it.
        let mut x = vec![0.0; cols * cols];
        (0..cols).for_each(|i| x[i * cols + i] = 1.0);
        let w = random(rows * cols, 21);
        let view = View::new(&w, rows, cols).unwrap();
        let cpu = Cpu::detect();
        for act_order in [false, true] {
            let options = GptqOptions {
                act_order,
                ..GptqOptions::default()
            };
            let found = gptq(format.clone(), view, &gram(&x, cols), options, &cpu).unwrap();
            assert_eq!(
                found.quantized,
                round_to_nearest(format.clone(), view, &cpu).unwrap()
            );
            assert_eq!(found.report.error, found.report.rtn_error);
        }
    }
    check(nf4());
    check(Fp4::new(32).unwrap());
    check(MxFp4::default());
    check(NvFp4);
    check(Int8(Grouping::Tensor));
    check(Int8(Grouping::Row));
    check(Int8Asymmetric(Grouping::Block(48)));
}

#[test]
fn awq_without_steps_is_rounding() {
    let (rows, cols) = (9, 128);
    let w = random(rows * cols, 4);
    let view = View::new(&w, rows, cols).unwrap();
    let cpu = Cpu::detect();
    let gram = gram(&correlated(300, cols, 1), cols);
    let options = AwqOptions {
        steps: 0,
        clip: false,
    };
    let found = awq(nf4(), view, &gram, options, &cpu).unwrap();
    assert_eq!(
        found.quantized,
        round_to_nearest(nf4(), view, &cpu).unwrap()
    );
    assert_eq!(found.alpha, 0.0);
    assert!(found.scales.iter().all(|scale| *scale == 1.0));
    assert_eq!(found.report.error, found.report.rtn_error);
}

#[test]
fn awqs_scales_are_powers_of_the_mean_magnitudes() {
    let (rows, cols) = (40, 96);
    let mut x = correlated(500, cols, 1);
    x.chunks_mut(cols).for_each(|row| row[17] = 0.0);
    let w = random(rows * cols, 4);
    let gram = gram(&x, cols);
    let view = View::new(&w, rows, cols).unwrap();
    let format = MxFp4::default();
    let found = awq(format, view, &gram, AwqOptions::default(), &Cpu::detect()).unwrap();
    assert!(found.alpha > 0.0 && found.scales[17] == 1.0);
    let means = gram.mean_magnitudes();
    let power = |i: usize| f64::from(means[i]).powf(found.alpha);
    for i in (0..cols).filter(|i| *i != 17) {
        let ratio = f64::from(found.scales[i]) / f64::from(found.scales[0]);
        assert!((ratio / (power(i) / power(0)) - 1.0).abs() < 1e-6);
    }
    let alive = || {
        (0..cols)
            .filter(|i| *i != 17)
            .map(|i| f64::from(found.scales[i]))
    };
    let product = alive().fold(0.0, f64::max) * alive().fold(f64::INFINITY, f64::min);
    assert!((product - 1.0).abs() < 1e-6);
}

fn everything(cpu: &Cpu) -> (Gram, Vec<Gptq<NvFp4>>, Vec<calibrate::Awq<Nf4>>) {
    let (rows, cols) = (150, 192);
    let x = correlated(400, cols, 2);
    let w = random(rows * cols, 3);
    let view = View::new(&w, rows, cols).unwrap();
    let mut gram = Gram::new(cols).unwrap();
    gram.add(View::new(&x, 400, cols).unwrap(), cpu).unwrap();
    let solved = [false, true].map(|act_order| {
        let options = GptqOptions {
            act_order,
            ..GptqOptions::default()
        };
        gptq(NvFp4, view, &gram, options, cpu).unwrap()
    });
    let scaled = [false, true].map(|clip| {
        let options = AwqOptions { steps: 4, clip };
        awq(nf4(), view, &gram, options, cpu).unwrap()
    });
    (gram, solved.into(), scaled.into())
}

#[test]
fn threads_and_instructions_change_no_bit() {
    let run = |pieces: usize, piece: &(dyn Fn(usize) + Sync)| {
        std::thread::scope(|scope| {
            for i in 0..pieces {
                scope.spawn(move || piece(i));
            }
        });
    };
    let expected = everything(&Cpu::detect());
    for threads in [2, 3] {
        let threads = With::new(threads, run);
        let threads: &dyn Parallel = &threads;
        assert!(everything(&Cpu::detect().with_threads(threads)) == expected);
    }
    for isa in Isa::available() {
        assert!(
            everything(&Cpu::with_isa(isa).unwrap()) == expected,
            "{isa}"
        );
    }
}

#[test]
fn weights_may_have_16_bits_and_lie_apart() {
    let (rows, cols) = (21, 48);
    let w: Vec<bf16> = random(rows * (cols + 5), 8)
        .iter()
        .map(|w| bf16::from_f32(*w))
        .collect();
    let apart = View::with_stride(&w, rows, cols, cols + 5).unwrap();
    let close: Vec<f32> = w
        .chunks(cols + 5)
        .flat_map(|row| row[..cols].iter().map(|w| w.to_f32()))
        .collect();
    let close = View::new(&close, rows, cols).unwrap();
    let (gram, cpu) = (gram(&correlated(200, cols, 4), cols), Cpu::detect());
    let options = GptqOptions::default();
    let found = gptq(NvFp4, apart, &gram, options, &cpu).unwrap();
    assert!(found == gptq(NvFp4, close, &gram, options, &cpu).unwrap());
    let clip = AwqOptions {
        steps: 3,
        clip: true,
    };
    let found = awq(NvFp4, apart, &gram, clip, &cpu).unwrap();
    assert!(found == awq(NvFp4, close, &gram, clip, &cpu).unwrap());
    // Blocks that are counted across rows want rows without gaps.
    let (narrow, fp4) = (
        View::with_stride(&w, rows, 32, cols + 5).unwrap(),
        Fp4::new(32).unwrap(),
    );
    let of_narrow = self::gram(&correlated(200, 32, 4), 32);
    let error = gptq(fp4, narrow, &of_narrow, options, &cpu);
    assert!(matches!(error, Err(Error::Unsupported { .. })));
}

#[test]
fn bad_input_is_refused() {
    let cpu = Cpu::detect();
    let w = random(4 * 64, 1);
    let view = View::new(&w, 4, 64).unwrap();
    let good = gram(&correlated(200, 64, 1), 64);
    let options = GptqOptions::default();
    let both = |view: View<f32>, gram: &Gram| {
        [
            gptq(nf4(), view, gram, options, &cpu)
                .map(|_| ())
                .unwrap_err(),
            awq(nf4(), view, gram, AwqOptions::default(), &cpu)
                .map(|_| ())
                .unwrap_err(),
        ]
    };
    for error in both(view, &Gram::new(64).unwrap()) {
        assert!(matches!(error, Error::Calibration { .. }), "{error}");
    }
    let other = gram(&correlated(200, 32, 1), 32);
    for error in both(view, &other) {
        let Error::Shapes { left, right, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((left, right), ([4, 64], [32, 32]));
    }
    let mut bad = w.clone();
    bad[64 + 3] = f32::INFINITY;
    for error in both(View::new(&bad, 4, 64).unwrap(), &good) {
        assert!(
            matches!(error, Error::NonFinite { row: 1, col: 3, .. }),
            "{error}"
        );
    }
    // 16 rows of 24: groups of 64 run across rows.
    let across = gram(&correlated(100, 24, 1), 24);
    for error in both(View::new(&w[..192], 8, 24).unwrap(), &across) {
        assert!(
            matches!(
                error,
                Error::Block {
                    block: 64,
                    cols: 24,
                    ..
                }
            ),
            "{error}"
        );
    }
    let zeros = gram(&vec![0.0; 3 * 64], 64);
    let error = gptq(nf4(), view, &zeros, options, &cpu).unwrap_err();
    assert!(
        error.to_string().contains("all activations are zero"),
        "{error}"
    );
    // Fewer activations than channels, and nothing added.
    let few = gram(&correlated(20, 64, 1), 64);
    let undamped = GptqOptions {
        damping: 0.0,
        ..options
    };
    let error = gptq(nf4(), view, &few, undamped, &cpu).unwrap_err();
    assert!(
        error.to_string().contains("not positive definite"),
        "{error}"
    );
    assert!(gptq(nf4(), view, &few, options, &cpu).is_ok());
    for damping in [-0.1, f64::NAN, f64::INFINITY] {
        let options = GptqOptions { damping, ..options };
        let error = gptq(nf4(), view, &good, options, &cpu).unwrap_err();
        assert!(error.to_string().contains("damping"), "{error}");
    }
    let error = output_error(view, View::new(&w[..192], 3, 64).unwrap(), &good, &cpu);
    assert!(matches!(error, Err(Error::Shapes { .. })));
    let error = output_error(view, View::new(&bad, 4, 64).unwrap(), &good, &cpu);
    assert!(matches!(
        error,
        Err(Error::NonFinite { row: 1, col: 3, .. })
    ));
}

#[test]
fn a_refused_batch_leaves_the_sums_as_they_were() {
    let cpu = Cpu::detect();
    let mut gram = gram(&correlated(50, 20, 1), 20);
    let before = gram.clone();
    let mut bad = random(200 * 20, 1);
    bad[170 * 20 + 11] = f32::NAN;
    bad[190 * 20] = f32::INFINITY;
    let error = gram
        .add(View::new(&bad, 200, 20).unwrap(), &cpu)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::NonFinite {
                row: 170,
                col: 11,
                ..
            }
        ),
        "{error}"
    );
    let error = gram
        .add(View::new(&bad[..38], 2, 19).unwrap(), &cpu)
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Shapes {
            left: [2, 19],
            right: [20, 20],
            ..
        }
    ));
    gram.add(View::<f32>::new(&[], 0, 20).unwrap(), &cpu)
        .unwrap();
    assert_eq!(gram, before);
}

#[test]
fn empty_and_zero_weights_are_fine() {
    let cpu = Cpu::detect();
    let good = gram(&correlated(100, 64, 1), 64);
    let empty = View::<f32>::new(&[], 0, 64).unwrap();
    assert_eq!(
        gptq(nf4(), empty, &good, GptqOptions::default(), &cpu)
            .unwrap()
            .report
            .error,
        0.0
    );
    let clip = AwqOptions {
        clip: true,
        ..AwqOptions::default()
    };
    assert_eq!(
        awq(nf4(), empty, &good, clip, &cpu).unwrap().report.error,
        0.0
    );
    let zeros = vec![0.0_f32; 2 * 64];
    let zeros = View::new(&zeros, 2, 64).unwrap();
    for report in [
        gptq(NvFp4, zeros, &good, GptqOptions::default(), &cpu)
            .unwrap()
            .report,
        awq(NvFp4, zeros, &good, clip, &cpu).unwrap().report,
    ] {
        assert_eq!((report.error, report.rtn_error), (0.0, 0.0));
    }
}

fn values(quantized: &Quantized<Int8>) -> Vec<f32> {
    quantized.dequantize(&Cpu::detect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// Any shape and group: the figures are those of the outputs, AWQ never loses, and GPTQ's codes are
    /// the paper's.
    #[test]
    fn any_shape_and_group(rows in 1_usize..20, cols in 1_usize..70, group in 1_usize..80, seed in 0_u64..1000) {
        let x = correlated(2 * cols + 3, cols, seed);
        let w = random(rows * cols, seed + 7);
        let (gram, cpu) = (gram(&x, cols), Cpu::detect());
        let view = View::new(&w, rows, cols).unwrap();
        let format = Int8(Grouping::Block(group));
        let solved = gptq(format, view, &gram, GptqOptions::default(), &cpu).unwrap();
        let ones = vec![1.0; cols];
        let expected = direct(&w, &values(&solved.quantized), &x, cols, &ones);
        prop_assert!((solved.report.error - expected).abs() <= 1e-6 * expected);
        let options = AwqOptions { steps: 3, clip: seed % 2 == 0 };
        let scaled = awq(format, view, &gram, options, &cpu).unwrap();
        prop_assert!(scaled.report.error <= scaled.report.rtn_error);
        let expected = direct(&w, &values(&scaled.quantized), &x, cols, &scaled.scales);
        prop_assert!((scaled.report.error - expected).abs() <= 1e-6 * expected);
    }

    /// Weights of any size come out finite or are refused, and nothing panics.
    #[test]
    fn any_magnitude(exponent in -140_i32..128, seed in 0_u64..100) {
        let scale = 2.0_f64.powi(exponent) as f32;
        let w: Vec<f32> = random(3 * 32, seed).iter().map(|w| w * scale).collect();
        let gram = gram(&correlated(70, 32, seed), 32);
        let view = View::new(&w, 3, 32).unwrap();
        if let Ok(found) = gptq(MxFp4::default(), view, &gram, GptqOptions::default(), &Cpu::detect()) {
            prop_assert!(found.quantized.dequantize(&Cpu::detect()).iter().all(|value| value.is_finite()));
        }
        let _ = awq(Int8(Grouping::Row), view, &gram, AwqOptions { steps: 2, clip: true }, &Cpu::detect());
    }
}
