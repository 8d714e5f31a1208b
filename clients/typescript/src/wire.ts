/** Between the library's types and the JSON and URLs of the contract. No I/O. */

import { Isol8Error } from "./errors.js";
import type { CreateSession, Encoding, ExecutionRequest, ExecutionResult, Options, StreamEvent } from "./types.js";

/** Characters of one `stdin` message: escaped, still less than the mebibyte that a server takes. */
const STDIN_PIECE = 64 * 1024;

/** Bytes that are turned into text at once: as many as a call takes arguments, and of whole base64 digits. */
const BASE64_PIECE = 0x6000;

/** The address of a server, with the slash that keeps its path when routes are appended. */
export function baseUrl(url: string): URL {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (parsed?.protocol !== "http:" && parsed?.protocol !== "https:") {
    throw new TypeError(`${JSON.stringify(url)} is not the URL of a server: expected http or https`);
  }
  parsed.pathname = `${parsed.pathname.replace(/\/+$/, "")}/`;
  return parsed;
}

/** The header with what the server finds doubtful about a request. */
const WARNING = "X-Isol8-Warning";

/** The warnings of an answer. Several are joined with commas by `fetch`. */
export function warningsOf(response: Response): string[] {
  const told = response.headers.get(WARNING);
  return told === null ? [] : [told];
}

/** Says so where what is sent to a server leaves this machine unencrypted. */
export function clearTextWarning(base: URL): string | undefined {
  if (base.protocol !== "http:" || isLoopback(base.hostname)) {
    return undefined;
  }
  return `the key and all that is sent to ${base.host} can be read on the way: use https`;
}

/** Whether what is sent to a host stays on this machine. The host is in the form that `URL` gives it. */
function isLoopback(host: string): boolean {
  const name = host.replace(/\.$/, "");
  const isName = name === "localhost" || name.endsWith(".localhost");
  // 127.0.0.0/8, also as an IPv6 address, and ::1.
  return isName || /^127\.\d+\.\d+\.\d+$/.test(name) || /^\[(::1|::ffff:7f[\da-f]{2}:[\da-f]{1,4})\]$/.test(name);
}

/** The route of a session. */
export function sessionPath(session: string): string {
  return `session/${segment(session)}`;
}

/** The route of a session's directories. */
export function filesPath(session: string | undefined): string {
  if (session === undefined) {
    throw new TypeError("File operations require a sessionId: give the client one");
  }
  return `${sessionPath(session)}/files`;
}

/** The route of a file's bytes. */
export function filePath(session: string | undefined, path: string): string {
  const segments = path.replace(/^\/+/, "").split("/").map(segment);
  return `${filesPath(session)}/${segments.join("/")}`;
}

function segment(text: string): string {
  // URLs resolve these, and would ask for something else: even for another session.
  if (text === "." || text === "..") {
    throw new TypeError(`${JSON.stringify(text)} cannot be in the URL of a session or a file`);
  }
  return encodeURIComponent(text);
}

/** Returns the body of `POST /execute`. */
export function executeBody(
  request: ExecutionRequest,
  options: Options | undefined,
  sessionId: string | undefined,
): Record<string, unknown> {
  const { stdin } = request;
  const input = stdin instanceof Uint8Array ? { stdin: toBase64(stdin), stdinEncoding: "base64" } : {};
  return { request: { ...encoded(request), ...input }, options, sessionId };
}

/** Returns the body of `POST /sessions`. */
export function sessionBody(session: CreateSession): Record<string, unknown> {
  return encoded(session);
}

/** Returns a copy whose files hold bytes as base64. */
function encoded<T extends { files?: Record<string, string | Uint8Array> }>(holder: T): Record<string, unknown> {
  const files = Object.entries(holder.files ?? {}).map(([path, content]) => [
    path,
    typeof content === "string" ? content : { base64: toBase64(content) },
  ]);
  return holder.files ? { ...holder, files: Object.fromEntries(files) } : { ...holder };
}

/** Returns output as bytes, decoded if it came as base64. */
export function bytesOf(text: string, encoding: Encoding | undefined): Uint8Array {
  return encoding === "base64" ? fromBase64(text) : new TextEncoder().encode(text);
}

/** Yields the messages that write an input to the program. */
export function* stdinMessages(text: string | Uint8Array): Generator<object> {
  if (text instanceof Uint8Array) {
    for (let start = 0; start < text.length; start += STDIN_PIECE) {
      yield { type: "stdin", data: toBase64(text.subarray(start, start + STDIN_PIECE)), encoding: "base64" };
    }
    return;
  }
  for (let start = 0; start < text.length; ) {
    let end = start + STDIN_PIECE;
    // A character of two units stays whole.
    if (isHighSurrogate(text.charCodeAt(end - 1))) {
      end -= 1;
    }
    yield { type: "stdin", data: text.slice(start, end) };
    start = end;
  }
}

function isHighSurrogate(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}

/** An event of a stream. An `error` is thrown: nothing that matters comes after it. */
export function event(text: string): StreamEvent {
  const parsed = JSON.parse(text) as StreamEvent | { type: "error"; data: string };
  if (parsed.type === "error") {
    throw new Isol8Error(parsed.data);
  }
  return withFiles(parsed);
}

/** A run's result, with the warnings that came in the answer's header. */
export function result(parsed: unknown, told: string[]): ExecutionResult {
  const { warnings = [], ...rest } = withFiles(parsed as ExecutionResult);
  // The header repeats those of unknown members.
  return { ...rest, warnings: [...new Set([...warnings, ...told])] };
}

/** Content of files arrives as base64. */
function withFiles<T extends object>(value: T): T {
  const { files } = value as { files?: Record<string, string> };
  if (files === undefined) {
    return value;
  }
  const decoded = Object.entries(files).map(([path, content]) => [path, fromBase64(content)]);
  return { ...value, files: Object.fromEntries(decoded) };
}

function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let start = 0; start < bytes.length; start += BASE64_PIECE) {
    text += btoa(String.fromCharCode(...bytes.subarray(start, start + BASE64_PIECE)));
  }
  return text;
}

function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (unit) => unit.charCodeAt(0));
}
