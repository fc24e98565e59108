//! `--chmod`: octal modes, and those of `chmod` such as `u=rwX,go=rX`.

/// A change of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange {
    /// As written, for the history and the cache.
    pub text: String,
    clauses: Vec<Clause>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Clause {
    /// All bits.
    Octal(u32),
    Symbolic {
        /// Bits that it may touch: those of user, group, others.
        who: u32,
        operator: Operator,
        bits: u32,
        /// `X`: execution, for folders and for what somebody may execute already.
        conditional_execute: bool,
        /// `u`, `g`, `o`: the bits that this class has now.
        copied_from: Option<u32>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHERS: u32 = 0o1007;

impl ModeChange {
    /// Understands a mode; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let octal = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
        let clauses = if octal {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)?;
            vec![Clause::Octal(mode)]
        } else {
            let mut clauses = Vec::new();
            for clause in text.split(',') {
                symbolic(clause, &mut clauses)?;
            }
            clauses
        };
        Some(Self { text: text.to_owned(), clauses })
    }

    /// The mode that everything gets, where it is given as a number.
    pub fn octal(&self) -> Option<u32> {
        match self.clauses.as_slice() {
            [Clause::Octal(mode)] => Some(*mode),
            _ => None,
        }
    }

    /// The mode that a file of mode `mode` gets.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        self.clauses.iter().fold(mode, |mode, clause| match clause {
            Clause::Octal(octal) => *octal,
            Clause::Symbolic { who, operator, bits, conditional_execute, copied_from } => {
                let mut bits = *bits;
                if *conditional_execute && (is_directory || mode & 0o111 != 0) {
                    bits |= 0o111;
                }
                if let Some(from) = copied_from {
                    let class = mode & from & 0o777;
                    let class = if *from == USER { class >> 6 } else { class };
                    let class = if *from == GROUP { class >> 3 } else { class };
                    bits |= class << 6 | class << 3 | class;
                }
                let bits = bits & who;
                match operator {
                    Operator::Add => mode | bits,
                    Operator::Remove => mode & !bits,
                    Operator::Set => mode & !who | bits,
                }
            }
        })
    }
}

/// `ug+rw-x`: classes, then operators with permissions.
fn symbolic(text: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let start = text.find(['+', '-', '='])?;
    let (classes, mut rest) = text.split_at(start);
    let mut who = 0;
    for class in classes.chars() {
        who |= match class {
            'u' => USER,
            'g' => GROUP,
            'o' => OTHERS,
            'a' => USER | GROUP | OTHERS,
            _ => return None,
        };
    }
    if who == 0 {
        who = USER | GROUP | OTHERS;
    }
    while let Some(first) = rest.chars().next() {
        let operator = match first {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Set,
            _ => return None,
        };
        rest = &rest[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        let (permissions, after) = rest.split_at(end);
        rest = after;
        let (mut bits, mut conditional_execute, mut copied_from) = (0, false, None);
        for permission in permissions.chars() {
            match permission {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                'X' => conditional_execute = true,
                's' => bits |= 0o6000,
                't' => bits |= 0o1000,
                'u' if permissions.len() == 1 => copied_from = Some(USER),
                'g' if permissions.len() == 1 => copied_from = Some(GROUP),
                'o' if permissions.len() == 1 => copied_from = Some(OTHERS),
                _ => return None,
            }
        }
        clauses.push(Clause::Symbolic { who, operator, bits, conditional_execute, copied_from });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_changes_them() {
        // The text, the mode before, whether it is a folder, and the mode after.
        let cases = [
            ("0755", 0o600, false, 0o755),
            ("4711", 0o600, false, 0o4711),
            ("+x", 0o644, false, 0o755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o710, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("go=", 0o777, false, 0o700),
            ("g=u", 0o640, false, 0o660),
            ("o=g-x", 0o751, false, 0o754),
            ("u+s,+t", 0o755, false, 0o5755),
            ("ug+rw-x", 0o711, false, 0o661),
        ];
        for (text, before, is_directory, after) in cases {
            let change = ModeChange::parse(text).unwrap();
            assert_eq!(change.apply(before, is_directory), after, "{text}");
        }
        for text in ["", "8", "77777", "rw", "u", "z+x", "u+q", "g=ux", "u=rw,"] {
            assert_eq!(ModeChange::parse(text), None, "{text}");
        }
    }
}
