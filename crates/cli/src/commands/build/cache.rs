//! `--cache-from` and `--cache-to`: which images hold build caches.

use api::{CacheExport, CacheMode};

use crate::error::{Error, Result};

/// One value: `type=registry,ref=IMAGE,…`, or the image alone.
struct CacheImage {
    image: String,
    mode: CacheMode,
}

/// The image of a `--cache-from`.
pub(super) fn import(text: &str) -> Result<String> {
    Ok(CacheImage::parse("--cache-from", text, &["type", "ref"])?.image)
}

/// A `--cache-to`.
pub(super) fn export(text: &str) -> Result<CacheExport> {
    let CacheImage { image, mode } =
        CacheImage::parse("--cache-to", text, &["type", "ref", "mode"])?;
    Ok(CacheExport { image, mode })
}

impl CacheImage {
    fn parse(flag: &str, text: &str, keys: &[&str]) -> Result<Self> {
        let refuse = |why: String| Error::usage(format!("`{flag} {text}`: {why}"));
        let form = match keys.contains(&"mode") {
            true => "it looks like `type=registry,ref=HOST/REPOSITORY:TAG,mode=max`",
            false => "it looks like `type=registry,ref=HOST/REPOSITORY:TAG`",
        };
        let fields = dockerfile::comma_separated(text).map_err(refuse)?;
        if let [image] = fields.as_slice()
            && !image.contains('=')
        {
            return Ok(Self { image: image.clone(), mode: CacheMode::Min });
        }
        let (mut kind, mut image, mut mode) = (None, None, CacheMode::Min);
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(refuse(format!("`{field}` is not `KEY=VALUE`")).with_hint(form));
            };
            match key.trim() {
                key if !keys.contains(&key) => {
                    let refused = refuse(format!("`{key}` is not a key of it"));
                    return Err(match dockerfile::nearest(key, keys.iter().copied()) {
                        Some(meant) => refused.with_hint(format!("did you mean `{meant}`?")),
                        None => refused.with_hint(form),
                    });
                }
                "type" => kind = Some(value),
                "ref" => image = Some(value),
                _ => {
                    mode = match value {
                        "min" => CacheMode::Min,
                        "max" => CacheMode::Max,
                        _ => {
                            let why = format!("`mode={value}` is neither `min` nor `max`");
                            return Err(refuse(why));
                        }
                    }
                }
            }
        }
        match (kind, image) {
            (Some("registry"), Some(image)) if !image.is_empty() => {
                Ok(Self { image: image.to_owned(), mode })
            }
            (Some("registry"), _) => Err(refuse("it has no `ref`".into()).with_hint(form)),
            (Some(kind), _) => Err(refuse(format!("`type={kind}` is not supported"))
                .with_hint("caches are kept in registries: use `type=registry`")),
            (None, _) => Err(refuse("it has no `type`".into()).with_hint(form)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_an_image() {
        assert_eq!(import("h:5000/app:cache").unwrap(), "h:5000/app:cache");
        assert_eq!(import("type=registry,ref=h/app:c").unwrap(), "h/app:c");
        let export = |text| export(text).map(|export| (export.image, export.mode)).unwrap();
        assert_eq!(export("h/app:c"), ("h/app:c".to_owned(), CacheMode::Min));
        assert_eq!(export("ref=h/app,mode=max,type=registry"), ("h/app".into(), CacheMode::Max));
        assert_eq!(export("\"type=registry\",ref=a,mode=min").1, CacheMode::Min);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = |text| {
            let error = export(text).unwrap_err();
            format!("{error}\n{}", error.hint().unwrap_or_default())
        };
        for (text, told) in [
            ("type=gha", "`type=gha` is not supported\ncaches are kept in registries"),
            ("type=inline", "`type=inline` is not supported\n"),
            ("type=registry", "it has no `ref`\nit looks like `type=registry,ref="),
            ("type=registry,ref=", "it has no `ref`"),
            ("ref=h/app", "it has no `type`"),
            ("type=registry,ref=a,mod=max", "`mod` is not a key of it\ndid you mean `mode`?"),
            ("type=registry,ref=a,compression=zstd", "`compression` is not a key of it\n"),
            ("type=registry,ref=a,mode=most", "`mode=most` is neither `min` nor `max`"),
            ("type=registry,app", "`app` is not `KEY=VALUE`"),
        ] {
            assert!(error(text).contains(told), "{text}: {}", error(text));
        }
        let error = import("type=registry,ref=a,mode=max").unwrap_err();
        assert!(error.to_string().contains("`mode` is not a key of it"));
    }
}
