//! Which patches an encoder sees: a random permutation from one noise value a patch
//! (He et al.: *Masked autoencoders are scalable vision learners*, 2022, section 3).

use crate::error::{Error, Result, at_least, length};

/// Visible patches of `patches` at a mask ratio: trunc(L · (1 − ratio)), computed in f64.
///
/// # Errors
/// [`Error::Range`] unless 0 ≤ ratio < 1; [`Error::NothingKept`] where no patch would stay visible.
pub fn kept(patches: usize, mask_ratio: f64) -> Result<usize> {
    if !(0.0..1.0).contains(&mask_ratio) {
        return Err(Error::Range {
            what: "mask_ratio",
            least: 0.0,
            below: 1.0,
            actual: mask_ratio,
        });
    }
    // A cast truncates and saturates.
    match (patches as f64 * (1.0 - mask_ratio)) as usize {
        0 => Err(Error::NothingKept { patches, mask_ratio }),
        keep => Ok(keep.min(patches)),
    }
}

/// The order that sorts `keys` ascending; equal keys keep their order. O(n log n), in place.
///
/// # Errors
/// [`Error::NotANumber`] for a NaN, [`Error::Length`] where the two lengths differ, [`Error::TooMany`] for more keys
/// than a u32 counts.
pub fn argsort(keys: &[f32], order: &mut [u32]) -> Result<()> {
    length("order", order.len(), keys.len())?;
    check_keys("keys", keys)?;
    count_up(order);
    sort_by_rank(order, |a, b| precedes(keys, a, b));
    Ok(())
}

/// One image's mask from its noise.
///
/// `order` becomes the stable ascending argsort of the noise, so the visible patches are `order[..keep]`; `restore` its
/// inverse, where each patch went; `removed` 1 where a patch is not visible, else 0. All have one element a patch.
///
/// # Errors
/// Those of [`argsort`]; [`Error::TooFew`] for `keep == 0`, [`Error::TooMany`] for `keep` above the number of patches.
pub fn mask(noise: &[f32], keep: usize, order: &mut [u32], restore: &mut [u32], removed: &mut [f32]) -> Result<()> {
    let patches = noise.len();
    length("restore", restore.len(), patches)?;
    length("removed", removed.len(), patches)?;
    at_least("keep", keep, 1)?;
    if keep > patches {
        return Err(Error::TooMany {
            what: "keep",
            most: patches,
            actual: keep,
        });
    }
    argsort(noise, order)?;
    for (place, &patch) in order.iter().enumerate() {
        let patch = patch as usize;
        if let (Some(restore), Some(removed)) = (restore.get_mut(patch), removed.get_mut(patch)) {
            // `argsort` refused what does not fit a u32.
            *restore = place as u32;
            *removed = if place < keep { 0.0 } else { 1.0 };
        }
    }
    Ok(())
}

/// Whether element `a` comes before element `b`: by key, then by number. A total order without NaNs.
#[inline(always)]
pub(crate) fn precedes(keys: &[f32], a: u32, b: u32) -> bool {
    match (keys.get(a as usize), keys.get(b as usize)) {
        (Some(x), Some(y)) => x < y || (x == y && a < b),
        _ => false,
    }
}

/// Fails for a NaN, and for more keys than a u32 counts.
pub(crate) fn check_keys(what: &'static str, keys: &[f32]) -> Result<()> {
    if u32::try_from(keys.len()).is_err() {
        return Err(Error::TooMany {
            what,
            most: u32::MAX as usize,
            actual: keys.len(),
        });
    }
    match keys.iter().position(|key| key.is_nan()) {
        Some(index) => Err(Error::NotANumber { what, index }),
        None => Ok(()),
    }
}

/// Writes 0, 1, 2, …
pub(crate) fn count_up(order: &mut [u32]) {
    for (slot, number) in order.iter_mut().zip(0u32..) {
        *slot = number;
    }
}

/// Heapsort of numbers by a strict total order: no allocation, and no comparison makes it worse than O(n log n).
pub(crate) fn sort_by_rank(order: &mut [u32], before: impl Fn(u32, u32) -> bool + Copy) {
    build_heap(order, before);
    let mut heap = order;
    while let [rest @ .., last] = heap {
        if let Some(first) = rest.first_mut() {
            core::mem::swap(first, last);
        }
        sift_down(rest, 0, before);
        heap = rest;
    }
}

