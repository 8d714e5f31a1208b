//! Builds the Python extension that the guest carries.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = "native/confine.rs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let output = Path::new(&env::var("OUT_DIR")?).join("confine.so");
    // The extension is linked without a C library, because the interpreter that loads it has one.
    let status = Command::new(env::var("RUSTC")?)
        .args(["--edition", "2024", "--crate-type", "cdylib"])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "link-arg=-nostdlib", "--target", &env::var("TARGET")?])
        .args(["-D", "warnings", "-o"])
        .arg(&output)
        .arg(SOURCE)
        .status()?;
    if !status.success() {
        return Err("the python extension could not be built".into());
    }
    println!("cargo::rustc-env=ISOL8_CONFINE={}", output.display());
    Ok(())
}
