//! What `acr` is told, read as it reads it.

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::{Action, Command};
use crate::annotate::{Annotate, AnnotateOptions};
use crate::error::OptionsError;
use crate::purge::{Purge, PurgeOptions};

const ANNOTATE: &str = "annotate";
/// How wide help is.
const WIDTH: usize = 100;

/// The registry that commands are for, by all of its names.
#[derive(Debug, Clone, Copy)]
pub struct OwnRegistry<'a> {
    pub name: &'a str,
    /// Login server and other hosts.
    pub hosts: &'a [String],
    /// What `--registry` is if it is not given, as `ACR_DEFAULT_REGISTRY` has it; `None`: this one.
    pub default: Option<&'a str>,
}

impl OwnRegistry<'_> {
    /// Whether a text names it: itself, a host, or the first label of one, which is what
    /// `{{.Run.RegistryName}}` is.
    fn is_named(&self, text: &str) -> bool {
        let label = |host: &String| {
            let label = host.split('.').next().unwrap_or_default();
            text.eq_ignore_ascii_case(host) || text.eq_ignore_ascii_case(label)
        };
        text.eq_ignore_ascii_case(self.name) || self.hosts.iter().any(label)
    }
}

/// Commands that are there only for those who ask for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Previews {
    /// As `ACR_EXPERIMENTAL_ANNOTATE=true` has it.
    pub annotate: bool,
}

/// Why a command line is refused. `Display` is the sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("`{given}` is not the registry of this run, which is `{own}`")]
    OtherRegistry { given: String, own: String },
    #[error("`acr {0}` is not built in")]
    NotBuiltIn(&'static str),
    #[error("`acr annotate` is a preview, which this step does not ask for")]
    NotAsked,
}

impl CommandLineError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage(_) => Some("`acr help` tells the commands".to_owned()),
            Self::Options(error) => error.hint(),
            Self::OtherRegistry { .. } => Some(
                "leave `--registry` away, or run `acr` on a server of that registry".to_owned(),
            ),
            Self::NotBuiltIn("cssc") => {
                Some("run an image that has it: `cmd: IMAGE cssc ...`".to_owned())
            }
            Self::NotAsked => {
                Some("give the step `env: [ACR_EXPERIMENTAL_ANNOTATE=true]`".to_owned())
            }
            Self::NotBuiltIn(_) => {
                Some("commands of a run need no login: they work on its registry".to_owned())
            }
        }
    }
}

/// Reads the words behind `acr`.
pub fn parse(
    words: &[String],
    own: &OwnRegistry<'_>,
    previews: Previews,
) -> Result<Command, CommandLineError> {
    let matches = match known(previews).try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return told(&error),
    };
    if !previews.annotate && matches.subcommand_name() == Some(ANNOTATE) {
        return Err(CommandLineError::NotAsked);
    }
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => return told(&error),
    };
    let Common { registry, username, password, config } = arguments.common;
    let action = match arguments.command {
        Words::Purge(purge) => Action::Purge(Box::new(Purge::new(&PurgeOptions {
            filters: purge.filters,
            ago: purge.ago,
            keep: purge.keep,
            untagged: purge.untagged,
            untagged_only: purge.untagged_only,
            dry_run: purge.dry_run,
            include_locked: purge.include_locked,
            concurrency: purge.concurrency,
            filter_timeout_seconds: purge.filter_timeout_seconds,
            repository_page_size: purge.repository_page_size,
        })?)),
        Words::Annotate(annotate) => Action::Annotate(Box::new(Annotate::new(&AnnotateOptions {
            filters: annotate.filters,
            artifact_type: annotate.artifact_type,
            annotations: annotate.annotations,
            untagged: annotate.untagged,
            dry_run: annotate.dry_run,
            include_locked: annotate.include_locked,
            filter_timeout_seconds: annotate.filter_timeout_seconds,
        })?)),
        Words::Tag(TagWords::List(RepositoryArg { repository })) => Action::TagList(repository),
        Words::Tag(TagWords::Delete(DeleteArgs { repository, names })) => {
            Action::TagDelete { repository: repository.repository, tags: names }
        }
        Words::Manifest(ManifestWords::List(RepositoryArg { repository })) => {
            Action::ManifestList(repository)
        }
        Words::Manifest(ManifestWords::Delete(DeleteArgs { repository, names })) => {
            Action::ManifestDelete { repository: repository.repository, digests: names }
        }
        Words::Version => Action::Text(format!("Version: {}, built in", env!("CARGO_PKG_VERSION"))),
        Words::Login(_) => return Err(CommandLineError::NotBuiltIn("login")),
        Words::Logout(_) => return Err(CommandLineError::NotBuiltIn("logout")),
        Words::Cssc(_) => return Err(CommandLineError::NotBuiltIn("cssc")),
    };
    let wanted = registry.as_deref().or(own.default).filter(|given| !given.is_empty());
    if let Some(given) = wanted.filter(|given| !own.is_named(given)) {
        return Err(CommandLineError::OtherRegistry {
            given: given.chars().take(255).collect(),
            own: own.hosts.first().map_or(own.name, String::as_str).to_owned(),
        });
    }
    let mut notices = Vec::new();
    if username.is_some() || password.is_some() || !config.is_empty() {
        notices.push("no credentials are needed, and those that are given are not used".to_owned());
    }
    Ok(Command { action, notices })
}

