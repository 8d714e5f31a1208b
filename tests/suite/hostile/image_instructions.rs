//! Images with every instruction of a Dockerfile: what one declares changes nothing about a sandbox's confinement.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use isol8_client::{ClientError, ErrorCode, ExecutionResult, Options, RemoteIsol8};
use serde_json::Value;

use crate::harness::{Kind, Server, python};

/// Effect of an instruction on a sandbox that is made from its image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Works while an image is built, and leaves nothing in its configuration.
    AtBuild,
    /// The container has another value.
    Replaced,
    /// Taken, and no matter for the confinement.
    Taken,
    /// The image is refused.
    Refused,
}

/// Every instruction: its name, an example, the key of the image's configuration that holds it, its effect.
/// <https://docs.docker.com/reference/dockerfile/#overview>
const INSTRUCTIONS: [(&str, &str, &str, Effect); 18] = [
    ("FROM", "FROM isol8:python", "Image", Effect::AtBuild),
    ("ARG", "ARG UNUSED=1", "", Effect::AtBuild),
    ("MAINTAINER", "MAINTAINER isol8", "", Effect::AtBuild),
    ("ADD", "ADD Dockerfile /opt/added", "", Effect::AtBuild),
    ("COPY", "COPY Dockerfile /opt/copied", "", Effect::AtBuild),
    ("RUN", "RUN touch /opt/made", "", Effect::AtBuild),
    ("ONBUILD", "ONBUILD RUN false", "OnBuild", Effect::AtBuild),
    (
        "SHELL",
        r#"SHELL ["/bin/bash", "-c"]"#,
        "Shell",
        Effect::AtBuild,
    ),
    (
        "LABEL",
        "LABEL isol8.test=instructions isol8.state=/elsewhere isol8.instance=other isol8.runtime=bash",
        "Labels",
        Effect::Replaced,
    ),
    (
        "WORKDIR",
        "WORKDIR /opt/work",
        "WorkingDir",
        Effect::Replaced,
    ),
    ("USER", "USER 12345:12345", "User", Effect::Replaced),
    (
        "STOPSIGNAL",
        "STOPSIGNAL SIGWINCH",
        "StopSignal",
        Effect::Replaced,
    ),
    (
        "ENTRYPOINT",
        r#"ENTRYPOINT ["/bin/false"]"#,
        "Entrypoint",
        Effect::Replaced,
    ),
    ("CMD", r#"CMD ["/bin/false"]"#, "Cmd", Effect::Replaced),
    (
        "HEALTHCHECK",
        "HEALTHCHECK --interval=1s CMD touch /dev/shm/checked; [ -x /sandbox/hook ] && /sandbox/hook",
        "Healthcheck",
        Effect::Replaced,
    ),
    (
        "ENV",
        "ENV FROM_IMAGE=yes PYTHONPATH=/sandbox/lib LD_LIBRARY_PATH=/tmp",
        "Env",
        Effect::Taken,
    ),
    ("EXPOSE", "EXPOSE 8080", "ExposedPorts", Effect::Taken),
    ("VOLUME", "VOLUME /data", "Volumes", Effect::Refused),
];

/// Keys of an image's configuration that no instruction sets, and that containers do not take from it.
const NOT_OF_INSTRUCTIONS: [&str; 9] = [
    "ArgsEscaped",
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Domainname",
    "Hostname",
    "OpenStdin",
    "StdinOnce",
    "Tty",
];

/// A program that prints its confinement, without what differs between any two sandboxes.
const CONFINEMENT: &str = r"
import json, os, re
def status(pid):
    lines = dict(line.split(':', 1) for line in open(f'/proc/{pid}/status'))
    names = ('Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters')
    return {name: lines.get(name, '').split() for name in names}
own = str(os.getuid())
OWN = ('cgroup', 'cgroup2', 'devpts', 'mqueue', 'proc', 'sysfs', 'tmpfs')
mounts = []
for line in open('/proc/self/mountinfo'):
    before, after = line.split(' - ')
    place, options = before.split()[4:6]
    kind, _, more = after.split()
    mounts.append([place, options, kind, re.sub('(lower|upper|work)dir=[^,]*', '', more) if kind == 'overlay' else more])
text = json.dumps({
    'own': status('self'), 'first': status(1), 'mounts': sorted(mounts), 'name': __import__('pwd').getpwuid(os.getuid()).pw_name,
    'writable': [place for place, options, kind, _ in mounts if kind not in OWN and 'ro' not in options.split(',')],
    'place': os.getcwd(), 'checked': os.path.exists('/dev/shm/checked'),
}, indent=1, sort_keys=True)
print(re.sub(r'\b' + own + r'\b', 'USER', text))
";

/// An image that is removed in the end.
struct Image(String);

impl Image {
    /// Builds one from a Dockerfile, which is the whole context too.
    fn build(name: &str, dockerfile: &str) -> Self {
        let image = Self(format!("isol8-test:{name}-{}", std::process::id()));
        let context = tempfile::tempdir().unwrap();
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        let built = Command::new("docker")
            .args(["build", "--quiet", "--network", "host", "--tag", &image.0])
            .arg(context.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{text}");
        image
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker")
            .args(["rmi", "--force", &self.0])
            .output();
    }
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn dockerfile(of: impl Fn(Effect) -> bool) -> String {
    let all = INSTRUCTIONS.iter().filter(|(.., effect)| of(*effect));
    all.map(|(_, example, ..)| format!("{example}\n")).collect()
}

async fn run_in(
    client: &RemoteIsol8,
    image: &str,
    code: &str,
) -> Result<ExecutionResult, ClientError> {
    let options = Options {
        image: Some(image.to_owned()),
        ..Options::default()
    };
    client.execute_with(python(code), options).await
}

/// Returns the engine's description of a container, without what differs between any two.
fn inspect(container: &str) -> BTreeMap<&'static str, Value> {
    let all: Value = serde_json::from_str(&docker(&["inspect", container])).unwrap();
    let at = |path: &str| {
        all.pointer(&format!("/0{path}"))
            .cloned()
            .unwrap_or_default()
    };
    let mut mounts: Vec<String> = at("/Mounts")
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| format!("{} {} {}", mount["Type"], mount["Destination"], mount["RW"]))
        .collect();
    mounts.sort_unstable();
    let mut host = at("/HostConfig");
    for differs in ["Mounts", "Tmpfs"] {
        host[differs] = Value::Null;
    }
    BTreeMap::from([
        ("user", at("/Config/User")),
        ("directory", at("/Config/WorkingDir")),
        ("entrypoint", at("/Config/Entrypoint/0")),
        ("command", at("/Config/Cmd")),
        ("volumes", at("/Config/Volumes")),
        ("health", at("/State/Health")),
        ("check", at("/Config/Healthcheck/Test")),
        ("signal", at("/Config/StopSignal")),
        ("ports", at("/NetworkSettings/Ports")),
        ("state", at("/Config/Labels/isol8.state")),
        ("instance", at("/Config/Labels/isol8.instance")),
        ("runtime", at("/Config/Labels/isol8.runtime")),
        ("mounts", mounts.into()),
        ("host", host),
    ])
}

#[test]
fn every_key_of_an_images_configuration_belongs_to_an_instruction() {
    let image = Image::build("instructions-all", &dockerfile(|_| true));
    let config = docker(&["image", "inspect", "--format", "{{json .Config}}", &image.0]);
    let config: BTreeMap<String, Value> = serde_json::from_str(&config).unwrap();
    for (name, _, key, effect) in INSTRUCTIONS {
        let is_set = config.get(key).is_some_and(|value| !value.is_null());
        assert!(
            is_set || effect == Effect::AtBuild,
            "{name} has set no {key}"
        );
    }
    let known: BTreeSet<&str> = INSTRUCTIONS.iter().map(|(_, _, key, _)| *key).collect();
    for (key, value) in &config {
        let is_known = known.contains(key.as_str()) || NOT_OF_INSTRUCTIONS.contains(&key.as_str());
        assert!(
            is_known,
            "nothing says what a sandbox does with {key}: {value}"
        );
    }
}

#[tokio::test]
async fn an_image_with_every_instruction_is_confined_as_the_runtimes_own() {
    let image = Image::build(
        "instructions",
        &dockerfile(|effect| effect != Effect::Refused),
    );
    let server = Server::start(Kind::Docker);
    let mut seen = Vec::new();
    for name in ["isol8:python", &image.0] {
        let session = server.session("s");
        let result = run_in(&session, name, CONFINEMENT).await.unwrap();
        assert_eq!(result.exit_code, 0, "{name}: {}", result.stderr);
        let container = inspect(&format!("isol8-{}", result.container_id));
        seen.push((result.stdout, container));
        session.stop().await.unwrap();
    }
    let [(own, own_container), (other, other_container)] = &seen[..] else {
        unreachable!("two images")
    };
    assert_eq!(other, own, "seen from inside");
    for (key, value) in own_container {
        assert_eq!(&other_container[key], value, "{key}");
    }
    assert_eq!(own_container["health"], Value::Null);
    for expected in [
        "\"name\": \"sandbox\"",
        "\"checked\": false",
        "\"writable\": []",
    ] {
        assert!(own.contains(expected), "{expected} in {own}");
    }
    server.stop();
}

/// The interpreter that others are forked from keeps rights of root's while it boots.
#[tokio::test]
async fn no_interpreter_with_rights_loads_what_an_image_says_to_load_from_user_code_s_places() {
    let env = "FROM isol8:python\nENV PYTHONPATH=/sandbox/lib\n";
    let image = Image::build("instructions-env", env);
    let config = format!("[runtimes.python]\nimage = \"{}\"\n", image.0);
    let users = "import os\nprint(sorted({os.stat(f'/proc/{p}').st_uid - os.getuid() for p in os.listdir('/proc') if p.isdigit() and p != '1'}))";
    // The first script of a sandbox comes before there is anything to fork it from.
    for (config, expected) in [("", "[0, 1]"), (config.as_str(), "[0]")] {
        let server = Server::configured(Kind::Docker, config);
        server.python("1").await;
        for _ in 0..2 {
            let result = server.python(users).await;
            assert_eq!(result.stdout, expected, "{config} {}", result.stderr);
        }
        server.stop();
    }
}

#[tokio::test]
async fn an_image_that_brings_volumes_or_is_not_made_from_the_runtimes_is_refused() {
    let volumes = Image::build(
        "instructions-volume",
        "FROM isol8:python\nVOLUME /data /more\n",
    );
    // Another project's image, though it says otherwise.
    let label = docker(&[
        "image",
        "inspect",
        "--format",
        "{{index .Config.Labels \"isol8.hash\"}}",
        "isol8:python",
    ]);
    let foreign = foreign_image(&label);
    let id = docker(&["image", "inspect", "--format", "{{.Id}}", &foreign.0]);
    let short = id.trim_start_matches("sha256:")[..12].to_owned();
    let server = Server::start(Kind::Docker);
    let refused = [
        (volumes.0.as_str(), "it declares volumes (/data, /more)"),
        (&foreign.0, "it is not made from isol8:python"),
        (&id, "it is not made from isol8:python"),
        (&short, "it is not made from isol8:python"),
        ("isol8:bash", "it is not made from isol8:python"),
        ("isol8-test:no-such", "the engine has none of that name"),
    ];
    for (image, reason) in refused {
        for client in [server.client(), server.session("s")] {
            let error = run_in(&client, image, "print('ran')").await.unwrap_err();
            assert_eq!(
                error.code(),
                Some(ErrorCode::RuntimeUnavailable),
                "{image}: {error}"
            );
            assert!(error.to_string().contains(reason), "{image}: {error}");
        }
    }
    let own = docker(&["image", "inspect", "--format", "{{.Id}}", "isol8:python"]);
    let result = run_in(&server.client(), &own, "print('ran')")
        .await
        .unwrap();
    assert_eq!(result.stdout, "ran", "by its id: {}", result.stderr);
    server.stop();
}

/// An image of files of its own with the labels of a runtime's.
fn foreign_image(hash: &str) -> Image {
    let image = Image(format!(
        "isol8-test:instructions-foreign-{}",
        std::process::id()
    ));
    let label = format!("LABEL isol8.test=instructions isol8.hash={hash} isol8.runtime=python");
    let mut import = Command::new("docker")
        .args(["import", "--change", &label, "-", &image.0])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Two blocks of zeros end an archive, here one without a file.
    import.stdin.take().unwrap().write_all(&[0; 1024]).unwrap();
    assert!(import.wait().unwrap().success());
    image
}
