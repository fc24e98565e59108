//! How the C library's allocator is set.

/// Allocations of this size and more go back to the kernel when they are freed. Larger than
/// the pieces in which blobs are received, which are made again and again.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// Lets large allocations go back to the kernel. By itself, the allocator takes the first one
/// that is freed as a sign that more will come, and from then on keeps their memory: a server
/// that was once sent many large manifests would never become small again.
pub(crate) fn give_back_large_allocations() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no other way to set the allocator")]
    // SAFETY: sets a number of the allocator under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Allocations that are the kernel's to take back.
    fn mapped() -> usize {
        #[expect(unsafe_code, reason = "no other way to ask the allocator")]
        // SAFETY: only reads counters.
        unsafe {
            libc::mallinfo2().hblks
        }
    }

    #[test]
    fn large_allocations_go_back_to_the_kernel() {
        give_back_large_allocations();
        drop(std::hint::black_box(vec![1u8; 8 << 20]));
        let before = mapped();
        let second = std::hint::black_box(vec![1u8; 8 << 20]);
        assert_eq!(mapped(), before + 1);
        drop(second);
    }
}
