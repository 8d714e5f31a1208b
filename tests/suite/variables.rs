//! Variables that interpreters read at their start, in sessions, whose interpreter waits before there is a request.

use isol8_client::{CreateSession, ExecutionRequest, FileContent, RemoteIsol8, Runtime};

use crate::harness::{Server, on_each_backend, source};

on_each_backend!(
    variables_of_the_start_count_in_a_session_s_first_request,
    an_interpreter_that_does_not_start_costs_no_session,
);

/// A variable, code that shows whether the interpreter was started with it, and what that prints then.
struct Case {
    runtime: Runtime,
    variable: (&'static str, &'static str),
    code: &'static str,
    shown: &'static str,
}

const fn case(
    runtime: Runtime,
    variable: (&'static str, &'static str),
    code: &'static str,
    shown: &'static str,
) -> Case {
    Case {
        runtime,
        variable,
        code,
        shown,
    }
}

const LIMIT: &str = "console.log(Error.stackTraceLimit)";
const MODULE: &str = "console.log(require('late_module').x)";

const CASES: [Case; 10] = [
    case(
        Runtime::Python,
        ("PYTHONPATH", "/sandbox/lib"),
        "import late_module; print(late_module.x)",
        "1",
    ),
    case(
        Runtime::Python,
        ("PYTHONOPTIMIZE", "1"),
        "import sys; print(sys.flags.optimize)",
        "1",
    ),
    case(
        Runtime::Python,
        ("PYTHONHASHSEED", "7"),
        "import sys; print(sys.flags.hash_randomization, hash('a') == hash('a'))",
        "1 True",
    ),
    case(
        Runtime::Node,
        ("NODE_OPTIONS", "--stack-trace-limit=3"),
        LIMIT,
        "3",
    ),
    case(Runtime::Node, ("NODE_PATH", "/sandbox/lib"), MODULE, "1"),
    case(
        Runtime::Node,
        ("NODE_EXTRA_CA_CERTS", "/sandbox/none.pem"),
        "require('tls').createSecureContext(); console.log('ok')",
        "ok",
    ),
    case(Runtime::Bun, ("NODE_PATH", "/sandbox/lib"), MODULE, "1"),
    case(
        Runtime::Bun,
        ("BUN_OPTIONS", "--smol"),
        "console.log(process.execArgv[0])",
        "--smol",
    ),
    case(
        Runtime::Deno,
        ("DENO_V8_FLAGS", "--stack-trace-limit=3"),
        LIMIT,
        "3",
    ),
    case(
        Runtime::Deno,
        ("DENO_CERT", "/sandbox/none.pem"),
        "try { await fetch('https://127.0.0.1:8443/') } catch (error) { console.log(error.message) }",
        "Failed opening CA file: No such file or directory (os error 2)",
    ),
];

fn request(case: &Case, value: &str) -> ExecutionRequest {
    let mut request = source(case.runtime, case.code);
    let (name, _) = case.variable;
    request.env.insert(name.to_owned(), value.to_owned());
    for (path, content) in [
        ("late_module.py", "x = 1"),
        ("late_module.js", "exports.x = 1"),
    ] {
        let content = FileContent(content.as_bytes().to_vec());
        request
            .files
            .insert(format!("/sandbox/lib/{path}"), content);
    }
    request
}

async fn variables_of_the_start_count_in_a_session_s_first_request(server: Server) {
    for (number, case) in CASES.iter().enumerate() {
        let (name, value) = case.variable;
        let session = server.session(&format!("first-{number}"));
        let shows = async |session: &RemoteIsol8, request: ExecutionRequest| {
            let result = session.execute(request).await.unwrap();
            assert_eq!(result.stdout, case.shown, "{name}: {result:?}");
            result
        };
        let first = shows(&session, request(case, value)).await;
        assert_eq!(first.warnings, [] as [String; 0], "{name}");
        if name == "NODE_EXTRA_CA_CERTS" {
            // Node says so of a file that is not there, when it starts with one.
            assert!(first.stderr.contains("/sandbox/none.pem"), "{first:?}");
        }
        // The session keeps the value, and reports that another value comes too late.
        let again = shows(&session, request(case, value)).await;
        assert_eq!(again.warnings, [] as [String; 0], "{name}");
        let late = shows(&session, request(case, "/elsewhere")).await;
        let [warning] = &late.warnings[..] else {
            panic!("{name}: {late:?}");
        };
        assert!(
            warning.contains(&format!("reads {name} at its start")),
            "{warning}"
        );
        session.stop().await.unwrap();

        // A session that was made with it has it from its first request on.
        let session = server.session(&format!("made-{number}"));
        let mut new = CreateSession::new(case.runtime);
        new.env.insert(name.to_owned(), value.to_owned());
        new.files = request(case, value).files;
        session.create_session(new).await.unwrap();
        let first = shows(&session, source(case.runtime, case.code)).await;
        assert_eq!(first.warnings, [] as [String; 0], "{name}");
        session.stop().await.unwrap();
    }
    server.stop();
}

async fn an_interpreter_that_does_not_start_costs_no_session(server: Server) {
    for (runtime, name, value, code) in [
        (Runtime::Python, "PYTHONHOME", "/nowhere", "print('ok')"),
        (
            Runtime::Node,
            "NODE_OPTIONS",
            "--no-such-option",
            "console.log('ok')",
        ),
    ] {
        let session = server.session(&format!("{runtime}"));
        let note = FileContent(b"kept".to_vec());
        let mut request = source(runtime, code);
        request.files.insert("/sandbox/note".to_owned(), note);
        request.env.insert(name.to_owned(), value.to_owned());
        let error = session.execute(request).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("does not start with {name}")),
            "{error}"
        );
        let result = session.execute(source(runtime, code)).await.unwrap();
        assert_eq!(result.stdout, "ok");
        assert_eq!(session.get_file("/sandbox/note").await.unwrap(), b"kept");
        session.stop().await.unwrap();
    }
    server.stop();
}
