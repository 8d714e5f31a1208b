//! Files of sessions over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use isol8_client::{ClientError, EntryType, ErrorCode, FileContent, Options, RemoteIsol8};
use serde_json::{Value, json};

use crate::harness::{KEY, PATIENCE, Server, command, on_each_backend, python, until};

on_each_backend!(
    ten_megabytes_go_in_and_come_out_raw_and_as_json,
    a_name_may_hold_anything_that_is_utf8,
    a_directory_is_listed_by_name_and_within_bounds,
    nothing_outside_of_the_writable_places_is_reached,
    what_is_no_regular_file_is_refused_at_once,
    a_link_that_changes_all_the_time_gains_nothing,
    faults_are_named,
    what_is_not_there_is_404_and_no_session_is_made,
    files_move_beside_a_running_job,
    a_file_is_replaced_whole_or_not_at_all,
    a_lost_session_is_said_to_be,
    each_route_says_that_a_sandbox_died,
    a_full_sandbox_says_so_and_the_session_lives_on,
    a_file_that_memory_has_no_room_for_costs_nothing_else,
    transfers_of_a_session_are_bounded,
    an_uploaded_module_is_never_the_one_before,
);

/// Sends a request whose path is not touched, and gives the status and the body.
fn raw(server: &Server, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

/// Sends a request that must be refused, and gives the status, the code and the text.
fn refused(server: &Server, method: &str, target: &str, body: &str) -> (u16, String, String) {
    let (status, body) = raw(server, method, target, body);
    let error: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{target}: {body}"));
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    (status, text("code"), text("error"))
}

fn kind(error: &ClientError) -> Option<ErrorCode> {
    error.code()
}

async fn session(server: &Server) -> RemoteIsol8 {
    let session = server.session("s");
    session.execute(python("import os, time")).await.unwrap();
    session
}

async fn ten_megabytes_go_in_and_come_out_raw_and_as_json(server: Server) {
    let session = session(&server).await;
    let content: Vec<u8> = (0..10_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let path = "/sandbox/a/b/file.bin";
    session.put_file(path, content.clone()).await.unwrap();
    assert!(session.get_file(path).await.unwrap() == content);
    let sum = session.execute(command("stat -c '%a %s %U' a/b/file.bin"));
    assert!(sum.await.unwrap().stdout.starts_with("644 10000000"));
    session.put_file("/tmp/empty", "").await.unwrap();
    assert_eq!(session.get_file("/tmp/empty").await.unwrap(), b"");

    let body = json!({"sessionId": "s", "path": "/tmp/j", "content": "aGVsbG8="}).to_string();
    let written = raw(&server, "POST", "/file", &body);
    assert_eq!(written, (200, r#"{"ok":true}"#.to_owned()));
    assert_eq!(session.get_file("/tmp/j").await.unwrap(), b"hello");
    let (status, body) = raw(&server, "GET", "/file?sessionId=s&path=%2Ftmp%2Fj", "");
    assert_eq!(status, 200);
    assert!(body.contains(r#"{"content":"aGVs"#), "{body}");
    let url = format!("http://{}/file?sessionId=s&path={path}", server.address);
    let answer = reqwest::Client::new().get(url).bearer_auth(KEY).send();
    let answer: Value = answer.await.unwrap().json().await.unwrap();
    assert_eq!(answer["content"].as_str().unwrap().len(), 13_333_336);
    server.stop();
}

async fn a_name_may_hold_anything_that_is_utf8(server: Server) {
    let session = session(&server).await;
    let long = "n".repeat(255);
    for name in ["a b", "100%", "ü/日本", "a+b", "?#&=", "\"'\\\n", &long] {
        let path = format!("/sandbox/{name}");
        session.put_file(&path, name.to_owned()).await.unwrap();
        assert_eq!(session.get_file(&path).await.unwrap(), name.as_bytes());
        let code = format!("print(open({path:?}).read() == {name:?})");
        assert_eq!(session.execute(python(&code)).await.unwrap().stdout, "True");
    }
    for target in [
        "/session/s/files/sandbox/%ff",
        "/file?sessionId=s&path=/tmp/%ff",
        "/session/s/files?path=/tmp/%ff",
        "/session/s/files/sandbox/a%00b",
        &format!("/session/s/files/sandbox/{long}n"),
        &format!("/session/s/files/sandbox{}", "/n".repeat(2048)),
    ] {
        let (status, code, text) = refused(&server, "GET", target, "");
        assert_eq!((status, code.as_str()), (400, "INVALID_REQUEST"), "{text}");
    }
}

async fn a_directory_is_listed_by_name_and_within_bounds(server: Server) {
    let session = session(&server).await;
    let make = "cd /tmp; mkdir d; cd d; printf 12345 > b; chmod 640 b; touch -d @1000000000 b; \
                mkdir c; ln -s /etc a; mkfifo p; printf x > $'\\xff'";
    session.execute(command(make)).await.unwrap();
    let listing = session.list_files("/tmp/d").await.unwrap();
    assert!(!listing.truncated);
    let names: Vec<_> = listing.entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "p", "\u{fffd}"]);
    let types: Vec<_> = listing.entries.iter().map(|e| e.kind).collect();
    use EntryType::{Directory, File, Other, Symlink};
    assert_eq!(types, [Symlink, File, Directory, Other, File]);
    let b = &listing.entries[1];
    assert_eq!(
        (b.size, b.mode.as_str(), b.mtime),
        (5, "0640", 1_000_000_000_000)
    );
    assert_eq!(session.list_files("/sandbox").await.unwrap().entries, []);
    for (path, code) in [
        ("/tmp/none", ErrorCode::FileNotFound),
        ("/tmp/d/b", ErrorCode::InvalidRequest),
        ("/tmp/d/a", ErrorCode::InvalidRequest),
        ("/tmp/d/p", ErrorCode::InvalidRequest),
        ("/etc", ErrorCode::InvalidRequest),
        ("/", ErrorCode::InvalidRequest),
        ("/tmp/../etc", ErrorCode::InvalidRequest),
    ] {
        let error = session.list_files(path).await.unwrap_err();
        assert_eq!(kind(&error), Some(code), "{path}: {error}");
    }
    let many = "os.mkdir('/tmp/many')\nfor n in range(100000): os.mknod(f'/tmp/many/{n}')";
    let made = session.execute(python(many)).await.unwrap();
    assert_eq!(made.exit_code, 0, "{}", made.stderr);
    let listing = session.list_files("/tmp/many").await.unwrap();
    assert_eq!((listing.entries.len(), listing.truncated), (10_000, true));
    assert!(listing.entries.is_sorted_by_key(|entry| entry.name.clone()));
}

async fn nothing_outside_of_the_writable_places_is_reached(server: Server) {
    let session = session(&server).await;
    let links = "ln -s /etc/passwd abs; ln -s ../etc up; ln -s /proc/self/root magic; ln -s / root; \
                 ln -s /dev/null null; ln -s loop loop; mkdir d; ln -s d inside; echo x > d/f";
    session.execute(command(links)).await.unwrap();
    for path in [
        "/sandbox/../etc/passwd",
        "/sandbox/%2e%2e/etc/passwd",
        "/sandbox/..%2fetc%2fpasswd",
        "/../etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "/sandboxed/x",
        "/sandbox",
        "/",
        "",
        "/proc/self/root/etc/passwd",
        "/sandbox/abs",
        "/sandbox/up/passwd",
        "/sandbox/magic/etc/passwd",
        "/sandbox/root/etc/passwd",
        "/sandbox/null",
        "/sandbox/loop",
    ] {
        let raw_path = format!("/session/s/files{path}");
        let query = format!("/file?sessionId=s&path={path}");
        for target in [&raw_path, &query] {
            // Without a path, the first is the list, which asks for one too.
            let (status, code, text) = refused(&server, "GET", target, "");
            assert_eq!(
                (status, code.as_str()),
                (400, "INVALID_REQUEST"),
                "{target}: {text}"
            );
        }
        let is_final_link = ["/sandbox/abs", "/sandbox/null", "/sandbox/loop"].contains(&path);
        if !is_final_link && !path.is_empty() {
            let (status, code, text) = refused(&server, "PUT", &raw_path, "x");
            assert_eq!(
                (status, code.as_str()),
                (400, "INVALID_REQUEST"),
                "{raw_path}: {text}"
            );
        }
    }
    // A link as the file itself is replaced, and never followed.
    session.put_file("/sandbox/abs", "new").await.unwrap();
    assert_eq!(session.get_file("/sandbox/abs").await.unwrap(), b"new");
    assert_eq!(session.get_file("/sandbox/inside/f").await.unwrap(), b"x\n");
    let parent = "/session/s/files/sandbox/d/../d/./f";
    assert_eq!(raw(&server, "GET", parent, "").0, 200);
}

async fn what_is_no_regular_file_is_refused_at_once(server: Server) {
    let session = session(&server).await;
    let make = "import socket\nos.mkfifo('/tmp/fifo')\nos.mkdir('/tmp/dir')\n\
                s = socket.socket(socket.AF_UNIX); s.bind('/tmp/sock')\n\
                open('/tmp/mine', 'w').close(); os.chmod('/tmp/mine', 0)";
    let made = session.execute(python(make)).await.unwrap();
    assert_eq!(made.exit_code, 0, "{}", made.stderr);
    for path in ["/tmp/fifo", "/tmp/dir", "/tmp/sock", "/tmp/mine"] {
        let error = session.get_file(path).await.unwrap_err();
        assert_eq!(kind(&error), Some(ErrorCode::InvalidRequest), "{error}");
        assert!(error.to_string().contains(path), "{error}");
        if path != "/tmp/mine" {
            let error = session.put_file(path, "x").await.unwrap_err();
            assert_eq!(kind(&error), Some(ErrorCode::InvalidRequest), "{error}");
        }
    }
    assert_eq!(
        session.execute(python("print(1)")).await.unwrap().stdout,
        "1"
    );
}

async fn a_link_that_changes_all_the_time_gains_nothing(server: Server) {
    let session = session(&server).await;
    let swap = "import threading\nos.makedirs('/tmp/real')\nopen('/tmp/real/passwd', 'w').write('mine')\n\
                os.symlink('/tmp/nowhere', '/tmp/way')\ndef swap():\n  n = 0\n  while True:\n    n += 1\n    \
                t = '/etc' if n % 2 else 'real'\n    os.symlink(t, '/tmp/next')\n    os.rename('/tmp/next', '/tmp/way')\n\
                threading.Thread(target=swap, daemon=True).start()";
    session.execute(python(swap)).await.unwrap();
    for _ in 0..200 {
        match session.get_file("/tmp/way/passwd").await {
            Ok(content) => assert_eq!(content, b"mine"),
            Err(error) => assert!(
                matches!(
                    kind(&error),
                    Some(ErrorCode::InvalidRequest | ErrorCode::FileNotFound)
                ),
                "{error}"
            ),
        }
    }
}

async fn faults_are_named(server: Server) {
    let _session = session(&server).await;
    let post = |body: Value| ("POST", "/file".to_owned(), body.to_string());
    let get = |target: &str| ("GET", target.to_owned(), String::new());
    let needed = "File operations require a sessionId";
    for ((method, target, body), expected) in [
        (post(json!({"path": "/tmp/x", "content": ""})), needed),
        (post(json!({})), needed),
        (
            post(json!({"sessionId": "s", "content": ""})),
            "path: missing",
        ),
        (
            post(json!({"sessionId": "s", "path": "/tmp/x"})),
            "content: missing",
        ),
        (
            post(json!({"sessionId": "s", "path": "/tmp/x", "content": "%"})),
            "content: not base64",
        ),
        (
            post(json!({"sessionId": "a b", "path": "/tmp/x", "content": ""})),
            "sessionId: \"a b\" is not a session id",
        ),
        (
            post(json!({"sessionId": "s", "path": "/etc/x", "content": ""})),
            "path: \"/etc/x\" is not an absolute path inside /sandbox or /tmp",
        ),
        (get("/file"), needed),
        (get("/file?path=/tmp/x"), needed),
        (get("/file?sessionId=s"), "path: missing"),
        (
            get("/file?sessionId=s&path=x"),
            "path: \"x\" is not an absolute path",
        ),
        (
            get("/file?sessionId=a%20b&path=/tmp/x"),
            "sessionId: \"a b\"",
        ),
        (get("/session/a%20b/files/tmp/x"), "id: \"a b\""),
        (get("/session/s/files"), "path: missing"),
    ] {
        let (status, code, text) = refused(&server, method, &target, &body);
        assert_eq!(
            (status, code.as_str()),
            (400, "INVALID_REQUEST"),
            "{target} {body}: {text}"
        );
        assert!(text.starts_with(expected), "{target} {body}: {text}");
    }
    for target in ["/file", "/session/s/files", "/session/s/files/tmp/x"] {
        let (status, code, _) = refused(&server, "PATCH", target, "");
        assert_eq!((status, code.as_str()), (405, "METHOD_NOT_ALLOWED"));
        let keyless = reqwest::get(format!("http://{}{target}", server.address)).await;
        assert_eq!(keyless.unwrap().status(), 401);
    }
}

async fn what_is_not_there_is_404_and_no_session_is_made(server: Server) {
    let body = json!({"sessionId": "no", "path": "/tmp/x", "content": ""}).to_string();
    for (method, target, body) in [
        ("POST", "/file", body.as_str()),
        ("GET", "/file?sessionId=no&path=/tmp/x", ""),
        ("PUT", "/session/no/files/tmp/x", "x"),
        ("GET", "/session/no/files/tmp/x", ""),
        ("GET", "/session/no/files?path=/tmp", ""),
    ] {
        let (status, code, text) = refused(&server, method, target, body);
        assert_eq!((status, code.as_str()), (404, "SESSION_NOT_FOUND"));
        assert!(text.starts_with("Session not found"), "{text}");
    }
    assert_eq!(server.client().sessions().await.unwrap(), []);
    let session = session(&server).await;
    session.put_file("/sandbox/file", "x").await.unwrap();
    let within = session.put_file("/sandbox/file/x", "x").await;
    assert_eq!(kind(&within.unwrap_err()), Some(ErrorCode::FileNotFound));
    for path in ["/tmp/none", "/sandbox/no/such/file"] {
        let error = session.get_file(path).await.unwrap_err();
        assert_eq!(kind(&error), Some(ErrorCode::FileNotFound), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
}

async fn files_move_beside_a_running_job(server: Server) {
    let session = session(&server).await;
    let wait = "while not os.path.exists('/sandbox/go'): time.sleep(0.01)\nprint(open('/sandbox/go').read())";
    let job = tokio::spawn({
        let session = session.clone();
        async move { session.execute(python(wait)).await }
    });
    let client = server.client();
    while !client.sessions().await.unwrap()[0].is_active {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let before = client.sessions().await.unwrap()[0].last_accessed_at;
    assert_eq!(session.list_files("/sandbox").await.unwrap().entries, []);
    session.put_file("/sandbox/go", "gone").await.unwrap();
    assert_eq!(job.await.unwrap().unwrap().stdout, "gone");
    assert!(client.sessions().await.unwrap()[0].last_accessed_at > before);
}

async fn a_file_is_replaced_whole_or_not_at_all(server: Server) {
    let session = session(&server).await;
    session.put_file("/sandbox/f", "old").await.unwrap();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(
        stream,
        "PUT /session/s/files/sandbox/f HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-length: 1000000\r\n\r\nhalf"
    )
    .unwrap();
    let mut names = session.list_files("/sandbox").await.unwrap().entries.len();
    while names < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        names = session.list_files("/sandbox").await.unwrap().entries.len();
    }
    assert_eq!(session.get_file("/sandbox/f").await.unwrap(), b"old");
    drop(stream);
    while names > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        names = session.list_files("/sandbox").await.unwrap().entries.len();
    }
    assert_eq!(session.get_file("/sandbox/f").await.unwrap(), b"old");
    session.put_file("/sandbox/f", "new").await.unwrap();
    assert_eq!(session.get_file("/sandbox/f").await.unwrap(), b"new");
}

async fn a_lost_session_is_said_to_be(server: Server) {
    let session = session(&server).await;
    session.stop().await.unwrap();
    let error = session.get_file("/tmp/x").await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorCode::SessionNotFound), "{error}");
    // A session that outlives its server goes on, and transfers are no job that could have been interrupted.
    let session = server.session("kept");
    session.execute(python("1")).await.unwrap();
    session.put_file("/sandbox/f", "kept").await.unwrap();
    let kind = server.kind;
    let state = server.kill();
    let server = Server::start_in(kind, state, "");
    let session = server.session("kept");
    match session.get_file("/sandbox/f").await {
        Ok(content) => assert_eq!(content, b"kept"),
        // With its server killed, the native backend's spawner has removed it.
        Err(error) => assert_eq!(error.code(), Some(ErrorCode::SessionLost), "{error}"),
    }
}

async fn each_route_says_that_a_sandbox_died(server: Server) {
    let write = json!({"sessionId": "s0", "path": "/tmp/x", "content": ""}).to_string();
    let routes = [
        ("POST", "/file", write.as_str()),
        ("GET", "/file?sessionId=s1&path=/sandbox/f", ""),
        ("PUT", "/session/s2/files/tmp/x", "x"),
        ("GET", "/session/s3/files/sandbox/f", ""),
        ("GET", "/session/s4/files?path=/sandbox", ""),
    ];
    for number in 0..routes.len() {
        let session = server.session(&format!("s{number}"));
        session.execute(python("1")).await.unwrap();
        session.put_file("/sandbox/f", "kept").await.unwrap();
    }
    server.kill_sandboxes();
    for (method, target, body) in routes {
        let (status, code, text) = refused(&server, method, target, body);
        assert_eq!(
            (status, code.as_str()),
            (410, "SESSION_LOST"),
            "{target}: {text}"
        );
        // The refusal lasts until the session is gone, and then its name is free.
        until("the session is gone", || {
            let (status, code, _) = refused(&server, method, target, body);
            assert!(matches!(status, 404 | 410), "{target}: {status} {code}");
            (status, code.as_str()) == (404, "SESSION_NOT_FOUND")
        });
    }
    let session = server.session("s0");
    session.execute(python("1")).await.unwrap();
    assert_eq!(session.list_files("/sandbox").await.unwrap().entries, []);
    server.stop();
}

async fn a_full_sandbox_says_so_and_the_session_lives_on(server: Server) {
    let session = session(&server).await;
    let error = session
        .put_file("/tmp/big", vec![7_u8; 300 << 20])
        .await
        .unwrap_err();
    assert_eq!(kind(&error), Some(ErrorCode::InvalidRequest), "{error}");
    assert!(error.to_string().contains("sandbox is full"), "{error}");
    assert_eq!(session.list_files("/tmp").await.unwrap().entries, []);
    assert_eq!(
        session.execute(python("print(1)")).await.unwrap().stdout,
        "1"
    );
}

async fn a_file_that_memory_has_no_room_for_costs_nothing_else(server: Server) {
    let session = server.session("s");
    let run = |request| {
        let options = Options {
            memory_limit: Some("128m".parse().unwrap()),
            ..Options::default()
        };
        session.execute_with(request, options)
    };
    run(python("x = 41")).await.unwrap();
    let old = vec![b'a'; 70 << 20];
    session.put_file("/sandbox/big", old.clone()).await.unwrap();
    for path in ["/sandbox/big", "/tmp/other"] {
        let refused = session.put_file(path, vec![b'b'; 70 << 20]).await;
        let error = refused.unwrap_err();
        assert_eq!(kind(&error), Some(ErrorCode::InvalidRequest), "{error}");
        assert!(error.to_string().contains("memoryLimit"), "{error}");
    }
    assert!(session.get_file("/sandbox/big").await.unwrap() == old);
    // Those that come with a request, too.
    let fill = "head -c 35m /dev/zero > /tmp/filler";
    assert_eq!(run(command(fill)).await.unwrap().exit_code, 0);
    let mut crowded = python("print(x + 1)");
    crowded.files = [("/tmp/a".to_owned(), FileContent(vec![b'c'; 20 << 20]))].into();
    let error = run(crowded).await.unwrap_err();
    assert!(error.to_string().contains("memoryLimit"), "{error}");
    let result = run(python("print(x + 1)")).await.unwrap();
    assert_eq!((result.stdout.as_str(), result.state_lost), ("42", false));
    server.stop();
}

async fn transfers_of_a_session_are_bounded(server: Server) {
    let session = session(&server).await;
    let begin = |n: usize| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        write!(
            stream,
            "PUT /session/s/files/tmp/f{n} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
             content-length: 10\r\n\r\nhalf"
        )
        .unwrap();
        stream
    };
    // The question whether there are enough takes a place itself, which one of them may have wanted:
    // so another begins before each.
    let mut streams = Vec::new();
    until("no more transfers begin", || {
        streams.push(begin(streams.len()));
        raw(&server, "GET", "/session/s/files?path=/tmp", "").0 == 429
    });
    let error = session.get_file("/tmp/x").await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorCode::TooManyRequests), "{error}");
    assert_eq!(
        session.execute(python("print(1)")).await.unwrap().stdout,
        "1"
    );
    drop(streams);
    until("transfers begin again", || {
        raw(&server, "GET", "/session/s/files?path=/tmp", "").0 == 200
    });
}

