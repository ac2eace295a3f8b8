//! torch._int_mm, int8 times int8 to int32, beside the same product by us.

use crate::context::{BATCH, Context, SHAPES, times};
use crate::worker::{Operands, Worker};
use anyhow::{Context as _, Result, ensure};
use ferrotune_benches_quant::data;
use ferrotune_benches_quant::rounds::Side;
use ferrotune_quant::{Activations, Cpu, Grouping, Int8, Mode, Packed, Quantized, Scratch, View};

/// Keeps oneDNN, torch's kernels, from AMX.
const WITHOUT_AMX: (&str, &str) = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI");

pub fn run(context: &Context) -> Result<()> {
    let best = Worker::start(context, "torch", None)?;
    let vnni = Worker::start(context, "torch", Some(WITHOUT_AMX))?;
    let (Some(best), Some(vnni)) = (best, vnni) else {
        return Ok(());
    };
    println!(
        "== {}'s _int_mm, int8 × int8 → int32, M = {BATCH}, in the faster layout of its weights: their time ÷ ours",
        best.name
    );
    println!(
        "products are the same integers on both sides; \"quantizing\" counts that of our activations from f32"
    );
    println!(
        "{:12} {:38} {:>10} {:12} {:>10} {:>20} {:>20}",
        "K×N", "theirs", "ms", "ours on", "ms", "theirs / ours", "with quantizing"
    );
    let (name, value) = WITHOUT_AMX;
    let workers = [
        ("the CPU's best".to_owned(), best, &context.cpus()[0]),
        (
            format!("{name}={value}"),
            vnni,
            &context.cpus()[context.cpus().len() - 1],
        ),
    ];
    for shape in SHAPES {
        self::shape(context, &workers, shape)?;
    }
    Ok(())
}

fn shape(
    context: &Context,
    workers: &[(String, Worker, &Cpu<'static>)],
    [cols, rows]: [usize; 2],
) -> Result<()> {
    let times = times([cols, rows], BATCH);
    let weights = data::integers(rows, cols, 1);
    let x = data::integers(BATCH, cols, 2);
    let floats = |integers: &[i8]| -> Vec<f32> { integers.iter().map(|i| f32::from(*i)).collect() };
    let (weights_f32, x_f32) = (floats(&weights), floats(&x));
    let quantized = Quantized::new(
        Int8(Grouping::Row),
        View::new(&weights_f32, rows, cols)?,
        context.cpu(),
    )?;
    ensure!(quantized.scales().iter().all(|scale| *scale == 1.0));
    let packed = Packed::new(&quantized, context.cpu())?;
    let operands = Operands {
        rows,
        cols,
        batch: BATCH,
        kind: "int8",
        repeat: 1,
    };
    let bytes =
        |integers: &[i8]| -> Vec<u8> { integers.iter().map(|i| i.cast_unsigned()).collect() };

    let mut ours = Vec::new();
    let mut variants = Vec::new();
    for (_, worker, cpu) in workers {
        let offered = worker.load(operands, &bytes(&weights), &bytes(&x))?;
        let mut fastest = None;
        for variant in offered {
            let seconds = (0..3).map(|_| worker.seconds(&variant, times));
            let seconds = seconds.collect::<Result<Vec<f64>>>()?;
            let seconds = seconds.into_iter().fold(f64::INFINITY, f64::min);
            if fastest.as_ref().is_none_or(|(least, _)| seconds < *least) {
                fastest = Some((seconds, variant));
            }
        }
        let (_, variant) = fastest.context("no variant")?;
        let mut ready = Ours::new(&packed, &x_f32, cpu)?;
        context.on_threads(|| ready.quantize_and_multiply())?;
        let theirs = worker
            .product(&variant)?
            .into_iter()
            .map(i32::from_le_bytes);
        for (i, (theirs, ours)) in theirs.zip(&ready.out).enumerate() {
            ensure!(
                theirs.abs() < 1 << 24 && *ours == theirs as f32,
                "element {i} is {ours} and by torch {theirs}"
            );
        }
        variants.push(variant);
        ours.push([ready, Ours::new(&packed, &x_f32, cpu)?]);
    }

    let mut sides: Vec<Side> = Vec::new();
    for (((_, worker, _), variant), [multiply, both]) in
        workers.iter().zip(&variants).zip(&mut ours)
    {
        sides.push(worker.side(variant, times));
        sides.push(context.side(times, || multiply.multiply()));
        sides.push(context.side(times, || both.quantize_and_multiply()));
    }
    let rounds = context.rounds(sides)?;
    for (i, ((name, _, cpu), variant)) in workers.iter().zip(&variants).enumerate() {
        let milliseconds = |side| 1e3 * rounds.of(3 * i + side).median;
        let ratio = |side| format!("{:.2}", rounds.ratio(3 * i, 3 * i + side));
        println!(
            "{:12} {:38} {:>10.3} {:12} {:>10.3} {:>20} {:>20}",
            format!("{cols}×{rows}"),
            format!("{name} {variant}"),
            milliseconds(0),
            cpu.isa().name(),
            milliseconds(1),
            ratio(1),
            ratio(2),
        );
    }
    Ok(())
}

/// Our product.
struct Ours<'a> {
    packed: &'a Packed<'a>,
    x: &'a [f32],
    cpu: &'a Cpu<'static>,
    activations: Activations,
    scratch: Scratch,
    out: Vec<f32>,
}

impl<'a> Ours<'a> {
    fn new(packed: &'a Packed<'a>, x: &'a [f32], cpu: &'a Cpu<'static>) -> Result<Self> {
        let mut ours = Self {
            packed,
            x,
            cpu,
            activations: Activations::new(packed, Mode::Int8PerRow)?,
            scratch: Scratch::new(),
            out: vec![0.0; x.len() / packed.shape()[1] * packed.shape()[0]],
        };
        ours.quantize()?;
        Ok(ours)
    }

    fn quantize(&mut self) -> Result<()> {
        let cols = self.packed.shape()[1];
        let x = View::new(self.x, self.x.len() / cols, cols)?;
        Ok(self.activations.set(x, self.cpu)?)
    }

    fn multiply(&mut self) -> Result<()> {
        let Self {
            packed,
            activations,
            scratch,
            out,
            cpu,
            ..
        } = self;
        Ok(packed.gemm(activations, out, scratch, cpu)?)
    }

    fn quantize_and_multiply(&mut self) -> Result<()> {
        self.quantize()?;
        self.multiply()
    }
}
