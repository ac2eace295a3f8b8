//! Packed matrices whose structure lies: what is read is multiplied, and written again.
#![no_main]

use ferrotune_quant::files::{NewTensor, Safetensors, SafetensorsWriter, packed};
use ferrotune_quant::{Activations, Cpu, Matrix, Mode, Scratch, View};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use safetensors::Dtype;

#[derive(Arbitrary, Debug)]
struct Input {
    rows: u64,
    cols: u64,
    /// Whether sides are as small as a matrix that fits.
    small: bool,
    group: u16,
    scales: u8,
    shifted: bool,
    factor: f32,
    levels: u8,
    unit: f32,
    steps: [i8; 16],
    lengths: [i8; 3],
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let (rows, cols) = match input.small {
        true => (input.rows % 70 + 1, input.cols % 300 + 1),
        false => (input.rows, input.cols),
    };
    let group = if input.group == 0 {
        cols
    } else {
        u64::from(input.group)
    };
    let (name, size) =
        [("f32", 4), ("f16", 2), ("e8m0", 1), ("e4m3", 1)][usize::from(input.scales % 4)];
    let names = [
        "mxfp8-e4m3",
        "mxfp8-e5m2",
        "dynamic8-signed",
        "dynamic8-unsigned",
    ];
    let unit = if input.unit.is_finite() {
        input.unit
    } else {
        1.0
    };
    let values = input.steps.map(|step| f32::from(step) * unit);
    let values = values.map(|value| if value.is_finite() { value } else { 0.0 });
    let (nibbles, levels) = match input.levels % 6 {
        0 => (false, "\"int8\"".to_owned()),
        1 => (
            true,
            format!(
                "{{\"table\":{{\"values\":{values:?},\"steps\":{:?},\"unit\":{unit:?}}}}}",
                input.steps
            ),
        ),
        n => (
            false,
            format!("{{\"bytes\":\"{}\"}}", names[usize::from(n - 2)]),
        ),
    };
    let factor = if input.factor.is_finite() {
        input.factor
    } else {
        1.0
    };
    let shifted = input.shifted;
    let structure = format!(
        "{{\"version\":1,\"rows\":{rows},\"cols\":{cols},\"group\":{group},\"scales\":\"{name}\",\
         \"shifted\":{shifted},\"factor\":{factor:?},\"levels\":{levels}}}"
    );
    let lanes = rows.div_ceil(16).saturating_mul(16);
    let depth = cols.div_ceil(8).saturating_mul(8);
    let codes = lanes.saturating_mul(depth) / if nibbles { 2 } else { 1 };
    let groups = lanes.saturating_mul(cols.div_ceil(group.max(1)));
    let mut bytes = input
        .bytes
        .iter()
        .cycle()
        .copied()
        .chain(std::iter::repeat(0x3c));
    let mut part = |name: &str, size: u64, off: i8| {
        let size = size.min(65536).saturating_add_signed(off.into()) as usize;
        NewTensor {
            name: format!("p.packed_{name}"),
            dtype: Dtype::U8,
            shape: vec![size],
            data: bytes.by_ref().take(size).collect(),
        }
    };
    // Mostly as long as they should be.
    let off = input.lengths.map(|off| off / 100);
    let mut writer = SafetensorsWriter::new();
    writer.add(part("codes", codes, off[0]));
    writer.add(part("scales", groups.saturating_mul(size), off[1]));
    if shifted {
        writer.add(part("shifts", groups.saturating_mul(4), off[2]));
    }
    let length = structure.len();
    writer.add(NewTensor {
        data: structure.into_bytes().into(),
        shape: vec![length],
        ..part("structure", 0, 0)
    });
    let bytes = writer.to_vec().expect("writable");
    let file = Safetensors::new("fuzz", &bytes).expect("readable");
    let Ok(matrix) = packed::read(&file, "p") else {
        return;
    };
    let [rows, cols] = matrix.shape();
    let mut row = vec![0.0; cols];
    for i in 0..rows {
        matrix.dequantize_row(i, &mut row);
    }
    let cpu = Cpu::detect();
    let x = vec![0.5_f32; 17 * cols];
    let mut scratch = Scratch::new();
    for mode in [Mode::F32, Mode::Bf16, Mode::Int8PerRow, Mode::Int8PerGroup] {
        let Ok(mut activations) = Activations::new(&matrix, mode) else {
            continue;
        };
        for m in [1, 3, 17] {
            let view = View::new(&x[..m * cols], m, cols).expect("a view");
            activations.set(view, &cpu).expect("finite values");
            let mut out = vec![0.0; m * rows];
            let product = matrix.gemm(&activations, &mut out, &mut scratch, &cpu);
            product.expect("shapes that fit");
        }
    }
    let mut writer = SafetensorsWriter::new();
    writer.extend(packed::tensors("p", &matrix).expect("writable"));
    let bytes = writer.to_vec().expect("writable");
    let file = Safetensors::new("again", &bytes).expect("readable");
    assert!(packed::read(&file, "p").expect("readable") == matrix);
});
