/**
 * What is sent to a server and what it answers, member for member the JSON of its contract, except that
 * the content of files is bytes. Durations are milliseconds, points in time milliseconds since 1970, unless a
 * member says otherwise.
 */

/** The language of a program, and so the kind of its sandbox. */
export type Runtime = "python" | "node" | "bun" | "deno" | "bash";

/** The signals that can be sent to a program. */
export type Signal = "SIGINT" | "SIGTERM";

/** One program and what it needs. Exactly one of `code`, `codeUrl` and `cmd` is given. */
export interface ExecutionRequest {
  runtime: Runtime;
  /** The source text. */
  code?: string;
  /** Where the server fetches the source text from. */
  codeUrl?: string;
  /** A command line for `bash -c`. */
  cmd?: string;
  /** Until the run is ended. */
  timeoutMs?: number;
  /** Environment of this run only. */
  env?: Record<string, string>;
  /** Extension of the script file, with its dot. */
  fileExtension?: string;
  /** All of standard input. */
  stdin?: string;
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
  /** Passed to the server's audit log. */
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
  network?: "none" | "host" | "filtered";
  /** Regular expressions on the names of hosts; the blacklist wins. */
  networkFilter?: { whitelist?: readonly string[]; blacklist?: readonly string[] };
  /** Tell what the program reached, in the result's `networkLogs`. */
  logNetwork?: boolean;
  /** Processor cores. */
  cpuLimit?: number;
  /** Of the whole sandbox; bytes, or text such as `"512m"`. */
  memoryLimit?: number | string;
  /** Processes and threads. */
  pidsLimit?: number;
  readonlyRootFs?: boolean;
  /** Of `/sandbox`; bytes, or text such as `"512m"`. */
  sandboxSize?: number | string;
  /** Of `/tmp`; bytes, or text such as `"256m"`. */
  tmpSize?: number | string;
  /** Bytes kept of each of stdout and stderr. */
  maxOutputSize?: number;
  /** Until the run is ended. */
  timeoutMs?: number;
  /** Set in the environment, and masked in the output. */
  secrets?: Record<string, string>;
  /** A custom image. */
  image?: string;
  /** Keep the container after the run. */
  persist?: boolean;
  /** Confinement by the kernel. */
  security?: { seccomp?: "strict" | "unconfined" | "custom"; customProfilePath?: string };
  /** What `codeUrl` may name, as the server's documentation says. */
  remoteCode?: Record<string, unknown>;
  debug?: boolean;
}

/** How a run went. A program that fails or runs out of time is a result, not an error. */
export interface ExecutionResult {
  /** Standard output, trailing white space trimmed. */
  stdout: string;
  /** Standard error, trailing white space trimmed. */
  stderr: string;
  /** 128 and the signal's number where a signal ended it. */
  exitCode: number;
  durationMs: number;
  /** Output was cut at `maxOutputSize`. */
  truncated: boolean;
  /** Names this run; a UUID. */
  executionId: string;
  runtime: string;
  /** Start of the run, ISO 8601 in UTC. */
  timestamp: string;
  /** The sandbox it ran in. */
  containerId: string;
  /** Content of each of `outputPaths` that exists. */
  files?: Record<string, Uint8Array>;
  resourceUsage?: ResourceUsage;
  networkLogs?: NetworkLog[];
  /** The run was ended because its time was over. */
  timedOut?: boolean;
  /** The kernel ended a process of the run because the sandbox was out of memory. */
  oomKilled?: boolean;
  /** The session's interpreter ended with this run; its variables are gone, its files are not. */
  stateLost?: boolean;
  timings?: Timings;
}

/** What a run used. */
export interface ResourceUsage {
  /** Processor time as a share of wall time; 100 is one core. */
  cpuPercent: number;
  /** Memory of the sandbox at the end, in MiB. */
  memoryMB: number;
  /** Most memory that the sandbox held, in MiB. */
  peakMemoryMB: number;
  networkBytesIn: number;
  networkBytesOut: number;
}

/** One attempt of a program to reach a host. */
export interface NetworkLog {
  /** ISO 8601 in UTC. */
  timestamp: string;
  method: string;
  host: string;
  path?: string;
  action: string;
  durationMs?: number;
}

/** Where the time of a request went. */
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
  type: "stdout" | "stderr";
  data: string;
  /** Whether it is of the setup script or of the program. */
  phase: "setup" | "code";
}

/** The run has ended. Comes last, and once. */
export interface ExitEvent {
  type: "exit";
  /** The exit code as text. */
  data: string;
  phase: "setup" | "code";
  /** As in {@link ExecutionResult}, and so are the members below. */
  truncated?: boolean;
  timedOut?: boolean;
  oomKilled?: boolean;
  stateLost?: boolean;
  files?: Record<string, Uint8Array>;
}

/** One event of a run that is followed while it goes on. */
export type StreamEvent = OutputEvent | ExitEvent;

/** One session of the server. */
export interface Session {
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
  /** When it ends if nobody uses it until then; missing where sessions do not end by themselves. */
  expiresAt?: number;
  /** Whose it is; only the master key is told. */
  tenantId?: string;
}

/** What is in a directory, sorted by name. */
export interface DirectoryListing {
  entries: DirectoryEntry[];
  /** There is more than one answer holds, and some of it is left out. */
  truncated: boolean;
}

/** One name in a directory. */
export interface DirectoryEntry {
  name: string;
  /** What it is; a link is not followed. */
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
  version: string;
  /** What runs its sandboxes: `"native"` or `"docker"`. */
  backend: string;
}
