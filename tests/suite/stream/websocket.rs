use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use isol8_api::{EventKind, Phase};
use serde_json::json;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::joined;
use super::socket::Socket;
use crate::harness::{KEY, PATIENCE, SOON, Server, on_each_backend, python};

on_each_backend!(
    input_is_live,
    a_session_runs_over_a_websocket,
    a_signal_reaches_the_program,
    a_failed_setup_script_is_told_and_has_an_exit,
    input_that_nobody_reads_stops_at_its_client,
    what_is_not_json_closes_and_what_is_unknown_does_not,
    a_message_that_is_too_large_closes,
    a_websocket_that_asks_for_nothing_is_closed,
    a_client_that_answers_no_ping_is_taken_for_gone,
    a_client_that_answers_pings_may_be_silent_otherwise,
    a_websocket_needs_a_key,
    a_websocket_that_goes_away_ends_its_run,
);

const ECHO: &str = "import sys
print('ready', flush=True)
for line in sys.stdin: print(line.strip().upper(), flush=True)
print('end')";

async fn echo(socket: &mut Socket) {
    assert_eq!(socket.next().await.unwrap().data, "ready\n");
    for (given, shown) in [("one\n", "ONE\n"), ("zwei é\n", "ZWEI É\n")] {
        socket.send(json!({"type": "stdin", "data": given})).await;
        assert_eq!(socket.next().await.unwrap().data, shown);
    }
    socket.send(json!({"type": "stdinEnd"})).await;
    let (stdout, stderr, exit) = joined(&socket.rest().await);
    assert_eq!(
        (stdout.as_str(), stderr.as_str(), exit.as_str()),
        ("end\n", "", "0")
    );
}

async fn input_is_live(server: Server) {
    let mut socket = Socket::open(&server).await;
    socket.execute(ECHO).await;
    echo(&mut socket).await;
    server.stop();
}

async fn a_session_runs_over_a_websocket(server: Server) {
    for code in [ECHO, ECHO] {
        let mut socket = Socket::open(&server).await;
        let request = json!({"runtime": "python", "code": code});
        let execute = json!({"type": "execute", "request": request, "sessionId": "s"});
        socket.send(execute).await;
        echo(&mut socket).await;
    }
    let result = server
        .session("s")
        .execute(python("print(line.strip())"))
        .await;
    assert_eq!(result.unwrap().stdout, "zwei é");
    server.stop();
}

async fn a_signal_reaches_the_program(server: Server) {
    let code = "import time
try:
    print('ready', flush=True); time.sleep(30)
except KeyboardInterrupt:
    print('interrupted'); exit(7)";
    let mut socket = Socket::open(&server).await;
    socket.execute(code).await;
    assert_eq!(socket.next().await.unwrap().data, "ready\n");
    socket
        .send(json!({"type": "signal", "signal": "SIGINT"}))
        .await;
    let (stdout, _, exit) = joined(&socket.rest().await);
    assert_eq!((stdout.as_str(), exit.as_str()), ("interrupted\n", "7"));

    let mut socket = Socket::open(&server).await;
    socket
        .execute("import time; print('ready', flush=True); time.sleep(30)")
        .await;
    assert_eq!(socket.next().await.unwrap().data, "ready\n");
    socket
        .send(json!({"type": "signal", "signal": "SIGTERM"}))
        .await;
    assert_eq!(joined(&socket.rest().await).2, "143");
    server.stop();
}

async fn a_failed_setup_script_is_told_and_has_an_exit(server: Server) {
    let mut socket = Socket::open(&server).await;
    let request = json!({"runtime": "python", "code": "1", "setupScript": "exit 4"});
    socket
        .send(json!({"type": "execute", "request": request}))
        .await;
    let text = socket.refused().await;
    assert_eq!(text, "Setup script failed with exit code 4");
    let events = socket.rest().await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (events[0].kind, events[0].data.as_str(), events[0].phase),
        (EventKind::Exit, "4", Phase::Setup)
    );
    server.stop();
}

async fn input_that_nobody_reads_stops_at_its_client(server: Server) {
    let mut socket = Socket::open(&server).await;
    socket
        .execute("import time, sys; print('ready', flush=True); time.sleep(30)\nprint(len(sys.stdin.read(10_000_000)))")
        .await;
    assert_eq!(socket.next().await.unwrap().data, "ready\n");
    let piece = json!({"type": "stdin", "data": "x".repeat(500_000)}).to_string();
    let mut sent = 0;
    let sending = async {
        for _ in 0..100 {
            socket.0.send(Message::text(piece.clone())).await.unwrap();
            sent += 1;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(2), sending)
            .await
            .is_err()
    );
    assert!(sent < 60, "{sent} messages of 500 kB were taken");
    drop(socket);
    server.stop();
}