/// Makes a heap whose first element is the last in the order.
pub(crate) fn build_heap(heap: &mut [u32], before: impl Fn(u32, u32) -> bool + Copy) {
    for start in (0..heap.len() / 2).rev() {
        sift_down(heap, start, before);
    }
}

/// Moves the element at `at` down until both of its children come before it.
pub(crate) fn sift_down(heap: &mut [u32], mut at: usize, before: impl Fn(u32, u32) -> bool + Copy) {
    let Some(&sinking) = heap.get(at) else {
        return;
    };
    loop {
        let left = 2 * at + 1;
        let (child, value) = match (heap.get(left), heap.get(left + 1)) {
            (Some(&first), Some(&second)) if before(first, second) => (left + 1, second),
            (Some(&first), _) => (left, first),
            _ => break,
        };
        if !before(sinking, value) {
            break;
        }
        if let Some(slot) = heap.get_mut(at) {
            *slot = value;
        }
        at = child;
    }
    if let Some(slot) = heap.get_mut(at) {
        *slot = sinking;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;
    use std::{vec, vec::Vec as Buffer};

    #[test]
    fn kept_truncates() {
        assert_eq!(kept(196, 0.75), Ok(49));
        assert_eq!(kept(49, 0.75), Ok(12));
        assert_eq!(kept(196, 0.9), Ok(19));
        assert_eq!(kept(64, 0.0), Ok(64));
    }

    #[test]
    fn kept_refuses() {
        assert_eq!(
            kept(3, 0.75),
            Err(Error::NothingKept {
                patches: 3,
                mask_ratio: 0.75
            })
        );
        assert_eq!(
            kept(0, 0.5),
            Err(Error::NothingKept {
                patches: 0,
                mask_ratio: 0.5
            })
        );
        for ratio in [1.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(kept(16, ratio), Err(Error::Range { .. })), "{ratio}");
        }
    }

    #[test]
    fn refuses_bad_arguments() {
        let (mut order, mut restore, mut removed) = ([0; 3], [0; 3], [0.0; 3]);
        assert_eq!(
            mask(&[0.1, f32::NAN, 0.2], 1, &mut order, &mut restore, &mut removed),
            Err(Error::NotANumber { what: "keys", index: 1 })
        );
        for keep in [0, 4] {
            assert!(mask(&[0.1, 0.3, 0.2], keep, &mut order, &mut restore, &mut removed).is_err());
        }
        assert!(mask(&[0.1, 0.3], 1, &mut order, &mut restore, &mut removed).is_err());
        assert!(argsort(&[1.0], &mut order).is_err());
        assert_eq!(argsort(&[], &mut []), Ok(()));
    }

    #[test]
    fn zeros_of_both_signs_tie() {
        let mut order = [0; 4];
        argsort(&[0.0, -0.0, f32::NEG_INFINITY, 0.0], &mut order).unwrap();
        assert_eq!(order, [2, 0, 1, 3]);
    }

    proptest! {
        // Few distinct keys make many ties; the other range makes nearly none.
        #[test]
        fn argsort_is_the_stable_sort(
            keys in prop_oneof![
                prop::collection::vec((0u8..5).prop_map(f32::from), 0..200),
                prop::collection::vec(-1.0f32..1.0, 0..200),
            ]
        ) {
            let mut order = vec![0; keys.len()];
            argsort(&keys, &mut order).unwrap();
            let mut expected: Vec<u32> = (0..keys.len() as u32).collect();
            expected.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
            prop_assert_eq!(order, expected);
        }

        #[test]
        fn masks_are_permutations(noise in prop::collection::vec(0.0f32..1.0, 1..100), share in 0.0f64..1.0) {
            let patches = noise.len();
            let keep = 1 + ((patches - 1) as f64 * share) as usize;
            let (mut order, mut restore, mut removed) = (vec![0; patches], vec![0; patches], vec![0.5; patches]);
            mask(&noise, keep, &mut order, &mut restore, &mut removed).unwrap();
            let mut seen: Buffer<u32> = order.clone();
            seen.sort_unstable();
            prop_assert!(seen.iter().copied().eq(0..patches as u32));
            for (place, &patch) in order.iter().enumerate() {
                prop_assert_eq!(restore[patch as usize] as usize, place);
                prop_assert_eq!(removed[patch as usize], f32::from(u8::from(place >= keep)));
            }
        }
    }
}
