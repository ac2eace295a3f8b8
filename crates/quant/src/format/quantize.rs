//! How a matrix is quantized: dealt out, measured, encoded.

use super::extent::{Extent, extent, finite_extent};
use super::{CodeLayout, Format, Grouping};
use crate::cpu::Cpu;
use crate::element::{Element, magnitude_bits};
use crate::error::{Error, Result, length};
use crate::parallel::{First, Parts, for_each};
use crate::simd::{self, Simd, Work};
use crate::view::{View, elements};
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

/// What to do about NaN and infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NonFinite {
    /// Refuse, naming the first.
    #[default]
    Refuse,
    /// Take NaN as 0, and infinities as the largest finite magnitude of the group.
    Replace,
}

/// `[bytes of codes, scales]` of a matrix in a format.
///
/// # Errors
/// A shape that the format cannot hold.
pub fn sizes<F: Format>(format: &F, rows: usize, cols: usize) -> Result<[usize; 2]> {
    let elements = elements(rows, cols)?;
    format.check(rows, cols)?;
    Ok([
        F::CODES.bytes(elements),
        format.grouping().count(rows, cols),
    ])
}

/// Elements that make a piece of work for a thread, about.
const PIECE: usize = 131_072;

/// Rows that make a piece: an even number.
pub(super) fn rows_a_piece(cols: usize) -> usize {
    (PIECE / cols.max(1)).next_multiple_of(2).max(2)
}

/// Quantizes a matrix into the caller's memory and returns what is to be stored for the tensor.
/// Nothing is allocated.
///
/// # Errors
/// A shape that the format cannot hold, slices of another length than [`sizes`] says, a value that is
/// not finite if those are refused; `codes` and `scales` are then unspecified.
pub fn quantize_into<F: Format, T: Element>(
    format: &F,
    matrix: View<T>,
    codes: &mut [u8],
    scales: &mut [F::Scale],
    non_finite: NonFinite,
    cpu: &Cpu,
) -> Result<F::Tensor> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let expected = sizes(format, rows, cols)?;
    length("codes", expected[0], codes.len())?;
    length("scales", expected[1], scales.len())?;
    if rows == 0 || cols == 0 {
        let tensor = format.tensor(0.0);
        scales.fill(format.fit(&tensor, Extent::NOTHING).0);
        return Ok(tensor);
    }
    let grouping = format.grouping();
    // Groups that run across rows need rows without gaps between them.
    let matrix = match (grouping, matrix.contiguous()) {
        (Grouping::Flat(_), Some(all)) => View::new(all, 1, all.len())?,
        (Grouping::Flat(_), None) => {
            return Err(Error::Unsupported {
                operation: "quantize",
                reason: alloc::format!(
                    "{} groups elements across rows, which a view with gaps between rows does not have",
                    F::NAME
                ),
            });
        }
        _ => matrix,
    };
    let job = Job {
        format,
        matrix,
        cols,
        non_finite,
        cpu,
    };
    let whole = if F::TENSOR_EXTENT || grouping == Grouping::Tensor {
        job.extent()?
    } else {
        Extent::NOTHING
    };
    let tensor = format.tensor(whole.amax);
    if grouping == Grouping::Tensor {
        let (scale, encoder) = format.fit(&tensor, whole);
        scales[0] = scale;
        job.encode_with(encoder, whole.amax, codes);
        return Ok(tensor);
    }
    let units = job.units(grouping);
    let bad = First::new();
    let (codes, scales) = (Parts::new(codes), Parts::new(scales));
    for_each(cpu.parallel(), units.count, units.piece, |_, range| {
        let range = range.start * units.groups..(range.end * units.groups).min(expected[1]);
        let elements = units.elements(range.clone(), job.matrix.rows(), job.matrix.cols());
        let bytes = match F::CODES {
            CodeLayout::Bytes => elements.clone(),
            _ => elements.start / 2..elements.end.div_ceil(2),
        };
        // SAFETY: units are handed out once, they begin on whole bytes (`units`), and bytes and scales
        // of different units are different.
        let (codes, scales) = unsafe { (codes.part(bytes), scales.part(range.clone())) };
        let encode = Encode {
            job: &job,
            tensor: &tensor,
            grouping: units.grouping,
            first: elements.start,
            codes,
            scales,
        };
        if let Err(place) = simd::run(cpu.isa(), encode) {
            bad.at(place);
        }
    });
    bad.check(|place| job.non_finite(place))?;
    Ok(tensor)
}

