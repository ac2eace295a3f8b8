//! GGUF's blocks against the real gguf package, and the quantizers of super-blocks against plain rounding.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Recorded, random};
use ferrotune_quant::{
    Cpu, GgufFormat, Isa, KFormat, KQuant, Matrix, Packed, Q4_0, Q4K, Q6K, Q8_0, Quantized, View,
    from_blocks, to_blocks,
};
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
