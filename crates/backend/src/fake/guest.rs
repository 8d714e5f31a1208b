//! The guest's half of the protocol, with programs as tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isol8_protocol::{
    CHUNK_SIZE, Decoder, Entry, EntryKind, Exit, ExitStatus, Failure, FailureKind, GuestFrame,
    HostFrame, MAX_ENTRY, MAX_GUEST_FRAME, MAX_HOST_FRAME, OutputStream, Program, RunSpec, Signal,
    Stdin, StreamId, TerminalSize, TunnelFrame, TunnelId, VERSION, WINDOW, encode,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::program::{Memory, Step, Surroundings, statements, step};
use super::{World, lock};

/// Serves one connection until either side ends it. Aborting it ends everything of the sandbox.
pub(super) async fn serve(stream: DuplexStream, world: Arc<World>, oom_kills: Arc<AtomicU64>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (out, mut frames) = mpsc::unbounded_channel();
    let mut guest = Guest {
        out,
        world,
        oom_kills,
        memory: Arc::default(),
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
                // The guest's way to die from within: what stands for `die`.
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

/// A program under way; dropping it ends it.
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
    /// `None` asks the guest to die.
    out: mpsc::UnboundedSender<Option<GuestFrame>>,
    world: Arc<World>,
    oom_kills: Arc<AtomicU64>,
    memory: Arc<Mutex<Memory>>,
    tasks: HashMap<StreamId, Task>,
    writes: HashMap<StreamId, (String, Vec<u8>)>,
    tunnels: Arc<Mutex<Tunnels>>,
}

/// Connections of programs, and who waits for what the host says.
#[derive(Default)]
struct Tunnels {
    last: u64,
    waiting: HashMap<TunnelId, mpsc::UnboundedSender<TunnelFrame>>,
}

impl Tunnels {
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
                if !lock(&self.world.script).hang_prepare {
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
                    lock(&self.memory).files.insert(path, content);
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
        let Some(content) = lock(&self.memory).files.get(path).cloned() else {
            return self.fail(id, FailureKind::NotFound, &format!("{path} is not there"));
        };
        self.give(id, content);
    }

    /// Only files there are, and only those directly in the directory.
    fn list(&mut self, id: StreamId, path: &str, limit: u32) {
        let mut content = Vec::new();
        let memory = lock(&self.memory);
        let names = memory.files.iter().filter_map(|(file, bytes)| {
            let name = file.strip_prefix(path)?.strip_prefix('/')?;
            (!name.contains('/')).then_some((name, bytes.len()))
        });
        for (name, size) in names.take(limit as usize) {
            let entry = Entry {
                name: name.as_bytes().to_vec(),
                kind: EntryKind::File,
                size: size as u64,
                mode: 0o644,
                modified_ms: 0,
            };
            // Names of tests are short.
            let _ = encode(&entry, MAX_ENTRY, &mut content);
        }
        drop(memory);
        self.give(id, content);
    }

    fn give(&mut self, id: StreamId, content: Vec<u8>) {
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
            lock(&self.memory).variables.clear();
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
        lock(&self.world.counters).resets += 1;
        let (fail, hang, time) = {
            let script = lock(&self.world.script);
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
        *lock(&self.memory) = Memory::default();
        let out = self.out.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let _ = out.send(Some(GuestFrame::Done { id }));
        });
    }

    fn exec(&mut self, id: StreamId, spec: RunSpec) {
        lock(&self.world.counters).runs += 1;
        let cell = matches!(spec.program, Program::Cell { .. });
        let Some(source) = self.source(&spec.program) else {
            return self.fail(id, FailureKind::NotFound, "no such program");
        };
        let credit = Arc::new(Semaphore::new(WINDOW as usize));
        let terminal = spec.terminal.map(|size| Arc::new(Mutex::new(size)));
        let running = Running {
            id,
            around: Surroundings {
                env: spec.env.into_iter().collect(),
                cwd: spec.cwd.unwrap_or_else(|| "/sandbox".to_owned()),
                stdin: match spec.stdin {
                    Stdin::Bytes(bytes) => bytes,
                    Stdin::Empty | Stdin::Piped => Vec::new(),
                },
                terminal: terminal.clone(),
                network: spec.network,
            },
            // Only a cell's variables are the sandbox's.
            memory: Arc::clone(&self.memory),
            own: (!cell).then(Memory::default),
            out: self.out.clone(),
            credit: Arc::clone(&credit),
            limit: spec.output_limit.unwrap_or(u64::MAX),
            written: [0; 2],
            oom_kills: Arc::clone(&self.oom_kills),
            tunnels: Arc::clone(&self.tunnels),
        };
        let ignored = lock(&self.world.script).ignore_timeouts;
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
                let mut memory = lock(&self.memory);
                memory.files.insert(path.clone(), source.clone());
                Some(source.clone())
            }
            Program::Cell { source, .. } => Some(source.clone()),
            Program::Command { argv } => match argv.as_slice() {
                [shell, dash_c, command] if shell == "bash" && dash_c == "-c" => {
                    Some(command.clone().into_bytes())
                }
                [.., path] => lock(&self.memory).files.get(path).cloned(),
                [] => None,
            },
        }
    }
}

/// A program and everything that its run needs.
struct Running {
    id: StreamId,
    around: Surroundings,
    memory: Arc<Mutex<Memory>>,
    /// Variables of a program that is no cell.
    own: Option<Memory>,
    out: mpsc::UnboundedSender<Option<GuestFrame>>,
    credit: Arc<Semaphore>,
    limit: u64,
    written: [u64; 2],
    oom_kills: Arc<AtomicU64>,
    tunnels: Arc<Mutex<Tunnels>>,
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
            lock(&self.memory).variables.clear();
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

    /// Sends a text, and gives back what comes until the host has closed the connection.
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

    /// Files are the sandbox's; variables are, for a cell.
    fn step(&mut self, statement: &str) -> Step {
        let mut shared = lock(&self.memory);
        let Some(own) = &mut self.own else {
            return step(statement, &self.around, &mut shared);
        };
        std::mem::swap(&mut own.variables, &mut shared.variables);
        let done = step(statement, &self.around, &mut shared);
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
