//! Layers that nobody means well with.

use proptest::prelude::*;

proptest! {
    #[test]
    fn any_layer_is_unpacked_inside_or_refused(
        recipe in proptest::collection::vec(any::<u8>(), 0..90), changes: Vec<(u16, u8)>,
    ) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let mut archive = builder::fuzz::archive(&recipe);
        for (at, value) in changes.into_iter().take(2) {
            let at = usize::from(at) % archive.len();
            archive[at] = value;
        }
        builder::fuzz::layer(&archive, &inner);
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        builder::fuzz::layer(&bytes, tempfile::tempdir().unwrap().path());
    }
}
