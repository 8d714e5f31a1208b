//! Builds the guest agent, which the server carries in its own executable.
//!
//! `ISOL8_GUEST` hands in a guest that is built already. If the variable is set and empty, none is built: enough for
//! `cargo check`, for editors and for documentation; a server of such a build starts no sandboxes.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    for source in [
        "../guest",
        "../protocol",
        "../runtimes",
        "../../Cargo.toml",
        "../../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let guest = match env::var_os(PREBUILT) {
        Some(none) if none.is_empty() => empty_file()?,
        Some(path) => {
            let path = PathBuf::from(path).canonicalize();
            let path = path.map_err(|error| format!("{PREBUILT} cannot be read: {error}"))?;
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build_guest()?,
    };
    println!("cargo::rustc-env={PREBUILT}={}", guest.display());
    Ok(())
}

/// Variable with the path of a guest that is built already.
const PREBUILT: &str = "ISOL8_GUEST";

/// Returns the path of an empty file in the place of the guest.
fn empty_file() -> Result<PathBuf, Box<dyn Error>> {
    let path = PathBuf::from(env::var("OUT_DIR")?).join("no-guest");
    std::fs::write(&path, "")?;
    Ok(path)
}

/// Builds the guest as a static executable, because it runs in images with another C library or none.
fn build_guest() -> Result<PathBuf, Box<dyn Error>> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH")?;
    let target = format!("{architecture}-unknown-linux-gnu");
    let directory = target_directory()?.join("guest");
    let status = Command::new(env::var("CARGO")?)
        .args(["build", "--package", "isol8-guest", "--profile", "guest"])
        .args(["--target", &target, "--target-dir"])
        .arg(&directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // Do not pass on the settings that the outer cargo made for itself and for clippy.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    if !status.success() {
        return Err("the guest agent could not be built".into());
    }
    Ok(directory.join(target).join("guest/isol8-guest"))
}

/// Returns the build directory of the guest, which is the same for every profile of the outer build: `OUT_DIR` is
/// `<target>/<profile>/build/<package>/out`.
fn target_directory() -> Result<PathBuf, Box<dyn Error>> {
    let out = env::var("OUT_DIR")?;
    let target = Path::new(&out).ancestors().nth(4);
    Ok(target
        .ok_or("OUT_DIR is not in a target directory")?
        .to_owned())
}
