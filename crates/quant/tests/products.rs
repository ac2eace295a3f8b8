//! Products against f64: within the bound that each mode states, and not far inside it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Recorded, random};
use ferrotune_quant::{
    Activations, Cpu, Element, Error, Format, Fp4, Grouping, Int8, Int8Asymmetric, Isa, LlmInt8,
    Matrix, Mode, MxFp4, MxFp8E4m3, Nf4, NvFp4, Packed, Quantized, ScaleRounding, Scratch, Serial,
    View, With, f16,
};
use safetensors::Dtype;

fn packed<F: Format>(format: F, rows: usize, cols: usize) -> Packed<'static> {
    let weights = random(rows * cols, 3);
    let cpu = Cpu::detect();
    let view = View::new(&weights, rows, cols).unwrap();
    Packed::new(&Quantized::new(format, view, &cpu).unwrap(), &cpu).unwrap()
}

fn product(packed: &Packed, x: &[f32], mode: Mode, cpu: &Cpu) -> Vec<f32> {
    let [rows, cols] = packed.shape();
    let m = x.len() / cols;
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

fn within<F: Format>(format: F, rows: usize, cols: usize, modes: &[Mode]) {
    let packed = packed(format, rows, cols);
    let mut w = vec![0.0; cols];
    for seed in 0..3 {
        let x = random(cols, seed);
        for mode in modes {
            let mut bounds = vec![0.0; rows];
            packed.error_bounds(*mode, &x, &mut bounds).unwrap();
            let mut closest = 0.0_f64;
            for isa in Isa::available() {
                let y = product(&packed, &x, *mode, &Cpu::with_isa(isa).unwrap());
                for (row, (y, bound)) in y.iter().zip(&bounds).enumerate() {
                    packed.dequantize_row(row, &mut w);
                    // The row's own values are rounded; a few of their last bits count here too.
                    let terms = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let slack = terms.clone().map(|x| x.abs()).sum::<f64>() * 2_f64.powi(-22);
                    let error = (f64::from(*y) - terms.sum::<f64>()).abs();
                    assert!(
                        error <= bound + slack,
                        "{isa} {} {mode:?} {row}: {error} {bound}",
                        F::NAME
                    );
                    closest = closest.max(error / bound);
                }
            }
            // Errors are random and a bound is the worst case; but it is no more than that.
            let floor = if *mode == Mode::F32 { 2e-4 } else { 0.02 };
            assert!(closest > floor, "{} {mode:?}: {closest}", F::NAME);
        }
    }
}

#[test]
fn errors_stay_within_their_bounds() {
    let all = [Mode::F32, Mode::Bf16, Mode::Int8PerRow, Mode::Int8PerGroup];
    for (rows, cols) in [(24, 128), (17, 320)] {
        within(Int8(Grouping::Row), rows, cols, &all);
        within(Int8(Grouping::Block(32)), rows, cols, &all);
        within(Int8Asymmetric(Grouping::Block(64)), rows, cols, &all);
        within(Nf4::new(64).unwrap(), rows, cols, &all);
        within(Fp4::new(64).unwrap(), rows, cols, &all);
        within(MxFp4(ScaleRounding::Floor), rows, cols, &all);
        within(NvFp4, rows, cols, &all);
        within(MxFp8E4m3(ScaleRounding::Rceil), rows, cols, &all[..2]);
    }
}

/// Where weights or activations are denormal, flushed, or so large that a sum overflows.
#[test]
fn bounds_hold_for_the_tiny_and_the_huge() {
    fn check<F: Format>(format: F) {
        const COLS: usize = 64;
        let cpu = Cpu::detect();
        let (mut finite, mut lost, mut w) = (0, 0, [0.0; COLS]);
        let exponents = [-149, -140, -127, -120, -75, -30, 0, 60, 110, 126];
        for (of_w, of_x) in exponents.iter().flat_map(|a| exponents.map(|b| (*a, b))) {
            let scaled = |seed, exponent: i32| {
                let values = random(COLS, seed).into_iter();
                let values = values.map(|x| (f64::from(x) / 8.0 * 2_f64.powi(exponent)) as f32);
                values.collect::<Vec<f32>>()
            };
            let (weights, x) = (scaled(1, of_w), scaled(2, of_x));
            let view = View::new(&weights, 1, COLS).unwrap();
            let Ok(quantized) = Quantized::new(format.clone(), view, &cpu) else {
                continue;
            };
            let Ok(packed) = Packed::new(&quantized, &cpu) else {
                continue;
            };
            packed.dequantize_row(0, &mut w);
            if w.iter().any(|w| !w.is_finite()) {
                continue;
            }
            let exact: f64 = w
                .iter()
                .zip(&x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum();
            // Those of `dequantize_row`.
            let rounded = w.iter().zip(&x).map(|(w, x)| {
                let w = f64::from(w.abs()) * 2_f64.powi(-22) + 2_f64.powi(-148);
                w * f64::from(x.abs())
            });
            let slack: f64 = rounded.sum();
            for mode in [Mode::F32, Mode::Bf16, Mode::Int8PerRow, Mode::Int8PerGroup] {
                let mut bound = [0.0];
                packed.error_bounds(mode, &x, &mut bound).unwrap();
                finite += usize::from(bound[0].is_finite());
                for isa in Isa::available() {
                    let y = product(&packed, &x, mode, &Cpu::with_isa(isa).unwrap())[0];
                    lost += usize::from(y == 0.0 && exact != 0.0);
                    let error = (f64::from(y) - exact).abs();
                    assert!(
                        bound[0].is_infinite() || error <= bound[0] + slack,
                        "{isa} {} {mode:?} 2^{of_w} 2^{of_x}: {error:e} > {:e}",
                        F::NAME,
                        bound[0]
                    );
                }
            }
        }
        assert!(finite > 100 && lost > 10, "{} {finite} {lost}", F::NAME);
    }
    check(Int8(Grouping::Row));
    check(Int8(Grouping::Block(32)));
    check(Int8Asymmetric(Grouping::Block(32)));
    check(Nf4::new(64).unwrap());
    check(MxFp4(ScaleRounding::Floor));
    check(NvFp4);
}

#[test]
fn outliers_are_multiplied_as_in_bitsandbytes() {
    let file = Recorded::open("bnb8.safetensors");
    let mut seen = 0;
    for name in file.names() {
        let Some(case) = name.strip_suffix("/out") else {
            continue;
        };
        if case.ends_with("bias") {
            continue;
        }
        let key = |part: &str| format!("{case}/{part}");
        let [rows, cols] = file.matrix(&key("CB"));
        let scales = file.floats(&key("SCB"));
        let weight =
            Quantized::from_parts(LlmInt8, [rows, cols], (), file.bytes(&key("CB")), scales);
        let cpu = Cpu::detect();
        let packed = Packed::new(&weight.unwrap(), &cpu).unwrap();
        let mut activations = Activations::new(&packed, Mode::LlmInt8).unwrap();
        if !case.ends_with("outliers") {
            activations.set_threshold(f32::INFINITY);
        }
        let m = file.matrix(&key("x"))[0];
        // The peer makes f32 activations f16 first.
        match file.dtype(&key("x")) {
            Dtype::BF16 => set(&mut activations, &file.bf16s(&key("x")), m, cols, &cpu),
            Dtype::F16 => set(&mut activations, &file.f16s(&key("x")), m, cols, &cpu),
            _ => {
                let x = file.floats(&key("x"));
                let x: Vec<f16> = x.iter().map(|x| f16::from_f32(*x)).collect();
                set(&mut activations, &x, m, cols, &cpu);
            }
        }
        if file.has(&key("outliers")) && case.ends_with("outliers") {
            let expected: Vec<u32> = file
                .i64s(&key("outliers"))
                .iter()
                .map(|x| *x as u32)
                .collect();
            assert_eq!(activations.outlier_columns(), expected, "{case}");
        }
        let mut y = vec![0.0; m * rows];
        packed
            .gemm(&activations, &mut y, &mut Scratch::new(), &cpu)
            .unwrap();
        // Its constant for 1/127² is 2e-5 off, and it rounds to the type of x; outliers stay in f32.
        let relative = match file.dtype(&key("x")) {
            Dtype::F32 if case.ends_with("outliers") => 5e-4,
            Dtype::F32 => 3e-5,
            Dtype::F16 => 1e-3,
            _ => 8e-3,
        };
        let out = file.floats(&key("out"));
        let largest = out.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        for (i, (y, out)) in y.iter().zip(&out).enumerate() {
            assert!(
                (y - out).abs() <= relative * largest,
                "{case} {i}: {y} {out}"
            );
        }
        // One row alone has the same bits when its outliers are the same; no thread count changes any.
        let three = With::new(3, |n, piece: &(dyn Fn(usize) + Sync)| {
            (0..n).rev().for_each(piece)
        });
        let mut again = vec![0.0; m * rows];
        let cpu = cpu.with_threads(&three);
        packed
            .gemm(&activations, &mut again, &mut Scratch::new(), &cpu)
            .unwrap();
        assert_eq!(y, again);
        seen += 1;
    }
    assert_eq!(seen, 6);
}

fn set<T: Element>(activations: &mut Activations, x: &[T], m: usize, cols: usize, cpu: &Cpu) {
    activations
        .set(View::new(x, m, cols).unwrap(), cpu)
        .unwrap();
}

#[test]
fn threads_change_no_bit() {
    let threads = |n| {
        With::new(n, |pieces, piece: &(dyn Fn(usize) + Sync)| {
            std::thread::scope(|scope| {
                for i in 0..pieces {
                    scope.spawn(move || piece(i));
                }
            });
        })
    };
    let (rows, cols) = (200, 1024);
    let packed = packed(Nf4::new(64).unwrap(), rows, cols);
    let x = random(13 * cols, 1);
    for mode in [
        Mode::F32,
        Mode::Bf16,
        Mode::Int8PerRow,
        Mode::Int8PerGroup,
        Mode::LlmInt8,
    ] {
        let one = product(&packed, &x, mode, &Cpu::detect().with_threads(&Serial));
        for n in [2, 3, 5] {
            let threads = threads(n);
            let many = product(&packed, &x, mode, &Cpu::detect().with_threads(&threads));
            assert_eq!(one, many, "{mode:?} on {n}");
        }
        // And each row is what it is alone.
        for row in [0, 7, 12] {
            let alone = product(&packed, &x[row * cols..][..cols], mode, &Cpu::detect());
            assert_eq!(alone, one[row * rows..][..rows], "{mode:?} row {row}");
        }
    }
}

#[test]
fn backends_that_do_too_much_or_too_little_do_no_harm() {
    let packed = packed(Int8(Grouping::Row), 300, 512);
    let x = random(512, 1);
    let expected = product(&packed, &x, Mode::Int8PerRow, &Cpu::detect());
    let none = With::new(4, |_, _: &(dyn Fn(usize) + Sync)| {});
    let twice = With::new(4, |n, piece: &(dyn Fn(usize) + Sync)| {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..n + 5).for_each(|_| piece(0)));
            }
        });
    });
    for cpu in [
        Cpu::detect().with_threads(&none),
        Cpu::detect().with_threads(&twice),
    ] {
        assert_eq!(product(&packed, &x, Mode::Int8PerRow, &cpu), expected);
    }
}

