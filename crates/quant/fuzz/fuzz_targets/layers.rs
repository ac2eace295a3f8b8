//! A valid file of the schemes' keys, with types, shapes and contents of all kinds: what is read can be
//! written, and is then the same.
#![no_main]

use ferrotune_quant::files::nvfp4::{self, NvFp4Keys};
use ferrotune_quant::files::{
    NewTensor, Safetensors, SafetensorsWriter, Scheme, awq, bnb, compressed, gptq, mxfp4,
};
use ferrotune_quant::{Cpu, FP4, NF4, Packed, Quantized, SIGNED_MAP, ZeroConvention};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use safetensors::Dtype;

#[derive(Arbitrary, Debug)]
struct Layer {
    scheme: u8,
    rows: u8,
    cols: u16,
    block: u8,
    /// Changes to what would be right.
    edits: Vec<Edit>,
    bytes: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Edit {
    tensor: u8,
    what: u8,
    at: u16,
    value: u32,
}

const DTYPES: [Dtype; 10] = [
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E4M3,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I16,
    Dtype::I32,
    Dtype::F32,
    Dtype::I64,
    Dtype::F64,
];

fuzz_target!(|layer: Layer| {
    let mut tensors = layer.tensors();
    for edit in &layer.edits {
        edit.apply(&mut tensors);
    }
    let mut writer = SafetensorsWriter::new();
    writer.extend(tensors);
    let Ok(bytes) = writer.to_vec() else {
        return;
    };
    let file = Safetensors::new("fuzz", &bytes).expect("what is written is read");
    for (prefix, scheme) in Scheme::layers(&file) {
        let Ok(matrix) = scheme.read(&file, &prefix) else {
            continue;
        };
        let mut row = vec![0.0; matrix.shape()[1]];
        for i in 0..matrix.shape()[0] {
            matrix.dequantize_row(i, &mut row);
        }
        // Not all groups can be packed.
        let _ = Packed::new(&*matrix, &Cpu::detect());
        again(&file, &prefix, scheme);
    }
});

/// Writes what was read and reads it.
fn again(file: &Safetensors, prefix: &str, scheme: Scheme) {
    let bytes = |tensors: Vec<NewTensor>| {
        let mut writer = SafetensorsWriter::new();
        writer.extend(tensors);
        writer.to_vec().expect("writable")
    };
    match scheme {
        Scheme::Int8 => {
            let matrix = bnb::read8(file, prefix).expect("read before");
            let bytes = bytes(bnb::tensors8(prefix, &matrix));
            let file = Safetensors::new("again", &bytes).expect("a file");
            assert!(bnb::read8(&file, prefix).expect("readable") == matrix);
        }
        Scheme::Int4 => {
            let matrix = compressed::read(file, prefix).expect("read before");
            let bytes = bytes(matrix.tensors(prefix));
            let file = Safetensors::new("again", &bytes).expect("a file");
            assert!(compressed::read(&file, prefix).expect("readable") == matrix);
        }
        Scheme::Gptq => {
            let zeros = ZeroConvention::MinusOne;
            let parts = gptq::read(file, prefix, zeros).expect("read before");
            let bytes = bytes(gptq::tensors(prefix, &parts));
            let file = Safetensors::new("again", &bytes).expect("a file");
            assert!(gptq::read(&file, prefix, zeros).expect("readable") == parts);
        }
        Scheme::Awq => {
            let parts = awq::read(file, prefix).expect("read before");
            let bytes = bytes(awq::tensors(prefix, &parts));
            let file = Safetensors::new("again", &bytes).expect("a file");
            assert!(awq::read(&file, prefix).expect("readable") == parts);
        }
        Scheme::MxFp4 => {
            let experts = mxfp4::read(file, prefix).expect("read before");
            let all = (0..experts.len()).map(|i| experts.expert(i));
            let Ok(all) = all.collect::<Result<Vec<Quantized<_>>, _>>() else {
                return;
            };
            let bytes = bytes(mxfp4::tensors(prefix, &all).expect("writable"));
            let file = Safetensors::new("again", &bytes).expect("a file");
            let experts = mxfp4::read(&file, prefix).expect("readable");
            for (i, expert) in all.iter().enumerate() {
                assert!(experts.expert(i).expect("readable") == *expert);
            }
        }
        Scheme::NvFp4 | Scheme::NvFp4ModelOpt => {
            let keys = match scheme {
                Scheme::NvFp4 => NvFp4Keys::CompressedTensors,
                _ => NvFp4Keys::ModelOpt,
            };
            let layer = nvfp4::read(file, prefix, keys).expect("read before");
            let bytes = bytes(nvfp4::tensors(prefix, &layer, keys).expect("writable"));
            let file = Safetensors::new("again", &bytes).expect("a file");
            // A divisor near the ends of f32 has no reciprocal.
            if let Ok(again) = nvfp4::read(&file, prefix, keys) {
                assert!(again.matrix.codes() == layer.matrix.codes());
                assert!(again.matrix.scales() == layer.matrix.scales());
            }
        }
        _ => {
            let layer = bnb::read4(file, prefix).expect("read before");
            let bytes = bytes(layer.tensors(prefix).expect("writable"));
            let file = Safetensors::new("again", &bytes).expect("a file");
            let again = bnb::read4(&file, prefix).expect("readable");
            assert!(again == layer);
        }
    }
}

impl Layer {
    /// The tensors of a scheme, of the right types and shapes for `rows` and `cols`.
    fn tensors(&self) -> Vec<NewTensor<'static>> {
        let rows = usize::from(self.rows % 40) + 1;
        let cols = usize::from(self.cols % 600) + 1;
        let block = 32_usize << (self.block % 4);
        let groups = cols.div_ceil(block).max(1);
        let mut bytes = self
            .bytes
            .iter()
            .cycle()
            .copied()
            .chain(std::iter::repeat(0x3c));
        let mut tensor = |name: &str, dtype: Dtype, shape: &[usize]| {
            let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            NewTensor {
                name: name.into(),
                dtype,
                shape: shape.to_vec(),
                data: bytes.by_ref().take(size).collect(),
            }
        };
        let constant = |name: &str, dtype: Dtype, data: Vec<u8>| NewTensor {
            name: name.into(),
            dtype,
            shape: vec![data.len() * 8 / dtype.bitsize()],
            data: data.into(),
        };
        let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        match self.scheme % 11 {
            scheme @ 0..4 => {
                let (name, map) = [("nf4", &NF4), ("fp4", &FP4)][usize::from(scheme % 2)];
                let elements = rows * cols;
                let blocks = elements.div_ceil(block);
                let mut state = format!(
                    r#"{{"quant_type": "{name}", "blocksize": {block}, "dtype": "bfloat16", "shape": [{rows}, {cols}]"#
                );
                let mut tensors = vec![
                    tensor("p.weight", Dtype::U8, &[elements.div_ceil(2), 1]),
                    constant("p.weight.quant_map", Dtype::F32, floats(map)),
                ];
                if scheme < 2 {
                    tensors.push(tensor("p.weight.absmax", Dtype::F32, &[blocks]));
                } else {
                    state += r#", "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25"#;
                    let map = floats(&SIGNED_MAP);
                    let inner = blocks.div_ceil(256);
                    tensors.extend([
                        tensor("p.weight.absmax", Dtype::U8, &[blocks]),
                        tensor("p.weight.nested_absmax", Dtype::F32, &[inner]),
                        constant("p.weight.nested_quant_map", Dtype::F32, map),
                    ]);
                }
                state.push('}');
                let key = format!("p.weight.quant_state.bitsandbytes__{name}");
                tensors.push(constant(&key, Dtype::U8, state.into_bytes()));
                tensors
            }
            4 => vec![
                tensor("p.weight", Dtype::I8, &[rows, cols]),
                tensor("p.SCB", Dtype::F32, &[rows]),
                constant("p.weight_format", Dtype::U8, vec![0]),
            ],
            5 => {
                let (words, cols) = (cols.div_ceil(8), cols as i64);
                let sides = [rows as i64, cols].into_iter().flat_map(i64::to_le_bytes);
                vec![
                    tensor("p.weight_packed", Dtype::I32, &[rows, words]),
                    tensor("p.weight_scale", Dtype::BF16, &[rows, groups]),
                    tensor(
                        "p.weight_zero_point",
                        Dtype::I32,
                        &[rows.div_ceil(8), groups],
                    ),
                    constant("p.weight_shape", Dtype::I64, sides.collect()),
                ]
            }
            6 => {
                let groups = cols.div_ceil(32);
                vec![
                    tensor("p_blocks", Dtype::U8, &[2, rows, groups, 16]),
                    tensor("p_scales", Dtype::U8, &[2, rows, groups]),
                ]
            }
            9 => {
                let (words, out) = (cols.div_ceil(8), rows * 8);
                let groups = if words % 4 == 0 { words / 4 } else { 1 };
                let order =
                    (0..8 * words).flat_map(|i| ((i * groups / (8 * words)) as i32).to_le_bytes());
                vec![
                    tensor("p.qweight", Dtype::I32, &[words, out]),
                    tensor("p.qzeros", Dtype::I32, &[groups, rows]),
                    tensor("p.scales", Dtype::F16, &[groups, out]),
                    constant("p.g_idx", Dtype::I32, order.collect()),
                ]
            }
            10 => {
                let groups = if cols % 32 == 0 { cols / 32 } else { 1 };
                vec![
                    tensor("p.qweight", Dtype::I32, &[cols, rows]),
                    tensor("p.qzeros", Dtype::I32, &[groups, rows]),
                    tensor("p.scales", Dtype::F16, &[groups, rows * 8]),
                ]
            }
            scheme => {
                let groups = cols.div_ceil(16);
                let (codes, global) = match scheme {
                    7 => ("p.weight_packed", "p.weight_global_scale"),
                    _ => ("p.weight", "p.weight_scale_2"),
                };
                vec![
                    tensor(codes, Dtype::U8, &[rows, groups * 8]),
                    tensor("p.weight_scale", Dtype::F8_E4M3, &[rows, groups]),
                    tensor(global, Dtype::F32, &[1]),
                ]
            }
        }
    }
}

