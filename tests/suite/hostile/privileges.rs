//! The server's process after it has dropped root.
