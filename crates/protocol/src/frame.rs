//! The frames, and the constants that both sides agree on.

use serde::{Deserialize, Serialize};

use crate::tunnel::{TunnelFrame, TunnelId};

/// Version of this protocol. A guest of another version is not spoken to.
pub const VERSION: u16 = 6;

/// Largest frame body, in bytes, that a guest reads. A request's script travels in one frame, so
/// this bounds the size of `code`.
pub const MAX_HOST_FRAME: usize = 32 * 1024 * 1024;

/// Largest frame body, in bytes, that the host reads. A guest has no reason to send more than one
/// chunk at a time; a hostile one cannot make the host store more.
pub const MAX_GUEST_FRAME: usize = 128 * 1024;

/// Largest piece of output, input or file content in one frame, in bytes.
pub const CHUNK_SIZE: usize = 64 * 1024;

/// Bytes that a sender may have under way on one stream before the receiver grants more with a `Credit` frame. The
/// window bounds what one stream can hold in the memory of either side.
pub const WINDOW: u32 = 256 * 1024;

/// Bytes that are taken before they are granted anew. A frame of credit for every piece would let a sender of
/// single bytes, which reads nothing, fill the other side's queue to it.
pub const GRANT_STEP: u32 = WINDOW / 4;

/// Largest encoded [`Entry`], in bytes: a name has at most 255.
pub const MAX_ENTRY: usize = 512;

/// User id that user code runs under inside a sandbox whose guest is told no other one. Above Debian's range for
/// people (1000 to 59999) and for services, so that no account of the host is likely to have it:
/// <https://www.debian.org/doc/debian-policy/ch-opersys.html#uid-and-gid-classes>.
pub const SANDBOX_UID: u32 = 64_800;

/// Group id of [`SANDBOX_UID`].
pub const SANDBOX_GID: u32 = 64_800;

/// User and group id of the interpreter that others are forked from: one above user code's. Not user code's, so
/// that user code can neither signal nor trace it.
pub const ZYGOTE_UID: u32 = 64_801;

/// Names one run or file transfer on a connection. The host chooses it and never uses one twice
/// on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamId(pub u32);

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostFrame {
    /// First frame of a connection.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
    },
    /// Keep an interpreter booted for the run that will need it, now and after every reset.
    /// Answered by `Done` once one waits, or by `Failed`; runs work in either case.
    Prepare {
        /// Stream of the answer.
        id: StreamId,
        /// The interpreter to keep.
        kernel: KernelKind,
        /// How it is kept.
        settings: KernelSettings,
    },
    /// Start a run. Answered by `Output` frames and one `Exited`, or by one `Failed`.
    Exec {
        /// The run's stream.
        id: StreamId,
        /// The program to run.
        spec: RunSpec,
    },
    /// Bytes for the standard input of a run whose [`RunSpec::stdin`] is [`Stdin::Piped`] (with a
    /// terminal they are what is typed there), or
    /// content of a file that a `WriteFile` opened.
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
    /// Signal the processes of a run. [`Signal::Kill`] ends the run whatever it does; it also
    /// gives up a file transfer. For a stream that has ended, or a reset, it does nothing.
    Signal {
        /// The run's stream.
        id: StreamId,
        /// The signal to send.
        signal: Signal,
    },
    /// Allow the guest to send this many bytes more on a stream.
    Credit {
        /// The run's or transfer's stream.
        id: StreamId,
        /// Bytes granted beside those granted before.
        bytes: u32,
    },
    /// Write a file as the sandbox user, parents created, an existing file replaced. Followed by
    /// `Data` and `End`; answered by `Done` or `Failed`.
    WriteFile {
        /// The transfer's stream.
        id: StreamId,
        /// Absolute, within `/sandbox` or `/tmp`.
        path: String,
        /// Permission bits, for example `0o644`.
        mode: u32,
    },
    /// Read a regular file as the sandbox user. Answered by `Data` frames and `Done`, or `Failed`.
    ReadFile {
        /// The transfer's stream.
        id: StreamId,
        /// Absolute, within `/sandbox` or `/tmp`.
        path: String,
    },
    /// End every process but the guest and empty every writable place, so that the next run finds
    /// a sandbox as new. Answered by `Done` or `Failed`; runs under way end first.
    Reset {
        /// Stream of the answer.
        id: StreamId,
    },
    /// List a directory as the sandbox user. Answered by `Data` frames, whose content is one
    /// [`Entry`] after the other, each encoded as a frame of at most [`MAX_ENTRY`] bytes, and `Done`;
    /// or `Failed`.
    ListDirectory {
        /// The transfer's stream.
        id: StreamId,
        /// `/sandbox`, `/tmp`, or absolute and within one of them.
        path: String,
        /// Entries at most, in no particular order.
        limit: u32,
    },
    /// Change the size of a run's terminal, which its foreground processes are told of by
    /// `SIGWINCH`. For a run without one, or that has ended, it does nothing.
    Resize {
        /// The run's stream.
        id: StreamId,
        /// The size from now on.
        size: TerminalSize,
    },
    /// A message about a tunnel that the guest opened. It is ignored if the tunnel has ended there.
    Tunnel {
        /// The tunnel.
        id: TunnelId,
        /// The message; never [`TunnelFrame::Open`].
        frame: TunnelFrame,
    },
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name, which need not be UTF-8.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The kind of entry; a link is not followed.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// When its content changed last, in milliseconds since 1970.
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

