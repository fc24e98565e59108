//! The lint rules of BuildKit's frontend, with its names and lines: what is allowed in a
//! Dockerfile and seldom meant.
//!
//! `# check=skip=Rule,Rule` at the top leaves rules out for the file, and right above an
//! instruction for that one; `experimental=Rule` adds those that are not on by default;
//! `error=true` makes a failure of any finding.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use oci::Platform;
use regex::Regex;

use crate::ignore::IgnoreFile;
use crate::instruction::{Assignment, Copy, From, Instruction, InstructionKind, Word};
use crate::parse::Dockerfile;
use crate::plan::{PlanOptions, context_named, globals_of, plan, platform_args_of};
use crate::span::{DockerfileError, Span, nearest, render};
use crate::word::{Variables, expand, expand_document};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name, such as `StageNameCasing`.
    pub rule: &'static str,
    /// What is the matter here.
    pub message: String,
    pub at: Span,
}

impl Finding {
    /// The finding with file, line, the text it is about underlined, and where to read more.
    pub fn render(&self, file: &str, source: &str) -> String {
        let message = format!("{} ({})", self.message, self.rule);
        let hint = format!("see {}", self.url());
        render("warning", &message, self.at, Some(&hint), file, source)
    }

    /// Where the rule is explained.
    pub fn url(&self) -> String {
        let mut page = String::new();
        let mut previous_is_upper = true;
        for c in self.rule.chars() {
            // `JSONArgs` is one word and another.
            if c.is_ascii_uppercase() && !previous_is_upper {
                page.push('-');
            }
            previous_is_upper = c.is_ascii_uppercase();
            page.push(c.to_ascii_lowercase());
        }
        let page = page.replace("jsonargs", "json-args");
        format!("https://docs.docker.com/go/dockerfile/rule/{page}/")
    }
}

/// What linting found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// In the order of their lines.
    pub findings: Vec<Finding>,
    /// `error=true`: any finding is a failure.
    pub is_error: bool,
    /// Why the file cannot be built at all.
    pub failure: Option<DockerfileError>,
}

/// What is known besides the file.
pub struct LintOptions<'a> {
    pub plan: &'a PlanOptions,
    /// The image that a `FROM`, a `COPY --from` or a mount names, by the place of the instruction
    /// or mount; `None`: not known, or no image. Then nothing is said of its platform, and of
    /// variables in a stage on it.
    pub image: &'a dyn Fn(Span) -> Option<KnownImage>,
    pub ignore: Option<&'a IgnoreFile>,
}

/// What is known of an image that a Dockerfile names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownImage {
    /// The variables it sets, as `NAME=value`; `None`: not all are known, since it has triggers.
    pub env: Option<Vec<String>>,
    /// What it is made for, if it says so.
    pub platform: Option<Platform>,
}

/// Rules that are on only when asked for.
const EXPERIMENTAL: [&str; 1] = ["InvalidDefinitionDescription"];

/// Looks for what the rules tell of. An error is one of the lint settings.
pub fn lint(
    dockerfile: &Dockerfile,
    options: &LintOptions<'_>,
) -> Result<Findings, DockerfileError> {
    let settings = match &dockerfile.check {
        Some((text, at)) => Settings::parse(text).map_err(|m| DockerfileError::new(*at, m))?,
        None => Settings::default(),
    };
    let is_error = settings.is_error;
    let mut linter = Linter { dockerfile, options, settings, findings: Vec::new() };
    linter.file();
    linter.stages();
    let mut findings = linter.findings;
    findings.sort_by(|a, b| (a.at.line, a.rule, &a.message).cmp(&(b.at.line, b.rule, &b.message)));
    // What is refused when it is built is told here too.
    let failure = plan(dockerfile, options.plan).err();
    Ok(Findings { findings, is_error, failure })
}

