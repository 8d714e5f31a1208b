//! Runs at a terminal.

use std::time::{Duration, Instant};

use isol8_api::{EventKind, StreamEvent};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::joined;
use super::socket::Socket;
use crate::harness::{KEY, SOON, Server, command, on_each_backend, python};

on_each_backend!(
    a_program_sees_a_terminal_and_its_changes,
    what_is_typed_reaches_the_program,
    a_shell_has_job_control,
    every_runtime_has_a_terminal,
    a_session_s_interpreter_goes_on_beside_a_terminal,
    a_megabyte_arrives_in_order,
    a_terminal_that_nobody_reads_slows_its_program,
    a_client_that_goes_away_takes_its_terminal_with_it,
    a_reset_leaves_nothing_of_a_terminal,
    only_a_websocket_has_a_terminal,
    a_size_that_cannot_be_is_refused_and_the_run_goes_on,
);

/// Asks for a run at a terminal.
async fn open(server: &Server, request: Value, session: Option<&str>) -> Socket {
    let mut socket = Socket::open(server).await;
    let mut message = json!({"type": "execute", "request": request});
    message["request"]["tty"] = json!(true);
    message["options"] = json!({"maxOutputSize": 64 << 20});
    if let Some(session) = session {
        message["sessionId"] = json!(session);
    }
    socket.send(message).await;
    socket
}

fn python_code(code: &str) -> Value {
    json!({"runtime": "python", "code": code})
}

/// Returns the text up to `end`.
async fn until(socket: &mut Socket, end: &str) -> String {
    let mut shown = String::new();
    while !shown.contains(end) {
        let event = socket.next().await.unwrap_or_else(|closed| {
            panic!("closed as {closed:?} after {shown:?}, expected {end:?}");
        });
        assert_eq!(event.kind, EventKind::Stdout, "{event:?} after {shown:?}");
        shown.push_str(&event.data);
    }
    shown
}

async fn type_in(socket: &mut Socket, text: &str) {
    socket.send(json!({"type": "stdin", "data": text})).await;
}

async fn resize(socket: &mut Socket, cols: u32, rows: u32) {
    let message = json!({"type": "resize", "cols": cols, "rows": rows});
    socket.send(message).await;
}

/// All that is still shown, and the exit code.
async fn rest(mut socket: Socket) -> (String, String) {
    let events: Vec<StreamEvent> = socket.rest().await;
    let (stdout, stderr, exit) = joined(&events);
    assert_eq!(stderr, "");
    (stdout, exit)
}

async fn a_program_sees_a_terminal_and_its_changes(server: Server) {
    let code = "import os, signal, sys, time
print(sys.stdin.isatty(), sys.stdout.isatty(), sys.stderr.isatty(), os.environ['TERM'], flush=True)
size = lambda *_: os.write(1, '{} {}\\n'.format(*os.get_terminal_size()).encode())
signal.signal(signal.SIGWINCH, size)
size()
while os.get_terminal_size().columns < 200: time.sleep(0.05)
print('last', file=sys.stderr)";
    for (given, first) in [
        (json!({}), "80 24\r\n"),
        (json!({"cols": 100, "rows": 30}), "100 30\r\n"),
    ] {
        let mut request = python_code(code);
        for (name, value) in given.as_object().unwrap() {
            request[name] = value.clone();
        }
        let mut socket = open(&server, request, None).await;
        let shown = until(&mut socket, first).await;
        assert_eq!(shown, format!("True True True xterm-256color\r\n{first}"));
        resize(&mut socket, 120, 40).await;
        assert_eq!(until(&mut socket, "\r\n").await, "120 40\r\n");
        resize(&mut socket, 200, 50).await;
        let (shown, exit) = rest(socket).await;
        assert_eq!((shown.as_str(), exit.as_str()), ("200 50\r\nlast\r\n", "0"));
    }
    let request =
        json!({"runtime": "bash", "code": "echo $TERM; stty size", "env": {"TERM": "vt100"}});
    let (shown, _) = rest(open(&server, request, None).await).await;
    assert_eq!(shown, "vt100\r\n24 80\r\n");
    server.stop();
}

async fn what_is_typed_reaches_the_program(server: Server) {
    let code = "read -p 'name? ' name; echo \"hello $name\"; cat; echo end";
    let mut socket = open(&server, json!({"runtime": "bash", "code": code}), None).await;
    assert_eq!(until(&mut socket, "? ").await, "name? ");
    type_in(&mut socket, "zoé\u{7f}ë\n").await;
    until(&mut socket, "hello zoë\r\n").await;
    socket.send(json!({"type": "stdinEnd"})).await;
    assert_eq!(rest(socket).await, ("end\r\n".to_owned(), "0".to_owned()));

    let code = "import time\ntry:\n  print('ready', flush=True); time.sleep(30)\nexcept KeyboardInterrupt:\n  print('interrupted'); exit(7)";
    for message in [
        json!({"type": "stdin", "data": "\u{3}"}),
        json!({"type": "signal", "signal": "SIGINT"}),
    ] {
        let mut socket = open(&server, python_code(code), None).await;
        until(&mut socket, "ready\r\n").await;
        socket.send(message).await;
        let (shown, exit) = rest(socket).await;
        assert!(shown.ends_with("interrupted\r\n"), "{shown:?}");
        assert_eq!(exit, "7");
    }
    server.stop();
}