/// From the guest to the host. Every one of these is hostile input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFrame {
    /// First frame of a connection.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
        /// Set if a connection before this one was lost in the middle of a run, which was ended: the effects of that
        /// run are unknown. A file transfer does not count: an incomplete transfer changed no file.
        interrupted: bool,
    },
    /// Output of a run.
    Output {
        /// The run's stream.
        id: StreamId,
        /// The stream that was written to.
        stream: OutputStream,
        /// At most [`CHUNK_SIZE`] bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The run has ended and all of its output was sent. Last frame of the stream.
    Exited {
        /// The run's stream.
        id: StreamId,
        /// How it ended.
        exit: Exit,
    },
    /// Content of the file that a `ReadFile` asked for.
    Data {
        /// The transfer's stream.
        id: StreamId,
        /// At most [`CHUNK_SIZE`] bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// A file transfer or a reset is complete. Last frame of the stream.
    Done {
        /// The stream.
        id: StreamId,
    },
    /// The request failed. Last frame of the stream.
    Failed {
        /// The stream.
        id: StreamId,
        /// Why.
        failure: Failure,
    },
    /// Allow the host to send this many bytes more on a stream.
    Credit {
        /// The run's or transfer's stream.
        id: StreamId,
        /// Bytes granted beside those granted before.
        bytes: u32,
    },
    /// Something about a tunnel.
    Tunnel {
        /// The tunnel.
        id: TunnelId,
        /// The message.
        frame: TunnelFrame,
    },
}

/// The program to run, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The program.
    pub program: Program,
    /// Environment of this run only, over the guest's base environment (`PATH`, `HOME`, `USER`,
    /// `LANG`, …).
    pub env: Vec<(String, String)>,
    /// Working directory, absolute. A cell keeps its own where this is `None`; any other program
    /// starts in `/sandbox`.
    pub cwd: Option<String>,
    /// Standard input.
    pub stdin: Stdin,
    /// Milliseconds after which the run is ended; `None` for no bound.
    pub timeout_ms: Option<u64>,
    /// Bytes of standard output, and as many of standard error, that are sent to the host. Output beyond is counted and
    /// dropped, without slowing the program. `None` for no bound.
    pub output_limit: Option<u64>,
    /// Whether output is wanted as it comes. If not, output of a run's first 3 ms may come with its end, if the end
    /// comes as soon: one awakening for both.
    pub eager: bool,
    /// Whether processes that the run left behind end with it. If not, they live on (a server that a session started),
    /// and their output after the end of the run is dropped. A run that is killed or out of time ends every process of
    /// the sandbox in either case: its processes cannot be told for certain from those of others.
    pub sweep: bool,
    /// A terminal of this size as the standard streams, and as what controls the program's session.
    /// Everything that is written to it comes as [`OutputStream::Stdout`], its echo of the input
    /// too; the end of the input is typed as Ctrl-D is. Not for a cell.
    pub terminal: Option<TerminalSize>,
    /// Whether the guest takes connections for the run, as a proxy for HTTP, on a port of loopback
    /// that the usual variables (`HTTP_PROXY`, …) tell. Those in [`Self::env`] go first.
    pub network: bool,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// The program of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A process of its own.
    Command {
        /// Program (looked up in `PATH` if it has no slash) and arguments; never empty.
        argv: Vec<String>,
    },
    /// A script file, run by an interpreter that behaves as if started on it.
    Script {
        /// The interpreter to use.
        kernel: KernelKind,
        /// The path to which the script is written before the run; absolute, within `/sandbox` or `/tmp`.
        path: String,
        /// The source.
        #[serde(with = "serde_bytes")]
        source: Vec<u8>,
    },
    /// Code for the sandbox's one resident interpreter, whose state outlives the run.
    Cell {
        /// The interpreter to use.
        kernel: KernelKind,
        /// The source.
        #[serde(with = "serde_bytes")]
        source: Vec<u8>,
    },
}

