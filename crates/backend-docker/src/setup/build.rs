//! An image, built by the engine.

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::time::{Duration, Instant};

use anstream::adapter::strip_str;
use bollard::body_full;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    BuildImageOptions, BuildImageOptionsBuilder, CreateContainerOptionsBuilder,
    DownloadFromContainerOptionsBuilder,
};
use futures::StreamExt as _;
use isol8_api::Runtime;
use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};

use super::{HASH_LABEL, Report, SetupError, SetupEvent, VERSION_LABEL, within};
use crate::engine::{CALL_DEADLINE, Engine, EngineError};

/// Some 200 MB of packages at most: a minute here, many on a slow line.
pub(super) const BUILD_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Variables of the setup's environment that builds see too: which proxy leads out, and which index
/// pip and npm ask. None of them stays in an image, nor changes what is in it.
const FORWARDED: [&str; 12] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
];

/// File to which the Dockerfile writes the version of the interpreter.
const VERSION_FILE: &str = "/.isol8/version";

/// A version is one line.
const VERSION_LIMIT: u64 = 200;

/// Lines of a failed build that its error repeats: the package manager says what is wrong within
/// its last few.
const LOG_TAIL: usize = 30;

/// An image to be built.
#[derive(Debug)]
pub(super) struct Recipe<'a> {
    pub(super) runtime: Runtime,
    pub(super) tag: &'a str,
    pub(super) base: &'a str,
    pub(super) hash: &'a str,
    pub(super) context: &'a [u8],
    /// The variables that [`forwarded`] found.
    pub(super) forwarded: &'a [(String, String)],
    /// Take nothing from the engine's cache.
    pub(super) fresh: bool,
}

/// Returns the variables of an environment that are passed on. An empty variable counts as missing.
pub(super) fn forwarded(variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let set = |name: &str| Some((name.to_owned(), variable(name)?));
    let found = FORWARDED.into_iter().filter_map(set);
    found.filter(|(_, value)| !value.is_empty()).collect()
}

/// Builds twice: labels are given beforehand, and the version is known only afterwards. The second
/// build takes every step from the cache. Its hash comes last too, so that an image whose setup was
/// broken off is not up to date. Returns how long each stage took.
pub(super) async fn build(
    engine: &Engine,
    recipe: &Recipe<'_>,
    report: Report<'_>,
) -> Result<Stages, SetupError> {
    let mut log = Log::default();
    let mut work = async || -> Result<(), String> {
        run(
            engine,
            recipe.context,
            options(recipe, &[], recipe.fresh),
            &mut log,
            report,
        )
        .await?;
        let version = read_version(engine, recipe)
            .await
            .map_err(|error| error.to_string())?;
        let labels = [(HASH_LABEL, recipe.hash), (VERSION_LABEL, &version)];
        run(
            engine,
            recipe.context,
            options(recipe, &labels, false),
            &mut log,
            report,
        )
        .await
    };
    let built = within(BUILD_DEADLINE, work()).await;
    match built {
        Ok(()) => {
            log.stages.end(Instant::now());
            Ok(log.stages)
        }
        Err(reason) => Err(SetupError::Build {
            runtime: recipe.runtime,
            tag: recipe.tag.to_owned(),
            reason,
            log: log.tail(),
        }),
    }
}

fn options(recipe: &Recipe<'_>, labels: &[(&str, &str)], fresh: bool) -> BuildImageOptions {
    let owned = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let mut arguments = owned(&[
        ("BASE", recipe.base),
        ("SANDBOX_UID", &SANDBOX_UID.to_string()),
        ("SANDBOX_GID", &SANDBOX_GID.to_string()),
    ]);
    arguments.extend(recipe.forwarded.iter().cloned());
    BuildImageOptionsBuilder::new()
        .t(recipe.tag)
        .target(recipe.runtime.name())
        .buildargs(&arguments)
        .labels(&owned(labels))
        .networkmode("host")
        .nocache(fresh)
        .rm(true)
        .forcerm(true)
        .build()
}

/// Has the engine build, and tells of what it prints.
pub(super) async fn run(
    engine: &Engine,
    context: &[u8],
    options: BuildImageOptions,
    log: &mut Log,
    report: Report<'_>,
) -> Result<(), String> {
    let context = body_full(context.to_vec().into());
    let mut steps = engine.docker.build_image(options, None, Some(context));
    // Each step within the deadline of the whole: the caller counts that.
    while let Some(step) = engine
        .call(BUILD_DEADLINE, async { steps.next().await.transpose() })
        .await
        .map_err(|error| error.to_string())?
    {
        for line in log.take(step.stream.as_deref().unwrap_or_default()) {
            report(SetupEvent::Log(line));
        }
    }
    Ok(())
}

