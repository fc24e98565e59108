//! Dockerfiles and what they come to, good and bad: `tests/data`.
//!
//! `UPDATE_EXPECT=1` rewrites the results; read the diff.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use dockerfile::ignore::IgnoreFile;
use dockerfile::lint::{Finding, KnownImage, LintOptions, lint};
use dockerfile::{
    DockerfileError, NamedContext, Operation, OperationKind, OperationsError, Plan, PlanOptions,
    SourceAddress, Span, StageId, parse, plan,
};
use expect_test::expect_file;
use oci::{ImageConfig, Platform};

fn options() -> PlanOptions {
    let args = [("GIVEN", "given"), ("HTTP_PROXY", "http://proxy:1"), ("UNKNOWN", "1")];
    PlanOptions {
        build_args: args.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        target: None,
        platform: Platform::new("linux", "arm64", None),
        build_platform: Platform::new("linux", "amd64", None),
        contexts: BTreeMap::from([
            ("files".to_owned(), NamedContext::Own),
            ("alpine".to_owned(), NamedContext::Image("localhost:5000/own".parse().unwrap())),
        ]),
        also: BTreeSet::new(),
    }
}

fn outline(source: &str) -> Result<String, DockerfileError> {
    let dockerfile = parse(source)?;
    let plan = plan(&dockerfile, &options())?;
    let mut out = String::new();
    // As if every stage were built on the one before.
    let mut args = Vec::new();
    for (id, stage) in plan.stages.iter().enumerate() {
        let name = stage.name.as_deref().unwrap_or("-");
        writeln!(out, "stage {id} (number {}, name {name}) from {:?}", stage.number, stage.base)
            .unwrap();
        let operations = stage.operations(&ImageConfig::default(), &args)?;
        args = operations.args;
        let operations = operations.operations;
        for operation in &operations {
            show(&mut out, operation);
        }
        let config = operations.last().map(|operation| &operation.config);
        writeln!(out, "  config {}", serde_json::json!(config)).unwrap();
    }
    let Plan { target, unused_args, .. } = plan;
    writeln!(out, "target {}, unused {unused_args:?}", target.0).unwrap();
    Ok(out)
}

fn show(out: &mut String, operation: &Operation) {
    let line = operation.at.line;
    writeln!(out, "  {line}: {}", operation.created_by).unwrap();
    for shown in [&operation.text, &operation.created_by] {
        assert!(!shown.contains("me:secret"), "{shown}");
    }
    match &operation.kind {
        OperationKind::Run(run) => {
            writeln!(out, "     args {:?}\n     env {:?}", run.args, run.env).unwrap();
            writeln!(out, "     user {:?} cwd {:?} values {:?}", run.user, run.cwd, run.arg_values)
                .unwrap();
            let (network, insecure) = (run.network, run.insecure);
            writeln!(out, "     network {network:?} insecure {insecure}").unwrap();
            for mount in &run.mounts {
                writeln!(out, "     mount {:?}", mount.kind).unwrap();
            }
            if let Some(script) = &run.script {
                writeln!(out, "     script {:?}", script).unwrap();
            }
        }
        OperationKind::Copy(copy) => {
            let paths = copy.sources.iter().filter(|source| source.address.is_none());
            let sources: Vec<_> = paths.map(|s| (&s.pivot, &s.pattern)).collect();
            writeln!(out, "     {sources:?} -> {:?} from {:?}", copy.destination, copy.from)
                .unwrap();
            for address in copy.sources.iter().filter_map(|source| source.address.as_ref()) {
                let (unpack, checksum) = (copy.unpack_downloads, &copy.checksum);
                match address {
                    SourceAddress::File(address) => {
                        let name = address.file_name();
                        writeln!(
                            out,
                            "     fetch {address} as {name:?} unpack {unpack} {checksum:?}"
                        )
                    }
                    SourceAddress::Repository(git) => {
                        let (keep, commit) = (git.keep_git_dir, &git.commit);
                        writeln!(out, "     fetch repository {git} keep {keep:?} commit {commit:?}")
                    }
                }
                .unwrap();
            }
            let (unpack, link) = (copy.unpack, copy.link);
            writeln!(out, "     unpack {unpack} link {link} excludes {:?}", copy.excludes).unwrap();
            for document in &copy.documents {
                writeln!(out, "     {} is {:?}", document.name, document.text).unwrap();
            }
        }
        OperationKind::Workdir { .. } | OperationKind::Config => (),
    }
}

