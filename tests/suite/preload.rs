//! Modules that are imported ahead of every run.

use std::process::{Command, Stdio};

use crate::harness::{ISOL8, KEY, Kind, Server, python, state_directory};

/// A server that has numpy imported ahead. Docker's image is built by `scripts/test`.
fn with_numpy(kind: Kind) -> Server {
    let image = match kind {
        Kind::Native => "",
        Kind::Docker => "image = \"isol8-test:python-numpy\"\n",
    };
    let config = format!("[runtimes.python]\n{image}preload = [\"numpy\"]\n");
    Server::configured(kind, &config)
}

async fn a_preloaded_module_works_in_every_run(kind: Kind) {
    let server = with_numpy(kind);
    let program = "import sys\nahead = 'numpy.linalg' in sys.modules\nimport numpy\n\
                   a = numpy.random.rand(500, 500)\n\
                   print(ahead, numpy.allclose((a @ a)[0, 0], (a[0] * a[:, 0]).sum()), a[0, 0])";
    let mut drawn = Vec::new();
    for _ in 0..4 {
        let result = server.python(program).await;
        let words: Vec<_> = result.stdout.split(' ').collect();
        assert_eq!(words[..2], ["True", "True"], "{result:?}");
        drawn.push(words[2].to_owned());
    }
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 4, "what is random is the same in two runs");
    let session = server.session("preload");
    let cell = "import numpy; print(int(numpy.ones((500, 500)).sum()))";
    assert_eq!(
        session.execute(python(cell)).await.unwrap().stdout,
        "250000"
    );
    server.stop();
}

fn a_module_that_cannot_be_imported_stops_the_start(kind: Kind) {
    let state = state_directory();
    let config = state.path().join("config.toml");
    std::fs::write(
        &config,
        "[runtimes.python]\npreload = [\"no_such_module\"]\n",
    )
    .unwrap();
    let ended = Command::new(ISOL8)
        .args(["serve", "--port", "0", "--backend", kind.name(), "--config"])
        .arg(&config)
        .env("ISOL8_API_KEY", KEY)
        .env("ISOL8_STATE_DIR", state.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{text}");
    let reason = "runtimes.python.preload: no_such_module cannot be imported: ModuleNotFoundError";
    assert!(text.contains(reason), "{text}");
}

mod native {
    use super::*;

    #[tokio::test]
    async fn a_preloaded_module_works_in_every_run() {
        super::a_preloaded_module_works_in_every_run(Kind::Native).await;
    }

    #[test]
    fn a_module_that_cannot_be_imported_stops_the_start() {
        super::a_module_that_cannot_be_imported_stops_the_start(Kind::Native);
    }
}

mod docker {
    use super::*;

    #[tokio::test]
    async fn a_preloaded_module_works_in_every_run() {
        super::a_preloaded_module_works_in_every_run(Kind::Docker).await;
    }

    #[test]
    fn a_module_that_cannot_be_imported_stops_the_start() {
        super::a_module_that_cannot_be_imported_stops_the_start(Kind::Docker);
    }
}
