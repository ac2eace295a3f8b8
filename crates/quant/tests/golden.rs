//! Codes and scales of bitsandbytes and torchao, recorded: ties, zeros, denormals and short blocks
//! included, and the same on every instruction set.
#![allow(clippy::unwrap_used)]

mod common;

use common::Recorded;
use ferrotune_quant::{
    Cpu, Dynamic8, DynamicMap, Element, Format, Fp4, Grouping, Int8, Int8Asymmetric, Isa, LlmInt8,
    MxFp4, MxFp8E4m3, MxFp8E5m2, Nf4, NvFp4, Quantized, SIGNED_MAP, ScaleRounding, UNSIGNED_MAP,
    View,
};
use safetensors::Dtype;

/// Quantizes a case's input, in whatever type it is, on every instruction set, and calls `check`.
fn each<F: Format>(
    file: &Recorded,
    x: &str,
    format: &F,
    magnitudes: bool,
    mut check: impl FnMut(&Quantized<F>, &[f32]),
) {
    let [rows, cols] = file.matrix(x);
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa).unwrap();
        let quantized = match file.dtype(x) {
            Dtype::F32 => quantize(format, file.floats(x), [rows, cols], magnitudes, &cpu),
            Dtype::F16 => quantize(format, file.f16s(x), [rows, cols], magnitudes, &cpu),
            _ => quantize(format, file.bf16s(x), [rows, cols], magnitudes, &cpu),
        };
        check(&quantized, &quantized.dequantize(&cpu));
    }
}

fn quantize<F: Format, T: Element>(
    format: &F,
    mut x: Vec<T>,
    [rows, cols]: [usize; 2],
    magnitudes: bool,
    cpu: &Cpu,
) -> Quantized<'static, F> {
    if magnitudes {
        x.iter_mut()
            .for_each(|x| *x = T::from_f32(x.to_f32().abs()));
    }
    Quantized::new(format.clone(), View::new(&x, rows, cols).unwrap(), cpu).unwrap()
}

/// Equal as numbers: −0 is 0.
fn same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            found == expected,
            "{what}, element {i}: {found:e}, peer {expected:e}"
        );
    }
}

/// In the type that the peer gives its values in.
fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let round = |value: f32| match dtype {
        Dtype::BF16 => ferrotune_quant::bf16::from_f32(value).to_f32(),
        Dtype::F16 => ferrotune_quant::f16::from_f32(value).to_f32(),
        _ => value,
    };
    values.iter().map(|value| round(*value)).collect()
}

/// `CASE/METHOD` of all keys `CASE/METHOD.codes`.
fn methods(file: &Recorded) -> Vec<(String, String)> {
    let names = file.names();
    let methods = names.iter().filter_map(|name| name.strip_suffix(".codes"));
    methods
        .map(|name| {
            let (case, method) = name.split_once('/').unwrap();
            (case.to_owned(), method.to_owned())
        })
        .collect()
}

#[test]
fn four_bits_are_those_of_bitsandbytes() {
    let file = Recorded::open("bnb4.safetensors");
    let mut seen = 0;
    for (case, method) in methods(&file) {
        let parts: Vec<&str> = method.split('.').collect();
        let (kind, block) = (parts[0], parts[1].parse().unwrap());
        if kind == "nf4" {
            bnb4(&file, &case, &method, &Nf4::new(block).unwrap());
        } else {
            bnb4(&file, &case, &method, &Fp4::new(block).unwrap());
        }
        seen += 1;
    }
    assert!(seen > 40, "{seen}");
}

