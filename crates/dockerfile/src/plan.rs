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
    /// `--build-context`: names that stand for something else than a stage or an image.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Stages by number that are needed besides, since triggers of base images read from them.
    pub also: BTreeSet<usize>,
}

/// What a name of `--build-context` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    Image(oci::Reference),
    /// Files or an image that the caller has by this name.
    Own,
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
}

impl Plan {
    /// Whether the result stands on a stage: on the target, and on what that is `FROM`, through
    /// however many stages.
    pub fn result_stands_on(&self, stage: StageId) -> bool {
        let mut on = self.target;
        loop {
            match self.stages[on.0].base {
                _ if on == stage => return true,
                // An earlier one, so this ends.
                Source::Stage(below) => on = below,
                _ => return false,
            }
        }
    }
}

/// Where a stage starts, or a `COPY --from` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Scratch,
    Stage(StageId),
    /// What the caller has by the name of a context.
    Context {
        name: String,
        /// Of an image, if `FROM --platform` says so.
        platform: Option<Platform>,
    },
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
    /// What each instruction reads from besides, in the order of its flags; `None`: the context.
    pub(crate) reads: Vec<Vec<Option<Source>>>,
    /// The stages before this one: their names, and their places if they are needed.
    pub(crate) earlier: Vec<(Option<String>, Option<StageId>)>,
    pub(crate) contexts: BTreeMap<String, NamedContext>,
    pub(crate) escape: char,
    pub(crate) build_args: BTreeMap<String, String>,
    /// Values that a stage's `ARG name` takes over: global arguments and platform words.
    pub(crate) inherited: BTreeMap<String, String>,
}

/// A build may be given these without declaring them. They are no part of the image or its
/// history; a `RUN` with another proxy has another cache key (architecture.md decision 8).
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
    reads: Vec<Vec<Option<Source>>>,
}

impl Draft<'_> {
    fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.base).chain(self.reads.iter().flatten().flatten())
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
    let body = &dockerfile.instructions[first.unwrap_or(0)..];
    let platform_args = platform_args_of(dockerfile, options);
    let globals = globals_of(dockerfile, options, &platform_args)?;
    let inherited: BTreeMap<String, String> = platform_args.into_iter().chain(globals).collect();
    let drafts = drafts(body, dockerfile.escape, &inherited, &options.contexts)?;
    let target = target(&drafts, options.target.as_deref())?;
    let needed = needed(&drafts, target, &options.also);
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
            reads: (draft.reads.iter())
                .map(|reads| reads.iter().map(|read| read.as_ref().map(renumber)).collect())
                .collect(),
            earlier: (drafts[..number].iter().enumerate())
                .map(|(number, draft)| {
                    let id = needed.contains(&number).then(|| StageId(position(&needed, number)));
                    (draft.from.name.clone(), id)
                })
                .collect(),
            contexts: options.contexts.clone(),
            escape: dockerfile.escape,
            build_args: options.build_args.clone(),
            inherited: inherited.clone(),
        }
    };
    Ok(Plan {
        stages: needed.iter().map(|number| stage(*number)).collect(),
        target: StageId(position(&needed, target)),
        unused_args: unused_args(dockerfile, options),
    })
}

fn position(needed: &BTreeSet<usize>, number: usize) -> usize {
    needed.iter().take_while(|needed| **needed < number).count()
}

/// The platform arguments of a build of a file.
pub(crate) fn platform_args_of(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
) -> BTreeMap<String, String> {
    let last_stage = dockerfile.instructions.iter().rev().find_map(|i| match &i.kind {
        InstructionKind::From(from) => Some(from.name.as_deref()),
        _ => None,
    });
    platform_args(options, last_stage.flatten())
}

/// The values of the `ARG`s before the first `FROM` of a file.
pub(crate) fn globals_of(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    platform_args: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let is_from = |i: &Instruction| matches!(i.kind, InstructionKind::From(_));
    let first = dockerfile.instructions.iter().position(is_from).unwrap_or(0);
    globals(&dockerfile.instructions[..first], dockerfile.escape, options, platform_args)
}

