//! Why a sandbox is lost: its guest may have been ended by the kernel because memory was out.
//!
//! User code and the guest share a memory limit, and the kernel picks what it ends by scores that user
//! code has a hand in. So the guest's end for want of memory is an end of the run like that of any other
//! process, and no failure of the backend.

use isol8_api::ByteSize;
use isol8_backend::{Sandbox, SandboxUsage};

use crate::error::ExecuteError;

/// Reason that a client is given for a session that was lost to the kernel's out-of-memory killer.
pub(crate) const OUT_OF_MEMORY: &str = "its memory was out and the kernel ended it: raise options.memoryLimit, or hold \
                             less in files and processes";

/// The line at the end of standard error of a run that lost a process to the kernel's out-of-memory killer.
pub(crate) fn out_of_memory(limit: ByteSize) -> String {
    format!("--- OUT OF MEMORY (limit: {limit}, raised by options.memoryLimit or --memory) ---")
}

/// The answer of a session whose files leave an interpreter no memory to boot in.
pub(crate) fn full(limit: ByteSize) -> ExecuteError {
    ExecuteError::Invalid(format!(
        "options.memoryLimit: the session's files fill its memory of {limit}, which leaves no interpreter room \
         to boot: raise it for the next request, and delete files then"
    ))
}

/// Whether the kernel has ended processes of a lost sandbox for want of memory since `known` was read.
pub(crate) async fn is_for_memory(sandbox: &dyn Sandbox, known: Option<SandboxUsage>) -> bool {
    let before = known.map_or(0, |usage| usage.oom_kills);
    let now = sandbox.final_oom_kills().await;
    now.is_some_and(|now| now > before)
}

/// The reason of a loss, for the session's owner: memory, or else what its connection said.
pub(crate) async fn explain(
    sandbox: &dyn Sandbox,
    known: Option<SandboxUsage>,
    reason: String,
) -> String {
    if is_for_memory(sandbox, known).await {
        OUT_OF_MEMORY.to_owned()
    } else {
        reason
    }
}