fn cases(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "Dockerfile"))
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

#[test]
fn good_files_come_to_what_they_should() {
    for path in cases("ok") {
        let source = std::fs::read_to_string(&path).unwrap();
        let actual =
            outline(&source).unwrap_or_else(|error| panic!("{}", error.render("x", &source)));
        expect_file![path.with_extension("out")].assert_eq(&actual);
    }
}

#[test]
fn bad_files_are_refused_with_line_text_and_hint() {
    for path in cases("bad") {
        let source = std::fs::read_to_string(&path).unwrap();
        let Err(error) = outline(&source) else { panic!("{} is accepted", path.display()) };
        let name = path.file_name().unwrap().to_str().unwrap();
        expect_file![path.with_extension("out")].assert_eq(&error.render(name, &source));
    }
}

#[test]
fn only_what_the_target_needs_is_planned() {
    let source =
        "FROM a AS one\nFROM b AS two\nRUN x\nFROM one AS three\nCOPY --from=one a b\nFROM two\n";
    let names = |target: Option<&str>| {
        let options = PlanOptions { target: target.map(str::to_owned), ..options() };
        let plan = plan(&parse(source).unwrap(), &options)?;
        let number = |stage: &dockerfile::StagePlan| stage.number;
        Ok::<_, DockerfileError>(plan.stages.iter().map(number).collect::<Vec<_>>())
    };
    assert_eq!(names(None).unwrap(), [1, 3]);
    assert_eq!(names(Some("THREE")).unwrap(), [0, 2]);
    assert_eq!(names(Some("1")).unwrap(), [1]);
    let error = names(Some("thre")).unwrap_err();
    assert_eq!(error.message, "target stage `thre` does not exist");
    assert_eq!(error.hint.as_deref(), Some("did you mean `three`?"));
}

#[test]
fn a_base_keeps_its_config_unless_the_stage_says_otherwise() {
    let source = "FROM base\nENV PATH=/x:$PATH\nENTRYPOINT [\"/run\"]\nLABEL a=2\n";
    let dockerfile = parse(source).unwrap();
    let plan = plan(&dockerfile, &options()).unwrap();
    let mut base = ImageConfig::default();
    base.config.env = vec!["PATH=/bin".to_owned(), "KEEP=1".to_owned()];
    base.config.cmd = Some(vec!["old".to_owned()]);
    base.config.labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    base.config.user = "app".to_owned();
    let operations = plan.stages[0].operations(&base, &[]).unwrap().operations;
    let config = &operations.last().unwrap().config;
    assert_eq!(config.env, ["PATH=/x:/bin", "KEEP=1"]);
    assert_eq!((config.cmd.as_ref(), config.user.as_str()), (None, "app"));
    assert_eq!(config.labels["a"], "2");
}

#[test]
fn triggers_of_a_base_come_first_and_only_once() {
    let source = "FROM one AS early\nFROM two AS unused\nFROM base\nRUN last\n";
    let dockerfile = parse(source).unwrap();
    let planned = plan(&dockerfile, &options()).unwrap();
    let mut base = ImageConfig::default();
    base.config.on_build = vec!["ARG GIVEN".into(), "RUN <<E\necho $GIVEN\nE".into()];
    let stage = planned.stages.last().unwrap();
    let operations = stage.operations(&base, &[]).unwrap().operations;
    let texts: Vec<&str> = operations.iter().map(|operation| operation.text.as_str()).collect();
    assert_eq!(texts, ["ONBUILD ARG GIVEN", "ONBUILD RUN <<E (echo $GIVEN)", "RUN last"]);
    assert!(operations.iter().all(|operation| operation.config.on_build.is_empty()));

    // A stage that only a trigger reads from is planned on demand.
    base.config.on_build = vec!["COPY --from=early /a /b".into()];
    assert_eq!(stage.operations(&base, &[]), Err(OperationsError::NeedsStage(0)));
    let options = PlanOptions { also: BTreeSet::from([0]), ..options() };
    let planned = plan(&dockerfile, &options).unwrap();
    assert_eq!((planned.stages.len(), planned.target), (2, StageId(1)));
    assert!(planned.stages[1].operations(&base, &[]).is_ok());

    for wrong in ["FROM x", "RUN a\nRUN b", "RUNN", "ONBUILD RUN x", "COPY a", ""] {
        base.config.on_build = vec![wrong.to_owned()];
        let error = stage.operations(&base, &[]).unwrap_err();
        let OperationsError::Dockerfile(error) = error else { panic!("{error}") };
        assert_eq!((error.at.line, error.message.contains("ONBUILD")), (3, true), "{error}");
    }
}