/// Which rules count.
#[derive(Debug, Clone, Default)]
struct Settings {
    skip_all: bool,
    skipped: BTreeSet<String>,
    experimental_all: bool,
    experimental: BTreeSet<String>,
    is_error: bool,
}

impl Settings {
    /// `skip=A,B;error=true;experimental=all`.
    fn parse(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('=') else {
                return Err(format!("`{part}` is no setting of `check`"));
            };
            let list = || value.split(',').map(|rule| rule.trim().to_owned()).collect();
            match (name.trim(), value.trim()) {
                ("skip", "all") => settings.skip_all = true,
                ("skip", _) => settings.skipped = list(),
                ("experimental", "all") => settings.experimental_all = true,
                ("experimental", _) => settings.experimental = list(),
                ("error", "true" | "1" | "t" | "T" | "TRUE" | "True") => settings.is_error = true,
                ("error", "false" | "0" | "f" | "F" | "FALSE" | "False") => (),
                _ => return Err(format!("`{part}` is no setting of `check`")),
            }
        }
        Ok(settings)
    }

    /// With what the comments above an instruction say.
    fn with_comments(&self, comments: &[String]) -> Self {
        for comment in comments {
            let Some((name, value)) = comment.split_once('=') else { continue };
            if !name.trim().eq_ignore_ascii_case("check") {
                continue;
            }
            // What follows a blank is a remark.
            let value = value.trim().split(' ').next().unwrap_or_default();
            let Ok(own) = Self::parse(value) else { return self.clone() };
            let mut merged = self.clone();
            merged.skip_all |= own.skip_all;
            merged.experimental_all |= own.experimental_all;
            if !own.skipped.is_empty() {
                merged.skipped = own.skipped;
            }
            merged.experimental.extend(own.experimental);
            return merged;
        }
        self.clone()
    }

    fn counts(&self, rule: &str) -> bool {
        match EXPERIMENTAL.contains(&rule) {
            true => self.experimental_all || self.experimental.contains(rule),
            false => !self.skip_all && !self.skipped.contains(rule),
        }
    }
}

struct Linter<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a LintOptions<'a>,
    settings: Settings,
    findings: Vec<Finding>,
}

/// What of a stage matters to those built on it.
#[derive(Clone, Default)]
struct StageState {
    /// `None`: not known, since the base image is not.
    env: Option<BTreeMap<String, String>>,
    /// Declared, with a value or not.
    args: BTreeSet<String>,
    has_workdir: bool,
    has_shell: bool,
    /// What is built on it begins with more than it has.
    has_triggers: bool,
}

impl StageState {
    /// What a stage on this one starts with.
    fn below(&self) -> Self {
        let env = self.env.clone().filter(|_| !self.has_triggers);
        Self { env, has_triggers: false, ..self.clone() }
    }
}

/// Values of variables, noting those that are asked for and not there.
struct Noting<'a> {
    values: &'a dyn Variables,
    found: RefCell<BTreeSet<String>>,
    missing: RefCell<BTreeSet<String>>,
}

impl<'a> Noting<'a> {
    fn new(values: &'a dyn Variables) -> Self {
        Self { values, found: RefCell::default(), missing: RefCell::default() }
    }
}

impl Variables for Noting<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.values.get(name);
        let noted = if value.is_some() { &self.found } else { &self.missing };
        noted.borrow_mut().insert(name.to_owned());
        value
    }
}

