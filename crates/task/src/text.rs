//! What happens to a task file while it is only lines: comments go, the version is found,
//! the alias section is cut out (task-yaml.md sections 1.1 and 2, steps 2 to 4a).

use crate::task::VERSIONS;

/// The task file of a context where none is named.
pub const DEFAULT_FILE: &str = "acb.yaml";
/// How the names of task files end; all are read as YAML.
const EXTENSIONS: [&str; 17] = [
    ".yaml", ".yml", ".toml", ".json", ".sh", ".bash", ".zsh", ".ps1", ".ps", ".cmd", ".bat",
    ".ts", ".js", ".php", ".py", ".rb", ".lua",
];

/// Whether a file of this name is a task file, and not a Dockerfile.
pub fn is_task_file(name: &str) -> bool {
    EXTENSIONS.iter().any(|extension| name.ends_with(extension))
}

/// The text without the lines whose first non-blank character is `#`, wherever they are:
/// in a block scalar they go too.
pub(crate) fn strip_comments(text: &str) -> String {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    text.split_inclusive('\n').filter(|line| !is_comment(line)).collect()
}

/// Whether the text enables aliases, told from the first line that has a version in column 0.
pub(crate) fn has_aliases(text: &str) -> bool {
    let mut versions = text.lines().filter_map(version);
    let newest = VERSIONS[VERSIONS.len() - 1];
    // As in the reference, the texts are compared, so that what follows the version, such
    // as a comment, does not count.
    versions.next().is_some_and(|version| version >= newest || version.eq_ignore_ascii_case(newest))
}

/// The version that a line declares, if it does.
fn version(line: &str) -> Option<&str> {
    let quotes = ['"', '\''];
    let line = line.trim_start_matches(quotes);
    let (name, version) = line.split_once(':')?;
    let around = |c: char| c.is_whitespace() || quotes.contains(&c);
    let is_version = line.starts_with("version") && name.trim_matches(around) == "version";
    is_version.then(|| version.trim_matches(around))
}

/// A text and its alias section.
pub(crate) struct Sections {
    pub(crate) body: String,
    pub(crate) aliases: String,
}

/// Splits off the lines from `alias:` in column 0 to the next key in column 0.
pub(crate) fn split_aliases(text: &str) -> Sections {
    let mut sections = Sections { body: String::new(), aliases: String::new() };
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        let starts_section = line.strip_prefix("alias").is_some_and(|rest| {
            sections.aliases.is_empty() && rest.trim_start_matches(' ').starts_with(':')
        });
        let starts_key =
            !line.starts_with(|c: char| c.is_whitespace() || c == ':') && line.contains(':');
        inside = starts_section || (inside && !starts_key);
        match inside {
            true => sections.aliases.push_str(line),
            false => sections.body.push_str(line),
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_on_from_the_newest_version() {
        let cases = [
            ("version: v1.1.0", true),
            ("version: v1.0.0", false),
            ("version: V1.1.0", true),
            ("version: v1.1.0 # note", true),
            ("version: v1.2.0", true),
            ("\"version\" : 'v1.1.0'", true),
            ("version:v1.1.0", true),
            ("  version: v1.1.0", false),
            ("versionOfTask: v1.1.0", false),
            ("steps: []\nversion: v1.1.0", true),
            ("version: v1.0.0\nversion: v1.1.0", false),
            ("", false),
        ];
        for (text, expected) in cases {
            assert_eq!(has_aliases(text), expected, "{text}");
        }
    }

    #[test]
    fn task_files_are_told_by_their_names() {
        assert!(is_task_file("task.json") && is_task_file("a/acb.yaml"), "l13");
        assert!(!is_task_file("build.txt") && !is_task_file("Dockerfile"), "l14");
    }

    #[test]
    fn comment_lines_go_wherever_they_are() {
        assert_eq!(
            strip_comments("a: |\n  x\n  # $ID\n\t#!\n  y # z\n#end"),
            "a: |\n  x\n  y # z\n"
        );
    }

    #[test]
    fn the_alias_section_ends_at_the_next_key() {
        let text = "version: v1.1.0\nalias :\n  values:\n\n    a: b\n- odd\nsteps:\n  - cmd: $a\n";
        let sections = split_aliases(text);
        assert_eq!(sections.aliases, "alias :\n  values:\n\n    a: b\n- odd\n");
        assert_eq!(sections.body, "version: v1.1.0\nsteps:\n  - cmd: $a\n");
        let none = split_aliases("aliases: 1\n alias: 2\n");
        assert_eq!(none.aliases, "");
    }
}