async fn what_is_not_json_closes_and_what_is_unknown_does_not(server: Server) {
    let mut socket = Socket::open(&server).await;
    socket.send(json!({"type": "dance"})).await;
    let text = socket.refused().await;
    assert!(
        text.contains("\"dance\"") && text.contains("execute"),
        "{text}"
    );
    socket.send(json!({"type": "stdin", "data": "early"})).await;
    assert!(socket.refused().await.contains("execute"));
    let nothing = json!({"runtime": "python"});
    socket
        .send(json!({"type": "execute", "request": nothing}))
        .await;
    assert!(socket.refused().await.contains("exactly one"));
    socket.execute("print(input())").await;
    socket.send(json!({"type": "dance"})).await;
    assert!(socket.refused().await.contains("\"dance\""));
    socket
        .send(json!({"type": "stdin", "data": "late\n"}))
        .await;
    assert_eq!(joined(&socket.rest().await).0, "late\n");

    let mut socket = Socket::open(&server).await;
    socket.execute("input()").await;
    socket.send_text("{\"type\": \"stdin\", ").await;
    assert!(socket.refused().await.contains("Invalid JSON"));
    assert_eq!(socket.next().await.unwrap_err().0, 1003);
    server.stop();
}

async fn a_message_that_is_too_large_closes(server: Server) {
    let mut socket = Socket::open(&server).await;
    // The first may be as large as a request.
    let code = format!("# {}\nprint(len(input()))", "x".repeat(2_000_000));
    socket.execute(&code).await;
    let large = "x".repeat(2_000_000);
    socket.send(json!({"type": "stdin", "data": large})).await;
    let text = socket.refused().await;
    assert_eq!(text, "message is larger than 1048576 bytes");
    assert_eq!(socket.next().await.unwrap_err().0, 1009);
    server.stop();
}

async fn a_websocket_that_asks_for_nothing_is_closed(started: Server) {
    let kind = started.kind;
    started.stop();
    let server = Server::configured(kind, "[server]\nwebSocketIdleMs = 300");
    let mut socket = Socket::open(&server).await;
    let text = socket.refused().await;
    assert_eq!(text, "no execute message within 300 ms");
    assert_eq!(socket.next().await.unwrap_err().0, 1008);
    server.stop();
}

const PINGING: &str = "[server]\nwebSocketPingMs = 100";

async fn a_client_that_answers_no_ping_is_taken_for_gone(started: Server) {
    let kind = started.kind;
    started.stop();
    let server = Server::configured(kind, PINGING);
    let mut socket = Socket::open(&server).await;
    let request = json!({"runtime": "python", "code": "import time; print('on', flush=True); time.sleep(25)"});
    socket
        .send(json!({"type": "execute", "request": request, "sessionId": "s"}))
        .await;
    assert_eq!(socket.next().await.unwrap().data, "on\n");
    // Nothing is answered where nothing is read, and the connection is there all the time.
    let asked = Instant::now();
    server.session("s").execute(python("1")).await.unwrap();
    let waited = asked.elapsed();
    let expected = Duration::from_millis(200)..SOON;
    assert!(expected.contains(&waited), "{waited:?}");
    // And then it is not.
    let ended = async {
        while let Some(Ok(message)) = socket.0.next().await {
            assert!(message.is_ping(), "{message:?}");
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    server.stop();
}

async fn a_client_that_answers_pings_may_be_silent_otherwise(started: Server) {
    let kind = started.kind;
    started.stop();
    let server = Server::configured(kind, PINGING);
    let mut socket = Socket::open(&server).await;
    socket
        .execute("import time; time.sleep(1.5); print('on')")
        .await;
    assert_eq!(joined(&socket.rest().await).0, "on\n");

    // Nor is one taken for gone that is not listened to, because its program does not read.
    let mut socket = Socket::open(&server).await;
    socket
        .execute("import sys, time; time.sleep(1.5); print(len(sys.stdin.read(1_500_000)))")
        .await;
    let piece = "x".repeat(500_000);
    for _ in 0..3 {
        socket.send(json!({"type": "stdin", "data": piece})).await;
    }
    assert_eq!(joined(&socket.rest().await).0, "1500000\n");
    server.stop();
}

async fn a_websocket_needs_a_key(server: Server) {
    for (key, expected) in [(None, 401), (Some("wrong"), 403)] {
        match Socket::try_open(&server, key).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), expected),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("opened with {key:?}"),
        }
    }
    let url = format!("http://{}/execute/ws", server.address);
    drop(server.client());
    let plain = reqwest::Client::new().get(url).bearer_auth(KEY).send();
    assert_eq!(plain.await.unwrap().status(), 400);
    server.stop();
}

async fn a_websocket_that_goes_away_ends_its_run(server: Server) {
    for (session, rest) in [
        ("silent", "time.sleep(25)"),
        ("loud", "while True: print('y' * 1000)"),
    ] {
        let code = format!("import time; print('begun', flush=True)\n{rest}");
        let mut socket = Socket::open(&server).await;
        let request = json!({"runtime": "python", "code": code});
        let options = json!({"maxOutputSize": 64 << 20});
        socket
            .send(json!({"type": "execute", "request": request, "options": options, "sessionId": session}))
            .await;
        assert_eq!(socket.next().await.unwrap().kind, EventKind::Stdout);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        drop(socket);
        let asked = Instant::now();
        server.session(session).execute(python("1")).await.unwrap();
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    server.stop();
}