/// Prints what a new process finds in the module, and what reloading it gives. Both versions get the same time, so
/// that Python could not tell them apart.
const LOOK: &str = "import importlib, os, subprocess, sys
for path in ('m.py', 'p/__init__.py'): os.utime(path, (1000000000, 1000000000))
print(subprocess.check_output([sys.executable, '-c', 'import m, p; print(m.value, p.value)'], text=True).strip())
import m, p
for module in (m, p): importlib.reload(module)
print(m.value, p.value)";

async fn an_uploaded_module_is_never_the_one_before(server: Server) {
    let session = session(&server).await;
    let paths = ["/sandbox/m.py", "/sandbox/p/__init__.py"];
    let with_files = |value: u32| {
        let mut request = python(LOOK);
        for path in paths {
            let content = FileContent(format!("value = {value}").into_bytes());
            request.files.insert(path.to_owned(), content);
        }
        request
    };
    let put = async |value: u32| {
        for path in paths {
            let content = format!("value = {value}");
            session.put_file(path, content).await.unwrap();
        }
        python(LOOK)
    };
    for value in 1..=6 {
        let request = match value % 2 {
            0 => with_files(value),
            _ => put(value).await,
        };
        let result = session.execute(request).await.unwrap();
        let expected = format!("{value} {value}\n{value} {value}");
        assert_eq!(result.stdout, expected, "{}", result.stderr);
    }
    session.stop().await.unwrap();
    server.stop();
}
