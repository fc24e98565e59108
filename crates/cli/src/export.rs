//! `--output type=…`: what a build leaves besides the registry, and where.

mod archive;
mod files;
mod place;

use std::path::PathBuf;

use oci::{
    Compression, CompressionFormat, Descriptor, Digest, Hasher, ImageManifest, MANIFEST_SIZE_MAX,
    Manifest, Reference,
};
use reqwest::Method;

use crate::connection::Connection;
use crate::error::{Error, Result, could_not};
pub(crate) use archive::descriptor;
use files::LeftOut;
pub use place::Place;
pub(crate) use place::can_write;

/// The types there are, for messages.
const TYPES: &str = "`image`, `registry`, `oci`, `docker`, `tar` and `local`";

/// One `--output type=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    target: Target,
    /// Another name for the image.
    name: Option<String>,
    layers: Layers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// What a build does anyway, or keeping the image out of the registry.
    Registry { push: bool },
    /// The image with all its blobs.
    Image { form: ImageForm, place: Place },
    /// What a container would see.
    Files { place: Place },
}

impl Target {
    fn is_of_one_platform(&self) -> bool {
        match self {
            Self::Image { form: ImageForm::Docker, .. } => true,
            Self::Image { form: ImageForm::Oci, .. }
            | Self::Registry { .. }
            | Self::Files { .. } => false,
        }
    }
}

/// How layers are compressed, under BuildKit's names; as the server is set where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Layers {
    pub(crate) compression: Option<CompressionFormat>,
    pub(crate) level: Option<u32>,
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageForm {
    Oci,
    /// An OCI layout with what `docker load` needs besides.
    Docker,
}

impl Export {
    /// Whether a text of `--output` is no form of results.
    pub(crate) fn is_meant(text: &str) -> bool {
        text == "-" || text.contains('=') || text.contains('/')
    }

    /// Reads `type=TYPE,dest=PLACE,…`.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts = dockerfile::comma_separated(text)?;
        let mut fields = Vec::new();
        for part in &parts {
            match part.split_once('=') {
                Some((key, value)) => fields.push((key.trim(), value)),
                None if text == "-" => fields.extend([("type", "tar"), ("dest", "-")]),
                None if parts.len() == 1 => fields.extend([("type", "local"), ("dest", &**part)]),
                None => return Err(format!("`{part}` is not `KEY=VALUE`")),
            }
        }
        let mut take = |key: &str| {
            let at = fields.iter().position(|(found, _)| *found == key)?;
            Some(fields.remove(at).1)
        };
        let kind = take("type").ok_or_else(|| format!("it has no `type`, one of {TYPES}"))?;
        let (target, keys) = match kind {
            "image" | "registry" => {
                let push = take("push").map_or(Ok(true), |value| switch("push", value))?;
                (Target::Registry { push }, "`push`")
            }
            "oci" | "docker" => {
                let form = if kind == "oci" { ImageForm::Oci } else { ImageForm::Docker };
                let is_tar = take("tar").map_or(Ok(true), |value| switch("tar", value))?;
                let dest = take("dest").filter(|dest| !dest.is_empty());
                let dest = dest.ok_or_else(|| match form {
                    ImageForm::Oci => "it needs `dest=FILE`".to_owned(),
                    ImageForm::Docker => "it needs `dest=FILE`, for `docker load`".to_owned(),
                })?;
                let place = match (is_tar, dest) {
                    (true, "-") => Place::Stdout,
                    (true, file) => Place::File(PathBuf::from(file)),
                    (false, "-") => return Err("a folder cannot be written to `-`".to_owned()),
                    (false, folder) => Place::Folder(PathBuf::from(folder)),
                };
                (Target::Image { form, place }, "`dest`, `tar`")
            }
            "tar" | "local" => {
                let dest = take("dest").filter(|dest| !dest.is_empty());
                let place = match (kind, dest) {
                    ("tar", None) => return Err("it needs `dest=FILE`".to_owned()),
                    ("tar", Some("-")) => Place::Stdout,
                    ("tar", Some(file)) => Place::File(PathBuf::from(file)),
                    (_, None) => return Err("it needs `dest=FOLDER`".to_owned()),
                    (_, Some(folder)) => Place::Folder(PathBuf::from(folder)),
                };
                (Target::Files { place }, "`dest`")
            }
            other => return Err(format!("`{other}` is not a type, which are {TYPES}")),
        };
        let name = take("name").map(str::to_owned);
        let layers = Layers::take(&mut take)?;
        match fields.first() {
            Some((key, _)) => Err(format!(
                "`{key}` is not a key of `type={kind}`, known: {keys}, `name`, `compression`, \
                 `compression-level`, `force-compression`"
            )),
            None => Ok(Self { target, name, layers }),
        }
    }

    /// Where it writes; nowhere of its own if it is the registry's.
    pub(crate) fn place(&self) -> Option<&Place> {
        match &self.target {
            Target::Registry { .. } => None,
            Target::Image { place, .. } | Target::Files { place } => Some(place),
        }
    }

    fn is_for_docker(&self) -> bool {
        matches!(self.target, Target::Image { form: ImageForm::Docker, .. })
    }
}

