//! Parts of layers that lie: types, shapes, contents.

use crate::refused::{K, Q, floats, of_type, read, refused, says, text};
use crate::{bytes_of, copied, named, open};
use ferrotune_quant::files::{NewTensor, Safetensors, Scheme, mxfp4, packed};
use ferrotune_quant::{Cpu, Nf4, Packed, Quantized, View};
use safetensors::Dtype;

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
        edit(named(&mut tensors, &key));
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
        let tensor = named(&mut tensors, &key);
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
        edit(named(&mut tensors, key));
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
