//! Encodings, digests and addresses.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::prelude::BASE64_STANDARD;
use base64::{DecodeError, Engine};
use gotmpl::Value;
use ring::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use super::{Call, Function, Result, function};

pub(super) const FUNCTIONS: &[Function] = &[
    // Of a missing value too, so that secret volumes get through the rendering that only
    // finds out which secrets there are.
    function("b64enc", 1, 1, |call| match call.value(0) {
        Value::Nil => call.give(""),
        value => call.give(BASE64_STANDARD.encode(call.display(value)?)),
    }),
    function("b64dec", 1, 1, |call| match BASE64_STANDARD.decode(call.text(0)?) {
        Ok(bytes) => call.give(String::from_utf8_lossy(&bytes)),
        Err(error) => {
            call.give(format!("illegal base64 data at input byte {}", offset(error, call.text(0)?)))
        }
    }),
    function("b32enc", 1, 1, |call| call.give(base32(call.text(0)?.as_bytes()))),
    function("b32dec", 1, 1, |call| match from_base32(call.text(0)?) {
        Ok(bytes) => call.give(String::from_utf8_lossy(&bytes)),
        Err(at) => call.give(format!("illegal base32 data at input byte {at}")),
    }),
    function("sha1sum", 1, 1, |call| digested(call, &SHA1_FOR_LEGACY_USE_ONLY)),
    function("sha256sum", 1, 1, |call| digested(call, &SHA256)),
    function("adler32sum", 1, 1, |call| call.give(adler32(call.text(0)?.as_bytes()).to_string())),
    function("urlParse", 1, 1, url_parse),
    function("urlJoin", 1, 1, url_join),
];

fn offset(error: DecodeError, text: &str) -> usize {
    match error {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. } => at,
        DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
    }
}

fn digested(call: &Call<'_>, algorithm: &'static Algorithm) -> Result {
    let mut hex = String::new();
    for byte in digest(algorithm, call.text(0)?.as_bytes()).as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    call.give(hex)
}

fn adler32(bytes: &[u8]) -> u32 {
    let step = |(a, b): (u32, u32), byte: &u8| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    };
    let (a, b) = bytes.iter().fold((1, 0), step);
    b << 16 | a
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// RFC 4648, with padding.
fn base32(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(5) {
        let block = (0..5).fold(0_u64, |block, index| {
            block << 8 | u64::from(chunk.get(index).copied().unwrap_or(0))
        });
        let written = (chunk.len() * 8).div_ceil(5);
        for index in 0..8 {
            match index < written {
                true => out.push(char::from(BASE32[(block >> (35 - index * 5) & 31) as usize])),
                false => out.push('='),
            }
        }
    }
    out
}

/// The bytes, or where the text is wrong.
fn from_base32(text: &str) -> std::result::Result<Vec<u8>, usize> {
    let data = text.trim_end_matches('=');
    // What a last block of each length may be: one, three and six characters are none.
    if !text.len().is_multiple_of(8)
        || text.len() - data.len() > 6
        || matches!(data.len() % 8, 1 | 3 | 6)
    {
        return Err(data.len());
    }
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for (at, byte) in data.bytes().enumerate() {
        let value = BASE32.iter().position(|letter| *letter == byte).ok_or(at)?;
        bits = (bits << 5 | u32::try_from(value).unwrap_or(0)) & 0xfff;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Ok(bytes)
}

/// The parts of an address, as text: nothing is decoded.
fn url_parse(call: &Call<'_>) -> Result {
    let text = call.text(0)?;
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        Some(("", _)) => return Err(call.fails(format!("`{text}` has no scheme before `:`"))),
        _ => (String::new(), rest),
    };
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    let is_opaque = !scheme.is_empty() && !rest.starts_with('/');
    let (userinfo, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let hostname = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let (path, opaque) = if is_opaque { ("", path) } else { (path, "") };
    let parts = [
        ("scheme", scheme.as_str()),
        ("userinfo", userinfo),
        ("host", host),
        ("hostname", hostname),
        ("path", path),
        ("opaque", opaque),
        ("query", query),
        ("fragment", fragment),
    ];
    let parts = parts.map(|(name, part)| (name.into(), Value::String(part.into())));
    call.give_dict(BTreeMap::from(parts))
}

fn url_join(call: &Call<'_>) -> Result {
    let parts = call.dict(0)?;
    let part = |name: &str| match parts.get(name) {
        None => Ok(""),
        Some(value) => {
            value.as_str().ok_or_else(|| call.fails(format!("`{name}` must be a string")))
        }
    };
    let mut out = String::new();
    // A part that is empty goes with its mark.
    let mut add = |before: &str, part: &str, after: &str| {
        if !part.is_empty() {
            out.extend([before, part, after]);
        }
    };
    let (userinfo, host, path) = (part("userinfo")?, part("host")?, part("path")?);
    add("", part("scheme")?, ":");
    match part("opaque")? {
        "" => {
            let has_host = !host.is_empty() || !userinfo.is_empty();
            add("//", userinfo, "@");
            add(if userinfo.is_empty() { "//" } else { "" }, host, "");
            add(if has_host && !path.starts_with('/') { "/" } else { "" }, path, "");
        }
        opaque => add("", opaque, ""),
    }
    add("?", part("query")?, "");
    add("#", part("fragment")?, "");
    call.give(out)
}
