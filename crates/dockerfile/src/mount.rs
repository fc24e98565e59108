//! `RUN --mount`: what a command sees besides the image.

use crate::instruction::{MountFlag, Word};
use crate::path::absolute;
use crate::plan::Source;
use crate::span::{DockerfileError, Span, nearest};

/// One `--mount`, its words expanded and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    pub kind: MountKind,
    pub at: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MountKind {
    /// Files of the context, a stage or an image. What is written to them is lost.
    Bind {
        /// `None`: the build context.
        from: Option<Source>,
        /// Relative to the root of what it is from, cleaned, no leading slash.
        source: String,
        target: String,
        read_only: bool,
    },
    /// A folder that lives longer than the build.
    Cache {
        /// Names the folder.
        id: String,
        sharing: Sharing,
        /// What a new folder holds; `None`: nothing.
        from: Option<Source>,
        source: String,
        target: String,
        read_only: bool,
        owner: FileOwner,
    },
    Tmpfs {
        target: String,
        /// In bytes.
        size: Option<u64>,
    },
    /// A value that the caller of the build has, as a file, a variable, or both.
    Secret {
        id: String,
        target: Option<String>,
        env: Option<String>,
        required: bool,
        owner: FileOwner,
    },
    /// The socket of an agent that has keys.
    Ssh {
        id: String,
        /// `None`: somewhere, as `SSH_AUTH_SOCK` says.
        target: Option<String>,
        required: bool,
        owner: FileOwner,
    },
}

/// Who may use what a mount brings; absent: as its kind has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileOwner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<u32>,
}

/// What commands that use one cache folder at once get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// One folder for all.
    #[default]
    Shared,
    /// A folder each.
    Private,
    /// One after another.
    Locked,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "size",
    "id",
    "sharing",
    "mode",
    "uid",
    "gid",
    "env",
];

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];

/// The fields of a flag, still of any kind.
#[derive(Default)]
struct Fields {
    kind: Option<&'static str>,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    required: Option<bool>,
    size: Option<u64>,
    id: Option<String>,
    sharing: Option<Sharing>,
    env: Option<String>,
    owner: FileOwner,
}

/// Understands a flag. `from` is what its `from` stands for, `expand` resolves words.
pub(crate) fn mount(
    flag: &MountFlag,
    from: Option<Source>,
    cwd: &str,
    expand: &dyn Fn(&Word) -> Result<String, DockerfileError>,
) -> Result<Mount, DockerfileError> {
    let refuse = |message: String| DockerfileError::new(flag.at, message);
    let fields = fields(flag, expand)?;
    let kind = fields.kind.unwrap_or("bind");
    let target = || -> Result<String, DockerfileError> {
        let Some(target) = fields.target.as_deref().filter(|target| !target.is_empty()) else {
            return Err(refuse(format!("a mount of type `{kind}` needs a `target`")));
        };
        match absolute(cwd, target) {
            root if root == "/" => Err(refuse("a mount cannot cover `/`".to_owned())),
            target => Ok(target),
        }
    };
    let source = || {
        let source = absolute("/", fields.source.as_deref().unwrap_or(""));
        source.trim_start_matches('/').to_owned()
    };
    let target_if_any = || fields.target.as_ref().map(|target| absolute(cwd, target));
    let kind = match kind {
        "bind" => MountKind::Bind {
            from,
            source: source(),
            target: target()?,
            read_only: fields.read_only.unwrap_or(true),
        },
        "cache" => {
            let target = target()?;
            MountKind::Cache {
                id: fields.id.clone().filter(|id| !id.is_empty()).unwrap_or(target.clone()),
                sharing: fields.sharing.unwrap_or_default(),
                from,
                source: source(),
                target,
                read_only: fields.read_only.unwrap_or(false),
                owner: fields.owner,
            }
        }
        "tmpfs" => MountKind::Tmpfs { target: target()?, size: fields.size },
        "secret" => {
            let id = match (&fields.source, &fields.id, &fields.target) {
                (Some(_), Some(_), _) => {
                    return Err(refuse("a secret has a `source` or an `id`, not both".to_owned()));
                }
                (Some(id), None, _) | (None, Some(id), _) => id.clone(),
                (None, None, Some(target)) => last_part(target),
                (None, None, None) => {
                    return Err(refuse("a mount of type `secret` needs an `id`".to_owned()));
                }
            };
            let target = match (&fields.target, &fields.env) {
                (None, None) => Some(format!("/run/secrets/{}", last_part(&id))),
                _ => target_if_any(),
            };
            let env = fields.env.clone().map(|env| if env.is_empty() { id.clone() } else { env });
            let required = fields.required.unwrap_or(false);
            MountKind::Secret { id, target, env, required, owner: fields.owner }
        }
        _ => {
            if fields.source.is_some() {
                return Err(refuse("a mount of type `ssh` has no `source`".to_owned()));
            }
            MountKind::Ssh {
                id: fields.id.clone().filter(|id| !id.is_empty()).unwrap_or("default".to_owned()),
                target: target_if_any(),
                required: fields.required.unwrap_or(false),
                owner: fields.owner,
            }
        }
    };
    Ok(Mount { kind, at: flag.at })
}

