//! The memory of a sandbox, and what follows if it is exhausted.
//!
//! User code and the guest share a memory limit, and the kernel picks the process that it kills by scores which user
//! code can influence. If the kernel kills the guest for want of memory, the run ends as if another process had been
//! killed, and the backend has not failed. Files in the sandbox count towards the same limit.

use isol8_api::ByteSize;
use isol8_backend::{Sandbox, SandboxUsage};

use crate::error::ExecuteError;

/// Memory that files leave to programs, the guest among them. The kernel kills a process that takes the last of it.
pub(crate) const KEPT_FROM_FILES: u64 = 4 << 20;

/// Reason that is given to the client of a session that was lost to the kernel's out-of-memory killer.
pub(crate) const OUT_OF_MEMORY: &str = "its memory was out and the kernel ended it: raise options.memoryLimit, or hold \
                             less in files and processes";

/// Returns the last line of standard error of a run that lost a process to the kernel's out-of-memory killer.
pub(crate) fn out_of_memory_line(limit: ByteSize) -> String {
    format!("--- OUT OF MEMORY (limit: {limit}, raised by options.memoryLimit or --memory) ---")
}

/// Returns the error of a session whose files leave too little memory for an interpreter to boot.
pub(crate) fn filled_by_files(limit: ByteSize) -> ExecuteError {
    ExecuteError::Invalid(format!(
        "options.memoryLimit: the session's files fill its memory of {limit}, which leaves no interpreter room \
         to boot: raise it for the next request, and delete files then"
    ))
}

/// Returns whether the kernel has killed processes of a lost sandbox for want of memory since `known` was read.
pub(crate) async fn was_exhausted_since(
    sandbox: &dyn Sandbox,
    known: Option<SandboxUsage>,
) -> bool {
    let before = known.map_or(0, |usage| usage.oom_kills);
    let now = sandbox.final_oom_kills().await;
    now.is_some_and(|now| now > before)
}

/// Returns the reason of a loss for the session's owner: exhausted memory, or else the reason that the connection gave.
pub(crate) async fn explain_loss(
    sandbox: &dyn Sandbox,
    known: Option<SandboxUsage>,
    reason: String,
) -> String {
    if was_exhausted_since(sandbox, known).await {
        OUT_OF_MEMORY.to_owned()
    } else {
        reason
    }
}

/// Refuses files for which the sandbox has no memory left: the kernel would kill processes in it, the interpreter
/// first.
pub(crate) async fn check_room(sandbox: &dyn Sandbox, bytes: u64) -> Result<(), ExecuteError> {
    if sandbox.has_memory_for(bytes + KEPT_FROM_FILES).await {
        return Ok(());
    }
    let text = "no memory is left for the file, raise memoryLimit or delete files: they count towards it, and \
                one that is replaced stays until the new one is complete";
    Err(ExecuteError::Invalid(text.to_owned()))
}