/// `TARGETPLATFORM`, `BUILDOS` and so on; the caller may give them other values.
fn platform_args(options: &PlanOptions, last_stage: Option<&str>) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("TARGET", &options.platform), ("BUILD", &options.build_platform)] {
        let words = [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("OSVERSION", platform.os_version.clone().unwrap_or_default()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", platform.variant.clone().unwrap_or_default()),
        ];
        args.extend(words.map(|(word, value)| (format!("{prefix}{word}"), value)));
    }
    let target = options.target.as_deref().or(last_stage).unwrap_or("default");
    args.insert("TARGETSTAGE".to_owned(), target.to_owned());
    for (name, value) in &mut args {
        if let Some(given) = options.build_args.get(name) {
            value.clone_from(given);
        }
    }
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
    contexts: &BTreeMap<String, NamedContext>,
) -> Result<Vec<Draft<'a>>> {
    let mut drafts: Vec<Draft<'a>> = Vec::new();
    let starts = |i: &Instruction| matches!(i.kind, InstructionKind::From(_));
    let mut rest = body;
    while let Some((first, after)) = rest.split_first() {
        let length = after.iter().position(starts).unwrap_or(after.len());
        let (instructions, next) = after.split_at(length);
        rest = next;
        let InstructionKind::From(from) = &first.kind else { continue };
        // A context with the stage's own name takes the place of the whole stage.
        let own = from.name.as_deref().and_then(|name| context_named(name, contexts));
        let (base, instructions) = match own {
            Some(context) => (context_source(context, platform(from, escape, globals)?), &[][..]),
            None => (base(from, escape, globals, &drafts, contexts)?, instructions),
        };
        let earlier: Vec<_> = (drafts.iter().enumerate())
            .map(|(number, draft)| (draft.from.name.clone(), Some(StageId(number))))
            .collect();
        let mut reads = Vec::with_capacity(instructions.len());
        for instruction in instructions {
            reads.push(reads_of(&instruction.kind, &earlier, contexts)?);
        }
        drafts.push(Draft { from, at: first.at, base, instructions, reads });
    }
    Ok(drafts)
}

/// What an instruction reads from besides the stage it is in; of a trigger, a stage that the
/// plan does not have is an error of its own.
pub(crate) fn reads_of(
    kind: &InstructionKind,
    earlier: &[(Option<String>, Option<StageId>)],
    contexts: &BTreeMap<String, NamedContext>,
) -> std::result::Result<Vec<Option<Source>>, OperationsError> {
    let find = |from: &str, at| named_source(from, at, earlier, contexts);
    match kind {
        InstructionKind::Copy(copy) => match &copy.from {
            Some(from) if from.text.contains('$') => {
                let error = DockerfileError::new(from.at, "`--from` takes no variables");
                let hint = "name a stage: `FROM $IMAGE AS source`, then `--from=source`";
                Err(error.with_hint(hint).into())
            }
            Some(from) => Ok(vec![Some(find(&from.text, from.at)?)]),
            None => Ok(vec![None]),
        },
        InstructionKind::Run(run) => (run.mounts.iter())
            .map(|mount| mount.from().map(|from| find(from, mount.at)).transpose())
            .collect(),
        _ => Ok(Vec::new()),
    }
}

/// Why the operations of a stage cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationsError {
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// A trigger of the base image reads from a stage that was not planned: plan again with it
    /// in [`PlanOptions::also`].
    #[error("stage {0} is needed by a trigger of a base image")]
    NeedsStage(usize),
}

impl std::convert::From<OperationsError> for DockerfileError {
    /// Where all stages are known, as while planning, only the first kind is met.
    fn from(error: OperationsError) -> Self {
        match error {
            OperationsError::Dockerfile(error) => error,
            OperationsError::NeedsStage(_) => Self::new(Span::default(), error.to_string()),
        }
    }
}

