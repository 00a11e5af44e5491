//! Curves over epochs or steps, drawn by plotters as SVG that takes its colors from the page.

use super::{
    axis::{Axis, number},
    curve::{downsample, is_noisy, smooth},
    html::{Escaped, Html, markup},
};
use plotters::prelude::*;

/// Points of a curve that are drawn, at most: more cannot be told apart.
const POINTS: usize = 600;
/// From this many points on a noisy curve is drawn faint with its smoothed course over it.
const LONG: usize = 120;
/// Below this many points each is marked.
const FEW: usize = 40;
/// Colors of the style sheet, `series-1` to `series-6`.
const COLORS: usize = 6;
/// SVG units a CSS pixel: plotters rounds positions to whole units, which would show in a flat curve.
const UNITS: u32 = 4;
/// Stand-ins for colors of the style sheet, replaced by classes once plotters has drawn.
const INK: RGBColor = RGBColor(0, 0, 0xE0);
const GRID: RGBColor = RGBColor(0, 0, 0xE1);
const SERIES: u8 = 0xF0;

/// A named curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// A curve through `points` (x, y) in order of x. Points that are not finite are left out.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
        Self {
            name: name.into(),
            points: points.into_iter().filter(finite).collect(),
        }
    }
}

/// How values are laid out on the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By their logarithm; points at or below zero are left out.
    Logarithmic,
}

/// A plot of several curves with a title and a legend.
///
/// Long noisy curves are drawn faint with their smoothed course over them, both thinned out such that ends and extremes stay;
/// the points of short ones are marked.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    title: String,
    x_label: String,
    scale: Scale,
    small: bool,
    series: Vec<Series>,
}

impl Plot {
    /// An empty plot titled by what the values are, such as `loss`, over `x_label`, such as `epoch`.
    pub fn new(title: impl Into<String>, x_label: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            scale: Scale::Linear,
            small: false,
            series: Vec::new(),
        }
    }

    /// With the vertical axis laid out by `scale`.
    #[must_use]
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = scale;
        self
    }

    /// Half as high, for what matters less, such as the learning rate.
    #[must_use]
    pub fn small(mut self) -> Self {
        self.small = true;
        self
    }

    /// With one more curve; the first six have colors of their own.
    #[must_use]
    pub fn series(mut self, mut series: Series) -> Self {
        if self.scale == Scale::Logarithmic {
            series.points.retain(|point| point.1 > 0.0);
        }
        self.series.push(series);
        self
    }

    /// The plot as a figure: drawn twice, for wide windows and for phones, of which the style sheet shows one.
    pub fn to_html(&self) -> Html {
        let mut html = Html::new();
        markup!(
            html,
            "<figure class=\"plot\"><figcaption><strong>{}</strong>",
            Escaped(&self.title)
        );
        if self.scale == Scale::Logarithmic {
            markup!(html, " <span class=\"note\">logarithmic</span>");
        }
        markup!(html, "<span class=\"legend\">");
        for (i, series) in self.series.iter().enumerate() {
            markup!(
                html,
                "<span><i class=\"swatch-{}\"></i>{}",
                i % COLORS + 1,
                Escaped(&series.name)
            );
            if let Some(&(_, last)) = series.points.last() {
                markup!(html, " <span class=\"note\">ends at {}</span>", number(last));
            }
            markup!(html, "</span>");
        }
        markup!(html, "</span></figcaption>\n");
        if self.series.iter().all(|series| series.points.is_empty()) {
            markup!(html, "<p class=\"note\">There is nothing to draw yet.</p>");
        } else {
            let height = |full: u32| if self.small { full * 3 / 5 } else { full };
            for (class, width, height) in [("wide", 960, height(320)), ("narrow", 400, height(290))] {
                match self.draw(width, height) {
                    Ok(svg) => markup!(html, "<div class=\"{class}\">{svg}</div>\n"),
                    // A report is not worth losing for one picture.
                    Err(error) => {
                        markup!(
                            html,
                            "<p class=\"note\">This could not be drawn: {}</p>\n",
                            Escaped(&error.to_string())
                        );
                    }
                }
            }
        }
        markup!(html, "</figure>\n");
        html
    }

    fn draw(&self, width: u32, height: u32) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::linear(points().map(|point| point.0));
        let y = match self.scale {
            Scale::Linear => Axis::linear(points().map(|point| point.1)).anchored_at_zero(),
            Scale::Logarithmic => Axis::logarithmic(points().map(|point| point.1)),
        };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (width * UNITS, height * UNITS)).into_drawing_area();
            let mut chart = ChartBuilder::on(&area)
                .margin(10 * UNITS)
                .x_label_area_size(38 * UNITS)
                .y_label_area_size(52 * UNITS)
                .build_cartesian_2d(x, y.padded())?;
            // plotters' sizes are of a font's whole line, 1.24 times what SVG calls its size.
            let text = ("sans-serif", 15 * UNITS).into_font().color(&INK);
            chart
                .configure_mesh()
                .disable_x_mesh()
                .x_labels((width / 90) as usize)
                .y_labels((height / 42).max(4) as usize)
                .bold_line_style(GRID.stroke_width(UNITS))
                .light_line_style(TRANSPARENT)
                .axis_style(GRID.stroke_width(UNITS))
                .set_all_tick_mark_size(4 * UNITS)
                .label_style(text.clone())
                .axis_desc_style(text)
                .x_desc(&self.x_label)
                .draw()?;
            for (i, series) in self.series.iter().enumerate() {
                let color = RGBColor(0, 0, SERIES + (i % COLORS) as u8);
                let drawn = downsample(&series.points, POINTS);
                if series.points.len() >= LONG && is_noisy(&series.points) {
                    chart.draw_series(LineSeries::new(drawn, color.mix(0.3).stroke_width(UNITS)))?;
                    let course = smooth(&series.points, series.points.len() / 60);
                    chart.draw_series(LineSeries::new(
                        downsample(&course, POINTS),
                        color.stroke_width(2 * UNITS),
                    ))?;
                    continue;
                }
                chart.draw_series(LineSeries::new(drawn.iter().copied(), color.stroke_width(2 * UNITS)))?;
                if drawn.len() <= FEW {
                    chart.draw_series(drawn.iter().map(|&point| Circle::new(point, 3 * UNITS, color.filled())))?;
                }
            }
            area.present()?;
        }
        Ok(themed(svg, &self.title))
    }
}

