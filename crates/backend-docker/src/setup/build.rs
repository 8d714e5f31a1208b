//! Builds an image with the engine.

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

use super::{HASH_LABEL, Report, SetupError, SetupEvent, VERSION_LABEL, with_deadline};
use crate::engine::{CALL_DEADLINE, Engine, EngineError};

/// Deadline of a build, which downloads at most about 200 MB of packages: one minute on the development machine, many
/// minutes on a slow connection.
pub(super) const BUILD_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Environment variables of the setup that are passed to builds: the proxy, and the index of pip and npm. These
/// variables neither stay in an image nor change its content.
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

/// File that the Dockerfile writes the version of the interpreter to.
const VERSION_FILE: &str = "/.isol8/version";

/// Most bytes that are read of the version file. The version is a single line.
const MAX_VERSION_BYTES: u64 = 200;

/// Number of lines of a failed build's output that the error repeats. A package manager reports the problem in its last
/// few lines.
const LOG_TAIL_LINES: usize = 30;

/// Inputs and options of an image's build.
#[derive(Debug)]
pub(super) struct ImageBuild<'a> {
    pub(super) runtime: Runtime,
    pub(super) tag: &'a str,
    pub(super) base: &'a str,
    pub(super) hash: &'a str,
    pub(super) context: &'a [u8],
    /// Variables that [`forwarded`] returned.
    pub(super) forwarded: &'a [(String, String)],
    /// Whether the engine's cache is ignored.
    pub(super) no_cache: bool,
}

/// Returns the environment variables that are passed to builds. An empty variable counts as unset.
pub(super) fn forwarded(variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let set = |name: &str| Some((name.to_owned(), variable(name)?));
    let found = FORWARDED.into_iter().filter_map(set);
    found.filter(|(_, value)| !value.is_empty()).collect()
}

/// Builds an image. The build runs twice, because labels must be given in advance and the version is known only after
/// the first build. The second build takes every step from the cache. Only the second build sets the hash label, so
/// that an image of an interrupted setup is not up to date. Returns the duration of each stage.
pub(super) async fn build(
    engine: &Engine,
    image: &ImageBuild<'_>,
    report: Report<'_>,
) -> Result<StageTimes, SetupError> {
    let mut log = BuildLog::default();
    let mut work = async || -> Result<(), String> {
        run(
            engine,
            image.context,
            options(image, &[], image.no_cache),
            &mut log,
            report,
        )
        .await?;
        let version = read_version(engine, image)
            .await
            .map_err(|error| error.to_string())?;
        let labels = [(HASH_LABEL, image.hash), (VERSION_LABEL, &version)];
        run(
            engine,
            image.context,
            options(image, &labels, false),
            &mut log,
            report,
        )
        .await
    };
    let built = with_deadline(BUILD_DEADLINE, work()).await;
    match built {
        Ok(()) => {
            log.stages.end(Instant::now());
            Ok(log.stages)
        }
        Err(reason) => Err(SetupError::Build {
            runtime: image.runtime,
            tag: image.tag.to_owned(),
            reason,
            log: log.tail(),
        }),
    }
}

fn options(image: &ImageBuild<'_>, labels: &[(&str, &str)], no_cache: bool) -> BuildImageOptions {
    let owned = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let mut arguments = owned(&[
        ("BASE", image.base),
        ("SANDBOX_UID", &SANDBOX_UID.to_string()),
        ("SANDBOX_GID", &SANDBOX_GID.to_string()),
    ]);
    arguments.extend(image.forwarded.iter().cloned());
    BuildImageOptionsBuilder::new()
        .t(image.tag)
        .target(image.runtime.name())
        .buildargs(&arguments)
        .labels(&owned(labels))
        .networkmode("host")
        .nocache(no_cache)
        .rm(true)
        .forcerm(true)
        .build()
}

/// Runs a build in the engine, and reports its output.
pub(super) async fn run(
    engine: &Engine,
    context: &[u8],
    options: BuildImageOptions,
    log: &mut BuildLog,
    report: Report<'_>,
) -> Result<(), String> {
    let context = body_full(context.to_vec().into());
    let mut steps = engine.docker.build_image(options, None, Some(context));
    // The deadline of each step is the deadline of the whole build, which the caller enforces.
    while let Some(step) = engine
        .call(BUILD_DEADLINE, async { steps.next().await.transpose() })
        .await
        .map_err(|error| error.to_string())?
    {
        for line in log.append(step.stream.as_deref().unwrap_or_default()) {
            report(SetupEvent::Log(line));
        }
    }
    Ok(())
}

