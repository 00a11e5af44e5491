//! Tables, for the page and for a terminal.

use super::html::{Escaped, Html, markup};
use std::fmt;

/// The head of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    title: String,
    unit: String,
    numeric: bool,
}

impl Column {
    /// A column of words, aligned left.
    pub fn text(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            unit: String::new(),
            numeric: false,
        }
    }

    /// A column of numbers in `unit` (may be empty), aligned right.
    pub fn number(title: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            unit: unit.into(),
            numeric: true,
        }
    }

    fn plain(&self) -> String {
        if self.unit.is_empty() {
            self.title.clone()
        } else {
            format!("{} ({})", self.title, self.unit)
        }
    }
}

/// A cell of a table: text as it shall be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    best: bool,
}

impl Cell {
    /// A cell that says `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            best: false,
        }
    }

    /// A cell with nothing to say, shown as a dash.
    pub fn none() -> Self {
        Self::new("–")
    }

    /// The same, marked as the best of its column if `best`.
    #[must_use]
    pub fn best(mut self, best: bool) -> Self {
        self.best = best;
        self
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// A table: columns, and rows with a cell for each of them. [`fmt::Display`] aligns it for a terminal, the best cells
/// marked by `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing are empty, cells without a column are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) -> &mut Self {
        let mut cells: Vec<Cell> = cells.into_iter().collect();
        cells.resize(self.columns.len(), Cell::none());
        self.rows.push(cells);
        self
    }

    /// The table for the page.
    pub fn to_html(&self) -> Html {
        let mut html = Html::new();
        markup!(html, "<div class=\"scroll\"><table>\n<thead><tr>");
        for column in &self.columns {
            markup!(
                html,
                "<th scope=\"col\"{}>{}",
                class(column.numeric, false),
                Escaped(&column.title)
            );
            if !column.unit.is_empty() {
                markup!(html, " <span class=\"note\">{}</span>", Escaped(&column.unit));
            }
            markup!(html, "</th>");
        }
        markup!(html, "</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            markup!(html, "<tr>");
            for (i, (column, cell)) in self.columns.iter().zip(row).enumerate() {
                let class = class(column.numeric, cell.best);
                if i == 0 {
                    markup!(html, "<th scope=\"row\"{class}>{}</th>", Escaped(&cell.text));
                } else {
                    markup!(html, "<td{class}>{}</td>", Escaped(&cell.text));
                }
            }
            markup!(html, "</tr>\n");
        }
        markup!(html, "</tbody></table></div>\n");
        html
    }
}

fn class(numeric: bool, best: bool) -> &'static str {
    match (numeric, best) {
        (false, false) => "",
        (true, false) => " class=\"number\"",
        (false, true) => " class=\"best\"",
        (true, true) => " class=\"number best\"",
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marked = |cell: &Cell| {
            if cell.best {
                format!("{} *", cell.text)
            } else {
                cell.text.clone()
            }
        };
        let mut lines = vec![self.columns.iter().map(Column::plain).collect::<Vec<_>>()];
        // Numbers stay in line under each other whether or not one of them is marked.
        lines.extend(self.rows.iter().map(|row| {
            let pad = |(i, cell): (usize, &Cell)| {
                let marks = self.rows.iter().any(|row| row[i].best) && self.columns[i].numeric;
                if marks && !cell.best {
                    format!("{}  ", cell.text)
                } else {
                    marked(cell)
                }
            };
            row.iter().enumerate().map(pad).collect()
        }));
        let width = |i: usize| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for (n, line) in lines.iter().enumerate() {
            let mut text = String::new();
            for ((cell, &width), column) in line.iter().zip(&widths).zip(&self.columns) {
                let cell = if column.numeric {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                text.push_str(&cell);
                text.push_str("  ");
            }
            writeln!(f, "{}", text.trim_end())?;
            if n == 0 {
                let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
                writeln!(f, "{}", rules.join("  "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::assert_well_formed;

    fn summary() -> Table {
        let mut table = Table::new([Column::text("model"), Column::number("k-NN accuracy", "%")]);
        table.row(["base".into(), "79.80".into()]);
        table.row(["new <model>".into(), Cell::new("81.35").best(true)]);
        table.row(["missing".into()]);
        table
    }

    #[test]
    fn the_page_marks_the_best_cell() {
        let html = summary().to_html();
        assert_well_formed(html.as_str());
        assert!(html.as_str().contains("<td class=\"number best\">81.35</td>"));
        assert!(html.as_str().contains("new &lt;model&gt;"));
        assert_eq!(html.as_str().matches("<td").count(), 3);
    }

    #[test]
    fn a_terminal_gets_aligned_columns() {
        let lines = [
            "model        k-NN accuracy (%)",
            "───────────  ─────────────────",
            "base                   79.80",
            "new <model>            81.35 *",
            "missing                    –",
        ];
        assert_eq!(summary().to_string(), lines.join("\n") + "\n");
    }
}
