//! Runs meet the builder: what `control` asks for becomes what `engine` does.

mod copies;
mod events;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use builder::{BaseImages, CatalogImages, Layers, OwnNames, RemoteImages, Secret, SshAgents};
use container::Network;
use control::{
    Attempt, BuildRequest, Clock, Commit, End, Executor, LoginText, Outcome, OutputImage, run_user,
};
use dockerfile::ContextAddress;
use engine::{
    BuildOptions, BuildStep, CacheExport, ContextSource, Engine, ImagesOf, KnownSecrets, Lease,
    LocalHousekeeper, LocalPublisher, NamedContext, OwnLogin, PublishError, PushPolicy, RunLogins,
    RunRequest, SecretError, SecretSource,
};
use oci::{Annotations, RegistryName, RepositoryName};
use remote::{Credentials, Remote, RemoteSettings, Upstream};
use store::{Catalog, DataDir};
use task::Seed;

use crate::agents::Agents;
use crate::egress;
use crate::identity::{Endpoint, OwnTokens, TaskIdentities, TokenWanted};
use crate::keys::Keys;
use crate::machine::{Machine, Place};
use crate::run_rights;
use crate::secrets::{OwnSecrets, Providers};
use crate::settings::Settings;
use crate::state::{Shared, copies_message};
use crate::{ServeError, UpstreamSettings};
use copies::CopiedImages;
use events::LogEvents;

/// For one login, whose parts others may have to be asked for.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// The queue's own clock ends a run; the engine's is only there should that fail.
const TIMEOUT_SLACK: Duration = Duration::from_secs(60);

/// Executes runs with the engine, one per registry over what they share.
struct BuildExecutor {
    engines: BTreeMap<RegistryName, Engine>,
    agents: Agents,
    machine: Machine,
    keys: Arc<Keys>,
    providers: Providers,
    identities: TaskIdentities,
    clock: Clock,
}

/// Opens what builds need of this machine.
pub(crate) async fn build(
    settings: &Settings,
    state: &Shared,
    folder: &DataDir,
    notices: &mut Vec<String>,
) -> Result<Arc<dyn Executor>, ServeError> {
    let own = OwnNames::new(state.registries.own_names());
    let (catalog, layers) = (state.catalog.clone(), Arc::clone(&state.layers));
    let machine = Machine::open(settings, catalog, layers, folder, notices).await?;
    let pushes = push_policy(state);
    let rights = || Arc::new(state.access.of_runs.clone());
    let engine = |registry: &RegistryName| {
        machine.engine(Place {
            registry: registry.clone(),
            own: own.clone(),
            images: base_images(state, registry, &own),
            remote: state.remote.clone(),
            pushes: pushes.clone(),
            publisher: Arc::new(LocalPublisher { rights: rights() }),
            housekeeper: Arc::new(LocalHousekeeper {
                catalog: state.catalog.clone(),
                registry: registry.clone(),
                own: own.clone(),
                pushes: pushes.clone(),
                rights: rights(),
            }),
        })
    };
    let engines = state.registries.iter().map(|(registry, _)| (registry.clone(), engine(registry)));
    let (engines, agents) = (engines.collect(), state.agents.clone());
    let (keys, providers) = (Arc::clone(&state.keys), state.providers.clone());
    let (identities, clock) = (state.identities.clone(), state.clock.clone());
    Ok(Arc::new(BuildExecutor { engines, agents, machine, keys, providers, identities, clock }))
}

/// To other registries if their settings say so, and to no copies of other registries' images.
fn push_policy(state: &Shared) -> PushPolicy {
    PushPolicy { hosts: Arc::clone(&state.push_hosts), ..own_pushes(state) }
}

/// To the own registry only.
pub(crate) fn own_pushes(state: &Shared) -> PushPolicy {
    let pull_through = state.pull_through.clone();
    let refused = move |repository: &RepositoryName| {
        let holds = pull_through.as_ref().is_some_and(|kept| kept.holds(repository));
        holds.then(|| copies_message(repository))
    };
    PushPolicy { hosts: Arc::default(), refused: Arc::new(refused) }
}

