//! GPTQ's and AWQ's words: recorded checkpoints, repacking, and tensors that lie.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Recorded, random};
use ferrotune_quant::{
    Awq, Cpu, Gptq, GptqTensors, Int4, Int4Scale, Packed, Quantized, View, ZeroConvention, f16,
};
use proptest::prelude::*;

const LAYERS: [&str; 2] = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
];

fn gptq(
    file: &Recorded,
    layer: &str,
    shape: [usize; 2],
    convention: ZeroConvention,
) -> Gptq<'static> {
    let key = |part: &str| format!("{layer}.{part}");
    let tensors = GptqTensors {
        qweight: file.i32s(&key("qweight")).into(),
        qzeros: file.i32s(&key("qzeros")).into(),
        scales: file.f16s(&key("scales")).into(),
        g_idx: Some(file.i32s(&key("g_idx")).into()),
    };
    Gptq::from_tensors(shape, convention, tensors).unwrap()
}

#[test]
fn checkpoints_have_the_recorded_values() {
    for (name, convention) in [
        ("gptq", ZeroConvention::MinusOne),
        ("gptq_v2", ZeroConvention::Exact),
    ] {
        let file = Recorded::open(&format!("files/{name}.safetensors"));
        let expected = Recorded::open(&format!("files/{name}.expected.safetensors"));
        for layer in LAYERS {
            let key = format!("{layer}.weight");
            let [rows, cols] = expected.matrix(&key);
            let values = expected.floats(&key);
            let stored = gptq(&file, layer, [rows, cols], convention);
            assert_eq!(stored.dequantize(), values, "{name} {layer}");
            let (matrix, order) = stored.to_quantized().unwrap();
            assert_eq!(order.is_some(), layer.ends_with("k_proj"), "{name} {layer}");
            let sorted = matrix.dequantize(&Cpu::detect());
            for row in 0..rows {
                for k in 0..cols {
                    let col = order.as_ref().map_or(k, |order| order[k] as usize);
                    assert_eq!(sorted[row * cols + k], values[row * cols + col]);
                }
            }
            if order.is_none() {
                let again = Gptq::from_quantized(&matrix, convention).unwrap();
                assert_eq!(again, stored, "{name} {layer}");
            }
        }
    }
    let file = Recorded::open("files/awq.safetensors");
    let expected = Recorded::open("files/awq.expected.safetensors");
    for layer in LAYERS {
        let key = |part: &str| format!("{layer}.{part}");
        let shape = expected.matrix(&key("weight"));
        let stored = Awq::from_tensors(
            shape,
            file.i32s(&key("qweight")),
            file.i32s(&key("qzeros")),
            file.f16s(&key("scales")),
        )
        .unwrap();
        assert_eq!(
            stored.dequantize().unwrap(),
            expected.floats(&key("weight")),
            "{layer}"
        );
        let again = Awq::from_quantized(&stored.to_quantized().unwrap()).unwrap();
        assert_eq!(again, stored, "{layer}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_layout_holds_the_same_matrix(
        (rows, groups, seed) in (1_usize..4, 1_usize..4, any::<u64>()),
        symmetric in any::<bool>(),
        magnitude in -12_i32..12,
    ) {
        let (rows, cols) = (8 * rows, 32 * groups);
        let mut values = random(rows * cols, seed);
        values.iter_mut().for_each(|x| *x *= 2_f32.powi(magnitude));
        let cpu = Cpu::detect();
        let format = Int4::new(Some(32), symmetric).unwrap();
        let view = View::new(&values, rows, cols).unwrap();
        let matrix = Quantized::new(format, view, &cpu).unwrap();
        let found = matrix.dequantize(&cpu);
        // The worst case, and half a step of the smallest scale there is.
        let worst = 1.0 / 15.0 + 1.0 / 1024.0;
        for (found, values) in found.chunks(32).zip(values.chunks(32)) {
            let amax = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            for (found, value) in found.iter().zip(values) {
                prop_assert!((found - value).abs() <= worst * amax + 6e-8, "{value} {found} of {amax}");
            }
        }
        for convention in [ZeroConvention::MinusOne, ZeroConvention::Exact] {
            let gptq = Gptq::from_quantized(&matrix, convention).unwrap();
            prop_assert_eq!(&gptq.dequantize(), &found);
            let (again, order) = gptq.to_quantized().unwrap();
            prop_assert!(order.is_none());
            let awq = Awq::from_quantized(&again).unwrap();
            prop_assert_eq!(&awq.dequantize().unwrap(), &found);
        }
        let packed = Packed::new(&matrix, &cpu).unwrap();
        let mut row = vec![0.0; cols];
        for (r, values) in found.chunks(cols).enumerate() {
            ferrotune_quant::Matrix::dequantize_row(&packed, r, &mut row);
            for (a, b) in row.iter().zip(values) {
                prop_assert!((a - b).abs() <= 1e-5 * 2_f32.powi(magnitude), "{a} {b}");
            }
        }
    }
}

#[test]
fn tensors_that_lie_are_refused() {
    let good = || GptqTensors {
        qweight: vec![0; 4 * 8].into(),
        qzeros: vec![0; 2].into(),
        scales: vec![f16::ONE; 16].into(),
        g_idx: Some((0..32).map(|i| i / 16).collect()),
    };
    let make = |tensors| Gptq::from_tensors([8, 32], ZeroConvention::Exact, tensors);
    make(good()).unwrap();
    let mut tensors = good();
    tensors.g_idx.as_mut().unwrap().to_mut()[5] = 2;
    assert_eq!(
        make(tensors).unwrap_err().to_string(),
        "g_idx 5 is 2: there is no such group"
    );
    let mut tensors = good();
    tensors.g_idx.as_mut().unwrap().to_mut()[5] = -1;
    assert!(make(tensors).is_err());
    // Fifteen features in one group and seventeen in the other.
    let mut tensors = good();
    tensors.g_idx.as_mut().unwrap().to_mut()[5] = 1;
    let uneven = make(tensors).unwrap();
    assert_eq!(uneven.dequantize().len(), 256);
    assert!(
        uneven
            .to_quantized()
            .unwrap_err()
            .to_string()
            .contains("one size")
    );
    let mut tensors = good();
    tensors.scales.to_mut()[3] = f16::NAN;
    assert!(
        make(tensors)
            .unwrap_err()
            .to_string()
            .starts_with("scale 3 is NaN")
    );
    let mut tensors = good();
    tensors.qweight.to_mut().pop();
    assert_eq!(
        make(tensors).unwrap_err().to_string(),
        "qweight: 31 elements, expected 32"
    );
    let mut tensors = good();
    tensors.scales.to_mut().pop();
    assert!(make(tensors).is_err());
    let odd = Gptq::from_tensors([9, 32], ZeroConvention::Exact, good());
    assert!(
        odd.unwrap_err()
            .to_string()
            .contains("must divide the rows")
    );

    let scales = vec![
        Int4Scale {
            scale: f16::ONE,
            zero: 16
        };
        8
    ];
    let format = Int4::new(None, false).unwrap();
    let matrix = Quantized::from_parts(format, [8, 8], (), vec![0; 32], scales).unwrap();
    for error in [
        Gptq::from_quantized(&matrix, ZeroConvention::Exact).unwrap_err(),
        Awq::from_quantized(&matrix).unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "zero point of group 0 is 16: four bits hold 0 to 15"
        );
    }
    assert!(Int4::new(Some(33), true).is_err());
}
