//! Task files and what they come to, good and bad: `tests/data`, named for the cases of
//! test-cases.md they are.
//!
//! Lines that start with `#:` say what the run brings along: `#: network ext`,
//! `#: env A=0`, `#: set a=1`, `#: source FILE {x: 1}`, `#: secret ID VALUE`, `#: volumes` to decode volumes.
//! `UPDATE_EXPECT=1` rewrites the results; read the diff.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use expect_test::expect_file;
use task::{
    Action, AliasImages, AliasSource, Attempts, Container, RunDefaults, RunVariables, SecretText,
    Secrets, Task, TaskError, TaskFile, Variables,
};

#[derive(Default)]
struct Surroundings {
    variables: Variables,
    run: RunDefaults,
    sources: BTreeMap<AliasSource, String>,
    secrets: Secrets,
    decodes_volumes: bool,
}

fn surroundings(source: &str) -> Surroundings {
    let mut all = Surroundings::default();
    all.variables.run = RunVariables {
        id: "ca1".to_owned(),
        registry: "contoso.azurecr.io".to_owned(),
        started: "2024-03-05T06:07:08Z".parse().unwrap(),
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..RunVariables::default()
    };
    for option in source.lines().filter_map(|line| line.strip_prefix("#: ")) {
        let (name, value) = option.split_once(' ').unwrap_or((option, ""));
        let (first, second) = value.split_once(' ').unwrap_or((value, ""));
        match name {
            "network" => all.run.network = Some(value.to_owned()),
            "env" => all.run.env.push(value.to_owned()),
            "set" => all.variables.values.set(value).unwrap(),
            "source" => {
                all.sources.insert(AliasSource::File(first.to_owned()), second.to_owned());
            }
            "secret" => {
                all.secrets.insert(first.to_owned(), SecretText::new(second));
            }
            "volumes" => all.decodes_volumes = true,
            _ => panic!("unknown option {option}"),
        }
    }
    all
}

fn outline(source: &str) -> Result<String, TaskError> {
    let image = |name: &str| format!("tools/{name}:1");
    let images = AliasImages {
        acr: image("acr"),
        az: image("az"),
        bash: image("bash"),
        curl: image("curl"),
        cssc: image("cssc"),
    };
    let Surroundings { variables, run, sources, secrets, decodes_volumes } = surroundings(source);
    let expanded = TaskFile::read(source, &variables)?.expand(&sources, &images, &variables)?;
    let mut out = String::new();
    for secret in expanded.secrets(&variables)? {
        let client = secret.client_id.map(|id| format!(" as {id}")).unwrap_or_default();
        writeln!(out, "wants secret {} from {}{client}", secret.id, secret.address).unwrap();
    }
    let (task, warnings) = expanded.render(&variables, &secrets)?.task(&run)?;
    for warning in warnings {
        out += &warning.render_warning("acb.yaml", source);
    }
    show(&mut out, &task);
    if decodes_volumes {
        for volume in &task.volumes {
            for (name, bytes) in volume.files()? {
                let text = String::from_utf8_lossy(&bytes);
                writeln!(out, "file {name} of {}: {text:?}", volume.name).unwrap();
            }
        }
    }
    Ok(out)
}