/// Where the builds of a registry get base images.
fn base_images(state: &Shared, registry: &RegistryName, own: &OwnNames) -> Arc<ImagesOf> {
    let (catalog, registry, own) = (state.catalog.clone(), registry.clone(), own.clone());
    let pull_through = state.pull_through.clone();
    Arc::new(move |remote: &Remote| {
        let upstream = RemoteImages::new(remote.clone(), catalog.clone());
        let (catalog, registry, own) = (catalog.clone(), registry.clone(), own.clone());
        let images = CatalogImages::new(catalog, registry, own.clone(), Some(Arc::new(upstream)));
        match pull_through.clone() {
            None => Arc::new(images) as Arc<dyn BaseImages>,
            Some(pull_through) => Arc::new(CopiedImages { images, own, pull_through }),
        }
    })
}

/// Access to other registries, as the settings say.
pub(crate) fn open_remote(settings: &Settings) -> Result<Remote, ServeError> {
    remote_of(settings, upstreams(settings))
}

/// Other registries, by host.
pub(crate) fn upstreams(settings: &Settings) -> BTreeMap<String, Upstream> {
    settings.upstreams.iter().map(|(host, own)| (host.clone(), upstream(own))).collect()
}

pub(crate) fn remote_of(
    settings: &Settings,
    upstreams: BTreeMap<String, Upstream>,
) -> Result<Remote, ServeError> {
    let reach = Some(crate::machine::reach(settings));
    Remote::new(RemoteSettings { upstreams, reach, ..RemoteSettings::default() })
        .map_err(ServeError::starting("prepare for pulling from other registries"))
}

fn upstream(settings: &UpstreamSettings) -> Upstream {
    let credentials = match (&settings.username, &settings.password) {
        (Some(username), Some(password)) => {
            Some(Credentials { username: username.clone(), password: password.reveal().to_owned() })
        }
        _ => None,
    };
    let plain_http = settings.plain_http.then_some(true);
    let (push, anywhere) = (settings.push, true);
    Upstream { credentials, plain_http, push, anywhere, ..Upstream::default() }
}

/// Sweeping what a killed process left may take a while.
pub(crate) async fn open_layers(
    catalog: &Catalog,
    folder: &DataDir,
) -> Result<Arc<Layers>, ServeError> {
    let (catalog, snapshots) = (catalog.clone(), folder.snapshots());
    let opened = tokio::task::spawn_blocking(move || {
        Layers::open(Arc::clone(catalog.blobs()), Arc::new(catalog.clone()), &snapshots)
    });
    let opened = opened.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    Ok(Arc::new(opened.map_err(ServeError::starting("open the folder of snapshots"))?))
}

#[async_trait]
impl Executor for BuildExecutor {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        let run = &attempt.run;
        let Some(engine) = self.engines.get(&run.registry) else {
            let message = format!("registry `{}` is not served any more", run.registry);
            return Outcome::of(End::Error(message));
        };
        let mut engine = engine.clone();
        egress::bound_run(&mut engine, run.request.egress());
        if let Some(cpu) = run.cpu {
            engine.bound(&attempt_name(attempt), cpu, None);
        }
        if let Err(message) = run_rights::bound(&mut engine, &self.identities.runs, run).await {
            return Outcome::of(End::Error(message));
        }
        let tokens = match self.tokens(attempt).await {
            Ok(tokens) => tokens,
            Err(error) => return Outcome::of(End::Error(error.to_string())),
        };
        let user = run_user(&run.registry, run.id, attempt.epoch);
        let password = self.keys.run_password(&user);
        let secrets = Secrets {
            seed: self.keys.seed(run),
            own: Credentials { username: user, password },
            ssh_agents: Some(self.agents.of(run)),
            source: Arc::new(OwnSecrets {
                providers: self.providers.clone(),
                run: run.clone(),
                epoch: attempt.epoch,
                log: attempt.log.clone(),
            }),
            tokens,
        };
        execute(&engine, attempt, secrets).await
    }

    async fn idle(&self) {
        self.machine.idle().await;
    }
}

