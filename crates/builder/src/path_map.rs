//! A map from paths to small values, for a million of them: a name and some twenty bytes each,
//! where a map of strings takes ten times as much.
//!
//! Paths are in the order of a walk: a folder, then what is in it, names by their bytes.

use std::cmp::Ordering;

/// Why a path has no place in a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The path above it is not there.
    NoFolder,
    Taken,
    /// The map counts in 32 bits.
    Full,
}

/// Paths are relative, without a leading slash; the empty path is the root, which is always there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PathMap<V> {
    entries: Vec<Entry<V>>,
    /// All names, one after the other.
    names: String,
    /// For each entry that has some, those below it.
    below: Vec<Siblings>,
}

/// Entries of one folder by name, in pieces, since they may come in any order and be millions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Siblings {
    /// None is empty.
    pieces: Vec<Vec<u32>>,
}

/// Entries in one piece.
const PIECE_MAX: usize = 2048;

impl Siblings {
    fn iter(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.pieces.iter().flatten().copied()
    }

    /// The entry that `compare` finds equal, or the place where it belongs: a piece, and where in
    /// that.
    fn find(&self, compare: impl Fn(u32) -> Ordering) -> Result<u32, (usize, usize)> {
        let Some(last) = self.pieces.last() else { return Err((0, 0)) };
        // Mostly they come in order.
        match last.last().map(|last| compare(*last)) {
            Some(Ordering::Less) => return Err((self.pieces.len() - 1, last.len())),
            Some(Ordering::Equal) => return Ok(last[last.len() - 1]),
            _ => (),
        }
        let is_before = |piece: &Vec<u32>| piece.last().is_some_and(|last| compare(*last).is_lt());
        let piece = self.pieces.partition_point(is_before);
        let found = self.pieces[piece].binary_search_by(|entry| compare(*entry));
        found.map(|at| self.pieces[piece][at]).map_err(|at| (piece, at))
    }

    fn insert(&mut self, (piece, at): (usize, usize), entry: u32) {
        let Some(into) = self.pieces.get_mut(piece) else {
            self.pieces.push(vec![entry]);
            return;
        };
        if into.len() < PIECE_MAX {
            into.insert(at, entry);
            return;
        }
        // One that is filled in order stays full.
        let mut rest = into.split_off(if at == into.len() { at } else { PIECE_MAX / 2 });
        match at.checked_sub(into.len()) {
            Some(at) => rest.insert(at, entry),
            None => into.insert(at, entry),
        }
        self.pieces.insert(piece + 1, rest);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Entry<V> {
    name_start: u32,
    name_len: u16,
    /// A place in `below`, or [`NOTHING`].
    below: u32,
    value: V,
}

const NOTHING: u32 = u32::MAX;

impl<V: Default> Default for PathMap<V> {
    fn default() -> Self {
        Self::new(V::default())
    }
}

impl<V> PathMap<V> {
    pub(crate) fn new(root: V) -> Self {
        let root = Entry { name_start: 0, name_len: 0, below: NOTHING, value: root };
        Self { entries: vec![root], names: String::new(), below: Vec::new() }
    }

    /// Adds a path below one that is there, and gives its number: they are counted from 0, which is
    /// the root.
    pub(crate) fn insert(&mut self, path: &str, value: V) -> Result<usize, NoPlace> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = self.find(folder).ok_or(NoPlace::NoFolder)?;
        match self.child(folder, name) {
            Ok(_) => Err(NoPlace::Taken),
            Err(place) => self.insert_child(folder, place, name, value),
        }
    }

    /// The number of a path, which is added if it is not there, and so are those above it.
    pub(crate) fn find_or_insert(
        &mut self,
        path: &str,
        value: impl Fn() -> V,
    ) -> Result<usize, NoPlace> {
        self.find_or_insert_below(path, value, |_| ())
    }

    /// As [`Self::find_or_insert`]; those above it, but for the root, are given to `above`.
    pub(crate) fn find_or_insert_below(
        &mut self,
        path: &str,
        value: impl Fn() -> V,
        above: impl Fn(&mut V),
    ) -> Result<usize, NoPlace> {
        let mut entry = 0;
        for name in path.split('/').filter(|_| !path.is_empty()) {
            if entry > 0 {
                above(self.value_mut(entry));
            }
            entry = match self.child(entry, name) {
                Ok(child) => child,
                Err(place) => self.insert_child(entry, place, name, value())?,
            };
        }
        Ok(entry)
    }

    /// Takes away all that is below a path; the numbers of the others stay.
    pub(crate) fn remove_below(&mut self, number: usize) {
        self.entries[number].below = NOTHING;
    }

    /// The number of a path.
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        let mut entry = 0;
        for name in path.split('/').filter(|_| !path.is_empty()) {
            entry = self.find_below(entry, name)?;
        }
        Some(entry)
    }