/// Room is made for as many workers as are then set to work.
#[test]
fn a_backend_that_grows_does_no_harm() {
    struct Growing(std::sync::atomic::AtomicUsize);
    impl ferrotune_quant::Parallel for Growing {
        fn threads(&self) -> usize {
            1 + 3 * self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        }
        fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
            std::thread::scope(|scope| {
                for i in 0..pieces {
                    scope.spawn(move || piece(i));
                }
            });
        }
    }
    let packed = packed(Nf4::new(64).unwrap(), 600, 512);
    let x = random(300 * 512, 1);
    for mode in [Mode::Int8PerGroup, Mode::Bf16] {
        let expected = product(&packed, &x, mode, &Cpu::detect());
        let growing = Growing(0.into());
        let cpu = Cpu::detect().with_threads(&growing);
        assert_eq!(product(&packed, &x, mode, &cpu), expected);
    }
}

/// What is left of other activations, of other numbers of rows, of another instruction set, or of a refusal
/// does not show.
#[test]
fn activations_can_be_set_again() {
    const COLS: usize = 192;
    let per_row = packed(Int8(Grouping::Row), 20, COLS);
    let in_groups = packed(Int8Asymmetric(Grouping::Block(32)), 20, COLS);
    for (packed, mode) in [
        (&per_row, Mode::Int8PerRow),
        (&per_row, Mode::LlmInt8),
        (&in_groups, Mode::Int8PerGroup),
        (&in_groups, Mode::Bf16),
        (&in_groups, Mode::F32),
    ] {
        let mut activations = Activations::new(packed, mode).unwrap();
        activations.set_threshold(1.5);
        let mut scratch = Scratch::new();
        for (seed, (rows, isa)) in [40, 40, 5, 13, 13, 40, 1, 40]
            .into_iter()
            .flat_map(|rows| Isa::available().map(move |isa| (rows, isa)))
            .enumerate()
        {
            let mut x = random(rows * COLS, seed as u64);
            let cpu = Cpu::with_isa(isa).unwrap();
            let mut multiply = |activations: &mut Activations, x: &[f32]| {
                activations.set(View::new(x, rows, COLS).unwrap(), &cpu)?;
                let mut y = vec![0.0; rows * 20];
                packed.gemm(activations, &mut y, &mut scratch, &cpu)?;
                Ok::<_, Error>(y)
            };
            let mut fresh = Activations::new(packed, mode).unwrap();
            fresh.set_threshold(1.5);
            let expected = multiply(&mut fresh, &x).unwrap();
            assert_eq!(
                multiply(&mut activations, &x).unwrap(),
                expected,
                "{mode:?} {rows} {isa}"
            );
            let last = x.len() - 1;
            x[last] = f32::NAN;
            multiply(&mut activations, &x).unwrap_err();
        }
    }
}

