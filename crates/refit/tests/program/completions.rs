use crate::sandbox;

#[test]
fn each_shell_gets_completions_for_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox().refit(["completions", shell]).run().success().stdout;
        for word in ["repository", "show-tags", "build-arg", "doctor"] {
            assert!(script.contains(word), "`{word}` is missing for {shell}");
        }
        for hidden in ["sandbox-helper", "update-trigger-endpoint"] {
            assert!(!script.contains(hidden), "`{hidden}` is offered for {shell}");
        }
        assert!(script.contains("json yaml tsv table none") || shell != "bash", "{script}");
    }
    sandbox().refit(["completions", "cmd.exe"]).run().code(2);
}