async fn a_shell_has_job_control(server: Server) {
    let request = json!({"runtime": "bash", "cmd": "exec bash --norc --noprofile -i",
        "env": {"PS1": "$ ", "TERM": "dumb"}});
    let mut socket = open(&server, request, None).await;
    until(&mut socket, "$ ").await;
    type_in(&mut socket, "echo on; cat\n").await;
    until(&mut socket, "\r\non\r\n").await;
    type_in(&mut socket, "here\n").await;
    until(&mut socket, "here\r\nhere\r\n").await;
    type_in(&mut socket, "\u{1a}").await;
    assert!(until(&mut socket, "$ ").await.contains("Stopped"));
    type_in(&mut socket, "fg\n").await;
    // The shell says so before the terminal is `cat`'s again; a key would be for the shell until then.
    until(&mut socket, "fg\r\ncat\r\n").await;
    type_in(&mut socket, "again\n").await;
    until(&mut socket, "again\r\nagain\r\n").await;
    type_in(&mut socket, "\u{3}").await;
    until(&mut socket, "$ ").await;
    type_in(&mut socket, "echo $?; exit 5\n").await;
    let (shown, exit) = rest(socket).await;
    assert!(shown.contains("\r\n130\r\n"), "{shown:?}");
    assert_eq!(exit, "5");
    server.stop();
}

async fn every_runtime_has_a_terminal(server: Server) {
    let javascript = "console.log(process.stdin.isTTY, process.stdout.columns)";
    for (runtime, code, expected) in [
        (
            "python",
            "import os; print(os.isatty(0), os.get_terminal_size().columns)",
            "True 80\r\n",
        ),
        ("bash", "[ -t 0 ] && [ -t 1 ] && stty size", "24 80\r\n"),
        ("node", javascript, "true 80\r\n"),
        ("bun", javascript, "true 80\r\n"),
        ("deno", javascript, "true 80\r\n"),
    ] {
        for session in [None, Some(format!("tty-{runtime}"))] {
            for request in [
                json!({"runtime": runtime, "code": code, "env": {"NO_COLOR": "1"}}),
                json!({"runtime": runtime, "cmd": "tty && stty size"}),
            ] {
                let expected = if request["cmd"].is_null() {
                    expected
                } else {
                    "/dev/pts/0\r\n24 80\r\n"
                };
                let (shown, exit) = rest(open(&server, request, session.as_deref()).await).await;
                // Deno clears its progress off the line first.
                assert!(
                    shown.ends_with(expected),
                    "{runtime} {session:?}: {shown:?}"
                );
                assert_eq!(exit, "0");
            }
        }
    }
    server.stop();
}

async fn a_session_s_interpreter_goes_on_beside_a_terminal(server: Server) {
    let session = server.session("s");
    session
        .execute(python("x = 41; open('helper.py', 'w').write('y = 1')"))
        .await
        .unwrap();
    let code = "import os, helper\nprint('x' in globals(), helper.y, os.getcwd(), flush=True)\nopen('made', 'w').write('2')\ninput()";
    let mut socket = open(&server, python_code(code), Some("s")).await;
    assert_eq!(until(&mut socket, "\r\n").await, "False 1 /sandbox\r\n");
    type_in(&mut socket, "\n").await;
    rest(socket).await;
    let told = session
        .execute(python("print(x + 1, open('made').read())"))
        .await;
    assert_eq!(told.unwrap().stdout, "42 2");

    // A terminal that is left alone hangs up, and the variables stay.
    let mut socket = open(
        &server,
        python_code("print('on', flush=True); input()"),
        Some("s"),
    )
    .await;
    until(&mut socket, "on\r\n").await;
    drop(socket);
    let told = session.execute(python("print(x + 1)")).await.unwrap();
    assert_eq!((told.stdout.as_str(), told.state_lost), ("42", false));
    server.stop();
}

async fn a_megabyte_arrives_in_order(server: Server) {
    let code = "for n in range(150_000): print(n)";
    let (shown, exit) = rest(open(&server, python_code(code), None).await).await;
    assert!(shown.len() > 1_000_000);
    let mut lines = shown.split_terminator("\r\n");
    assert!((0..150_000).all(|n: u32| lines.next() == Some(&n.to_string())));
    assert_eq!((lines.next(), exit.as_str()), (None, "0"));
    server.stop();
}

