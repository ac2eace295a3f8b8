//! GPTQ and AWQ.

use crate::{bytes_of, common, copied, open};
use ferrotune_quant::files::awq::{self, AwqParts};
use ferrotune_quant::files::gptq::{self, GptqParts, ZeroPoints};
use ferrotune_quant::files::{NewTensor, Safetensors};
use safetensors::Dtype;

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";
const GPTQ: [(&str, ZeroPoints); 2] = [
    ("gptq", ZeroPoints::LessOne),
    ("gptq_v2", ZeroPoints::Exact),
];

#[test]
fn gptq_values_are_the_peers() {
    for (name, zeros) in GPTQ {
        let file = open(name);
        let expected = common::Recorded::open(&format!("files/{name}.expected.safetensors"));
        for (prefix, in_order) in [(Q, true), (K, false)] {
            let parts = gptq::read(&file.tensors(), prefix, zeros).unwrap();
            let weight = format!("{prefix}.weight");
            assert_eq!(parts.shape(), *expected.shape(&weight));
            assert_eq!(parts.dequantize(), expected.floats(&weight), "{name}");
            assert_eq!((parts.is_in_order(), parts.group()), (in_order, 32));
            for tensor in parts.tensors(prefix) {
                assert_eq!(tensor, file.tensors().tensor(&tensor.name).unwrap().into());
            }
        }
    }
}

#[test]
fn awq_values_are_the_peers() {
    let file = open("awq");
    let expected = common::Recorded::open("files/awq.expected.safetensors");
    for (prefix, group) in [(Q, 32), (K, 64)] {
        let parts = awq::read(&file.tensors(), prefix).unwrap();
        let weight = format!("{prefix}.weight");
        assert_eq!(parts.shape(), *expected.shape(&weight));
        assert_eq!(parts.dequantize(), expected.floats(&weight));
        assert_eq!(parts.group(), group);
        for tensor in parts.tensors(prefix) {
            assert_eq!(tensor, file.tensors().tensor(&tensor.name).unwrap().into());
        }
    }
}

/// Codes, zero points and scales that were taken from a file, packed again, are the file.
#[test]
fn what_is_packed_is_the_peers() {
    for (name, zeros) in GPTQ {
        let file = open(name);
        for prefix in [Q, K] {
            let parts = gptq::read(&file.tensors(), prefix, zeros).unwrap();
            let [out, inputs] = parts.shape();
            let groups = inputs / parts.group();
            let each = |side: usize| (0..out).flat_map(move |i| (0..side).map(move |j| (i, j)));
            let codes: Vec<u8> = each(inputs).map(|(i, j)| parts.code(i, j)).collect();
            let points: Vec<u8> = each(groups).map(|(i, g)| parts.zero(i, g)).collect();
            let scales: Vec<f32> = each(groups).map(|(i, g)| parts.scale(i, g)).collect();
            let order: Vec<usize> = (0..inputs).map(|j| parts.group_of(j)).collect();
            let pack = |points: &[u8]| {
                GptqParts::pack([out, inputs], &codes, points, &scales, &order, zeros)
            };
            assert_eq!(pack(&points).unwrap(), parts);
            let mut bad = points.clone();
            bad[3] = if zeros == ZeroPoints::LessOne { 0 } else { 16 };
            let error = pack(&bad).unwrap_err().to_string();
            assert!(error.contains("out of its range"), "{error}");
            assert!(pack(&points[1..]).is_err());
        }
    }
    let file = open("awq");
    for prefix in [Q, K] {
        let parts = awq::read(&file.tensors(), prefix).unwrap();
        let [out, inputs] = parts.shape();
        let groups = inputs / parts.group();
        let each = |side: usize| (0..out).flat_map(move |i| (0..side).map(move |j| (i, j)));
        let codes: Vec<u8> = each(inputs).map(|(i, j)| parts.code(i, j)).collect();
        let points: Vec<u8> = each(groups).map(|(i, g)| parts.zero(i, g)).collect();
        let scales: Vec<f32> = each(groups).map(|(i, g)| parts.scale(i, g)).collect();
        let packed = AwqParts::pack([out, inputs], &codes, &points, &scales).unwrap();
        assert_eq!(packed, parts);
        assert!(AwqParts::pack([out, inputs], &codes[1..], &points, &scales).is_err());
    }
}

