//! Hosts that programs reach beyond their sandbox, and hosts that they do not.

pub(crate) mod internet;

use std::fs;
use std::time::Duration;

use isol8_api::{ErrorCode, NetworkAction, NetworkFilter, NetworkMode, Options};
use isol8_client::{ExecutionRequest, ExecutionResult, FileContent, RemoteIsol8, Runtime};

use crate::harness::{Kind, PATIENCE, Server, on_each_backend, python, source};
use internet::Internet;

on_each_backend!(
    with super::CONFIG;
    what_the_lists_admit_is_reached_and_nothing_else,
    what_goes_past_the_proxy_reaches_nothing,
    a_name_that_is_asked_past_the_proxy_fails_at_once_and_is_told,
    loopback_is_reached_without_the_proxy,
    a_session_has_a_network_for_one_request_only,
    interpreters_take_up_what_each_cell_has,
    fifty_downloads_go_through_at_once,
    much_goes_through_whole_and_costs_the_server_no_memory,
    clients_of_each_runtime_go_through_it,
    packages_come_over_tls,
    tls_goes_through_from_end_to_end,
    connections_end_with_their_run,
    a_taken_port_is_no_obstacle,
    the_host_s_network_is_for_those_who_ask_where_it_is_granted,
    what_no_policy_grants_is_refused,
);

/// Takes loopback for a part of the internet, and the addresses of documentation, which names lead to
/// where a mirror stands in for it.
const CONFIG: &str = "[network]\nallowedCidrs = [\"127.0.0.0/8\", \"203.0.113.0/24\"]\nports = [443, \"1024-65535\"]\n";

fn filtered() -> Options {
    Options {
        network: Some(NetworkMode::Filtered),
        log_network: Some(true),
        ..Options::default()
    }
}

/// Has the clients that know ranges of addresses take the part of loopback for the internet, too.
fn outside(mut request: ExecutionRequest) -> ExecutionRequest {
    let name = "NO_PROXY".to_owned();
    request.env.insert(name, "localhost".to_owned());
    request
}

async fn run(client: &RemoteIsol8, request: ExecutionRequest, options: Options) -> ExecutionResult {
    client.execute_with(request, options).await.unwrap()
}

/// Prints what is at each address, or why nothing is.
const FETCH: &str = "import os, urllib.request, urllib.error
def fetch(url):
    try: print(urllib.request.urlopen(url, timeout=20).read().decode())
    except urllib.error.HTTPError as error: print(error.code)
    except OSError as error: print('unreachable')
";

async fn what_the_lists_admit_is_reached_and_nothing_else(server: Server) {
    let internet = Internet::start().await;
    let port = internet.port;
    let options = Options {
        network_filter: Some(NetworkFilter {
            whitelist: vec![r"^127\.0\.0\.[23]$".to_owned(), "^10\\.|::".to_owned()],
            blacklist: vec![r"\.3$".to_owned()],
        }),
        ..filtered()
    };
    let code = format!(
        "{FETCH}fetch('http://127.0.0.2:{port}/hello')
fetch('http://127.0.0.2:{port}/to/http://127.0.0.3:{port}/hello')
fetch('http://127.0.0.2:{port}/to/http://10.0.0.1:{port}/hello')
fetch('http://127.0.0.3:{port}/hello')
fetch('http://127.0.0.4:{port}/hello')
fetch('http://10.0.0.1/')
fetch('http://[::1]:{port}/hello')
fetch('http://[fd00::1]/')",
    );
    let result = run(&server.client(), python(&code), options).await;
    assert_eq!(
        result.stdout, "hello from outside\n403\n403\n403\n403\n403\n403\n403",
        "{}",
        result.stderr
    );
    assert_eq!(internet.requests(), 3);
    let logs = result.network_logs.unwrap();
    let seen: Vec<_> = logs
        .iter()
        .map(|entry| (entry.host.as_str(), entry.action))
        .collect();
    let (allow, block) = (NetworkAction::Allow, NetworkAction::Block);
    assert_eq!(
        seen,
        [
            ("127.0.0.2", allow),
            ("127.0.0.2", allow),
            ("127.0.0.3", block),
            ("127.0.0.2", allow),
            ("10.0.0.1", block),
            ("127.0.0.3", block),
            ("127.0.0.4", block),
            ("10.0.0.1", block),
            ("::1", block),
            ("fd00::1", block),
        ]
    );
    assert_eq!(logs[0].path.as_deref(), Some("/hello"));
    let usage = result.resource_usage.unwrap();
    assert!(
        usage.network_bytes_in > 50 && usage.network_bytes_out > 50,
        "{usage:?}"
    );
    let quiet = Options {
        log_network: None,
        ..filtered()
    };
    let result = run(&server.client(), python("print(1)"), quiet).await;
    assert_eq!(result.network_logs, None);
    server.stop();
}

