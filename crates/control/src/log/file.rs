//! The files of one log.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci::{Hasher, RegistryName};

use super::LogKey;
use super::event::{Event, EventKind, Sent, TextRenderer};
use super::packed::pack;

/// A record's line is never longer than this; anything else in a file is damage.
pub(super) const LINE_LEN_MAX: u64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Events,
    Text,
}

/// `logs/REGISTRY/RUN.{events,log}`, with `.zst` once the run has ended.
pub(super) fn path(folder: &Path, key: &LogKey, part: Part, compressed: bool) -> PathBuf {
    let part = match part {
        Part::Events => "events",
        Part::Text => "log",
    };
    let end = if compressed { ".zst" } else { "" };
    folder.join(key.registry.as_str()).join(format!("{}.{part}{end}", key.run))
}

/// Both files of a log that has not ended, open for appending.
pub(super) struct Files {
    events: File,
    text: File,
    pub(super) events_len: u64,
    pub(super) text_len: u64,
}

/// What opening found.
pub(super) struct Found {
    pub(super) last_id: u64,
    pub(super) sent: Option<Sent>,
    /// Of the text.
    pub(super) hasher: Hasher,
    pub(super) renderer: TextRenderer,
    pub(super) finished: bool,
}

impl Files {
    /// Opens or creates both, and makes them whole: a torn last record is cut off, and the
    /// text becomes the rendering of the records.
    pub(super) fn open(folder: &Path, key: &LogKey) -> io::Result<(Self, Found)> {
        std::fs::create_dir_all(folder.join(key.registry.as_str()))?;
        let mut events = open(&path(folder, key, Part::Events, false))?;
        let text = open(&path(folder, key, Part::Text, false))?;
        let renderer = TextRenderer::new(key.run.as_str());
        let hasher = Hasher::sha256();
        let mut found = Found { last_id: 0, sent: None, hasher, renderer, finished: false };
        let mut events_len = 0;
        let mut text_len = 0;
        events.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&mut events);
        let mut line = Vec::new();
        while !found.finished {
            line.clear();
            let read = reader.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line)?;
            let Some(event) = whole_event(&line) else { break };
            let mut rendered = String::new();
            found.renderer.render(&event, &mut rendered);
            text.write_all_at(rendered.as_bytes(), text_len)?;
            found.hasher.update(rendered.as_bytes());
            found.last_id = event.id;
            found.sent = event.sent.or(found.sent);
            found.finished = matches!(event.kind, EventKind::Finished { .. });
            events_len += read as u64;
            text_len += rendered.len() as u64;
        }
        drop(reader);
        events.set_len(events_len)?;
        text.set_len(text_len)?;
        Ok((Self { events, text, events_len, text_len }, found))
    }

    /// Records first: text without them could not be made again. On an error the files stay
    /// as they were before.
    pub(super) fn append(&mut self, events: &[u8], text: &[u8]) -> io::Result<()> {
        let written = self
            .events
            .write_all_at(events, self.events_len)
            .and_then(|()| self.text.write_all_at(text, self.text_len));
        if let Err(error) = written {
            self.events.set_len(self.events_len)?;
            self.text.set_len(self.text_len)?;
            return Err(error);
        }
        self.events_len += events.len() as u64;
        self.text_len += text.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.events.sync_data()?;
        self.text.sync_data()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn whole_event(line: &[u8]) -> Option<Event> {
    let line = line.strip_suffix(b"\n")?;
    serde_json::from_slice(line).ok()
}

/// Writes the compressed twins of both files, whole and durable before they have their names.
pub(super) fn compress(folder: &Path, key: &LogKey) -> io::Result<()> {
    for part in [Part::Events, Part::Text] {
        let plain = path(folder, key, part, false);
        let target = path(folder, key, part, true);
        let unfinished = target.with_extension("zst.part");
        let mut input = File::open(&plain)?;
        let output = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let mut writer = BufWriter::new(output);
        pack(&mut input, &mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_data()?;
        std::fs::rename(&unfinished, &target)?;
    }
    File::open(folder.join(key.registry.as_str()))?.sync_all()
}

pub(super) fn delete_plain(folder: &Path, key: &LogKey) -> io::Result<()> {
    delete_files(folder, key, false)
}

pub(super) fn delete(folder: &Path, key: &LogKey) -> io::Result<()> {
    delete_files(folder, key, false)?;
    delete_files(folder, key, true)
}

fn delete_files(folder: &Path, key: &LogKey, compressed: bool) -> io::Result<()> {
    for part in [Part::Events, Part::Text] {
        match std::fs::remove_file(path(folder, key, part, compressed)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

/// Logs whose plain files are there.
pub(super) fn plain_logs(folder: &Path) -> io::Result<Vec<LogKey>> {
    let mut keys = Vec::new();
    let registries = match std::fs::read_dir(folder) {
        Ok(registries) => registries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(keys),
        Err(error) => return Err(error),
    };
    for registry in registries {
        let registry = registry?;
        let Some(name) = registry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        for log in std::fs::read_dir(registry.path())? {
            let file_name = log?.file_name();
            let id = file_name.to_str().and_then(|name| name.strip_suffix(".events"));
            if let Some(run) = id.and_then(|id| id.parse().ok()) {
                keys.push(LogKey { registry: RegistryName::clone(&name), run });
            }
        }
    }
    Ok(keys)
}
