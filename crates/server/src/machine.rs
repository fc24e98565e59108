//! What the runs of a process share of its machine: containers, layers, downloads, bounds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use builder::{
    BaseImages, Builder, CacheFolders, CatalogCache, ImagePolicy, InFlight, Layers, OwnNames,
    PermittedImages, RunPolicy, TrustDomain,
};
use container::{DiskLimit, Limits, Runtime, RuntimeSettings};
use engine::{Engine, Housekeeper, ImagesOf, Publisher, PushPolicy};
use oci::RegistryName;
use remote::{DownloadSettings, Downloads, Reach, Remote};
use store::{Catalog, DataDir};
use task::AliasImages;
use tokio::sync::Semaphore;

use crate::ServeError;
use crate::app::context_limits;
use crate::egress;
use crate::settings::{BuildSettings, Settings};

/// One per process.
pub(crate) struct Machine {
    catalog: Catalog,
    layers: Arc<Layers>,
    runtime: Option<Arc<Runtime>>,
    runs: Arc<Semaphore>,
    cache_folders: Arc<CacheFolders>,
    downloads: Arc<Downloads>,
    in_flight: Arc<InFlight>,
    policy: RunPolicy,
    workspaces: PathBuf,
    context_limits: engine::ContextLimits,
    limits: Limits,
    egress: Vec<String>,
    image_policy: Arc<ImagePolicy>,
    alias_images: AliasImages,
    shell_image: String,
}

/// Where runs have their images from, and where they bring them.
pub(crate) struct Place {
    pub(crate) registry: RegistryName,
    pub(crate) own: OwnNames,
    pub(crate) images: Arc<ImagesOf>,
    pub(crate) remote: Remote,
    pub(crate) pushes: PushPolicy,
    pub(crate) publisher: Arc<dyn Publisher>,
    pub(crate) housekeeper: Arc<dyn Housekeeper>,
}

impl Machine {
    /// Opens what builds need of this machine. `notices` are for the operator.
    pub(crate) async fn open(
        settings: &Settings,
        catalog: Catalog,
        layers: Arc<Layers>,
        folder: &DataDir,
        notices: &mut Vec<String>,
    ) -> Result<Self, ServeError> {
        let runtime = open_runtime(settings, folder.path()).await;
        let limits = container_limits(&settings.build);
        notices.extend(runtime.as_ref().and_then(|runtime| runtime.unlimited(&limits)));
        let caches = folder.snapshots().join("mounts");
        let cache_folders = CacheFolders::open(&caches, settings.build.cache_mounts_size_max)
            .map_err(ServeError::starting("open the folder of cache mounts"))?;
        let downloads = Downloads::new(DownloadSettings {
            size_max: settings.limits.download_size_max,
            reach: reach(settings),
            known_hosts: settings.build.git_known_hosts.clone(),
            ..DownloadSettings::default()
        });
        let downloads = downloads.map_err(ServeError::starting("prepare for fetching files"))?;
        let workspaces = folder.path().join("workspaces");
        remove_old_workspaces(&workspaces);
        let shell_image = settings.build.shell_image.as_ref();
        Ok(Self {
            catalog,
            layers,
            runtime,
            runs: Arc::new(Semaphore::new(settings.server.worker_threads.max(2))),
            cache_folders,
            downloads: Arc::new(downloads),
            in_flight: Arc::new(InFlight::default()),
            policy: RunPolicy {
                host_network: settings.build.allow_host_network,
                insecure: settings.build.allow_insecure,
            },
            workspaces,
            context_limits: context_limits(settings),
            limits,
            egress: settings.build.egress.clone(),
            image_policy: Arc::new(settings.build.images.clone()),
            alias_images: settings.tasks.alias_images.clone(),
            shell_image: shell_image.unwrap_or(&settings.tasks.alias_images.bash).clone(),
        })
    }