/// How the groups of a matrix are dealt out: so many groups a unit, so that a unit begins on a byte.
struct Units {
    grouping: Grouping,
    groups: usize,
    count: usize,
    piece: usize,
}

impl Units {
    fn elements(&self, groups: Range<usize>, rows: usize, cols: usize) -> Range<usize> {
        let begin = self.grouping.range(groups.start, rows, cols).start;
        begin..self.grouping.range(groups.end - 1, rows, cols).end
    }
}

struct Job<'a, F, T> {
    format: &'a F,
    matrix: View<'a, T>,
    /// Those of the caller's matrix; groups that run across rows make `matrix` one long row.
    cols: usize,
    non_finite: NonFinite,
    cpu: &'a Cpu<'a>,
}

impl<F: Format, T: Element> Job<'_, F, T> {
    fn non_finite(&self, index: usize) -> Error {
        let across = self.matrix.cols();
        Error::NonFinite {
            index,
            row: index / self.cols,
            col: index % self.cols,
            value: self.matrix.row(index / across)[index % across].to_f32(),
        }
    }

    fn units(&self, grouping: Grouping) -> Units {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let (grouping, size) = match grouping {
            Grouping::Tensor => (grouping, rows * cols),
            Grouping::Row => (grouping, cols),
            Grouping::Block(n) => (grouping, n.min(cols)),
            // One long row by now.
            Grouping::Flat(n) => (Grouping::Block(n), n),
        };
        let all = grouping.count(rows, cols);
        // Two groups of odd length end on a byte; odd rows of nibbles are refused by `check`.
        let groups = if size % 2 == 1 { 2 } else { 1 };
        Units {
            grouping,
            groups,
            count: all.div_ceil(groups),
            piece: (PIECE / (size * groups).max(1)).max(1),
        }
    }

    /// The extent of the whole matrix.
    fn extent(&self) -> Result<Extent> {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        // Magnitudes order as their bits do, so integers can collect them.
        let (negative, positive) = (AtomicU32::new(0), AtomicU32::new(0));
        let bad = First::new();
        for_each(self.cpu.parallel(), rows, rows_a_piece(cols), |_, range| {
            for row in range {
                let values = self.matrix.row(row);
                match simd::run(self.cpu.isa(), Measure { values }) {
                    Ok(extent) => {
                        negative.fetch_max(magnitude_bits(extent.min), Ordering::Relaxed);
                        positive.fetch_max(magnitude_bits(extent.max), Ordering::Relaxed);
                    }
                    Err(_) if self.non_finite == NonFinite::Replace => {
                        let extent = finite_extent(values);
                        negative.fetch_max(magnitude_bits(extent.min), Ordering::Relaxed);
                        positive.fetch_max(magnitude_bits(extent.max), Ordering::Relaxed);
                    }
                    Err(place) => bad.at(row * cols + place),
                }
            }
        });
        bad.check(|place| self.non_finite(place))?;
        let (min, max) = (
            -f32::from_bits(negative.into_inner()),
            f32::from_bits(positive.into_inner()),
        );
        // Row by row: nothing is looked at unless the extremes are of one magnitude.
        let values = || (0..rows).flat_map(|row| self.matrix.row(row).iter().map(|x| x.to_f32()));
        Ok(Extent::new(min, max, values))
    }

    /// Encodes all of the matrix with one scale.
    fn encode_with(&self, encoder: F::Encoder, largest: f32, codes: &mut [u8]) {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let parts = Parts::new(codes);
        for_each(self.cpu.parallel(), rows, rows_a_piece(cols), |_, range| {
            let elements = range.start * cols..range.end * cols;
            let bytes = match F::CODES {
                CodeLayout::Bytes => elements.clone(),
                _ => elements.start / 2..elements.end.div_ceil(2),
            };
            // SAFETY: rows are handed out once; an even number of rows, or of columns, ends on a byte.
            let codes = unsafe { parts.part(bytes) };
            let encode = EncodeRows {
                job: self,
                encoder,
                largest,
                rows: range,
                codes,
            };
            simd::run(self.cpu.isa(), encode);
        });
    }
}