fn show(out: &mut String, task: &Task) {
    writeln!(out, "version {}", task.version).unwrap();
    for network in &task.networks {
        writeln!(out, "{network:?}").unwrap();
    }
    for (number, step) in task.steps.iter().enumerate() {
        let after: Vec<&str> =
            task.graph.predecessors(number).map(|n| &*task.steps[n].id).collect();
        let after = if after.is_empty() {
            "at once".to_owned()
        } else {
            format!("after {}", after.join(", "))
        };
        writeln!(out, "step {} {after}, timeout {:?}", step.id, step.timeout).unwrap();
        if !step.start_delay.is_zero() || step.ignore_errors {
            writeln!(out, "  delay {:?}, ignores errors: {}", step.start_delay, step.ignore_errors)
                .unwrap();
        }
        match &step.action {
            Action::Cmd(cmd) => {
                writeln!(out, "  cmd {:?}", cmd.command).unwrap();
                for extra in [
                    cmd.entry_point.as_ref().map(|e| format!("{e:?}")),
                    cmd.pull.as_ref().map(|p| format!("{p:?}")),
                ]
                .into_iter()
                .flatten()
                {
                    writeln!(out, "  {extra}").unwrap();
                }
                show_container(out, &cmd.attempts, &cmd.container);
            }
            Action::Build(build) => {
                writeln!(out, "  build {:?}", build.arguments).unwrap();
                if build.cache {
                    writeln!(out, "  cached").unwrap();
                }
                show_container(out, &build.attempts, &build.container);
            }
            Action::Push(push) => {
                let images: Vec<String> = push.images.iter().map(ToString::to_string).collect();
                writeln!(out, "  push {}", images.join(" ")).unwrap();
            }
        }
    }
}

fn show_container(out: &mut String, attempts: &Attempts, container: &Container) {
    let Attempts { retries, retry_delay, retry_on_errors, repeat } = attempts;
    writeln!(
        out,
        "  retries {retries}, delay {retry_delay:?} on {retry_on_errors:?}, repeat {repeat}"
    )
    .unwrap();
    let directory = container.working_directory.as_deref().unwrap_or("of the image");
    let network = container.network.as_deref().unwrap_or("none of the task");
    writeln!(out, "  in {directory}, network {network}").unwrap();
    let env: Vec<String> =
        container.env.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    writeln!(out, "  env {}", env.join(" ")).unwrap();
    for mount in &container.mounts {
        writeln!(out, "  {} at {}", mount.volume, mount.path).unwrap();
    }
    let Container { ports, expose, user, privileged, detach, keep, isolation, cpus, .. } =
        container;
    let more = format!(
        "{ports:?} {expose:?} {user:?} {privileged} {detach} {keep} {isolation:?} {cpus:?}"
    );
    if more != "[] [] None false false false None None" {
        writeln!(out, "  ports {ports:?} {expose:?}, user {user:?}, privileged {privileged}")
            .unwrap();
        writeln!(out, "  detach {detach}, keep {keep}, isolation {isolation:?}, cpus {cpus:?}")
            .unwrap();
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    let mut files: Vec<PathBuf> = files.filter(is_yaml).collect();
    files.sort();
    assert!(files.len() > 50, "only {} cases", files.len());
    files
}

#[test]
fn task_files_come_to_what_they_should() {
    for path in files() {
        let source = std::fs::read_to_string(&path).unwrap();
        let actual = outline(&source).unwrap_or_else(|error| error.render("acb.yaml", &source));
        for secret in surroundings(&source).secrets.values() {
            let shown = actual.contains(secret.expose()) && actual.starts_with("error");
            assert!(!shown, "{}: a secret is shown", path.display());
        }
        expect_file![path.with_extension("out")].assert_eq(&actual);
    }
}

/// Whatever is cut out of or put into a valid file, it gives a value or an error.
#[test]
fn damaged_files_never_panic() {
    for path in files() {
        let source = std::fs::read(&path).unwrap();
        for end in (0..source.len()).step_by(7) {
            task::fuzz::task_file(&source[..end]);
            for mark in [&b"{{"[..], b"[", b"\"", b"$", b"\n- ", b"&a *a ", b"\0", b"\xff"] {
                task::fuzz::task_file(&[&source[..end], mark, &source[end..]].concat());
            }
        }
    }
}

/// Files as large as they may be, each at a weak spot.
#[test]
fn large_files_end_soon() {
    let full =
        |start: &str, unit: &str| start.to_owned() + &unit.repeat(((1 << 20) - 5000) / unit.len());
    let numbered = |start: &str, unit: &str| {
        let lines: String = (0..30_000).map(|n| unit.replace("N", &n.to_string())).collect();
        start.to_owned() + &lines
    };
    let aliases = "version: v1.1.0\nalias:\n  values: {a: b}\n";
    let many_steps = "- {cmd: x}\n".repeat(500);
    let mounts = "volumes:\n".to_owned()
        + &(0..10_000)
            .map(|n| format!("- {{name: v{n}, secret: {{f: YQ==}}}}\n"))
            .collect::<String>()
        + "steps:\n- cmd: x\n  volumeMounts:\n"
        + &"  - {name: v99, mountPath: /m}\n".repeat(10_000);
    let files = [
        full(&format!("{aliases}steps:\n"), "- cmd: $ID\n"),
        full(aliases, "$a"),
        full(aliases, "$"),
        full("steps: [", "{{1}}"),
        full("", "{{if 1}}"),
        full("", "{{/* */}}"),
        full("a: ", "{"),
        full("a: ", "["),
        full("", "- "),
        full("", "? "),
        full("a: \"", "x"),
        full("a: |\n", "  x\n"),
        full("#", "#\n#"),
        full("", "a: &a *a\n"),
        full("", "a: b\n"),
        full("a: ", "&a "),
        full("a: ", "!a "),
        full("a: [", "x, "),
        full("a: {", "x, "),
        full("%", "a "),
        full("a:", "\n "),
        numbered("", "keyN: x\n"),
        numbered("secrets:\n", "- {id: sN, keyvault: x}\n"),
        numbered("networks:\n", "- {name: nN}\n"),
        numbered("steps:\n- cmd: x\n  when:\n", "  - sN\n"),
        numbered("steps:\n- push:\n", "  - aN\n"),
        numbered("steps:\n- cmd: x\n  env:\n", "  - A=N\n"),
        numbered("env: [\"A=1", ",AN=1") + "\"]\nsteps:\n" + &many_steps,
        numbered("steps:\n- build: ", "-t aN "),
        numbered("steps:\n- build: ", "'a b' "),
        mounts,
    ];
    for text in files {
        let started = Instant::now();
        task::fuzz::task_file(text.as_bytes());
        let shown: String = text.chars().take(60).collect();
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(20), "{shown}: {elapsed:?}");
    }
    let line = format!("a: {}[", "x ".repeat(400_000));
    let error = outline(&(line + "{{if}}")).unwrap_err().render("acb.yaml", "");
    assert!(error.len() < 2000, "{}", error.len());
    let large = "a: b\n".repeat(1 << 18);
    assert!(outline(&large).unwrap_err().message.contains("more than 1048576 bytes"));
}

