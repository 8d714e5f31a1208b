//! Idle and half-open connections at a low limit on open files.
