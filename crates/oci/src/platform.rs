use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::null::null_is_default;

/// Operating system and processor that an image is for (image-spec, *Image Index*).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
}

impl Platform {
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" | "x86" => ("386", None),
            other => (other, None),
        };
        let variant = match (architecture, variant.or(implied)) {
            ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7"),
            (_, other) => other,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            os_version: None,
            os_features: Vec::new(),
        }
    }

    /// The platform this program was compiled for.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// Whether an image for `self` is what somebody who wants `wanted` should get.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let have = Self::new(&self.os, &self.architecture, self.variant.as_deref());
        let want = Self::new(&wanted.os, &wanted.architecture, wanted.variant.as_deref());
        have.os == want.os && have.architecture == want.architecture && have.variant == want.variant
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform `{0}` is not of the form os[/architecture[/variant]], such as `linux/arm64`")]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    /// `os[/architecture[/variant]]`; a lone os means amd64, a lone architecture linux.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refuse = || PlatformError(crate::digest::quoted(text));
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let valid = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        };
        if parts.len() > 3 || !parts.iter().all(valid) {
            return Err(refuse());
        }
        match parts[..] {
            ["local"] => Ok(Self::host()),
            [os @ ("linux" | "windows" | "darwin" | "freebsd" | "wasi")] => {
                Ok(Self::new(os, "amd64", None))
            }
            [architecture] => {
                let known = ["amd64", "x86_64", "arm64", "aarch64", "arm", "386", "riscv64"];
                match known.contains(&architecture) {
                    true => Ok(Self::new("linux", architecture, None)),
                    false => Err(refuse()),
                }
            }
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(refuse()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised() {
        let cases = [
            ("linux", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("LINUX/ARM64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
        ];
        for (text, normal) in cases {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal);
        }
        for bad in ["", "linux/", "a/b/c/d", "sparc", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
