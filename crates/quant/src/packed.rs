//! The layout that products read: tiles of 16 rows, so that a vector's lane is a row.
//!
//! | | place |
//! |---|---|
//! | rows | in tiles of 16; the last tile is filled up with zeros |
//! | columns | filled up to `depth`, a multiple of 8 |
//! | 8-bit codes | tile, column ÷ 4, row in the tile, column mod 4: a vector of 64 bytes is four columns of 16 rows. A byte is the code plus 128, or the code itself where codes are looked up |
//! | 4-bit codes | tile, column ÷ 8, row in the tile, column mod 4: the low half of a byte is column mod 8 below 4, the high half the column 4 further on |
//! | scales, shifts | tile, group, row in the tile |
//!
//! Every value is read once, in the order of memory, whatever the number of threads.

use crate::bytes::{Bytes, Line};
use crate::cpu::Cpu;
use crate::error::{Error, Result, length};
use crate::float::f32_to_e4m3;
use crate::format::Levels;
use crate::matrix::{Matrix, ScaleType, Structure};
use crate::parallel::{Parts, Turns};
use crate::simd::LANES;
use crate::view::elements;
use alloc::{format, vec, vec::Vec};
use half::f16;

/// Columns that an int8 product with one scale a row can sum in 32 bits.
pub(crate) const MAX_SUM: usize = 131_072;

/// A matrix `[rows, cols]` in the layout that products read.
///
/// ```
/// use ferrotune_quant::{Activations, Cpu, Mode, Nf4, Packed, Quantized, View};
///
/// let weights: Vec<f32> = (0..32 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
/// let cpu = Cpu::detect();
/// let quantized = Quantized::new(Nf4::new(64)?, View::new(&weights, 32, 64)?, &cpu)?;
/// let packed = Packed::new(&quantized, &cpu)?;
///
/// let x: Vec<f32> = (0..64).map(|i| (i as f32).cos()).collect();
/// let mut activations = Activations::new(&packed, Mode::Int8PerGroup)?;
/// activations.set(View::new(&x, 1, 64)?, &cpu)?;
/// let mut y = [0.0; 32];
/// packed.gemv(&activations, &mut y, &cpu)?;
/// # Ok::<(), ferrotune_quant::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Packed<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) structure: Structure,
    pub(crate) codes: Bytes<'a>,
    pub(crate) scales: Bytes<'a>,
    pub(crate) shifts: Bytes<'a>,
}

/// Sizes of the parts of a packed matrix, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedSizes {
    /// Codes.
    pub codes: usize,
    /// Scales.
    pub scales: usize,
    /// Shifts: 0 where there are none.
    pub shifts: usize,
}

impl<'a> Packed<'a> {
    /// A packed matrix from its parts: of [`Packed::codes`], [`Packed::scales`] and
    /// [`Packed::shifts`] of another, from a file for instance. No part need be aligned.
    ///
    /// # Errors
    /// A structure that products do not support, parts of another length, a scale that is not finite.
    pub fn from_parts(
        [rows, cols]: [usize; 2],
        structure: Structure,
        codes: &'a [u8],
        scales: &'a [u8],
        shifts: &'a [u8],
    ) -> Result<Self> {
        let sizes = Packed::sizes([rows, cols], &structure)?;
        let packed = Self {
            rows,
            cols,
            structure,
            codes: Bytes::Borrowed(codes),
            scales: Bytes::Borrowed(scales),
            shifts: Bytes::Borrowed(shifts),
        };
        length("packed codes", sizes.codes, packed.codes.len())?;
        length("packed scales", sizes.scales, packed.scales.len())?;
        length("packed shifts", sizes.shifts, packed.shifts.len())?;
        for row in 0..rows {
            for group in 0..packed.groups() {
                let (scale, shift) = packed.affine(row, group);
                if !scale.is_finite() || !shift.is_finite() {
                    return Err(Error::Stored {
                        what: "packed scale",
                        index: row * packed.groups() + group,
                        value: f64::from(scale),
                        reason: "it or its shift is not finite",
                    });
                }
            }
        }
        Ok(packed)
    }

