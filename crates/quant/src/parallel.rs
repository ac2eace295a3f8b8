//! Who runs the pieces of an operation: nobody else, rayon, or the caller's own threads.

use crate::error::Result;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Threads that this crate may use. It never starts any of its own.
///
/// Implement it for a pool of yours, or pass a [`With`] made from a closure. Results never depend on
/// the number of threads, nor on which of them ran what.
pub trait Parallel: Sync {
    /// How many pieces can run at a time.
    fn threads(&self) -> usize;

    /// Calls `piece(0)`, …, `piece(pieces - 1)`, in any order and on any threads, and returns when all
    /// calls have returned.
    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        (0..pieces).for_each(piece);
    }
}

/// The rayon pool that the calling thread belongs to, or rayon's global one.
#[cfg(feature = "rayon")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Rayon;

#[cfg(feature = "rayon")]
impl Parallel for Rayon {
    fn threads(&self) -> usize {
        rayon::current_num_threads()
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        halve(0..pieces, piece);
    }
}

/// Runs pieces by halves, since `join` allocates nothing.
#[cfg(feature = "rayon")]
fn halve(pieces: Range<usize>, piece: &(dyn Fn(usize) + Sync)) {
    match pieces.len() {
        0 => {}
        1 => piece(pieces.start),
        count => {
            let middle = pieces.start + count / 2;
            let (left, right) = (pieces.start..middle, middle..pieces.end);
            rayon::join(|| halve(left, piece), || halve(right, piece));
        }
    }
}

/// A function of the caller's that runs pieces, and how many it runs at a time.
///
/// ```
/// use ferrotune_quant::{Cpu, With};
///
/// let scoped = With::new(2, |pieces, piece: &(dyn Fn(usize) + Sync)| {
///     std::thread::scope(|scope| {
///         for i in 0..pieces {
///             scope.spawn(move || piece(i));
///         }
///     });
/// });
/// let cpu = Cpu::detect().with_threads(&scoped);
/// # let _ = cpu;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct With<F> {
    threads: usize,
    run: F,
}

impl<F: Fn(usize, &(dyn Fn(usize) + Sync)) + Sync> With<F> {
    /// `run(n, piece)` must call `piece` with each of `0..n` and return when all calls have.
    pub fn new(threads: usize, run: F) -> Self {
        Self { threads, run }
    }
}

impl<F: Fn(usize, &(dyn Fn(usize) + Sync)) + Sync> Parallel for With<F> {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        (self.run)(pieces, piece);
    }
}

/// Work that is handed out to workers: `0..items` in runs of `run`; a worker that is held up takes fewer.
pub(crate) struct Turns<'a> {
    parallel: &'a dyn Parallel,
    items: usize,
    run: usize,
    /// As many as there are threads. Asked for once: a backend may answer otherwise the next time.
    workers: usize,
}

impl<'a> Turns<'a> {
    pub fn new(parallel: &'a dyn Parallel, items: usize, run: usize) -> Self {
        let run = run.max(1);
        let most = items.div_ceil(run).max(1);
        Self {
            parallel,
            items,
            run,
            workers: parallel.threads().clamp(1, most),
        }
    }

    /// How many worker numbers [`each`](Self::each) uses: one a thread, and one for the caller's clean-up.
    pub fn slots(&self) -> usize {
        self.workers + 1
    }

    /// Calls `work(worker, range)` with a worker number that no other call has at the same time, below
    /// [`slots`](Self::slots); each item is in exactly one range, whatever the backend does.
    pub fn each(&self, work: impl Fn(usize, Range<usize>) + Sync) {
        let next = AtomicUsize::new(0);
        let arrived = AtomicUsize::new(0);
        let piece = |_: usize| {
            // Not the backend's number: a backend that repeats one must not make two workers share.
            let worker = arrived.fetch_add(1, Ordering::Relaxed);
            if worker > self.workers {
                return;
            }
            loop {
                let begin = next.fetch_add(self.run, Ordering::Relaxed);
                if begin >= self.items {
                    break;
                }
                work(worker, begin..self.items.min(begin + self.run));
            }
        };
        if self.workers > 1 {
            self.parallel.run(self.workers, &piece);
        }
        // The only worker, or the one that does what a backend left.
        if next.load(Ordering::Relaxed) < self.items {
            arrived.store(self.workers, Ordering::Relaxed);
            piece(0);
        }
    }
}

/// [`Turns::each`] where no worker needs room of its own.
pub(crate) fn for_each(
    parallel: &dyn Parallel,
    items: usize,
    run: usize,
    work: impl Fn(usize, Range<usize>) + Sync,
) {
    Turns::new(parallel, items, run).each(work);
}

/// A slice of which each worker takes parts that no other takes.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    length: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a part is a `&mut [T]`, which may go to another thread if T may; the parts that exist at one
// time do not overlap (contract of `part`).
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            length: slice.len(),
            borrow: PhantomData,
        }
    }

    /// Elements `range`, cut off at the end.
    ///
    /// # Safety
    /// No other part that is in use overlaps `range`.
    #[allow(clippy::mut_from_ref, reason = "the contract says why two never meet")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        let end = range.end.min(self.length);
        let begin = range.start.min(end);
        // SAFETY: within the slice borrowed mutably for 'a, and the caller promises that nobody else
        // holds these elements.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(begin), end - begin) }
    }
}

/// The error of the lowest place, from whichever worker.
pub(crate) struct First(AtomicUsize);

impl First {
    pub fn new() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }

    pub fn at(&self, place: usize) {
        self.0.fetch_min(place, Ordering::Relaxed);
    }

    pub fn check<E>(&self, error: impl FnOnce(usize) -> E) -> Result<(), E> {
        match self.0.load(Ordering::Relaxed) {
            usize::MAX => Ok(()),
            place => Err(error(place)),
        }
    }
}