async fn what_goes_past_the_proxy_reaches_nothing(server: Server) {
    let internet = Internet::start().await;
    let port = internet.port;
    let code = format!(
        "import socket, urllib.request
def attempt(what):
    try: print('reached', what())
    except (OSError, UnicodeError) as error: print(type(error).__name__, error.errno if error.errno and error.errno > 0 else '')
tcp = lambda host: lambda: socket.create_connection((host, {port}), 5)
attempt(tcp('127.0.0.2'))
attempt(tcp('172.17.0.1'))
attempt(tcp('203.0.113.1'))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt(lambda: udp.sendto(b'x', ('203.0.113.1', 53)))
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    six = socket.socket(socket.AF_INET6, kind)
    try: six.connect(('2606:4700::1111', 53)); print('reached by IPv6')
    except OSError: pass
attempt(lambda: socket.getaddrinfo('example.com', 80))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
attempt(lambda: opener.open('http://127.0.0.2:{port}/hello', timeout=5))
print([name for _, name in socket.if_nameindex()])",
    );
    let result = run(&server.client(), python(&code), filtered()).await;
    // 101 is ENETUNREACH: nothing was even sent.
    assert_eq!(
        result.stdout,
        "ConnectionRefusedError 111\nOSError 101\nOSError 101\nOSError 101\ngaierror \n\
         PermissionError 1\nURLError \n['lo']",
        "{}",
        result.stderr
    );
    assert_eq!(internet.requests(), 0);
    assert_eq!(result.network_logs, Some(vec![]));
    server.stop();
}

/// A question for `x.example` from a socket that hears of no error, as some C libraries ask.
const ASK: &str = "import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(50)
udp.sendto(bytes.fromhex('0708010000010000000000000178076578616d706c650000010001'), ('127.0.0.1', 53))
print(udp.recv(600)[3] & 15)";