fn last_part(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

fn fields(
    flag: &MountFlag,
    expand: &dyn Fn(&Word) -> Result<String, DockerfileError>,
) -> Result<Fields, DockerfileError> {
    let refuse = |message: String| DockerfileError::new(flag.at, message);
    let mut fields = Fields::default();
    let mut has_from = false;
    for (key, value) in &flag.fields {
        let key = key.as_str();
        if !KEYS.contains(&key) {
            let error = refuse(format!("a mount has no field `{key}`"));
            return Err(match nearest(key, KEYS) {
                Some(meant) => error.with_hint(format!("did you mean `{meant}`?")),
                None => error,
            });
        }
        let value = match value {
            Some(value) => Some(expand(&Word { text: value.clone(), at: flag.at })?),
            None => None,
        };
        let kind = fields.kind.unwrap_or("bind");
        let wrong_kind = || refuse(format!("a mount of type `{kind}` has no `{key}`"));
        let Some(value) = value else {
            match key {
                "readonly" | "ro" => fields.read_only = Some(true),
                "readwrite" | "rw" => fields.read_only = Some(false),
                "required" if matches!(kind, "secret" | "ssh") => fields.required = Some(true),
                "required" => return Err(wrong_kind()),
                _ => return Err(refuse(format!("`{key}` of a mount needs a value: `{key}=...`"))),
            }
            continue;
        };
        let invalid = || refuse(format!("`{key}={value}` of a mount is not valid"));
        let number = || value.parse::<u32>().map_err(|_| invalid());
        match key {
            "type" => {
                let lower = value.to_lowercase();
                let known = TYPES.into_iter().find(|known| *known == lower);
                fields.kind = Some(known.ok_or_else(|| {
                    let error = refuse(format!("there is no mount of type `{value}`"));
                    match nearest(&value, TYPES) {
                        Some(meant) => error.with_hint(format!("did you mean `{meant}`?")),
                        None => error,
                    }
                })?);
            }
            "from" => has_from = true,
            "source" | "src" => fields.source = Some(value),
            "target" | "dst" | "destination" => fields.target = Some(value),
            "readonly" | "ro" => fields.read_only = Some(boolean(&value).ok_or_else(invalid)?),
            "readwrite" | "rw" => fields.read_only = Some(!boolean(&value).ok_or_else(invalid)?),
            "required" if matches!(kind, "secret" | "ssh") => {
                fields.required = Some(boolean(&value).ok_or_else(invalid)?);
            }
            "size" if kind == "tmpfs" => fields.size = Some(bytes(&value).ok_or_else(invalid)?),
            "required" | "size" => return Err(wrong_kind()),
            "id" => fields.id = Some(value),
            "sharing" => {
                fields.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        let error = invalid();
                        return Err(error.with_hint("`sharing` is shared, private or locked"));
                    }
                });
            }
            "mode" => {
                let mode = u32::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
                fields.owner.mode = Some(mode.ok_or_else(invalid)?);
            }
            "uid" => fields.owner.uid = Some(number()?),
            "gid" => fields.owner.gid = Some(number()?),
            _ => fields.env = Some(value),
        }
    }
    let kind = fields.kind.unwrap_or("bind");
    let wrong = [
        ("mode", fields.owner.mode.is_some() && matches!(kind, "bind" | "tmpfs")),
        ("uid", fields.owner.uid.is_some() && matches!(kind, "bind" | "tmpfs")),
        ("gid", fields.owner.gid.is_some() && matches!(kind, "bind" | "tmpfs")),
        ("sharing", fields.sharing.is_some() && kind != "cache"),
        ("from", has_from && matches!(kind, "secret" | "ssh" | "tmpfs")),
        ("env", fields.env.is_some() && kind != "secret"),
    ];
    match wrong.iter().find(|(_, is_wrong)| *is_wrong) {
        Some((key, _)) => Err(refuse(format!("a mount of type `{kind}` has no `{key}`"))),
        None => Ok(fields),
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `64m`, `1.5g`, `1073741824`, `10MiB`: binary units.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let size = number * (1_u64 << shift) as f64;
    // Larger sizes are not exact in a floating-point number, and no machine has them.
    (size <= 2_f64.powi(53)).then_some(size as u64)
}
