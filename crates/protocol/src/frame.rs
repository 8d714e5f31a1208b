//! The frames, and the constants that both sides agree on.

use isol8_runtimes::Runtime;
use serde::{Deserialize, Serialize};

use crate::tunnel::{TunnelFrame, TunnelId};

/// Version of this protocol. The host refuses a guest of another version.
pub const VERSION: u16 = 6;

/// Largest frame body, in bytes, that a guest accepts. A request's script is sent in one frame, so
/// this bounds the size of `code`.
pub const MAX_HOST_FRAME: usize = 32 * 1024 * 1024;

/// Largest frame body, in bytes, that the host accepts. A guest has no reason to send more than one
/// chunk at a time; a hostile guest cannot make the host store more.
pub const MAX_GUEST_FRAME: usize = 128 * 1024;

/// Largest piece of output, input or file content in one frame, in bytes.
pub const CHUNK_SIZE: usize = 64 * 1024;

/// Bytes that a sender may have in transit on one stream before the receiver grants more with a
/// `Credit` frame. This bounds the memory that one stream can use on either side.
pub const WINDOW: u32 = 256 * 1024;

/// Bytes that are consumed before they are granted again. With a frame of credit for every piece, a peer that sends
/// single bytes and reads nothing could fill the other side's queue of outgoing frames.
pub const GRANT_STEP: u32 = WINDOW / 4;

/// Largest encoded [`RawDirectoryEntry`], in bytes: a name has at most 255.
pub const MAX_ENTRY: usize = 512;

/// User id of user code inside a sandbox, unless the guest is told another one. The id is above Debian's ranges for
/// ordinary users (1000 to 59999) and for services, so that an account of the host is unlikely to have it:
/// <https://www.debian.org/doc/debian-policy/ch-opersys.html#uid-and-gid-classes>.
pub const SANDBOX_UID: u32 = 64_800;

/// Group id that belongs to [`SANDBOX_UID`].
pub const SANDBOX_GID: u32 = 64_800;

/// User and group id of the zygote, the interpreter that others are forked from: [`SANDBOX_UID`] plus one. The id
/// differs from user code's, so that user code can neither signal nor trace the zygote.
pub const ZYGOTE_UID: u32 = 64_801;

/// Id of one run or file transfer on a connection. The host chooses the ids and never uses one twice
/// on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamId(pub u32);