async fn a_name_that_is_asked_past_the_proxy_fails_at_once_and_is_told(server: Server) {
    let resolve = "const { promises } = await import('node:dns');
for (const ask of [promises.lookup, promises.resolve4])
    await ask('x.example').catch(error => console.log(error.code))";
    // A resolver that has waited in vain says something else.
    let python_names = "import socket
for ask in (socket.gethostbyname, lambda name: socket.create_connection((name, 80))):
    try: ask('x.example')
    except OSError as error: print(error.errno)";
    let cases = [
        (Runtime::Python, python_names, "-2\n-2"),
        (Runtime::Python, ASK, "3"),
        (Runtime::Bash, "getent hosts x.example; echo $?", "2"),
        (Runtime::Node, resolve, "ENOTFOUND\nENOTFOUND"),
        (Runtime::Bun, resolve, "ENOTFOUND\nENOTFOUND"),
        (Runtime::Deno, resolve, "ENOTFOUND\nENOTFOUND"),
    ];
    for (runtime, code, expected) in cases {
        for options in [Options::default(), filtered()] {
            let result = run(&server.client(), source(runtime, code), options).await;
            assert_eq!(result.stdout, expected, "{runtime}: {}", result.stderr);
            let [warning] = &result.warnings[..] else {
                panic!("{runtime} {code}: {:?}", result.warnings);
            };
            let told = warning.contains("x.example") && warning.contains("asked a name server");
            assert!(told && warning.contains("HTTPS_PROXY"), "{warning}");
        }
    }
    // Errors of Python say why, where its interpreter has waited for the code.
    let code = "import socket\ntry: socket.getaddrinfo('x.example', 80)\nexcept OSError as error: print(error)";
    let cell = server.session("names").execute(python(code)).await.unwrap();
    assert!(
        cell.stdout.contains("(isol8: names are resolved for"),
        "{}",
        cell.stdout
    );
    // A text that a program makes of a secret is masked there, too.
    let mut asking = python(
        "import os, socket\ntry: socket.gethostbyname(os.environ['KEY'] + '.x.example')\nexcept OSError: pass",
    );
    asking.timeout_ms = Some(50_000);
    let options = Options {
        secrets: [("KEY".to_owned(), "hunter2".to_owned())].into(),
        ..Options::default()
    };
    let masked = run(&server.client(), asking, options)
        .await
        .warnings
        .join(" ");
    assert!(
        masked.contains("***.x.example") && !masked.contains("hunter2"),
        "{masked}"
    );
    // A later run in the same sandbox does not learn the names of others.
    for _ in 0..4 {
        assert_eq!(server.python("1").await.warnings, [] as [String; 0]);
    }
    server.stop();
}

async fn loopback_is_reached_without_the_proxy(server: Server) {
    let code = "import http.server, os, socket, threading, urllib.request
class Here(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'here')
    def log_message(self, *_): pass
served = http.server.ThreadingHTTPServer(('0.0.0.0', 0), Here)
threading.Thread(target=served.serve_forever, daemon=True).start()
for host in ('localhost', '127.0.0.1', '0.0.0.0', socket.gethostname()):
    print(urllib.request.urlopen(f'http://{host}:{served.server_port}/', timeout=50).read().decode())
print('127.0.0.0/8' in os.environ['NO_PROXY'].split(','))";
    let result = run(&server.client(), python(code), filtered()).await;
    assert_eq!(
        result.stdout, "here\nhere\nhere\nhere\nTrue",
        "{}",
        result.stderr
    );
    assert_eq!(result.network_logs, Some(vec![]));
    server.stop();
}

async fn a_session_has_a_network_for_one_request_only(server: Server) {
    let internet = Internet::start().await;
    let session = server.session("net");
    let cell = format!("{FETCH}fetch('{}')", internet.url("/hello"));
    let variables = "print(sorted(n for n in os.environ if 'PROXY' in n.upper()))";
    let shown = format!("{cell}\n{variables}");
    for _ in 0..2 {
        let without = session.execute(python(&shown)).await.unwrap();
        assert_eq!(without.stdout, "unreachable\n[]", "{}", without.stderr);
        let with = run(&session, python(&shown), filtered()).await;
        assert_eq!(
            with.stdout,
            "hello from outside\n['HTTPS_PROXY', 'HTTP_PROXY', 'NODE_USE_ENV_PROXY', 'NO_PROXY', \
             'http_proxy', 'https_proxy', 'no_proxy']",
            "{}",
            with.stderr
        );
    }
    // A process that stays has no network beyond the request that started it.
    let late = format!(
        "import subprocess, sys
subprocess.Popen([sys.executable, '-c', '''import time, os
while not os.path.exists('/sandbox/go'): time.sleep(0.01)
{cell}
open('/sandbox/went', 'w').close()'''], stdout=open('/sandbox/late', 'w'))",
    );
    run(&session, python(&late), filtered()).await;
    let wait = "import time
open('/sandbox/go', 'w').close()
while not os.path.exists('/sandbox/went'): time.sleep(0.01)
print(open('/sandbox/late').read())";
    let result = session.execute(python(wait)).await.unwrap();
    assert_eq!(result.stdout, "unreachable", "{}", result.stderr);
    assert_eq!(internet.requests(), 2);
    server.stop();
}

