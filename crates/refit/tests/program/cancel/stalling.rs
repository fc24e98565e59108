//! A registry, or any site, that stops in the middle of one answer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Listens until the test's process ends.
pub(crate) struct Stalling {
    host: String,
    stalled: Arc<AtomicUsize>,
}

struct Site {
    folder: PathBuf,
    manifest: PathBuf,
    stalls_at: String,
    stalled: Arc<AtomicUsize>,
}

impl Stalling {
    /// Serves an OCI layout; requests with `stalls_at` in their path get half of their answer.
    pub(crate) fn start(layout: &Path, manifest: &Path, stalls_at: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let stalled = Arc::new(AtomicUsize::new(0));
        let site = Arc::new(Site {
            folder: layout.to_owned(),
            manifest: manifest.to_owned(),
            stalls_at: stalls_at.to_owned(),
            stalled: Arc::clone(&stalled),
        });
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let site = Arc::clone(&site);
                std::thread::spawn(move || site.serve(connection));
            }
        });
        Self { host, stalled }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Whether somebody waits for the rest of an answer.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst) > 0
    }
}

impl Site {
    /// One request; clients open another connection for the next.
    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = self.body(path);
        write!(
            connection,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/vnd.oci.image.manifest.v1+json\r\n\r\n",
            body.len()
        )?;
        if path.contains(&self.stalls_at) {
            connection.write_all(&body[..body.len() / 2])?;
            self.stalled.fetch_add(1, Ordering::SeqCst);
            // Until the other side has closed.
            let _ = reader.read(&mut [0]);
            self.stalled.fetch_sub(1, Ordering::SeqCst);
        } else if method == "GET" {
            connection.write_all(&body)?;
        }
        Ok(())
    }

    fn body(&self, path: &str) -> Vec<u8> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let file = match path {
            _ if path.contains("/blobs/sha256:") => {
                self.folder.join("blobs/sha256").join(name.trim_start_matches("sha256:"))
            }
            _ if path.contains("/blobs/") => self.folder.join("blobs").join(name),
            _ if path.contains("/manifests/") => self.manifest.clone(),
            _ => return b"{}".to_vec(),
        };
        std::fs::read(file).unwrap_or_default()
    }
}
