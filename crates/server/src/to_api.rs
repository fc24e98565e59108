//! Words of the domain become words of the API.

mod access;
mod plans;
mod promotions;
mod secrets;
mod triggers;
mod webhooks;

pub(crate) use access::{account, assignment, passwords, scope_map, token};
pub(crate) use plans::{listed_plan, plan};
pub(crate) use promotions::promotion;
pub(crate) use secrets::secret;
use triggers::{cause, check_cause, image_cause, plan_cause, source_cause, timer_cause};
pub(crate) use triggers::{
    simulated, trigger_event, trigger_pause, trigger_watch, webhook_path, with_next,
};
pub(crate) use webhooks::{callback_config, webhook, webhook_event};

use base64::Engine as _;
use control::{
    Event, EventKind, LogArtifact, LoginText, Logins, OwnIdentity, Pool, Proof, RegistryLogin, Run,
    RunStatus, StoredTask, Stream, TaskIdentity, TaskRun, TaskStep, TaskText, WaitReason, Waiting,
};
use engine::Imported;
use housekeeping::{Item, Record};
use oci::{RegistryName, RepositoryName};
use serde_json::Value;
use store::{
    Attributes, Deleted, DeletedManifest, DeletedRepository, DeletedTag, GcReport, LostBlob,
    ManifestInfo, Millis, Policies, RepositoryInfo, Restored, ScrubPass, StoredSize, TagInfo,
};
use uuid::Uuid;

use crate::from_api::Import;
use crate::presence::Seen;
use crate::registries::{OwnNames, Registries};

pub(crate) fn run(run: &Run) -> api::Run {
    let id = run.id.to_string();
    let (log_artifact, log_artifact_error) = match &run.log_artifact {
        Some(LogArtifact::Stored(stored)) => (Some(image(stored)), None),
        Some(LogArtifact::Refused(why)) => (None, Some(why.clone())),
        None => (None, None),
    };
    api::Run {
        id: format!("/api/v1/registries/{}/runs/{id}", run.registry),
        name: id.clone(),
        kind: "Microsoft.ContainerRegistry/registries/runs".into(),
        properties: api::RunProperties {
            run_id: id,
            status: status(run.status),
            run_type: run.kind.as_str().into(),
            task: run.task.as_ref().map(ToString::to_string),
            update_trigger_token: run.update_trigger_token.clone(),
            definition_digest: run.definition.as_ref().map(ToString::to_string),
            agent_pool_name: run.pool.as_ref().map(ToString::to_string),
            agent_name: run.agent.clone(),
            agent_configuration: agent_configuration(run.cpu, run.request.egress()),
            cause: Some(cause(run)),
            image_update_trigger: run.cause.as_ref().and_then(image_cause),
            source_trigger: run.cause.as_ref().and_then(source_cause),
            timer_trigger: run.cause.as_ref().and_then(timer_cause),
            fleet_plan: run.cause.as_ref().and_then(plan_cause),
            promotion: run.cause.as_ref().and_then(check_cause),
            create_time: time(run.created_at),
            last_updated_time: time(run.updated_at),
            start_time: run.started_at.map(time),
            finish_time: run.finished_at.map(time),
            custom_registries: run.request.logins().others.keys().cloned().collect(),
            source_registry_auth: Some(source_registry_auth(run.request.logins())),
            output_images: run.images.iter().map(image).collect(),
            platform: platform(run.request.platform()),
            run_error_message: run.error.clone(),
            is_archive_enabled: run.archived,
            provisioning_state: provisioning_state(run.status).into(),
            waiting: None,
            plan: None,
            output_digest: run.digest.as_ref().map(ToString::to_string),
            dependencies: run.dependencies.clone(),
            commit_id: run.commit.as_ref().map(|commit| commit.id.clone()),
            branch_name: run.commit.as_ref().and_then(|commit| commit.branch.clone()),
            log_digest: run.log_digest.as_ref().map(ToString::to_string),
            log_artifact,
            log_artifact_error,
            cost: run.cost.clone(),
        },
    }
}

pub(crate) fn task_run(task_run: &TaskRun, result: Option<&Run>) -> api::TaskRun {
    api::TaskRun {
        id: format!("/api/v1/registries/{}/taskRuns/{}", task_run.registry, task_run.name),
        name: task_run.name.to_string(),
        kind: "Microsoft.ContainerRegistry/registries/taskRuns".into(),
        location: Some("local".into()),
        identity: None,
        properties: api::TaskRunProperties {
            provisioning_state: result.map(|run| provisioning_state(run.status).into()),
            run_request: Some(task_run.request.clone()),
            run_result: result.map(run),
            force_update_tag: task_run.force_update_tag.clone(),
        },
    }
}

