//! The `isol8` command.

fn main() -> std::process::ExitCode {
    isol8::start()
}
