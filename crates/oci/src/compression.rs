//! How the layers of an image are compressed.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::media_type;

/// A way to compress layers, with a level that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    pub format: CompressionFormat,
    pub level: u32,
}

/// Names are those of BuildKit's `compression`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionFormat {
    Uncompressed,
    /// What every client reads.
    #[default]
    Gzip,
    /// Smaller and several times faster, for clients that read it.
    Zstd,
}

/// Why there is no such compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("`{0}` is not a compression, which are `uncompressed`, `gzip` and `zstd`")]
    Unknown(String),
    #[error("`{level}` is not a level of {format}, which are {} to {}", .levels.start(), .levels.end())]
    Level { format: CompressionFormat, level: u32, levels: RangeInclusive<u32> },
}

impl Compression {
    /// What was asked for, where the rest is as usual.
    pub fn new(
        format: Option<CompressionFormat>,
        level: Option<u32>,
        usual: Self,
    ) -> Result<Self, CompressionError> {
        let format = format.unwrap_or(usual.format);
        let usual = if format == usual.format { usual.level } else { format.usual_level() };
        let (level, levels) = (level.unwrap_or(usual), format.levels());
        match levels.contains(&level) {
            true => Ok(Self { format, level }),
            false => Err(CompressionError::Level { format, level, levels }),
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        let format = CompressionFormat::default();
        Self { format, level: format.usual_level() }
    }
}

impl CompressionFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    pub fn levels(self) -> RangeInclusive<u32> {
        match self {
            Self::Uncompressed => 0..=0,
            Self::Gzip => 0..=9,
            Self::Zstd => 1..=22,
        }
    }

    fn usual_level(self) -> u32 {
        match self {
            Self::Uncompressed => 0,
            Self::Gzip => 6,
            Self::Zstd => 3,
        }
    }

    /// The media type of a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Uncompressed => media_type::OCI_LAYER_TAR,
            Self::Gzip => media_type::OCI_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }
}

impl fmt::Display for CompressionFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CompressionFormat {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        let all = [Self::Uncompressed, Self::Gzip, Self::Zstd];
        let found = all.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| CompressionError::Unknown(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_as_usual() {
        let compression = |format, level| Compression { format, level };
        let usual = compression(CompressionFormat::Zstd, 9);
        let new = |format, level| Compression::new(format, level, usual).map(|new| new.level);
        assert_eq!(new(None, None), Ok(9));
        assert_eq!(new(Some(CompressionFormat::Zstd), None), Ok(9));
        assert_eq!(new(Some(CompressionFormat::Gzip), None), Ok(6));
        assert_eq!(new(None, Some(1)), Ok(1));
        let refused = new(Some(CompressionFormat::Gzip), Some(10)).unwrap_err().to_string();
        assert_eq!(refused, "`10` is not a level of gzip, which are 0 to 9");
        assert!(new(None, Some(0)).is_err() && new(None, Some(23)).is_err());
        let refused = "estargz".parse::<CompressionFormat>().unwrap_err().to_string();
        assert!(refused.starts_with("`estargz` is not a compression"), "{refused}");
    }
}
