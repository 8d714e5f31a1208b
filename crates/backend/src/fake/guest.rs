//! The fake guest: the guest's half of the protocol, with programs as tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isol8_protocol::{
    CHUNK_SIZE, Decoder, EntryKind, Exit, ExitStatus, Failure, FailureKind, GuestFrame, HostFrame,
    MAX_ENTRY, MAX_GUEST_FRAME, MAX_HOST_FRAME, OutputStream, Program, RawDirectoryEntry, RunSpec,
    Signal, Stdin, StreamId, TerminalSize, TunnelFrame, TunnelId, VERSION, WINDOW, encode,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::program::{ProgramContext, SandboxContents, Step, statements, step};
use super::{FakeState, lock};

/// Serves one connection until either side closes it. Aborting this future ends the whole sandbox.
pub(super) async fn serve(stream: DuplexStream, state: Arc<FakeState>, oom_kills: Arc<AtomicU64>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (out, mut frames) = mpsc::unbounded_channel();
    let mut guest = Guest {
        out,
        state,
        oom_kills,
        contents: Arc::default(),
        tasks: HashMap::new(),
        writes: HashMap::new(),
        tunnels: Arc::default(),
    };
    guest.send(GuestFrame::Hello {
        version: VERSION,
        interrupted: false,
    });

    let mut decoder = Decoder::new(MAX_HOST_FRAME);
    let mut piece = vec![0; CHUNK_SIZE];
    loop {
        tokio::select! {
            Some(frame) = frames.recv() => {
                // The statement `die` queues `None` to end the guest.
                let Some(frame) = frame else { return };
                if let GuestFrame::Exited { id, .. } | GuestFrame::Done { id } = &frame {
                    guest.tasks.remove(id);
                }
                let mut bytes = Vec::new();
                if encode(&frame, MAX_GUEST_FRAME, &mut bytes).is_err()
                    || writer.write_all(&bytes).await.is_err()
                {
                    return;
                }
            }
            read = reader.read(&mut piece) => match read {
                Ok(size) if size > 0 => decoder.feed(&piece[..size]),
                _ => return,
            },
        }
        while let Ok(Some(frame)) = decoder.next() {
            guest.handle(frame);
        }
    }
}

/// A program in progress; dropping the task ends it.
struct Task {
    program: JoinHandle<()>,
    credit: Arc<Semaphore>,
    cell: bool,
    terminal: Option<Arc<Mutex<TerminalSize>>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.program.abort();
    }
}

struct Guest {
    /// Frames to send; `None` ends the guest.
    out: mpsc::UnboundedSender<Option<GuestFrame>>,
    state: Arc<FakeState>,
    oom_kills: Arc<AtomicU64>,
    contents: Arc<Mutex<SandboxContents>>,
    tasks: HashMap<StreamId, Task>,
    writes: HashMap<StreamId, (String, Vec<u8>)>,
    tunnels: Arc<Mutex<OpenTunnels>>,
}

/// Network connections of programs, each with the program's receiver of frames from the host.
#[derive(Default)]
struct OpenTunnels {
    last: u64,
    waiting: HashMap<TunnelId, mpsc::UnboundedSender<TunnelFrame>>,
}

impl OpenTunnels {
    fn open(&mut self) -> (TunnelId, mpsc::UnboundedReceiver<TunnelFrame>) {
        self.last += 1;
        let id = TunnelId(self.last);
        let (sender, frames) = mpsc::unbounded_channel();
        self.waiting.insert(id, sender);
        (id, frames)
    }

    fn take(&mut self, id: TunnelId, frame: TunnelFrame) {
        if let Some(waiting) = self.waiting.get(&id) {
            let _ = waiting.send(frame);
        }
    }
}

impl Guest {
    fn send(&self, frame: GuestFrame) {
        // The receiver lives as long as the guest.
        let _ = self.out.send(Some(frame));
    }

    fn fail(&self, id: StreamId, kind: FailureKind, message: &str) {
        let message = message.to_owned();
        let failure = Failure { kind, message };
        self.send(GuestFrame::Failed { id, failure });
    }

