//! What the documentation shows is what the program takes.

use std::fs;
use std::path::Path;

use crate::sandbox;

/// The YAML examples of a page.
fn examples(page: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "```yaml" {
            let example: Vec<&str> =
                lines.by_ref().take_while(|line| line.trim() != "```").collect();
            examples.push(example.join("\n") + "\n");
        }
    }
    examples
}

#[test]
fn the_task_files_of_the_documentation_are_task_files() {
    let sandbox = sandbox();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut count = 0;
    for page in ["tasks.md", "purge.md", "agents.md", "build.md"] {
        let text = fs::read_to_string(docs.join(page)).expect("the page is there");
        for example in examples(&text).iter().filter(|example| example.contains("steps:")) {
            sandbox.write("acb.yaml", example);
            let args = ["render", "-f", "acb.yaml", "--set", "token=x", "--set", "tag=1"];
            let rendered = sandbox.refit(args).run();
            assert_eq!(rendered.code, Some(0), "{page}:\n{example}\n{}", rendered.stderr);
            assert!(
                !rendered.stderr.contains("warning"),
                "{page}:\n{example}\n{}",
                rendered.stderr
            );
            count += 1;
        }
    }
    assert!(count >= 4, "{count} examples");
}
