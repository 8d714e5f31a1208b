//! Every file system of a sandbox that is not its own: nothing of the host or of other sandboxes is seen or blocked.
