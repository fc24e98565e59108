//! The values of secrets that runs may have: from the registry's own store, files, the environment
//! (identity-and-secrets.md section 4).

mod vaults;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use control::{AuditEntry, Run, RunLog, SecretName, Secrets, run_user};
use engine::{SecretError, SecretSource};
use oci::RegistryName;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use task::{Secret, SecretAddress, SecretText};

use crate::audit::Auditor;
use crate::issuer::Issuer;
use crate::settings::{self, Settings};
use vaults::Vaults;

/// Bytes of a value.
const VALUE_MAX: u64 = 64 << 10;

/// Where a server gets the secrets of its runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Providers {
    store: Secrets,
    places: Arc<BTreeMap<RegistryName, Places>>,
    vaults: Arc<Vaults>,
    auditor: Auditor,
}

/// What a registry's runs may have of the server's machine.
struct Places {
    folder: Option<PathBuf>,
    variables: BTreeMap<String, settings::Secret>,
    namespaces: Vec<String>,
}

impl Providers {
    pub(crate) fn new(
        settings: &Settings,
        store: Secrets,
        issuer: Issuer,
        auditor: Auditor,
    ) -> reqwest::Result<Self> {
        let places = settings.registries.iter().map(|(name, settings)| {
            let places = Places {
                folder: settings.secret_folder.clone(),
                variables: settings.secret_variables.clone(),
                namespaces: settings.secret_namespaces.clone(),
            };
            (name.clone(), places)
        });
        let places = Arc::new(places.collect());
        let vaults = Vaults::new(&settings.vaults, &settings.kubernetes, issuer)?;
        Ok(Self { store, places, vaults: Arc::new(vaults), auditor })
    }

    /// The value of a secret for an attempt of a run; whether it is given is written down first.
    pub(crate) async fn fetch(
        &self,
        attempt: (&Run, i64, &RunLog),
        secret: &Secret,
    ) -> Result<SecretText, SecretError> {
        let (run, epoch, log) = attempt;
        let value = self.value(run, secret).await;
        let task = run.task.as_ref().map(|task| format!(" for task {task}")).unwrap_or_default();
        let entry = AuditEntry {
            registry: Some(run.registry.clone()),
            principal: run_user(&run.registry, run.id, epoch),
            action: "secret.use".to_owned(),
            // A template may have put anything into it.
            target: log.masked(&format!("{}{task}", secret.address)),
            outcome: match &value {
                Ok(_) => "given".to_owned(),
                Err(SecretError::Refused(reason)) => log.masked(&format!("refused: {reason}")),
                Err(SecretError::Unavailable(reason)) => {
                    log.masked(&format!("not available: {reason}"))
                }
            },
        };
        if let Err(error) = self.auditor.log.append(entry).await {
            tracing::error!(%error, "the use of a secret is not written to the audit log");
            return Err(unavailable("its use cannot be written to the audit log"));
        }
        value
    }

    async fn value(&self, run: &Run, secret: &Secret) -> Result<SecretText, SecretError> {
        let places = self.places.get(&run.registry);
        match &secret.address {
            SecretAddress::Stored(name) => self.stored(run, name).await,
            SecretAddress::Environment(name) => {
                let value = places.and_then(|places| places.variables.get(name));
                let value = value.map(|value| SecretText::new(value.reveal()));
                value.ok_or_else(|| {
                    refused(format!(
                        "variable `{name}` is not set, or not in `registry.{}.secret_variables`",
                        run.registry
                    ))
                })
            }
            SecretAddress::File(path) => {
                let folder = places.and_then(|places| places.folder.clone());
                let folder = folder.ok_or_else(|| {
                    refused(format!("`registry.{}.secret_folder` is not set", run.registry))
                })?;
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&folder, &path)).await;
                read.unwrap_or_else(|_| Err(unavailable("its file cannot be read")))
            }
            SecretAddress::KeyVault(wanted) => self.vaults.key_vault(run, secret, wanted).await,
            SecretAddress::Vault(wanted) => self.vaults.field(run, wanted).await,
            SecretAddress::Kubernetes { namespace, name, key } => {
                let namespaces = places.map_or(&[][..], |places| &places.namespaces);
                self.vaults.kubernetes(&run.registry, namespaces, [namespace, name, key]).await
            }
        }
    }

    async fn stored(&self, run: &Run, name: &str) -> Result<SecretText, SecretError> {
        // Whether it is there is not told to runs that may not have it.
        let none = || {
            let task = run.task.as_ref().map_or_else(
                || "runs that are of no task".to_owned(),
                |task| format!("task `{task}`"),
            );
            refused(format!("the registry has no secret `{name}` for {task}"))
        };
        let name: SecretName = name.parse().map_err(|_| none())?;
        let found = self.store.reveal(&run.registry, &name).await.map_err(|error| {
            tracing::error!(%error, %name, "a secret cannot be read");
            unavailable("the store of secrets cannot be read")
        })?;
        let (_, value) =
            found.filter(|(secret, _)| secret.is_for(run.task.as_ref())).ok_or_else(none)?;
        Ok(value)
    }
}

