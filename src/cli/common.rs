//! Arguments shared by commands.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use clap_complete::ArgValueCandidates;
use isol8_config::BackendChoice;

use super::completions;

/// Arguments shared by all commands that read a configuration.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Read this configuration file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// auto, docker or native [default: from the configuration]
    #[arg(long, add = ArgValueCandidates::new(completions::backends))]
    pub backend: Option<BackendChoice>,
    /// Write a detailed log
    #[arg(long)]
    pub debug: bool,
}
