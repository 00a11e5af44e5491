//! Kernels for x86-64.

#[cfg(tec_amx)]
mod amx;
mod avx2;
mod avx512;
mod avx_vnni;
mod vnni;

#[cfg(tec_amx)]
pub(crate) use amx::Amx;
pub(crate) use avx_vnni::AvxVnni;
pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
