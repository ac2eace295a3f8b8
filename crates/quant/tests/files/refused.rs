//! Files that were cut short, or lie: an error each, which names file and key.

use crate::{RECORDED, bytes_of, copied, open, recorded};
use ferrotune_quant::files::{
    Mapped, NewTensor, Result, Safetensors, SafetensorsFile, SafetensorsWriter, Scheme, mxfp4,
    packed,
};
use ferrotune_quant::{Cpu, Nf4, Packed, Quantized, View};
use safetensors::Dtype;

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";

fn read(bytes: &[u8], scheme: Scheme, prefix: &str) -> Result<()> {
    let file = Safetensors::new("lies.safetensors", bytes)?;
    scheme.read(&file, prefix).map(drop)
}

fn says(result: Result<()>, words: &[&str]) {
    let error = result.expect_err(&format!("{words:?}")).to_string();
    for word in words.iter().chain(&["lies.safetensors"]) {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

/// Changes a tensor of a recorded file, and expects an error about it.
fn refused<E: FnOnce(&mut NewTensor)>(
    name: &str,
    scheme: Scheme,
    key: &str,
    edit: E,
    words: &[&str],
) {
    let file = open(name);
    let mut tensors = copied(&file.tensors());
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == key);
    edit(tensor.unwrap_or_else(|| panic!("{name} has no {key}")));
    says(read(&bytes_of(tensors), scheme, prefix(key)), words);
}

fn prefix(key: &str) -> &str {
    [Q, K]
        .into_iter()
        .find(|prefix| key.starts_with(prefix))
        .unwrap_or("")
}

fn floats(tensor: &mut NewTensor, place: usize, value: f32) {
    tensor.data.to_mut()[4 * place..][..4].copy_from_slice(&value.to_le_bytes());
}

fn text(tensor: &mut NewTensor, from: &str, to: &str) {
    let text = String::from_utf8(tensor.data.to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replace(from, to);
    tensor.shape = vec![text.len()];
    tensor.data = text.into_bytes().into();
}

fn of_type(tensor: &mut NewTensor, dtype: Dtype) {
    tensor.shape = vec![tensor.data.len() * 8 / dtype.bitsize()];
    tensor.dtype = dtype;
}

#[test]
fn files_cut_short() {
    let names = RECORDED.iter().map(|(name, _)| *name);
    for name in names.chain(["gptq", "gptq_v2", "awq"]) {
        let bytes = std::fs::read(recorded(&format!("{name}.safetensors"))).unwrap();
        for length in (0..bytes.len()).step_by(64).chain([1, 7, 8, 9]) {
            let file = Safetensors::new("lies.safetensors", &bytes[..length]);
            says(file.map(drop), &[]);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.safetensors");
    std::fs::write(&path, []).unwrap();
    assert!(Mapped::open(&path).unwrap().is_empty());
    let error = SafetensorsFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("empty.safetensors: not a safetensors file: 0 bytes"));
    let missing = SafetensorsFile::open(folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none: "));
}

/// A header as it stands, and so many bytes of data.
fn raw(header: &str, data: usize) -> Result<()> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    Safetensors::new("lies.safetensors", &bytes).map(drop)
}

#[test]
fn headers_that_lie() {
    let with_length = |n: u64| {
        let bytes = [&n.to_le_bytes()[..], b"{}"].concat();
        Safetensors::new("lies.safetensors", &bytes).map(drop)
    };
    says(
        with_length(u64::MAX),
        &["18446744073709551615", "2 are left"],
    );
    says(with_length(100_000_001), &["100000001"]);
    says(with_length(3), &["a header of 3 bytes"]);
    says(with_length(1), &["not a safetensors header"]);
    assert!(with_length(2).is_ok());
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"t": {{"dtype": "U8", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    assert!(raw(&tensor("[4]", "[0, 4]"), 4).is_ok());
    says(raw(&tensor("[4]", "[0, 4]"), 5), &["4 bytes", "has 5"]);
    says(raw(&tensor("[4]", "[0, 4]"), 3), &["4 bytes", "has 3"]);
    says(raw(&tensor("[4]", "[1, 5]"), 5), &[]);
    says(raw(&tensor("[4]", "[4, 0]"), 4), &[]);
    says(raw(&tensor("[5]", "[0, 4]"), 4), &[]);
    says(raw(&tensor("[-1]", "[0, 4]"), 4), &[]);
    says(raw(&tensor("[4294967296, 4294967296]", "[0, 0]"), 0), &[]);
    // safetensors 0.7 adds the sum of these to the length of the header, unchecked.
    let eighth = usize::MAX / 8;
    let tensors = (0..8).map(|i| {
        let (begin, end) = (i * eighth, (i + 1) * eighth);
        format!(
            r#""{i}": {{"dtype": "U8", "shape": [{eighth}], "data_offsets": [{begin}, {end}]}}"#
        )
    });
    let tensors: Vec<_> = tensors.collect();
    says(
        raw(&format!("{{{}}}", tensors.join(",")), 4),
        &["has 4", "18446744073709551608"],
    );
    says(
        raw(
            r#"{"t": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}"#,
            1,
        ),
        &["X9"],
    );
    says(raw("{\"t\": \u{1}}", 0), &[]);
}

#[test]
fn keys_that_are_not_there() {
    for (name, _) in RECORDED {
        let file = open(name);
        let file = file.tensors();
        let (prefix, scheme) = Scheme::layers(&file).remove(0);
        let mut missing = 0;
        for key in file.names().iter().filter(|key| key.starts_with(&prefix)) {
            let rest: Vec<_> = copied(&file)
                .into_iter()
                .filter(|t| t.name != **key)
                .collect();
            match read(&bytes_of(rest), scheme, &prefix) {
                // A bias, or what older files lack, or what makes it another layout.
                Ok(()) => assert!(
                    ["bias", "weight_format", "weight_zero_point"]
                        .iter()
                        .any(|end| key.ends_with(end)),
                    "{key}"
                ),
                other if key.ends_with("nested_absmax") => says(other, &["absmax is U8"]),
                other => {
                    missing += 1;
                    // Whether it was to be NF4 or FP4 nobody can tell.
                    let key = key.split("__").next().unwrap();
                    says(other, &["there is no tensor", key]);
                }
            }
        }
        assert!(missing >= 2, "{name}");
    }
}

#[test]
fn bitsandbytes() {
    let file = "bnb_nf4";
    let key = |part: &str| format!("{Q}.weight{part}");
    let changed = refused::<fn(&mut NewTensor)>;
    let refused = |part: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        let key = key(part);
        let words: Vec<&str> = words.iter().copied().chain([key.as_str()]).collect();
        refused(file, Scheme::Nf4, &key, edit, &words);
    };
    let state = ".quant_state.bitsandbytes__nf4";
    refused("", |t| of_type(t, Dtype::I8), &["I8, expected U8"]);
    refused(
        "",
        |t| {
            t.shape[0] -= 1;
            t.data.to_mut().pop();
        },
        &["2048 bytes", "[2047, 1]"],
    );
    refused(
        ".absmax",
        |t| of_type(t, Dtype::F16),
        &["F16, expected F32"],
    );
    refused(
        ".absmax",
        |t| {
            t.shape = vec![63];
            t.data.to_mut().truncate(252);
        },
        &["[63]", "[64]"],
    );
    refused(".absmax", |t| floats(t, 3, f32::NAN), &["scale 3 is NaN"]);
    refused(
        ".absmax",
        |t| floats(t, 63, f32::NEG_INFINITY),
        &["scale 63 is -inf"],
    );
    refused(
        ".quant_map",
        |t| floats(t, 5, -0.18),
        &["code 5 stands for -0.18"],
    );
    refused(
        ".quant_map",
        |t| {
            t.shape = vec![15];
            t.data.to_mut().truncate(60);
        },
        &["[15]", "[16]"],
    );
    refused(state, |t| text(t, "64", "48"), &["block of 48"]);
    refused(state, |t| text(t, "64", "0"), &["block of 0"]);
    refused(state, |t| text(t, "nf4", "fp4"), &["\"fp4\"", "\"nf4\""]);
    refused(state, |t| text(t, "bfloat16", "float64"), &["float64"]);
    refused(state, |t| text(t, "{", ""), &["not a quant_state"]);
    refused(
        state,
        |t| text(t, "[32, 128]", "null"),
        &["not a quant_state"],
    );
    refused(state, |t| text(t, "[32, 128]", "[]"), &["[]"]);
    refused(
        state,
        |t| text(t, "[32, 128]", "[4294967296, 4294967296]"),
        &["4294967296"],
    );
    refused(state, |t| text(t, "[32, 128]", "[0, 128]"), &["[0, 128]"]);
    changed(
        file,
        Scheme::Nf4,
        &key(state),
        |t| text(t, "[32, 128]", "[64, 128]"),
        &[
            "q_proj.weight has the shape [2048, 1]",
            "4096 bytes",
            "[64, 128]",
        ],
    );
}

#[test]
fn bitsandbytes_nested_and_int8() {
    let nested = |part: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        let key = format!("{Q}.weight{part}");
        refused("bnb_nf4_nested", Scheme::Nf4Nested, &key, edit, words);
    };
    let state = ".quant_state.bitsandbytes__nf4";
    nested(
        ".absmax",
        |t| of_type(t, Dtype::I8),
        &["weight.absmax is I8"],
    );
    nested(
        ".absmax",
        |t| {
            t.shape = vec![63];
            t.data.to_mut().pop();
        },
        &["[63]", "[64]"],
    );
    nested(
        ".nested_absmax",
        |t| floats(t, 0, f32::INFINITY),
        &["nested absmax 0 is inf"],
    );
    nested(
        ".nested_absmax",
        |t| {
            t.shape = vec![2];
            t.data.to_mut().extend([0; 4]);
        },
        &["[2]", "[1]"],
    );
    nested(
        ".nested_quant_map",
        |t| floats(t, 9, f32::NAN),
        &["nested code 9 is NaN"],
    );
    nested(
        ".nested_quant_map",
        |t| {
            t.shape = vec![255];
            t.data.to_mut().truncate(1020);
        },
        &["[256]"],
    );
    nested(
        state,
        |t| text(t, "\"nested_blocksize\": 256", "\"nested_blocksize\": 0"),
        &["blocks of 64 and 0"],
    );
    nested(
        state,
        |t| text(t, "nested_offset", "other"),
        &["without nested_blocksize or nested_offset"],
    );
    nested(
        state,
        |t| text(t, "0.328399658203125", "1e300"),
        &["nested offset 0 is inf"],
    );
    let int8 = |part: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        refused(
            "bnb_int8",
            Scheme::Int8,
            &format!("{Q}.{part}"),
            edit,
            words,
        );
    };
    int8(
        "weight",
        |t| of_type(t, Dtype::U8),
        &["q_proj.weight is U8, expected I8"],
    );
    int8(
        "weight",
        |t| t.shape = vec![2048],
        &["[2048]", "2 dimensions"],
    );
    int8(
        "weight",
        |t| t.shape = vec![64, 32],
        &["SCB", "[32]", "[64]"],
    );
    int8(
        "SCB",
        |t| floats(t, 31, f32::NAN),
        &["SCB: scale 31 is NaN"],
    );
    int8(
        "weight_format",
        |t| t.data = vec![2].into(),
        &["weight_format: 2"],
    );
}

#[test]
fn compressed_tensors() {
    let pack = |key: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        refused("ct_pack_quantized", Scheme::Int4, key, edit, words);
    };
    let (q, k) = (
        |part: &str| format!("{Q}.{part}"),
        |part: &str| format!("{K}.{part}"),
    );
    let sides = |tensor: &mut NewTensor, sides: [i64; 2]| {
        tensor.data = sides
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<_>>()
            .into();
    };
    pack(
        &q("weight_packed"),
        |t| of_type(t, Dtype::F32),
        &["F32, expected I32"],
    );
    pack(
        &q("weight_packed"),
        |t| t.shape = vec![12, 32],
        &["weight_packed", "[12, 32]", "[24, 16] of 4"],
    );
    for (shape, words) in [
        ([-24, 128], "[-24, 128] is not a shape"),
        ([i64::MAX, i64::MAX], "[24, 16]"),
        ([24, 0], "[24, 0]"),
        ([24, 129], "[24, 17] of 4"),
    ] {
        let key = q("weight_shape");
        refused(
            "ct_pack_quantized",
            Scheme::Int4,
            &key,
            |t| sides(t, shape),
            &[words],
        );
    }
    // 121 to 128 columns have 16 words; these are not whole groups.
    let key = q("weight_shape");
    refused(
        "ct_pack_quantized",
        Scheme::Int4,
        &key,
        |t| sides(t, [24, 127]),
        &["divide a row of 127"],
    );
    pack(
        &q("weight_scale"),
        |t| t.data.to_mut()[10..12].copy_from_slice(&[0xc0, 0x7f]),
        &["weight_scale: scale 5 is NaN"],
    );
    pack(
        &q("weight_scale"),
        |t| of_type(t, Dtype::U16),
        &["weight_scale"],
    );
    pack(
        &q("weight_scale"),
        |t| t.shape = vec![4, 24],
        &["[4, 24]", "[24, 24]"],
    );
    pack(
        &k("weight_zero_point"),
        |t| t.shape = vec![2, 3],
        &["weight_zero_point", "[2, 3]", "[3, 2]"],
    );
    pack(
        &k("weight_zero_point"),
        |t| of_type(t, Dtype::I8),
        &["weight_zero_point is I8"],
    );

    let fp4 = |key: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        refused("ct_nvfp4", Scheme::NvFp4, key, edit, words);
    };
    fp4(
        &q("weight_scale"),
        |t| t.dtype = Dtype::U8,
        &["U8, expected F8_E4M3"],
    );
    fp4(
        &q("weight_scale"),
        |t| t.data.to_mut()[7] = 0x7f,
        &["weight_scale: scale 7 is NaN"],
    );
    fp4(
        &q("weight_scale"),
        |t| t.shape = vec![8, 24],
        &["[8, 24]", "[24, 8]"],
    );
    fp4(
        &q("weight_packed"),
        |t| t.shape = vec![128, 12],
        &["weight_packed", "whole blocks of 16"],
    );
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
        let key = q("weight_global_scale");
        let words = ["weight_global_scale", "not a positive scale"];
        refused(
            "ct_nvfp4",
            Scheme::NvFp4,
            &key,
            |t| floats(t, 0, value),
            &words,
        );
    }
}

