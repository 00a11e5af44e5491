//! The axes of plots: round tick values in sensible number, linear or logarithmic.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

/// An axis from `low` to `high`, `low < high`; both above zero if logarithmic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// A linear axis over all `values`, or over 0 to 1 if there are none.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = bounds(values).unwrap_or((0.0, 1.0));
        // A constant needs some room around it to be drawn as a line in the middle.
        let room = if high > low {
            0.0
        } else if low == 0.0 {
            1.0
        } else {
            0.05 * low.abs()
        };
        Self {
            low: low - room,
            high: high + room,
            logarithmic: false,
        }
    }

    /// A logarithmic axis over those `values` that are above zero.
    pub(super) fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = bounds(values.filter(|&v| v > 0.0)).unwrap_or((0.1, 1.0));
        let room = if high > low { 1.0 } else { 1.05 };
        Self {
            low: low / room,
            high: high * room,
            logarithmic: true,
        }
    }

    /// The same with a little room at both ends, so that curves do not run along the frame; an axis that starts at zero
    /// still does.
    pub(super) fn padded(self) -> Self {
        if self.logarithmic {
            let room = (self.high / self.low).powf(0.04);
            return Self {
                low: self.low / room,
                high: self.high * room,
                ..self
            };
        }
        let room = 0.04 * (self.high - self.low);
        let low = if self.low == 0.0 { 0.0 } else { self.low - room };
        Self {
            low,
            high: self.high + room,
            ..self
        }
    }

    /// The same, but starting at zero if linear, above zero, and nearer to zero than to a small part of its height.
    pub(super) fn anchored_at_zero(self) -> Self {
        if !self.logarithmic && self.low > 0.0 && self.low < 0.3 * self.high {
            return Self { low: 0.0, ..self };
        }
        self
    }

    fn position(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    fn linear_ticks(&self, most: usize) -> Vec<f64> {
        let raw = (self.high - self.low) / most.max(1) as f64;
        let power = 10f64.powf(raw.log10().floor());
        let multiple = raw / power;
        let step = power
            * [1.0, 2.0, 5.0]
                .into_iter()
                .find(|&m| m >= multiple * 0.999)
                .unwrap_or(10.0);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    fn logarithmic_ticks(&self, most: usize) -> Vec<f64> {
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let decades = (self.high / self.low).log10();
        // Less than a decade and a half reads best with evenly spaced values, more with decades and parts of them.
        if decades < 0.5 {
            let ticks = self.linear_ticks(most);
            return ticks.into_iter().filter(|&t| t > 0.0).collect();
        }
        let parts: &[f64] = if decades * 3.0 <= most as f64 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let stride = (decades / most.max(1) as f64).ceil().max(1.0) as usize;
        (first..=last)
            .step_by(stride)
            .flat_map(|decade| parts.iter().map(move |part| part * 10f64.powi(decade)))
            .filter(|&t| t >= self.low * 0.999_999 && t <= self.high * 1.000_001)
            .collect()
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    // Beyond this the length of an axis could overflow.
    values.filter(|v| v.abs() < 1e300).fold(None, |bounds, v| match bounds {
        None => Some((v, v)),
        Some((low, high)) => Some((v.min(low), v.max(high))),
    })
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let position = self.position(*value).clamp(0.0, 1.0);
        limit.0 + (position * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let most = hint.max_num_points();
        if self.logarithmic {
            self.logarithmic_ticks(most)
        } else {
            self.linear_ticks(most)
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        // Labels of one linear axis are written alike: 0.0005 below 0.001, 5e-5 below 1e-4.
        if !self.logarithmic && READABLE.contains(&largest) {
            plain(*value)
        } else {
            number(*value)
        }
    }
}

/// Sizes of numbers that read well without an exponent.
const READABLE: Range<f64> = 1e-3..1e5;

/// A number as short as reading a plot needs: `0`, `0.25`, `12000`, `3e-5`, `1.2e6`.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let size = value.abs();
    if size != 0.0 && !READABLE.contains(&size) {
        return trim(&format!("{value:.3e}"));
    }
    plain(value)
}

/// Four digits that count, or six decimals.
fn plain(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 1.0 => 3,
        size if size >= 0.1 => 4,
        size if size >= 0.01 => 5,
        _ => 6,
    };
    trim(&format!("{value:.decimals$}"))
}

/// Without zeros at the end of the fraction.
fn trim(number: &str) -> String {
    let (mantissa, exponent) = number.split_once('e').map_or((number, ""), |(m, e)| (m, e));
    let mantissa = if mantissa.contains('.') {
        mantissa.trim_end_matches('0').trim_end_matches('.')
    } else {
        mantissa
    };
    let mantissa = if mantissa == "-0" { "0" } else { mantissa };
    if exponent.is_empty() {
        mantissa.to_owned()
    } else {
        format!("{mantissa}e{exponent}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis, most: usize) -> Vec<String> {
        let ticks = if axis.logarithmic {
            axis.logarithmic_ticks(most)
        } else {
            axis.linear_ticks(most)
        };
        ticks.iter().map(|tick| axis.format_ext(tick)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            labels(Axis::linear([0.0, 1.0].into_iter()), 6),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(
            labels(Axis::linear([3.1, 99.0].into_iter()), 6),
            ["20", "40", "60", "80"]
        );
        assert_eq!(
            labels(Axis::linear([0.0, 1.5e-4].into_iter()), 4),
            ["0", "5e-5", "1e-4", "1.5e-4"]
        );
        assert_eq!(
            labels(Axis::linear([0.0, 1.5e-3].into_iter()), 4),
            ["0", "0.0005", "0.001", "0.0015"]
        );
        assert_eq!(
            labels(Axis::logarithmic([0.002, 30.0].into_iter()), 6),
            ["0.01", "0.1", "1", "10"]
        );
        assert_eq!(
            labels(Axis::logarithmic([0.4, 6.0].into_iter()), 6),
            ["0.5", "1", "2", "5"]
        );
        assert_eq!(
            labels(Axis::logarithmic([0.9, 1.4].into_iter()), 6),
            ["0.9", "1", "1.1", "1.2", "1.3", "1.4"]
        );
    }

    #[test]
    fn odd_values_make_a_usable_axis() {
        let empty = Axis::linear([f64::NAN, f64::INFINITY].into_iter());
        assert_eq!(empty.range(), 0.0..1.0);
        for axis in [
            Axis::linear([7.0].into_iter()),
            Axis::linear([0.0].into_iter()),
            Axis::linear([-3.0].into_iter()),
            Axis::logarithmic([2.0].into_iter()),
            Axis::logarithmic([0.0, -1.0].into_iter()),
            Axis::linear([1e-300, 1e300].into_iter()).padded(),
        ] {
            assert!(axis.low < axis.high, "{axis:?}");
            assert!(!labels(axis, 6).is_empty() && labels(axis, 6).len() <= 12, "{axis:?}");
            assert_eq!(axis.map(&axis.low, (0, 100)), 0);
            assert_eq!(axis.map(&axis.high, (0, 100)), 100);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (0.25, "0.25"),
            (12_000.0, "12000"),
            (3e-5, "3e-5"),
            (1.2e6, "1.2e6"),
            (2.345_67, "2.346"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
