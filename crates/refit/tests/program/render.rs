//! `refit render`: what a task file comes to.

use expect_test::expect;

use crate::sandbox;

const TASK: &str = "\
version: v1.1.0
steps:
  # comes first
  - id: build
    build: -t $Registry/app:{{.Values.tag}} .
  - id: test
    cmd: bash echo {{.Values.password}}
    whn: [build]
  - id: push
    push: [\"$Registry/app:{{.Values.tag}}\"]
    when: [build, test]
";

#[test]
fn a_task_file_is_shown_as_it_would_be_run() {
    let sandbox = sandbox();
    sandbox.write("acb.yaml", TASK).write("values.yaml", "tag: 1\npassword: x\n");
    let args = ["render", "--values", "values.yaml", "--set", "tag=2"];
    let shown = sandbox.refit(args).arg("--set-secret").arg("password=hunter22").run();
    expect![[r#"
        exit: 0
        -- stdout --
        version: v1.1.0
        steps:
          - id: build
            build: -t local/app:2 .
          - id: test
            cmd: bash echo ***
            whn: [build]
          - id: push
            push: ["local/app:2"]
            when: [build, test]

        STEP   KIND   STARTS
        ----   ----   ------
        build  build  at once
        test   cmd    after build
        push   push   after build, test
        -- stderr --
        warning: `whn` is not a key of a step and is ignored
         --> acb.yaml:8:5
          |
        8 |     whn: [build]
          |     ^^^
        hint: did you mean `when`?
    "#]]
    .assert_eq(&shown.snapshot());
}

#[test]
fn programs_get_the_steps_as_json() {
    let sandbox = sandbox();
    let text = "steps: [{id: a, cmd: x}, {id: b, push: [y], when: ['-']}, {id: c, cmd: z}]\n";
    let shown = sandbox.refit(["render", "-f", "-", "-o", "json"]).stdin(text).succeeds();
    let steps = &shown.json()["steps"];
    assert_eq!(steps[0]["after"], serde_json::json!([]));
    assert_eq!((&steps[1]["id"], &steps[1]["kind"]), (&"b".into(), &"push".into()));
    assert_eq!(steps[2]["after"], serde_json::json!(["b"]));
}

#[test]
fn a_mistake_is_shown_in_its_line_with_a_hint() {
    let sandbox = sandbox();
    let refused = sandbox
        .refit(["render", "-f", "-"])
        .stdin("steps:\n  - id: a\n    cmd: x\n  - {id: b, cmd: y, when: [aa]}\n");
    expect![[r#"
        exit: 1
        -- stdout --
        -- stderr --
        error: step `b` waits for `aa`, which is not a step before it
         --> standard input:4:28
          |
        4 |   - {id: b, cmd: y, when: [aa]}
          |                            ^^
        hint: did you mean `a`?
    "#]]
    .assert_eq(&refused.run().snapshot());
    sandbox.write("values.yaml", "[a]\n").write("acb.yaml", "steps: []\n");
    sandbox
        .refit(["render", "--values", "values.yaml"])
        .run()
        .code(1)
        .stderr_has("a values file must be a map")
        .stderr_has("values.yaml:1:1");
    sandbox.refit(["render", "--set", "=x"]).run().code(2).stderr_has("`--set` has no name");
    sandbox.refit(["render", "-f", "none.yaml"]).run().code(2).stderr_has("`none.yaml` cannot");
}

#[test]
fn aliases_come_from_files_here_and_from_no_address() {
    let sandbox = sandbox();
    let task = |source: &str| {
        format!("version: v1.1.0\nalias:\n  src: [\"{source}\"]\nsteps:\n  - cmd: $tool a\n")
    };
    sandbox.write("names.yaml", "tool: localhost:5000/tool:1\n");
    sandbox.write("acb.yaml", task("names.yaml"));
    let shown = sandbox.refit(["render"]).succeeds().stdout;
    assert!(shown.contains("- cmd: localhost:5000/tool:1 a\n"), "{shown}");
    sandbox.write("acb.yaml", task("http://127.0.0.1:9/names.yaml"));
    sandbox.refit(["render"]).run().code(1).stderr_has("which is fetched only by a run");
}

#[test]
fn secrets_of_a_vault_are_shown_empty() {
    let task = "secrets:\n  - {id: pw, keyvault: 'https://v.example.com/secrets/pw'}\nsteps:\n  - cmd: app [{{.Secrets.pw}}]\n";
    let shown = sandbox().refit(["render", "-f", "-"]).stdin(task).succeeds();
    assert!(shown.stdout.contains("cmd: app []"), "{}", shown.stdout);
    shown.stderr_has("The secret `pw` of https://v.example.com/secrets/pw is shown empty");
}
