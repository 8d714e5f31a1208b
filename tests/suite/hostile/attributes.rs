//! File attributes of every writable place: a reset sandbox shows the same as a new one.