    fn handle(&mut self, frame: HostFrame) {
        match frame {
            HostFrame::Hello { .. } => {}
            HostFrame::Prepare { id, .. } => {
                if !lock(&self.state.script).hang_prepare {
                    self.send(GuestFrame::Done { id });
                }
            }
            HostFrame::Exec { id, spec } => self.exec(id, spec),
            HostFrame::Credit { id, bytes } => {
                if let Some(task) = self.tasks.get(&id) {
                    task.credit.add_permits(bytes as usize);
                }
            }
            HostFrame::Signal { id, signal } => self.signal(id, signal),
            HostFrame::Resize { id, size } => self.resize(id, size),
            HostFrame::WriteFile { id, path, .. } => self.open(id, path),
            HostFrame::Data { id, bytes } => self.data(id, &bytes),
            HostFrame::End { id } => {
                if let Some((path, content)) = self.writes.remove(&id) {
                    lock(&self.contents).files.insert(path, content);
                    self.send(GuestFrame::Done { id });
                }
            }
            HostFrame::ReadFile { id, path } => self.read(id, &path),
            HostFrame::ListDirectory { id, path, limit } => self.list(id, &path, limit),
            HostFrame::Reset { id } => self.reset(id),
            HostFrame::Tunnel { id, frame } => lock(&self.tunnels).take(id, frame),
        }
    }

    fn open(&mut self, id: StreamId, path: String) {
        if path.contains("/refused") {
            self.fail(id, FailureKind::Refused, &format!("{path} is refused"));
        } else if path.contains("/full") {
            self.fail(id, FailureKind::NoSpace, &format!("no space for {path}"));
        } else {
            self.writes.insert(id, (path, Vec::new()));
        }
    }

    fn data(&mut self, id: StreamId, bytes: &[u8]) {
        if let Some((_, content)) = self.writes.get_mut(&id) {
            content.extend_from_slice(bytes);
            let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            self.send(GuestFrame::Credit { id, bytes });
        }
    }

    fn read(&mut self, id: StreamId, path: &str) {
        if path.contains("/refused") {
            return self.fail(id, FailureKind::Refused, &format!("{path} is refused"));
        }
        let Some(content) = lock(&self.contents).files.get(path).cloned() else {
            return self.fail(id, FailureKind::NotFound, &format!("{path} is not there"));
        };
        self.send_content(id, content);
    }

    /// Lists the files directly in a directory; the fake has no subdirectories.
    fn list(&mut self, id: StreamId, path: &str, limit: u32) {
        let mut content = Vec::new();
        let contents = lock(&self.contents);
        let names = contents.files.iter().filter_map(|(file, bytes)| {
            let name = file.strip_prefix(path)?.strip_prefix('/')?;
            (!name.contains('/')).then_some((name, bytes.len()))
        });
        for (name, size) in names.take(limit as usize) {
            let entry = RawDirectoryEntry {
                name: name.as_bytes().to_vec(),
                kind: EntryKind::File,
                size: size as u64,
                mode: 0o644,
                modified_ms: 0,
            };
            // File names in tests are short enough for an entry.
            let _ = encode(&entry, MAX_ENTRY, &mut content);
        }
        drop(contents);
        self.send_content(id, content);
    }

    fn send_content(&mut self, id: StreamId, content: Vec<u8>) {
        let out = self.out.clone();
        let credit = Arc::new(Semaphore::new(WINDOW as usize));
        let spent = Arc::clone(&credit);
        let sending = async move {
            for chunk in content.chunks(CHUNK_SIZE) {
                spend(&spent, chunk.len()).await;
                let bytes = chunk.to_vec();
                let _ = out.send(Some(GuestFrame::Data { id, bytes }));
            }
            let _ = out.send(Some(GuestFrame::Done { id }));
        };
        let task = Task {
            program: tokio::spawn(sending),
            credit,
            cell: false,
            terminal: None,
        };
        self.tasks.insert(id, task);
    }

