//! The rules for keys in a file of the working directory. Each section has a table of its keys, beside them.

/// Keys by their full name, which is `runtimes.*.KEY` for the keys of a runtime, grouped by their rule.
pub(super) type TrustTable = &'static [(Rule, &'static [&'static str])];

/// The effect that a key of a file in the working directory may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Has no effect on confinement: accepted.
    Harmless,
    /// Names an image to build: accepted by `isol8 setup`, ignored with a warning by other commands.
    Image,
    /// Concerns a server only: ignored without a warning, because commands do not use it.
    ServerOnly,
    /// A number or a size: accepted if it is no larger than without the file.
    AtMost,
    /// A network mode: accepted if it reaches no further than without the file.
    NetworkAtMost,
    /// A list of grants: accepted if all of them are granted without the file.
    Subset,
    /// A list that restricts unless it is empty: accepted if the list is empty without the file.
    Whitelist,
    /// A list of refusals: added to the list without the file.
    Blacklist,
    /// Could loosen confinement: ignored with a warning.
    Refused,
}
