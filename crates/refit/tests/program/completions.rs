use crate::sandbox;

#[test]
fn each_shell_gets_completions_for_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox().refit(["completions", shell]).run().success().stdout;
        for word in ["repository", "show-tags", "build-arg", "doctor"] {
            assert!(script.contains(word), "`{word}` is missing for {shell}");
        }
        assert!(!script.contains("sandbox-helper"));
    }
    sandbox().refit(["completions", "cmd.exe"]).run().code(2);
}
