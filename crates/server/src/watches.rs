//! Asks other registries what the tags are that tasks are built on, for as long as a server runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use control::{Asker, LoginText, RegistryLogin, TaskName, Watch, WatchAnswer, WatchedImage};
use futures_util::{FutureExt as _, StreamExt as _};
use oci::{Reference, RegistryName};
use remote::{Credentials, NotTold, Remote};
use task::SecretAddress;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::state::Shared;
use crate::triggers::{self, PERIOD, RETRY, until};

/// Registries that are asked at once.
const HOSTS_AT_ONCE: usize = 16;
/// How long a registry may take for all that is needed to tell what a tag is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long one registry is asked until others are looked at again.
const HOST_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at what is due, at least.
const PAUSE: Duration = Duration::from_millis(200);
/// Logins whose tokens are kept.
const LOGINS_MAX: usize = 200;

/// Asks for the tags that are due, until `shutdown`. Commands that serve themselves do not.
pub(crate) async fn ask(state: Shared, shutdown: CancellationToken) {
    let own = triggers::own_names(&state);
    let watcher = Watcher::default();
    let mut ended = state.runs.ends();
    if let Err(error) = state.triggers.watch_again(&own).boxed().await {
        tracing::error!(%error, "bases that are not watched could not be found");
    }
    while !shutdown.is_cancelled() {
        ended.mark_unchanged();
        let wait = tokio::select! {
            looked = watcher.look(&state).boxed() => match looked {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "other registries could not be asked for tags");
                    RETRY
                }
            },
            () = shutdown.cancelled() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(wait.max(PAUSE)) => (),
            // It may have told what its task is built on.
            _ = ended.changed() => tokio::time::sleep(PAUSE).await,
            () = shutdown.cancelled() => return,
        }
    }
}

/// With what other registries are asked.
#[derive(Default)]
struct Watcher {
    /// By host, user name and password: each has tokens of its own.
    logins: Mutex<HashMap<[String; 3], Remote>>,
}

impl Watcher {
    /// Asks for what is due, and says when to look again.
    async fn look(&self, state: &Shared) -> control::Result<Duration> {
        let mut hosts: BTreeMap<String, Vec<Watch>> = BTreeMap::new();
        for watch in state.triggers.due_watches().await? {
            hosts.entry(watch.host.clone()).or_default().push(watch);
        }
        let asking = hosts.into_values().map(|watches| self.ask_host(state, watches).boxed());
        futures_util::stream::iter(asking).for_each_concurrent(HOSTS_AT_ONCE, |asked| asked).await;
        let next = state.triggers.next_watch().await?;
        let wait = next.map_or(PERIOD, |next| until(next, state.clock.now()));
        Ok(wait.min(PERIOD))
    }

    /// Asks one registry, one question after another, until it does not answer: the rest stays due.
    async fn ask_host(&self, state: &Shared, watches: Vec<Watch>) {
        let deadline = Instant::now() + HOST_TIMEOUT;
        for watch in watches {
            // Others are not to wait for a slow one.
            if Instant::now() >= deadline {
                return;
            }
            let answer = self.answer(state, &watch).await;
            let goes_on = answer.rest.is_none()
                && !matches!(answer.image, WatchedImage::None { of_host: true, .. });
            if let Err(error) = state.triggers.watched(&watch, answer).await {
                tracing::error!(%error, host = %watch.host, "a tag is not compared");
            }
            if !goes_on {
                return;
            }
        }
    }

    async fn answer(&self, state: &Shared, watch: &Watch) -> WatchAnswer {
        let (host, repository, tag) = (&watch.host, &watch.repository, &watch.tag);
        let Ok(reference) = format!("{host}/{repository}:{tag}").parse::<Reference>() else {
            return nothing(format!("`{host}/{repository}:{tag}` is no name of an image"), false);
        };
        let mut why = nothing("nobody may ask for it".to_owned(), false);
        for asker in &watch.askers {
            // Boxed, as the reading of secrets below: the compiler takes minutes for the whole otherwise.
            let remote = match self.remote(state, watch, asker).boxed().await {
                Ok(remote) => remote,
                Err(reason) => {
                    why = nothing(reason, false);
                    continue;
                }
            };
            let asked = remote.ask_tag(&reference, watch.digest.as_ref());
            match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
                Ok(Ok(asked)) => {
                    let image = asked.image.map_or(WatchedImage::Same, |image| {
                        WatchedImage::Other { digest: image.digest, members: image.members }
                    });
                    return WatchAnswer { image, rest: asked.rest };
                }
                Ok(Err(told)) => {
                    why = not_told(&told);
                    // Somebody else would be told no more.
                    if told.is_of_host() {
                        return why;
                    }
                }
                Err(_) => {
                    let seconds = ANSWER_TIMEOUT.as_secs();
                    return nothing(format!("no answer within {seconds} seconds"), true);
                }
            }
        }
        why
    }

    /// What asks for a tag, or in words for people why nothing does.
    async fn remote(&self, state: &Shared, watch: &Watch, asker: &Asker) -> Result<Remote, String> {
        let Asker::Task { name, login } = asker else { return Ok(state.remote.clone()) };
        let found = credentials(state, &watch.registry, name, login).await?;
        let key = [watch.host.clone(), found.username.clone(), found.password.clone()];
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = logins.get(&key) {
            return Ok(remote.clone());
        }
        if logins.len() >= LOGINS_MAX {
            logins.clear();
        }
        let remote = state.remote.with_own_logins();
        remote.set_logins(BTreeMap::from([(watch.host.clone(), found)]));
        logins.insert(key, remote.clone());
        Ok(remote)
    }
}

/// The login of a task, as far as it can be had without a run: what is written in the task, or kept in the
/// registry's own store.
pub(crate) async fn credentials(
    state: &Shared,
    registry: &RegistryName,
    task: &TaskName,
    login: &RegistryLogin,
) -> Result<Credentials, String> {
    let RegistryLogin::Password { username, password, .. } = login else {
        return Err(format!(
            "the login of task `{task}` is an identity, which only a run can prove"
        ));
    };
    let username = login_text(state, (registry, task), username).await?;
    let password = login_text(state, (registry, task), password).await?;
    Ok(Credentials { username, password })
}

/// A part of such a login.
async fn login_text(
    state: &Shared,
    (registry, task): (&RegistryName, &TaskName),
    text: &LoginText,
) -> Result<String, String> {
    let secret = match text {
        LoginText::Plain(text) => return Ok(text.clone()),
        LoginText::Secret { secret } => secret,
    };
    let elsewhere = || format!("the login of task `{task}` is a secret that only a run can have");
    let Ok(SecretAddress::Stored(name)) = secret.parse::<SecretAddress>() else {
        return Err(elsewhere());
    };
    let name = name.parse().map_err(|_| elsewhere())?;
    let found = state.secrets.reveal(registry, &name).boxed().await.map_err(|error| {
        tracing::error!(%error, %name, "a secret cannot be read");
        "the store of secrets cannot be read".to_owned()
    })?;
    let found = found.filter(|(secret, _)| secret.is_for(Some(task)));
    Ok(found.ok_or_else(elsewhere)?.1.expose().to_owned())
}

fn not_told(told: &NotTold) -> WatchAnswer {
    let why = match told.error.hint() {
        Some(hint) => format!("{}; {hint}", told.error),
        None => told.error.to_string(),
    };
    let image = WatchedImage::None { why, of_host: told.is_of_host() };
    WatchAnswer { image, rest: told.rest }
}

fn nothing(why: String, of_host: bool) -> WatchAnswer {
    WatchAnswer { image: WatchedImage::None { why, of_host }, rest: None }
}
