//! Names that are a letter and a number, which grows within a registry.

use std::fmt;
use std::str::FromStr;

/// `KIND` and a number, such as `p12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumberedId<const KIND: char>(pub(super) i64);

/// A text that is no letter and number of the kind that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its name is `{0}` and a number, such as `{0}12`")]
pub struct BadNumberedId(char);

impl<const KIND: char> fmt::Display for NumberedId<KIND> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}{}", self.0)
    }
}

impl<const KIND: char> FromStr for NumberedId<KIND> {
    type Err = BadNumberedId;

    fn from_str(text: &str) -> Result<Self, BadNumberedId> {
        let bad = BadNumberedId(KIND);
        let number = text.strip_prefix([KIND, KIND.to_ascii_uppercase()]).ok_or(bad)?;
        let is_plain = (1..=18).contains(&number.len()) && !number.starts_with('0');
        if !is_plain || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad);
        }
        number.parse().map(Self).map_err(|_| bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_letter_and_a_number() {
        assert_eq!("p12".parse::<NumberedId<'p'>>().unwrap().to_string(), "p12");
        assert_eq!("P7".parse::<NumberedId<'p'>>().unwrap(), NumberedId(7));
        for text in ["", "p", "12", "m1", "p0", "p01", "p-1", "p+1", "p1 ", "p1234567890123456789"]
        {
            let refused = text.parse::<NumberedId<'p'>>().unwrap_err();
            assert_eq!(
                refused.to_string(),
                "its name is `p` and a number, such as `p12`",
                "{text}"
            );
        }
    }
}