/// The commands there are. A preview that is not asked for has no options and no help.
fn known(previews: Previews) -> clap::Command {
    let command = Arguments::command();
    if previews.annotate {
        return command;
    }
    command.mut_subcommand(ANNOTATE, |_| {
        Rest::augment_args(clap::Command::new(ANNOTATE).hide(true)).disable_help_flag(true)
    })
}

/// Help is no error.
fn told(error: &clap::Error) -> Result<Command, CommandLineError> {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Ok(Command { action: Action::Text(text), notices: Vec::new() })
        }
        _ => {
            let sentence = text.split("\n\n").next().unwrap_or_default();
            let sentence = sentence.strip_prefix("error: ").unwrap_or(sentence);
            let words: Vec<_> = sentence.split_whitespace().collect();
            Err(CommandLineError::Usage(words.join(" ")))
        }
    }
}

/// Work with the content of the registry
#[derive(Debug, Parser)]
#[command(name = "acr", no_binary_name = true, term_width = WIDTH, color = clap::ColorChoice::Never)]
#[command(subcommand_required = true, arg_required_else_help = true, next_line_help = false)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Words,
}

#[derive(Debug, Args)]
struct Common {
    /// Registry, which is the one of the run
    #[arg(long, short, global = true, value_name = "NAME")]
    registry: Option<String>,
    /// Not needed
    #[arg(long, short, global = true, value_name = "NAME")]
    username: Option<String>,
    /// Not needed
    #[arg(long, short, global = true)]
    password: Option<String>,
    /// Not needed
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Words {
    /// Delete tags by name and age, and manifests without tags
    Purge(PurgeArgs),
    /// Tags of a repository
    #[command(subcommand)]
    Tag(TagWords),
    /// Manifests of a repository
    #[command(subcommand)]
    Manifest(ManifestWords),
    /// Attach annotations to images
    Annotate(AnnotateArgs),
    /// Print the version
    Version,
    #[command(hide = true)]
    Login(Rest),
    #[command(hide = true)]
    Logout(Rest),
    #[command(hide = true)]
    Cssc(Rest),
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum TagWords {
    /// List the tags of a repository
    List(RepositoryArg),
    /// Delete tags; their manifests stay
    Delete(DeleteArgs),
}

#[derive(Debug, Subcommand)]
enum ManifestWords {
    /// List the manifests of a repository
    List(RepositoryArg),
    /// Delete manifests with their tags
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
struct RepositoryArg {
    /// Repository
    #[arg(long, value_name = "NAME")]
    repository: String,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    names: Vec<String>,
}

/// A switch that may also be `--switch=false`.
macro_rules! switches {
    ($(#[$meta:meta])* struct $name:ident { $($(#[doc = $doc:expr])* $switch:ident,)* ; $($rest:tt)* }) => {
        $(#[$meta])*
        struct $name {
            $($(#[doc = $doc])*
            #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL",
                default_value = "false", default_missing_value = "true", hide_default_value = true,
                value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
            $switch: bool,)*
            $($rest)*
        }
    };
}

switches! {
    #[derive(Debug, Args)]
    struct PurgeArgs {
        /// Delete manifests that nobody needs too
        untagged,
        /// Delete manifests that nobody needs, and no tags
        untagged_only,
        /// Tell what would be deleted, and delete nothing
        dry_run,
        /// Delete tags and manifests too that are locked
        include_locked,
        /// Changes nothing
        verbose,
        ;
        /// Repositories and tags, both as regular expressions; repeatable
        #[arg(long = "filter", short = 'f', value_name = "REPOSITORY:TAG")]
        filters: Vec<String>,
        /// Only what is older, such as `30d` or `1d12h`
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
        ago: Option<String>,
        /// Keep the newest of what would be deleted, this many in each repository
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        keep: u64,
        /// Deletions at once, at most 32
        #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
        concurrency: Option<i64>,
        /// How long one match of a filter may take, roughly
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
        filter_timeout_seconds: Option<i64>,
        /// Repositories that are listed at once
        #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
        repository_page_size: Option<i64>,
    }
}

switches! {
    #[derive(Debug, Args)]
    struct AnnotateArgs {
        /// Annotate manifests without tags too
        untagged,
        /// Tell what would be annotated, and annotate nothing
        dry_run,
        /// Annotate images of locked tags too
        include_locked,
        ;
        /// Repositories and tags, both as regular expressions; repeatable
        #[arg(long = "filter", short = 'f', value_name = "REPOSITORY:TAG")]
        filters: Vec<String>,
        /// Type of what is attached
        #[arg(long, value_name = "MEDIA-TYPE")]
        artifact_type: Option<String>,
        /// What it says; repeatable
        #[arg(long, short, value_name = "KEY=VALUE[,KEY=VALUE]")]
        annotations: Vec<String>,
        /// Changes nothing
        #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
        concurrency: Option<i64>,
        /// How long one match of a filter may take, roughly
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
        filter_timeout_seconds: Option<i64>,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str, default: Option<&str>) -> Result<Command, CommandLineError> {
        read_with(line, default, Previews { annotate: true })
    }

    fn read_with(
        line: &str,
        default: Option<&str>,
        previews: Previews,
    ) -> Result<Command, CommandLineError> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let hosts = ["contoso.example.com".to_owned(), "localhost:5000".to_owned()];
        parse(&words, &OwnRegistry { name: "local", hosts: &hosts, default }, previews)
    }

    #[track_caller]
    fn check(lines: &[&str], expected: Expect) {
        let line = |line: &&str| match read(line, None) {
            Ok(Command { action, notices }) => {
                let action = format!("{action:?}");
                let name = action.split([' ', '(']).next().unwrap_or_default();
                format!("{line}\n  {name} {notices:?}\n")
            }
            Err(error) => {
                let hint = error.hint().map(|hint| format!("\n  hint: {hint}"));
                format!("{line}\n  error: {error}{}\n", hint.unwrap_or_default())
            }
        };
        expected.assert_eq(&lines.iter().map(line).collect::<String>());
    }

    #[test]
    fn command_lines_are_taken_as_acr_takes_them() {
        check(
            &[
                "purge -f a:b --ago 1d",
                "purge --filter=a:b --filter c:d --ago=1d --keep=3 --untagged --dry-run=true",
                "purge --untagged-only --registry local",
                "-r contoso purge --untagged-only",
                "tag list -r contoso.example.com --repository a",
                "tag delete --repository a v1 v2",
                "manifest list --repository a --username u --password p",
                "manifest delete --repository a sha256:ab",
                "annotate -f a:b --artifact-type a/b -a k=v",
                "version",
            ],
            expect![[r#"
                purge -f a:b --ago 1d
                  Purge []
                purge --filter=a:b --filter c:d --ago=1d --keep=3 --untagged --dry-run=true
                  Purge []
                purge --untagged-only --registry local
                  Purge []
                -r contoso purge --untagged-only
                  Purge []
                tag list -r contoso.example.com --repository a
                  TagList []
                tag delete --repository a v1 v2
                  TagDelete []
                manifest list --repository a --username u --password p
                  ManifestList ["no credentials are needed, and those that are given are not used"]
                manifest delete --repository a sha256:ab
                  ManifestDelete []
                annotate -f a:b --artifact-type a/b -a k=v
                  Annotate []
                version
                  Text []
            "#]],
        );
    }

    #[test]
    fn what_is_refused_is_told_with_what_to_do() {
        check(
            &[
                "purge",
                "purge --filter a:b",
                "purge --filter a:b --ago 1d --keep -1",
                "purge --filter a:b --ago 1d --keep",
                "purge --filter a:b --ago 1d --untagged=maybe",
                "purge --filter a:b --ago 1d extra",
                "purge --fliter a:b",
                "tag list",
                "tag",
                "prune",
                "purge --untagged-only -r other.example.com",
                "login example.com -u me --password-stdin",
                "logout example.com",
                "cssc patch --dry-run",
            ],
            expect![[r#"
                purge
                  error: there is no `--filter`
                  hint: `--filter 'REPOSITORY:TAG'`, both as regular expressions
                purge --filter a:b
                  error: there is no `--ago`
                  hint: `--ago 30d` is what is older than 30 days, `--ago 0d` all
                purge --filter a:b --ago 1d --keep -1
                  error: unexpected argument '-1' found
                  hint: `acr help` tells the commands
                purge --filter a:b --ago 1d --keep
                  error: a value is required for '--keep <COUNT>' but none was supplied
                  hint: `acr help` tells the commands
                purge --filter a:b --ago 1d --untagged=maybe
                  error: invalid value 'maybe' for '--untagged[=<BOOL>]': value was not a boolean
                  hint: `acr help` tells the commands
                purge --filter a:b --ago 1d extra
                  error: unexpected argument 'extra' found
                  hint: `acr help` tells the commands
                purge --fliter a:b
                  error: unexpected argument '--fliter' found
                  hint: `acr help` tells the commands
                tag list
                  error: the following required arguments were not provided: --repository <NAME>
                  hint: `acr help` tells the commands
                tag
                  Text []
                prune
                  error: unrecognized subcommand 'prune'
                  hint: `acr help` tells the commands
                purge --untagged-only -r other.example.com
                  error: `other.example.com` is not the registry of this run, which is `contoso.example.com`
                  hint: leave `--registry` away, or run `acr` on a server of that registry
                login example.com -u me --password-stdin
                  error: `acr login` is not built in
                  hint: commands of a run need no login: they work on its registry
                logout example.com
                  error: `acr logout` is not built in
                  hint: commands of a run need no login: they work on its registry
                cssc patch --dry-run
                  error: `acr cssc` is not built in
                  hint: run an image that has it: `cmd: IMAGE cssc ...`
            "#]],
        );
    }

    #[test]
    fn the_environment_names_another_registry() {
        assert!(read("version", Some("LOCALHOST:5000")).is_ok());
        assert!(read("version", Some("")).is_ok());
        let error = read("version", Some("elsewhere.example.com")).unwrap_err();
        assert!(matches!(error, CommandLineError::OtherRegistry { .. }));
        assert!(read("-r local version", Some("elsewhere.example.com")).is_ok());
    }

    #[test]
    fn annotate_is_there_for_those_who_ask_for_it() {
        for line in [
            "annotate -f a:b --artifact-type a/b -a k=v",
            "annotate --unknown",
            "annotate --help",
            "-r local annotate",
        ] {
            let error = read_with(line, None, Previews::default()).unwrap_err();
            assert_eq!(error, CommandLineError::NotAsked, "{line}");
        }
        for (previews, is_told) in
            [(Previews::default(), false), (Previews { annotate: true }, true)]
        {
            let Action::Text(help) = read_with("help", None, previews).unwrap().action else {
                panic!("help is a text");
            };
            assert_eq!(help.contains("annotate"), is_told, "{help}");
        }
    }

    #[test]
    fn help_is_a_text_and_no_error() {
        let text = |line: &str| match read(line, None).unwrap().action {
            Action::Text(text) => text,
            other => panic!("{other:?}"),
        };
        for line in ["", "help", "--help", "-h"] {
            assert!(text(line).contains("Usage: acr"), "{line}: {}", text(line));
        }
        let purge = text("purge --help");
        for option in ["--untagged-only", "--filter <REPOSITORY:TAG>", "--ago <DURATION>"] {
            assert!(purge.contains(option), "{purge}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_taken_or_refused(words in proptest::collection::vec("\\PC{0,12}", 0..6)) {
            let own = OwnRegistry { name: "local", hosts: &[], default: None };
            let _either = parse(&words, &own, Previews { annotate: words.len() % 2 == 0 });
        }
    }
}
