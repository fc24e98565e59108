//! What git hosts send, as public projects have collected it: `REFIT_CASES` names the folder of the tables,
//! and `REFIT_GITHUB_EXAMPLES` that of GitHub's own examples. They are no part of this repository; CI must
//! have them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use control::{SourceDelivery, SourceEvent, SourceHost};

#[expect(clippy::disallowed_methods, reason = "it says where what is tested with is")]
fn folder(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable);
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{variable} must name a folder");
    found.map(PathBuf::from)
}

/// What a body says, on one line.
fn line(host: SourceHost, event: &str, body: &[u8]) -> String {
    let delivery = match SourceDelivery::parse(host, event, body) {
        Ok(delivery) => delivery,
        Err(error) => return format!("error: {error}"),
    };
    let events = delivery.events.iter().map(|event| match event {
        SourceEvent::Commit { branch, commit, .. } => format!("{branch} is {}", &commit[..7]),
        SourceEvent::PullRequest(request) => {
            let fork = if request.from_fork { " of a fork" } else { "" };
            let known = if request.may_be_known { " or known" } else { "" };
            let (number, into) = (request.number, &request.into);
            format!("#{number} into {into} is {}{fork}{known}", &request.commit[..7])
        }
        SourceEvent::Other(what) => format!("({what})"),
    });
    let events: Vec<String> = events.collect();
    let of = delivery.repositories.join(" or ");
    let default = delivery.default_branch.map(|branch| format!(" [{branch}]")).unwrap_or_default();
    format!("{of}{default}: {}", events.join(", "))
}

fn check(found: &[(String, String)], expected: &str) {
    // Most are of things that no trigger waits for.
    let telling = found.iter().filter(|(_, line)| !line.starts_with(": (event "));
    let lines: String = telling.map(|(name, line)| format!("{name} | {line}\n")).collect();
    expect_test::expect_file![expected].assert_eq(&lines);
}

/// All bodies below a folder, by path.
fn bodies(root: &Path, below: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "json") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// What the header of a delivery says of a file of the tables.
fn event(name: &str) -> &'static str {
    let file = name.rsplit('/').next().unwrap();
    let is = |part: &str| file.contains(part);
    match name.split('/').next().unwrap() {
        "gitea" if is("pull_request_comment") || is("pull-request-comment") => "issue_comment",
        "gitea" if is("pull_request") || is("pull-request-event") => "pull_request",
        "gitea" if is("push") => "push",
        "gitea" => "other",
        "bitbucket" if is("push") => "repo:push",
        "bitbucket" if is("request-created") || is("pr_created") => "pullrequest:created",
        "bitbucket" if is("request-updated") || is("pr_updated") => "pullrequest:updated",
        "bitbucket" => "other",
        "bitbucket-server" if is("refs-changed") || is("push") => "repo:refs_changed",
        "bitbucket-server" if is("pr-opened") || is("pr_open") => "pr:opened",
        "bitbucket-server" if is("from_ref_updated") => "pr:from_ref_updated",
        "bitbucket-server" => "other",
        _ => "",
    }
}

#[test]
fn bodies_of_hosts_are_understood() {
    let Some(cases) = folder("REFIT_CASES") else { return };
    let root = cases.join("webhooks");
    let hosts = [
        ("azuredevops", SourceHost::AzureDevOps),
        ("bitbucket", SourceHost::Bitbucket),
        ("bitbucket-server", SourceHost::BitbucketServer),
        ("gitea", SourceHost::Gitea),
        ("gitlab", SourceHost::GitLab),
    ];
    let mut found = Vec::new();
    for (below, host) in hosts {
        for (name, body) in bodies(&root, below) {
            let line = line(host, event(&name), &body);
            found.push((name, line));
        }
    }
    assert!(found.len() > 100, "{}", found.len());
    check(&found, "data/deliveries.txt");
}

#[test]
fn examples_of_github_are_understood() {
    let Some(root) = folder("REFIT_GITHUB_EXAMPLES") else { return };
    let file = root.join("api.github.com/index.json");
    let all: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let mut found = Vec::new();
    for kind in all.as_array().unwrap() {
        let name = kind["name"].as_str().unwrap();
        let examples = kind["examples"].as_array().unwrap();
        for (number, example) in examples.iter().enumerate() {
            let body = serde_json::to_vec(example).unwrap();
            let line = line(SourceHost::GitHub, name, &body);
            found.push((format!("{name} {number}"), line));
        }
    }
    assert!(found.len() > 100, "{}", found.len());
    check(&found, "data/github.txt");
}

#[test]
fn what_others_could_be_taken_for_is_told_apart() {
    let side = |branch: &str| {
        format!(
            r#"{{"ref": "{branch}", "sha": "{}", "repo": {{"full_name": "o/r"}}}}"#,
            "1".repeat(40)
        )
    };
    let request = |from: &str| {
        let (head, base) = (side(from), side("main"));
        let request = format!(r#"{{"number": 7, "head": {head}, "base": {base}}}"#);
        format!(
            r#"{{"action": "opened", "repository": {{"full_name": "o/r"}}, "pull_request": {request}}}"#
        )
    };
    let told = |from: &str| line(SourceHost::Gitea, "pull_request", request(from).as_bytes());
    assert_eq!(told("feature"), "o/r: #7 into main is 1111111");
    // Without a branch of its own: whoever may read the repository can make such.
    assert_eq!(told("refs/pull/7/head"), "o/r: #7 into main is 1111111 of a fork");
    // One name that cannot be used keeps no other branch from its run.
    let change = |name: &str| {
        let hash = "1".repeat(40);
        format!(
            r#"{{"new": {{"type": "branch", "name": "{name}", "target": {{"hash": "{hash}"}}}}}}"#
        )
    };
    let body = format!(
        r#"{{"repository": {{"full_name": "o/r"}}, "push": {{"changes": [{}, {}]}}}}"#,
        change("-x"),
        change("main")
    );
    assert_eq!(
        line(SourceHost::Bitbucket, "repo:push", body.as_bytes()),
        "o/r: (`-x` is no name of a branch or of a reference), main is 1111111"
    );
    let generic = |text: &str| line(SourceHost::Generic, "", text.as_bytes());
    assert_eq!(
        generic("{}"),
        "error: it is not what Generic sends for ``: missing field `event` at line 1 column 2"
    );
    assert_eq!(
        generic(r#"{"event": "commit", "branch": "main"}"#),
        "error: it is not what Generic sends for ``: missing field `commit`"
    );
    let commit = "1".repeat(40);
    let with =
        |more: &str| generic(&format!(r#"{{"commit": "{commit}", "branch": "main", {more}}}"#));
    assert_eq!(with(r#""event": "commit""#), ": main is 1111111");
    let request = r#""event": "pullrequest", "number": 7, "reference": "refs/pull/7/head""#;
    assert_eq!(with(request), ": #7 into main is 1111111 of a fork");
    assert_eq!(with(&format!(r#"{request}, "fork": false"#)), ": #7 into main is 1111111");
    let odd = r#""event": "pullrequest", "number": 7, "reference": "main:/etc""#;
    assert_eq!(with(odd), "error: `main:/etc` is no name of a branch or of a reference");
}
