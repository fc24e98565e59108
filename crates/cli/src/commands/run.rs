//! `refit run`: the steps of a task file, once.

use std::path::{Path, PathBuf};

use api::{EncodedTaskRunRequest, FileTaskRunRequest, Run, RunRequest, TaskRunOptions};
use base64::Engine as _;

use super::Session;
use super::quick_task::{
    AuthArgs, EgressArgs, LogArgs, PoolArgs, ProgressArgs, check_timeout, own_platform,
    parse_platform, report, see_to_end, upload,
};
use super::task_input::{ValueArgs, is_stdin, read_task_file, read_values_file};
use crate::connection::Connection;
use crate::context::{Content, Source, Workspace};
use crate::error::{Error, Result};
use crate::interrupt::Interrupts;
use crate::printer::Table;
use crate::progress::Display;
use crate::ssh::Agents;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that the steps work on; or address of a git repository or an archive, which the
    /// server fetches; or /dev/null for none [default: . for a task file, none for --cmd]
    #[arg(value_name = "CONTEXT")]
    context: Option<String>,

    /// Task file, from the root of the context; - reads it from standard input
    /// [default: acb.yaml]
    #[arg(long, short, value_name = "FILE", conflicts_with = "cmd")]
    file: Option<PathBuf>,

    /// Image and the arguments of its command, as a task of one step
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,

    #[command(flatten)]
    values: ValueArgs,

    /// File with values: in the context if the task file is, else here
    #[arg(long = "values", value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Platform to run on, OS[/ARCHITECTURE[/VARIANT]] [default: the machine's own]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// Seconds until the run is ended, 300 to 28800
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,

    /// Print the run once it is queued, and leave
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    progress: ProgressArgs,

    #[command(flatten)]
    pool: PoolArgs,

    #[command(flatten)]
    egress: EgressArgs,

    #[command(flatten)]
    auth: AuthArgs,

    #[command(flatten)]
    log: LogArgs,
}

/// Where the task is, and its values file.
enum Task {
    /// In the context: their paths there.
    InContext { file: String, values_file: Option<String> },
    /// Sent with the request: their texts.
    Sent { text: String, values: Option<String> },
}

pub(super) async fn run(
    session: &Session<'_>,
    args: Args,
    interrupts: &mut Interrupts,
) -> Result<()> {
    let mut options = options(&args)?;
    let connection = session.connection()?;
    let workspace = Workspace::find(args.context())?;
    let task = tokio::select! {
        found = Task::find(&args, &workspace) => found?,
        () = interrupts.next() => return Err(Error::interrupted()),
    };
    let mut display = Display::new(args.progress.mode(), session.printer, session.environment);
    options.source_location = tokio::select! {
        location = locate(connection, session, workspace, &task, &mut display) => location?,
        // Nothing is queued yet; the server sweeps what it received.
        () = interrupts.next() => return Err(Error::interrupted()),
    };
    let run: Run =
        connection.post(connection.route(&["scheduleRun"]), &task.request(options)).await?;
    let id = run.properties.run_id.clone();
    if args.no_wait {
        return session.printer.result(&run, &Table::lines([id]));
    }
    display.note(&format!("Queued a run with ID: {id}"));
    let agents = Agents::open(&[], session.environment).await?;
    let (run, ended) = see_to_end(connection, run, &agents, display, interrupts).await?;
    report(session, &run, ended, false)
}

impl Args {
    fn context(&self) -> &str {
        let usual = if self.cmd.is_some() { "/dev/null" } else { "." };
        self.context.as_deref().unwrap_or(usual)
    }
}

/// What the flags ask for; the source is not known yet.
fn options(args: &Args) -> Result<TaskRunOptions> {
    check_timeout(args.timeout)?;
    Ok(TaskRunOptions {
        log_template: args.log.template.clone(),
        values: args.values.values()?,
        timeout: args.timeout,
        agent_pool_name: args.pool.pool.clone(),
        agent_configuration: args.egress.agent_configuration(),
        credentials: args.auth.credentials(),
        platform: args.platform.as_deref().map_or(Ok(own_platform()), parse_platform)?,
        ..TaskRunOptions::default()
    })
}

impl Task {
    async fn find(args: &Args, workspace: &Workspace) -> Result<Self> {
        let text = match (&args.cmd, &args.file) {
            (Some(command), _) => command_task(command, args.timeout)?,
            (None, Some(file)) if is_stdin(file) => read_task_file(file).await?,
            (None, file) => {
                let usual = Path::new(task::DEFAULT_FILE);
                let named = file.as_deref().unwrap_or(usual);
                match (workspace.path_of("--file", named)?, file) {
                    (Some(path), _) => return Self::in_context(path, args, workspace),
                    (None, Some(file)) => read_task_file(file).await?,
                    (None, None) => {
                        return Err(Error::usage("a run without context needs a task")
                            .with_hint("give one with `--file` or `--cmd`"));
                    }
                }
            }
        };
        if text.is_empty() {
            return Err(Error::usage("the task file is empty"));
        }
        let values = args.values_file.as_deref().map(read_values_file).transpose()?;
        Ok(Self::Sent { text, values })
    }

    fn in_context(file: String, args: &Args, workspace: &Workspace) -> Result<Self> {
        let values_file = match &args.values_file {
            Some(values) => workspace.path_of("--values", values)?,
            None => None,
        };
        Ok(Self::InContext { file, values_file })
    }