mod properties {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            task::fuzz::task_file(&bytes);
            task::fuzz::build_arguments(&bytes);
        }

        #[test]
        fn random_task_words_never_panic(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "version: v1.1.0\n", "alias:\n", "  values: {a: b}\n", "steps:\n", "- ", "cmd: ",
                    "when: ", "[", "]", "{", "}", "{{", "}}", ".Run.ID ", "$", "$a", "a ", "\n", "  ",
                    "build: ", "push: ", "secrets: ", "id: ", "\"", "'", "|", ": ", "- - ", "*a ", "&a ",
                    "if ", "end ", "range ", "list ", "define \"x\" ", "template \"x\" ", "<<: ", "#", "---\n",
                ]),
                0..60,
            ),
        ) {
            task::fuzz::task_file(words.concat().as_bytes());
        }

        #[test]
        fn steps_wait_only_for_earlier_ones(
            whens in proptest::collection::vec(proptest::collection::vec(0_usize..12, 0..4), 1..12),
        ) {
            let mut text = String::from("steps:\n");
            for (number, when) in whens.iter().enumerate() {
                let names: Vec<String> = when.iter().map(|n| format!("s{n}")).collect();
                text += &format!("- {{id: s{number}, cmd: x, when: [{}]}}\n", names.join(", "));
            }
            let all_earlier = whens.iter().enumerate().all(|(n, when)| when.iter().all(|w| *w < n));
            prop_assert_eq!(super::outline(&text).is_ok(), all_earlier);
            task::fuzz::task_file(text.as_bytes());
        }
    }
}