impl Layers {
    fn take<'t>(
        take: &mut impl FnMut(&str) -> Option<&'t str>,
    ) -> std::result::Result<Self, String> {
        let compression = match take("compression") {
            Some("estargz") => {
                return Err("`compression=estargz` is not supported, use `gzip`".to_owned());
            }
            text => text.map(str::parse::<CompressionFormat>).transpose(),
        };
        let compression = compression.map_err(|error| error.to_string())?;
        let number = |text: &str| {
            text.parse().map_err(|_| format!("`compression-level={text}` is not a level"))
        };
        let level = take("compression-level").map(number).transpose()?;
        if let (Some(format), Some(level)) = (compression, level) {
            let usual = Compression::default();
            Compression::new(Some(format), Some(level), usual)
                .map_err(|error| error.to_string())?;
        }
        let force = take("force-compression");
        let force = force.map_or(Ok(false), |value| switch("force-compression", value))?;
        Ok(Self { compression, level, force })
    }
}

fn switch(key: &str, value: &str) -> std::result::Result<bool, String> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("`{key}={value}` is neither `true` nor `false`")),
    }
}

/// All that one build was told to write.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    exports: Vec<Export>,
    /// Names of `-t`.
    images: Vec<String>,
}

impl Exports {
    /// Finds out before the build what cannot be done after it.
    pub(crate) fn prepare(
        exports: Vec<Export>,
        images: &[String],
        platforms: usize,
    ) -> Result<Self> {
        let places = exports.iter().filter_map(Export::place);
        if places.filter(|place| **place == Place::Stdout).count() > 1 {
            return Err(Error::usage("only one `--output` can have `dest=-`"));
        }
        for export in &exports {
            if let Some(place) = export.place() {
                place.check()?;
            }
            if platforms > 1 && export.target.is_of_one_platform() {
                let told = "`--output type=docker` has no room for several platforms";
                return Err(Error::usage(told).with_hint("write `type=oci`, or build for one"));
            }
        }
        let exports = Self { exports, images: images.to_vec() };
        exports.layers()?;
        for export in &exports.exports {
            exports.references(export)?;
        }
        Ok(exports)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exports.is_empty()
    }

    /// Something has to be done after the build.
    pub(crate) fn are_written(&self) -> bool {
        self.exports.iter().any(|export| export.place().is_some())
    }

    pub(crate) fn take_stdout(&self) -> bool {
        self.exports.iter().any(|export| export.place() == Some(&Place::Stdout))
    }

    /// The image's names in the registry; none if it is kept out of it.
    pub(crate) fn pushed_names(&self) -> Vec<String> {
        let mut pushed = self.exports.is_empty();
        let mut names = self.images.clone();
        for export in &self.exports {
            if let Target::Registry { push } = export.target {
                pushed |= push;
                names.extend(export.name.clone());
            }
        }
        if pushed { names } else { Vec::new() }
    }

