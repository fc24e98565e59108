//! Names of users and groups, as an image's own `/etc/passwd` and `/etc/group` give them.
//!
//! Pure text: whoever calls has read the two files from the image. The server's own users
//! are never asked.

use std::num::ParseIntError;

/// What an image says of its users. A missing file is an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    users: Vec<UserLine>,
    groups: Vec<GroupLine>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct UserLine {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct GroupLine {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// A user that a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `gid` is one of them: a program must not gain rights by leaving its own group.
    pub(crate) additional_gids: Vec<u32>,
    /// From `/etc/passwd`, for `HOME`.
    pub(crate) home: Option<String>,
}

/// Who owns what `COPY` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Why a `USER` or `--chown` names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("there is no user `{0}` in the image's /etc/passwd")]
    UnknownUser(String),
    #[error("there is no group `{0}` in the image's /etc/group")]
    UnknownGroup(String),
    #[error("`{0}` is not a user, uid, `user:group` or `uid:gid`")]
    Malformed(String),
}

impl UserError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownUser(_) => {
                Some("create it with `RUN adduser`, or give a numeric uid".to_owned())
            }
            Self::UnknownGroup(_) => {
                Some("create it with `RUN addgroup`, or give a numeric gid".to_owned())
            }
            Self::Malformed(_) => None,
        }
    }
}

/// Which of the two files have to be read to know who somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AccountFiles {
    pub(crate) passwd: bool,
    pub(crate) group: bool,
}

impl AccountFiles {
    pub(crate) const BOTH: Self = Self { passwd: true, group: true };

    /// Those that [`Accounts::owner`] looks at.
    pub(crate) fn of_owner(chown: &str) -> Self {
        match split(chown) {
            // A number as a user is that number; as a group it may be a name too.
            Ok((name, group)) => Self { passwd: number(name).is_none(), group: group.is_some() },
            Err(_) => Self { passwd: false, group: false },
        }
    }

    pub(crate) fn are_none(self) -> bool {
        !self.passwd && !self.group
    }
}

/// A line is at most this long; longer ones are somebody's mischief and are skipped.
const LINE_LEN_MAX: usize = 64 << 10;

impl Accounts {
    /// Reads both files. Lines that are not of the format are skipped, as libc does.
    pub(crate) fn parse(passwd: &[u8], group: &[u8]) -> Self {
        Self {
            users: lines(passwd).filter_map(|line| user_line(&line)).collect(),
            groups: lines(group).filter_map(|line| group_line(&line)).collect(),
        }
    }

    /// Who runs as `user` (as `USER` gives it): `name`, `uid`, `name:group`, `uid:gid`.
    ///
    /// Without a group the user's own counts, and the groups that list the user; a uid that
    /// no line has gets group 0, as everywhere.
    pub(crate) fn identity(&self, user: &str) -> Result<Identity, UserError> {
        let (name, group) = split(user)?;
        let line = self.user(name);
        let uid = match (&line, number(name)) {
            (Some(line), _) => line.uid,
            (None, Some(uid)) => uid,
            (None, None) => return Err(UserError::UnknownUser(name.to_owned())),
        };
        let home = line.map(|line| line.home.clone()).filter(|home| !home.is_empty());
        if let Some(group) = group {
            let gid = self.group_id(group)?;
            return Ok(Identity { uid, gid, additional_gids: vec![gid], home });
        }
        let gid = line.map_or(0, |line| line.gid);
        let listed = line.map(|line| self.groups_of(&line.name, gid)).unwrap_or_default();
        let additional_gids = [vec![gid], listed].concat();
        Ok(Identity { uid, gid, additional_gids, home })
    }

    /// Who owns what is copied with `--chown`. Unlike a process, `--chown=uid` alone means
    /// the same number as group (the Dockerfile reference, *COPY --chown*); a name brings
    /// its user's group.
    pub(crate) fn owner(&self, chown: &str) -> Result<Owner, UserError> {
        let (name, group) = split(chown)?;
        let by_name = self.users.iter().find(|line| line.name == name);
        let (uid, own_gid) = match (number(name), by_name) {
            (Some(uid), _) => (uid, uid),
            (None, Some(line)) => (line.uid, line.gid),
            (None, None) => return Err(UserError::UnknownUser(name.to_owned())),
        };
        let gid = match group {
            Some(group) => self.group_id(group)?,
            None => own_gid,
        };
        Ok(Owner { uid, gid })
    }

    fn user(&self, name: &str) -> Option<&UserLine> {
        let by_name = self.users.iter().find(|line| line.name == name);
        by_name.or_else(|| {
            let uid = number(name)?;
            self.users.iter().find(|line| line.uid == uid)
        })
    }

    fn group_id(&self, name: &str) -> Result<u32, UserError> {
        match (self.groups.iter().find(|line| line.name == name), number(name)) {
            (Some(line), _) => Ok(line.gid),
            (None, Some(gid)) => Ok(gid),
            (None, None) => Err(UserError::UnknownGroup(name.to_owned())),
        }
    }

