//! GPTQ's and AWQ's words: recorded checkpoints, repacking, and tensors that lie.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Recorded, random};
use ferrotune_quant::{
    Awq, Cpu, Format, Gptq, GptqTensors, Int4, Int4Scale, Matrix, Packed, Quantized, View,
    ZeroConvention, f16,
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
        let worst = format.worst_error() * (1.0 + 1e-6);
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
        // A layout of words is packed as it stands.
        let gptq = Gptq::from_quantized(&matrix, ZeroConvention::MinusOne).unwrap();
        prop_assert_eq!(&Packed::new(&gptq, &cpu).unwrap(), &packed);
        let awq = Awq::from_quantized(&matrix).unwrap();
        prop_assert_eq!(&Packed::new(&awq, &cpu).unwrap(), &packed);
        let mut row = vec![0.0; cols];
        for (r, values) in found.chunks(cols).enumerate() {
            packed.dequantize_row(r, &mut row);
            for (a, b) in row.iter().zip(values) {
                prop_assert!((a - b).abs() <= 1e-5 * 2_f32.powi(magnitude), "{a} {b}");
            }
            gptq.dequantize_row(r, &mut row);
            prop_assert_eq!(&row, values);
            awq.dequantize_row(r, &mut row);
            prop_assert_eq!(&row, values);
        }
    }

    #[test]
    fn input_features_in_any_order_come_back(
        order in Just((0..64).collect::<Vec<usize>>()).prop_shuffle(),
        seed in any::<u64>(),
        exact in any::<bool>(),
    ) {
        let (rows, cols, size) = (16, 64, 16);
        let convention = if exact { ZeroConvention::Exact } else { ZeroConvention::MinusOne };
        let cpu = Cpu::detect();
        let values = random(rows * cols, seed);
        let view = View::new(&values, rows, cols).unwrap();
        let format = Int4::new(Some(size), false).unwrap();
        let sorted = Quantized::new(format, view, &cpu).unwrap();
        // Column k of the sorted matrix is input feature order[k].
        let straight = Gptq::from_quantized(&sorted, convention).unwrap();
        let parts = straight.tensors();
        let (mut qweight, mut g_idx) = (vec![0; cols / 8 * rows], vec![0; cols]);
        for (k, feature) in order.iter().copied().enumerate() {
            g_idx[feature] = (k / size) as i32;
            for row in 0..rows {
                let code = i32::from(sorted.code(row, k));
                qweight[feature / 8 * rows + row] |= code << (4 * (feature % 8));
            }
        }
        let tensors = GptqTensors {
            qweight: qweight.into(),
            g_idx: Some(g_idx.clone().into()),
            ..parts
        };
        let shuffled = Gptq::from_tensors([rows, cols], convention, tensors).unwrap();
        let expected = sorted.dequantize(&cpu);
        let found = shuffled.dequantize();
        for row in 0..rows {
            for (k, feature) in order.iter().enumerate() {
                prop_assert_eq!(found[row * cols + feature], expected[row * cols + k]);
            }
        }
        // Within a group input features keep their order.
        let mut stable: Vec<u32> = (0..cols as u32).collect();
        stable.sort_by_key(|feature| g_idx[*feature as usize]);
        let (again, again_order) = shuffled.to_quantized().unwrap();
        let in_order = stable.is_sorted();
        prop_assert_eq!(again_order.is_none(), in_order);
        if let Some(order) = &again_order {
            prop_assert_eq!(order, &stable);
        }
        prop_assert_eq!(shuffled.structure().is_ok(), in_order);
        let again = again.dequantize(&cpu);
        for row in 0..rows {
            for (k, feature) in stable.iter().enumerate() {
                prop_assert_eq!(again[row * cols + k], found[row * cols + *feature as usize]);
            }
        }
    }

    #[test]
    fn whatever_stands_in_g_idx_is_refused_or_read(
        g_idx in proptest::collection::vec(prop_oneof![9 => 0..2_i32, 1 => any::<i32>()], 32),
    ) {
        let tensors = GptqTensors {
            qweight: vec![0x7654_3210; 4 * 8].into(),
            qzeros: vec![0; 2].into(),
            scales: vec![f16::ONE; 16].into(),
            g_idx: Some(g_idx.clone().into()),
        };
        let bad = g_idx.iter().position(|group| !(0..2).contains(group));
        match Gptq::from_tensors([8, 32], ZeroConvention::Exact, tensors) {
            Ok(layer) => {
                prop_assert_eq!(bad, None);
                prop_assert_eq!(&layer.dequantize()[..3], &[0.0, 1.0, 2.0]);
                let even = g_idx.iter().sum::<i32>() == 16;
                prop_assert_eq!(layer.to_quantized().is_ok(), even);
            }
            Err(error) => {
                let expected = bad.map(|index| {
                    format!("g_idx {index} is {}: there is no such group", g_idx[index])
                });
                prop_assert_eq!(Some(error.to_string()), expected);
            }
        }
    }
}