async fn interpreters_take_up_what_each_cell_has(server: Server) {
    let internet = Internet::start().await;
    let fetch = format!(
        "console.log(await fetch('{}').then(answer => answer.text(), () => 'unreachable'))",
        internet.url("/hello")
    );
    let mut runtimes = vec![Runtime::Bun, Runtime::Deno];
    if server.kind == Kind::Docker {
        runtimes.push(Runtime::Node);
    }
    for runtime in runtimes {
        let session = server.session(&runtime.to_string());
        for _ in 0..2 {
            let without = session.execute(source(runtime, fetch.clone())).await;
            assert_eq!(without.unwrap().stdout, "unreachable", "{runtime}");
            let with = run(
                &session,
                outside(source(runtime, fetch.clone())),
                filtered(),
            )
            .await;
            assert_eq!(
                with.stdout, "hello from outside",
                "{runtime}: {}",
                with.stderr
            );
        }
    }
    server.stop();
}

async fn fifty_downloads_go_through_at_once(server: Server) {
    let internet = Internet::start().await;
    let code = format!(
        "import threading, urllib.request
barrier, sizes = threading.Barrier(50), []
def one():
    barrier.wait()
    sizes.append(len(urllib.request.urlopen('{}', timeout=50).read()))
threads = [threading.Thread(target=one) for _ in range(50)]
for t in threads: t.start()
for t in threads: t.join()
print(len(sizes), set(sizes))",
        internet.url("/large/1000000")
    );
    let result = run(&server.client(), python(&code), filtered()).await;
    assert_eq!(result.stdout, "50 {1000000}", "{}", result.stderr);
    assert_eq!(result.network_logs.unwrap().len(), 50);
    server.stop();
}