/// A frame from the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostFrame {
    /// First frame of a connection.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
    },
    /// Keep an interpreter booted for the next run, now and after every reset.
    /// Answered by `Done` once the interpreter is ready, or by `Failed`; runs work in either case.
    Prepare {
        /// Stream of the answer.
        id: StreamId,
        /// The runtime, whose interpreter is used.
        runtime: Runtime,
        /// Settings for keeping it booted.
        settings: PrewarmSettings,
    },
    /// Start a run. Answered by `Output` frames and one `Exited`, or by one `Failed`.
    Exec {
        /// The run's stream.
        id: StreamId,
        /// Specification of the run.
        spec: RunSpec,
    },
    /// Bytes for the standard input of a run whose [`RunSpec::stdin`] is [`Stdin::Piped`] (in a
    /// terminal, keyboard input), or content of the file of a `WriteFile`.
    Data {
        /// The run's or transfer's stream.
        id: StreamId,
        /// At most [`CHUNK_SIZE`] bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// End of the standard input or of the file content.
    End {
        /// The run's or transfer's stream.
        id: StreamId,
    },
    /// Signal the processes of a run. [`Signal::Kill`] always ends the run; it also
    /// cancels a file transfer. No effect on a stream that has ended, or on a reset.
    Signal {
        /// The run's stream.
        id: StreamId,
        /// The signal.
        signal: Signal,
    },
    /// Allow the guest to send this many more bytes on a stream.
    Credit {
        /// The run's or transfer's stream.
        id: StreamId,
        /// Bytes granted in addition to earlier grants.
        bytes: u32,
    },
    /// Write a file as the sandbox user, creating parent directories and replacing an existing file. Followed by
    /// `Data` and `End`; answered by `Done` or `Failed`.
    WriteFile {
        /// The transfer's stream.
        id: StreamId,
        /// Absolute, within `/sandbox` or `/tmp`.
        path: String,
        /// Permission bits, for example `0o644`.
        mode: u32,
    },
    /// Read a regular file as the sandbox user. Answered by `Data` frames and `Done`, or by `Failed`.
    ReadFile {
        /// The transfer's stream.
        id: StreamId,
        /// Absolute, within `/sandbox` or `/tmp`.
        path: String,
    },
    /// End every process but the guest and empty every writable directory, so that the next run finds
    /// the sandbox in its initial state. Answered by `Done` or `Failed`; runs in progress end first.
    Reset {
        /// Stream of the answer.
        id: StreamId,
    },
    /// List a directory as the sandbox user. Answered by `Data` frames and `Done`, or by `Failed`. The content is a
    /// sequence of [`RawDirectoryEntry`], each encoded as a frame of at most [`MAX_ENTRY`] bytes.
    ListDirectory {
        /// The transfer's stream.
        id: StreamId,
        /// `/sandbox`, `/tmp`, or absolute and within one of them.
        path: String,
        /// Most entries to return, in no particular order.
        limit: u32,
    },
    /// Change the size of a run's terminal; its foreground processes receive
    /// `SIGWINCH`. No effect on a run without a terminal, or on a run that has ended.
    Resize {
        /// The run's stream.
        id: StreamId,
        /// The new size.
        size: TerminalSize,
    },
    /// An event of a tunnel that the guest opened. The guest ignores frames for a tunnel that has ended.
    Tunnel {
        /// The tunnel.
        id: TunnelId,
        /// The event; never [`TunnelFrame::Open`].
        frame: TunnelFrame,
    },
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawDirectoryEntry {
    /// The name, which need not be UTF-8.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Kind of the entry; a link is not followed.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, including set-id and sticky bits.
    pub mode: u32,
    /// Time of the last change of the content, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// Kinds of directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A pipe, a socket or a device.
    Other,
}

/// A frame from the guest to the host. The host treats every such frame as hostile input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFrame {
    /// First frame of a connection.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
        /// Whether an earlier connection was lost during a run. The guest ended that run, at an unknown point. A
        /// file transfer does not count: an incomplete transfer has changed no file.
        interrupted: bool,
    },
    /// Output of a run.
    Output {
        /// The run's stream.
        id: StreamId,
        /// The stream that the run wrote to.
        stream: OutputStream,
        /// At most [`CHUNK_SIZE`] bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The run has ended and all of its output was sent. Last frame of the stream.
    Exited {
        /// The run's stream.
        id: StreamId,
        /// The result of the run.
        exit: Exit,
    },
    /// Content of the file of a `ReadFile`, or entries of a `ListDirectory`.
    Data {
        /// The transfer's stream.
        id: StreamId,
        /// At most [`CHUNK_SIZE`] bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The request (a file transfer, a reset, an interpreter) is complete. Last frame of the stream.
    Done {
        /// The stream.
        id: StreamId,
    },
    /// The request failed. Last frame of the stream.
    Failed {
        /// The stream.
        id: StreamId,
        /// The reason.
        failure: Failure,
    },
    /// Allow the host to send this many more bytes on a stream.
    Credit {
        /// The run's or transfer's stream.
        id: StreamId,
        /// Bytes granted in addition to earlier grants.
        bytes: u32,
    },
    /// An event of a tunnel.
    Tunnel {
        /// The tunnel.
        id: TunnelId,
        /// The event.
        frame: TunnelFrame,
    },
}

/// Specification of a run: the program and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The program.
    pub program: Program,
    /// Environment variables of this run, in addition to the guest's base environment (`PATH`, `HOME`, `USER`,
    /// `LANG`, …), which they override.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute. If `None`, a cell keeps the current directory of the interpreter, and any other
    /// program starts in `/sandbox`.
    pub cwd: Option<String>,
    /// Standard input.
    pub stdin: Stdin,
    /// Milliseconds after which the run is ended; `None` for no limit.
    pub timeout_ms: Option<u64>,
    /// Most bytes of standard output, and of standard error, that are sent to the host. Output beyond the limit
    /// is counted and dropped, without slowing the program. `None` for no limit.
    pub output_limit: Option<u64>,
    /// Whether output is sent at once. If false, output of the first 3 ms may be sent together with the end of the
    /// run, if the run ends within that time: this wakes the host once instead of twice.
    pub eager: bool,
    /// Whether processes that the run left behind end with the run. If false, they live on (a server
    /// that a session started), and their output after the end of the run is dropped. A run
    /// that is killed or exceeds its timeout ends every process of the sandbox in either case: the guest cannot
    /// reliably tell the processes of the run from others.
    pub sweep: bool,
    /// Size of a terminal that serves as the standard streams, and as the controlling terminal of the program's
    /// session. All output to the terminal is sent as [`OutputStream::Stdout`], including the echo of the input.
    /// The end of the input is typed as Ctrl-D. Not for a cell.
    pub terminal: Option<TerminalSize>,
    /// Whether the guest accepts connections for the run, as an HTTP proxy, on a loopback port
    /// that the usual variables (`HTTP_PROXY`, …) name. Variables in [`Self::env`] take precedence.
    pub network: bool,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters per line.
    pub columns: u16,
    /// Number of lines.
    pub rows: u16,
}