/// Why a run waits. `concurrency` and `workers` are what may be under way at once, of the
/// registry and in all.
pub(crate) fn waiting(
    waiting: &Waiting,
    run: &Run,
    (concurrency, workers): (u32, u32),
) -> api::Waiting {
    let registry = &run.registry;
    let pool = run.pool.as_ref().map(|pool| format!("agent pool `{pool}`"));
    let pool = pool.unwrap_or_else(|| "its agent pool".to_owned());
    let reason = match waiting.reason {
        WaitReason::RegistryBusy { running } => {
            format!("{running} of {concurrency} runs of registry `{registry}` are under way")
        }
        WaitReason::WorkersBusy { running } => {
            format!("{running} of {workers} workers are busy")
        }
        WaitReason::PoolBusy { running } => {
            format!("{running} runs of {pool} are under way, as many as may be")
        }
        WaitReason::PoolEmpty => {
            format!("{pool} has a count of 0, so that no run of it begins")
        }
        WaitReason::NoAgent => format!("no agent of {pool} is free"),
        WaitReason::Starting => "it begins at any moment".to_owned(),
    };
    let expected_seconds = waiting.expected.map(|expected| expected.as_secs().max(1));
    api::Waiting { reason, position: waiting.position, expected_seconds }
}

pub(crate) fn pool(pool: &Pool, agents: Vec<api::PoolAgent>) -> api::AgentPool {
    let properties = &pool.properties;
    api::AgentPool {
        id: format!("/api/v1/registries/{}/agentPools/{}", pool.registry, pool.name),
        name: pool.name.to_string(),
        kind: "Microsoft.ContainerRegistry/registries/agentPools".into(),
        location: Some("local".into()),
        tags: Some(properties.tags.clone()),
        properties: api::AgentPoolProperties {
            count: Some(pool.count),
            tier: Some(properties.tier.as_str().into()),
            os: Some("Linux".into()),
            virtual_network_subnet_resource_id: properties.subnet.clone(),
            provisioning_state: Some("Succeeded".into()),
            agents: Some(agents),
        },
    }
}

pub(crate) fn pool_agent(name: String, seen: &Seen, runs: Vec<String>) -> api::PoolAgent {
    let Seen { at, platform, version } = seen.clone();
    api::PoolAgent { name, platform, version, last_seen: time(at), runs }
}

/// A task without its secrets: a request that leaves them out keeps them.
pub(crate) fn task(task: &StoredTask) -> api::Task {
    let definition = &task.definition;
    let status = if definition.enabled { "Enabled" } else { "Disabled" };
    let is_system = definition.step == TaskStep::System;
    api::Task {
        id: format!("/api/v1/registries/{}/tasks/{}", task.registry, task.name),
        name: task.name.to_string(),
        kind: "Microsoft.ContainerRegistry/registries/tasks".into(),
        location: Some("local".into()),
        tags: Some(definition.tags.clone()),
        identity: identity(&definition.identity),
        properties: api::TaskProperties {
            provisioning_state: Some("Succeeded".into()),
            creation_date: Some(time(task.created_at)),
            last_updated_time: Some(time(task.updated_at)),
            status: Some(status.into()),
            platform: (!is_system).then(|| platform(&definition.platform)),
            agent_configuration: agent_configuration(definition.cpu, &definition.egress),
            agent_pool_name: definition.pool.as_ref().map(ToString::to_string),
            timeout: Some(u32::try_from(definition.timeout.as_secs()).unwrap_or(u32::MAX)),
            step: task_step(task),
            trigger: triggers::of(task),
            credentials: (!is_system).then(|| credentials(&definition.logins, false)),
            log_template: definition.log_template.clone(),
            is_system_task: is_system,
            owner: definition.owner.clone(),
            description: definition.description.clone(),
            expires_on: definition.expires_at.map(time),
            output_retention: definition
                .output_retention
                .map(|rule| api::OutputRetention { days: Some(rule.days), keep: Some(rule.keep) }),
            promotion: promotions::rules(&definition.promotion),
            definition_digest: Some(definition.digest().to_string()),
        },
    }
}

