//! What tests look at from outside.

use std::path::{Path, PathBuf};

/// Where a text is in the log, which has it.
#[track_caller]
pub(crate) fn place(log: &str, text: &str) -> usize {
    log.find(text).unwrap_or_else(|| panic!("`{text}` is not in:\n{log}"))
}

/// How many processes of the machine have this command line, its words joined by blanks.
pub(crate) fn processes(command: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("it is mounted").flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let wanted = format!("{}\0", command.replace(' ', "\0"));
    lines.filter(|line| line == wanted.as_bytes()).count()
}

/// Files below a folder that hold some bytes.
pub(crate) fn holding(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder can be listed").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a file has a type");
        if kind.is_dir() {
            found.extend(holding(&path, bytes));
        } else if kind.is_file() {
            let content = std::fs::read(&path).unwrap_or_default();
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(path);
            }
        }
    }
    found
}