/// `svg` with the stand-in colors replaced by classes of the style sheet, and a name for screen readers.
fn themed(mut svg: String, title: &str) -> String {
    let mut replace = |color: RGBColor, name: &str| {
        let hex = format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
        for property in ["stroke", "fill"] {
            svg = svg.replace(
                &format!("{property}=\"{hex}\""),
                &format!("class=\"{property}-{name}\""),
            );
        }
    };
    replace(INK, "ink");
    replace(GRID, "grid");
    for i in 0..COLORS {
        replace(RGBColor(0, 0, SERIES + i as u8), &(i + 1).to_string());
    }
    svg.replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{}\" ", Escaped(title)),
        1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::assert_well_formed;

    fn falling(n: usize) -> Vec<(f64, f64)> {
        (0..n).map(|i| (i as f64, 2.0 / (1.0 + i as f64))).collect()
    }

    /// The point lists of the curves drawn, of both sizes.
    fn lines(html: &Html) -> Vec<usize> {
        html.as_str()
            .split("points=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().map_or(0, |list| list.split_whitespace().count()))
            .collect()
    }

    #[test]
    fn short_curves_are_marked_and_long_ones_smoothed() {
        let short = Plot::new("loss", "epoch")
            .series(Series::new("total", falling(20)))
            .to_html();
        assert_well_formed(short.as_str());
        assert_eq!(short.as_str().matches("<circle").count(), 2 * 20);
        assert!(short.as_str().contains("class=\"stroke-1\"") && short.as_str().contains("ends at 0.1"));
        let noisy: Vec<_> = falling(50_000)
            .into_iter()
            .map(|(x, y)| (x, y + 0.1 * (7.0 * x).sin()))
            .collect();
        let long = Plot::new("loss", "step").series(Series::new("total", noisy)).to_html();
        assert_well_formed(long.as_str());
        assert_eq!(long.as_str().matches("<circle").count(), 0);
        let curves: Vec<_> = lines(&long).into_iter().filter(|&n| n > 100).collect();
        assert_eq!(curves.len(), 4, "raw and smoothed, twice");
        assert!(curves.iter().all(|&n| n <= POINTS), "{curves:?}");
        assert!(long.as_str().len() < 100_000, "{}", long.as_str().len());
    }

    #[test]
    fn colors_come_from_the_style_sheet() {
        let mut plot = Plot::new("loss", "epoch").scale(Scale::Logarithmic);
        for i in 0..7 {
            plot = plot.series(Series::new(format!("run {i}"), falling(5)));
        }
        let html = plot.to_html();
        assert_well_formed(html.as_str());
        assert!(!html.as_str().contains("=\"#0000"), "a stand-in color was left");
        assert!(html.as_str().contains("class=\"fill-6\"") && !html.as_str().contains("fill-7"));
    }

    #[test]
    fn names_are_escaped() {
        let html = Plot::new("<b>&", "\"x\" <i>")
            .series(Series::new("<u>'", falling(3)))
            .to_html();
        assert_well_formed(html.as_str());
        for tag in ["<b>", "<i>", "<u>"] {
            assert!(!html.as_str().contains(tag), "{tag}");
        }
    }

    #[test]
    fn odd_data_makes_a_plot() {
        for points in [
            vec![],
            vec![(0.0, 1.0)],
            vec![(0.0, f64::NAN), (1.0, f64::INFINITY)],
            vec![(0.0, 0.0), (1.0, -1.0)],
        ] {
            for scale in [Scale::Linear, Scale::Logarithmic] {
                let html = Plot::new("lr", "step")
                    .scale(scale)
                    .small()
                    .series(Series::new("lr", points.clone()))
                    .to_html();
                assert_well_formed(html.as_str());
                assert!(!html.as_str().contains("could not be drawn"), "{points:?}");
                assert!(!html.as_str().contains("NaN"));
            }
        }
    }
}