fn resident_kib(pid: u32, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn much_goes_through_whole_and_costs_the_server_no_memory(server: Server) {
    let internet = Internet::start().await;
    let size = 1 << 30;
    let code = format!(
        "import hashlib, urllib.request
pattern = bytes(range(251)) * 256
expected, received, left = hashlib.sha256(), hashlib.sha256(), {size}
while left > 0:
    expected.update(pattern[:left]); left -= len(pattern)
answer = urllib.request.urlopen('{}', timeout=50)
while piece := answer.read(1 << 20): received.update(piece)
print(expected.digest() == received.digest())
class Body:
    left = {size}
    def read(self, most):
        take = min(self.left, 1 << 16); self.left -= take
        return b'\\x03' * take
request = urllib.request.Request('{}', data=Body(), headers={{'Content-Length': '{size}'}})
print(urllib.request.urlopen(request, timeout=50).read().decode() == str(3 * {size}))",
        internet.url(&format!("/large/{size}")),
        internet.url("/")
    );
    server.python("print(1)").await;
    let before = resident_kib(server.pid(), "VmHWM");
    let mut request = python(&code);
    request.timeout_ms = Some(240_000);
    let result = run(&server.client(), request, filtered()).await;
    assert_eq!(result.stdout, "True\nTrue", "{}", result.stderr);
    let more = resident_kib(server.pid(), "VmHWM") - before;
    assert!(more < 16 << 10, "the server took {more} KiB more");
    let usage = result.resource_usage.unwrap();
    assert!(usage.network_bytes_in > size && usage.network_bytes_out > size);
    server.stop();
}

async fn clients_of_each_runtime_go_through_it(server: Server) {
    let internet = Internet::start().await;
    let url = internet.url("/hello");
    let fetch = format!("console.log(await (await fetch('{url}')).text())");
    let mut sources = vec![
        (Runtime::Python, format!("{FETCH}fetch('{url}')")),
        (Runtime::Bun, fetch.clone()),
        (Runtime::Deno, fetch.clone()),
    ];
    // The images have no curl.
    if server.kind == Kind::Native {
        sources.push((Runtime::Bash, format!("curl --silent {url}; echo")));
    }
    // The host's node may be one that knows of no proxy by itself, and `net` does in none.
    let get = format!(
        "const http = await import('node:http');
await new Promise(done => http.get('{url}', answer => answer.on('data', data => console.log(`${{data}}`)).on('end', done)));"
    );
    let connect = format!(
        "const net = await import('node:net');
await new Promise(done => {{
  const socket = net.connect({}, '127.0.0.2', () => socket.write('GET /hello HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n'));
  let text = '';
  socket.on('data', data => text += data).on('end', () => {{ console.log(text.split('\\r\\n').at(-1)); done() }});
}});",
        internet.port
    );
    sources.extend([fetch.clone(), get, connect].map(|code| (Runtime::Node, code)));
    for (runtime, code) in sources {
        let alone = run(
            &server.client(),
            outside(source(runtime, code.clone())),
            filtered(),
        )
        .await;
        assert_eq!(
            alone.stdout, "hello from outside",
            "{runtime}: {}",
            alone.stderr
        );
        let session = server.session(&runtime.to_string());
        let cell = run(&session, outside(source(runtime, code)), filtered()).await;
        assert_eq!(
            cell.stdout, "hello from outside",
            "{runtime}: {}",
            cell.stderr
        );
    }
    let mut prepared = python("print(open('/sandbox/got').read())");
    prepared.setup_script = Some(format!(
        "python3 -c \"import urllib.request as u; print(u.urlopen('{url}').read().decode())\" > /sandbox/got"
    ));
    let result = run(&server.client(), prepared, filtered()).await;
    assert_eq!(
        result.stdout.trim(),
        "hello from outside",
        "{}",
        result.stderr
    );
    server.stop();
}

async fn packages_come_over_tls(server: Server) {
    let options = Options {
        network_filter: Some(NetworkFilter {
            whitelist: vec![r"^pypi\.org$".to_owned()],
            blacklist: Vec::new(),
        }),
        ..filtered()
    };
    let code = "import urllib.request, urllib.error
page = urllib.request.Request('https://pypi.org/simple/six/', headers={'Accept': 'application/vnd.pypi.simple.v1+json, text/html;q=0.1'})
print('six' in urllib.request.urlopen(page, timeout=50).read().decode())
try: urllib.request.urlopen('https://example.com/', timeout=50)
except urllib.error.URLError as error: print(error.reason)";
    let result = run(&server.client(), python(code), options).await;
    assert_eq!(
        result.stdout, "True\nTunnel connection failed: 403 Forbidden",
        "{}",
        result.stderr
    );
    let logs = result.network_logs.unwrap();
    assert_eq!(
        (logs[0].method.as_str(), logs[0].path.as_deref()),
        ("CONNECT", None)
    );
    server.stop();
}

async fn tls_goes_through_from_end_to_end(server: Server) {
    let (internet, certificate) = Internet::over_tls().await;
    let code = format!(
        "import ssl, urllib.request
def fetch(context):
    return urllib.request.urlopen('https://127.0.0.2:{}/hello', context=context, timeout=20).read().decode()
print(fetch(ssl.create_default_context(cafile='/sandbox/ca.pem')))
try: fetch(ssl.create_default_context())
except OSError as error: print('CERTIFICATE_VERIFY_FAILED' in str(error))",
        internet.port
    );
    let mut request = python(&code);
    let certificate = FileContent(certificate.into_bytes());
    request
        .files
        .insert("/sandbox/ca.pem".to_owned(), certificate);
    let result = run(&server.client(), request, filtered()).await;
    assert_eq!(
        result.stdout, "hello from outside\nTrue",
        "{}",
        result.stderr
    );
    for entry in result.network_logs.unwrap() {
        assert_eq!(
            (entry.method.as_str(), entry.action),
            ("CONNECT", NetworkAction::Allow)
        );
        assert_eq!(entry.path, None);
    }
    server.stop();
}

async fn connections_end_with_their_run(server: Server) {
    let silent = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut code = python(&format!(
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.2:{port}/')"
    ));
    // Long enough for an interpreter on a busy machine to connect.
    code.timeout_ms = Some(4000);
    let client = server.client();
    let (result, ended) = tokio::join!(run(&client, code, filtered()), async {
        let accepted = tokio::time::timeout(PATIENCE, silent.accept()).await;
        let (mut stream, _) = accepted.expect("the run did not connect").unwrap();
        let mut all = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all);
        tokio::time::timeout(Duration::from_secs(20), reading).await
    });
    assert!(result.timed_out);
    assert!(ended.is_ok(), "the connection outlives its run");
    server.stop();
}