/// Reads a file of a folder, and of nowhere else, without the end of its last line.
fn read_file(folder: &Path, path: &str) -> Result<SecretText, SecretError> {
    let gone = || refused(format!("the server has no file `{path}` for secrets"));
    let open = |folder: &File| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(folder, path, flags, Mode::empty(), within)
    };
    let folder = File::open(folder).map_err(|error| {
        tracing::error!(%error, folder = %folder.display(), "the folder of secrets is not there");
        unavailable("the folder of secrets cannot be opened")
    })?;
    let file = File::from(open(&folder).map_err(|_| gone())?);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(gone());
    }
    let mut text = String::new();
    let read = file.take(VALUE_MAX + 1).read_to_string(&mut text);
    if text.len() as u64 > VALUE_MAX {
        return Err(refused(format!("it has more than {VALUE_MAX} bytes")));
    }
    match read {
        Ok(_) => (),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(refused("it is not UTF-8 text".to_owned()));
        }
        Err(_) => return Err(unavailable("its file cannot be read")),
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(SecretText::new(text.strip_suffix('\r').unwrap_or(text)))
}

fn refused(reason: String) -> SecretError {
    SecretError::Refused(reason)
}

fn unavailable(reason: &str) -> SecretError {
    SecretError::Unavailable(reason.to_owned())
}

/// The secrets of one attempt that the server executes itself.
pub(crate) struct OwnSecrets {
    pub(crate) providers: Providers,
    pub(crate) run: Run,
    pub(crate) epoch: i64,
    pub(crate) log: RunLog,
}

impl std::fmt::Debug for OwnSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "secrets of run {}", self.run.id)
    }
}

#[async_trait]
impl SecretSource for OwnSecrets {
    async fn fetch(&self, secret: &Secret) -> Result<SecretText, SecretError> {
        self.providers.fetch((&self.run, self.epoch, &self.log), secret).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(folder: &Path, path: &str, expected: &str) {
        let read = read_file(folder, path);
        let read = read.map_or_else(|error| error.to_string(), |text| text.expose().to_owned());
        assert_eq!(read, expected, "{path}");
    }

    #[test]
    fn files_are_read_from_their_folder_only() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("secrets");
        std::fs::create_dir_all(folder.join("..data")).unwrap();
        std::fs::write(folder.join("plain"), "hunter2\n").unwrap();
        std::fs::write(folder.join("lines"), "a\nb\n\n").unwrap();
        std::fs::write(folder.join("..data/token"), "hunter3").unwrap();
        std::fs::write(folder.join("large"), "x".repeat(VALUE_MAX as usize + 1)).unwrap();
        std::fs::write(folder.join("binary"), [0xff, 0xfe]).unwrap();
        std::fs::write(root.path().join("outside"), "not for runs").unwrap();
        // As the cluster mounts secrets.
        std::os::unix::fs::symlink("..data/token", folder.join("token")).unwrap();
        std::os::unix::fs::symlink("../outside", folder.join("up")).unwrap();
        std::os::unix::fs::symlink(root.path().join("outside"), folder.join("away")).unwrap();
        check(&folder, "plain", "hunter2");
        check(&folder, "lines", "a\nb\n");
        check(&folder, "token", "hunter3");
        check(&folder, "large", "it has more than 65536 bytes");
        check(&folder, "binary", "it is not UTF-8 text");
        for bad in ["up", "away", "../outside", "missing", "..data", "/etc/hostname"] {
            check(&folder, bad, &format!("the server has no file `{bad}` for secrets"));
        }
        check(&root.path().join("none"), "x", "the folder of secrets cannot be opened");
    }
}
