//! The names under which a model can be asked for, and what is safe to use as a path.

use std::fmt;
use std::path::{Component, Path};

/// A model on a hub: `org/name`, at a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag, `refs/pr/1`, or a commit of 40 hexadecimal digits; `main` by default.
    pub revision: String,
}

impl ModelName {
    /// Parses `org/name` or `org/name@revision`; `None` where `spec` breaks the hub's rules for
    /// names (ASCII letters, digits, `-`, `_`, `.`; no `--` or `..`; at most 96 per part).
    #[must_use]
    pub fn parse(spec: &str) -> Option<Self> {
        let (repo, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let (org, name) = repo.split_once('/')?;
        let valid = is_repo_part(org) && is_repo_part(name) && !name.ends_with(".git");
        (valid && is_plain_path(revision))
            .then(|| Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// The commit that the revision itself names, if it is one.
    pub(crate) fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => write!(f, "{}", self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

fn is_repo_part(part: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=96).contains(&part.len())
        && part.chars().all(|c| edge(c) || c == '-' || c == '.')
        && part.starts_with(edge)
        && part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

/// Whether `text` is a full commit id: 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether `name` stays inside the folder that it is joined to: relative, `/` as the only
/// separator, no `.`, `..`, empty part or control character. Names of shards, modules and
/// revisions come from files and servers that are not trusted.
pub(crate) fn is_plain_path(name: &str) -> bool {
    let forbidden = |c: char| c.is_control() || matches!(c, '\\' | ':');
    !name.contains(forbidden)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether `spec` can only be meant as a path, so that asking a hub for it would mislead.
pub(crate) fn looks_like_path(spec: &str) -> bool {
    spec.starts_with(['.', '/', '~'])
        || spec.ends_with('/')
        || spec.contains('\\')
        || spec.split('@').next().is_some_and(|path| path.matches('/').count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_the_hub() {
        let longest = "a".repeat(96);
        let too_long = "a".repeat(97);
        let cases = [
            ("org/name", Some(("org/name", "main"))),
            ("Org_1/all-MiniLM-L6.v2@v1.0", Some(("Org_1/all-MiniLM-L6.v2", "v1.0"))),
            ("org/name@refs/pr/1", Some(("org/name", "refs/pr/1"))),
            (&format!("org/{longest}"), Some((&format!("org/{longest}"), "main"))),
            (&format!("org/{too_long}"), None),
            ("name", None),
            ("default", None),
            ("", None),
            ("/name", None),
            ("org/", None),
            ("a/b/c", None),
            ("org/na--me", None),
            ("org/na..me", None),
            ("org/-name", None),
            ("org/name.", None),
            ("org/name.git", None),
            ("org/näme", None),
            ("org/name@", None),
            ("org/name@../../etc", None),
            ("org/name@/etc", None),
        ];
        for (spec, expected) in cases {
            let expected = expected.map(|(repo, revision)| ModelName {
                repo: repo.to_owned(),
                revision: revision.to_owned(),
            });
            assert_eq!(ModelName::parse(spec), expected, "{spec}");
        }
    }

    #[test]
    fn paths_are_told_from_names() {
        for path in ["./x", "../x", "/x", "~/x", "~", ".", "a/b/c", "models/", "a\\b", "C:\\x"] {
            assert!(looks_like_path(path), "{path}");
        }
        for name in ["org/name", "default", "org/name@refs/pr/1", ""] {
            assert!(!looks_like_path(name), "{name}");
        }
    }

    #[test]
    fn only_plain_paths_stay_inside() {
        for inside in ["config.json", "1_Pooling/config.json", "a b", "..x"] {
            assert!(is_plain_path(inside), "{inside}");
        }
        let outside = ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "C:a", "a\0b"];
        for name in outside {
            assert!(!is_plain_path(name), "{name:?}");
        }
    }

    #[test]
    fn display_leaves_out_the_default_revision() {
        for spec in ["org/name", "org/name@v2"] {
            assert_eq!(ModelName::parse(spec).map(|m| m.to_string()).as_deref(), Some(spec));
        }
    }
}