async fn a_taken_port_is_no_obstacle(server: Server) {
    let internet = Internet::start().await;
    let session = server.session("squat");
    let squat = "import socket; taken = socket.create_server(('127.0.0.1', 8118)); print('taken')";
    let result = session.execute(python(squat)).await.unwrap();
    assert_eq!(result.stdout, "taken", "{}", result.stderr);
    let cell = format!("{FETCH}fetch('{}')", internet.url("/hello"));
    let result = run(&session, python(&cell), filtered()).await;
    assert_eq!(result.stdout, "hello from outside", "{}", result.stderr);
    server.stop();
}

async fn the_host_s_network_is_for_those_who_ask_where_it_is_granted(server: Server) {
    let kind = server.kind;
    server.stop();
    let server = Server::configured(kind, "[policy]\nnetwork = [\"none\", \"host\"]\n");
    let internet = Internet::start().await;
    let code = format!(
        "import os, socket, urllib.request
try: print(urllib.request.urlopen('http://127.0.0.1:{}/hello', timeout=20).read().decode())
except OSError: print('unreachable')
try: print(len(socket.getaddrinfo('pypi.org', 443)) > 0)
except OSError: print('no names')
print(os.getuid() >= 64800)",
        internet.port
    );
    let host = || Options {
        network: Some(NetworkMode::Host),
        ..Options::default()
    };
    let client = server.client();
    for _ in 0..2 {
        let result = run(&client, python(&code), host()).await;
        assert_eq!(
            result.stdout, "hello from outside\nTrue\nTrue",
            "{}",
            result.stderr
        );
        let result = server.python(&code).await;
        assert_eq!(
            result.stdout, "unreachable\nno names\nTrue",
            "{}",
            result.stderr
        );
    }
    let session = server.session("inside");
    session.execute(python("x = 1")).await.unwrap();
    let error = session
        .execute_with(python(&code), host())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is not in the host's network"),
        "{error}"
    );
    let session = server.session("outside");
    let result = run(&session, python(&code), host()).await;
    assert_eq!(
        result.stdout, "hello from outside\nTrue\nTrue",
        "{}",
        result.stderr
    );
    let error = session.execute(python("x = 1")).await.unwrap_err();
    assert!(
        error.to_string().contains("is in the host's network"),
        "{error}"
    );
    let error = client
        .execute_with(python("1"), filtered())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PolicyDenied));
    server.stop();
}

async fn what_no_policy_grants_is_refused(server: Server) {
    let options = Options {
        network: Some(NetworkMode::Host),
        ..Options::default()
    };
    let error = server
        .client()
        .execute_with(python("print(1)"), options)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PolicyDenied));
    assert!(
        error
            .to_string()
            .contains("options.network: host is not granted"),
        "{error}"
    );
    let options = Options {
        network_filter: Some(NetworkFilter {
            whitelist: vec!["(".to_owned()],
            blacklist: Vec::new(),
        }),
        ..filtered()
    };
    let error = server
        .client()
        .execute_with(python("print(1)"), options)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest));
    assert!(
        error
            .to_string()
            .contains("options.networkFilter: whitelist[0]"),
        "{error}"
    );
    server.stop();
}