/// Program of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A command, run as a new process.
    Command {
        /// Program (looked up in `PATH` if it has no slash) and arguments; never empty.
        argv: Vec<String>,
    },
    /// A script file, run by an interpreter that behaves as if started on it.
    Script {
        /// The runtime, whose interpreter is used.
        runtime: Runtime,
        /// Path that the script is written to before the run; absolute, within `/sandbox` or `/tmp`.
        path: String,
        /// The source.
        #[serde(with = "serde_bytes")]
        source: Vec<u8>,
    },
    /// Code for the sandbox's one resident interpreter, whose state outlives the run.
    Cell {
        /// The runtime, whose interpreter is used.
        runtime: Runtime,
        /// The source.
        #[serde(with = "serde_bytes")]
        source: Vec<u8>,
    },
}

/// Settings for the interpreter that a guest keeps booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrewarmSettings {
    /// Modules that the interpreter imports ahead of a run; Python only.
    pub preload: Vec<String>,
    /// Runs after which the zygote, the interpreter that others are forked from, is restarted. With 1 and no
    /// preloaded modules there is no zygote: an interpreter is booted for each run.
    pub max_runs: u32,
    /// Age in milliseconds after which the zygote is restarted.
    pub max_age_ms: u64,
}

impl Default for PrewarmSettings {
    /// Returns settings without preloaded modules. Interpreters that are forked from one zygote share its hash seed
    /// and memory layout, so code that learns them in one run knows them in the next. Therefore a zygote
    /// does not live long. A new one costs about 20 ms of processor time, which is negligible per thousand runs.
    fn default() -> Self {
        Self {
            preload: Vec::new(),
            max_runs: 1000,
            max_age_ms: 600_000,
        }
    }
}

/// Standard input of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// Empty input.
    Empty,
    /// The complete input, known in advance.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Input that is sent in `Data` frames during the run, up to an `End`.
    Piped,
}

/// An output stream of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Signals that a client may send to its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// `SIGINT`.
    Interrupt,
    /// `SIGTERM`.
    Terminate,
    /// `SIGKILL` to everything that belongs to the run; the run ends.
    Kill,
}

/// Result of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status of the program.
    pub status: ExitStatus,
    /// Whether the guest ended the run because of its timeout.
    pub timed_out: bool,
    /// Whether the resident interpreter of this sandbox ended with this run, so that its state is lost.
    pub state_lost: bool,
    /// Bytes that the run wrote to standard output, including dropped bytes.
    pub stdout_bytes: u64,
    /// Bytes that the run wrote to standard error, including dropped bytes.
    pub stderr_bytes: u64,
    /// Microseconds from the start of the program to its end.
    pub wall_us: u64,
    /// Microseconds of processor time, if known, that the run's process and the children that it waited for used
    /// during the run. Children are counted in ticks of 10 ms.
    pub cpu_us: Option<u64>,
    /// Environment variables of the run that had no effect: bit n is set if an interpreter reads variable n only at
    /// its start, and the resident interpreter was started without it. Variables beyond the first 64 are not
    /// reported.
    pub late_variables: u64,
    /// The first few host names that programs asked the sandbox's name server for, which resolves none.
    pub asked_names: Vec<String>,
}

/// Exit status of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// The program exited with this code.
    Code(i32),
    /// This signal ended the program.
    Signal(i32),
}

impl ExitStatus {
    /// Returns the code that a shell would report: 128 plus the signal's number for a signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// The reason why a request to the guest failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The machine-readable kind.
    pub kind: FailureKind,
    /// The text for display: lower case, without a final period.
    pub message: String,
}

/// Kinds of failure that the host tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The file, directory or program does not exist.
    NotFound,
    /// The path leads outside the permitted directories, or the file is not of the requested kind.
    Refused,
    /// The sandbox is full.
    NoSpace,
    /// A limit of the sandbox (processes, memory, open files) is reached; the sandbox remains usable.
    Exhausted,
    /// An internal error of the guest: a bug, or a sandbox in a bad state.
    Internal,
}