/// The interpreters that the guest can keep booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KernelKind {
    /// CPython 3.
    Python,
    /// Node.js.
    Node,
    /// Bun.
    Bun,
    /// Deno.
    Deno,
    /// GNU bash.
    Bash,
}

/// How booted interpreters are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSettings {
    /// Modules that the interpreter imports before it waits; Python only.
    pub preload: Vec<String>,
    /// Runs after which the interpreter that others are forked from is started anew. With 1 and nothing
    /// preloaded none is kept: each run's own is booted.
    pub max_runs: u32,
    /// Milliseconds after which it is.
    pub max_age_ms: u64,
}

impl Default for KernelSettings {
    /// Nothing preloaded. Processes that are forked from one interpreter share its hash seed and its memory layout:
    /// code that learns them in one run knows them in the next, so neither lasts for long. A new interpreter costs some
    /// 20 ms of processor time, which is nothing beside a thousand runs.
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
    /// At its end from the start.
    Empty,
    /// All of it, known beforehand.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Sent in `Data` frames while the run goes on, up to an `End`.
    Piped,
}

/// The stream that a run wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// The signals that a client may send to its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// `SIGINT`.
    Interrupt,
    /// `SIGTERM`.
    Terminate,
    /// `SIGKILL` to everything that belongs to the run; the run ends.
    Kill,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The status that the program reported.
    pub status: ExitStatus,
    /// The guest ended the run because its time was over.
    pub timed_out: bool,
    /// The resident interpreter of this sandbox ended with this run; its state is gone.
    pub state_lost: bool,
    /// Bytes that the run wrote to standard output, dropped ones included.
    pub stdout_bytes: u64,
    /// Bytes that the run wrote to standard error, dropped ones included.
    pub stderr_bytes: u64,
    /// Microseconds from the start of the program to its end.
    pub wall_us: u64,
    /// Microseconds of processor time that the run's process and the children that it waited for took during the
    /// run, where that is known. Children count in ticks of 10 ms.
    pub cpu_us: Option<u64>,
    /// Bit n stands for variable n of the run's: it is read when an interpreter starts, and the resident one was
    /// started without it. Variables beyond the first 64 are not told.
    pub late_variables: u64,
    /// Names whose address programs asked the sandbox's name server for, which knows none: the first few.
    pub asked_names: Vec<String>,
}

/// The status that a program reported at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// The program exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The code that a shell would report: 128 and the signal's number for a signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind, for a program.
    pub kind: FailureKind,
    /// The text, for a person: lower case, without a final period.
    pub message: String,
}

/// Kinds of failure that the host tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The file, directory or program does not exist.
    NotFound,
    /// The path leaves the places that may be used, or is not of the kind that was asked for.
    Refused,
    /// The sandbox is full.
    NoSpace,
    /// A limit of the sandbox (processes, memory, open files) is reached; it works on.
    Exhausted,
    /// The guest could not do it: a bug, or a sandbox in a bad state.
    Internal,
}