fn stage_named(drafts: &[Draft<'_>], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    // Of several the last one counts; a lint rule tells of it.
    drafts.iter().rposition(|draft| draft.from.name.as_deref() == Some(&name))
}

/// The named context that stands for an image or a stage. `app`, `app:latest` and
/// `docker.io/library/app` are one name.
pub(crate) fn context_named<'a>(
    name: &str,
    contexts: &'a BTreeMap<String, NamedContext>,
) -> Option<(&'a String, &'a NamedContext)> {
    if matches!(name, "scratch" | "context") {
        return None;
    }
    let shortest = |name: &str| match name.parse::<oci::Reference>() {
        Ok(reference) => reference.shortest(),
        Err(_) => name.to_owned(),
    };
    let wanted = shortest(name);
    contexts.iter().find(|(known, _)| *known == name || shortest(known) == wanted)
}

fn context_source((name, context): (&String, &NamedContext), platform: Option<Platform>) -> Source {
    match context {
        NamedContext::Image(reference) => Source::Image { reference: reference.clone(), platform },
        NamedContext::Own => Source::Context { name: name.clone(), platform },
    }
}

/// The platform that `FROM --platform` asks for.
fn platform(
    from: &From,
    escape: char,
    globals: &BTreeMap<String, String>,
) -> Result<Option<Platform>> {
    let Some(word) = &from.platform else { return Ok(None) };
    let text = expand_word(word, escape, globals)?;
    let parsed = text.parse::<Platform>();
    parsed.map(Some).map_err(|error| DockerfileError::new(word.at, error.to_string()))
}

fn base(
    from: &From,
    escape: char,
    globals: &BTreeMap<String, String>,
    drafts: &[Draft<'_>],
    contexts: &BTreeMap<String, NamedContext>,
) -> Result<Source> {
    let at = from.image.at;
    let image = expand_word(&from.image, escape, globals)?;
    if image.is_empty() {
        let error = DockerfileError::new(at, format!("`{}` expands to nothing", from.image.text));
        return Err(error.with_hint("declare the `ARG` before the first `FROM`, with a default"));
    }
    let platform = platform(from, escape, globals)?;
    if let Some(number) = stage_named(drafts, &image) {
        return Ok(Source::Stage(StageId(number)));
    }
    if image == "scratch" {
        return Ok(Source::Scratch);
    }
    match context_named(&image, contexts) {
        Some(context) => Ok(context_source(context, platform)),
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

/// What `--from` names: a stage by name or number, a named context, else an image.
fn named_source(
    from: &str,
    at: Span,
    earlier: &[(Option<String>, Option<StageId>)],
    contexts: &BTreeMap<String, NamedContext>,
) -> std::result::Result<Source, OperationsError> {
    let stage = |number: usize| match earlier[number].1 {
        Some(id) => Ok(Source::Stage(id)),
        None => Err(OperationsError::NeedsStage(number)),
    };
    if from.bytes().all(|byte| byte.is_ascii_digit()) {
        return match from.parse::<usize>() {
            Ok(number) if number < earlier.len() => stage(number),
            _ => {
                let message = format!("there is no stage {from} before this one");
                Err(DockerfileError::new(at, message).into())
            }
        };
    }
    let lower = from.to_lowercase();
    if let Some(number) = earlier.iter().rposition(|(name, _)| name.as_deref() == Some(&lower)) {
        return stage(number);
    }
    if from == "scratch" {
        return Ok(Source::Scratch);
    }
    match context_named(from, contexts) {
        Some(context) => Ok(context_source(context, None)),
        None => Ok(Source::Image { reference: reference(from, at)?, platform: None }),
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
fn needed(drafts: &[Draft<'_>], target: usize, also: &BTreeSet<usize>) -> BTreeSet<usize> {
    let mut needed: BTreeSet<usize> =
        also.iter().copied().filter(|number| *number < target).collect();
    needed.insert(target);
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
