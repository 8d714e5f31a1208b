//! Colours: none where no terminal shows them, unless the caller asks for them.

use isol8_client::Runtime;
use serde_json::json;

use super::programs;
use crate::harness::{Server, command, on_each_backend, source};
use crate::stream::socket::Socket;

on_each_backend!(
    no_runtime_prints_colors_without_a_terminal,
    who_asks_for_colors_or_has_a_terminal_is_not_told_otherwise,
);

/// Programs that show a value and fail.
const FAILING: [(Runtime, &str); 5] = [
    (Runtime::Bash, "ls --color=auto / >&2; no_such_command"),
    (Runtime::Python, "print({'a': 1}); raise ValueError('x')"),
    (
        Runtime::Node,
        "console.log({a: 1, b: 'x'}); console.error([null]); throw new Error('x')",
    ),
    (
        Runtime::Bun,
        "console.log({a: 1, b: 'x'}); console.error([null]); throw new Error('x')",
    ),
    (
        Runtime::Deno,
        "console.log({a: 1, b: 'x'}); console.error([null]); throw new Error('x')",
    ),
];

async fn no_runtime_prints_colors_without_a_terminal(server: Server) {
    let mut requests = programs(&FAILING);
    // The text of a compiler about a faulty program.
    for runtime in [Runtime::Node, Runtime::Bun, Runtime::Deno] {
        requests.push(source(runtime, "let let = 1"));
        requests.push(source(runtime, "import x from './no-such-module.js'"));
    }
    for request in requests {
        let session = server.session(&format!("s-{}", request.runtime));
        for client in [server.client(), session] {
            let result = client.execute(request.clone()).await.unwrap();
            let printed = result.stdout + &result.stderr;
            assert!(!printed.contains('\x1b'), "{request:?}: {printed:?}");
            let mut run = client.execute_stream(request.clone()).await.unwrap();
            while let Some(event) = run.next().await {
                let event = event.unwrap();
                assert!(!event.data.contains('\x1b'), "{request:?}: {event:?}");
            }
        }
    }
    server.stop();
}

async fn who_asks_for_colors_or_has_a_terminal_is_not_told_otherwise(server: Server) {
    let show = "echo ${NO_COLOR-none} ${FORCE_COLOR-none}";
    for (name, value, shown) in [
        ("A", "b", "1 none"),
        ("NO_COLOR", "0", "0 none"),
        ("FORCE_COLOR", "1", "none 1"),
    ] {
        let mut request = command(show);
        request.env = [(name.to_owned(), value.to_owned())].into();
        let result = server.client().execute(request).await.unwrap();
        assert_eq!(result.stdout, shown, "{name}");
    }
    let mut colored = source(Runtime::Deno, "throw new Error('x')");
    colored.env = [("FORCE_COLOR".to_owned(), "1".to_owned())].into();
    let result = server.client().execute(colored).await.unwrap();
    assert!(result.stderr.contains('\x1b'), "{result:?}");

    let mut socket = Socket::open(&server).await;
    let request = json!({"runtime": "bash", "cmd": show, "tty": true});
    socket
        .send(json!({"type": "execute", "request": request}))
        .await;
    let events = socket.rest().await;
    let (stdout, _, _) = crate::stream::joined(&events);
    assert_eq!(stdout, "none none\r\n");
    server.stop();
}