/// Reads the version file of the image, through a container that is never started.
async fn read_version(engine: &Engine, image: &ImageBuild<'_>) -> Result<String, EngineError> {
    let name = format!("isol8-setup-{}", image.runtime);
    // A killed setup may have left a container.
    engine.remove(&name).await?;
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(image.tag.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        ..Default::default()
    };
    let created = engine.docker.create_container(Some(options), body);
    engine.call(CALL_DEADLINE, created).await?;
    let archive = engine.call(CALL_DEADLINE, download(engine, &name)).await;
    engine.remove(&name).await?;
    let version = first_line(&archive?);
    version.ok_or_else(|| EngineError::NoAnswer(format!("{VERSION_FILE} of the image is empty")))
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

/// Returns the first line of the first file of an archive.
fn first_line(archive: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(archive);
    let file = archive.entries().ok()?.next()?.ok()?;
    let mut text = String::new();
    file.take(MAX_VERSION_BYTES)
        .read_to_string(&mut text)
        .ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// The output of a build, split into lines. Keeps the last lines for an error.
#[derive(Debug, Default)]
pub(super) struct BuildLog {
    unfinished: String,
    last: VecDeque<String>,
    stages: StageTimes,
}

/// The end times of a build's stages, relative to its first line. A forced build makes the stages of all images at once.
#[derive(Debug, Default)]
pub(super) struct StageTimes {
    started: Option<Instant>,
    current: Option<String>,
    ended: Vec<(String, Duration)>,
}

impl StageTimes {
    /// Returns the duration of a runtime's stage, including the stages before it that belong to no runtime.
    pub(super) fn duration(&self, runtime: Runtime) -> Option<Duration> {
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

    /// Observes a line of the output. A line such as `Step 3/20 : FROM common AS bash` begins a stage and ends the one
    /// before.
    fn observe(&mut self, line: &str, now: Instant) {
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
        // The second build, with labels, prints all stages again.
        if self.ended.iter().all(|(known, _)| *known != name) {
            self.ended.push((name, now - started));
        }
    }
}

impl BuildLog {
    /// Appends output. Returns the lines that it completes.
    fn append(&mut self, output: &str) -> Vec<String> {
        self.unfinished.push_str(output);
        let mut lines = Vec::new();
        while let Some(end) = self.unfinished.find('\n') {
            let line: String = self.unfinished.drain(..=end).collect();
            let line = without_formatting(&line);
            if !line.is_empty() && !is_noise(&line) {
                lines.push(line);
            }
        }
        for line in &lines {
            self.stages.observe(line, Instant::now());
            if self.last.len() == LOG_TAIL_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line.clone());
        }
        lines
    }

    /// Returns the last lines, which an error repeats.
    pub(super) fn tail(&self) -> String {
        let mut lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.push(self.unfinished.trim_end());
        lines.join("\n")
    }
}

/// Returns a line without colors, which the engine adds to standard error and tools add to their output. If a tool has
/// overwritten the line with carriage returns, only the last text is returned.
fn without_formatting(line: &str) -> String {
    let text = strip_str(line).to_string();
    let last = text.trim_end().rsplit('\r').next().unwrap_or_default();
    last.trim_end().to_owned()
}

/// Returns whether a line is a warning that tools print in every build and that cannot be fixed.
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
    fn output_is_split_into_lines_across_pieces() {
        let mut log = BuildLog::default();
        assert!(log.append("Step 1").is_empty());
        assert_eq!(log.append("/2\n\n ---> a\nSte"), ["Step 1/2", " ---> a"]);
        assert_eq!(log.tail(), "Step 1/2\n ---> a\nSte");
    }

    #[test]
    fn lines_have_no_colors_and_no_warnings_of_every_build() {
        let mut log = BuildLog::default();
        let output = "\x1b[91museradd warning: sandbox's uid 64800 is greater than SYS_UID_MAX 999\n\x1b[0m\
                      \x1b[32mInstalling\x1b[0m x\r\n10%\r20%\r\n\x1b[91mError: no space\n\x1b[0mStep 3\n";
        let lines = ["Installing x", "20%", "Error: no space", "Step 3"];
        assert_eq!(log.append(output), lines);
        assert_eq!(log.tail().trim_end(), lines.join("\n"));
    }

    #[test]
    fn the_time_of_one_build_is_divided_among_the_images_that_it_makes() {
        let (mut stages, start) = (StageTimes::default(), Instant::now());
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
            stages.observe(line, at(seconds));
        }
        stages.end(at(97));
        let took = |runtime| stages.duration(runtime).map(|took| took.as_secs());
        assert_eq!(took(Runtime::Bash), Some(12));
        assert_eq!(took(Runtime::Python), Some(20));
        assert_eq!(took(Runtime::Node), Some(63));
        assert_eq!(took(Runtime::Deno), None);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_kept() {
        let mut log = BuildLog::default();
        for number in 0..1000 {
            log.append(&format!("line {number}\n"));
        }
        assert_eq!(log.last.len(), LOG_TAIL_LINES);
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
    fn a_build_uses_the_hosts_network_and_passes_its_arguments() {
        let forwarded = [("https_proxy".to_owned(), "http://localhost:3128".to_owned())];
        let image = ImageBuild {
            runtime: Runtime::Bash,
            tag: "isol8:bash",
            base: "debian:12",
            hash: "abc",
            context: &[],
            forwarded: &forwarded,
            no_cache: true,
        };
        let options = options(&image, &[(HASH_LABEL, "abc")], image.no_cache);
        assert_eq!(options.networkmode.as_deref(), Some("host"));
        assert_eq!(options.target, "bash");
        assert!(options.nocache);
        assert_eq!(options.labels.unwrap()[HASH_LABEL], "abc");
        let arguments = options.buildargs.unwrap();
        assert_eq!(arguments["SANDBOX_UID"], "64800");
        assert_eq!(arguments["https_proxy"], "http://localhost:3128");
    }
}
