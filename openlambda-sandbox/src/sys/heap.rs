//! Memory that a process frees and does not keep: [`give_back_freed_memory`].

/// From now on, an allocation of 128 KiB or more is a mapping of its own, which the system has back when
/// it is freed.
///
/// glibc begins so, but raises its threshold to the largest block that was ever freed, up to 32 MiB: after
/// some bodies of requests, all later ones lie in its heaps, which keep what is freed below anything that
/// lives. Other C libraries (musl) have no such threshold; there, nothing happens. Call it before there
/// are threads.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number in the allocator, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}
