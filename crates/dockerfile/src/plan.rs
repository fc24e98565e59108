//! Instructions to stages: which are needed, and what each waits for.

use std::collections::{BTreeMap, BTreeSet};

use oci::Platform;

use crate::instruction::{From, Instruction, InstructionKind, Word};
use crate::parse::Dockerfile;
use crate::span::{DockerfileError, Span, nearest};
use crate::word::{Variables, expand};

type Result<T> = std::result::Result<T, DockerfileError>;

/// What a build was asked for, as far as planning goes.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// `--build-arg`; also those that the Dockerfile does not declare (the caller warns of
    /// [`Plan::unused_args`]).
    pub build_args: BTreeMap<String, String>,
    /// Stage name or number; the last stage if absent.
    pub target: Option<String>,
    /// Sets `TARGETPLATFORM` and its parts.
    pub platform: Platform,
    /// Sets `BUILDPLATFORM` and its parts.
    pub build_platform: Platform,
}

/// Index into [`Plan::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StageId(pub usize);

/// The stages that a build needs, in an order in which each comes after those it uses.
#[derive(Debug, Clone)]
pub struct Plan {
    pub stages: Vec<StagePlan>,
    pub target: StageId,
    /// Build arguments that no `ARG` declares.
    pub unused_args: Vec<String>,
    /// Notes for the user with positions.
    pub warnings: Vec<DockerfileError>,
}

/// Where a stage starts, or a `COPY --from` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Scratch,
    Stage(StageId),
    /// An image by reference; its platform if `FROM --platform` says so.
    Image {
        reference: oci::Reference,
        platform: Option<Platform>,
    },
}

/// One stage, its `FROM` resolved.
#[derive(Debug, Clone)]
pub struct StagePlan {
    /// Position in the file, counted from 0, for `--target 1` and messages.
    pub number: usize,
    /// The name after `AS`.
    pub name: Option<String>,
    pub base: Source,
    /// Where its `FROM` stands.
    pub at: Span,
    /// Everything it reads from: base first, then `COPY --from`s.
    pub sources: Vec<Source>,
    pub(crate) instructions: Vec<Instruction>,
    /// What each `COPY` or `ADD` reads, in their order; `None`: the context.
    pub(crate) copies: Vec<Option<Source>>,
    pub(crate) escape: char,
    pub(crate) build_args: BTreeMap<String, String>,
    /// Values that a stage's `ARG name` takes over: global arguments and platform words.
    pub(crate) inherited: BTreeMap<String, String>,
}

/// A build of the whole proxy family may get these without declaring them; they are not part
/// of cache keys or history.
pub(crate) const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A stage as written, before it is known whether it is needed.
struct Draft<'a> {
    from: &'a From,
    at: Span,
    base: Source,
    instructions: &'a [Instruction],
    copies: Vec<Option<Source>>,
}

impl Draft<'_> {
    fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.base).chain(self.copies.iter().flatten())
    }
}

impl Variables for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }
}

/// Resolves stages, and keeps those that the target needs.
pub fn plan(dockerfile: &Dockerfile, options: &PlanOptions) -> Result<Plan> {
    let first =
        dockerfile.instructions.iter().position(|i| matches!(i.kind, InstructionKind::From(_)));
    let (head, body) = dockerfile.instructions.split_at(first.unwrap_or(0));
    let platform_args = platform_args(options);
    let globals = globals(head, dockerfile.escape, options, &platform_args)?;
    let inherited: BTreeMap<String, String> = platform_args.into_iter().chain(globals).collect();
    let drafts = drafts(body, dockerfile.escape, &inherited)?;
    let target = target(&drafts, options.target.as_deref())?;
    let needed = needed(&drafts, target);
    let renumber = |source: &Source| match source {
        Source::Stage(StageId(number)) => Source::Stage(StageId(position(&needed, *number))),
        other => other.clone(),
    };
    let stage = |number: usize| {
        let draft = &drafts[number];
        StagePlan {
            number,
            name: draft.from.name.clone(),
            base: renumber(&draft.base),
            at: draft.at,
            sources: draft.sources().map(renumber).collect(),
            instructions: draft.instructions.to_vec(),
            copies: draft.copies.iter().map(|copy| copy.as_ref().map(renumber)).collect(),
            escape: dockerfile.escape,
            build_args: options.build_args.clone(),
            inherited: inherited.clone(),
        }
    };
    Ok(Plan {
        stages: needed.iter().map(|number| stage(*number)).collect(),
        target: StageId(position(&needed, target)),
        unused_args: unused_args(dockerfile, options),
        warnings: Vec::new(),
    })
}