/// Two groups, of 16 and 8: as many as two of 12 would be.
#[test]
fn a_shorter_last_group_is_refused() {
    let cpu = Cpu::detect();
    let values = random(8 * 24, 3);
    let view = View::new(&values, 8, 24).unwrap();
    let matrix = Quantized::new(Int4::new(Some(16), false).unwrap(), view, &cpu).unwrap();
    for error in [
        Gptq::from_quantized(&matrix, ZeroConvention::Exact).unwrap_err(),
        Awq::from_quantized(&matrix).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.starts_with("int4: a block of 16 does not"), "{text}");
    }
    // A group that is longer than the row is the row.
    let matrix = Quantized::new(Int4::new(Some(32), false).unwrap(), view, &cpu).unwrap();
    let gptq = Gptq::from_quantized(&matrix, ZeroConvention::Exact).unwrap();
    assert_eq!(gptq.dequantize(), matrix.dequantize(&cpu));
    let awq = Awq::from_quantized(&matrix).unwrap();
    assert_eq!(awq.dequantize().unwrap(), matrix.dequantize(&cpu));
}

#[test]
fn zeros_ties_denormals_and_giants() {
    let cpu = Cpu::detect();
    for symmetric in [false, true] {
        let format = Int4::new(None, symmetric).unwrap();
        let quantize = |values: &[f32; 8]| {
            let view = View::new(values, 1, 8).unwrap();
            Quantized::new(format, view, &cpu).unwrap()
        };
        for value in [0.0, -0.0, 1e-45, -1e-45, 1e-30] {
            assert_eq!(quantize(&[value; 8]).dequantize(&cpu), [0.0; 8], "{value}");
        }
        // The largest scale there is.
        let large = quantize(&[f32::MAX, -f32::MAX, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(large.scales()[0].scale.to_f32(), 65504.0);
        assert_eq!(large.code(0, 0), 15);
        assert_eq!(large.code(0, 1), 0);
    }
    // Steps of 1 from a zero point of 7: ties to even, before the zero point is added.
    let values = [8.0, -7.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.0];
    let view = View::new(&values, 1, 8).unwrap();
    let matrix = Quantized::new(Int4::new(None, false).unwrap(), view, &cpu).unwrap();
    let expected = Int4Scale {
        scale: f16::ONE,
        zero: 7,
    };
    assert_eq!(matrix.scales(), [expected]);
    let codes: Vec<u8> = (0..8).map(|col| matrix.code(0, col)).collect();
    assert_eq!(codes, [15, 0, 7, 9, 9, 7, 5, 7]);
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
    // Fifteen in the second: either way there is no matrix of neighbours to pack.
    assert!(uneven.structure().is_err());
    let mut tensors = good();
    tensors.g_idx.as_mut().unwrap().to_mut()[20] = 0;
    let uneven = make(tensors).unwrap();
    assert!(uneven.to_quantized().is_err());
    let error = Packed::new(&uneven, &Cpu::detect()).unwrap_err();
    assert!(error.to_string().contains("input feature 20"), "{error}");
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