    /// The engine for the runs of a registry.
    pub(crate) fn engine(&self, place: Place) -> Engine {
        let (catalog, registry) = (self.catalog.clone(), &place.registry);
        let cache = CatalogCache::new(catalog.clone(), registry, &TrustDomain::Trusted);
        let images = self.permitted(place.images, &place.own);
        let mut engine = Engine {
            builder: Arc::new(Builder {
                blobs: Arc::clone(catalog.blobs()),
                images: images(&place.remote),
                cache: Arc::new(cache),
                layers: Arc::clone(&self.layers),
                runtime: self.runtime.clone(),
                runs: Arc::clone(&self.runs),
                cache_folders: Arc::clone(&self.cache_folders),
                downloads: Arc::clone(&self.downloads),
                policy: self.policy,
                in_flight: Arc::clone(&self.in_flight),
            }),
            catalog,
            workspaces: self.workspaces.join(registry.as_str()),
            registry: place.registry,
            own: place.own,
            context_limits: self.context_limits,
            container_limits: self.limits.clone(),
            allow_host_network: self.policy.host_network,
            remote: place.remote,
            images,
            pushes: place.pushes,
            publisher: place.publisher,
            housekeeper: place.housekeeper,
            alias_images: self.alias_images.clone(),
            shell_image: self.shell_image.clone(),
        };
        egress::bound_all(&mut engine, &self.egress);
        engine
    }

    /// Only the images that the policy has, if it has any.
    fn permitted(&self, all: Arc<ImagesOf>, own: &OwnNames) -> Arc<ImagesOf> {
        if self.image_policy.is_open() {
            return all;
        }
        let (policy, own) = (Arc::clone(&self.image_policy), own.clone());
        let blobs = Arc::clone(self.catalog.blobs());
        Arc::new(move |remote| {
            let (policy, own, blobs) = (Arc::clone(&policy), own.clone(), Arc::clone(&blobs));
            let images = all(remote);
            Arc::new(PermittedImages { images, policy, own, blobs }) as Arc<dyn BaseImages>
        })
    }

    /// Waits until nothing is cleared away any more.
    pub(crate) async fn idle(&self) {
        if let Some(runtime) = &self.runtime {
            runtime.idle().await;
        }
        self.downloads.idle().await;
        self.layers.removals().idle().await;
    }
}

/// Where those may have things fetched from who use this machine.
pub(crate) fn reach(settings: &Settings) -> Reach {
    Reach {
        allowed: settings.build.allow_addresses.clone(),
        bridges: container::BRIDGES.to_owned(),
        proxies: settings.build.proxies.clone(),
    }
}

/// Removes what a killed server has left, since the folder has one owner; in a thread of its own, for
/// it may be much.
fn remove_old_workspaces(workspaces: &Path) {
    let old = workspaces.with_extension("old");
    // There is one already if the last removal was cut off: what is new then waits for the next start.
    let _nothing_there_or_no_room = std::fs::rename(workspaces, &old);
    std::thread::spawn(move || {
        if let Err(error) = container::remove_tree(&old) {
            tracing::warn!(path = %old.display(), %error, "workspaces of earlier runs not removed");
        }
    });
}

/// Without a runtime builds work that have no `RUN`; those that do are refused.
async fn open_runtime(settings: &Settings, data: &Path) -> Option<Arc<Runtime>> {
    let helper = match container::program() {
        Ok(helper) => helper,
        Err(error) => {
            tracing::warn!(%error, "this program's own file is not known: `RUN` is not possible");
            return None;
        }
    };
    let runtime_settings = RuntimeSettings {
        external: settings.build.runtime.clone(),
        helper,
        state_dir: data.join("containers"),
        subnet: settings.network.subnet.clone(),
        user_namespaces: settings.build.user_namespaces,
        disk_reserve: settings.build.disk_reserve,
    };
    match Runtime::new(runtime_settings).await {
        Ok(runtime) => Some(Arc::new(runtime)),
        Err(error) => {
            tracing::warn!(%error, "containers cannot be run here: `RUN` is not possible");
            None
        }
    }
}

fn container_limits(settings: &BuildSettings) -> Limits {
    Limits {
        memory: settings.memory,
        pids: settings.pids,
        cpus: settings.cpus,
        disk: DiskLimit { size_max: settings.disk, besides: Vec::new() },
        ..Limits::default()
    }
}
