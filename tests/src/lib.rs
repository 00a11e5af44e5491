//! What the tests across crates share: reading golden vectors and comparing with them.
//!
//! The vectors are safetensors files under `tests/goldens`, described in `tests/goldens/README.md`.

pub mod goldens;