fn bnb4<F: Format<Scale = f32, Tensor = ()>>(
    file: &Recorded,
    case: &str,
    method: &str,
    format: &F,
) {
    let (x, key) = (format!("{case}/x"), format!("{case}/{method}"));
    let part = |name: &str| format!("{key}.{name}");
    let nested = method.ends_with("nested");
    each(file, &x, format, false, |quantized, values| {
        assert_eq!(quantized.codes(), file.bytes(&part("codes")), "{key}");
        let dtype = file.dtype(&part("dq"));
        if !nested {
            same(quantized.scales(), &file.floats(&part("absmax")), &key);
            same(&rounded(values, dtype), &file.floats(&part("dq")), &key);
            return;
        }
        // The mean that is taken off first depends on the order of a sum: the peer's is used.
        let offset = file.floats(&part("offset"))[0];
        let mean = quantized
            .scales()
            .iter()
            .map(|x| f64::from(*x))
            .sum::<f64>()
            / quantized.scales().len() as f64;
        assert!(
            (f64::from(offset) - mean).abs() <= 1e-6 * mean,
            "{key}: {offset} {mean}"
        );
        let centred: Vec<f32> = quantized.scales().iter().map(|x| x - offset).collect();
        let dynamic = Dynamic8::new(DynamicMap::Signed, 256).unwrap();
        let cpu = Cpu::detect();
        let view = View::new(&centred, 1, centred.len()).unwrap();
        let scales = Quantized::new(dynamic, view, &cpu).unwrap();
        assert_eq!(scales.codes(), file.bytes(&part("absmax")), "{key}");
        same(scales.scales(), &file.floats(&part("nested_absmax")), &key);
        let absmax: Vec<f32> = scales.dequantize(&cpu).iter().map(|x| x + offset).collect();
        let codes = quantized.codes().to_vec();
        let expanded =
            Quantized::from_parts(format.clone(), quantized.shape(), (), codes, absmax).unwrap();
        let values = expanded.dequantize(&cpu);
        same(&rounded(&values, dtype), &file.floats(&part("dq")), &key);
    });
}

#[test]
fn tables_are_those_of_bitsandbytes() {
    let file = Recorded::open("bnb4.safetensors");
    assert_eq!(file.floats("map/nf4"), ferrotune_quant::NF4);
    same(&ferrotune_quant::FP4, &file.floats("map/fp4"), "fp4");
    assert_eq!(file.floats("map/signed"), SIGNED_MAP);
    let file = Recorded::open("bnb8.safetensors");
    assert_eq!(file.floats("map/signed"), SIGNED_MAP);
    assert_eq!(file.floats("map/unsigned"), UNSIGNED_MAP);
}

#[test]
fn eight_bits_are_those_of_bitsandbytes() {
    let file = Recorded::open("bnb8.safetensors");
    let mut seen = 0;
    for (case, method) in methods(&file) {
        let (x, key) = (format!("{case}/x"), format!("{case}/{method}"));
        let part = |name: &str| format!("{key}.{name}");
        let map = match method.as_str() {
            "signed" => DynamicMap::Signed,
            "unsigned" => DynamicMap::Unsigned,
            _ => continue,
        };
        let format = Dynamic8::new(map, 256).unwrap();
        each(
            &file,
            &x,
            &format,
            map == DynamicMap::Unsigned,
            |quantized, values| {
                assert_eq!(quantized.codes(), file.bytes(&part("codes")), "{key}");
                same(quantized.scales(), &file.floats(&part("absmax")), &key);
                let dtype = file.dtype(&part("dq"));
                same(&rounded(values, dtype), &file.floats(&part("dq")), &key);
            },
        );
        seen += 1;
    }
    assert!(seen >= 14, "{seen}");
}