#[test]
fn columns_out_of_order() {
    let file = open("ct_pack_quantized");
    let mut tensors = copied(&file.tensors());
    let mut groups: Vec<i32> = (0..128).map(|col| col / 32).collect();
    let order = |groups: &[i32]| NewTensor {
        name: format!("{Q}.weight_g_idx"),
        dtype: Dtype::I32,
        shape: vec![128],
        data: groups.iter().flat_map(|n| n.to_le_bytes()).collect(),
    };
    tensors.push(order(&groups));
    read(&bytes_of(tensors.clone()), Scheme::Int4, Q).unwrap();
    groups.swap(31, 32);
    *tensors.last_mut().unwrap() = order(&groups);
    says(
        read(&bytes_of(tensors), Scheme::Int4, Q),
        &["weight_g_idx: column 31 is in group 1"],
    );
}

#[test]
fn experts() {
    let prefix = "model.layers.0.mlp.experts.gate_up_proj";
    let file = open("mxfp4_gpt_oss");
    let refuses = says;
    let says = |edit: fn(&mut NewTensor), part: &str, words: &[&str]| {
        let mut tensors = copied(&file.tensors());
        let key = format!("{prefix}_{part}");
        edit(
            tensors
                .iter_mut()
                .find(|tensor| tensor.name == key)
                .unwrap(),
        );
        let bytes = bytes_of(tensors);
        let file = Safetensors::new("lies.safetensors", &bytes).unwrap();
        let read = || {
            let experts = mxfp4::read(&file, prefix)?;
            (0..experts.len()).try_for_each(|i| experts.expert(i).map(drop))
        };
        refuses(read(), &[words, &[&key]].concat());
    };
    says(|t| t.shape = vec![2, 32, 32], "blocks", &["4 dimensions"]);
    says(
        |t| t.shape = vec![2, 32, 1, 32],
        "blocks",
        &["[2, 32, 1, 16]"],
    );
    says(
        |t| t.shape = vec![4, 16, 2],
        "scales",
        &["[4, 16, 2]", "[2, 32, 2]"],
    );
    says(
        |t| t.data.to_mut()[100] = 255,
        "scales",
        &["scale 36 is NaN"],
    );
    says(|t| t.dtype = Dtype::I8, "scales", &["I8, expected U8"]);
    // More experts than could be listed, each of nothing.
    let mut tensors = copied(&file.tensors());
    for (part, shape) in [
        ("blocks", vec![1 << 60, 0, 2, 16]),
        ("scales", vec![1 << 60, 0, 2]),
    ] {
        let key = format!("{prefix}_{part}");
        let tensor = tensors
            .iter_mut()
            .find(|tensor| tensor.name == key)
            .unwrap();
        (tensor.shape, tensor.data) = (shape, vec![].into());
    }
    refuses(
        read(&bytes_of(tensors), Scheme::MxFp4, prefix),
        &[
            "gate_up_proj_blocks",
            "[1152921504606846976, 0, 2, 16]",
            "not empty",
        ],
    );
}