    /// How long the parts of a packed matrix are.
    ///
    /// # Errors
    /// A structure that products do not support: a group that is not a multiple of 8 (or the row), a
    /// row too long to be summed, shifts beside a unit.
    pub fn sizes([rows, cols]: [usize; 2], structure: &Structure) -> Result<PackedSizes> {
        let unsupported = |reason| Error::Unsupported {
            operation: "pack",
            reason,
        };
        let group = structure.group;
        if group == 0 || group > cols.max(1) || (group < cols && !group.is_multiple_of(8)) {
            return Err(unsupported(format!(
                "groups of {group} in rows of {cols}: a group must be a multiple of 8, or the row"
            )));
        }
        if group > MAX_SUM && !matches!(structure.levels, Levels::Bytes(_)) {
            return Err(unsupported(format!(
                "groups of {group}: an int8 product sums at most {MAX_SUM} in 32 bits"
            )));
        }
        if let Levels::Table { unit, values, .. } = &structure.levels {
            if structure.shifted && *unit != 1.0 {
                return Err(unsupported(format!("shifts beside steps worth {unit}")));
            }
            if !unit.is_finite() || values.iter().any(|value| !value.is_finite()) {
                return Err(unsupported(
                    "a table with a value that is not finite".into(),
                ));
            }
        }
        if structure.nibbles != matches!(structure.levels, Levels::Table { .. }) {
            return Err(unsupported(
                "4-bit codes without a table of 16, or one beside bytes".into(),
            ));
        }
        let full = |side: usize, to: usize| {
            let full = side.checked_next_multiple_of(to);
            full.ok_or_else(|| unsupported(format!("[{rows}, {cols}] is too large to be counted")))
        };
        let lanes = full(rows, LANES)?;
        let codes = elements(lanes, full(cols, 8)?)?;
        let groups = elements(lanes, cols.div_ceil(group))?;
        Ok(PackedSizes {
            codes: if structure.nibbles { codes / 2 } else { codes },
            scales: groups * structure.scales.bytes(),
            shifts: if structure.shifted { groups * 4 } else { 0 },
        })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// What it is made of.
    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    /// Codes, as the module says they lie.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Scales, as the module says they lie.
    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// Shifts in f32, as the module says they lie.
    pub fn shifts(&self) -> &[u8] {
        &self.shifts
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + self.shifts.len()
    }

    /// Bits a weight, scales and filling included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// The same in memory of its own.
    pub fn into_owned(self) -> Packed<'static> {
        Packed {
            rows: self.rows,
            cols: self.cols,
            structure: self.structure,
            codes: self.codes.into_owned(),
            scales: self.scales.into_owned(),
            shifts: self.shifts.into_owned(),
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.cols.next_multiple_of(8)
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(self.structure.group)
    }

    /// Bytes of a tile's codes.
    pub(crate) fn tile_bytes(&self) -> usize {
        let bytes = LANES * self.depth();
        if self.structure.nibbles {
            bytes / 2
        } else {
            bytes
        }
    }

    /// Columns of a group, filling included.
    pub(crate) fn group_depth(&self, group: usize) -> usize {
        let begin = group * self.structure.group;
        self.depth()
            .min(begin + self.structure.group.next_multiple_of(8))
            - begin
    }

    /// What a code of a row and column stands for, before scale and shift, and the code.
    pub(crate) fn code(&self, row: usize, col: usize) -> u8 {
        let (tile, lane) = (row / LANES, row % LANES);
        let tile = &self.codes[tile * self.tile_bytes()..][..self.tile_bytes()];
        if self.structure.nibbles {
            let byte = tile[col / 8 * 64 + lane * 4 + col % 4];
            byte >> (col % 8 / 4 * 4) & 15
        } else {
            tile[col / 4 * 64 + lane * 4 + col % 4] ^ self.flip()
        }
    }

    /// `(level · scale + shift) · factor`
    pub(crate) fn value(&self, row: usize, col: usize) -> f32 {
        let (scale, shift) = self.affine(row, col / self.structure.group);
        let level = level(&self.structure.levels, self.code(row, col));
        (level * scale + shift) * self.structure.factor
    }

    /// What turns a stored byte into a code and back.
    fn flip(&self) -> u8 {
        match self.structure.levels {
            Levels::Int8 => 0x80,
            _ => 0,
        }
    }

    /// `(scale, shift)` of a group of a row.
    pub(crate) fn affine(&self, row: usize, group: usize) -> (f32, f32) {
        let place = (row / LANES * self.groups() + group) * LANES + row % LANES;
        let shift = self.shifts.as_chunks::<4>().0.get(place);
        let shift = shift.map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
        (
            read_scale(self.structure.scales, &self.scales, place),
            shift,
        )
    }
}

impl Packed<'static> {
    /// Packs a matrix of any format.
    ///
    /// # Errors
    /// Groups that products do not support, see [`Packed::sizes`].
    pub fn new(matrix: &dyn Matrix, cpu: &Cpu) -> Result<Self> {
        let [rows, cols] = matrix.shape();
        let structure = matrix.structure()?;
        let sizes = Packed::sizes([rows, cols], &structure)?;
        let mut packed = Packed {
            rows,
            cols,
            structure,
            codes: Bytes::zeros(sizes.codes),
            scales: Bytes::zeros(sizes.scales),
            shifts: Bytes::zeros(sizes.shifts),
        };
        let (tiles, groups, flip) = (packed.tiles(), packed.groups(), packed.flip());
        let (tile_bytes, depth, nibbles) = (
            packed.tile_bytes(),
            packed.depth(),
            packed.structure.nibbles,
        );
        let (scale_type, shifted) = (packed.structure.scales, packed.structure.shifted);
        let codes = Parts::new(packed.codes.as_mut());
        let scales = Parts::new(packed.scales.as_mut());
        let shifts = Parts::new(packed.shifts.as_mut());
        let turns = Turns::new(cpu.parallel(), tiles, 1);
        let mut rooms = vec![(vec![0_u8; depth], vec![0_f32; 2 * groups]); turns.slots()];
        let rooms = Parts::new(&mut rooms);
        turns.each(|worker, range| {
            // SAFETY: no two calls have the same worker at the same time.
            let (row_codes, row_scales) = &mut unsafe { rooms.part(worker..worker + 1) }[0];
            let (row_scales, row_shifts) = row_scales.split_at_mut(groups);
            for tile in range {
                let of_tile = |bytes: usize| {
                    tile * groups * LANES * bytes..(tile + 1) * groups * LANES * bytes
                };
                // SAFETY: tiles are handed out once, and their parts do not overlap.
                let (codes, scales, shifts) = unsafe {
                    (
                        codes.part(tile * tile_bytes..(tile + 1) * tile_bytes),
                        scales.part(of_tile(scale_type.bytes())),
                        shifts.part(of_tile(if shifted { 4 } else { 0 })),
                    )
                };
                for lane in 0..LANES.min(rows - tile * LANES) {
                    matrix.unpack_row(
                        tile * LANES + lane,
                        &mut row_codes[..cols],
                        row_scales,
                        row_shifts,
                    );
                    if nibbles {
                        place_nibbles(row_codes, lane, codes);
                    } else {
                        place_bytes(row_codes, lane, flip, codes);
                    }
                    for group in 0..groups {
                        let place = group * LANES + lane;
                        write_scale(scale_type, scales, place, row_scales[group]);
                        if shifted {
                            shifts[4 * place..][..4]
                                .copy_from_slice(&row_shifts[group].to_le_bytes());
                        }
                    }
                }
            }
        });
        Ok(packed)
    }
}

