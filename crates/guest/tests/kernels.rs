//! Interpreters that were booted before the code came: scripts and cells.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end where it stands

mod support;

use isol8_protocol::{ExitStatus, KernelKind, Signal, Stdin};
use support::{Sandbox, cell, finish, python};

/// A sandbox whose spare interpreter waits.
async fn prepared() -> Sandbox {
    let sandbox = Sandbox::start().await;
    sandbox.control.prepare(KernelKind::Python);
    sandbox
}

#[tokio::test]
async fn a_script_finds_what_the_interpreter_gives_to_a_main_module() {
    let sandbox = prepared().await;
    let source = r#"
"""doc"""
import sys, os
print(__name__, __file__, __doc__, __spec__, __package__, __cached__)
print(type(__loader__).__name__, sys.argv, sys.orig_argv, sys.path[0])
print(sorted(globals()) == ['__annotations__', '__builtins__', '__cached__', '__doc__', '__file__', '__loader__', '__name__', '__package__', '__spec__', 'os', 'sys'])
print(sys.modules['__main__'].__dict__ is globals())
print(os.getcwd(), sorted(os.listdir('/proc/self/fd')))
print([m for m in sys.modules if 'isol8' in m or 'driver' in m], [p for p in sys.path if 'proc' in p])
print('PYTHONPATH' in os.environ, os.environ['HOME'], sys.stdin.read() == '')
"#;
    let outcome = sandbox.python(source).await;
    let booted = outcome.ok().to_owned();
    assert!(booted.contains("__main__ /sandbox/main.py doc None None None"), "{booted}");
    // The same from an interpreter that nobody booted ahead.
    assert_eq!(sandbox.python(source).await.ok(), booted);
}

#[tokio::test]
async fn a_cell_sees_what_earlier_cells_did() {
    let sandbox = prepared().await;
    assert_eq!(sandbox.cell("x = 41").await.ok(), "");
    let second = sandbox.cell("print(x + 1)").await;
    assert_eq!(second.ok(), "42");
    assert!(!second.exit.state_lost);
}