fn position(needed: &BTreeSet<usize>, number: usize) -> usize {
    needed.iter().take_while(|needed| **needed < number).count()
}

/// `TARGETPLATFORM`, `BUILDOS` and so on.
fn platform_args(options: &PlanOptions) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("TARGET", &options.platform), ("BUILD", &options.build_platform)] {
        let variant = platform.variant.clone().unwrap_or_default();
        let words = [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", variant),
        ];
        args.extend(words.map(|(word, value)| (format!("{prefix}{word}"), value)));
    }
    args.insert("TARGETSTAGE".to_owned(), options.target.clone().unwrap_or("default".to_owned()));
    args
}

/// The `ARG`s before the first `FROM`.
fn globals(
    head: &[Instruction],
    escape: char,
    options: &PlanOptions,
    platform_args: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let mut globals = BTreeMap::new();
    for instruction in head {
        let InstructionKind::Arg(definitions) = &instruction.kind else { continue };
        for (name, default) in definitions {
            let value = match (options.build_args.get(name), default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(word)) => {
                    let scope: BTreeMap<_, _> =
                        platform_args.clone().into_iter().chain(globals.clone()).collect();
                    Some(expand_word(word, escape, &scope)?)
                }
                (None, None) => platform_args.get(name).cloned(),
            };
            match value {
                Some(value) => globals.insert(name.clone(), value),
                None => globals.remove(name),
            };
        }
    }
    Ok(globals)
}

pub(crate) fn expand_word(word: &Word, escape: char, variables: &dyn Variables) -> Result<String> {
    expand(&word.text, escape, variables)
        .map_err(|reason| DockerfileError::new(word.at, format!("`{}`: {reason}", word.text)))
}

fn drafts<'a>(
    body: &'a [Instruction],
    escape: char,
    globals: &BTreeMap<String, String>,
) -> Result<Vec<Draft<'a>>> {
    let mut drafts: Vec<Draft<'a>> = Vec::new();
    let starts = |i: &Instruction| matches!(i.kind, InstructionKind::From(_));
    let mut rest = body;
    while let Some((first, after)) = rest.split_first() {
        let length = after.iter().position(starts).unwrap_or(after.len());
        let (instructions, next) = after.split_at(length);
        rest = next;
        let InstructionKind::From(from) = &first.kind else { continue };
        let base = base(from, escape, globals, &drafts)?;
        if let Some(name) = &from.name
            && drafts.iter().any(|draft| draft.from.name.as_ref() == Some(name))
        {
            let message = format!("stage name `{name}` is used twice");
            return Err(DockerfileError::new(first.at, message));
        }
        let mut copies = Vec::new();
        for instruction in instructions {
            if let InstructionKind::Copy(copy) = &instruction.kind {
                copies.push(match &copy.from {
                    Some(from) => Some(copy_source(from, &drafts)?),
                    None => None,
                });
            }
        }
        drafts.push(Draft { from, at: first.at, base, instructions, copies });
    }
    Ok(drafts)
}

