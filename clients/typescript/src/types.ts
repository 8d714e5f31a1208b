/**
 * Requests to a server and its answers, member for member the JSON of its contract, except that the content of files is
 * bytes. Durations are milliseconds, points in time milliseconds since 1970, unless a member says otherwise.
 */

/** The language of a program, and so the kind of its sandbox; {@link RuntimeAlias} names the same. */
export type Runtime = "python" | "node" | "bun" | "deno" | "bash";

/** Other names of runtimes that a request may use. */
export type RuntimeAlias = "py" | "python3" | "javascript" | "js" | "typescript" | "ts" | "sh" | "shell";

/** How a text carries what was written: as it is, or as base64. {@link bytesOf} reads both. */
export type Encoding = "utf8" | "base64";

/** The signals that can be sent to a program. */
export type Signal = "SIGINT" | "SIGTERM";

/** A program and everything that its run needs. Exactly one of `code`, `codeUrl` and `cmd` is given. */
export interface ExecutionRequest {
  /** The language of the source text, and so the kind of sandbox. */
  runtime: Runtime | RuntimeAlias;
  /** The source text. */
  code?: string;
  /** The address from which the server fetches the source text. */
  codeUrl?: string;
  /** A command line for `bash -c`. */
  cmd?: string;
  /** Until the run is ended. */
  timeoutMs?: number;
  /** Environment of this run only. */
  env?: Record<string, string>;
  /** Extension of the script file, with its dot. */
  fileExtension?: string;
  /** All of standard input. Bytes arrive as they are, UTF-8 or not. */
  stdin?: string | Uint8Array;
  /** `false` keeps the white space at the end of the result's output, so that checksums fit. */
  trim?: boolean;
  /** `"base64"` has output that is not UTF-8 arrive whole, as base64, which {@link bytesOf} reads. */
  outputEncoding?: Encoding;
  /** Absolute path to content; written before the run. */
  files?: Record<string, string | Uint8Array>;
  /** Absolute paths, read after the run into the result's `files`. */
  outputPaths?: readonly string[];
  /** Packages installed before the run. */
  installPackages?: readonly string[];
  /** Bash, run before the program. */
  setupScript?: string;
  /** Working directory: absolute under `/sandbox`, or relative to it. */
  workdir?: string;
  /** SHA-256 of what `codeUrl` must give, in hex. */
  codeHash?: string;
  /** Accept an `http:` `codeUrl`. */
  allowInsecureCodeUrl?: boolean;
  /** Names and texts of the client's own; nothing on the server uses them yet. */
  metadata?: Record<string, string>;
  /** Run at a terminal; only for a stream over a WebSocket. */
  tty?: boolean;
  /** Characters in a line of the terminal at first. */
  cols?: number;
  /** Lines of the terminal at first. */
  rows?: number;
}

/** Limits and behaviour of a run, merged over the server's defaults. */
export interface Options {
  /** How far the program may reach: nowhere, as the filter says, or as the host may. */
  network?: "none" | "host" | "filtered";
  /** Regular expressions on the names of hosts; the blacklist wins. */
  networkFilter?: { whitelist?: readonly string[]; blacklist?: readonly string[] };
  /** Tell what the program reached, in the result's `networkLogs`. */
  logNetwork?: boolean;
  /** Processor cores. */
  cpuLimit?: number;
  /** Memory of the whole sandbox; bytes, or text such as `"512m"`. */
  memoryLimit?: number | string;
  /** Processes and threads. */
  pidsLimit?: number;
  /** Size of `/sandbox`; bytes, or text such as `"512m"`. */
  sandboxSize?: number | string;
  /** Size of `/tmp`; bytes, or text such as `"256m"`. */
  tmpSize?: number | string;
  /** Bytes kept of each of stdout and stderr. */
  maxOutputSize?: number;
  /** Until the run is ended. */
  timeoutMs?: number;
  /** Set in the environment, and masked in the output. */
  secrets?: Record<string, string>;
  /** A custom image. */
  image?: string;
}

/** How a run went. A program that fails or runs out of time is a result, not an error. */
export interface ExecutionResult {
  /** Standard output, trailing white space trimmed unless the request's `trim` is `false`. */
  stdout: string;
  /** Standard error, trailing white space trimmed unless the request's `trim` is `false`. */
  stderr: string;
  /** How `stdout` carries what was written; missing for `"utf8"`. */
  stdoutEncoding?: Encoding;
  /** How `stderr` carries what was written; missing for `"utf8"`. */
  stderrEncoding?: Encoding;
  /** 128 and the signal's number where a signal ended it. */
  exitCode: number;
  /** From the arrival of the request at the sandbox to its result. */
  durationMs: number;
  /** Output was cut at `maxOutputSize`. */
  truncated: boolean;
  /** Names this run; a UUID. */
  executionId: string;
  /** The runtime that was asked for. */
  runtime: string;
  /** Start of the run, ISO 8601 in UTC. */
  timestamp: string;
  /** The sandbox it ran in. */
  containerId: string;
  /** Content of each of `outputPaths` that exists. */
  files?: Record<string, Uint8Array>;
  /** Resources that the run used. */
  resourceUsage?: ResourceUsage;
  /** The program's requests to the network, if `logNetwork` asked for them. */
  networkLogs?: NetworkLog[];
  /** The run was ended because its time was over. */
  timedOut?: boolean;
  /** The kernel ended a process of the run because the sandbox was out of memory. */
  oomKilled?: boolean;
  /** The session's interpreter ended with this run; its variables are gone, its files are not. */
  stateLost?: boolean;
  /** Durations of the request's steps. */
  timings?: Timings;
  /** Doubts of the server about the request; `onWarning` of the client is told too. */
  warnings: string[];
}

