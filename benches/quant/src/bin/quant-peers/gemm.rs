//! Products of 128 rows beside the peak of the cores.

use crate::context::{BATCH, Context, SHAPES, times};
use anyhow::Result;
use ferrotune_benches_quant::check::Expected;
use ferrotune_benches_quant::data;
use ferrotune_benches_quant::peak::Unit;
use ferrotune_benches_quant::rounds::Side;
use ferrotune_quant::{
    Activations, Cpu, Grouping, Int8, Isa, Mode, MxFp4, Nf4, Packed, ScaleRounding, Scratch, View,
};

pub fn run(context: &Context) -> Result<()> {
    println!(
        "== GEMM, M = {BATCH}, weights packed and activations quantized beforehand: operations a second ÷ the peak of \
         a loop over registers on the same instruction, and of one in vector registers"
    );
    println!(
        "{:12} {:16} {:12} {:12} {:>8} {:>12} {:>8} {:>22} {:>12} {:>22}",
        "K×N",
        "weights",
        "activations",
        "ours on",
        "GOP/s",
        "peak of",
        "GOP/s",
        "ours / peak",
        "in vectors",
        "ours / peak"
    );
    let cpu = context.cpu();
    for [cols, rows] in SHAPES {
        let shape = [rows, cols];
        let row = data::packed(Int8(Grouping::Row), shape, 1, cpu)?;
        let group = data::packed(Int8(Grouping::Block(32)), shape, 1, cpu)?;
        let mxfp4 = data::packed(MxFp4(ScaleRounding::Floor), shape, 1, cpu)?;
        let nf4 = data::packed(Nf4::new(64)?, shape, 1, cpu)?;
        for (name, packed, mode) in [
            ("int8, row", &row, Mode::Int8PerRow),
            ("int8, group 32", &group, Mode::Int8PerGroup),
            ("int8, group 32", &group, Mode::Int8PerRow),
            ("MXFP4", &mxfp4, Mode::Int8PerGroup),
            ("NF4, 64", &nf4, Mode::Int8PerGroup),
            ("int8, row", &row, Mode::Bf16),
            ("MXFP4", &mxfp4, Mode::Bf16),
            ("NF4, 64", &nf4, Mode::Bf16),
        ] {
            for cpu in context.cpus() {
                product(context, name, packed, mode, cpu)?;
            }
        }
    }
    Ok(())
}

fn product(
    context: &Context,
    name: &str,
    packed: &Packed,
    mode: Mode,
    cpu: &Cpu<'static>,
) -> Result<()> {
    let [rows, cols] = packed.shape();
    let x = data::uniform(BATCH * cols, 2);
    let mut activations = Activations::new(packed, mode)?;
    activations.set(View::new(&x, BATCH, cols)?, cpu)?;
    let (mut y, mut scratch) = (vec![0.0; BATCH * rows], Scratch::new());
    context.on_threads(|| packed.gemm(&activations, &mut y, &mut scratch, cpu))?;
    for row in [0, BATCH - 1] {
        let expected = Expected::new(packed, mode, &x[row * cols..][..cols])?;
        expected.check(name, &y[row * rows..][..rows], 1.0)?;
    }

    let (unit, in_vectors, activations_in) = match mode {
        Mode::Bf16 => (Unit::bf16(cpu.isa()), Unit::bf16(Isa::Avx512Bf16), "bf16"),
        Mode::Int8PerGroup => (Unit::int8(cpu.isa()), Unit::Vnni, "int8, group"),
        _ => (Unit::int8(cpu.isa()), Unit::Vnni, "int8, row"),
    };
    let peak = |unit: Unit| -> Side {
        Box::new(move || Ok(context.on_threads(|| unit.measure()).unwrap_or(f64::NAN)))
    };
    let work = || Ok(packed.gemm(&activations, &mut y, &mut scratch, cpu)?);
    let ours = context.side(times([cols, rows], BATCH), work);
    let rounds = context.rounds(vec![peak(unit), ours, peak(in_vectors)])?;
    let operations = 2.0 * (BATCH * rows * cols) as f64;
    let of = |side: usize| {
        let peak = rounds.of(side).median / 1e9;
        if peak.is_nan() {
            return ("-".to_owned(), "not measured".to_owned());
        }
        let part = rounds.combine(side, 1, |peak, seconds| operations / seconds / peak);
        (format!("{peak:.0}"), format!("{part:.3}"))
    };
    let ((peak, part), (_, part_in_vectors)) = (of(0), of(2));
    println!(
        "{:12} {name:16} {activations_in:12} {:12} {:>8.0} {:>12} {peak:>8} {part:>22} {:>12} {part_in_vectors:>22}",
        format!("{cols}×{rows}"),
        cpu.isa().name(),
        operations / rounds.of(1).median / 1e9,
        unit.name(),
        in_vectors.name(),
    );
    Ok(())
}
