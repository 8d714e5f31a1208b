//! Kernel counters that are not namespaced: one sandbox at its limit, another sandbox and the host unaffected.