fn says(name: &str, key: &str, edit: impl FnOnce(&mut NewTensor), words: &[&str]) {
    let file = open(name);
    let mut tensors = copied(&file.tensors());
    let name_of = format!("{Q}.{key}");
    edit(
        tensors
            .iter_mut()
            .find(|tensor| tensor.name == name_of)
            .unwrap(),
    );
    let bytes = bytes_of(tensors);
    let file = Safetensors::new("lies.safetensors", &bytes).unwrap();
    let error = match name {
        "awq" => awq::read(&file, Q).map(drop),
        _ => gptq::read(&file, Q, ZeroPoints::LessOne).map(drop),
    };
    let error = error.expect_err(&format!("{words:?}")).to_string();
    for word in words.iter().chain(&["lies.safetensors"]) {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn files_that_lie_are_refused() {
    for name in ["gptq", "awq"] {
        let float = |t: &mut NewTensor| t.dtype = Dtype::F32;
        says(name, "qweight", float, &["qweight is F32, expected I32"]);
        says(name, "qzeros", float, &["qzeros is F32, expected I32"]);
        says(
            name,
            "qweight",
            |t| t.shape = vec![384],
            &["qweight", "2 dimensions"],
        );
        says(
            name,
            "qzeros",
            |t| t.shape = vec![3, 4],
            &["qzeros", "[3, 4]"],
        );
        says(
            name,
            "qzeros",
            |t| t.shape = vec![2, 6],
            &["qzeros", "[2, 6]", "[2, 3]"],
        );
        says(
            name,
            "scales",
            |t| t.shape = vec![24, 4],
            &["scales", "[24, 4]", "[4, 24]"],
        );
        let infinite = |t: &mut NewTensor| t.data.to_mut()[4..6].copy_from_slice(&[0, 0x7c]);
        says(name, "scales", infinite, &["scales: scale 2 is inf"]);
        says(name, "scales", |t| t.dtype = Dtype::I16, &["scales is I16"]);
        let empty = |t: &mut NewTensor| (t.shape, t.data) = (vec![1 << 60, 0], vec![].into());
        says(name, "qweight", empty, &["qweight", "not empty"]);
        says(
            name,
            "qzeros",
            empty,
            &["qzeros", "[1152921504606846976, 0]"],
        );
    }
    let group = |value: i32| {
        move |t: &mut NewTensor| t.data.to_mut()[..4].copy_from_slice(&value.to_le_bytes())
    };
    says(
        "gptq",
        "g_idx",
        group(4),
        &["g_idx: channel 0 is in group 4, there are 4"],
    );
    says(
        "gptq",
        "g_idx",
        group(-1),
        &["g_idx: channel 0 is in group -1"],
    );
    says(
        "gptq",
        "g_idx",
        |t| t.shape = vec![2, 64],
        &["g_idx", "[128]"],
    );
}

/// Older files have no order.
#[test]
fn channels_without_an_order_are_in_order() {
    let file = open("gptq");
    let tensors = copied(&file.tensors());
    let rest = tensors
        .into_iter()
        .filter(|tensor| !tensor.name.ends_with("g_idx"));
    let bytes = bytes_of(rest);
    let without = Safetensors::new("without", &bytes).unwrap();
    let read = |file: &Safetensors| {
        let parts = gptq::read(file, Q, ZeroPoints::LessOne).unwrap();
        parts.dequantize()
    };
    assert_eq!(read(&without), read(&file.tensors()));
}
