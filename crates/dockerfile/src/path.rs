//! Slash-separated paths as text, cleaned without looking at any disk.

/// The shortest path that means the same, by text alone: no empty, `.` or inner `..` parts.
/// `..` at the root stays at the root; the empty path is `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => (),
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => (),
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// `path` seen from the folder `base`, cleaned and absolute.
pub fn absolute(base: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => clean(path),
        false => clean(&format!("/{base}/{path}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_cleaned_as_text() {
        let cases = [
            ("", "."),
            ("/", "/"),
            ("a/../b", "b"),
            ("/../a", "/a"),
            ("../a/..", ".."),
            ("a//b/./c/", "a/b/c"),
            ("a/../..", ".."),
        ];
        for (path, cleaned) in cases {
            assert_eq!(clean(path), cleaned, "{path}");
        }
        assert_eq!(absolute("/srv", "app"), "/srv/app");
        assert_eq!(absolute("", "../../app"), "/app");
        assert_eq!(absolute("/srv", "/app/"), "/app");
    }

    proptest! {
        #[test]
        fn a_clean_path_stays_as_it_is(path in "[a./]{0,20}") {
            let once = clean(&path);
            prop_assert_eq!(&clean(&once), &once);
            prop_assert!(!once.contains("//"));
        }

        #[test]
        fn an_absolute_path_never_climbs(base in "[ab./]{0,10}", path in "[ab./]{0,20}") {
            let absolute = absolute(&base, &path);
            prop_assert!(absolute.starts_with('/'));
            prop_assert!(absolute.split('/').all(|part| part != ".." && part != "."));
        }
    }
}