/// Each row of weights adds its own, in one row of activations and in many.
#[test]
fn outliers_meet_their_rows() {
    const ROWS: usize = 75;
    const COLS: usize = 64;
    let packed = packed(Int8(Grouping::Row), ROWS, COLS);
    let mut w = vec![0.0; COLS];
    for isa in Isa::available() {
        for m in [1, 3, 40] {
            let mut x = random(m * COLS, 9);
            for row in x.chunks_mut(COLS) {
                (row[5], row[60]) = (900.0, -70.0);
            }
            let mut activations = Activations::new(&packed, Mode::LlmInt8).unwrap();
            let three = With::new(3, |n, piece: &(dyn Fn(usize) + Sync)| {
                (0..n).rev().for_each(piece)
            });
            let cpu = Cpu::with_isa(isa).unwrap().with_threads(&three);
            activations
                .set(View::new(&x, m, COLS).unwrap(), &cpu)
                .unwrap();
            assert_eq!(activations.outlier_columns(), [5, 60]);
            let mut y = vec![0.0; m * ROWS];
            packed
                .gemm(&activations, &mut y, &mut Scratch::new(), &cpu)
                .unwrap();
            for (i, y) in y.iter().enumerate() {
                packed.dequantize_row(i % ROWS, &mut w);
                let terms = w.iter().zip(&x[i / ROWS * COLS..]);
                let exact: f64 = terms.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                assert!(
                    (f64::from(*y) - exact).abs() < 1.0,
                    "{isa} {m} {i}: {y} {exact}"
                );
            }
        }
    }
    // Where nothing is ordinary all columns are multiplied in f32.
    let x = random(COLS, 9);
    let mut activations = Activations::new(&packed, Mode::LlmInt8).unwrap();
    activations.set_threshold(f32::NAN);
    let cpu = Cpu::detect();
    activations
        .set(View::new(&x, 1, COLS).unwrap(), &cpu)
        .unwrap();
    let mut y = vec![0.0; ROWS];
    packed.gemv(&activations, &mut y, &cpu).unwrap();
    let exact = product(&packed, &x, Mode::F32, &cpu);
    assert!(
        y.iter()
            .zip(&exact)
            .all(|(y, exact)| (y - exact).abs() < 1e-4)
    );
}