    /// How layers are to be compressed, by which all outputs are of the same image.
    pub(crate) fn layers(&self) -> Result<Layers> {
        let mut asked = self.exports.iter().map(|export| export.layers);
        let asked = asked.try_fold(Layers::default(), |all, one| {
            let is_same = all == one || all == Layers::default() || one == Layers::default();
            is_same.then_some(if all == Layers::default() { one } else { all })
        });
        let mut layers = asked.ok_or_else(|| {
            Error::usage("the outputs of one build cannot be compressed in different ways")
                .with_hint("build once for each of them: what is the same is in the cache")
        })?;
        if self.exports.iter().any(Export::is_for_docker) {
            if layers.compression == Some(CompressionFormat::Zstd) {
                return Err(Error::usage("`type=docker` knows no `compression=zstd`")
                    .with_hint("use `gzip`, or `type=oci`"));
            }
            layers.compression.get_or_insert(CompressionFormat::Gzip);
        }
        Ok(layers)
    }

    /// The names that an image has in an archive.
    fn references(&self, export: &Export) -> Result<Vec<Reference>> {
        if export.place().is_none() {
            return Ok(Vec::new());
        }
        let names = self.images.iter().map(String::as_str).chain(export.name.as_deref());
        let references = names.map(|name| {
            let parsed = name.parse::<Reference>();
            let mut reference = parsed.map_err(|error| Error::usage(error.to_string()))?;
            reference.tag = reference.tag_or_latest();
            reference.digest = None;
            Ok(reference)
        });
        references.collect()
    }

    /// Writes all of it, and tells what was written.
    pub(crate) async fn write(
        &self,
        image: &BuiltImage<'_>,
        mut tell: impl FnMut(String),
    ) -> Result<()> {
        for export in &self.exports {
            let references = self.references(export)?;
            match &export.target {
                Target::Registry { .. } => continue,
                Target::Image { form, place } => {
                    archive::write(image, *form, place, &references).await?;
                }
                Target::Files { place } => {
                    let LeftOut { devices } = files::write(image, place).await?;
                    if devices > 0 {
                        tell(format!("Left {devices} device files out"));
                    }
                }
            }
            tell(format!("Wrote {}", export.place().map(Place::shown).unwrap_or_default()));
        }
        Ok(())
    }
}

/// What a run built, whose blobs the run's server has: an image, or an index over images.
pub(crate) struct BuiltImage<'a> {
    connection: &'a Connection,
    run: String,
    /// What names point at: the manifest of the one image, or the index.
    pub(crate) top: StoredManifest,
    /// One for each platform.
    pub(crate) images: Vec<(StoredManifest, ImageManifest)>,
}

/// A manifest or index, as the server has it.
#[derive(Debug, Clone)]
pub(crate) struct StoredManifest {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
}

impl<'a> BuiltImage<'a> {
    pub(crate) async fn find(
        connection: &'a Connection,
        run: &str,
        digest: Option<&str>,
    ) -> Result<Self> {
        let not_told = || Error::failed("the server did not tell what it built");
        let digest: Digest = digest.and_then(|text| text.parse().ok()).ok_or_else(not_told)?;
        let no_image = |digest| Error::failed(format!("{digest} is not the manifest of an image"));
        let (top, parsed) = read_manifest(connection, run, &digest).await?;
        let images = match parsed {
            Manifest::Image(manifest) => vec![(top.clone(), *manifest)],
            Manifest::Index(index) => {
                let mut images = Vec::new();
                for Descriptor { digest, .. } in index.manifests {
                    match read_manifest(connection, run, &digest).await? {
                        (stored, Manifest::Image(manifest)) => images.push((stored, *manifest)),
                        _ => return Err(no_image(digest)),
                    }
                }
                images
            }
            Manifest::Artifact(_) => return Err(no_image(digest)),
        };
        Ok(Self { connection, run: run.to_owned(), top, images })
    }