impl BuildExecutor {
    /// Where the tokens of a run come from whose task has an identity.
    async fn tokens(&self, attempt: &Attempt) -> control::Result<Option<Endpoint>> {
        if self.identities.runs.identity_of(&attempt.run).await?.is_none() {
            return Ok(None);
        }
        let tokens = OwnTokens {
            identities: self.identities.clone(),
            run: attempt.run.clone(),
            epoch: attempt.epoch,
            log: attempt.log.clone(),
        };
        Ok(Some(Endpoint::new(Arc::new(tokens), self.clock.clone())))
    }
}

/// Unlike that of any other attempt.
pub(crate) fn attempt_name(attempt: &Attempt) -> String {
    format!("{}-{}-{}", attempt.run.registry, attempt.run.id, attempt.epoch)
}

/// What an attempt has that its run has not.
pub(crate) struct Secrets {
    pub(crate) seed: Seed,
    /// For the run's own registry.
    pub(crate) own: Credentials,
    pub(crate) ssh_agents: Option<Arc<dyn SshAgents>>,
    /// What task files list.
    pub(crate) source: Arc<dyn SecretSource>,
    /// For the identities of its task, if it has any.
    pub(crate) tokens: Option<Endpoint>,
}

/// Executes an attempt with an engine.
pub(crate) async fn execute(engine: &Engine, attempt: &Attempt, secrets: Secrets) -> Outcome {
    let Secrets { seed, own, ssh_agents, source, tokens } = secrets;
    // Commands can show it.
    attempt.log.hide([&*own.password]);
    let known_secrets = known_secrets(&attempt.run.request, &own);
    let logins = tokio::select! {
        logins = logins(engine, attempt, own, &*source, tokens.as_ref()) => match logins {
            Ok(logins) => logins,
            Err(end) => return Outcome::of(end),
        },
        () = attempt.cancel.cancelled() => return Outcome::of(End::Canceled),
    };
    for (host, login) in &logins.others {
        known_secrets.add(format!("the password for `{host}`"), &*login.password);
    }
    let build = match &attempt.run.request {
        control::RunRequest::Build(build) => build,
        control::RunRequest::Task(task) => {
            let with = tasks::With { seed, logins, known_secrets, source, tokens };
            return tasks::execute(engine, attempt, task, with).await;
        }
    };
    let mut request = match run_request(attempt, build, logins, known_secrets) {
        Ok(request) => request,
        Err(message) => return Outcome::of(End::Error(message)),
    };
    request.step.options.ssh_agents = ssh_agents;
    let events = LogEvents::new(attempt.log.clone());
    let lease = AttemptLease(attempt);
    let outcome = engine::execute(engine, &request, &events, &lease, &attempt.cancel).await;
    events.completed(outcome_of(outcome, |output| succeeded(engine, output)))
}

/// How an attempt ended, in the queue's words.
fn outcome_of<T>(outcome: engine::Outcome<T>, succeeded: impl FnOnce(&T) -> Outcome) -> Outcome {
    match outcome {
        engine::Outcome::Succeeded(output) => succeeded(&output),
        engine::Outcome::Failed { error } => Outcome::of(End::Failed(sentence(error))),
        engine::Outcome::Error { error } => Outcome::of(End::Error(sentence(error))),
        engine::Outcome::Canceled => Outcome::of(End::Canceled),
        engine::Outcome::TimedOut => {
            Outcome::of(End::Error("the run reached its time limit".into()))
        }
        engine::Outcome::Superseded => {
            Outcome::of(End::Error("another attempt has taken over".into()))
        }
    }
}