impl Linter<'_> {
    fn find(&mut self, settings: &Settings, rule: &'static str, at: Span, message: String) {
        if settings.counts(rule) {
            self.findings.push(Finding { rule, message, at });
        }
    }

    /// What concerns the file as a whole.
    fn file(&mut self) {
        let settings = self.settings.clone();
        let dockerfile = self.dockerfile;
        for at in &dockerfile.empty_continuations {
            let message = "Empty continuation line".to_owned();
            self.find(&settings, "NoEmptyContinuation", *at, message);
        }
        let first = dockerfile
            .instructions
            .iter()
            .position(|i| matches!(i.kind, InstructionKind::From(_)))
            .unwrap_or(0);
        let body = &dockerfile.instructions[first..];
        self.casing(body);
        self.stage_names(body);
        for instruction in &dockerfile.instructions {
            let settings = settings.with_comments(&instruction.comments);
            self.descriptions(&settings, instruction);
            match &instruction.kind {
                InstructionKind::From(from) => self.stage_words(&settings, instruction, from),
                InstructionKind::Maintainer(_) => {
                    let message =
                        "Maintainer instruction is deprecated in favor of using label".to_owned();
                    self.find(&settings, "MaintainerDeprecated", instruction.at, message);
                }
                _ => (),
            }
        }
    }

    /// Keywords are in the case of most of them.
    fn casing(&mut self, body: &[Instruction]) {
        let settings = self.settings.clone();
        let is_lower = |text: &str| text == text.to_lowercase();
        let is_upper = |text: &str| text == text.to_uppercase();
        let lower = body.iter().filter(|i| is_lower(&i.keyword)).count();
        let upper = body.iter().filter(|i| is_upper(&i.keyword)).count();
        let most_are_lower = lower > upper;
        for instruction in body {
            let keyword = &instruction.keyword;
            let wanted = match most_are_lower {
                true if !is_lower(keyword) => "lowercase",
                false if !is_upper(keyword) => "uppercase",
                _ => continue,
            };
            let message = format!(
                "Command '{keyword}' should match the case of the command majority ({wanted})"
            );
            self.find(&settings, "ConsistentInstructionCasing", instruction.at, message);
        }
    }

    fn stage_names(&mut self, body: &[Instruction]) {
        let settings = self.settings.clone();
        let mut known = BTreeSet::new();
        for instruction in body {
            let InstructionKind::From(From { name: Some(name), .. }) = &instruction.kind else {
                continue;
            };
            if matches!(name.as_str(), "context" | "scratch") {
                let message =
                    format!("Stage name should not use the same name as reserved stage {name:?}");
                self.find(&settings, "ReservedStageName", instruction.at, message);
            }
            if !known.insert(name.clone()) {
                let message =
                    format!("Duplicate stage name {name:?}, stage names should be unique");
                self.find(&settings, "DuplicateStageName", instruction.at, message);
            }
        }
    }

    fn stage_words(&mut self, settings: &Settings, instruction: &Instruction, from: &From) {
        let Some((keyword, name)) = &from.as_written else { return };
        if *name != name.to_lowercase() {
            let message = format!("Stage name '{name}' should be lowercase");
            self.find(settings, "StageNameCasing", instruction.at, message);
        }
        let written = &instruction.keyword;
        let matches = match written {
            lower if *lower == lower.to_lowercase() => *keyword == keyword.to_lowercase(),
            upper if *upper == upper.to_uppercase() => *keyword == keyword.to_uppercase(),
            _ => true,
        };
        if !matches {
            let message = format!("'{keyword}' and '{written}' keywords' casing do not match");
            self.find(settings, "FromAsCasing", instruction.at, message);
        }
    }

    /// A comment right above an argument or a named stage describes it.
    fn descriptions(&mut self, settings: &Settings, instruction: &Instruction) {
        let (what, names): (_, Vec<&str>) = match &instruction.kind {
            InstructionKind::From(From { name: Some(name), .. }) => ("FROM", vec![name]),
            InstructionKind::Arg(definitions) => {
                ("ARG", definitions.iter().map(|(name, _)| name.as_str()).collect())
            }
            _ => return,
        };
        let Some(comment) = instruction.comments.last() else { return };
        let begins = comment.split(' ').next().unwrap_or_default();
        if names.contains(&begins) {
            return;
        }
        let example = if let [name] = names.as_slice() { name } else { "<arg_key>" };
        let message =
            format!("Comment for {what} should follow the format: `# {example} <description>`");
        self.find(settings, "InvalidDefinitionDescription", instruction.at, message);
    }

    fn stages(&mut self) {
        let dockerfile = self.dockerfile;
        let platform_args = platform_args_of(dockerfile, self.options.plan);
        let globals = globals_of(dockerfile, self.options.plan, &platform_args);
        let no_args = PlanOptions { build_args: BTreeMap::new(), ..self.options.plan.clone() };
        let defaults = globals_of(dockerfile, &no_args, &platform_args);
        // An error in them was told when the plan was made.
        let (Ok(globals), Ok(defaults)) = (globals, defaults) else { return };
        let declared: BTreeSet<String> = (dockerfile.instructions.iter())
            .take_while(|i| !matches!(i.kind, InstructionKind::From(_)))
            .filter_map(|instruction| match &instruction.kind {
                InstructionKind::Arg(definitions) => Some(definitions),
                _ => None,
            })
            .flatten()
            .map(|(name, _)| name.clone())
            .chain(platform_args.keys().cloned())
            .collect();
        let inherited: BTreeMap<String, String> =
            platform_args.clone().into_iter().chain(globals).collect();
        let defaults: BTreeMap<String, String> =
            platform_args.into_iter().chain(defaults).collect();
        let mut stages: BTreeMap<String, StageState> = BTreeMap::new();
        let mut current: Option<Stage> = None;
        for instruction in &dockerfile.instructions {
            let settings = self.settings.with_comments(&instruction.comments);
            if let InstructionKind::From(from) = &instruction.kind {
                if let Some(stage) = current.take() {
                    stages.extend(stage.name.map(|name| (name, stage.state)));
                }
                let (base, platform) =
                    self.from(&settings, instruction, from, &inherited, &declared);
                self.default_base(&settings, instruction, from, &defaults);
                let name = from.name.clone();
                let contexts = &self.options.plan.contexts;
                if let Some(name) = name.filter(|name| context_named(name, contexts).is_some()) {
                    // The context is there instead, and nothing of the stage is executed.
                    stages.insert(name, StageState::default());
                    continue;
                }
                let state = match stages.get(&base.to_lowercase()) {
                    Some(state) => state.below(),
                    None => {
                        let expected = platform.as_ref().unwrap_or(&self.options.plan.platform);
                        self.platform(&settings, instruction.at, &base, expected);
                        self.base_state(&base, instruction.at)
                    }
                };
                let name = from.name.clone();
                current = Some(Stage { name, state, seen: BTreeMap::new() });
                continue;
            }
            if let Some(stage) = &mut current {
                self.instruction(&settings, instruction, stage, &inherited);
            }
        }
    }

    /// What a stage on an image starts with.
    fn base_state(&self, base: &str, at: Span) -> StageState {
        let env = match base {
            "scratch" => Some(Vec::new()),
            _ => (self.options.image)(at).and_then(|image| image.env),
        };
        let env = env.map(|entries| {
            let pairs = entries.iter().filter_map(|entry| entry.split_once('='));
            let mut env: BTreeMap<String, String> =
                pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            env.entry("PATH".to_owned()).or_default();
            env
        });
        StageState { env, ..StageState::default() }
    }

    /// `FROM`; gives the base as it is meant, and its platform if it is given.
    fn from(
        &mut self,
        settings: &Settings,
        instruction: &Instruction,
        from: &From,
        inherited: &BTreeMap<String, String>,
        declared: &BTreeSet<String>,
    ) -> (String, Option<Platform>) {
        let escape = self.dockerfile.escape;
        let noting = Noting::new(inherited);
        let base = expand(&from.image.text, escape, &noting).unwrap_or_default();
        self.undeclared(settings, instruction.at, &noting, declared);
        let mut expected = None;
        if let Some(platform) = &from.platform {
            let noting = Noting::new(inherited);
            let value = expand(&platform.text, escape, &noting).unwrap_or_default();
            self.undeclared(settings, instruction.at, &noting, declared);
            let (found, missing) = (noting.found.borrow(), noting.missing.borrow());
            let is_target = found.len() == 1
                && missing.is_empty()
                && found.contains("TARGETPLATFORM")
                && inherited.get("TARGETPLATFORM") == Some(&value);
            let is_constant = found.is_empty() && missing.is_empty();
            drop((found, missing));
            if is_target {
                let message = format!(
                    "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                    platform.text
                );
                self.find(settings, "RedundantTargetPlatform", instruction.at, message);
            }
            expected = value.parse::<Platform>().ok();
            if is_constant && let Some(parsed) = &expected {
                let name = from.name.as_deref().unwrap_or_default();
                let is_in_name = name.contains(&parsed.os) || name.contains(&parsed.architecture);
                if !is_in_name {
                    let message =
                        format!("FROM --platform flag should not use constant value {value:?}");
                    let rule = "FromPlatformFlagConstDisallowed";
                    self.find(settings, rule, instruction.at, message);
                }
            }
        }
        (base, expected)
    }

    /// An image that is no index may be for another platform, and is taken all the same.
    fn platform(&mut self, settings: &Settings, at: Span, name: &str, expected: &Platform) {
        let Some(own) = (self.options.image)(at).and_then(|image| image.platform) else { return };
        if (&own.os, &own.architecture) != (&expected.os, &expected.architecture) {
            let (own, expected) = (own.to_string(), expected.to_string());
            let message = format!(
                "Base image {name} was pulled with platform {own:?}, expected {expected:?} for current build"
            );
            self.find(settings, "InvalidBaseImagePlatform", at, message);
        }
    }

    fn undeclared(
        &mut self,
        settings: &Settings,
        at: Span,
        noting: &Noting<'_>,
        declared: &BTreeSet<String>,
    ) {
        for name in noting.missing.borrow().iter().filter(|name| !declared.contains(*name)) {
            let meant = nearest(name, declared.iter().map(String::as_str));
            let meant = meant.map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
            let message = format!("FROM argument '{name}' is not declared{meant}");
            self.find(settings, "UndefinedArgInFrom", at, message);
        }
    }

    /// Without build arguments the base must still be an image.
    fn default_base(
        &mut self,
        settings: &Settings,
        instruction: &Instruction,
        from: &From,
        defaults: &BTreeMap<String, String>,
    ) {
        let Ok(base) = expand(&from.image.text, self.dockerfile.escape, defaults) else { return };
        if base.parse::<oci::Reference>().is_err() {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                from.image.text
            );
            self.find(settings, "InvalidDefaultArgInFrom", instruction.at, message);
        }
    }

    fn instruction(
        &mut self,
        settings: &Settings,
        instruction: &Instruction,
        stage: &mut Stage,
        inherited: &BTreeMap<String, String>,
    ) {
        let at = instruction.at;
        for name in self.undefined(instruction, &stage.state) {
            let known = stage.state.env.iter().flatten().map(|(name, _)| name.as_str());
            let meant = nearest(&name, known);
            let meant = meant.map(|meant| format!(" (did you mean ${meant}?)")).unwrap_or_default();
            let message = format!("Usage of undefined variable '${name}'{meant}");
            self.find(settings, "UndefinedVar", at, message);
        }
        match &instruction.kind {
            InstructionKind::Arg(definitions) => {
                for (name, default) in definitions {
                    self.secret(settings, "ARG", name, at);
                    stage.declare(name, default.as_ref(), self, inherited);
                }
            }
            InstructionKind::Env(pairs) => {
                self.old_form(settings, instruction, pairs);
                let values: Vec<(String, String)> = (pairs.iter())
                    .map(|pair| (self.value(&pair.name, stage), self.value(&pair.value, stage)))
                    .collect();
                for (name, value) in values {
                    self.secret(settings, "ENV", &name, at);
                    if let Some(env) = &mut stage.state.env {
                        env.insert(name, value);
                    }
                }
            }
            InstructionKind::Label(pairs) => self.old_form(settings, instruction, pairs),
            InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => {
                self.only_once(settings, instruction, stage);
                let is_shell = matches!(command, crate::Command::Shell(_));
                if is_shell && !stage.state.has_shell {
                    let message = format!(
                        "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                        instruction.keyword
                    );
                    self.find(settings, "JSONArgsRecommended", at, message);
                }
            }
            InstructionKind::Healthcheck(_) => self.only_once(settings, instruction, stage),
            InstructionKind::Shell(_) => stage.state.has_shell = true,
            InstructionKind::OnBuild(_) => stage.state.has_triggers = true,
            InstructionKind::Workdir(word) => {
                let path = self.value(word, stage);
                // What a base image sets may begin with a slash.
                let is_known = stage.state.env.is_some() || !word.text.contains('$');
                if is_known && !stage.state.has_workdir && !path.starts_with('/') {
                    let message = format!(
                        "Relative workdir {path:?} can have unexpected results if the base image changes"
                    );
                    self.find(settings, "WorkdirRelativePath", at, message);
                }
                stage.state.has_workdir = true;
            }
            InstructionKind::Expose(words) => self.expose(settings, at, words, stage),
            InstructionKind::Copy(copy) => {
                self.ignored(settings, at, copy, stage);
                if let Some(from) = &copy.from {
                    self.platform(settings, at, &from.text, &self.options.plan.platform);
                }
            }
            InstructionKind::Run(run) => {
                for mount in &run.mounts {
                    if let Some(from) = mount.from() {
                        self.platform(settings, mount.at, from, &self.options.plan.platform);
                    }
                }
            }
            _ => (),
        }
    }

    fn value(&self, word: &Word, stage: &Stage) -> String {
        let empty = BTreeMap::new();
        let env = stage.state.env.as_ref().unwrap_or(&empty);
        expand(&word.text, self.dockerfile.escape, env).unwrap_or_default()
    }

    /// The variables that an instruction names and nobody has set.
    fn undefined(&self, instruction: &Instruction, state: &StageState) -> BTreeSet<String> {
        let Some(env) = &state.env else { return BTreeSet::new() };
        let noting = Noting::new(env);
        let escape = self.dockerfile.escape;
        let look = |text: &str| {
            // What cannot be expanded fails the build, and is told there.
            let _told_elsewhere = expand(text, escape, &noting);
        };
        match &instruction.kind {
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
                for pair in pairs {
                    look(&pair.name.text);
                    look(&pair.value.text);
                }
            }
            InstructionKind::Arg(definitions) => {
                for (name, default) in definitions {
                    if let Some(default) = default
                        && !self.options.plan.build_args.contains_key(name)
                    {
                        look(&default.text);
                    }
                }
            }
            InstructionKind::Copy(copy) => {
                let flags = [&copy.chown, &copy.chmod, &copy.checksum];
                flags.into_iter().flatten().for_each(|word| look(&word.text));
                copy.sources.iter().for_each(|word| look(&word.text));
                look(&copy.destination.text);
                for document in copy.documents.iter().filter(|document| document.expand) {
                    let _told_elsewhere = expand_document(&document.content, &noting);
                }
            }
            InstructionKind::Run(run) => {
                let fields = run.mounts.iter().flat_map(|mount| &mount.fields);
                fields.filter_map(|(_, value)| value.as_deref()).for_each(look);
            }
            InstructionKind::Workdir(word)
            | InstructionKind::User(word)
            | InstructionKind::StopSignal(word) => look(&word.text),
            InstructionKind::Volume(words) => words.iter().for_each(|word| look(&word.text)),
            _ => (),
        }
        let mut missing = noting.missing.into_inner();
        missing.retain(|name| !state.args.contains(name));
        missing
    }

    fn old_form(&mut self, settings: &Settings, instruction: &Instruction, pairs: &[Assignment]) {
        for _ in pairs.iter().filter(|pair| pair.is_old_form) {
            let keyword = &instruction.keyword;
            let message = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            self.find(settings, "LegacyKeyValueFormat", instruction.at, message);
        }
    }

    fn secret(&mut self, settings: &Settings, what: &str, name: &str, at: Span) {
        static SECRET: LazyLock<Regex> = LazyLock::new(|| {
            let words = "apikey|auth|credential|credentials|key|password|pword|passwd|secret|token";
            words_of_a_name(words)
        });
        static HARMLESS: LazyLock<Regex> = LazyLock::new(|| words_of_a_name("public|file|version"));
        if SECRET.is_match(name) && !HARMLESS.is_match(name) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({what} {name:?})");
            self.find(settings, "SecretsUsedInArgOrEnv", at, message);
        }
    }

    /// The last of a kind counts, so those before it are told of.
    fn only_once(&mut self, settings: &Settings, instruction: &Instruction, stage: &mut Stage) {
        let kind = instruction.keyword.to_uppercase();
        if let Some(before) = stage.seen.insert(kind, instruction.at) {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                instruction.keyword
            );
            self.find(settings, "MultipleInstructionsDisallowed", before, message);
        }
    }

    fn expose(&mut self, settings: &Settings, at: Span, words: &[Word], stage: &Stage) {
        for word in words {
            let value = self.value(word, stage);
            for port in value.split_whitespace() {
                let (ports, protocol) = port.split_once('/').unwrap_or((port, ""));
                if protocol != protocol.to_lowercase() {
                    let message = format!(
                        "Defined protocol '{port}' in EXPOSE instruction should be lowercase"
                    );
                    self.find(settings, "ExposeProtoCasing", at, message);
                }
                if ports.contains(':') {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
                    );
                    self.find(settings, "ExposeInvalidFormat", at, message);
                }
            }
        }
    }

    /// Sources that the ignore file keeps away. With exceptions in it nothing is certain.
    fn ignored(&mut self, settings: &Settings, at: Span, copy: &Copy, stage: &Stage) {
        let Some(ignore) = self.options.ignore else { return };
        if copy.from.is_some() || ignore.has_exceptions() {
            return;
        }
        let what = if copy.is_add { "Add" } else { "Copy" };
        for word in &copy.sources {
            let source = crate::path::clean(&self.value(word, stage));
            let is_ignored = match source.as_str() {
                "." | "/" => ignore.excludes_everything(),
                source if source.contains("://") => false,
                source => ignore.is_excluded(source.trim_start_matches('/')),
            };
            if is_ignored {
                let message = format!(
                    "Attempting to {what} file {source:?} that is excluded by .dockerignore"
                );
                self.find(settings, "CopyIgnoredFile", at, message);
            }
        }
    }
}

/// Words at the ends of a name or between underscores, in any case.
fn words_of_a_name(words: &str) -> Regex {
    Regex::new(&format!("(?i)(?:_|^)(?:{words})(?:_|$)")).expect("the expression is valid")
}

/// A stage under way.
struct Stage {
    name: Option<String>,
    state: StageState,
    /// Instructions of which only the last counts, with their places.
    seen: BTreeMap<String, Span>,
}

impl Stage {
    fn declare(
        &mut self,
        name: &str,
        default: Option<&Word>,
        linter: &Linter<'_>,
        inherited: &BTreeMap<String, String>,
    ) {
        self.state.args.insert(name.to_owned());
        let value = match (linter.options.plan.build_args.get(name), default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(word)) => Some(linter.value(word, self)),
            (None, None) => inherited.get(name).cloned(),
        };
        if let (Some(env), Some(value)) = (&mut self.state.env, value) {
            env.insert(name.to_owned(), value);
        }
    }
}
