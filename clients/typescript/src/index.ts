/**
 * An isol8 server, for programs in Node, Bun, Deno and browsers.
 *
 * ```ts
 * const isol8 = new Isol8("http://127.0.0.1:3000", { key: "my-key" });
 * const { stdout } = await isol8.execute({ runtime: "python", code: "print(6 * 7)" });
 * ```
 *
 * @packageDocumentation
 */

export {
  type CallOptions,
  type ClientOptions,
  type ExecuteOptions,
  type FileContent,
  Isol8,
  type StreamOptions,
} from "./client.js";
export { type ErrorDetails, Isol8ConnectionError, Isol8Error } from "./errors.js";
export { ExecutionStream } from "./stream.js";
export type {
  CreateSession,
  DirectoryEntry,
  DirectoryListing,
  Encoding,
  ExecutionRequest,
  ExecutionResult,
  ExitEvent,
  Health,
  NetworkLog,
  Options,
  OutputEvent,
  ResourceUsage,
  Runtime,
  RuntimeAlias,
  Session,
  Signal,
  StreamEvent,
  Timings,
} from "./types.js";
export type { WebSocketFactory } from "./websocket.js";
export { bytesOf } from "./wire.js";
