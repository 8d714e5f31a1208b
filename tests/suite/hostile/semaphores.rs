//! Every global semaphore of the server: one run at its own limit does not delay another.