    fn signal(&mut self, id: StreamId, signal: Signal) {
        self.writes.remove(&id);
        if signal != Signal::Kill {
            return;
        }
        if let Some(task) = self.tasks.remove(&id) {
            lock(&self.contents).variables.clear();
            let exit = ended(ExitStatus::Signal(9), task.cell);
            self.send(GuestFrame::Exited { id, exit });
        }
    }

    fn resize(&self, id: StreamId, size: TerminalSize) {
        let task = self.tasks.get(&id);
        if let Some(terminal) = task.and_then(|task| task.terminal.as_ref()) {
            *lock(terminal) = size;
        }
    }

    fn reset(&mut self, id: StreamId) {
        lock(&self.state.counters).resets += 1;
        let (fail, hang, time) = {
            let script = lock(&self.state.script);
            (script.fail_reset, script.hang_reset, script.reset_takes)
        };
        if hang {
            return;
        }
        if fail {
            return self.fail(id, FailureKind::Internal, "the script says so");
        }
        for (id, task) in std::mem::take(&mut self.tasks) {
            let exit = ended(ExitStatus::Signal(9), task.cell);
            self.send(GuestFrame::Exited { id, exit });
        }
        self.writes.clear();
        *lock(&self.contents) = SandboxContents::default();
        let out = self.out.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let _ = out.send(Some(GuestFrame::Done { id }));
        });
    }

    fn exec(&mut self, id: StreamId, spec: RunSpec) {
        lock(&self.state.counters).runs += 1;
        let cell = matches!(spec.program, Program::Cell { .. });
        let Some(source) = self.source(&spec.program) else {
            return self.fail(id, FailureKind::NotFound, "no such program");
        };
        let credit = Arc::new(Semaphore::new(WINDOW as usize));
        let terminal = spec.terminal.map(|size| Arc::new(Mutex::new(size)));
        let running = Running {
            id,
            context: ProgramContext {
                env: spec.env.into_iter().collect(),
                cwd: spec.cwd.unwrap_or_else(|| "/sandbox".to_owned()),
                stdin: match spec.stdin {
                    Stdin::Bytes(bytes) => bytes,
                    Stdin::Empty | Stdin::Piped => Vec::new(),
                },
                terminal: terminal.clone(),
                network: spec.network,
            },
            // Only cells share the variables of the sandbox.
            contents: Arc::clone(&self.contents),
            own: (!cell).then(SandboxContents::default),
            out: self.out.clone(),
            credit: Arc::clone(&credit),
            limit: spec.output_limit.unwrap_or(u64::MAX),
            written: [0; 2],
            oom_kills: Arc::clone(&self.oom_kills),
            tunnels: Arc::clone(&self.tunnels),
        };
        let ignored = lock(&self.state.script).ignore_timeouts;
        let timeout = spec.timeout_ms.filter(|_| !ignored);
        let timeout = timeout.map(Duration::from_millis);
        let program = tokio::spawn(running.run(statements(&source), timeout, cell));
        let task = Task {
            program,
            credit,
            cell,
            terminal,
        };
        self.tasks.insert(id, task);
    }

    fn source(&self, program: &Program) -> Option<Vec<u8>> {
        match program {
            Program::Script { path, source, .. } => {
                let mut contents = lock(&self.contents);
                contents.files.insert(path.clone(), source.clone());
                Some(source.clone())
            }
            Program::Cell { source, .. } => Some(source.clone()),
            Program::Command { argv } => match argv.as_slice() {
                [shell, dash_c, command] if shell == "bash" && dash_c == "-c" => {
                    Some(command.clone().into_bytes())
                }
                [.., path] => lock(&self.contents).files.get(path).cloned(),
                [] => None,
            },
        }
    }
}

/// A program and its resources.
struct Running {
    id: StreamId,
    context: ProgramContext,
    contents: Arc<Mutex<SandboxContents>>,
    /// Variables of a program that is not a cell.
    own: Option<SandboxContents>,
    out: mpsc::UnboundedSender<Option<GuestFrame>>,
    credit: Arc<Semaphore>,
    limit: u64,
    written: [u64; 2],
    oom_kills: Arc<AtomicU64>,
    tunnels: Arc<Mutex<OpenTunnels>>,
}

