//! The runtimes, and everything that differs between them.
//!
//! Each runtime has one file, which holds its [`RuntimeFacts`]: names, interpreter, environment variables, packages,
//! image. All other crates ask for a fact (`runtime.facts().probe`) instead of comparing a runtime with a constant, so
//! that a new runtime is a new file here, and a driver, an image section and documentation elsewhere. CONTRIBUTING.md
//! lists those places; `tests/runtimes.rs` of the workspace finds each one that was forgotten.
//!
//! This crate is at the bottom of the workspace and becomes part of the guest agent: it holds constants, allocates
//! nothing and depends on serde only.
//!
//! Read `python.rs` and [`facts`] first.

mod bash;
mod bun;
mod deno;
pub mod facts;
mod name;
mod node;
mod python;
#[cfg(any(feature = "openapi", feature = "schemars"))]
mod schema;

pub use facts::{
    Boot, CellRequests, CommonJs, Installer, Interpreter, PackageManager, PackageNotation,
    Packages, PipFallback, PreludeOption, RuntimeFacts, Scripts, Variable, Variables,
};
pub use name::UnknownRuntime;

/// Language and interpreter of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// CPython 3.
    Python,
    /// Node.js.
    Node,
    /// Bun.
    Bun,
    /// Deno.
    Deno,
    /// GNU bash.
    Bash,
}

impl Runtime {
    /// Every runtime, in the order of the contract. The position of a runtime is its number in frames between host and
    /// guest.
    pub const ALL: [Self; 5] = [Self::Python, Self::Node, Self::Bun, Self::Deno, Self::Bash];

    /// The names of all runtimes, as text for messages and help.
    pub const NAMES: &str = "python, node, bun, deno or bash";

    /// Returns the facts about the runtime.
    #[must_use]
    pub const fn facts(self) -> &'static RuntimeFacts {
        match self {
            Self::Python => &python::FACTS,
            Self::Node => &node::FACTS,
            Self::Bun => &bun::FACTS,
            Self::Deno => &deno::FACTS,
            Self::Bash => &bash::FACTS,
        }
    }
}

#[cfg(test)]
mod tests;