mod any_text {
    use proptest::prelude::*;

    const PIECES: &str = "(FROM|RUN|COPY|ADD|ARG|ENV|LABEL|EXPOSE|USER|CMD|# escape=|<<E|--from=|\
        --chmod=|\\$A|\\$\\{A|:-|\\}|\\\\|\n|\n|\n| |\"|'|\\[|\\]|,|=|a|AS|scratch|0|é){0,40}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn parses_or_is_refused_at_a_position_inside(text in PIECES) {
            dockerfile::fuzz::dockerfile(text.as_bytes());
            let with_base = format!("FROM a\n{text}");
            dockerfile::fuzz::dockerfile(with_base.as_bytes());
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            dockerfile::fuzz::dockerfile(&bytes);
            dockerfile::fuzz::ignore_file(&bytes);
        }
    }
}

#[test]
fn lint_rules_find_what_they_should() {
    let ignore = IgnoreFile::parse("secret.txt").unwrap();
    let plan = PlanOptions { build_args: BTreeMap::new(), ..options() };
    let options = LintOptions { plan: &plan, image: &|_| None, ignore: Some(&ignore) };
    for path in cases("lint") {
        let source = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let dockerfile = parse(&source).unwrap_or_else(|e| panic!("{}", e.render(name, &source)));
        let found = lint(&dockerfile, &options);
        let found = found.unwrap_or_else(|error| panic!("{}", error.render(name, &source)));
        let mut out = String::new();
        for finding in &found.findings {
            writeln!(out, "{}: {} {}", finding.at.line, finding.rule, finding.message).unwrap();
        }
        expect_file![path.with_extension("out")].assert_eq(&out);
    }
}

#[test]
fn a_stage_that_a_context_replaces_is_not_looked_into() {
    let one = || ("one".to_owned(), dockerfile::NamedContext::Own);
    let text = "FROM alpine AS one\nLABEL a=$NONE\nFROM one\nLABEL a=$NONE\nFROM alpine\n";
    let source = parse(text).unwrap();
    let platform = Some(oci::Platform::new("linux", "s390x", None));
    let image = |_| Some(KnownImage { env: Some(Vec::new()), platform: platform.clone() });
    for (contexts, expected) in [
        (
            BTreeMap::new(),
            "1:InvalidBaseImagePlatform 2:UndefinedVar 4:UndefinedVar 5:InvalidBaseImagePlatform",
        ),
        (BTreeMap::from([one()]), "5:InvalidBaseImagePlatform"),
    ] {
        let plan = PlanOptions { contexts, ..options() };
        let found = lint(&source, &LintOptions { plan: &plan, image: &image, ignore: None });
        let found = found.unwrap().findings;
        let found = found.iter().map(|finding| format!("{}:{}", finding.at.line, finding.rule));
        assert_eq!(found.collect::<Vec<_>>().join(" "), expected);
    }
}

#[test]
fn a_finding_says_where_its_rule_is_explained() {
    let url = |rule| Finding { rule, message: String::new(), at: Span::default() }.url();
    let start = "https://docs.docker.com/go/dockerfile/rule/";
    assert_eq!(url("StageNameCasing"), format!("{start}stage-name-casing/"));
    assert_eq!(url("JSONArgsRecommended"), format!("{start}json-args-recommended/"));
    assert_eq!(url("UndefinedVar"), format!("{start}undefined-var/"));
}

#[test]
fn a_lint_setting_that_is_none_is_refused() {
    let plan = options();
    let options = LintOptions { plan: &plan, image: &|_| None, ignore: None };
    let check = |setting: &str| {
        let source = format!("# check={setting}\nFROM scratch\n");
        lint(&parse(&source).unwrap(), &options).map(|found| found.is_error)
    };
    assert_eq!(check("error=true"), Ok(true));
    assert_eq!(check("skip=A, B;experimental=all"), Ok(false));
    for wrong in ["skip", "errors=true", "error=maybe"] {
        assert_eq!(check(wrong).unwrap_err().at.line, 1, "{wrong}");
    }
}