    /// The config, if it is one image.
    pub(crate) fn config(&self) -> Option<&Descriptor> {
        match self.images.as_slice() {
            [(stored, manifest)] if stored.descriptor == self.top.descriptor => {
                Some(&manifest.config)
            }
            _ => None,
        }
    }

    /// Gives the bytes of a blob to `take`, and fails at the end if they are not the right ones.
    async fn read<F>(&self, blob: &Descriptor, mut take: F) -> Result<()>
    where
        F: AsyncFnMut(&[u8]) -> Result<()>,
    {
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut left = blob.size;
        let mut response = open(self.connection, &self.run, &blob.digest).await?;
        let doing = || format!("read the blob {}", blob.digest);
        while let Some(chunk) = response.chunk().await.map_err(could_not(doing()))? {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| damaged(&blob.digest))?;
            hasher.update(&chunk);
            take(&chunk).await?;
        }
        match left == 0 && hasher.finish() == blob.digest {
            true => Ok(()),
            false => Err(damaged(&blob.digest)),
        }
    }
}

async fn read_manifest(
    connection: &Connection,
    run: &str,
    digest: &Digest,
) -> Result<(StoredManifest, Manifest)> {
    let mut bytes = Vec::new();
    let mut response = open(connection, run, digest).await?;
    while let Some(chunk) = response.chunk().await.map_err(could_not("read the manifest"))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MANIFEST_SIZE_MAX {
            return Err(Error::failed("the server's manifest has no end"));
        }
    }
    if Digest::with(digest.algorithm(), &bytes) != *digest {
        return Err(damaged(digest));
    }
    let manifest = Manifest::parse(&bytes, None).map_err(could_not("read the manifest"))?;
    let size = bytes.len() as u64;
    let descriptor = Descriptor::new(manifest.media_type(), digest.clone(), size);
    Ok((StoredManifest { descriptor, bytes }, manifest))
}

async fn open(connection: &Connection, run: &str, digest: &Digest) -> Result<reqwest::Response> {
    let url = connection.route(&["runs", run, "blobs", digest.as_str()]);
    connection.stream(connection.request(Method::GET, url)).await
}

