//! Columns for people, and the same without a header for `cut`.

use crate::sanitize::{Colors, sanitize};

/// Rows under a header.
#[derive(Debug, Default)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Lines without a header.
    pub(crate) fn lines(lines: impl IntoIterator<Item = String>) -> Self {
        Self { header: Vec::new(), rows: lines.into_iter().map(|line| vec![line]).collect() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn render(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let header: Vec<String> = self.header.iter().map(|name| (*name).to_owned()).collect();
        let dashes: Vec<String> = self.header.iter().map(|name| "-".repeat(name.len())).collect();
        let head = if header.is_empty() { vec![] } else { vec![header, dashes] };
        let rows: Vec<Vec<String>> = head.into_iter().chain(self.cells()).collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(|column| width(&rows, column)).collect();
        rows.iter().map(|row| aligned(row, &widths)).collect()
    }

    pub(crate) fn render_tsv(&self) -> String {
        self.cells().map(|row| format!("{}\n", row.join("\t"))).collect()
    }

    /// A cell stays on its line, and names of others do not control the terminal.
    fn cells(&self) -> impl Iterator<Item = Vec<String>> {
        let clean = |cell: &String| sanitize(cell, Colors::Never).replace('\t', " ");
        self.rows.iter().map(move |row| row.iter().map(clean).collect())
    }
}

fn width(rows: &[Vec<String>], column: usize) -> usize {
    rows.iter()
        .filter_map(|row| row.get(column))
        .map(|cell| cell.chars().count())
        .max()
        .unwrap_or(0)
}

fn aligned(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    let line = cells.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_stay_on_their_line() {
        let mut table = Table::new(["TAG", "DIGEST"]);
        table.row(["latest".into(), "sha256:ab".into()]);
        table.row(["v1\n\x1b[2J".into(), "sha256:cd".into()]);
        expect![[r#"
            TAG     DIGEST
            ---     ------
            latest  sha256:ab
            v1      sha256:cd
        "#]]
        .assert_eq(&table.render());
        expect![[r#"
            latest	sha256:ab
            v1	sha256:cd
        "#]]
        .assert_eq(&table.render_tsv());
    }

    #[test]
    fn a_table_without_rows_prints_nothing() {
        assert_eq!(Table::new(["TAG"]).render(), "");
    }
}