impl Edit {
    fn apply(&self, tensors: &mut Vec<NewTensor>) {
        if tensors.is_empty() {
            return;
        }
        let place = usize::from(self.tensor) % tensors.len();
        let tensor = &mut tensors[place];
        let at = usize::from(self.at);
        match self.what % 7 {
            0 => drop(tensors.remove(place)),
            1 => {
                tensor.dtype = DTYPES[at % DTYPES.len()];
                let (bits, all) = (tensor.dtype.bitsize(), tensor.data.len() * 8);
                tensor.shape = vec![all / bits];
            }
            2 => {
                let length = tensor.data.len().max(1);
                if let Some(byte) = tensor.data.to_mut().get_mut(at % length) {
                    *byte = self.value as u8;
                }
            }
            3 => {
                let words = (tensor.data.len() / 4).max(1);
                if let Some(word) = tensor.data.to_mut().chunks_exact_mut(4).nth(at % words) {
                    word.copy_from_slice(&self.value.to_le_bytes());
                }
            }
            4 => tensor.shape.reverse(),
            5 => tensor.shape.push(1),
            _ => {
                // A shape of as many elements, or of none.
                let all: usize = tensor.shape.iter().product();
                let side = (at % all.max(1)).max(1);
                if all % side == 0 {
                    tensor.shape = vec![side, all / side];
                } else {
                    tensor.shape = vec![self.value as usize, 0];
                    tensor.data = Vec::new().into();
                }
            }
        }
    }
}