/// Elements that are measured before memory is asked for more.
const MEASURED: usize = 1024;

/// The smallest and largest value, found by an instruction set.
struct Measure<'a, T> {
    values: &'a [T],
}

impl<T: Element> Work for Measure<'_, T> {
    type Output = Result<Extent, usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let ahead = simd::bytes_ahead();
        if ahead == 0 {
            return extent::<T, true>(self.values);
        }
        let mut whole = Extent::NOTHING;
        for (i, piece) in self.values.chunks(MEASURED).enumerate() {
            for line in (0..size_of_val(piece)).step_by(64) {
                simd.prefetch(piece.as_ptr().cast::<u8>().wrapping_add(ahead + line));
            }
            let extent = extent::<T, true>(piece).map_err(|place| i * MEASURED + place)?;
            whole.min = whole.min.min(extent.min);
            whole.max = whole.max.max(extent.max);
        }
        Ok(whole)
    }
}

/// Some groups of a matrix.
struct Encode<'a, F: Format, T> {
    job: &'a Job<'a, F, T>,
    tensor: &'a F::Tensor,
    grouping: Grouping,
    /// The element that `codes` begins with.
    first: usize,
    codes: &'a mut [u8],
    scales: &'a mut [F::Scale],
}

impl<F: Format, T: Element> Work for Encode<'_, F, T> {
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let Job { format, matrix, .. } = self.job;
        let cols = matrix.cols();
        let size = self.grouping.size().unwrap_or(cols);
        let ahead = ahead(size * size_of::<T>());
        let (mut row, mut col) = (self.first / cols, self.first % cols);
        let mut place = 0;
        for scale in self.scales {
            let values = &matrix.row(row)[col..cols.min(col + size)];
            let measured = if F::SIGNED {
                extent::<T, true>(values)
            } else {
                extent::<T, false>(values)
            };
            let (mut extent, clean) = match measured {
                Ok(extent) => (extent, true),
                Err(bad) if self.job.non_finite == NonFinite::Refuse => {
                    return Err(self.first + place + bad);
                }
                Err(_) => (finite_extent(values), false),
            };
            extent.partial = values.len() < size;
            let (fitted, encoder) = format.fit(self.tensor, extent);
            *scale = fitted;
            let codes = Codes {
                bytes: self.codes,
                first: place,
            };
            place += values.len();
            col += values.len();
            if col == cols {
                (row, col) = (row + 1, 0);
            }
            if clean {
                encode_run::<S, F, T>(simd, &encoder, values, codes, ahead, |value| value);
            } else {
                encode_run::<S, F, T>(simd, &encoder, values, codes, ahead, |value| {
                    replaced(value, extent.amax)
                });
            }
        }
        Ok(())
    }
}

/// Whole rows with one scale.
struct EncodeRows<'a, F: Format, T> {
    job: &'a Job<'a, F, T>,
    encoder: F::Encoder,
    largest: f32,
    rows: Range<usize>,
    codes: &'a mut [u8],
}

impl<F: Format, T: Element> Work for EncodeRows<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.job.matrix.cols();
        let ahead = simd::bytes_ahead();
        for (i, row) in self.rows.enumerate() {
            let codes = Codes {
                bytes: self.codes,
                first: i * cols,
            };
            let values = self.job.matrix.row(row);
            let largest = self.largest;
            if self.job.non_finite == NonFinite::Refuse {
                encode_run::<S, F, T>(simd, &self.encoder, values, codes, ahead, |value| value);
            } else {
                encode_run::<S, F, T>(simd, &self.encoder, values, codes, ahead, |value| {
                    replaced(value, largest)
                });
            }
        }
    }
}