fn identity(identity: &TaskIdentity) -> Option<api::IdentityProperties> {
    let TaskIdentity { system, accounts } = identity;
    let kinds = [("SystemAssigned", system.is_some()), ("UserAssigned", !accounts.is_empty())];
    let kinds: Vec<_> = kinds.iter().filter(|(_, has)| *has).map(|(kind, _)| *kind).collect();
    let assigned = accounts.iter().map(|account| {
        let id = Some(account.id.to_string());
        let shown = api::UserAssignedIdentity { principal_id: id.clone(), client_id: id };
        (account.name.to_string(), Some(shown))
    });
    (!kinds.is_empty()).then(|| api::IdentityProperties {
        kind: Some(kinds.join(", ")),
        principal_id: system.map(|id| id.to_string()),
        user_assigned_identities: (!accounts.is_empty()).then(|| assigned.collect()),
    })
}

fn agent_configuration(cpu: Option<u32>, egress: &[String]) -> Option<api::AgentProperties> {
    let is_told = cpu.is_some() || !egress.is_empty();
    is_told.then(|| api::AgentProperties { cpu, egress: egress.to_vec() })
}

/// The same with the user names of its logins.
pub(crate) fn task_details(stored: &StoredTask) -> api::Task {
    let mut shown = task(stored);
    shown.properties.credentials = Some(credentials(&stored.definition.logins, true));
    shown
}

/// Which logins there are. A request that leaves user names and passwords out keeps them.
fn credentials(logins: &Logins, with_users: bool) -> api::Credentials {
    let others = logins
        .others
        .iter()
        .map(|(host, login)| (host.clone(), Some(registry_login(login, with_users))));
    let login_mode = Some(login_mode(logins).into());
    let identity = logins.own_identity.map(own_identity);
    api::Credentials {
        source_registry: Some(api::SourceRegistryCredentials { login_mode, identity }),
        custom_registries: Some(others.collect()),
    }
}

fn own_identity(identity: OwnIdentity) -> String {
    match identity {
        OwnIdentity::Caller => "[caller]".to_owned(),
        OwnIdentity::System => SYSTEM.to_owned(),
        OwnIdentity::Of(id) => id.to_string(),
    }
}

/// How the API names the identity of a task itself.
const SYSTEM: &str = "[system]";

fn registry_login(login: &RegistryLogin, with_user: bool) -> api::CustomRegistryCredentials {
    let of_id = |id: Option<Uuid>| id.map_or_else(|| SYSTEM.to_owned(), |id| id.to_string());
    let part = |text: &LoginText, is_shown: bool| {
        // Where something is, is no secret.
        let (kind, value) = match text {
            LoginText::Plain(text) => ("Opaque", is_shown.then(|| text.clone())),
            LoginText::Secret { secret } => ("Vaultsecret", Some(secret.clone())),
        };
        Some(api::SecretObject { value, kind: Some(kind.into()) })
    };
    match login {
        RegistryLogin::Identity { identity } => api::CustomRegistryCredentials {
            user_name: None,
            password: None,
            identity: Some(of_id(*identity)),
        },
        RegistryLogin::Password { username, password, client_id } => {
            let is_elsewhere = username.address().is_some() || password.address().is_some();
            api::CustomRegistryCredentials {
                user_name: part(username, with_user),
                password: part(password, false),
                identity: is_elsewhere.then(|| of_id(*client_id)),
            }
        }
    }
}

/// As whom a run uses its registry, and else whether it does.
fn source_registry_auth(logins: &Logins) -> String {
    logins.own_identity.map_or_else(|| login_mode(logins).to_owned(), own_identity)
}

fn login_mode(logins: &Logins) -> &'static str {
    if logins.without_own { "None" } else { "Default" }
}