#[test]
fn rows_are_those_of_llm_int8() {
    let file = Recorded::open("bnb8.safetensors");
    let mut seen = 0;
    for (case, method) in methods(&file) {
        if method != "vector" {
            continue;
        }
        let (x, key) = (format!("{case}/x"), format!("{case}/{method}"));
        each(&file, &x, &LlmInt8, false, |quantized, values| {
            assert_eq!(
                quantized.codes(),
                file.bytes(&format!("{key}.codes")),
                "{key}"
            );
            same(
                quantized.scales(),
                &file.floats(&format!("{key}.stats")),
                &key,
            );
            same(values, &file.floats(&format!("{key}.dq")), &key);
        });
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn microscaling_is_that_of_torchao() {
    let file = Recorded::open("torchao.safetensors");
    let mut seen = 0;
    for (case, method) in methods(&file) {
        let Some((element, rounding)) = method.split_once('_') else {
            continue;
        };
        let rounding = match rounding {
            "floor" => ScaleRounding::Floor,
            "rceil" => ScaleRounding::Rceil,
            _ => continue,
        };
        // NaN and infinity have a test of their own.
        if case == "special" {
            continue;
        }
        match element {
            "mxfp4" => mx(&file, &case, &method, &MxFp4(rounding)),
            "e4m3" => mx(&file, &case, &method, &MxFp8E4m3(rounding)),
            _ => mx(&file, &case, &method, &MxFp8E5m2(rounding)),
        }
        seen += 1;
    }
    assert!(seen >= 30, "{seen}");
}

fn mx<F: Format<Scale = u8>>(file: &Recorded, case: &str, method: &str, format: &F) {
    let (x, key) = (format!("{case}/x"), format!("{case}/{method}"));
    each(file, &x, format, false, |quantized, values| {
        assert_eq!(
            quantized.scales(),
            file.bytes(&format!("{key}.scale")),
            "{key}"
        );
        assert_eq!(
            quantized.codes(),
            file.bytes(&format!("{key}.codes")),
            "{key}"
        );
        same(values, &file.floats(&format!("{key}.dq")), &key);
    });
}

#[test]
fn nvfp4_is_that_of_torchao() {
    let file = Recorded::open("torchao.safetensors");
    for case in ["normal", "tiny", "bf16", "ties_nvfp4", "zeros"] {
        let (x, key) = (format!("{case}/x"), format!("{case}/nvfp4"));
        each(&file, &x, &NvFp4, false, |quantized, values| {
            let factor = file.floats(&format!("{key}.tensor_scale"))[0];
            assert_eq!(quantized.tensor().factor(), factor, "{key}");
            assert_eq!(
                quantized.scales(),
                file.bytes(&format!("{key}.scale")),
                "{key}"
            );
            assert_eq!(
                quantized.codes(),
                file.bytes(&format!("{key}.codes")),
                "{key}"
            );
            same(values, &file.floats(&format!("{key}.dq")), &key);
        });
    }
}

#[test]
fn int8_is_that_of_torchao() {
    let file = Recorded::open("torchao.safetensors");
    let groupings = [
        ("tensor", Grouping::Tensor),
        ("row", Grouping::Row),
        ("group", Grouping::Block(32)),
    ];
    // The peer rounds the scales of a bf16 tensor to bf16; ours stay in f32.
    for case in ["normal", "zeros", "tiny", "ties_int8", "positive"] {
        for (name, grouping) in groupings {
            let key = format!("{case}/sym_{name}");
            let x = format!("{case}/x");
            each(&file, &x, &Int8(grouping), false, |quantized, values| {
                same(
                    quantized.scales(),
                    &file.floats(&format!("{key}.scale")),
                    &key,
                );
                assert_eq!(
                    quantized.codes(),
                    file.bytes(&format!("{key}.codes")),
                    "{key}"
                );
                if file.has(&format!("{key}.dq")) {
                    same(values, &file.floats(&format!("{key}.dq")), &key);
                }
            });
            let key = format!("{case}/asym_{name}");
            each(
                &file,
                &x,
                &Int8Asymmetric(grouping),
                false,
                |quantized, values| {
                    let scales: Vec<f32> = quantized.scales().iter().map(|x| x.scale).collect();
                    let zeros: Vec<i32> =
                        quantized.scales().iter().map(|x| x.zero.into()).collect();
                    same(&scales, &file.floats(&format!("{key}.scale")), &key);
                    assert_eq!(zeros, file.i32s(&format!("{key}.zero")), "{key}");
                    assert_eq!(
                        quantized.codes(),
                        file.bytes(&format!("{key}.codes")),
                        "{key}"
                    );
                    if file.has(&format!("{key}.dq")) {
                        same(values, &file.floats(&format!("{key}.dq")), &key);
                    }
                },
            );
        }
    }
}
