//! What a command writes: results on stdout in the form asked for, all else on stderr.

mod table;
mod yaml;

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write as _};
use std::str::FromStr;

use clap::builder::{PossibleValue, TypedValueParser};
use serde::Serialize;

pub(crate) use table::Table;

use crate::Error;
use crate::error::{Result, could_not};
use crate::export::Export;
use crate::sanitize::{Colors, sanitize, sanitize_text};

/// The form of results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputFormat {
    #[default]
    Table,
    Json,
    Yaml,
    /// Columns of the table without its header, parted by tabs.
    Tsv,
    None,
}

impl FromStr for OutputFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            "tsv" => Ok(Self::Tsv),
            "none" => Ok(Self::None),
            _ => Err("expected `json`, `yaml`, `tsv`, `table` or `none`".into()),
        }
    }
}

/// What `--output` means: the form of results, or as in `docker build` where a build writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Format(OutputFormat),
    Export(Export),
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Export::is_meant(text) {
            true => Export::parse(text).map(Self::Export),
            false => text.parse().map(Self::Format),
        }
    }
}

/// Reads `--output`. It also tells completions which formats there are.
#[derive(Clone)]
pub(crate) struct OutputParser;

impl TypedValueParser for OutputParser {
    type Value = Output;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Output, clap::Error> {
        TypedValueParser::parse_ref(&Output::from_str, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = ["json", "yaml", "tsv", "table", "none"];
        Some(Box::new(words.into_iter().map(PossibleValue::new)))
    }
}

/// A command's two ways out.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    format: OutputFormat,
    colors: Colors,
}

impl Printer {
    /// `colors`: what the user wants; they are used on a terminal only.
    pub fn new(format: OutputFormat, colors: bool) -> Self {
        let colors = colors && io::stderr().is_terminal();
        Self { format, colors: Colors::from(colors) }
    }

    pub fn format(&self) -> OutputFormat {
        self.format
    }

    pub(crate) fn colors(&self) -> Colors {
        self.colors
    }

    /// A command's result: `value` for programs, `table` for people.
    pub(crate) fn result(&self, value: &impl Serialize, table: &Table) -> Result<()> {
        let text = match self.format {
            OutputFormat::Table => table.render(),
            OutputFormat::Tsv => table.render_tsv(),
            OutputFormat::None => String::new(),
            OutputFormat::Json | OutputFormat::Yaml => {
                let value =
                    serde_json::to_value(value).map_err(could_not("write the result as JSON"))?;
                match self.format {
                    OutputFormat::Yaml => yaml::render(&value),
                    _ => format!("{value:#}\n"),
                }
            }
        };
        self.out(text.as_bytes())
    }

    /// As JSON or YAML `value`, else a table of `rows`.
    pub fn rows<const N: usize>(
        &self,
        value: &impl Serialize,
        header: [&'static str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<()> {
        let mut table = Table::new(header);
        for row in rows {
            table.row(row);
        }
        self.result(value, &table)
    }

    /// As JSON or YAML `value`, else a text that is its own form, such as a settings file.
    pub fn text(&self, value: &impl Serialize, text: &str) -> Result<()> {
        match self.format {
            OutputFormat::Table | OutputFormat::Tsv => self.out(text.as_bytes()),
            _ => self.result(value, &Table::default()),
        }
    }

    /// Bytes on stdout. A reader that has left is no error.
    pub(crate) fn out(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(could_not("write to standard output")(error))
            }
            _ => Ok(()),
        }
    }

    /// A line for the user on stderr.
    pub fn note(&self, text: &str) {
        self.err(&format!("{}\n", sanitize_text(text)));
    }

    /// A line that the next one takes the place of, where there is a terminal.
    pub(crate) fn passing(&self, text: &str) {
        if io::stderr().is_terminal() {
            self.err(&format!("\r\x1b[K{}", sanitize_text(text)));
        }
    }

    /// Takes a passing line away.
    pub(crate) fn passed(&self) {
        self.passing("");
    }

    pub fn warning(&self, text: &str) {
        let label = self.painted("33", "warning");
        self.err(&format!("{label}: {}\n", sanitize_text(text)));
    }

    /// `error: ...`, and `hint: ...` if there is one.
    pub fn error(&self, error: &Error) {
        let label = self.painted("31", "error");
        let mut text = format!("{label}: {}\n", sanitize_text(&error.to_string()).trim_end());
        if let Some(hint) = error.hint() {
            let label = self.painted("36", "hint");
            text.push_str(&format!("{label}: {}\n", sanitize(hint, Colors::Never)));
        }
        self.err(&text);
    }

    /// Text that is ready for the terminal. There is nobody to tell if stderr is gone.
    pub(crate) fn err(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }

    fn painted(&self, color: &str, text: &str) -> String {
        match self.colors {
            Colors::Keep => format!("\x1b[1;{color}m{text}\x1b[0m"),
            Colors::Never => text.to_owned(),
        }
    }
}
