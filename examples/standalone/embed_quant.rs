//! Quantization in a program of one's own, without a tensor framework: a matrix is quantized, saved,
//! mapped, and multiplied where it lies.
#![allow(clippy::print_stdout, reason = "a program whose output is its result")]

use anyhow::Result;
use ferrotune_quant::files::{SafetensorsFile, SafetensorsWriter, packed};
use ferrotune_quant::{
    Activations, Cpu, Grouping, Int8, Mode, Packed, Quantized, Rayon, Scratch, View,
};
use ndarray::{Array1, Array2};

fn main() -> Result<()> {
    // A layer of 512 outputs and 1024 inputs; any array of f32, f16 or bf16 will do.
    let weights = Array2::from_shape_fn((512, 1024), |(o, i)| ((o * 1024 + i) as f32 * 0.37).sin());
    let input = Array2::from_shape_fn((3, 1024), |(n, i)| ((n * 1024 + i) as f32 * 0.11).cos());

    // The fastest instructions that the processor has, on rayon's threads.
    let cpu = Cpu::detect().with_threads(&Rayon);
    let int8 = Int8(Grouping::Block(64));
    let quantized = Quantized::new(int8, View::try_from(weights.view())?, &cpu)?;

    // Packed once, in the order that products read.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("layer.safetensors");
    let matrix = Packed::new(&quantized, &cpu)?;
    let mut writer = SafetensorsWriter::new();
    writer.extend(packed::tensors("layer", &matrix)?);
    writer.write(&path)?;

    // Mapped: the codes are read from the file as the product asks for them.
    let file = SafetensorsFile::open(&path)?;
    let tensors = file.tensors();
    let matrix = packed::read(&tensors, "layer")?;
    let mut activations = Activations::new(&matrix, Mode::Int8PerGroup)?;
    activations.set(View::try_from(input.view())?, &cpu)?;
    let mut output = Array2::<f32>::zeros((3, 512));
    let room = output.as_slice_mut().unwrap_or(&mut []);
    matrix.gemm(&activations, room, &mut Scratch::new(), &cpu)?;

    let exact = input.dot(&weights.t());
    let norm = |x: &Array2<f32>| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let bits = matrix.bits_per_weight();
    println!(
        "{} of {bits:.2} bits a weight, multiplied by {}",
        int8_name(),
        cpu.isa()
    );
    println!(
        "first outputs: {:.3}, in f32 {:.3}",
        output
            .row(0)
            .iter()
            .take(3)
            .copied()
            .collect::<Array1<f32>>(),
        exact
            .row(0)
            .iter()
            .take(3)
            .copied()
            .collect::<Array1<f32>>(),
    );
    println!(
        "relative error: {:.5}",
        norm(&(&output - &exact)) / norm(&exact)
    );
    Ok(())
}

fn int8_name() -> &'static str {
    <Int8 as ferrotune_quant::Format>::NAME
}