/// The log and the clients put their own `error:` in front.
fn sentence(error: String) -> String {
    error.strip_prefix("error: ").map_or(error.clone(), str::to_owned)
}

/// All of it was checked when the run was queued.
fn run_request(
    attempt: &Attempt,
    request: &BuildRequest,
    logins: RunLogins,
    known_secrets: KnownSecrets,
) -> Result<RunRequest, String> {
    let arguments = request.arguments.iter().map(|argument| engine::Argument {
        name: argument.name.clone(),
        value: argument.value.clone(),
        secret: argument.secret,
    });
    Ok(RunRequest {
        run: attempt.run.id.to_string(),
        task_name: attempt.run.task.as_ref().map(ToString::to_string).unwrap_or_default(),
        step: BuildStep {
            image_names: request.image_names.clone(),
            push: request.push,
            no_cache: request.no_cache,
            context: Some(context_source(&request.context)?),
            dockerfile_path: request.dockerfile.clone(),
            dockerfile_name: dockerfile_name(&request.dockerfile, request.dockerfile_name.clone()),
            target: request.target.clone(),
            arguments: arguments.collect(),
            platforms: match request.options.platforms.as_slice() {
                [] => vec![request.platform.clone()],
                several => several.to_vec(),
            },
            network: match request.network.as_deref() {
                Some("none") => Network::None,
                Some("host") => Network::Host,
                _ => Network::Isolated,
            },
            source_date_epoch: request.source_date_epoch,
            compression: request.options.compression,
            options: build_options(&request.options)?,
        },
        logins,
        known_secrets,
        timeout: request.timeout + TIMEOUT_SLACK,
        now: begun_at(attempt),
    })
}

/// All that no image of an attempt may hold, with names for those that have one. Build secrets and
/// build arguments have theirs from the builder.
fn known_secrets(request: &control::RunRequest, own: &Credentials) -> KnownSecrets {
    let known = KnownSecrets::default();
    known.add_new("the password of the run", &*own.password);
    if let control::RunRequest::Task(task) = request {
        for value in task.values.iter().filter(|value| value.secret) {
            known.add(format!("value `{}`", value.name), &*value.value);
        }
    }
    // Whatever else there is. A user of an address is often an organisation, which is in its path too,
    // and in many files.
    let addresses: Vec<&str> = request.addresses().collect();
    let others = request.secrets().filter(|value| !addresses.iter().any(|all| all.contains(value)));
    others.for_each(|value| known.add("a secret of the run", value));
    known
}

/// With which registries an attempt is logged in. In its own one it has its own right, whatever else
/// was given for it.
async fn logins(
    engine: &Engine,
    attempt: &Attempt,
    own: Credentials,
    secrets: &dyn SecretSource,
    tokens: Option<&Endpoint>,
) -> Result<RunLogins, End> {
    let logins = attempt.run.request.logins();
    let hosts: BTreeSet<&str> = engine.own.hosts(&engine.registry).collect();
    let others = logins.others.iter().filter(|(host, _)| !hosts.contains(host.as_str()));
    let others = others.map(async |(host, login)| {
        let found = credentials(engine, host, login, secrets, tokens);
        let found = tokio::time::timeout(LOGIN_TIMEOUT, found).await.unwrap_or_else(|_| {
            let seconds = LOGIN_TIMEOUT.as_secs();
            Err(SecretError::Unavailable(format!("no answer within {seconds} s")))
        });
        let told = |reason| format!("the login for `{host}` cannot be had: {reason}");
        let credentials = found.map_err(|error| match error {
            SecretError::Refused(reason) => End::Failed(told(reason)),
            SecretError::Unavailable(reason) => End::Error(told(reason)),
        })?;
        attempt.log.hide([&*credentials.password]);
        Ok((host.clone(), credentials))
    });
    let others = futures_util::future::try_join_all(others).await?;
    let own = if logins.without_own { OwnLogin::None } else { OwnLogin::With(own) };
    Ok(RunLogins { own, others: others.into_iter().collect() })
}