    /// The files of the context that the server needs to know what to do.
    fn files(&self) -> Vec<&str> {
        match self {
            Self::InContext { file, values_file } => {
                std::iter::once(file).chain(values_file).map(String::as_str).collect()
            }
            Self::Sent { .. } => Vec::new(),
        }
    }

    fn request(self, options: TaskRunOptions) -> RunRequest {
        let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        match self {
            Self::InContext { file, values_file } => {
                RunRequest::FileTaskRunRequest(FileTaskRunRequest {
                    task_file_path: file,
                    values_file_path: values_file,
                    options,
                })
            }
            Self::Sent { text, values } => {
                RunRequest::EncodedTaskRunRequest(EncodedTaskRunRequest {
                    encoded_task_content: base64(text),
                    encoded_values_content: values.map(base64),
                    options,
                })
            }
        }
    }
}

/// Sends the context if it is here, and tells where the server finds it.
async fn locate(
    connection: &Connection,
    session: &Session<'_>,
    workspace: Workspace,
    task: &Task,
    display: &mut Display,
) -> Result<Option<String>> {
    match workspace {
        Workspace::Empty => Ok(None),
        Workspace::Remote(address) => Ok(Some(address)),
        Workspace::Folder(folder) => {
            let content = Content::Folder(Source::of_workspace(&folder, &task.files())?);
            upload(connection, session, "the context", content, display).await.map(Some)
        }
    }
}

/// The task that `--cmd` stands for (runs.md section 2.1).
pub(super) fn command_task(command: &str, timeout: Option<u32>) -> Result<String> {
    if command.trim().is_empty() {
        return Err(
            Error::usage("`--cmd` has no command").with_hint("such as `--cmd \"bash echo hello\"`")
        );
    }
    let timeout = timeout.map(|seconds| format!("    timeout: {seconds}\n")).unwrap_or_default();
    Ok(format!(
        "version: v1.1.0\nsteps:\n  - cmd: {}\n    disableWorkingDirectoryOverride: true\n{timeout}",
        quoted(command)
    ))
}

/// A text in quotes, on one line, so that no line of it can be taken for a comment. Double quotes
/// are left alone where that is possible: a template in the text has its own.
fn quoted(text: &str) -> String {
    if !text.contains(needs_escape) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    // JSON is YAML, but for some characters that it leaves as they are.
    let json = serde_json::Value::from(text).to_string();
    json.chars().fold(String::new(), |mut out, c| {
        match needs_escape(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
        out
    })
}

/// Whether YAML takes a character for the end of a line, or not at all.
fn needs_escape(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;
    use proptest::prelude::*;
    use task::{Action, AliasImages, RunDefaults, Secrets, Step, TaskFile, Variables};

    use super::*;

    /// The step that the server will find in a text.
    fn step(text: &str, values: &[&str]) -> Step {
        let name = |name: &str| name.to_owned();
        let images = AliasImages {
            acr: name("acr:1"),
            az: name("az:1"),
            bash: name("bash:1"),
            curl: name("curl:1"),
            cssc: name("cssc:1"),
        };
        let mut variables = Variables::default();
        for value in values {
            variables.values.set(value).unwrap();
        }
        let file = TaskFile::read(text, &variables).unwrap();
        let file = file.expand(&BTreeMap::new(), &images, &variables).unwrap();
        let file = file.render(&variables, &Secrets::new()).unwrap();
        let (mut task, warnings) = file.task(&RunDefaults::default()).unwrap();
        assert!(warnings.is_empty() && task.steps.len() == 1, "{warnings:?}");
        task.steps.remove(0)
    }

    fn command(text: &str, values: &[&str]) -> String {
        match step(&command_task(text, None).unwrap(), values).action {
            Action::Cmd(cmd) => cmd.command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_becomes_a_task_of_one_step() {
        expect![[r#"
            version: v1.1.0
            steps:
              - cmd: 'bash -c ''echo "$HOME"'''
                disableWorkingDirectoryOverride: true
        "#]]
        .assert_eq(&command_task("bash -c 'echo \"$HOME\"'", None).unwrap());
        let limited = command_task("app", Some(700)).unwrap();
        assert!(limited.ends_with("    timeout: 700\n"), "{limited}");
        assert_eq!(step(&limited, &[]).timeout.as_secs(), 700);
        let l12 = command_task("bash sleep 700", None).unwrap();
        assert_eq!(step(&l12, &[]).timeout.as_secs(), 600);
        for empty in ["", " \n"] {
            assert!(command_task(empty, None).is_err());
        }
    }

    #[test]
    fn a_command_is_what_the_step_gets() {
        let same =
            ["app", "app: x # y", "app 'a' \"b\" \\n", "app {a: [b]} &c *d !e %f", "app -- -"];
        for text in
            same.into_iter().chain(["app a\nb", "app <<E\n# heading\n  x\tE\n", "app é\u{7f}"])
        {
            assert_eq!(command(text, &[]), text, "{text}");
        }
        assert_eq!(command("bash echo $$ID", &[]), "bash:1 echo $ID");
        let template = "app {{index .Values \"a b\"}} {{.Values.c | quote}}";
        assert_eq!(command(template, &["a b=it is", "c=d"]), "app it is \"d\"");
    }

    proptest! {
        #[test]
        fn any_command_survives_as_yaml(text in "app [^${}]*") {
            prop_assume!(!text.contains("<no value>") && !text.contains('\0'));
            prop_assert_eq!(command(&text, &[]), text);
        }
    }
}