    fn groups_of(&self, user: &str, own: u32) -> Vec<u32> {
        let listed = self.groups.iter().filter(|line| line.members.iter().any(|m| m == user));
        let mut gids: Vec<u32> = listed.map(|line| line.gid).filter(|gid| *gid != own).collect();
        gids.sort_unstable();
        gids.dedup();
        gids
    }
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed: Result<u32, ParseIntError> = text.parse();
    // The largest number means "unchanged" to chown(2), so it can name nobody.
    parsed.ok().filter(|id| digits && *id != u32::MAX)
}

/// `user[:group]`; an empty user is root, an empty group is none.
fn split(text: &str) -> Result<(&str, Option<&str>), UserError> {
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if group.is_some_and(|group| group.contains(':')) {
        return Err(UserError::Malformed(text.to_owned()));
    }
    Ok((if name.is_empty() { "0" } else { name }, group))
}

fn lines(file: &[u8]) -> impl Iterator<Item = String> {
    file.split(|byte| *byte == b'\n')
        .filter(|line| line.len() <= LINE_LEN_MAX)
        .map(|line| String::from_utf8_lossy(line).trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn user_line(line: &str) -> Option<UserLine> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let _password = fields.next()?;
    let uid = number(fields.next()?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(UserLine { name, uid, gid, home })
}

fn group_line(line: &str) -> Option<GroupLine> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let _password = fields.next()?;
    let gid = number(fields.next()?)?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
    Some(GroupLine { name, gid, members })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n# note\nbroken\n\
            app:x:1000:1001:App:/home/app:/bin/sh\n7:x:70:71::/seven:\n";
        let group = b"root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:app\nstaff:x:50:\n";
        Accounts::parse(passwd, group)
    }

    fn identity(user: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let found = accounts().identity(user).unwrap();
        (found.uid, found.gid, found.additional_gids, found.home)
    }

    #[test]
    fn a_process_gets_the_groups_of_its_user() {
        let home = |text: &str| Some(text.to_owned());
        assert_eq!(identity(""), (0, 0, vec![0, 10], home("/root")));
        assert_eq!(identity("app"), (1000, 1001, vec![1001, 10, 29], home("/home/app")));
        assert_eq!(identity("1000"), (1000, 1001, vec![1001, 10, 29], home("/home/app")));
        assert_eq!(identity("app:staff"), (1000, 50, vec![50], home("/home/app")));
        assert_eq!(identity("app:5"), (1000, 5, vec![5], home("/home/app")));
        assert_eq!(identity("4242"), (4242, 0, vec![0], None));
        assert_eq!(identity("4242:17"), (4242, 17, vec![17], None));
        // A name wins over a number.
        assert_eq!(identity("7"), (70, 71, vec![71], home("/seven")));
    }

    #[test]
    fn a_copy_owner_without_group_takes_the_same_number() {
        let owner = |text: &str| accounts().owner(text).map(|owner| (owner.uid, owner.gid));
        assert_eq!(owner("app"), Ok((1000, 1001)));
        assert_eq!(owner("55"), Ok((55, 55)));
        assert_eq!(owner("55:staff"), Ok((55, 50)));
        assert_eq!(owner("app:9"), Ok((1000, 9)));
        assert_eq!(owner(":9"), Ok((0, 9)));
    }

    #[test]
    fn names_that_are_nobody_are_refused() {
        let accounts = accounts();
        assert_eq!(accounts.identity("nobody"), Err(UserError::UnknownUser("nobody".into())));
        assert_eq!(accounts.owner("app:nogroup"), Err(UserError::UnknownGroup("nogroup".into())));
        assert_eq!(accounts.owner("a:b:c"), Err(UserError::Malformed("a:b:c".into())));
        assert_eq!(accounts.owner("4294967295"), Err(UserError::UnknownUser("4294967295".into())));
    }

    #[test]
    fn an_owner_is_known_by_the_files_that_are_read() {
        let all = accounts();
        for (chown, passwd, group) in [
            ("app", true, false),
            ("app:staff", true, true),
            ("55", false, false),
            ("7", false, false),
            ("55:staff", false, true),
            ("55:7", false, true),
            (":9", false, true),
            ("a:b:c", false, false),
        ] {
            assert_eq!(AccountFiles::of_owner(chown), AccountFiles { passwd, group }, "{chown}");
            let read = Accounts {
                users: if passwd { all.users.clone() } else { Vec::new() },
                groups: if group { all.groups.clone() } else { Vec::new() },
            };
            assert_eq!(read.owner(chown), all.owner(chown), "{chown}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_files_and_any_name_give_a_value(passwd: Vec<u8>, group: Vec<u8>, name: String) {
            let accounts = Accounts::parse(&passwd, &group);
            let _ = accounts.identity(&name);
            let _ = accounts.owner(&name);
        }
    }
}
