//! Who computes the workers' parts: one thread after the other, or threads side by side.

/// Runs two pieces of work, side by side or one after the other.
pub(crate) trait Team: Copy + Send + Sync {
    fn join<A: Send, B: Send>(self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B);
}

/// The calling thread.
#[cfg(not(feature = "std"))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alone;

#[cfg(not(feature = "std"))]
impl Team for Alone {
    fn join<A: Send, B: Send>(self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
        (a(), b())
    }
}

/// The threads of the rayon pool that the call runs in. It allocates nothing.
#[cfg(feature = "std")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rayon;

#[cfg(feature = "std")]
impl Team for Rayon {
    fn join<A: Send, B: Send>(self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
        rayon::join(a, b)
    }
}
