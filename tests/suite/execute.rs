//! `POST /execute` without a session.

use isol8_client::{ExecutionRequest, Options, Runtime};

use crate::harness::{Server, bash, command, on_each_backend, python};

on_each_backend!(
    python_answers_with_every_field,
    a_program_that_fails_is_a_result,
    standard_input_environment_and_files_reach_the_program,
    files_come_back,
    a_setup_script_runs_first_and_its_failure_is_said,
    bash_and_shell_commands_run,
    runs_leave_nothing_to_each_other,
    secrets_are_masked,
    truncated_output_keeps_its_beginning,
    text_that_is_not_utf8_is_replaced,
    standard_streams_can_be_opened_by_their_names,
);

async fn python_answers_with_every_field(server: Server) {
    let result = server
        .python("import sys\nprint(6 * 7)\nprint('e', file=sys.stderr)")
        .await;
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("42", "e")
    );
    assert_eq!(result.exit_code, 0);
    assert_eq!(result.runtime, Runtime::Python);
    assert!(!result.truncated && !result.timed_out && !result.oom_killed);
    assert!(result.duration_ms > 0.0);
    assert_eq!(result.execution_id.len(), 36);
    assert!(result.timestamp.ends_with('Z'), "{}", result.timestamp);
    assert!(!result.container_id.is_empty());
    let usage = result.resource_usage.unwrap();
    // Processor time that its interpreter took before the request came is not the run's.
    assert!(usage.cpu_percent < 150.0, "{usage:?}");
    assert!(usage.peak_memory_mb >= usage.memory_mb);
    server.stop();
}

async fn a_program_that_fails_is_a_result(server: Server) {
    let result = server.python("raise ValueError('no')").await;
    assert_eq!(result.exit_code, 1);
    assert!(
        result
            .stderr
            .starts_with("Traceback (most recent call last):")
    );
    assert!(result.stderr.ends_with("ValueError: no"));
    assert_eq!(server.python("import sys; sys.exit(7)").await.exit_code, 7);
    let killed = server.python("import os; os.kill(os.getpid(), 15)").await;
    assert_eq!(killed.exit_code, 143);
}

async fn standard_input_environment_and_files_reach_the_program(server: Server) {
    let mut request = python(
        "import os, sys\nprint(sys.stdin.read(), os.environ['A'], os.getcwd(), open('x/y').read())",
    );
    request.stdin = Some("in".to_owned());
    request.env.insert("A".to_owned(), "ü".to_owned());
    request.workdir = Some("d".to_owned());
    request.setup_script = Some("mkdir /sandbox/d && ln -s /sandbox/x /sandbox/d/x".to_owned());
    let content = isol8_api::FileContent(b"file".to_vec());
    request.files.insert("/sandbox/x/y".to_owned(), content);
    let result = server.client().execute(request).await.unwrap();
    assert_eq!(result.stdout, "in ü /sandbox/d file", "{}", result.stderr);
}

async fn files_come_back(server: Server) {
    let mut request = python("open('/sandbox/out', 'wb').write(bytes(range(256)))");
    request.output_paths = vec!["/sandbox/out".to_owned(), "/tmp/none".to_owned()];
    let result = server.client().execute(request).await.unwrap();
    // A missing file is reported.
    let expected = "request.outputPaths: nothing is at /tmp/none";
    assert_eq!(result.warnings, [expected]);
    let files = result.files.unwrap();
    assert_eq!(files.len(), 1);
    assert!(files["/sandbox/out"].starts_with("AAECAwQF"));
}

async fn a_setup_script_runs_first_and_its_failure_is_said(server: Server) {
    let mut request = python("print(open('/sandbox/made').read())");
    request.setup_script = Some("echo -n ready > made".to_owned());
    let result = server.client().execute(request.clone()).await.unwrap();
    assert_eq!(result.stdout, "ready");

    request.setup_script = Some("echo because >&2; exit 3".to_owned());
    let error = server
        .client()
        .execute(request)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("exit code 3") && error.contains("because"),
        "{error}"
    );
}

async fn bash_and_shell_commands_run(server: Server) {
    let result = server
        .client()
        .execute(bash("echo $((6 * 7)); exit 4"))
        .await
        .unwrap();
    assert_eq!((result.stdout.as_str(), result.exit_code), ("42", 4));
    let mut request = ExecutionRequest::new(Runtime::Python);
    request.cmd = Some("printf '%s' \"$0\" | tr a-z A-Z".to_owned());
    let result = server.client().execute(request).await.unwrap();
    assert_eq!(result.stdout, "BASH");
}

async fn runs_leave_nothing_to_each_other(server: Server) {
    for place in ["/sandbox", "/tmp", "/dev/shm"] {
        let leave = format!(
            "import os, subprocess\nopen('{place}/left', 'w').write('x')\n\
             subprocess.Popen(['sleep', '1000'], start_new_session=True)\nprint('ok')"
        );
        assert_eq!(server.python(&leave).await.stdout, "ok");
        // Enough runs to come to every sandbox that waits.
        for _ in 0..6 {
            let found = server
                .python(&format!(
                    "import os\nprint([f for f in os.listdir('{place}') if f != 'main.py'])\n\
                     print([p for p in os.listdir('/proc') if p.isdigit() and \
                     b'sleep' in open(f'/proc/{{p}}/cmdline', 'rb').read()])"
                ))
                .await;
            assert_eq!(found.stdout, "[]\n[]", "{}", found.stderr);
        }
    }
}

async fn secrets_are_masked(server: Server) {
    let mut options = Options::default();
    options
        .secrets
        .insert("TOKEN".to_owned(), "hunter2".to_owned());
    let request =
        python("import os, sys\nt = os.environ['TOKEN']\nprint(t + t)\nprint(t, file=sys.stderr)");
    let result = server
        .client()
        .execute_with(request, options)
        .await
        .unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("******", "***")
    );
}

async fn truncated_output_keeps_its_beginning(server: Server) {
    let options = Options {
        max_output_size: Some(10),
        ..Options::default()
    };
    let request = python("print('é' * 100)");
    let result = server
        .client()
        .execute_with(request, options)
        .await
        .unwrap();
    assert!(result.truncated);
    assert_eq!(
        result.stdout,
        "ééééé\n--- OUTPUT TRUNCATED (201 bytes, limit: 10) ---"
    );
}

async fn text_that_is_not_utf8_is_replaced(server: Server) {
    let result = server
        .python("import sys\nsys.stdout.buffer.write(b'a\\xffb')")
        .await;
    assert_eq!(result.stdout, "a\u{fffd}b");
}

async fn standard_streams_can_be_opened_by_their_names(server: Server) {
    let program = "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr";
    let session = server.session("streams");
    let client = server.client();
    for (client, mut request) in [
        (&client, bash(program)),
        (&client, command(program)),
        (&session, bash(program)),
        (&session, command(program)),
    ] {
        request.runtime = Runtime::Bash;
        request.stdin = Some("in\n".to_owned());
        let result = client.execute(request).await.unwrap();
        assert_eq!(
            (result.stdout.as_str(), result.stderr.as_str()),
            ("in\nout", "err")
        );
    }
    let mut request = python("print(open('/dev/stdin').read(), file=open('/dev/stdout', 'w'))");
    request.stdin = Some("in".to_owned());
    assert_eq!(client.execute(request).await.unwrap().stdout, "in");
}
