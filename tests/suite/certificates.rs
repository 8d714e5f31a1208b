//! `network.caBundle`: programs of every runtime trust an authority that the operator names, in runs and in sessions,
//! whose interpreter was started before any request. The authority and the server are the test's own.

use std::fs;

use futures::future::join_all;
use isol8_api::{NetworkMode, Options};
use isol8_client::{ExecutionRequest, RemoteIsol8, Runtime};

use crate::harness::{Kind, Server, on_each_backend, source};
use crate::network::internet::Internet;

on_each_backend!(
    every_program_trusts_the_authority_that_the_operator_names,
    without_it_none_does,
);

/// A program that asks the server, whose address stands for `SERVER`, and the runtime in whose sandbox it is there.
struct Case {
    runtime: Runtime,
    program: Program,
    /// Only this machine has it, and no image.
    only_native: bool,
}

enum Program {
    /// Code that the interpreter itself runs, which was started before any request.
    Code(&'static str),
    /// A command that fails in any case, but names certificates only if it does not trust the server's.
    Command(&'static str),
}

const fn code(runtime: Runtime, code: &'static str) -> Case {
    Case {
        runtime,
        program: Program::Code(code),
        only_native: false,
    }
}

const fn command(runtime: Runtime, command: &'static str) -> Case {
    Case {
        runtime,
        program: Program::Command(command),
        only_native: false,
    }
}

const FETCH: &str = "console.log(await (await fetch('SERVER')).text())";

/// Without `fetch`, which goes through a proxy in newer versions only.
const NODE: &str = r"const { request } = await import('node:http'), { connect } = await import('node:tls');
const proxy = new URL(process.env.HTTPS_PROXY), url = new URL('SERVER');
console.log(await new Promise((done) => {
  const asked = request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: url.host });
  asked.on('error', (error) => done(String(error)));
  asked.on('connect', (_, socket) => {
    const secure = connect({ socket, host: url.hostname });
    let text = '';
    secure.on('secureConnect', () => secure.write('GET /hello HTTP/1.0\r\n\r\n'));
    secure.on('data', (piece) => (text += piece));
    secure.on('end', () => done(text.split('\r\n\r\n')[1]));
    secure.on('error', (error) => done(String(error)));
  });
  asked.end();
}));";

const CASES: [Case; 9] = [
    code(
        Runtime::Python,
        "import urllib.request; print(urllib.request.urlopen('SERVER').read().decode())",
    ),
    code(Runtime::Node, NODE),
    code(Runtime::Bun, FETCH),
    code(Runtime::Deno, FETCH),
    code(Runtime::Bash, "curl -sS SERVER"),
    command(
        Runtime::Python,
        "pip download --no-cache-dir --retries=0 --index-url=SERVER x",
    ),
    command(
        Runtime::Node,
        "npm view --fetch-retries=0 --registry=SERVER x",
    ),
    Case {
        only_native: true,
        ..command(Runtime::Bash, "git ls-remote SERVER")
    },
    Case {
        only_native: true,
        ..command(
            Runtime::Python,
            "uv pip install --no-cache --target=/tmp/x --default-index=SERVER x",
        )
    },
];

const EXPECTED: &str = "hello from outside";

async fn ask(client: &RemoteIsol8, case: &Case, url: &str) -> String {
    let mut request = match case.program {
        Program::Code(code) => source(case.runtime, code.replace("SERVER", url)),
        Program::Command(command) => {
            let command = command.replace("SERVER", url);
            let mut request = ExecutionRequest::new(case.runtime);
            request.cmd = Some(format!(
                "if {command} 2>&1 | tee /dev/stderr | grep -q -i -E 'self[-_]signed|issuer|veri[a-z]* failed'; then echo untrusted; \
                 else echo {EXPECTED}; fi"
            ));
            request
        }
    };
    request.timeout_ms = Some(120_000);
    // An address of loopback stands for the internet.
    request.env = [
        ("NO_PROXY".to_owned(), "localhost".to_owned()),
        ("no_proxy".to_owned(), "localhost".to_owned()),
    ]
    .into();
    let options = Options {
        network: Some(NetworkMode::Filtered),
        ..Options::default()
    };
    let result = client.execute_with(request, options).await.unwrap();
    match result.stdout.as_str() {
        EXPECTED => EXPECTED.to_owned(),
        _ => format!("{}{}", result.stdout, result.stderr),
    }
}

/// Asks with every program, in a run and in a session whose interpreter is there before.
async fn answers(server: &Server, url: &str) -> Vec<(String, String)> {
    let is_there = |case: &&Case| server.kind == Kind::Native || !case.only_native;
    let asked = CASES.iter().filter(is_there).enumerate();
    let asked = asked.map(async |(index, case)| {
        let alone = ask(&server.client(), case, url).await;
        let (Program::Code(program) | Program::Command(program)) = case.program;
        let name = format!("{}: {program}", case.runtime);
        let mut answers = vec![(format!("run, {name}"), alone)];
        // A command is a process of its own in a session too.
        if matches!(case.program, Program::Code(_)) {
            let session = server.session(&format!("s{index}"));
            session.execute(source(case.runtime, "1")).await.ok();
            let in_session = ask(&session, case, url).await;
            session.stop().await.unwrap();
            answers.push((format!("session, {name}"), in_session));
        }
        answers
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn config(more: &str) -> String {
    format!("[network]\nallowedCidrs = [\"127.0.0.0/8\"]\nports = [\"1-65535\"]\n{more}")
}

async fn every_program_trusts_the_authority_that_the_operator_names(server: Server) {
    // The server is stopped at the end: by then its pool is full, and no making of a sandbox has to be cancelled.
    let (kind, unconfigured) = (server.kind, server);
    let (internet, certificate) = Internet::over_tls().await;
    let bundle = tempfile::NamedTempFile::new().unwrap();
    fs::write(bundle.path(), certificate).unwrap();
    let key = format!("caBundle = \"{}\"\n", bundle.path().display());
    let server = Server::configured(kind, &config(&key));
    let url = format!("https://127.0.0.2:{}/hello", internet.port);
    let answers = answers(&server, &url).await;
    let failed = answers.iter().filter(|(_, answer)| answer != EXPECTED);
    assert_eq!(failed.collect::<Vec<_>>(), Vec::<&(String, String)>::new());
    // The certificate authorities of this machine are trusted too.
    let mut request = ExecutionRequest::new(Runtime::Bash);
    request.cmd = Some("grep -c BEGIN \"$SSL_CERT_FILE\"".to_owned());
    let result = server.client().execute(request).await.unwrap();
    assert!(result.stdout.parse::<u32>().unwrap() > 1, "{result:?}");
    server.stop();
    unconfigured.stop();
}

async fn without_it_none_does(server: Server) {
    // The server is stopped at the end: by then its pool is full, and no making of a sandbox has to be cancelled.
    let (kind, unconfigured) = (server.kind, server);
    let (internet, _) = Internet::over_tls().await;
    let server = Server::configured(kind, &config(""));
    let url = format!("https://127.0.0.2:{}/hello", internet.port);
    let answers = answers(&server, &url).await;
    let trusting = answers.iter().filter(|(_, answer)| answer == EXPECTED);
    assert_eq!(
        trusting.collect::<Vec<_>>(),
        Vec::<&(String, String)>::new()
    );
    server.stop();
    unconfigured.stop();
}
