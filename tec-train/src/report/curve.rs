//! Long curves made short enough to draw, without losing what one looks for in them.

/// At most `limit` of `points`, in order: the first, the last, and from each of equal stretches between them the lowest
/// and the highest, so that every spike that can be seen stays. All of them if they are few enough, or if `limit` is
/// below 4.
pub fn downsample(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64)> {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    if points.len() <= limit || limit < 4 {
        return points.to_vec();
    }
    let inner = &points[1..points.len() - 1];
    let stretches = (limit - 2) / 2;
    let mut kept = Vec::with_capacity(limit);
    kept.push(first);
    for stretch in 0..stretches {
        let from = stretch * inner.len() / stretches;
        let to = (stretch + 1) * inner.len() / stretches;
        let (mut low, mut high) = (from, from);
        for i in from..to {
            if inner[i].1 < inner[low].1 {
                low = i;
            }
            if inner[i].1 > inner[high].1 {
                high = i;
            }
        }
        kept.push(inner[low.min(high)]);
        if low != high {
            kept.push(inner[low.max(high)]);
        }
    }
    kept.push(last);
    kept
}

/// The mean of the values up to `reach` points to either side of each point: centered, so that it does not lag behind
/// the curve; at the ends the side that is there.
pub fn smooth(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let mut sums = Vec::with_capacity(points.len() + 1);
    let mut sum = 0.0;
    sums.push(sum);
    for (_, y) in points {
        sum += y;
        sums.push(sum);
    }
    let mean = |(i, &(x, _)): (usize, &(f64, f64))| {
        let from = i.saturating_sub(reach);
        let to = (i + reach + 1).min(points.len());
        (x, (sums[to] - sums[from]) / (to - from) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// Whether a curve turns between rising and falling so often that a smoothed one is easier to read: at more than a tenth
/// of its points. A learning rate does not, and would only lose its corners.
pub(super) fn is_noisy(points: &[(f64, f64)]) -> bool {
    let turns = points
        .windows(3)
        .filter(|p| (p[1].1 - p[0].1) * (p[2].1 - p[1].1) < 0.0)
        .count();
    turns * 10 > points.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(n: usize) -> Vec<(f64, f64)> {
        (0..n)
            .map(|i| (i as f64, ((i * 7919) % 1009) as f64 / 1009.0))
            .collect()
    }

    #[test]
    fn downsampling_keeps_ends_and_spikes() {
        let mut points = noisy(100_000);
        points[31_337].1 = 50.0;
        points[77_777].1 = -50.0;
        let kept = downsample(&points, 600);
        assert!(kept.len() <= 600 && kept.len() > 500, "{}", kept.len());
        assert_eq!(kept.first(), points.first());
        assert_eq!(kept.last(), points.last());
        assert!(kept.contains(&(31_337.0, 50.0)) && kept.contains(&(77_777.0, -50.0)));
        assert!(
            kept.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "in order, none twice"
        );
        assert!(kept.iter().all(|point| points.contains(point)));
    }

    #[test]
    fn short_curves_stay_whole() {
        assert_eq!(downsample(&noisy(600), 600), noisy(600));
        assert_eq!(downsample(&noisy(9), 0), noisy(9));
        assert_eq!(downsample(&[], 600), []);
        assert_eq!(downsample(&noisy(601), 600).len(), 600);
        assert_eq!(downsample(&noisy(7), 4).len(), 4);
    }

    #[test]
    fn smoothing_is_centered() {
        let line: Vec<_> = (0..9).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        let smoothed = smooth(&line, 2);
        assert_eq!(smoothed[4], (4.0, 8.0));
        assert_eq!(smoothed[0], (0.0, 2.0));
        assert_eq!(smoothed[8], (8.0, 14.0));
        assert_eq!(smooth(&line, 0), line);
        assert_eq!(smooth(&[], 3), []);
    }

    #[test]
    fn noise_is_told_from_a_course() {
        assert!(is_noisy(&noisy(500)));
        let schedule: Vec<_> = (0..500)
            .map(|i| (f64::from(i), f64::from(50 - (i - 50i32).abs())))
            .collect();
        assert!(!is_noisy(&schedule) && !is_noisy(&[(0.0, 1.0); 9]) && !is_noisy(&[]));
    }
}
