//! Which programs for other processors the kernel hands to an emulator (`binfmt_misc`).

use std::fs;
use std::io;
use std::path::Path;

/// Processors by the number in the header of their programs (ELF, `e_machine`) and its size of
/// addresses and order of bytes (`e_ident`), as platforms call them.
const PROCESSORS: &[(u16, u8, u8, &str)] = &[
    (0x3e, 2, 1, "amd64"),
    (0x03, 1, 1, "386"),
    (0xb7, 2, 1, "arm64"),
    (0x28, 1, 1, "arm"),
    (0x15, 2, 1, "ppc64le"),
    (0xf3, 2, 1, "riscv64"),
    (0x16, 2, 2, "s390x"),
    (0x102, 2, 1, "loong64"),
    (0x08, 2, 1, "mips64le"),
];

/// A registered emulator.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Handler {
    /// As platforms call it.
    pub(crate) processor: &'static str,
    /// It was opened when it was registered, and so works in other file systems.
    pub(crate) is_fixed: bool,
}

/// The emulators that are switched on, in no order.
pub(crate) fn handlers(folder: &Path) -> io::Result<Vec<Handler>> {
    let status = match fs::read_to_string(folder.join("status")) {
        Ok(status) => status,
        // The file system is not mounted, or the kernel lacks it: nobody has registered anything.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if status.trim() != "enabled" {
        return Ok(Vec::new());
    }
    let mut handlers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if ["status", "register"].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        handlers.extend(read_handler(&fs::read_to_string(entry.path())?));
    }
    Ok(handlers)
}

/// Reads what the kernel tells of one entry; nothing if it is off, or for another kind of file.
fn read_handler(text: &str) -> Option<Handler> {
    let mut lines = text.lines();
    if lines.next()? != "enabled" {
        return None;
    }
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let magic = field("magic ")?;
    let byte = |at: usize| u8::from_str_radix(magic.get(2 * at..2 * at + 2)?, 16).ok();
    let is_elf = magic.starts_with("7f454c46") && field("offset ") == Some("0");
    let (size, order) = (byte(4)?, byte(5)?);
    let machine = match order {
        1 => u16::from_le_bytes([byte(18)?, byte(19)?]),
        _ => u16::from_be_bytes([byte(18)?, byte(19)?]),
    };
    let (.., processor) =
        PROCESSORS.iter().find(|known| (known.0, known.1, known.2) == (machine, size, order))?;
    let is_fixed = field("flags: ").is_some_and(|flags| flags.contains('F'));
    is_elf.then_some(Handler { processor, is_fixed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: F\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\n\
        mask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn emulators_are_told_by_the_programs_they_are_for() {
        let arm64 = |is_fixed| Some(Handler { processor: "arm64", is_fixed });
        assert_eq!(read_handler(ARM64), arm64(true));
        assert_eq!(read_handler(&ARM64.replace("flags: F", "flags: ")), arm64(false));
        assert_eq!(read_handler(&ARM64.replace("enabled", "disabled")), None);
        let s390x = ARM64.replace("454c460201", "454c460202").replace("0200b700", "00020016");
        assert_eq!(read_handler(&s390x).unwrap().processor, "s390x");
        for other in [
            "",
            "enabled\n",
            "enabled\ninterpreter /usr/bin/python3\nflags: \noffset 0\nmagic 6f0d0d0a\n",
            "enabled\ninterpreter /usr/bin/x\nflags: \nextension .jar\n",
            &ARM64.replace("magic 7f", "magic 7é"),
            &ARM64.replace("0200b700", "02009999"),
        ] {
            assert_eq!(read_handler(other), None, "{other}");
        }
    }

    #[test]
    fn nothing_is_registered_where_nothing_is_mounted() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(handlers(folder.path()).unwrap(), []);
        fs::write(folder.path().join("status"), "enabled\n").unwrap();
        fs::write(folder.path().join("register"), "").unwrap();
        fs::write(folder.path().join("qemu-aarch64"), ARM64).unwrap();
        assert_eq!(handlers(folder.path()).unwrap().len(), 1);
        fs::write(folder.path().join("status"), "disabled\n").unwrap();
        assert_eq!(handlers(folder.path()).unwrap(), []);
    }
}