/// The longest row: its sums, which begin 128 too large for each weight, wrap and come back.
#[test]
fn the_largest_sums_fit_32_bits() {
    const COLS: usize = 131_072;
    let cpu = Cpu::detect();
    for (weight, code) in [(1.0, 127), (-1.0, -127)] {
        let weights = vec![weight; COLS];
        let view = View::new(&weights, 1, COLS).unwrap();
        let quantized = Quantized::new(Int8(Grouping::Row), view, &cpu).unwrap();
        assert_eq!(quantized.code(0, 7).cast_signed(), code);
        let packed = Packed::new(&quantized, &cpu).unwrap();
        for m in [1, 6] {
            let x = vec![-127.0; m * COLS];
            for isa in Isa::available() {
                let y = product(&packed, &x, Mode::Int8PerRow, &Cpu::with_isa(isa).unwrap());
                let exact = -127.0 * COLS as f32 * weight;
                assert!(
                    y.iter().all(|y| (y / exact - 1.0).abs() < 1e-6),
                    "{isa} {m}: {}",
                    y[0]
                );
            }
        }
    }
    let weights = vec![1.0; COLS + 8];
    let view = View::new(&weights, 1, COLS + 8).unwrap();
    let quantized = Quantized::new(Int8(Grouping::Row), view, &cpu).unwrap();
    let error = Packed::new(&quantized, &cpu).unwrap_err().to_string();
    assert!(
        error.contains("131072") && error.contains("131080"),
        "{error}"
    );
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let packed = packed(Nf4::new(64).unwrap(), 16, 128);
    let cpu = Cpu::detect();
    let mut activations = Activations::new(&packed, Mode::Int8PerGroup).unwrap();
    let x = random(120, 1);
    let error = activations
        .set(View::new(&x, 1, 120).unwrap(), &cpu)
        .unwrap_err();
    assert!(
        error.to_string().contains("[1, 120]") && error.to_string().contains("128"),
        "{error}"
    );

    let mut x = random(256, 1);
    x[130] = f32::NAN;
    let error = activations
        .set(View::new(&x, 2, 128).unwrap(), &cpu)
        .unwrap_err();
    let Error::NonFinite {
        index, row, col, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((index, row, col), (130, 1, 2));

    let x = random(128, 1);
    activations
        .set(View::new(&x, 1, 128).unwrap(), &cpu)
        .unwrap();
    let error = packed.gemv(&activations, &mut [0.0; 15], &cpu).unwrap_err();
    assert_eq!(error.to_string(), "product: 15 elements, expected 16");

    let other = Activations::new(&packed_other(), Mode::Int8PerGroup).unwrap();
    let error = packed.gemv(&other, &mut [0.0; 16], &cpu).unwrap_err();
    assert!(error.to_string().contains("[128, 32]"), "{error}");

    let floats = self::packed(MxFp8E4m3(ScaleRounding::Floor), 16, 128);
    assert!(Activations::new(&floats, Mode::Int8PerRow).is_err());
    assert!(
        Packed::new(&odd_groups(), &cpu)
            .unwrap_err()
            .to_string()
            .contains("multiple of 8")
    );
}

/// Int8 activations may be shared, but not with weights that are floats.
#[test]
fn shared_activations_do_not_fit_every_matrix() {
    let (int8, fp8) = (
        packed(Int8(Grouping::Block(32)), 16, 64),
        packed(MxFp8E4m3(ScaleRounding::Floor), 16, 64),
    );
    let x = random(64, 1);
    let cpu = Cpu::detect();
    let mut activations = Activations::new(&int8, Mode::Int8PerGroup).unwrap();
    activations
        .set(View::new(&x, 1, 64).unwrap(), &cpu)
        .unwrap();
    let mut y = [0.0; 16];
    let error = fp8.gemv(&activations, &mut y, &cpu).unwrap_err();
    assert!(error.to_string().contains("8-bit floats"), "{error}");
}

/// Two scales that overflow times a sum of zero.
#[test]
fn a_bound_is_infinite_where_the_way_to_the_product_overflows() {
    let cpu = Cpu::detect();
    let mut weights = [0.0; 32];
    weights[0] = 1e25;
    let mut x = [0.0; 32];
    x[1] = 1e25;
    let quantized = Quantized::new(
        Int8(Grouping::Block(16)),
        View::new(&weights, 1, 32).unwrap(),
        &cpu,
    );
    let packed = Packed::new(&quantized.unwrap(), &cpu).unwrap();
    let mut bound = [0.0];
    packed
        .error_bounds(Mode::Int8PerGroup, &x, &mut bound)
        .unwrap();
    assert!(bound[0].is_infinite() && product(&packed, &x, Mode::Int8PerGroup, &cpu)[0].is_nan());
    packed.error_bounds(Mode::F32, &x, &mut bound).unwrap();
    assert!(bound[0].is_finite());
}

#[test]
fn shapes_that_cannot_be_counted_are_refused() {
    let structure = packed_other().structure().clone();
    for shape in [[usize::MAX, 32], [32, usize::MAX], [1 << 40, 1 << 40]] {
        let error = Packed::from_parts(shape, structure.clone(), &[], &[], &[]).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

fn packed_other() -> Packed<'static> {
    packed(Int8(Grouping::Block(32)), 16, 128)
}

fn odd_groups() -> Quantized<'static, Int8> {
    let weights = random(16 * 60, 1);
    let view = View::new(&weights, 16, 60).unwrap();
    Quantized::new(Int8(Grouping::Block(20)), view, &Cpu::detect()).unwrap()
}

#[test]
fn activations_for_one_instruction_set_are_multiplied_by_another() {
    // All lay activations out in one way but AMX, whose own only AMX multiplies.
    let packed = packed(Nf4::new(64).unwrap(), 40, 256);
    let x = random(19 * 256, 4);
    let expected = product(
        &packed,
        &x,
        Mode::Int8PerGroup,
        &Cpu::with_isa(Isa::Scalar).unwrap(),
    );
    for set in Isa::available() {
        let mut activations = Activations::new(&packed, Mode::Int8PerGroup).unwrap();
        let view = View::new(&x, 19, 256).unwrap();
        activations.set(view, &Cpu::with_isa(set).unwrap()).unwrap();
        for multiply in Isa::available() {
            let mut y = vec![0.0; 19 * 40];
            let cpu = Cpu::with_isa(multiply).unwrap();
            let result = packed.gemm(&activations, &mut y, &mut Scratch::new(), &cpu);
            if set == Isa::Amx && multiply != Isa::Amx {
                let error = result.unwrap_err().to_string();
                let both = error.contains("amx") && error.contains(multiply.name());
                assert!(both, "{error}");
            } else {
                result.unwrap();
                assert_eq!(y, expected, "set for {set}, multiplied by {multiply}");
            }
        }
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn arrays_are_viewed_where_they_lie() {
    use ndarray::{Array2, s};
    let all = Array2::from_shape_fn((6, 200), |(i, j)| ((i * 200 + j) as f32 * 0.1).sin());
    let cpu = Cpu::detect();
    // Some columns of some rows: rows lie apart.
    let part = all.slice(s![1..;2, 8..136]);
    let view = View::try_from(part).unwrap();
    assert_eq!((view.rows(), view.cols()), part.dim());
    let format = Int8(Grouping::Block(32));
    let found = Quantized::new(format, view, &cpu).unwrap();
    let copy = part.as_standard_layout();
    let copy = View::new(copy.as_slice().unwrap(), 3, 128).unwrap();
    assert_eq!(found, Quantized::new(format, copy, &cpu).unwrap());
    // A column, one row, nothing; and what cannot be viewed says so.
    assert_eq!(
        View::try_from(all.slice(s![2..3, ..])).unwrap().row(0)[7],
        all[[2, 7]]
    );
    assert_eq!(
        View::try_from(all.slice(s![.., 3..4])).unwrap().row(5)[0],
        all[[5, 3]]
    );
    assert_eq!(View::try_from(all.slice(s![0..0, ..])).unwrap().rows(), 0);
    for odd in [all.t(), all.slice(s![..;-1, ..]), all.slice(s![.., ..;2])] {
        let error = View::try_from(odd).unwrap_err();
        assert!(error.to_string().contains("strides"), "{error}");
    }
}

#[test]
fn a_matrix_without_columns_has_products_of_zero() {
    let mut structure = packed(Int8(Grouping::Row), 16, 64).structure().clone();
    structure.group = 1;
    let nothing = Packed::from_parts([20, 0], structure, &[], &[], &[]).unwrap();
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa).unwrap();
        for mode in [
            Mode::F32,
            Mode::Bf16,
            Mode::Int8PerRow,
            Mode::Int8PerGroup,
            Mode::LlmInt8,
        ] {
            for m in [1, 3, 40] {
                let mut activations = Activations::new(&nothing, mode).unwrap();
                activations
                    .set(View::<f32>::new(&[], m, 0).unwrap(), &cpu)
                    .unwrap();
                let mut y = vec![f32::NAN; m * 20];
                nothing
                    .gemm(&activations, &mut y, &mut Scratch::new(), &cpu)
                    .unwrap();
                assert_eq!(y, vec![0.0; m * 20], "{isa} {mode:?} {m}");
            }
        }
    }
}
