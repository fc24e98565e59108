//! The files of this program, to start it where there is nothing else of the machine.
//!
//! A program that is linked dynamically needs its loader and its libraries besides, since a
//! container may have others, or none. Started through its own loader it takes its own libraries:
//! `LOADER --library-path FOLDER PROGRAM`.

#![expect(unsafe_code, reason = "only the loader knows what it has loaded")]

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::libc;

/// What has to be there for this program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramFiles {
    pub program: PathBuf,
    /// `None`: it is linked statically.
    pub loader: Option<PathBuf>,
    /// Under the names by which the program asks for them.
    pub libraries: Vec<PathBuf>,
}

/// As they were before this process entered its namespaces: what the kernel says of a file after
/// [`enter`](crate::enter) is where it was on its mount, which the new mount namespace has a copy of.
static FILES: OnceLock<ProgramFiles> = OnceLock::new();

/// The files of this program.
pub fn program_files() -> io::Result<&'static ProgramFiles> {
    match FILES.get() {
        Some(files) => Ok(files),
        None => {
            let program = std::env::current_exe()?;
            Ok(FILES.get_or_init(|| sorted(program, loaded())))
        }
    }
}

/// This program's own file.
pub fn program() -> io::Result<PathBuf> {
    program_files().map(|files| files.program.clone())
}

/// Tells the loader from the libraries, and leaves out what is no file: the program itself, and
/// what the kernel brings.
fn sorted(program: PathBuf, loaded: Vec<PathBuf>) -> ProgramFiles {
    let name = |path: &Path| {
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    };
    let is_library = |path: &PathBuf| path.is_absolute() && name(path).contains(".so");
    let files = loaded.into_iter().filter(is_library);
    let (loaders, libraries): (Vec<_>, Vec<_>) =
        files.partition(|path| name(path).starts_with("ld"));
    ProgramFiles { program, loader: loaders.into_iter().next(), libraries }
}

/// All that the loader has brought into this process, by the paths it took.
fn loaded() -> Vec<PathBuf> {
    unsafe extern "C" fn note(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        paths: *mut c_void,
    ) -> c_int {
        // SAFETY: this is the vector below, which nobody else uses meanwhile.
        let paths = unsafe { &mut *paths.cast::<Vec<PathBuf>>() };
        // SAFETY: the loader gives an object of its own, which is there during the call.
        let name = unsafe { (*object).dlpi_name };
        if !name.is_null() {
            // SAFETY: the name ends with a NUL byte.
            let name = unsafe { CStr::from_ptr(name) };
            paths.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
        }
        0
    }
    let mut paths = Vec::<PathBuf>::new();
    // SAFETY: the callback is of the right type, and gets the vector that it expects.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut paths).cast()) };
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn loaders_and_libraries_are_told_apart() {
        let files = |loaded: &[&str]| sorted("/app".into(), paths(loaded));
        let glibc =
            files(&["", "linux-vdso.so.1", "/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(glibc.loader, Some("/lib64/ld-linux-x86-64.so.2".into()));
        assert_eq!(glibc.libraries, paths(&["/lib/libc.so.6"]));
        let musl = files(&["/app", "/usr/lib/libgcc_s.so.1", "/lib/ld-musl-x86_64.so.1"]);
        assert_eq!(musl.loader, Some("/lib/ld-musl-x86_64.so.1".into()));
        assert_eq!(musl.libraries, paths(&["/usr/lib/libgcc_s.so.1"]));
        let alone = files(&["", "linux-vdso.so.1"]);
        assert_eq!((alone.loader, alone.libraries), (None, Vec::new()));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test starts itself")]
    fn this_program_starts_with_nothing_but_its_files() {
        let files = program_files().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for library in &files.libraries {
            let link = folder.path().join(library.file_name().unwrap());
            std::os::unix::fs::symlink(library, link).unwrap();
        }
        let mut command = match &files.loader {
            Some(loader) => std::process::Command::new(loader),
            None => std::process::Command::new(&files.program),
        };
        if files.loader.is_some() {
            command.arg("--library-path").arg(folder.path()).arg(&files.program);
        }
        let listed = command.arg("--list").env_clear().output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(text.contains("nothing_but_its_files"), "{text}");
    }
}
