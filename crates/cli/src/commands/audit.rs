//! `refit audit`: who did what, and whether the record of it is whole.

use api::AuditRecord;
use oci::Digest;
use reqwest::Method;

use super::Session;
use crate::error::{Error, Result};
use crate::printer::Table;

/// Records asked for at once.
const PAGE: usize = 10_000;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the last records
    List(ListArgs),
    /// Print records as lines of JSON, oldest first, to be kept elsewhere
    Export(ExportArgs),
    /// Check that no record of an export was changed or taken out; needs no server
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    top: u32,
}

#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Only those after the record with this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: i64,
}

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// What `refit audit export` printed
    #[arg(value_name = "FILE")]
    file: std::path::PathBuf,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::List(args) => list(session, &args).await,
        Command::Export(args) => export(session, &args).await,
        Command::Verify(args) => verify(session, &args).await,
    }
}

async fn list(session: &Session<'_>, args: &ListArgs) -> Result<()> {
    let text = page(session, &[("n", args.top.to_string())]).await?;
    let records: Vec<AuditRecord> = text.lines().map(read).collect::<Result<_>>()?;
    let mut table = Table::new(["TIME", "REGISTRY", "PRINCIPAL", "ACTION", "TARGET", "OUTCOME"]);
    for record in &records {
        table.row([
            record.time.clone(),
            record.registry.clone().unwrap_or_default(),
            record.principal.clone(),
            record.action.clone(),
            record.target.clone(),
            record.outcome.clone(),
        ]);
    }
    session.printer.result(&records, &table)
}

async fn export(session: &Session<'_>, args: &ExportArgs) -> Result<()> {
    let mut after = args.after;
    loop {
        let text = page(session, &[("after", after.to_string()), ("n", PAGE.to_string())]).await?;
        let Some(last) = text.lines().next_back() else { return Ok(()) };
        after = read(last)?.number;
        session.printer.out(text.as_bytes())?;
    }
}

async fn page(session: &Session<'_>, query: &[(&str, String)]) -> Result<String> {
    let connection = session.connection()?;
    let mut url = connection.server_route(&["audit"]);
    url.query_pairs_mut().extend_pairs(query);
    let response = connection.stream(connection.request(Method::GET, url)).await?;
    response.text().await.map_err(|error| Error::failed(error.to_string()))
}

fn read(line: &str) -> Result<AuditRecord> {
    serde_json::from_str(line).map_err(|error| {
        Error::failed(format!("a record of the audit log cannot be read: {error}"))
    })
}

async fn verify(session: &Session<'_>, args: &VerifyArgs) -> Result<()> {
    let file = &args.file;
    let text = tokio::fs::read_to_string(file)
        .await
        .map_err(|error| Error::usage(format!("cannot read `{}`: {error}", file.display())))?;
    let mut chain = Chain::default();
    for (at, line) in text.lines().enumerate() {
        chain.next(line).map_err(|why| {
            let message = format!("line {} of `{}`: {why}", at + 1, file.display());
            Error::failed(message).with_hint("the file, or the log that it is from, was changed")
        })?;
    }
    let Some((first, last)) = chain.first.zip(chain.last) else {
        return Err(Error::usage(format!("`{}` has no records", file.display())));
    };
    let value = serde_json::json!({ "first": first, "last": last.0, "digest": last.1 });
    let text = format!("records {first} to {} are whole; the last one is {}", last.0, last.1);
    session.printer.result(&value, &Table::lines([text]))
}

/// Lines that have to follow one another; the first one may follow some that are not there.
#[derive(Default)]
struct Chain {
    first: Option<i64>,
    last: Option<(i64, Digest)>,
}

impl Chain {
    fn next(&mut self, line: &str) -> Result<(), String> {
        let record = read(line).map_err(|error| error.to_string())?;
        let end = format!(",\"digest\":\"{}\"}}", record.digest);
        let written = line.strip_suffix(&end).map(|open| format!("{open}}}"));
        let written = written.ok_or("it does not end with its digest")?;
        let digest = Digest::of(written.as_bytes());
        if digest.to_string() != record.digest {
            return Err(format!("record {} is not the one that was written", record.number));
        }
        match &self.last {
            Some((last, _)) if Some(record.number) != last.checked_add(1) => {
                return Err(format!(
                    "between record {last} and {} some are missing",
                    record.number
                ));
            }
            Some((_, known)) if record.previous.as_deref() != Some(&known.to_string()) => {
                return Err(format!("record {} does not follow the one before it", record.number));
            }
            None if (record.number == 1) != record.previous.is_none() => {
                return Err(format!("record {} cannot be where it is", record.number));
            }
            _ => (),
        }
        self.first.get_or_insert(record.number);
        self.last = Some((record.number, digest));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: i64) -> Vec<String> {
        let mut previous: Option<Digest> = None;
        let mut lines = Vec::new();
        for number in 1..=count {
            let line = serde_json::json!({
                "number": number, "time": "2030-01-31T00:00:00Z", "registry": null,
                "principal": "ann", "action": "push", "target": "x", "outcome": "201",
                "previous": previous.as_ref().map(ToString::to_string),
            });
            let line = line.to_string();
            let digest = Digest::of(line.as_bytes());
            lines.push(format!("{},\"digest\":\"{digest}\"}}", line.trim_end_matches('}')));
            previous = Some(digest);
        }
        lines
    }

    fn check(lines: &[String]) -> Result<(), String> {
        let mut chain = Chain::default();
        lines.iter().try_for_each(|line| chain.next(line))
    }

    #[test]
    fn what_was_changed_taken_out_or_moved_is_found() {
        let whole = lines(4);
        assert_eq!(check(&whole), Ok(()));
        // An export may begin anywhere.
        assert_eq!(check(&whole[2..]), Ok(()));
        let mut changed = whole.clone();
        changed[1] = changed[1].replace("ann", "bob");
        assert_eq!(check(&changed).unwrap_err(), "record 2 is not the one that was written");
        let mut moved = whole.clone();
        moved.swap(1, 2);
        assert_eq!(check(&moved).unwrap_err(), "between record 1 and 3 some are missing");
        let mut missing = whole.clone();
        missing.remove(1);
        assert_eq!(check(&missing).unwrap_err(), "between record 1 and 3 some are missing");
        let mut forged = whole.clone();
        let other = lines(2)[1].replace("ann", "eve");
        let written = other.split(",\"digest\"").next().unwrap().to_owned() + "}";
        let digest = Digest::of(written.as_bytes());
        forged[1] = format!("{},\"digest\":\"{digest}\"}}", written.trim_end_matches('}'));
        assert_eq!(check(&forged).unwrap_err(), "record 3 does not follow the one before it");
        assert!(check(&["{}".to_owned()]).is_err() && check(&["x".to_owned()]).is_err());
    }
}