    /// The number of what has a name in a folder, which is given by its number.
    pub(crate) fn find_below(&self, folder: usize, name: &str) -> Option<usize> {
        self.child(folder, name).ok()
    }

    /// The number of a name in a folder, or where among the others it belongs.
    fn child(&self, folder: usize, name: &str) -> Result<usize, (usize, usize)> {
        let Some(siblings) = self.siblings(folder) else { return Err((0, 0)) };
        siblings.find(|sibling| self.name(sibling).cmp(name)).map(|found| found as usize)
    }

    fn insert_child(
        &mut self,
        folder: usize,
        place: (usize, usize),
        name: &str,
        value: V,
    ) -> Result<usize, NoPlace> {
        let (Ok(number), Ok(name_start), Ok(name_len)) = (
            u32::try_from(self.entries.len()),
            u32::try_from(self.names.len()),
            u16::try_from(name.len()),
        ) else {
            return Err(NoPlace::Full);
        };
        if self.entries[folder].below == NOTHING {
            self.entries[folder].below =
                u32::try_from(self.below.len()).map_err(|_| NoPlace::Full)?;
            self.below.push(Siblings::default());
        }
        let siblings = self.entries[folder].below as usize;
        self.below[siblings].insert(place, number);
        self.names.push_str(name);
        self.entries.push(Entry { name_start, name_len, below: NOTHING, value });
        Ok(number as usize)
    }

    /// The value of a path, by its number.
    pub(crate) fn value(&self, number: usize) -> &V {
        &self.entries[number].value
    }

    pub(crate) fn value_mut(&mut self, number: usize) -> &mut V {
        &mut self.entries[number].value
    }

    pub(crate) fn get(&self, path: &str) -> Option<&V> {
        Some(self.value(self.find(path)?))
    }

    /// Numbers and names of what is directly below a path, in order.
    pub(crate) fn below(&self, number: usize) -> impl Iterator<Item = (usize, &str)> {
        let below = self.siblings(number).into_iter().flat_map(Siblings::iter);
        below.map(|below| (below as usize, self.name(below)))
    }

    /// How many paths there are, the root among them, and those that were taken away.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        let entry = size_of::<Entry<V>>() + size_of::<u32>();
        self.entries.len() * entry + self.names.len() + self.below.len() * 2 * size_of::<Siblings>()
    }

    /// All paths with their numbers, in order, the root first.
    pub(crate) fn walk(&self) -> Walk<'_, V> {
        Walk { map: self, path: String::new(), next: vec![(0, 0)] }
    }

    fn siblings(&self, folder: usize) -> Option<&Siblings> {
        self.below.get(self.entries[folder].below as usize)
    }

    fn name(&self, entry: u32) -> &str {
        let entry = &self.entries[entry as usize];
        let start = entry.name_start as usize;
        &self.names[start..start + usize::from(entry.name_len)]
    }
}

/// See [`PathMap::walk`].
pub(crate) struct Walk<'a, V> {
    map: &'a PathMap<V>,
    /// Where the walk is.
    path: String,
    /// Entries to come, the next one last, with the length of the path above each.
    next: Vec<(u32, usize)>,
}