async fn a_terminal_that_nobody_reads_slows_its_program(server: Server) {
    let code = "
with open('/sandbox/count', 'w') as count:
    for n in range(1_000_000):
        print('y' * 50_000, flush=True)
        count.seek(0); count.write(str(n)); count.flush()";
    let mut socket = open(&server, python_code(code), Some("s")).await;
    socket.next().await.unwrap();
    let written = async || {
        // Beside what runs, as files are.
        let content = server
            .session("s")
            .get_file("/sandbox/count")
            .await
            .unwrap();
        String::from_utf8(content)
            .unwrap()
            .parse::<u64>()
            .unwrap_or(0)
            * 50_000
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut before, resident) = (written().await, server.memory("VmRSS"));
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = written().await;
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "{now} bytes written");
        before = now;
    }
    assert!(before < 20_000_000, "{before} bytes written");
    let grown = server.memory("VmRSS").saturating_sub(resident);
    assert!(grown < 4 << 20, "{grown} bytes more than {resident}");
    drop(socket);
    server.stop();
}

async fn a_client_that_goes_away_takes_its_terminal_with_it(server: Server) {
    for code in [
        "sleep 1000",
        "trap '' HUP INT TERM; sleep 1000 & wait; sleep 1000",
        "yes",
    ] {
        let request = json!({"runtime": "python", "cmd": format!("echo on; {code}")});
        let mut socket = open(&server, request, Some("s")).await;
        until(&mut socket, "on\r\n").await;
        drop(socket);
        let left = "pgrep -x 'sleep|yes'; ls /dev/pts";
        let asked = Instant::now();
        let told = server.session("s").execute(command(left)).await.unwrap();
        assert_eq!(told.stdout, "ptmx", "{code}");
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    server.stop();
}

async fn a_reset_leaves_nothing_of_a_terminal(started: Server) {
    let kind = started.kind;
    started.stop();
    // A single run at a time, so that a request waits for the sandbox that is being reset.
    let config = "maxConcurrent = 1\n[runtimes.bash]\npoolSize = { clean = 0, dirty = 1 }";
    let server = Server::configured(kind, config);
    let code = "echo x >/sandbox/x; (trap '' HUP; sleep 1000 &) ; (setsid yes &) ; echo on";
    let mut containers = Vec::new();
    for _ in 0..2 {
        let (shown, _) =
            rest(open(&server, json!({"runtime": "bash", "code": code}), None).await).await;
        assert!(shown.contains("on\r\n"));
        let mut request = isol8_client::ExecutionRequest::new(isol8_client::Runtime::Bash);
        request.code = Some(
            "ls -A /sandbox /tmp /dev/pts; pgrep -x 'sleep|yes'; tty; ls /proc/self/fd".to_owned(),
        );
        let told = server.client().execute(request).await.unwrap();
        assert_eq!(
            told.stdout,
            "/dev/pts:\nptmx\n\n/sandbox:\nmain.sh\n\n/tmp:\nnot a tty\n0\n1\n2\n3"
        );
        containers.push(told.container_id);
    }
    assert_eq!(containers[0], containers[1], "it was not reset");
    server.stop();
}

async fn only_a_websocket_has_a_terminal(server: Server) {
    drop(server.client());
    for path in ["/execute", "/execute/stream"] {
        let body = json!({"request": {"runtime": "bash", "cmd": "tty", "tty": true}});
        let url = format!("http://{}{path}", server.address);
        let request = reqwest::Client::new().post(url).bearer_auth(KEY);
        let answer = request.body(body.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let text = answer.text().await.unwrap();
        assert!(
            text.contains("request.tty: ") && text.contains("/execute/ws"),
            "{text}"
        );
    }
    server.stop();
}

async fn a_size_that_cannot_be_is_refused_and_the_run_goes_on(server: Server) {
    let mut socket = Socket::open(&server).await;
    socket.execute("print(input())").await;
    resize(&mut socket, 80, 24).await;
    assert!(socket.refused().await.contains("request.tty"));
    type_in(&mut socket, "on\n").await;
    assert_eq!(joined(&socket.rest().await).0, "on\n");

    let request = json!({"runtime": "bash", "code": "stty -echo; echo on; read; stty size"});
    let mut socket = open(&server, request.clone(), None).await;
    until(&mut socket, "on\r\n").await;
    for (cols, rows, fault) in [(0, 24, "resize.cols: 0 "), (80, 1001, "resize.rows: 1001 ")] {
        resize(&mut socket, cols, rows).await;
        let text = socket.refused().await;
        assert!(text.starts_with(fault), "{text}");
    }
    socket.send(json!({"type": "resize", "cols": 80})).await;
    assert!(socket.refused().await.contains("rows"));
    type_in(&mut socket, "\n").await;
    assert_eq!(rest(socket).await.0, "24 80\r\n");

    let mut request = request;
    request["cols"] = json!(5000);
    let mut socket = open(&server, request, None).await;
    assert!(socket.refused().await.starts_with("request.cols: 5000 "));
    socket.execute("print('still here')").await;
    assert_eq!(joined(&socket.rest().await).0, "still here\n");
    server.stop();
}