fn damaged(digest: &Digest) -> Error {
    Error::failed(format!("blob {digest} of the image is damaged"))
        .with_hint("build it again with `--no-cache`")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn outputs_are_told_from_forms_of_results() {
        for text in ["json", "table", "none", "", "jsno"] {
            assert!(!Export::is_meant(text), "{text}");
        }
        for text in ["-", "type=oci", "dest=x", "./out", "/out"] {
            assert!(Export::is_meant(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let export = |target, name: Option<&str>| {
            let (name, layers) = (name.map(str::to_owned), Layers::default());
            Ok(Export { target, name, layers })
        };
        let image = |form, place, name| export(Target::Image { form, place }, name);
        let (oci, docker) = (ImageForm::Oci, ImageForm::Docker);
        let parse = Export::parse;
        assert_eq!(parse("type=oci,dest=a.tar"), image(oci, Place::File("a.tar".into()), None));
        assert_eq!(parse("dest=-,type=docker"), image(docker, Place::Stdout, None));
        let folder = Place::Folder("a".into());
        assert_eq!(parse("type=oci,tar=false,dest=a,name=b"), image(oci, folder, Some("b")));
        let quoted = r#"type=oci,"dest=a,""b"".tar""#;
        assert_eq!(parse(quoted), image(oci, Place::File("a,\"b\".tar".into()), None));
        let pushed = export(Target::Registry { push: true }, None);
        assert_eq!(parse("type=image"), pushed);
        assert_eq!(parse("type=registry,push=true"), pushed);
        for (text, why) in [
            ("type=rar,dest=x", "`rar` is not a type, which are `image`"),
            ("dest=x", "no `type`"),
            ("type=oci", "needs `dest=FILE`"),
            ("type=docker,dest=", "for `docker load`"),
            ("type=oci,dest=x,tar=no", "neither `true` nor `false`"),
            ("type=oci,dest=-,tar=false", "a folder cannot be"),
            ("type=oci,dest=x,format=zstd", "`format` is not a key of `type=oci`"),
            ("type=image,dest=x", "`dest` is not a key of `type=image`"),
            ("type=image,compression=lz4", "`lz4` is not a compression"),
            ("type=image,compression=estargz", "`compression=estargz` is not supported"),
            ("type=image,compression=gzip,compression-level=10", "`10` is not a level of gzip"),
            ("type=image,compression-level=high", "`compression-level=high` is not a level"),
            ("type=image,force-compression=yes", "neither `true` nor `false`"),
            ("type=oci,dest=x,dest=y", "`dest` is not a key"),
            ("type=oci,x", "`x` is not `KEY=VALUE`"),
            ("type=oci,\"dest=x", "a double quote in"),
        ] {
            let told = parse(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn all_outputs_are_of_one_image() {
        let layers = |texts: &[&str]| {
            let exports = texts.iter().map(|text| Export::parse(text).unwrap()).collect();
            Exports { exports, images: Vec::new() }.layers()
        };
        let asked = layers(&["type=image", "type=oci,dest=x,compression=zstd,compression-level=9"]);
        let asked = asked.unwrap();
        assert_eq!((asked.compression, asked.level), (Some(CompressionFormat::Zstd), Some(9)));
        let asked = layers(&["type=docker,dest=x", "type=image,compression-level=1"]).unwrap();
        assert_eq!((asked.compression, asked.level), (Some(CompressionFormat::Gzip), Some(1)));
        let refused = |texts: &[&str]| layers(texts).unwrap_err().to_string();
        let told = refused(&["type=image,compression=zstd", "type=oci,dest=x,compression=gzip"]);
        assert!(told.contains("in different ways"), "{told}");
        let told = refused(&["type=image,compression=zstd", "type=docker,dest=x"]);
        assert_eq!(told, "`type=docker` knows no `compression=zstd`");
    }

    /// A server of one blob, which it gives whatever is asked for.
    async fn server(blob: &'static [u8]) -> Connection {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
                let head = format!("{head}: {}\r\n\r\n", blob.len());
                let _ = stream.write_all(&[head.as_bytes(), blob].concat()).await;
            }
        });
        Connection::to_url(url.parse().unwrap(), None, "local", None).unwrap()
    }

    #[tokio::test]
    async fn wrong_bytes_become_no_file() {
        let connection = server(b"bytes").await;
        let folder = tempfile::tempdir().unwrap();
        let (file, layout) = (folder.path().join("a.tar"), folder.path().join("a"));
        for config in ["other", "byte", "bytes and more", "bytes"] {
            let is_right = config == "bytes";
            let config = Descriptor::of(oci::media_type::OCI_CONFIG, config.as_bytes());
            let text = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
            let bytes = text.to_string().into_bytes();
            let parsed = Manifest::parse(&bytes, None).unwrap();
            let Manifest::Image(manifest) = parsed else { panic!("it is an image's") };
            let descriptor = Descriptor::of(oci::media_type::OCI_MANIFEST, &bytes);
            let top = StoredManifest { descriptor, bytes };
            let (connection, run) = (&connection, "c01".to_owned());
            let images = vec![(top.clone(), *manifest)];
            let image = BuiltImage { connection, run, top, images };
            for place in [Place::File(file.clone()), Place::Folder(layout.clone())] {
                let written = archive::write(&image, ImageForm::Oci, &place, &[]).await;
                let told = written.err().map(|error| error.to_string()).unwrap_or_default();
                assert_eq!(told.is_empty(), is_right, "{told}");
                assert!(is_right || told.contains("is damaged"), "{told}");
            }
            assert_eq!(file.exists(), is_right);
            assert_eq!(layout.join("index.json").exists(), is_right);
        }
        // Nothing that was under way is left.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let lied = BuiltImage::find(&connection, "c01", Some(Digest::of(b"x").as_str())).await;
        assert!(lied.err().unwrap().to_string().contains("is damaged"));
    }
}
