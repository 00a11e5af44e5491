//! The matrix for people and for programs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tec_conformance::Row;
use tec_train::report::{Cell, Column, Html, Report, Table};
use tec_train::{Result, atomic};

/// A row for programs.
pub fn row_json(row: &Row) -> Value {
    json!({
        "provider": row.provider, "group": row.group, "cases": row.cases, "values": row.values,
        "max_error": row.max_error, "differing_bits": row.differing_bits, "instructions": row.instructions,
        "not_run": row.not_run, "failures": row.failures, "passed": row.passed(),
    })
}

/// What a provider's rows come to.
struct Summary<'r> {
    cases: usize,
    values: u64,
    differing_bits: Option<u64>,
    max_error: Option<f64>,
    instructions: Option<u64>,
    not_run: Vec<&'r str>,
    failed: bool,
}

impl<'r> Summary<'r> {
    fn of(rows: &'r [Row]) -> Self {
        let sum = |of: fn(&Row) -> Option<u64>| rows.iter().filter_map(of).reduce(|a, b| a + b);
        Self {
            cases: rows.iter().map(|row| row.cases).sum(),
            values: rows.iter().map(|row| row.values).sum(),
            differing_bits: sum(|row| row.differing_bits),
            max_error: rows.iter().filter_map(|row| row.max_error).reduce(f64::max),
            instructions: sum(|row| row.instructions),
            not_run: rows.iter().flat_map(|row| &row.not_run).map(String::as_str).collect(),
            failed: rows.iter().any(|row| !row.failures.is_empty()),
        }
    }

    /// What is not run is never said to have passed.
    fn result(&self) -> &'static str {
        match (self.failed, self.cases, self.not_run.is_empty()) {
            (true, ..) => "FAILED",
            (false, 0, _) => "not run",
            (false, _, false) => "in part",
            (false, _, true) => "passed",
        }
    }
}

/// One line for a provider.
pub fn line(provider: &str, rows: &[Row]) -> String {
    let summary = Summary::of(rows);
    let Summary { cases, values, .. } = summary;
    if let (0, Some(reason), false) = (cases, summary.not_run.first(), summary.failed) {
        return format!("{provider:<12} not run: {reason}");
    }
    let bits = match summary.differing_bits {
        Some(bits) => format!("{bits} differing bits"),
        None => "no bits to compare".into(),
    };
    let (result, error) = (summary.result(), summary.max_error.unwrap_or(0.0));
    let mut text =
        format!("{provider:<12} {result}: {cases} vectors, {values} values, {bits}, largest error {error:.1e}");
    if let Some(count) = summary.instructions {
        text += &format!(", {count} instructions");
    }
    if let Some(first) = summary.not_run.first() {
        text += &format!(", {} not run ({first})", summary.not_run.len());
    }
    text
}

/// Writes `report.json` and `report/index.html`; returns the page's path.
pub fn write(out: &Path, vectors: &Path, rows: &[Row]) -> Result<PathBuf> {
    let folder = out.join("report");
    std::fs::create_dir_all(&folder).map_err(|e| tec_train::Error::File {
        path: folder.clone(),
        reason: e.to_string(),
    })?;
    let all = json!({
        "program": env!("CARGO_PKG_VERSION"), "vectors": vectors.display().to_string(),
        "rows": rows.iter().map(row_json).collect::<Vec<_>>(),
    });
    atomic::write(&out.join("report.json"), format!("{all:#}\n").as_bytes())?;
    page(vectors, rows).write(&folder)
}

fn page(vectors: &Path, rows: &[Row]) -> Report {
    let failed = rows.iter().filter(|row| !row.failures.is_empty()).count();
    let checked = rows.iter().filter(|row| row.cases > 0).count();
    let passed = rows.iter().filter(|row| row.passed()).count();
    let lead = match failed {
        0 => format!("{passed} of {checked} combinations of a provider and a group of vectors passed, none failed."),
        _ => format!("{failed} of {checked} combinations of a provider and a group of vectors failed."),
    };
    let mut report = Report::new("Conformance", lead);
    let text = format!(
        "Vectors: {}. A differing bit is a failure; the largest error is max|a − b| / max|b| of the worst tensor, for \
         values computed in f32 beside golden ones in f64.",
        vectors.display()
    );
    let providers = rows.chunk_by(|a, b| a.provider == b.provider);
    report.section("Providers", text, table("all vectors", providers).to_html());
    let each = rows.chunks(1);
    report.section(
        "Vectors",
        "Each group of vectors on each provider.",
        table("", each).to_html(),
    );
    list(
        &mut report,
        "Failures",
        "What came, and what was expected.",
        rows,
        |row| &row.failures,
    );
    list(&mut report, "Not run", "Neither passed nor failed.", rows, |row| {
        &row.not_run
    });
    report
}

/// One row for each slice of rows, whose vectors are called `vectors`, or by their group's name.
fn table<'r>(vectors: &str, slices: impl Iterator<Item = &'r [Row]>) -> Table {
    let texts = ["provider", "vectors", "result"].map(Column::text);
    let numbers = ["cases", "values", "differing bits", "largest error", "instructions"];
    let mut table = Table::new(texts.into_iter().chain(numbers.map(|name| Column::number(name, ""))));
    let number = |n: Option<u64>| n.map_or_else(Cell::none, |n| Cell::new(n.to_string()));
    for rows in slices {
        let (summary, first) = (Summary::of(rows), rows.first());
        let group = first.map_or("", |row| row.group.as_str());
        table.row([
            first.map_or("", |row| row.provider.as_str()).into(),
            if vectors.is_empty() { group } else { vectors }.into(),
            summary.result().into(),
            summary.cases.to_string().into(),
            summary.values.to_string().into(),
            number(summary.differing_bits),
            summary
                .max_error
                .map_or_else(Cell::none, |error| Cell::new(format!("{error:.1e}"))),
            number(summary.instructions),
        ]);
    }
    table
}

fn list<'r>(report: &mut Report, title: &str, text: &str, rows: &'r [Row], of: impl Fn(&'r Row) -> &'r Vec<String>) {
    let mut table = Table::new([Column::text("provider"), Column::text("vectors"), Column::text("what")]);
    let mut count = 0;
    for row in rows {
        for what in of(row) {
            table.row([
                row.provider.as_str().into(),
                row.group.as_str().into(),
                what.as_str().into(),
            ]);
            count += 1;
        }
    }
    let body = if count == 0 {
        Html::paragraph("None.")
    } else {
        table.to_html()
    };
    report.section(title, text, body);
}