impl Running {
    async fn run(mut self, statements: Vec<String>, timeout: Option<Duration>, cell: bool) {
        let start = Instant::now();
        let limit = timeout.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        let status = tokio::time::timeout(limit, self.all(&statements)).await;
        let timed_out = status.is_err();
        let status = status.unwrap_or(ExitStatus::Signal(9));
        let killed = matches!(status, ExitStatus::Signal(_));
        if killed {
            lock(&self.contents).variables.clear();
        }
        let exit = Exit {
            timed_out,
            stdout_bytes: self.written[0],
            stderr_bytes: self.written[1],
            wall_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
            ..ended(status, killed && cell)
        };
        let id = self.id;
        let _ = self.out.send(Some(GuestFrame::Exited { id, exit }));
    }

    async fn all(&mut self, statements: &[String]) -> ExitStatus {
        for statement in statements {
            let done = self.step(statement);
            match done {
                Step::Write(stream, bytes) => self.write(stream, bytes).await,
                Step::Connect(text) => {
                    let answer = self.connect(text).await;
                    self.write(OutputStream::Stdout, answer).await;
                }
                Step::Wait(Some(time)) => tokio::time::sleep(time).await,
                Step::Wait(None) => std::future::pending().await,
                Step::End(status) => return status,
                Step::OutOfMemory => {
                    self.oom_kills.fetch_add(1, Ordering::SeqCst);
                    return ExitStatus::Signal(9);
                }
                step @ (Step::Die | Step::Starve) => {
                    if matches!(step, Step::Starve) {
                        self.oom_kills.fetch_add(1, Ordering::SeqCst);
                    }
                    let _ = self.out.send(None);
                    std::future::pending().await
                }
            }
        }
        ExitStatus::Code(0)
    }

    /// Sends bytes through a tunnel, and returns all bytes that arrive until the host closes the tunnel.
    async fn connect(&self, bytes: Vec<u8>) -> Vec<u8> {
        let (id, mut frames) = lock(&self.tunnels).open();
        for frame in [
            TunnelFrame::Open { run: self.id },
            TunnelFrame::Data { bytes },
            TunnelFrame::End,
        ] {
            let _ = self.out.send(Some(GuestFrame::Tunnel { id, frame }));
        }
        let mut answer = Vec::new();
        while let Some(frame) = frames.recv().await
            && frame != TunnelFrame::Close
        {
            if let TunnelFrame::Data { bytes } = frame {
                answer.extend(bytes);
            }
        }
        answer
    }

    /// Executes one statement. All programs share the files of the sandbox; only cells share its variables.
    fn step(&mut self, statement: &str) -> Step {
        let mut shared = lock(&self.contents);
        let Some(own) = &mut self.own else {
            return step(statement, &self.context, &mut shared);
        };
        std::mem::swap(&mut own.variables, &mut shared.variables);
        let done = step(statement, &self.context, &mut shared);
        std::mem::swap(&mut own.variables, &mut shared.variables);
        done
    }

    async fn write(&mut self, stream: OutputStream, bytes: Vec<u8>) {
        let written = match stream {
            OutputStream::Stdout => &mut self.written[0],
            OutputStream::Stderr => &mut self.written[1],
        };
        let room = self.limit.saturating_sub(*written);
        *written += bytes.len() as u64;
        let kept = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        for chunk in bytes[..kept].chunks(CHUNK_SIZE) {
            spend(&self.credit, chunk.len()).await;
            let _ = self.out.send(Some(GuestFrame::Output {
                id: self.id,
                stream,
                bytes: chunk.to_vec(),
            }));
        }
    }
}

async fn spend(credit: &Semaphore, bytes: usize) {
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    if let Ok(permit) = credit.acquire_many(permits).await {
        permit.forget();
    }
}

fn ended(status: ExitStatus, state_lost: bool) -> Exit {
    Exit {
        status,
        timed_out: false,
        state_lost,
        stdout_bytes: 0,
        stderr_bytes: 0,
        wall_us: 0,
        cpu_us: None,
        late_variables: 0,
        asked_names: Vec::new(),
    }
}
