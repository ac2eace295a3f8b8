//! GPTQ and AWQ.

use crate::{bytes_of, common, copied, named, open};
use ferrotune_quant::files::{NewTensor, Safetensors, Scheme, awq, gptq};
use ferrotune_quant::{Awq, Cpu, Gptq, Packed, ZeroConvention};
use safetensors::Dtype;

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";
const GPTQ: [(&str, ZeroConvention); 2] = [
    ("gptq", ZeroConvention::MinusOne),
    ("gptq_v2", ZeroConvention::Exact),
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
            let (matrix, order) = parts.to_quantized().unwrap();
            assert_eq!((order.is_none(), matrix.shape()), (in_order, parts.shape()));
            for tensor in gptq::tensors(prefix, &parts) {
                assert_eq!(tensor, file.tensors().tensor(&tensor.name).unwrap().into());
            }
        }
    }
}

#[test]
fn awq_values_are_the_peers() {
    let file = open("awq");
    let expected = common::Recorded::open("files/awq.expected.safetensors");
    for (prefix, groups) in [(Q, 4), (K, 1)] {
        let parts = awq::read(&file.tensors(), prefix).unwrap();
        let weight = format!("{prefix}.weight");
        assert_eq!(parts.shape(), *expected.shape(&weight));
        assert_eq!(parts.dequantize().unwrap(), expected.floats(&weight));
        assert_eq!(parts.groups(), groups);
        for tensor in awq::tensors(prefix, &parts) {
            assert_eq!(tensor, file.tensors().tensor(&tensor.name).unwrap().into());
        }
    }
}

/// Codes, zero points and scales that were taken from a file, packed again, are the file.
#[test]
fn what_is_packed_is_the_peers() {
    for (name, zeros) in GPTQ {
        let file = open(name);
        let parts = gptq::read(&file.tensors(), Q, zeros).unwrap();
        let (matrix, _) = parts.to_quantized().unwrap();
        assert_eq!(Gptq::from_quantized(&matrix, zeros).unwrap(), parts);
    }
    let file = open("awq");
    for prefix in [Q, K] {
        let parts = awq::read(&file.tensors(), prefix).unwrap();
        let matrix = parts.to_quantized().unwrap();
        assert_eq!(Awq::from_quantized(&matrix).unwrap(), parts);
    }
}

/// Values are right whatever the order of the columns; products want groups of neighbours.
#[test]
fn layers_are_found_by_their_keys() {
    let file = open("gptq");
    let file = file.tensors();
    let found = [(K.to_owned(), Scheme::Gptq), (Q.to_owned(), Scheme::Gptq)];
    assert_eq!(Scheme::layers(&file), found);
    let recorded = common::Recorded::open("files/gptq.expected.safetensors");
    for (prefix, neighbours) in [(Q, true), (K, false)] {
        let matrix = Scheme::Gptq.read(&file, prefix).unwrap();
        let expected = recorded.floats(&format!("{prefix}.weight"));
        assert_eq!(crate::dequantize(&*matrix), expected);
        match Packed::new(&*matrix, &Cpu::detect()) {
            Ok(packed) => assert!(neighbours && packed.shape() == matrix.shape()),
            Err(error) => assert!(!neighbours && error.to_string().contains("input feature")),
        }
    }
    let file = open("awq");
    let found = [(K.to_owned(), Scheme::Awq), (Q.to_owned(), Scheme::Awq)];
    assert_eq!(Scheme::layers(&file.tensors()), found);
}

fn says(name: &str, key: &str, edit: impl FnOnce(&mut NewTensor), words: &[&str]) {
    let file = open(name);
    let mut tensors = copied(&file.tensors());
    let name_of = format!("{Q}.{key}");
    edit(named(&mut tensors, &name_of));
    let bytes = bytes_of(tensors);
    let file = Safetensors::new("lies.safetensors", &bytes).unwrap();
    let error = match name {
        "awq" => awq::read(&file, Q).map(drop),
        _ => gptq::read(&file, Q, ZeroConvention::MinusOne).map(drop),
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
        &["g_idx: g_idx 0 is 4", "no such group"],
    );
    says("gptq", "g_idx", group(-1), &["g_idx: g_idx 0 is -1"]);
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
        let parts = gptq::read(file, Q, ZeroConvention::MinusOne).unwrap();
        parts.dequantize()
    };
    assert_eq!(read(&without), read(&file.tensors()));
}
