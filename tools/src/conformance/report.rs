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
        "not_run": row.not_run, "failures": row.failures, "passed": row.failures.is_empty() && row.cases > 0,
    })
}

/// One line for a provider.
pub fn line(provider: &str, rows: &[Row]) -> String {
    let cases: usize = rows.iter().map(|row| row.cases).sum();
    let not_run: Vec<&String> = rows.iter().flat_map(|row| &row.not_run).collect();
    if let (0, Some(reason)) = (cases, not_run.first()) {
        return format!("{provider:<12} not run: {reason}");
    }
    let values: u64 = rows.iter().map(|row| row.values).sum();
    let result = match rows.iter().all(|row| row.failures.is_empty()) {
        true => "passed",
        false => "FAILED",
    };
    let bits = match rows.iter().filter_map(|row| row.differing_bits).reduce(|a, b| a + b) {
        Some(bits) => format!("{bits} differing bits"),
        None => "no bits to compare".into(),
    };
    let error = rows.iter().filter_map(|row| row.max_error).fold(0.0, f64::max);
    let mut text =
        format!("{provider:<12} {result}: {cases} vectors, {values} values, {bits}, largest error {error:.1e}");
    if let Some(count) = rows.iter().filter_map(|row| row.instructions).reduce(|a, b| a + b) {
        text += &format!(", {count} instructions");
    }
    if let Some(first) = not_run.first() {
        text += &format!(", {} not run ({first})", not_run.len());
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
    let lead = match failed {
        0 => format!("Every one of {checked} combinations of a provider and a group of vectors passed."),
        _ => format!("{failed} of {checked} combinations of a provider and a group of vectors failed."),
    };
    let mut report = Report::new("Conformance", lead);
    let mut matrix = Table::new([
        Column::text("provider"),
        Column::text("vectors"),
        Column::text("result"),
        Column::number("cases", ""),
        Column::number("values", ""),
        Column::number("differing bits", ""),
        Column::number("largest error", ""),
        Column::number("instructions", ""),
    ]);
    for row in rows {
        let result = match (row.failures.is_empty(), row.cases) {
            (false, _) => "FAILED",
            (true, 0) => "not run",
            (true, _) => "passed",
        };
        let number = |n: Option<u64>| n.map_or_else(Cell::none, |n| Cell::new(n.to_string()));
        matrix.row([
            row.provider.as_str().into(),
            row.group.as_str().into(),
            result.into(),
            row.cases.to_string().into(),
            row.values.to_string().into(),
            number(row.differing_bits),
            row.max_error
                .map_or_else(Cell::none, |error| Cell::new(format!("{error:.1e}"))),
            number(row.instructions),
        ]);
    }
    let text = format!(
        "Vectors: {}. A differing bit is a failure; the largest error is max|a − b| / max|b| of the worst tensor, for \
         values computed in f32 beside golden ones in f64.",
        vectors.display()
    );
    report.section("Matrix", text, matrix.to_html());
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
