//! User ids of containers: which of the machine's ids stand for those of an image.
//!
//! Root of a container is nobody on the machine. Each container has a range of 65536 ids for
//! itself, which no user of the machine has and no other container at the same time. Ids above,
//! which images seldom have, are moved by the same distance in all containers.
//!
//! On disk nothing changes: layers hold the image's own ids, and are seen through mounts that
//! translate them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{ContainerError, User, lock};

/// Where the ranges of containers begin, and their size.
const FIRST: u32 = 1_000_000_000;
const SIZE: u32 = 1 << 16;

/// Containers that a server can have at the same time, and servers on a machine.
const RANGES_MAX: u32 = 256;
const SERVERS_MAX: u32 = 32;

/// Where ids from [`SIZE`] on begin; those from [`IDS_MAX`] on cannot be used in a container.
const HIGH_FIRST: u32 = 2_000_000_000 + SIZE;
pub(crate) const IDS_MAX: u32 = 1 << 31;

/// Who has on disk what an overlay makes for itself, as root of the machine: marks of deletion,
/// mostly. An id that no container can use.
pub(crate) const MOUNTER: u32 = 4_000_000_000;

/// `size` ids from `container_id` on are those of the machine from `host_id` on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(crate) container_id: u32,
    #[serde(rename = "hostID")]
    pub(crate) host_id: u32,
    pub(crate) size: u32,
}

/// How a container's ids stand for those of this process; without any they are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mappings {
    pub(crate) uids: Vec<IdMapping>,
    pub(crate) gids: Vec<IdMapping>,
}

impl Mappings {
    /// The ids of a container whose range begins at `base`.
    pub(crate) fn range(base: u32) -> Self {
        let uids = vec![
            IdMapping { container_id: 0, host_id: base, size: SIZE },
            IdMapping { container_id: SIZE, host_id: HIGH_FIRST, size: IDS_MAX - SIZE },
        ];
        Self { gids: uids.clone(), uids }
    }

    /// Who is root of the container.
    pub(crate) fn root(&self) -> u32 {
        host_id(&self.uids, 0).unwrap_or(0)
    }

    pub(crate) fn group(&self, id: u32) -> Option<u32> {
        host_id(&self.gids, id)
    }

    /// The first id of a user that there is not.
    pub(crate) fn lacking(&self, user: &User) -> Option<u32> {
        let has = |map: &[IdMapping], id: u32| host_id(map, id).is_some();
        let gids = [user.gid].into_iter().chain(user.additional_gids.iter().copied());
        let gid = gids.into_iter().find(|gid| !has(&self.gids, *gid));
        Some(user.uid).filter(|uid| !has(&self.uids, *uid)).or(gid)
    }
}

/// The machine's id for one of a container; without mappings they are the same.
pub(crate) fn host_id(mappings: &[IdMapping], id: u32) -> Option<u32> {
    if mappings.is_empty() {
        return Some(id);
    }
    mappings.iter().find_map(|mapping| {
        let step = id.checked_sub(mapping.container_id).filter(|step| *step < mapping.size)?;
        mapping.host_id.checked_add(step)
    })
}

/// The ranges of this server.
#[derive(Debug)]
pub(crate) struct Ranges {
    first: u32,
    taken: Mutex<BTreeSet<u32>>,
    /// Held as long as the ranges are ours.
    _lock: File,
}

/// One container's range; free again when dropped.
#[derive(Debug)]
pub(crate) struct Range {
    ranges: Arc<Ranges>,
    number: u32,
}

impl Ranges {
    /// Takes ranges that no other server of the machine has.
    pub(crate) fn claim() -> io::Result<Self> {
        fs::create_dir_all(lock::FOLDER)?;
        for number in 0..SERVERS_MAX {
            match lock::try_lock(&Path::new(lock::FOLDER).join(format!("users-{number}.lock"))) {
                Ok(lock) => {
                    let first = FIRST + number * RANGES_MAX * SIZE;
                    return Ok(Self { first, taken: Mutex::default(), _lock: lock });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{SERVERS_MAX} other servers of this machine have ranges")))
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(self: &Arc<Self>) -> Result<Range, ContainerError> {
        let mut taken = self.taken();
        let number = (0..RANGES_MAX).find(|number| !taken.contains(number));
        let number = number.ok_or_else(|| ContainerError::Setup {
            doing: "give the container user ids".to_owned(),
            reason: format!("{RANGES_MAX} containers have all there are"),
        })?;
        taken.insert(number);
        Ok(Range { ranges: Arc::clone(self), number })
    }
}

impl Range {
    /// The id of the container's root.
    pub(crate) fn base(&self) -> u32 {
        self.ranges.first + self.number * SIZE
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        self.ranges.taken().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_containers_do_not_meet_each_other_or_those_of_the_machine() {
        let last_server = FIRST + (SERVERS_MAX - 1) * RANGES_MAX * SIZE;
        let last = Mappings::range(last_server + (RANGES_MAX - 1) * SIZE).uids;
        assert_eq!(host_id(&last, 0), Some(1_536_805_376));
        assert_eq!(host_id(&last, SIZE - 1), Some(1_536_870_911));
        assert_eq!(host_id(&last, SIZE), Some(2_000_065_536));
        assert_eq!(host_id(&last, IDS_MAX - 1), Some(4_147_483_647));
        assert_eq!(host_id(&last, IDS_MAX), None);
        assert_eq!(host_id(&last, MOUNTER), None);
        assert_eq!(host_id(&[], 7), Some(7));
    }
}