/// What a login comes to, now.
async fn credentials(
    engine: &Engine,
    host: &str,
    login: &control::RegistryLogin,
    secrets: &dyn SecretSource,
    tokens: Option<&Endpoint>,
) -> Result<Credentials, SecretError> {
    match login {
        control::RegistryLogin::Password { username, password, client_id } => {
            let text = async |text: &LoginText| match text {
                LoginText::Plain(text) => Ok(text.clone()),
                LoginText::Secret { secret } => {
                    let address = secret.parse().map_err(|error: task::SecretAddressError| {
                        SecretError::Refused(error.to_string())
                    })?;
                    let secret =
                        task::Secret { id: host.to_owned(), address, client_id: *client_id };
                    secrets.fetch(&secret).await.map(|value| value.expose().to_owned())
                }
            };
            Ok(Credentials { username: text(username).await?, password: text(password).await? })
        }
        control::RegistryLogin::Identity { identity } => {
            let none = || SecretError::Refused("the task has no identity any more".to_owned());
            let wanted = TokenWanted {
                audience: format!("https://{host}"),
                client_id: *identity,
                commit: None,
            };
            let given = tokens.ok_or_else(none)?.token(wanted).await?;
            engine.remote.exchange(host, &given.token).await.map_err(|error| {
                let reason = match error.hint() {
                    Some(hint) => format!("{error}; {hint}"),
                    None => error.to_string(),
                };
                match error.is_transient() {
                    true => SecretError::Unavailable(reason),
                    false => SecretError::Refused(reason),
                }
            })
        }
    }
}

/// When the first attempt began, in seconds, so that a later one makes the same of templates.
fn begun_at(attempt: &Attempt) -> i64 {
    attempt.run.started_at.unwrap_or(attempt.started_at).div_euclid(1000)
}

fn build_options(options: &control::BuildOptions) -> Result<BuildOptions, String> {
    let secrets = options.secrets.iter();
    Ok(BuildOptions {
        peers: None,
        secrets: secrets
            .map(|secret| (secret.id.clone(), Secret::new(secret.value.clone())))
            .collect(),
        // They belong to the run.
        ssh_agents: None,
        extra_hosts: options.extra_hosts.clone(),
        ulimits: options.ulimits.clone(),
        shm_size: options.shm_size,
        labels: options.labels.clone(),
        annotations: Annotations::parse(&options.annotations).map_err(|error| error.to_string())?,
        no_cache_stages: options.no_cache_stages.clone(),
        explain_cache: options.explain_cache,
        cache_from: (options.cache_from.iter())
            .map(|image| image.parse())
            .collect::<Result<_, oci::ReferenceError>>()
            .map_err(|error| error.to_string())?,
        cache_to: (options.cache_to.iter())
            .map(|export| CacheExport {
                image_name: export.image_name.clone(),
                all_steps: export.all_steps,
            })
            .collect(),
        shares_results: false,
        force_compression: options.force_compression,
        contexts: (options.contexts.iter())
            .map(|(name, context)| Ok((name.clone(), named_context(context)?)))
            .collect::<Result<_, String>>()?,
    })
}

fn context_source(source: &control::ContextSource) -> Result<ContextSource, String> {
    Ok(match source {
        control::ContextSource::Upload(archive) => ContextSource::Upload(archive.clone()),
        control::ContextSource::Listed { list, packs } => {
            ContextSource::Listed { list: list.clone(), packs: packs.clone() }
        }
        control::ContextSource::Remote(remote) => match ContextAddress::of(&remote.address) {
            ContextAddress::Git(Ok(mut address)) => {
                address.branch = remote.branch.clone();
                ContextSource::Repository(address)
            }
            ContextAddress::Archive(address) => ContextSource::Address(address),
            ContextAddress::Artifact(Ok(reference)) => ContextSource::Artifact(reference),
            _ => return Err(format!("`{}` is no source of a context", remote.shown)),
        },
    })
}

