//! Errors of the command line: flags by their names, and servers that cannot be spoken to.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Output;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::cli_remote::user::{User, stderr};
use crate::harness::{Kind, Server};

/// Flags with a value that is refused, in the words of the API where those were not translated.
const REFUSED: [(&str, &str); 15] = [
    ("--memory", "99g"),
    ("--memory", "1m"),
    ("--cpu", "1000"),
    ("--cpu", "0"),
    ("--pids-limit", "1"),
    ("--sandbox-size", "1k"),
    ("--tmp-size", "99g"),
    ("--timeout", "0"),
    ("--timeout", "0ms"),
    ("--timeout", "100h"),
    ("--max-output", "99999999999"),
    ("--workdir", "/etc"),
    ("--install", "no such package!"),
    ("--allow", "("),
    ("--image", "no name!"),
];

fn names_the_flag(flag: &str, value: &str, output: &Output) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{flag} {value}: {said}");
    assert!(said.contains(flag), "{flag} {value}: {said}");
    for member in ["options.", "request.", "memoryLimit", "timeoutMs"] {
        assert!(!said.contains(member), "{flag} {value}: {said}");
    }
}

#[test]
fn errors_here_name_the_flags() {
    let user = User::here();
    for (flag, value) in REFUSED {
        let mut arguments = vec!["run", "--backend", "native", "-e", "1", flag, value];
        if flag == "--allow" {
            arguments.extend(["--net", "filtered"]);
        }
        let output = user.keyless(&arguments).output().unwrap();
        names_the_flag(flag, value, &output);
    }
}

#[test]
fn errors_of_a_server_name_the_flags() {
    let server = Server::start(Kind::Native);
    let user = User::of(&server);
    for (flag, value) in REFUSED {
        let mut arguments = vec!["run", "-e", "1", flag, value];
        if flag == "--allow" {
            arguments.extend(["--net", "filtered"]);
        }
        names_the_flag(flag, value, &user.isol8(&arguments));
        if ["--memory", "--timeout"].contains(&flag) {
            arguments.push("--json");
            names_the_flag(flag, value, &user.isol8(&arguments));
        }
    }
    server.stop();
}

#[test]
fn a_time_limit_has_a_unit_or_counts_milliseconds() {
    let user = User::here();
    for time in ["0.3s", "300ms", "300"] {
        let arguments = [
            "run",
            "--backend",
            "native",
            "-r",
            "bash",
            "-e",
            "sleep 60",
            "--timeout",
            time,
        ];
        let output = user.keyless(&arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(137),
            "{time}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("TIMED OUT"),
            "{time}: {}",
            stderr(&output)
        );
    }
    let output = user
        .keyless(&["run", "-e", "1", "--timeout", "soon"])
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("500ms, 5s, 2m"),
        "{}",
        stderr(&output)
    );
}

/// The address of something that answers every connection like this.
fn answering(answer: impl Fn(&mut std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            answer(&mut connection.unwrap());
        }
    });
    address
}

fn plain(text: &'static str) -> String {
    answering(move |connection| {
        let _ = connection.read(&mut [0; 4096]);
        let _ = connection.write_all(text.as_bytes());
    })
}

/// A server whose certificate no authority has signed.
fn self_signed() -> String {
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    answering(move |connection| {
        let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = StreamOwned::new(tls, connection);
        let _ = stream.read(&mut [0; 4096]);
    })
}

#[test]
fn a_server_that_cannot_be_spoken_to_is_explained_with_the_fix() {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let http = plain("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let other = plain("HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
    // An alert, as a server that takes TLS only answers to HTTP.
    let tls = plain("\u{15}\u{3}\u{3}\u{0}\u{2}\u{2}F");
    let nginx = plain(
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 45\r\n\r\n\
         The plain HTTP request was sent to HTTPS port",
    );
    let untrusted = self_signed();
    let user = User::here();
    for (host, expected) in [
        (
            format!("https://{http}"),
            format!("{http} does not speak TLS: write http://{http}"),
        ),
        (http.clone(), format!("write http://{http}")),
        (
            "isol8.example.com".to_owned(),
            "write http://isol8.example.com".to_owned(),
        ),
        (
            "http://127.0.0.1:1".to_owned(),
            "nothing listens on 127.0.0.1:1: start the server".to_owned(),
        ),
        (
            "http://no-such-host.invalid".to_owned(),
            "no address of no-such-host.invalid is known".to_owned(),
        ),
        (format!("http://{tls}"), format!("write https://{tls}")),
        (format!("http://{nginx}"), "write https://".to_owned()),
        (
            format!("http://{other}"),
            "404 Not Found, but not as isol8 does".to_owned(),
        ),
        (format!("https://{untrusted}"), "SSL_CERT_FILE".to_owned()),
    ] {
        let all = [
            &["run", "-e", "1"][..],
            &["run", "-e", "1", "--json"],
            &["sessions"],
            &["login"],
            &["cp", "s:/sandbox/x", "-"],
        ];
        // A server that was not reached is tried again, which takes a while.
        let commands = if host.contains(&*http) {
            &all[..]
        } else {
            &all[..1]
        };
        for command in commands {
            let arguments = [*command, &["--host", &host, "--key", "k"]].concat();
            let output = user.keyless(&arguments).output().unwrap();
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(said.contains(&expected), "{arguments:?}: {said}");
            let own = said
                .lines()
                .filter(|line| !line.contains("can be read on the way"));
            assert_eq!(own.count(), 1, "{arguments:?}: {said}");
        }
    }
}