#[test]
fn packed_matrices() {
    let values = crate::common::random(16 * 64, 3);
    let view = View::new(&values, 16, 64).unwrap();
    let cpu = Cpu::detect();
    let matrix = Quantized::new(Nf4::new(32).unwrap(), view, &cpu).unwrap();
    let matrix = Packed::new(&matrix, &cpu).unwrap();
    let structure = "p.packed_structure";
    let refused = |key: &str, edit: &dyn Fn(&mut NewTensor), words: &[&str]| {
        let mut tensors = packed::tensors("p", &matrix).unwrap();
        edit(
            tensors
                .iter_mut()
                .find(|tensor| tensor.name == key)
                .unwrap(),
        );
        let bytes = bytes_of(tensors);
        let file = Safetensors::new("lies.safetensors", &bytes).unwrap();
        says(packed::read(&file, "p").map(drop), words);
    };
    for (from, to, words) in [
        ("\"version\":1", "\"version\":2", "version 2"),
        ("{", "", "not a structure"),
        ("\"rows\":16", "\"rows\":32", "codes of a matrix [32, 64]"),
        (
            "\"rows\":16",
            "\"rows\":18446744073709551615",
            "packed_codes",
        ),
        ("\"cols\":64", "\"cols\":0", "packed_codes"),
        (
            "\"cols\":64",
            "\"cols\":48",
            "packed codes: 512 elements, expected 384",
        ),
        ("\"group\":32", "\"group\":0", "groups of 0"),
        ("\"group\":32", "\"group\":31", "groups of 31"),
        (
            "\"group\":32",
            "\"group\":18446744073709551615",
            "groups of 18446744073709551615",
        ),
        ("\"f32\"", "\"f16\"", "packed scales"),
        ("\"shifted\":false", "\"shifted\":true", "packed_shifts"),
        ("\"factor\":1.0", "\"factor\":1e99", "packed_structure"),
        ("-127,", "-126,", "steps that are not nearest"),
        (
            "\"unit\":0.007",
            "\"unit\":0.008",
            "steps that are not nearest",
        ),
    ] {
        refused(structure, &|t| text(t, from, to), &[words]);
    }
    refused(
        "p.packed_scales",
        &|t| floats(t, 17, f32::NAN),
        &["packed scale"],
    );
    refused(
        "p.packed_codes",
        &|t| t.dtype = Dtype::I8,
        &["packed_codes is I8"],
    );
    let bytes = |t: &mut NewTensor| {
        text(
            t,
            "\"levels\":{\"table\"",
            "\"levels\":{\"bytes\":\"x\"}, \"x\":{\"table\"",
        )
    };
    refused(
        structure,
        &bytes,
        &["a table of 256 values that there is not"],
    );
}

