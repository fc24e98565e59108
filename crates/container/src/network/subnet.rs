//! A range of IPv4 addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// How many ranges after the wanted one are tried.
const CANDIDATES_MAX: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Subnet {
    /// Its lowest address.
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// The range that holds `address`; the whole address space is no range.
    pub(crate) fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        let prefix = (1..=32).contains(&prefix).then_some(prefix)?;
        Some(Self { base: u32::from(address) & mask(prefix), prefix })
    }

    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bridge's own address: the first of the range.
    pub(super) fn gateway(self) -> Ipv4Addr {
        self.host(1)
    }

    pub(super) fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base | number)
    }

    /// How many hosts there are, the gateway included.
    pub(super) fn host_count(self) -> u32 {
        !mask(self.prefix) - 1
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        let mask = mask(self.prefix.min(other.prefix));
        self.base & mask == other.base & mask
    }

    /// This range moved up by `first` of its sizes, then the ones after it.
    pub(super) fn candidates(self, first: u32) -> impl Iterator<Item = Self> {
        let size = !mask(self.prefix) + 1;
        (first..first + CANDIDATES_MAX).filter_map(move |step| {
            Some(Self { base: self.base.checked_add(size.checked_mul(step)?)?, ..self })
        })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is not an address range such as `10.89.0.0/24`", text.escape_debug());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_error| wrong())?;
        let prefix = prefix.parse().map_err(|_error| wrong())?;
        if !(16..=29).contains(&prefix) {
            return Err(format!(
                "the address range `{}` is not between /16 and /29",
                text.escape_debug()
            ));
        }
        Self::new(address, prefix).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_knows_its_addresses_and_its_neighbours() {
        let subnet: Subnet = "10.89.0.77/24".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.89.0.0/24");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 89, 0, 1));
        assert_eq!(subnet.host_count(), 254);
        assert!(subnet.contains(Ipv4Addr::new(10, 89, 0, 254)));
        assert!(!subnet.contains(Ipv4Addr::new(10, 89, 1, 1)));
        assert!(subnet.overlaps("10.89.0.0/16".parse().unwrap()));
        let next: Vec<String> = subnet.candidates(3).take(2).map(|next| next.to_string()).collect();
        assert_eq!(next, ["10.89.3.0/24", "10.89.4.0/24"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.89.0.0", "10.89.0.0/8", "10.89.0.0/30", "x/24", "10.89.0.0/99"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