fn stage_named(drafts: &[Draft<'_>], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    // Names are unique, so the first is the only one.
    drafts.iter().position(|draft| draft.from.name.as_deref() == Some(&name))
}

fn base(
    from: &From,
    escape: char,
    globals: &BTreeMap<String, String>,
    drafts: &[Draft<'_>],
) -> Result<Source> {
    let at = from.image.at;
    let image = expand_word(&from.image, escape, globals)?;
    if image.is_empty() {
        let error = DockerfileError::new(at, format!("`{}` expands to nothing", from.image.text));
        return Err(error.with_hint("declare the `ARG` before the first `FROM`, with a default"));
    }
    let platform = match &from.platform {
        None => None,
        Some(word) => {
            let text = expand_word(word, escape, globals)?;
            let parsed = text.parse::<Platform>();
            Some(parsed.map_err(|error| DockerfileError::new(word.at, error.to_string()))?)
        }
    };
    if image == "scratch" {
        return Ok(Source::Scratch);
    }
    match stage_named(drafts, &image) {
        Some(number) => Ok(Source::Stage(StageId(number))),
        None => Ok(Source::Image { reference: reference(&image, at)?, platform }),
    }
}

fn reference(text: &str, at: Span) -> Result<oci::Reference> {
    text.parse::<oci::Reference>().map_err(|error| {
        let refused = DockerfileError::new(at, error.to_string());
        match error.hint() {
            Some(hint) => refused.with_hint(hint),
            None => refused,
        }
    })
}

/// What `COPY --from` names: a stage by name or number, else an image.
fn copy_source(from: &Word, drafts: &[Draft<'_>]) -> Result<Source> {
    if from.text.contains('$') {
        let error = DockerfileError::new(from.at, "`--from` takes no variables");
        return Err(error.with_hint("name a stage: `FROM $IMAGE AS source`, then `--from=source`"));
    }
    if from.text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match from.text.parse::<usize>() {
            Ok(number) if number < drafts.len() => Ok(Source::Stage(StageId(number))),
            _ => {
                let message = format!("there is no stage {} before this one", from.text);
                Err(DockerfileError::new(from.at, message))
            }
        };
    }
    if from.text == "scratch" {
        return Ok(Source::Scratch);
    }
    match stage_named(drafts, &from.text) {
        Some(number) => Ok(Source::Stage(StageId(number))),
        None => Ok(Source::Image { reference: reference(&from.text, from.at)?, platform: None }),
    }
}

fn target(drafts: &[Draft<'_>], wanted: Option<&str>) -> Result<usize> {
    let last = drafts.len().saturating_sub(1);
    let Some(wanted) = wanted else { return Ok(last) };
    if let Some(number) = stage_named(drafts, wanted) {
        return Ok(number);
    }
    if let Ok(number) = wanted.parse::<usize>()
        && number < drafts.len()
    {
        return Ok(number);
    }
    let at = drafts.get(last).map_or_else(Span::default, |draft| draft.at);
    let error = DockerfileError::new(at, format!("target stage `{wanted}` does not exist"));
    let names = drafts.iter().filter_map(|draft| draft.from.name.as_deref());
    Err(match nearest(wanted, names) {
        Some(meant) => error.with_hint(format!("did you mean `{meant}`?")),
        None => error,
    })
}

/// The target and all that it reads from, directly or not. Stages only use earlier ones.
fn needed(drafts: &[Draft<'_>], target: usize) -> BTreeSet<usize> {
    let mut needed = BTreeSet::from([target]);
    for number in (0..=target).rev().filter(|number| *number < drafts.len()) {
        if needed.contains(&number) {
            needed.extend(drafts[number].sources().filter_map(|source| match source {
                Source::Stage(StageId(number)) => Some(*number),
                _ => None,
            }));
        }
    }
    needed
}

fn unused_args(dockerfile: &Dockerfile, options: &PlanOptions) -> Vec<String> {
    let declared: BTreeSet<&str> = dockerfile
        .instructions
        .iter()
        .filter_map(|instruction| match &instruction.kind {
            InstructionKind::Arg(definitions) => Some(definitions),
            _ => None,
        })
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    let unused = options
        .build_args
        .keys()
        .filter(|name| !declared.contains(name.as_str()) && !PROXY_ARGS.contains(&name.as_str()));
    unused.cloned().collect()
}