#[test]
fn schemes_that_there_are_not() {
    let error = "nf5".parse::<Scheme>().unwrap_err().to_string();
    assert!(
        error.contains("\"nf5\"") && error.contains("nf4-nested, fp4"),
        "{error}"
    );
    let view = View::new(&[1.0_f32; 30], 3, 10).unwrap();
    for (scheme, words) in [
        (Scheme::MxFp4, "p_blocks: rows of 10"),
        (Scheme::NvFp4, "p.weight_packed: rows of 10"),
    ] {
        let error = scheme
            .quantize("p", view, &Cpu::detect())
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut values = [1.0_f32; 32];
    values[5] = f32::NAN;
    for scheme in Scheme::ALL {
        let view = View::new(&values, 1, 32).unwrap();
        let error = scheme
            .quantize("p", view, &Cpu::detect())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("p: element 5"), "{scheme}: {error}");
    }
    let mut writer = SafetensorsWriter::new();
    writer.add(NewTensor {
        name: "t".into(),
        dtype: Dtype::F32,
        shape: vec![3],
        data: vec![0; 11].into(),
    });
    let error = writer.to_vec().unwrap_err().to_string();
    assert!(
        error.contains("t: 11 bytes for the type F32 and the shape [3]"),
        "{error}"
    );
}
