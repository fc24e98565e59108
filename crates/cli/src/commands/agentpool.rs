//! `refit agentpool`: groups of agents that execute runs.

use api::{AgentPool, AgentPoolQueueStatus, AgentPoolToken};
use reqwest::Method;
use serde_json::json;

use super::Session;
use super::image::confirm;
use super::repository::pages;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an agent pool
    Create(CreateArgs),
    /// Change how many runs a pool executes at once
    Update(UpdateArgs),
    /// List the agent pools
    List,
    /// Show an agent pool with its agents
    Show(ShowArgs),
    /// Print the token that `refit agent` joins a pool with
    Token(TokenArgs),
    /// Delete an agent pool; its runs that wait end with an error
    Delete(DeleteArgs),
}

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct NameArgs {
    /// Agent pool
    #[arg(value_name = "POOL")]
    pool: Option<String>,
    #[arg(long = "name", short = 'n', hide = true)]
    name_flag: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Runs at once, over all agents of the pool
    #[arg(long, value_name = "N")]
    count: Option<u32>,
    /// What a run may have of its agent's machine: S1 (2 processors, 3 GiB), S2 (4, 8), S3 (8, 16)
    /// or I6 (64, 216)
    #[arg(long, value_name = "TIER", default_value = "S2")]
    tier: String,
    #[arg(long, hide = true)]
    subnet_id: Option<String>,
    #[arg(long, hide = true)]
    no_wait: bool,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Runs at once, over all agents of the pool; 0: its runs wait
    #[arg(long, value_name = "N")]
    count: u32,
    #[arg(long, hide = true)]
    no_wait: bool,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Only how many of its runs wait
    #[arg(long)]
    queue_count: bool,
}

#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Make a new one; agents that joined with an earlier one are shut out
    #[arg(long)]
    renew: bool,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[arg(long, hide = true)]
    no_wait: bool,
}

impl NameArgs {
    fn name(&self) -> &str {
        self.pool.as_deref().or(self.name_flag.as_deref()).unwrap_or_default()
    }
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    let route = |name: &NameArgs| connection.route(&["agentPools", name.name()]);
    match command {
        Command::Create(args) => create(session, &args).await,
        Command::Update(args) => {
            let body = json!({ "properties": { "count": args.count } });
            let request = connection.request(Method::PATCH, route(&args.name)).json(&body);
            let pool: AgentPool = connection.answer(request).await?;
            print(session, &pool, std::slice::from_ref(&pool))
        }
        Command::List => {
            let pools: Vec<AgentPool> = pages(session, &["agentPools"]).await?;
            print(session, &pools, &pools)
        }
        Command::Show(args) if args.queue_count => {
            let url = connection.route(&["agentPools", args.name.name(), "listQueueStatus"]);
            let request = connection.request(Method::POST, url);
            let status: AgentPoolQueueStatus = connection.answer(request).await?;
            session.printer.result(&status, &Table::lines([status.count.to_string()]))
        }
        Command::Show(args) => {
            let pool: AgentPool = connection.get(route(&args.name)).await?;
            show(session, &pool)
        }
        Command::Token(args) => token(session, &args).await,
        Command::Delete(args) => {
            let name = args.name.name();
            confirm(&format!("Delete agent pool `{name}`?"), args.yes).await?;
            connection.send(Method::DELETE, route(&args.name)).await
        }
    }
}

async fn create(session: &Session<'_>, args: &CreateArgs) -> Result<()> {
    let connection = session.connection()?;
    let name = args.name.name();
    let url = connection.route(&["agentPools", name]);
    match connection.get::<AgentPool>(url.clone()).await {
        Ok(_) => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("agent pool `{name}` is there already"),
            )
            .with_hint("`refit agentpool update` changes its count"));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    let body = json!({ "properties": {
        "count": args.count.unwrap_or(1),
        "tier": args.tier,
        "os": "Linux",
        "virtualNetworkSubnetResourceId": args.subnet_id,
    }});
    let request = connection.request(Method::PUT, url).json(&body);
    let pool: AgentPool = connection.answer(request).await?;
    session.printer.note(&format!(
        "An agent joins with the token that `refit agentpool token {}` prints",
        pool.name
    ));
    print(session, &pool, std::slice::from_ref(&pool))
}

async fn token(session: &Session<'_>, args: &TokenArgs) -> Result<()> {
    let connection = session.connection()?;
    let ask = if args.renew { "regenerateAgentToken" } else { "listAgentToken" };
    let url = connection.route(&["agentPools", args.name.name(), ask]);
    let answer: AgentPoolToken = connection.answer(connection.request(Method::POST, url)).await?;
    session.printer.result(&answer, &Table::lines([answer.token.clone()]))
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, pools: &[AgentPool]) -> Result<()> {
    let mut table = Table::new(["POOL", "TIER", "COUNT", "AGENTS", "RUNS"]);
    for pool in pools {
        let of = &pool.properties;
        let agents = of.agents.as_deref().unwrap_or_default();
        let runs: usize = agents.iter().map(|agent| agent.runs.len()).sum();
        table.row([
            pool.name.clone(),
            of.tier.clone().unwrap_or_default(),
            of.count.unwrap_or_default().to_string(),
            agents.len().to_string(),
            runs.to_string(),
        ]);
    }
    session.printer.result(value, &table)
}

/// One pool: a line for each agent.
fn show(session: &Session<'_>, pool: &AgentPool) -> Result<()> {
    let agents = pool.properties.agents.as_deref().unwrap_or_default();
    if agents.is_empty() {
        return print(session, pool, std::slice::from_ref(pool));
    }
    let mut table = Table::new(["AGENT", "PLATFORM", "VERSION", "LAST SEEN", "RUNS"]);
    for agent in agents {
        table.row([
            agent.name.clone(),
            agent.platform.clone(),
            agent.version.clone(),
            agent.last_seen.clone(),
            agent.runs.join(" "),
        ]);
    }
    session.printer.result(pool, &table)
}