/// Reads the version out of the image, through a container that is never started.
async fn read_version(engine: &Engine, recipe: &Recipe<'_>) -> Result<String, EngineError> {
    let name = format!("isol8-setup-{}", recipe.runtime);
    // From a setup that was killed.
    engine.remove(&name).await?;
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(recipe.tag.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        ..Default::default()
    };
    let created = engine.docker.create_container(Some(options), body);
    engine.call(CALL_DEADLINE, created).await?;
    let archive = engine.call(CALL_DEADLINE, download(engine, &name)).await;
    engine.remove(&name).await?;
    let version = first_line(&archive?);
    version.ok_or_else(|| EngineError::Silent(format!("{VERSION_FILE} of the image is empty")))
}

async fn download(engine: &Engine, container: &str) -> Result<Vec<u8>, bollard::errors::Error> {
    let options = DownloadFromContainerOptionsBuilder::new()
        .path(VERSION_FILE)
        .build();
    let mut pieces = engine
        .docker
        .download_from_container(container, Some(options));
    let mut archive = Vec::new();
    while let Some(piece) = pieces.next().await {
        archive.extend_from_slice(&piece?);
    }
    Ok(archive)
}

/// The first line of the first file of an archive.
fn first_line(archive: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(archive);
    let file = archive.entries().ok()?.next()?.ok()?;
    let mut text = String::new();
    file.take(VERSION_LIMIT).read_to_string(&mut text).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// The output of a build: whole lines as they come, and the last ones for an error.
#[derive(Debug, Default)]
pub(super) struct Log {
    unfinished: String,
    last: VecDeque<String>,
    stages: Stages,
}

/// When the stages of a build ended, counted from its first line. A forced build makes those of all images at once.
#[derive(Debug, Default)]
pub(super) struct Stages {
    started: Option<Instant>,
    current: Option<String>,
    ended: Vec<(String, Duration)>,
}

impl Stages {
    /// How long the stage of a runtime took, with those before it that belong to no runtime.
    pub(super) fn took(&self, runtime: Runtime) -> Option<Duration> {
        let mut begin = Duration::ZERO;
        for (name, end) in &self.ended {
            if name == runtime.name() {
                return Some(end.saturating_sub(begin));
            }
            if name.parse::<Runtime>().is_ok() {
                begin = *end;
            }
        }
        None
    }

    /// Takes a line such as `Step 3/20 : FROM common AS bash`, with which a stage begins and the one before ends.
    fn see(&mut self, line: &str, now: Instant) {
        self.started.get_or_insert(now);
        let instruction = line.split_once(" : FROM ").map(|(_, rest)| rest);
        if let Some((_, name)) = instruction.and_then(|rest| rest.rsplit_once(" AS ")) {
            self.end(now);
            self.current = Some(name.trim().to_owned());
        }
    }

    fn end(&mut self, now: Instant) {
        let (Some(name), Some(started)) = (self.current.take(), self.started) else {
            return;
        };
        // A second build, with labels, goes through all of them again.
        if self.ended.iter().all(|(known, _)| *known != name) {
            self.ended.push((name, now - started));
        }
    }
}

impl Log {
    /// The lines that `output` completes.
    fn take(&mut self, output: &str) -> Vec<String> {
        self.unfinished.push_str(output);
        let mut lines = Vec::new();
        while let Some(end) = self.unfinished.find('\n') {
            let line: String = self.unfinished.drain(..=end).collect();
            let line = plain(&line);
            if !line.is_empty() && !is_noise(&line) {
                lines.push(line);
            }
        }
        for line in &lines {
            self.stages.see(line, Instant::now());
            if self.last.len() == LOG_TAIL {
                self.last.pop_front();
            }
            self.last.push_back(line.clone());
        }
        lines
    }

    /// The lines that an error repeats.
    pub(super) fn tail(&self) -> String {
        let mut lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.push(self.unfinished.trim_end());
        lines.join("\n")
    }
}

/// A line without colours, which the engine puts around standard error and tools around their words, and as it
/// stands in the end where a tool has written it anew.
fn plain(line: &str) -> String {
    let text = strip_str(line).to_string();
    let last = text.trim_end().rsplit('\r').next().unwrap_or_default();
    last.trim_end().to_owned()
}

/// Warnings of tools that come with every build, and that nothing can be done about.
fn is_noise(line: &str) -> bool {
    const NOISE: [&str; 3] = [
        "useradd warning:",
        "debconf: delaying package configuration",
        "WARNING: Running pip as the 'root' user",
    ];
    NOISE.iter().any(|noise| line.starts_with(noise))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_lines_wherever_it_is_cut() {
        let mut log = Log::default();
        assert!(log.take("Step 1").is_empty());
        assert_eq!(log.take("/2\n\n ---> a\nSte"), ["Step 1/2", " ---> a"]);
        assert_eq!(log.tail(), "Step 1/2\n ---> a\nSte");
    }

    #[test]
    fn lines_have_no_colours_and_no_warnings_of_every_build() {
        let mut log = Log::default();
        let output = "\x1b[91museradd warning: sandbox's uid 64800 is greater than SYS_UID_MAX 999\n\x1b[0m\
                      \x1b[32mInstalling\x1b[0m x\r\n10%\r20%\r\n\x1b[91mError: no space\n\x1b[0mStep 3\n";
        let lines = ["Installing x", "20%", "Error: no space", "Step 3"];
        assert_eq!(log.take(output), lines);
        assert_eq!(log.tail().trim_end(), lines.join("\n"));
    }

    #[test]
    fn the_time_of_one_build_is_divided_among_the_images_that_it_makes() {
        let (mut stages, start) = (Stages::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (seconds, line) in [
            (0, "Step 1/9 : FROM ${BASE} AS common"),
            (10, "Step 3/9 : FROM common AS bash"),
            (11, "Step 4/9 : RUN x"),
            (12, "Step 5/9 : FROM common AS python"),
            (32, "Step 6/9 : FROM python AS fetch"),
            (92, "Step 7/9 : FROM common AS node"),
            (95, "Step 1/9 : FROM ${BASE} AS common"),
            (96, "Step 3/9 : FROM common AS bash"),
        ] {
            stages.see(line, at(seconds));
        }
        stages.end(at(97));
        let took = |runtime| stages.took(runtime).map(|took| took.as_secs());
        assert_eq!(took(Runtime::Bash), Some(12));
        assert_eq!(took(Runtime::Python), Some(20));
        assert_eq!(took(Runtime::Node), Some(63));
        assert_eq!(took(Runtime::Deno), None);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_kept() {
        let mut log = Log::default();
        for number in 0..1000 {
            log.take(&format!("line {number}\n"));
        }
        assert_eq!(log.last.len(), LOG_TAIL);
        assert!(log.tail().starts_with("line 970\n"));
    }

    #[test]
    fn a_version_is_the_first_line_of_the_file() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(16);
        archive
            .append_data(&mut header, "version", &b"Python 3.11.2\nx\n"[..])
            .unwrap();
        let bytes = archive.into_inner().unwrap();
        assert_eq!(first_line(&bytes).as_deref(), Some("Python 3.11.2"));
        assert_eq!(first_line(b"no archive"), None);
    }

    #[test]
    fn an_empty_variable_is_not_passed_on() {
        let found = forwarded(|name| match name {
            "PIP_INDEX_URL" => Some("https://packages.example/simple".to_owned()),
            "NO_PROXY" => Some(String::new()),
            _ => None,
        });
        let index = "https://packages.example/simple".to_owned();
        assert_eq!(found, [("PIP_INDEX_URL".to_owned(), index)]);
    }

    #[test]
    fn a_build_uses_the_hosts_network_and_names_its_parts() {
        let forwarded = [("https_proxy".to_owned(), "http://localhost:3128".to_owned())];
        let recipe = Recipe {
            runtime: Runtime::Bash,
            tag: "isol8:bash",
            base: "debian:12",
            hash: "abc",
            context: &[],
            forwarded: &forwarded,
            fresh: true,
        };
        let options = options(&recipe, &[(HASH_LABEL, "abc")], recipe.fresh);
        assert_eq!(options.networkmode.as_deref(), Some("host"));
        assert_eq!(options.target, "bash");
        assert!(options.nocache);
        assert_eq!(options.labels.unwrap()[HASH_LABEL], "abc");
        let arguments = options.buildargs.unwrap();
        assert_eq!(arguments["SANDBOX_UID"], "64800");
        assert_eq!(arguments["https_proxy"], "http://localhost:3128");
    }
}