/** Resources that a run used. */
export interface ResourceUsage {
  /** Processor time as a share of wall time; 100 is one core. */
  cpuPercent: number;
  /** Memory of the sandbox at the end, in MiB. */
  memoryMB: number;
  /** Most memory that the sandbox held, in MiB. */
  peakMemoryMB: number;
  /** Received through the network. */
  networkBytesIn: number;
  /** Sent through the network. */
  networkBytesOut: number;
  /** Processor time of all processes of the run, in milliseconds. */
  cpuMs: number;
}

/** A request of a program to another host. */
export interface NetworkLog {
  /** When it was made, ISO 8601 in UTC. */
  timestamp: string;
  /** The HTTP method; `CONNECT` for a tunnel. */
  method: string;
  /** The host that was asked for, without the port. */
  host: string;
  /** The path and the query; `null` for a tunnel. */
  path: string | null;
  /** Whether the rules let it through. */
  action: "ALLOW" | "BLOCK";
  /** From the request to its end. */
  durationMs: number;
}

/** Durations of a request's steps. */
export interface Timings {
  /** Waiting for its turn. */
  queueMs: number;
  /** Getting a sandbox. */
  acquireMs: number;
  /** Files and the setup script. */
  setupMs: number;
  /** The program itself. */
  runMs: number;
}

/** Something was written. */
export interface OutputEvent {
  /** The stream that was written to. */
  type: "stdout" | "stderr";
  /** The output. */
  data: string;
  /** How `data` carries what was written; missing for `"utf8"`. */
  encoding?: Encoding;
  /** Whether it is of the setup script or of the program. */
  phase: "setup" | "code";
}

/** The run has ended. Comes last, and once. */
export interface ExitEvent {
  /** Tells it from what was written. */
  type: "exit";
  /** The exit code as text. */
  data: string;
  /** `"setup"` where the setup script failed. */
  phase: "setup" | "code";
  /** As {@link ExecutionResult.truncated}. */
  truncated?: boolean;
  /** As {@link ExecutionResult.timedOut}. */
  timedOut?: boolean;
  /** As {@link ExecutionResult.oomKilled}. */
  oomKilled?: boolean;
  /** As {@link ExecutionResult.stateLost}. */
  stateLost?: boolean;
  /** As {@link ExecutionResult.files}. */
  files?: Record<string, Uint8Array>;
}

/** An event of a run that is followed while it goes on. */
export type StreamEvent = OutputEvent | ExitEvent;

/** The settings that a session is created with. */
export interface CreateSession {
  /** The runtime that the session is bound to. */
  runtime: Runtime | RuntimeAlias;
  /** The session's name; without one the server chooses a name. */
  id?: string;
  /** Sizes, image and network of its sandbox, and limits for those of its requests that name none. */
  options?: Options;
  /** Environment of all its requests, but for variables that a request sets itself. */
  env?: Record<string, string>;
  /** Absolute path to content; written before the answer. */
  files?: Record<string, string | Uint8Array>;
  /** Text that belongs to the session's creation, by name. */
  metadata?: Record<string, string>;
}

/** A session of the server. */
export interface Session {
  /** The client's name for it. */
  id: string;
  /** Whether a request is running in it. */
  isActive: boolean;
  /** End of the last request. */
  lastAccessedAt: number;
  /** The runtime it is bound to. */
  runtime: string;
  /** Its first request. */
  createdAt: number;
  /** The sandbox it owns. */
  containerId: string;
  /** When the session ends if it stays idle; missing if sessions do not end by themselves. */
  expiresAt?: number;
  /** The tenant that owns the session; shown to the master key only. */
  tenantId?: string;
}

/** The content of a directory, sorted by name. */
export interface DirectoryListing {
  /** Each name in it. */
  entries: DirectoryEntry[];
  /** There is more than one answer holds, and some of it is left out. */
  truncated: boolean;
}

/** An entry of a directory. */
export interface DirectoryEntry {
  /** The name. Bytes that are not UTF-8 are replaced by U+FFFD. */
  name: string;
  /** The kind of entry; a link is not followed. */
  type: "file" | "directory" | "symlink" | "other";
  /** Bytes. */
  size: number;
  /** Permission bits as four octal digits, for example `"0644"`. */
  mode: string;
  /** Last change of its content. */
  mtime: number;
}

/** A server that is up. */
export interface Health {
  /** `"ok"`. */
  status: string;
  /** The server's version. */
  version: string;
  /** The backend that runs its sandboxes: `"native"` or `"docker"`. */
  backend: string;
}