/// A packed matrix is one like any other: it can be dequantized, and packed codes read back.
impl Matrix for Packed<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn structure(&self) -> Result<Structure> {
        Ok(self.structure.clone())
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        for (col, code) in codes.iter_mut().enumerate().take(self.cols) {
            *code = self.code(row, col);
        }
        for (group, place) in scales.iter_mut().enumerate().take(self.groups()) {
            let (scale, shift) = self.affine(row, group);
            *place = scale;
            if let Some(place) = shifts.get_mut(group) {
                *place = shift;
            }
        }
    }

    /// `level · scale + shift`, rounded after each operation, and the matrix's factor last.
    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        for (col, out) in out.iter_mut().enumerate().take(self.cols) {
            *out = self.value(row, col);
        }
    }
}

/// What a code stands for before scale and shift.
pub(crate) fn level(levels: &Levels, code: u8) -> f32 {
    match levels {
        Levels::Int8 => f32::from(code.cast_signed()),
        Levels::Table { values, .. } => values[usize::from(code & 15)],
        Levels::Bytes(values) => values[usize::from(code)],
    }
}

fn place_nibbles(row: &[u8], lane: usize, tile: &mut [u8]) {
    let (row, _) = row.as_chunks::<8>();
    for (codes, out) in row.iter().zip(tile.as_chunks_mut::<64>().0) {
        for i in 0..4 {
            out[4 * lane + i] = codes[i] | codes[4 + i] << 4;
        }
    }
}

fn place_bytes(row: &[u8], lane: usize, flip: u8, tile: &mut [u8]) {
    let (row, _) = row.as_chunks::<4>();
    for (codes, out) in row.iter().zip(tile.as_chunks_mut::<64>().0) {
        for i in 0..4 {
            out[4 * lane + i] = codes[i] ^ flip;
        }
    }
}

fn read_scale(scale_type: ScaleType, scales: &[u8], place: usize) -> f32 {
    match scale_type {
        ScaleType::F32 => f32::from_le_bytes(scales.as_chunks().0[place]),
        ScaleType::F16 => f16::from_le_bytes(scales.as_chunks().0[place]).to_f32(),
        ScaleType::E8M0 => crate::float::e8m0_to_f32(scales[place]),
        ScaleType::E4M3 => crate::float::e4m3_to_f32(scales[place]),
    }
}

/// Exact for the scales that a format with this type has.
fn write_scale(scale_type: ScaleType, scales: &mut [u8], place: usize, scale: f32) {
    match scale_type {
        ScaleType::F32 => scales[4 * place..][..4].copy_from_slice(&scale.to_le_bytes()),
        ScaleType::F16 => {
            scales[2 * place..][..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes())
        }
        ScaleType::E8M0 => scales[place] = (scale.to_bits() >> 23) as u8,
        ScaleType::E4M3 => scales[place] = f32_to_e4m3(scale),
    }
}

/// Memory that products need beside their operands. It grows when it must, and is then used again: a
/// product of a shape seen before allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch(Vec<Line>);

impl Scratch {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `parts` pieces of at least `bytes` each, and how many lines a piece has.
    pub(crate) fn lines(&mut self, parts: usize, bytes: usize) -> (&mut [Line], usize) {
        let lines = bytes.div_ceil(64);
        if self.0.len() < parts * lines {
            self.0.resize(parts * lines, Line([0; 64]));
        }
        (&mut self.0[..parts * lines], lines)
    }
}