impl<V> Iterator for Walk<'_, V> {
    type Item = (String, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let (entry, above) = self.next.pop()?;
        self.path.truncate(above);
        if above > 0 {
            self.path.push('/');
        }
        self.path.push_str(self.map.name(entry));
        let (number, length) = (entry as usize, self.path.len());
        let below = self.map.siblings(number).into_iter().flat_map(|below| below.iter().rev());
        self.next.extend(below.map(|below| (below, length)));
        Some((self.path.clone(), number))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn walked(map: &PathMap<u32>) -> Vec<(String, u32)> {
        map.walk().map(|(path, number)| (path, *map.value(number))).collect()
    }

    #[test]
    fn paths_are_in_the_order_of_a_walk() {
        let mut map = PathMap::new(0);
        for (value, path) in ["b", "a", "a/z", "a-b", "a/b", "a/b/c", "a0"].iter().enumerate() {
            map.insert(path, value as u32 + 1).unwrap();
        }
        let paths: Vec<String> = map.walk().map(|(path, _)| path).collect();
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a/z", "a-b", "a0", "b"]);
        assert_eq!((map.len(), map.get("a/b/c"), map.get("a/c")), (8, Some(&6), None));
        assert_eq!(
            map.below(map.find("a").unwrap()).map(|(_, name)| name).collect::<Vec<_>>(),
            ["b", "z"]
        );
        assert_eq!(map.insert("a/b", 9), Err(NoPlace::Taken));
        assert_eq!(map.insert("c/b", 9), Err(NoPlace::NoFolder));
        assert_eq!(map.insert(&"n".repeat(70_000), 9), Err(NoPlace::Full));
        assert_eq!(walked(&map).len(), 8);
        let number = map.find_or_insert("a/b/d/e", || 7).unwrap();
        assert_eq!((map.get("a/b/d"), map.find("a/b/d/e")), (Some(&7), Some(number)));
        assert_eq!(map.find_or_insert("a/b", || 7).map(|number| *map.value(number)), Ok(5));
        map.remove_below(map.find("a/b").unwrap());
        assert_eq!((map.get("a/b"), map.get("a/b/c"), walked(&map).len()), (Some(&5), None, 7));
        assert!(map.insert("a/b/c", 8).is_ok());
    }

    #[test]
    fn very_many_in_a_folder_may_come_in_any_order() {
        let count = 3 * PIECE_MAX;
        let name = |number: usize| format!("f/{number:06}");
        let forth = (0..count).collect::<Vec<_>>();
        let back = forth.iter().rev().copied().collect();
        let mixed = forth.iter().map(|number| number * 4099 % count).collect();
        for order in [forth.clone(), back, mixed] {
            let mut map = PathMap::new(0);
            map.insert("f", 0).unwrap();
            for number in &order {
                map.insert(&name(*number), *number as u32).unwrap();
            }
            let values: Vec<usize> = walked(&map)[2..].iter().map(|(_, v)| *v as usize).collect();
            assert_eq!(values, forth);
            assert!(forth.iter().all(|number| map.get(&name(*number)) == Some(&(*number as u32))));
            assert_eq!(map.insert(&name(count / 2), 0), Err(NoPlace::Taken));
            assert_eq!(map.get("f/x"), None);
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(paths in proptest::collection::vec("[a-c-]{1,2}(/[a-c-]{1,2}){0,3}", 0..40)) {
            let (mut map, mut model) = (PathMap::new(0), BTreeMap::from([(Vec::new(), 0)]));
            for (value, path) in paths.iter().enumerate() {
                let (value, parts) = (value as u32 + 1, path.split('/').collect::<Vec<_>>());
                let expected = match (model.contains_key(&parts[..parts.len() - 1]), model.contains_key(&parts)) {
                    (false, _) => Err(NoPlace::NoFolder),
                    (true, true) => Err(NoPlace::Taken),
                    (true, false) => Ok(model.len()),
                };
                prop_assert_eq!(map.insert(path, value), expected);
                if expected.is_ok() {
                    model.insert(parts, value);
                }
                prop_assert_eq!(map.get(path), model.get(&path.split('/').collect::<Vec<_>>()));
            }
            let model: Vec<(String, u32)> =
                model.into_iter().map(|(parts, value)| (parts.join("/"), value)).collect();
            prop_assert_eq!(walked(&map), model);
        }
    }
}
