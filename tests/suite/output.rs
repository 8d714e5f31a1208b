//! Output of programs: nothing of it is lost, held back or changed, in every runtime and mode.

mod bytes;
mod colors;
mod streamed;
mod usage;

use isol8_client::{ExecutionRequest, Runtime};

use crate::harness::{command, source};

/// A program of each runtime that writes these bytes, which are no UTF-8 and end with white space, to standard
/// output.
pub(crate) const BYTES: [(Runtime, &str); 5] = [
    (Runtime::Bash, r"printf '\xff\x00\xc3\n '"),
    (
        Runtime::Python,
        r"import sys; sys.stdout.buffer.write(b'\xff\x00\xc3\n ')",
    ),
    (
        Runtime::Node,
        "process.stdout.write(Buffer.from([255, 0, 195, 10, 32]))",
    ),
    (
        Runtime::Bun,
        "process.stdout.write(Buffer.from([255, 0, 195, 10, 32]))",
    ),
    (
        Runtime::Deno,
        "Deno.stdout.writeSync(new Uint8Array([255, 0, 195, 10, 32]))",
    ),
];

/// The output of the programs of [`BYTES`].
pub(crate) const WRITTEN: &[u8] = b"\xff\x00\xc3\n ";

/// Returns each program in its runtime, and for bash the command line that does the same.
pub(crate) fn programs(table: &[(Runtime, &str)]) -> Vec<ExecutionRequest> {
    let mut requests: Vec<ExecutionRequest> = Vec::new();
    for (runtime, code) in table {
        requests.push(source(*runtime, *code));
        if *runtime == Runtime::Bash {
            requests.push(command(code));
        }
    }
    requests
}
