//! Returns free memory to the system after a burst of load.
//!
//! glibc keeps memory that was freed in the middle of its heaps, of which each thread may have one. Without this
//! module a server would stay as large as after its largest burst of requests.

use std::convert::Infallible;
use std::fs;
use std::time::Duration;

use actix_web::rt::task::spawn_blocking;
use actix_web::rt::time::sleep;

/// Interval between two checks of the server's size.
const INTERVAL: Duration = Duration::from_secs(10);

/// Growth, in bytes, that makes the walk through the heaps worthwhile.
const MIN_GROWTH: u64 = 32 << 20;

/// Returns free memory to the system periodically.
pub(crate) async fn return_free_memory() -> Infallible {
    // Memory that the program had at its start does not belong to a burst.
    let mut least = resident();
    loop {
        sleep(INTERVAL).await;
        let now = resident();
        if now > least.saturating_add(MIN_GROWTH) {
            // Use another thread: a large heap takes milliseconds.
            let _ = spawn_blocking(trim).await;
            let after = resident();
            log::debug!(before = now, after; "returned free memory to the system");
            least = after;
        }
        least = least.min(now);
    }
}

/// Returns the resident size of the process in bytes, or 0 if it is unknown.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: the function takes no pointer, touches only free memory, and locks each heap meanwhile.
    unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_in_the_middle_of_a_heap_is_given_back() {
        let held: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 10_000]).collect();
        // An allocation at the end of the heap prevents the normal trimming of the rest.
        let last = vec![1_u8; 100];
        let full = resident();
        drop(held);
        trim();
        let given_back = full.saturating_sub(resident());
        assert!(given_back > 100 << 20, "{given_back}");
        drop(last);
    }
}