/// A system task has none.
fn task_step(task: &StoredTask) -> Option<api::TaskStep> {
    let definition = &task.definition;
    let context = api::StepContext {
        context_path: definition.context.as_ref().map(|context| context.address.clone()),
        context_access_token: None,
        base_image_dependencies: task.dependencies.as_ref().map(base_image_dependencies),
    };
    let value = |name: &str, value: &str, secret: bool| api::SetValue {
        name: name.to_owned(),
        value: (!secret).then(|| value.to_owned()),
        is_secret: secret,
    };
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    Some(match &definition.step {
        TaskStep::System => return None,
        TaskStep::Docker { image_names, push, no_cache, dockerfile, target, arguments } => {
            let arguments = arguments.iter();
            api::TaskStep::Docker(api::DockerStep {
                context,
                image_names: image_names.clone(),
                is_push_enabled: *push,
                no_cache: *no_cache,
                docker_file_path: dockerfile.clone(),
                target: target.clone(),
                arguments: arguments.map(|of| value(&of.name, &of.value, of.secret)).collect(),
            })
        }
        TaskStep::File { file, values_file, values } => {
            let values = values.iter().map(|of| value(&of.name, &of.value, of.secret)).collect();
            match file {
                TaskText::InContext(path) => api::TaskStep::FileTask(api::FileTaskStep {
                    context,
                    task_file_path: path.clone(),
                    values_file_path: values_file.as_ref().and_then(|file| match file {
                        TaskText::InContext(path) => Some(path.clone()),
                        TaskText::Inline(_) => None,
                    }),
                    values,
                }),
                TaskText::Inline(text) => api::TaskStep::EncodedTask(api::EncodedTaskStep {
                    context,
                    encoded_task_content: base64(text),
                    encoded_values_content: values_file.as_ref().and_then(|file| match file {
                        TaskText::Inline(text) => Some(base64(text)),
                        TaskText::InContext(_) => None,
                    }),
                    values,
                }),
            }
        }
    })
}

/// The bases of all images of a dependency report, each once (runs.md section 4.1).
fn base_image_dependencies(report: &Value) -> Vec<api::BaseImageDependency> {
    let mut found: Vec<api::BaseImageDependency> = Vec::new();
    let mut add = |kind: &str, image: &Value| {
        let text = |member: &str| image.get(member)?.as_str().map(str::to_owned);
        let (Some(registry), Some(repository)) = (text("registry"), text("repository")) else {
            return;
        };
        let tag = text("tag").filter(|tag| !tag.is_empty());
        let (kind, digest) = (kind.to_owned(), text("digest"));
        let image = api::BaseImageDependency { kind, registry, repository, tag, digest };
        if !found.contains(&image) {
            found.push(image);
        }
    };
    for of in report.as_array().into_iter().flatten() {
        if let Some(image) = of.get("runtime-dependency") {
            add("RunTime", image);
        }
        let buildtime = of.get("buildtime-dependency").and_then(Value::as_array);
        for image in buildtime.into_iter().flatten() {
            add("BuildTime", image);
        }
    }
    found
}

fn image(image: &control::OutputImage) -> api::ImageDescriptor {
    api::ImageDescriptor {
        registry: image.registry.clone(),
        repository: image.repository.clone(),
        tag: image.tag.clone(),
        digest: image.digest.to_string(),
    }
}

fn platform(platform: &oci::Platform) -> api::PlatformProperties {
    api::PlatformProperties {
        os: platform.os.clone(),
        architecture: Some(platform.architecture.clone()),
        variant: platform.variant.clone(),
    }
}

fn provisioning_state(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Queued | RunStatus::Started | RunStatus::Running => "Creating",
        RunStatus::Succeeded => "Succeeded",
        RunStatus::Failed | RunStatus::Error | RunStatus::Timeout => "Failed",
        RunStatus::Canceled => "Canceled",
    }
}

pub(crate) fn status(status: RunStatus) -> api::RunStatus {
    match status {
        RunStatus::Queued => api::RunStatus::Queued,
        RunStatus::Started => api::RunStatus::Started,
        RunStatus::Running => api::RunStatus::Running,
        RunStatus::Succeeded => api::RunStatus::Succeeded,
        RunStatus::Failed => api::RunStatus::Failed,
        RunStatus::Canceled => api::RunStatus::Canceled,
        RunStatus::Error => api::RunStatus::Error,
        RunStatus::Timeout => api::RunStatus::Timeout,
    }
}

/// Times are RFC 3339 in UTC.
pub(crate) fn time(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at).unwrap_or_default().to_string()
}

fn proof(proof: Proof) -> api::Proof {
    match proof {
        Proof::Nothing => api::Proof::Nothing,
        Proof::Seen => api::Proof::Seen,
        Proof::Layers => api::Proof::Layers,
    }
}

