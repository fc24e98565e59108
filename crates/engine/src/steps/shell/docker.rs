//! What `docker` is told in the agent shell, read as it reads it.

use clap::error::ErrorKind;
use clap::{ArgAction, Args, Parser, Subcommand};

/// How wide help is.
const WIDTH: usize = 100;

/// Commands of docker on images, logins and containers of a run
#[derive(Debug, Parser)]
#[command(name = "docker", no_binary_name = true, term_width = WIDTH, color = clap::ColorChoice::Never)]
#[command(arg_required_else_help = true, disable_help_subcommand = true, args_override_self = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// A command that can be carried out.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(super) enum Command {
    /// Run a command of an image
    #[command(disable_help_flag = true)]
    Run(Box<RunArgs>),
    /// Give an image another name
    Tag(TagArgs),
    /// Push an image of the run
    Push(PushArgs),
    /// Fetch an image
    Pull(PullArgs),
    /// List the images of the run
    Images(ImagesArgs),
    /// Take names from images of the run
    Rmi(RmiArgs),
    /// Show what images are made of
    Inspect(InspectArgs),
    /// Images of the run
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manifests of images
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Keep a login in the home folder
    Login(LoginArgs),
    /// Forget a login
    Logout(LogoutArgs),
    /// List the containers of the run
    Ps(PsArgs),
    /// Show what detached steps have printed last
    Logs(LogsArgs),
    /// End detached steps
    Stop(StopArgs),
    /// End detached steps
    Kill(StopArgs),
    /// End detached steps
    Rm(StopArgs),
    /// Print the version
    Version(VersionArgs),
    #[command(external_subcommand)]
    Other(Vec<String>),
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(super) enum ImageCommand {
    /// List the images of the run
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Take names from images of the run
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Show what images are made of
    Inspect(InspectArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Push an image of the run
    Push(PushArgs),
    /// Fetch an image
    Pull(PullArgs),
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(super) enum ManifestCommand {
    /// Show a manifest
    Inspect(ManifestArgs),
}

#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(super) struct RunArgs {
    /// Changes nothing: containers are always removed
    #[arg(long)]
    pub(super) rm: bool,
    /// Variable, or the name of one of the shell's; repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(super) env: Vec<String>,
    /// Folder to start in
    #[arg(long, short, value_name = "FOLDER")]
    pub(super) workdir: Option<String>,
    /// User, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Program instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// A network of the task, or `none`
    #[arg(long, visible_alias = "net", value_name = "NAME")]
    pub(super) network: Option<String>,
    /// Name to be reached by
    #[arg(long, value_name = "NAME", value_parser = container_name)]
    pub(super) name: Option<String>,
    /// Name of its host
    #[arg(long, short = 'h', value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    refused: RefusedArgs,
    #[command(subcommand)]
    image: Option<ImageWords>,
}

/// What `docker run` of others has, and what to do instead.
#[derive(Debug, Default, PartialEq, Eq, Args)]
struct RefusedArgs {
    #[arg(long, short = 'v', hide = true, action = ArgAction::Append)]
    volume: Vec<String>,
    #[arg(long, hide = true, action = ArgAction::Append)]
    mount: Vec<String>,
    #[arg(long, short, hide = true)]
    interactive: bool,
    #[arg(long, short, hide = true)]
    tty: bool,
    #[arg(long, short, hide = true)]
    detach: bool,
    #[arg(long, hide = true)]
    privileged: bool,
    #[arg(long, short, hide = true, action = ArgAction::Append)]
    publish: Vec<String>,
}

/// The image and what follows it: nothing of that is an option here.
#[derive(Debug, PartialEq, Eq, Subcommand)]
enum ImageWords {
    #[command(external_subcommand)]
    Words(Vec<String>),
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct TagArgs {
    pub(super) source: String,
    pub(super) target: String,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct PushArgs {
    /// Print less
    #[arg(long, short)]
    pub(super) quiet: bool,
    pub(super) image: String,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct PullArgs {
    /// Print less
    #[arg(long, short)]
    pub(super) quiet: bool,
    pub(super) image: String,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct ImagesArgs {
    /// Digests only
    #[arg(long, short)]
    pub(super) quiet: bool,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct RmiArgs {
    /// No error for a name that no image has
    #[arg(long, short)]
    pub(super) force: bool,
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct InspectArgs {
    /// Go template for each
    #[arg(long, short, value_name = "TEMPLATE")]
    pub(super) format: Option<String>,
    /// Only `image` is possible
    #[arg(long = "type", value_name = "TYPE", value_parser = ["image"])]
    kind: Option<String>,
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct ManifestArgs {
    pub(super) image: String,
}

#[derive(PartialEq, Eq, Args)]
pub(super) struct LoginArgs {
    /// User
    #[arg(long, short, value_name = "NAME")]
    pub(super) username: Option<String>,
    /// Password; `--password-stdin` is safer
    #[arg(long, short)]
    pub(super) password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    pub(super) password_stdin: bool,
    /// Registry [default: Docker Hub]
    pub(super) server: Option<String>,
}

impl std::fmt::Debug for LoginArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "login of {:?} to {:?}", self.username, self.server)
    }
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct LogoutArgs {
    /// Registry [default: Docker Hub]
    pub(super) server: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct PsArgs {
    /// Names only
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// Those too that have ended and are kept
    #[arg(long, short)]
    pub(super) all: bool,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct LogsArgs {
    /// So many lines, from the end; without it all that is kept
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(super) tail: Option<usize>,
    /// Id of a step
    #[arg(value_name = "STEP")]
    pub(super) container: String,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct StopArgs {
    /// Changes nothing
    #[arg(long, short)]
    force: bool,
    /// Changes nothing: they are killed
    #[arg(long, short, value_name = "SECONDS")]
    time: Option<u64>,
    /// Changes nothing: they are killed
    #[arg(long, short, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Ids of steps
    #[arg(required = true, value_name = "STEP")]
    pub(super) containers: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct VersionArgs {
    #[arg(long, short, hide = true)]
    format: Option<String>,
}

/// Why a command line is refused, or what it asks to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Of help; no error.
    Help(String),
    /// A sentence, and perhaps a line with a hint.
    Refused(String),
}

impl RunArgs {
    /// The image, and what it gets as arguments.
    pub(super) fn image(&self) -> (&str, &[String]) {
        match &self.image {
            Some(ImageWords::Words(words)) => {
                words.split_first().map_or(("", &[]), |(image, arguments)| (image, arguments))
            }
            None => ("", &[]),
        }
    }

    fn refuse(&self) -> Option<&'static str> {
        let refused = &self.refused;
        let asked = [
            (
                !refused.volume.is_empty() || !refused.mount.is_empty(),
                "`docker run` mounts nothing but `/workspace` and `/acb/home`, which are always there\n\
                 hint: leave `-v` and `--mount` away; `-w /workspace` starts there",
            ),
            (
                refused.interactive || refused.tty,
                "`docker run` has neither standard input nor a terminal: `-i` and `-t` are not possible\n\
                 hint: write the input to a file of `/workspace`, which the container sees",
            ),
            (
                refused.detach,
                "`docker run -d` is not possible\n\
                 hint: a step of its own with `detach: true` goes on until the run ends",
            ),
            (
                refused.privileged,
                "`docker run --privileged` is not possible\n\
                 hint: `privileged: true` of a step holds for its first command",
            ),
            (
                !refused.publish.is_empty(),
                "nothing is published on the server's own addresses: `-p` is not possible\n\
                 hint: containers of one network reach each other by their names",
            ),
        ];
        let asked = asked.into_iter().find(|(is_asked, _)| *is_asked);
        asked
            .map(|(_, text)| text)
            .or_else(|| self.image().0.is_empty().then_some("`docker run` names no image"))
    }
}

/// Reads the words behind `docker`.
pub(super) fn parse(words: &[String]) -> Result<Command, Told> {
    let refused = |text: &str| Err(Told::Refused(format!("error: {text}")));
    let command = Arguments::try_parse_from(words).map_err(|error| told(&error))?.command;
    match &command {
        Command::Run(run) => match run.refuse() {
            Some(text) => refused(text),
            None => Ok(command),
        },
        Command::Other(words) => {
            let name: String = words.first().map_or("", String::as_str).chars().take(40).collect();
            refused(&format!("`docker {name}` is not possible in a task\nhint: {}", instead(&name)))
        }
        _ => Ok(command),
    }
}

/// A host name can be made of it.
fn container_name(text: &str) -> Result<String, String> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match (1..=63).contains(&text.len()) && text.chars().all(is_fine) {
        true => Ok(text.to_owned()),
        false => Err("a name has 1 to 63 letters, digits, `_`, `.` and `-`".to_owned()),
    }
}

/// What to do instead of a command that there is not.
fn instead(name: &str) -> &'static str {
    match name {
        "build" | "buildx" | "builder" => "a `build` step builds images",
        "exec" | "attach" | "cp" => "steps share the folders `/workspace` and `/acb/home`",
        "network" | "volume" => "`networks` and `volumes` of the task file make them",
        _ => "`docker --help` tells what is",
    }
}

fn told(error: &clap::Error) -> Told {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Told::Help(text)
        }
        _ => {
            let sentence = text.split("\n\n").next().unwrap_or_default();
            let words: Vec<_> = sentence.split_whitespace().collect();
            Told::Refused(words.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Result<Command, Told> {
        parse(&shlex::split(line).unwrap())
    }

    #[track_caller]
    fn check(lines: &[&str], expected: Expect) {
        let line = |line: &&str| match read(line) {
            Ok(command) => format!("{line}\n  {command:?}\n"),
            Err(Told::Help(text)) => format!("{line}\n  help of {} lines\n", text.lines().count()),
            Err(Told::Refused(text)) => format!("{line}\n  {}\n", text.replace('\n', "\n  ")),
        };
        expected.assert_eq(&lines.iter().map(line).collect::<String>());
    }

    #[test]
    fn options_end_at_the_image_of_a_run() {
        let run = |line: &str| match read(line) {
            Ok(Command::Run(run)) => run,
            other => panic!("{line}: {other:?}"),
        };
        let simple = run("run --rm busybox echo -e x --rm");
        assert_eq!(simple.image().0, "busybox");
        assert_eq!(simple.image().1, ["echo", "-e", "x", "--rm"]);
        let first = run("run busybox -e A=b");
        assert_eq!((first.image().1.join(" "), first.env.len()), ("-e A=b".to_owned(), 0));
        let full =
            run("run -e A=b --env=C -w /x -u 1:2 --entrypoint sh --net none --name n i help");
        assert_eq!(full.env, ["A=b", "C"]);
        assert_eq!(full.workdir.as_deref(), Some("/x"));
        assert_eq!((full.user.as_deref(), full.entrypoint.as_deref()), (Some("1:2"), Some("sh")));
        assert_eq!((full.network.as_deref(), full.name.as_deref()), (Some("none"), Some("n")));
        assert_eq!(full.image(), ("i", &["help".to_owned()][..]));
        // As docker has it: no help.
        assert_eq!(run("run -h box busybox true").hostname.as_deref(), Some("box"));
        assert!(matches!(read("run --help"), Err(Told::Help(_))));
        assert!(matches!(read(&format!("run --name {} i", "a".repeat(64))), Err(Told::Refused(_))));
    }

    #[test]
    fn commands_are_read_and_others_refused_by_name() {
        check(
            &[
                "tag a b",
                "image tag a b",
                "push -q r/a:1",
                "images -q",
                "image ls",
                "rmi -f a b",
                "inspect --format '{{.Id}}' a",
                "manifest inspect a",
                "login -u u --password-stdin r",
                "logout",
                "ps -a",
                "rm -f web",
                "logs --tail 5 web",
                "version",
                "--help",
                "run --help",
            ],
            expect![[r#"
                tag a b
                  Tag(TagArgs { source: "a", target: "b" })
                image tag a b
                  Image(Tag(TagArgs { source: "a", target: "b" }))
                push -q r/a:1
                  Push(PushArgs { quiet: true, image: "r/a:1" })
                images -q
                  Images(ImagesArgs { quiet: true })
                image ls
                  Image(Ls(ImagesArgs { quiet: false }))
                rmi -f a b
                  Rmi(RmiArgs { force: true, images: ["a", "b"] })
                inspect --format '{{.Id}}' a
                  Inspect(InspectArgs { format: Some("{{.Id}}"), kind: None, images: ["a"] })
                manifest inspect a
                  Manifest(Inspect(ManifestArgs { image: "a" }))
                login -u u --password-stdin r
                  Login(login of Some("u") to Some("r"))
                logout
                  Logout(LogoutArgs { server: None })
                ps -a
                  Ps(PsArgs { quiet: false, all: true })
                rm -f web
                  Rm(StopArgs { force: true, time: None, signal: None, containers: ["web"] })
                logs --tail 5 web
                  Logs(LogsArgs { tail: Some(5), container: "web" })
                version
                  Version(VersionArgs { format: None })
                --help
                  help of 25 lines
                run --help
                  help of 14 lines
            "#]],
        );
        check(
            &[
                "run -v a:b i",
                "run -it i",
                "run -d i",
                "run -p 80:80 i",
                "run --privileged i",
                "run --gpus all i",
                "run",
                "tag a",
                "push --all-tags a",
                "build .",
                "logs -f web",
                "compose up",
                "inspect --type container web",
            ],
            expect![[r#"
                run -v a:b i
                  error: `docker run` mounts nothing but `/workspace` and `/acb/home`, which are always there
                  hint: leave `-v` and `--mount` away; `-w /workspace` starts there
                run -it i
                  error: `docker run` has neither standard input nor a terminal: `-i` and `-t` are not possible
                  hint: write the input to a file of `/workspace`, which the container sees
                run -d i
                  error: `docker run -d` is not possible
                  hint: a step of its own with `detach: true` goes on until the run ends
                run -p 80:80 i
                  error: nothing is published on the server's own addresses: `-p` is not possible
                  hint: containers of one network reach each other by their names
                run --privileged i
                  error: `docker run --privileged` is not possible
                  hint: `privileged: true` of a step holds for its first command
                run --gpus all i
                  error: unexpected argument '--gpus' found
                run
                  error: `docker run` names no image
                tag a
                  error: the following required arguments were not provided: <TARGET>
                push --all-tags a
                  error: unexpected argument '--all-tags' found
                build .
                  error: `docker build` is not possible in a task
                  hint: a `build` step builds images
                logs -f web
                  error: unexpected argument '-f' found
                compose up
                  error: `docker compose` is not possible in a task
                  hint: `docker --help` tells what is
                inspect --type container web
                  error: invalid value 'container' for '--type <TYPE>' [possible values: image]
            "#]],
        );
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(words in proptest::collection::vec("[ -~]{0,8}", 0..6)) {
            let _any = parse(&words);
            let _any = parse(&[vec!["run".to_owned()], words].concat());
        }
    }
}
