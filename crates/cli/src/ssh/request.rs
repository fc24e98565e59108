//! What a build may ask of an agent (draft-ietf-sshm-ssh-agent).

/// A message has at most so many bytes; OpenSSH's agent takes no more.
const MESSAGE_SIZE_MAX: usize = 256 << 10;

const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
const EXTENSION: u8 = 27;

/// Tells the agent for which connection it signs; without it a key may be limited to hosts.
const SESSION_BIND: &[u8] = b"session-bind@openssh.com";

/// The answer to what is not passed on.
pub(super) const FAILURE: &[u8] = &[5];

/// The length of a message by the four bytes before it, if there are such messages.
pub(super) fn length(header: [u8; 4]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(header)).ok()?;
    (1..=MESSAGE_SIZE_MAX).contains(&length).then_some(length)
}

/// Whether a request only uses keys: lists them, signs, or says what for.
pub(super) fn may_pass(request: &[u8]) -> bool {
    match request.split_first() {
        Some((&(REQUEST_IDENTITIES | SIGN_REQUEST), _)) => true,
        Some((&EXTENSION, rest)) => first_string(rest) == Some(SESSION_BIND),
        _ => false,
    }
}

fn first_string(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk()?;
    rest.get(..length(*header)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extension(name: &[u8]) -> Vec<u8> {
        let length = u32::try_from(name.len()).unwrap().to_be_bytes();
        [&[EXTENSION], &length[..], name, b"rest"].concat()
    }

    #[test]
    fn a_build_may_use_keys_and_not_change_them() {
        let passed: Vec<u8> = (0..=255).filter(|kind| may_pass(&[*kind, 0, 0, 0, 0])).collect();
        assert_eq!(passed, [REQUEST_IDENTITIES, SIGN_REQUEST]);
        assert!(!may_pass(&[]));
        assert!(may_pass(&extension(SESSION_BIND)));
        for name in [&b"restrict-destination-v00@openssh.com"[..], b"session-bind@openssh.co", b""]
        {
            assert!(!may_pass(&extension(name)));
        }
        assert!(!may_pass(&extension(SESSION_BIND)[..20]));
    }

    #[test]
    fn messages_have_a_bound() {
        for (number, expected) in
            [(0, None), (1, Some(1)), (262_144, Some(262_144)), (262_145, None), (u32::MAX, None)]
        {
            assert_eq!(length(number.to_be_bytes()), expected);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_else_passes(request: Vec<u8>) {
            let is_extension = request.starts_with(&extension(SESSION_BIND)[..29]);
            let expected = matches!(request.first(), Some(11 | 13)) || is_extension;
            prop_assert_eq!(may_pass(&request), expected);
        }
    }
}