pub(crate) fn event(event: Event) -> api::Event {
    let kind = match event.kind {
        EventKind::Status { status: to } => api::EventKind::Status { status: status(to) },
        EventKind::Message { text } => api::EventKind::Message { text },
        EventKind::Warning { text } => api::EventKind::Warning { text },
        EventKind::StepStarted { step, name } => api::EventKind::StepStarted { step, name },
        EventKind::Output { step, stream, text } => {
            let stream = match stream {
                Stream::Stdout => api::OutputStream::Stdout,
                Stream::Stderr => api::OutputStream::Stderr,
            };
            api::EventKind::Output { step, stream, text }
        }
        EventKind::Progress { step, current, total } => {
            api::EventKind::Progress { step, current, total }
        }
        EventKind::Explained { step, text } => api::EventKind::Explained { step, text },
        EventKind::StepFinished { step, proof, milliseconds, error } => {
            let (cached, proof) = (proof.is_some(), proof.map(self::proof));
            api::EventKind::StepFinished { step, cached, proof, milliseconds, error }
        }
        EventKind::Image { reference, digest } => api::EventKind::Image { reference, digest },
        EventKind::Finished { status: to, error, .. } => {
            api::EventKind::Finished { status: status(to), error }
        }
    };
    api::Event { id: event.id, at: event.at, kind }
}

pub(crate) fn tag(tag: &TagInfo) -> api::TagAttributes {
    api::TagAttributes {
        name: tag.tag.to_string(),
        digest: tag.digest.to_string(),
        created_time: time(tag.created_at),
        last_update_time: time(tag.updated_at),
        changeable_attributes: attributes(tag.attributes),
    }
}

pub(crate) fn manifest(manifest: &ManifestInfo) -> api::ManifestAttributes {
    api::ManifestAttributes {
        digest: manifest.digest.to_string(),
        image_size: manifest.image_size,
        created_time: time(manifest.pushed_at),
        last_update_time: time(manifest.updated_at),
        media_type: manifest.media_type.clone(),
        config_media_type: manifest.config_media_type.clone(),
        artifact_type: manifest.artifact_type.clone(),
        tags: manifest.tags.iter().map(ToString::to_string).collect(),
        changeable_attributes: attributes(manifest.attributes),
    }
}

/// `bytes` are there if they may be read.
pub(crate) fn manifest_document(
    info: &ManifestInfo,
    bytes: Option<&[u8]>,
) -> api::ManifestDocument {
    api::ManifestDocument {
        digest: info.digest.to_string(),
        media_type: info.media_type.clone(),
        size: info.size,
        // Stored manifests were read as JSON when they came.
        manifest: bytes.map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()),
        changeable_attributes: attributes(info.attributes),
    }
}

pub(crate) fn repository(
    login_server: &str,
    name: &RepositoryName,
    info: &RepositoryInfo,
) -> api::Repository {
    api::Repository {
        registry: login_server.to_owned(),
        image_name: name.to_string(),
        created_time: Some(time(info.created_at)),
        last_update_time: Some(time(info.updated_at)),
        manifest_count: info.manifests,
        tag_count: info.tags,
        changeable_attributes: attributes(info.attributes),
    }
}

/// The only kind of retention that there is.
pub(crate) const UNTAGGED_MANIFESTS: &str = "UntaggedManifests";

pub(crate) fn policies(policies: &Policies) -> api::Policies {
    let Policies { retention, soft_delete } = policies;
    let status = |enabled: bool| if enabled { "enabled" } else { "disabled" }.to_owned();
    let retention_policy = api::RetentionPolicy {
        kind: UNTAGGED_MANIFESTS.to_owned(),
        status: status(retention.enabled),
        days: retention.days,
        last_updated_time: retention.updated_at.map(time),
    };
    let soft_delete_policy = api::SoftDeletePolicy {
        status: status(soft_delete.enabled),
        retention_days: soft_delete.days,
        last_updated_time: soft_delete.updated_at.map(time),
    };
    api::Policies { retention_policy, soft_delete_policy }
}

pub(crate) fn deleted_repository(found: &DeletedRepository) -> api::DeletedRepository {
    api::DeletedRepository {
        image_name: found.repository.to_string(),
        manifest_count: found.manifests,
        tag_count: found.tags,
    }
}

