//! One file per command.

mod account;
mod agentpool;
mod annotate;
mod audit;
mod build;
mod by_rule;
mod completions;
mod config;
mod gc;
mod image;
mod import;
mod login;
mod logout;
mod manifest;
mod plan;
mod promote;
mod purge;
mod quick_task;
mod render;
mod repository;
mod run;
mod scope_map;
mod scrub;
mod secret;
mod tag;
mod task;
mod task_input;
mod taskrun;
mod token;
mod trigger;
mod version;
mod webhook;

use crate::connection::Connection;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::interrupt::Interrupts;
use crate::printer::Printer;
use crate::select::GlobalArgs;

/// What the client can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile, and push it to the registry
    Build(Box<build::Args>),
    /// Run the steps of a task file, or one command, once
    Run(Box<run::Args>),
    /// Show what a task file comes to, and the graph of its steps; needs no server
    Render(render::Args),
    /// What the registry holds
    #[command(subcommand)]
    Repository(repository::Command),
    /// Manifests of a repository
    #[command(subcommand)]
    Manifest(manifest::Command),
    /// Tags of a repository
    #[command(subcommand)]
    Tag(tag::Command),
    /// Delete tags by name and age, and manifests that nobody needs
    Purge(purge::Args),
    /// What the registry does by itself: images without tags
    #[command(subcommand)]
    Config(config::Command),
    /// Attach annotations to images, chosen by name
    Annotate(annotate::Args),
    /// Stored tasks, runs and their logs
    #[command(subcommand)]
    Task(task::Command),
    /// What triggers have seen and decided
    #[command(subcommand)]
    Trigger(trigger::Command),
    /// What an update of a base touches, level by level, written down before it happens
    Plan(plan::Args),
    /// Carry out a plan: build what it lists, level by level, and stop if something fails
    Apply(plan::CarryOutArgs),
    /// Put back the tags that a plan or a promotion has moved, and nobody since
    Rollback(plan::RollBackArgs),
    /// Move a tag to an image after checks and, where a task asks for it, an approval
    Promote(promote::Args),
    /// Runs that are declared by name, over the API
    #[command(subcommand)]
    Taskrun(taskrun::Command),
    /// Groups of agents that execute runs on other machines
    #[command(subcommand)]
    Agentpool(agentpool::Command),
    /// User names of the registry, for other programs and machines
    #[command(subcommand)]
    Token(token::Command),
    /// What tokens may do in which repositories
    #[command(subcommand)]
    ScopeMap(scope_map::Command),
    /// Secrets that the registry keeps for its runs
    #[command(subcommand)]
    Secret(secret::Command),
    /// Who is told of what happens in the registry
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// People and programs that use the server
    #[command(subcommand)]
    Account(account::Command),
    /// What accounts may do in the registry
    #[command(subcommand)]
    Role(account::RoleCommand),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::Command),
    /// Delete what nothing refers to any more
    Gc(gc::Args),
    /// Read all content again, and tell what is damaged
    Scrub(scrub::Args),
    /// Copy an image of another registry, an OCI layout or an archive into this registry
    Import(import::Args),
    /// Remember credentials for a server, and use it from now on
    Login(login::Args),
    /// Forget the credentials for a server
    Logout(logout::Args),
    /// Print the version
    Version(version::Args),
    /// Print completions for a shell
    Completions(completions::Args),
}

impl Command {
    /// Whether it needs a [`Connection`].
    pub fn needs_server(&self) -> bool {
        match self {
            Self::Build(args) => args.needs_server(),
            Self::Version(args) => args.needs_server(),
            Self::Audit(audit::Command::Verify(_)) => false,
            Self::Render(_) | Self::Login(_) | Self::Logout(_) | Self::Completions(_) => false,
            _ => true,
        }
    }
}

/// What a command works with.
pub(crate) struct Session<'a> {
    connection: Option<Connection>,
    pub(crate) printer: Printer,
    pub(crate) environment: &'a Environment,
    pub(crate) global: &'a GlobalArgs,
}

impl Session<'_> {
    pub(crate) fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or_else(|| Error::failed("there is no server to ask"))
    }
}

/// Carries out a command. `connection` is there if [`Command::needs_server`]; `program` is
/// the whole command line, for completions.
pub async fn run(
    command: Command,
    connection: Option<Connection>,
    printer: Printer,
    environment: &Environment,
    global: &GlobalArgs,
    interrupts: &mut Interrupts,
    program: clap::Command,
) -> Result<()> {
    let session = Session { connection, printer, environment, global };
    let command = match command {
        // These ask the server to stop before they do.
        Command::Build(args) => return build::run(&session, *args, interrupts).await,
        Command::Run(args) => return run::run(&session, *args, interrupts).await,
        Command::Task(task::Command::Run(args)) => {
            return task::start(&session, *args, interrupts).await;
        }
        other => other,
    };
    tokio::select! {
        // Nothing is left half done when one of these is dropped.
        done = run_simple(&session, command, program) => done,
        () = interrupts.next() => Err(Error::interrupted()),
    }
}

async fn run_simple(session: &Session<'_>, command: Command, program: clap::Command) -> Result<()> {
    match command {
        Command::Build(_) | Command::Run(_) => {
            Err(Error::failed("a run needs to be interruptible"))
        }
        Command::Render(args) => render::run(session, args).await,
        Command::Repository(command) => repository::run(session, command).await,
        Command::Manifest(command) => manifest::run(session, command).await,
        Command::Tag(command) => tag::run(session, command).await,
        Command::Task(command) => task::run(session, command).await,
        Command::Trigger(command) => trigger::run(session, command).await,
        Command::Plan(args) => plan::run(session, args).await,
        Command::Apply(args) => plan::apply(session, args).await,
        Command::Rollback(args) => plan::roll_back(session, args).await,
        Command::Promote(args) => promote::run(session, args).await,
        Command::Taskrun(command) => taskrun::run(session, command).await,
        Command::Agentpool(command) => agentpool::run(session, command).await,
        Command::Token(command) => token::run(session, command).await,
        Command::ScopeMap(command) => scope_map::run(session, command).await,
        Command::Secret(command) => secret::run(session, command).await,
        Command::Webhook(command) => webhook::run(session, command).await,
        Command::Account(command) => account::run(session, command).await,
        Command::Role(command) => account::run_role(session, command).await,
        Command::Audit(command) => audit::run(session, command).await,
        Command::Purge(args) => purge::run(session, args).await,
        Command::Config(command) => config::run(session, command).await,
        Command::Annotate(args) => annotate::run(session, args).await,
        Command::Gc(args) => gc::run(session, args).await,
        Command::Scrub(args) => scrub::run(session, args).await,
        Command::Import(args) => import::run(session, args).await,
        Command::Login(args) => login::run(session, args).await,
        Command::Logout(args) => logout::run(session, args),
        Command::Version(args) => version::run(session, args).await,
        Command::Completions(args) => completions::run(session, args, program),
    }
}