fn replaced(value: f32, largest: f32) -> f32 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(-largest, largest)
    }
}

/// Where the codes of a run of elements go.
struct Codes<'a> {
    bytes: &'a mut [u8],
    /// The first element, counted from the beginning of `bytes`.
    first: usize,
}

/// How far ahead of the values that are encoded memory is asked for more: a group is read twice, and
/// should be there before it is measured.
fn ahead(group_bytes: usize) -> usize {
    let near = simd::bytes_ahead();
    if near > 0 && (near..=524_288).contains(&group_bytes) {
        group_bytes
    } else {
        near
    }
}

/// Encodes a run of elements, asking memory for what lies `ahead` bytes further, if it is not 0.
#[inline(always)]
fn encode_run<S: Simd, F: Format, T: Element>(
    simd: S,
    encoder: &F::Encoder,
    values: &[T],
    codes: Codes,
    ahead: usize,
    clean: impl Fn(f32) -> f32,
) {
    let (chunks, rest) = values.as_chunks::<16>();
    let whole = chunks.len() * 16;
    let Codes { bytes, first } = codes;
    let encode = |chunk: &[T; 16]| {
        if ahead > 0 {
            simd.prefetch(chunk.as_ptr().cast::<u8>().wrapping_add(ahead));
        }
        let mut values = [0.0; 16];
        for (value, element) in values.iter_mut().zip(chunk) {
            *value = clean(element.to_f32());
        }
        F::encode(encoder, &values)
    };
    if F::CODES == CodeLayout::Bytes {
        for (chunk, out) in chunks.iter().zip(bytes[first..].as_chunks_mut::<16>().0) {
            *out = encode(chunk);
        }
    } else if first % 2 == 0 {
        for (chunk, out) in chunks.iter().zip(bytes[first / 2..].as_chunks_mut::<8>().0) {
            put_nibbles::<F>(&encode(chunk), out);
        }
    } else {
        for (chunk, at) in chunks.iter().zip((first..).step_by(16)) {
            put::<F>(bytes, at, &encode(chunk));
        }
    }
    if !rest.is_empty() {
        let mut padded = [0.0; 16];
        for (padded, value) in padded.iter_mut().zip(rest) {
            *padded = clean(value.to_f32());
        }
        let end = first + values.len();
        // The last half byte of a matrix is a zero's code.
        let odd = F::CODES != CodeLayout::Bytes && end % 2 == 1 && end.div_ceil(2) == bytes.len();
        let count = rest.len() + usize::from(odd);
        put::<F>(bytes, first + whole, &F::encode(encoder, &padded)[..count]);
    }
}

/// Two codes a byte, written in 16 bits at a time, which the compiler vectorizes.
#[inline(always)]
fn put_nibbles<F: Format>(codes: &[u8; 16], out: &mut [u8; 8]) {
    for i in 0..8 {
        let pair = u16::from_le_bytes([codes[2 * i], codes[2 * i + 1]]);
        out[i] = match F::CODES {
            CodeLayout::HighNibbleFirst => pair << 4 | pair >> 8,
            _ => pair | pair >> 4,
        } as u8;
    }
}

/// Writes codes one by one, from element `at`; a byte's other half stays, unless it is its second.
#[inline(always)]
fn put<F: Format>(bytes: &mut [u8], at: usize, codes: &[u8]) {
    for (i, code) in (at..).zip(codes) {
        match F::CODES {
            CodeLayout::Bytes => bytes[i] = *code,
            layout => {
                let high = (layout == CodeLayout::HighNibbleFirst) == (i % 2 == 0);
                let byte = &mut bytes[i / 2];
                let kept = if i % 2 == 0 { 0 } else { *byte };
                *byte = kept | if high { code << 4 } else { *code };
            }
        }
    }
}