pub(crate) fn deleted_manifest(found: &DeletedManifest, days: u32) -> api::DeletedManifest {
    api::DeletedManifest {
        digest: found.digest.to_string(),
        image_size: found.image_size,
        created_time: time(found.pushed_at),
        deleted_time: time(found.deleted_at),
        expiry_time: time(expiry(found.deleted_at, days)),
        media_type: found.media_type.clone(),
        artifact_type: found.artifact_type.clone(),
        subject: found.subject.as_ref().map(ToString::to_string),
        tags: found.tags.iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn deleted_tag(found: &DeletedTag, days: u32) -> api::DeletedTag {
    api::DeletedTag {
        name: found.tag.to_string(),
        digest: found.digest.to_string(),
        created_time: time(found.created_at),
        deleted_time: time(found.deleted_at),
        expiry_time: time(expiry(found.deleted_at, days)),
    }
}

/// Until when something can be restored.
fn expiry(deleted_at: Millis, days: u32) -> Millis {
    deleted_at.saturating_add(Millis::from(days) * 24 * 60 * 60 * 1000)
}

pub(crate) fn restored(restored: &Restored) -> api::Restored {
    api::Restored {
        digest: restored.digest.to_string(),
        tag: restored.tag.as_ref().map(ToString::to_string),
        manifest_restored: restored.with_manifest,
        deleted_members: restored.deleted_members.iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn attributes(attributes: Attributes) -> api::Attributes {
    let Attributes { delete_enabled, write_enabled, read_enabled, list_enabled } = attributes;
    api::Attributes { delete_enabled, write_enabled, read_enabled, list_enabled }
}

pub(crate) fn deleted(deleted: Deleted) -> api::Deleted {
    api::Deleted { manifests_deleted: deleted.manifests, tags_deleted: deleted.tags }
}

pub(crate) fn garbage(report: &GcReport, dry_run: bool) -> api::GarbageReport {
    let blob = |(digest, size): &(oci::Digest, u64)| api::GarbageBlob {
        digest: digest.to_string(),
        size: *size,
    };
    let manifest =
        |(registry, repository, digest): &(RegistryName, RepositoryName, oci::Digest)| {
            api::GarbageManifest {
                registry: registry.to_string(),
                repository: repository.to_string(),
                digest: digest.to_string(),
            }
        };
    api::GarbageReport {
        dry_run,
        manifests: report.manifests.iter().map(manifest).collect(),
        blobs: report.blobs.iter().map(blob).collect(),
        cache_entries: report.cache_entries,
        uploads: report.uploads,
        bytes: report.bytes,
    }
}

pub(crate) fn import(
    imported: &Imported,
    request: &Import,
    login_server: &str,
) -> api::ImportReport {
    let tagged = request.tags.iter().map(|at| at.reference.clone());
    let untagged = (request.untagged.iter())
        .map(|repository| format!("{login_server}/{repository}@{}", imported.digest));
    api::ImportReport {
        digest: imported.digest.to_string(),
        media_type: imported.media_type.clone(),
        manifests: imported.manifests,
        referrers: imported.referrers,
        fetched: imported.fetched,
        images: tagged.chain(untagged).collect(),
    }
}

pub(crate) fn scrub(
    pass: Option<&ScrubPass>,
    stored: StoredSize,
    lost: &[LostBlob],
) -> api::ScrubReport {
    let damaged = |blob: &LostBlob| api::DamagedBlob {
        digest: blob.digest.to_string(),
        size: blob.size,
        repositories: blob
            .repositories
            .iter()
            .map(|(registry, repository)| api::RepositoryRef {
                registry: registry.to_string(),
                repository: repository.to_string(),
            })
            .collect(),
    };
    api::ScrubReport {
        started_time: pass.map(|pass| time(pass.started_at)),
        finished_time: pass.and_then(|pass| pass.finished_at).map(time),
        blobs: pass.map_or(0, |pass| pass.blobs),
        bytes: pass.map_or(0, |pass| pass.bytes),
        found: pass.map_or(0, |pass| pass.damaged),
        stored_blobs: stored.blobs,
        stored_bytes: stored.bytes,
        damaged: lost.iter().map(damaged).collect(),
    }
}

pub(crate) fn version(registries: &Registries) -> api::Version {
    let info = |(name, own): (&RegistryName, &OwnNames)| api::RegistryInfo {
        name: name.to_string(),
        login_server: own.login_server.clone(),
        aliases: own.aliases.clone(),
    };
    api::Version {
        version: env!("CARGO_PKG_VERSION").into(),
        registries: registries.iter().map(info).collect(),
    }
}

/// What a purge tells.
pub(crate) fn purge_record(record: Record, login_server: &str) -> api::PurgeRecord {
    match record {
        Record::Line(text) => api::PurgeRecord::Note(text),
        Record::Warning(text) => api::PurgeRecord::Warning(text),
        Record::Item { item, .. } => {
            let name = item.name(login_server);
            let Item { repository, tag, digest } = item;
            api::PurgeRecord::Item(api::PurgedItem {
                name,
                repository: repository.to_string(),
                tag: tag.map(|tag| tag.to_string()),
                digest: digest.to_string(),
            })
        }
    }
}