fn named_context(context: &control::NamedContext) -> Result<NamedContext, String> {
    Ok(match context {
        control::NamedContext::Files { source } => {
            NamedContext::Files { source: context_source(source)? }
        }
        control::NamedContext::Image { reference } => {
            let reference = reference.parse();
            NamedContext::Image(reference.map_err(|error: oci::ReferenceError| error.to_string())?)
        }
        control::NamedContext::Layout { source, manifest } => {
            NamedContext::Layout { source: source.clone(), manifest: manifest.clone() }
        }
    })
}

/// The engine takes a name that differs from the path to mean that the Dockerfile only
/// travels along; so a name is passed on only then.
fn dockerfile_name(path: &str, name: Option<String>) -> Option<String> {
    let file_name = PathBuf::from(path);
    let file_name = file_name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.filter(|_| file_name.starts_with(api::HIDDEN_DOCKERFILE_PREFIX))
}

/// What a build cost, and what it had to send to other registries, in bytes.
#[derive(serde::Serialize)]
struct BuildRunCost {
    #[serde(flatten)]
    of: builder::BuildCost,
    pushed: u64,
}

fn succeeded(engine: &Engine, output: &engine::Output) -> Outcome {
    let digest = &output.built.descriptor().digest;
    let login_server = engine.own.host(&engine.registry).unwrap_or(engine.registry.as_str());
    let images = output.pushed.iter().map(|name| OutputImage {
        registry: login_server.to_owned(),
        repository: name.repository.to_string(),
        tag: Some(name.tag.to_string()),
        digest: digest.clone(),
        elsewhere: false,
    });
    let sent = output.sent.iter().map(|name| OutputImage {
        registry: name.host.clone(),
        repository: name.repository.to_string(),
        tag: name.tag.as_ref().map(ToString::to_string),
        digest: digest.clone(),
        elsewhere: true,
    });
    Outcome {
        end: End::Succeeded,
        images: images.chain(sent).collect(),
        digest: Some(digest.clone()),
        commit: output.repository.as_ref().map(|repository| Commit {
            id: repository.commit.clone(),
            branch: repository.branch.clone(),
        }),
        dependencies: serde_json::to_value(&output.dependencies).ok(),
        cost: serde_json::to_value(BuildRunCost {
            of: output.built.cost(),
            pushed: output.sent_bytes,
        })
        .ok(),
        plan: Some(build_plan(&output.built)),
    }
}

/// What a build was made of; the rest is in the records of its manifests.
fn build_plan(built: &engine::BuiltImages) -> serde_json::Value {
    let records = || built.images.iter().map(|image| &image.record);
    let definitions = records().map(|record| (record.platform.clone(), &record.definition));
    let bases = records().flat_map(|record| &record.bases);
    let images = bases.map(|base| (&base.reference, &base.digest));
    let images = images.collect::<BTreeSet<_>>().into_iter();
    let images = images.map(|(reference, digest)| engine::InputImage {
        reference: reference.clone(),
        digest: digest.clone(),
    });
    serde_json::json!({
        "definitions": definitions.collect::<BTreeMap<_, _>>(),
        "context": records().find_map(|record| record.context.as_ref()),
        "images": images.collect::<Vec<_>>(),
    })
}

/// The right to publish, asked of the queue.
pub(crate) struct AttemptLease<'a>(pub(crate) &'a Attempt);

#[async_trait]
impl Lease for AttemptLease<'_> {
    async fn holds(&self) -> bool {
        matches!(self.0.confirm().await, Ok(Ok(())))
    }

    async fn begin_steps(&self, repeatable: bool) -> Result<(), PublishError> {
        let told = self.0.running(repeatable).await;
        let held = told.map_err(|error| PublishError::Server(error.to_string()))?;
        held.map_err(|_lost| PublishError::LeaseLost)
    }
}
