import { Isol8Error, refusal, unreachable } from "./errors.js";
import { type Repetition, type RetryPolicy, sleep, waitBeforeNext } from "./retry.js";
import { settings } from "./settings.js";
import { bodyOf, serverSentEvents } from "./sse.js";
import { ExecutionStream } from "./stream.js";
import type {
  CreateSession,
  DirectoryListing,
  ExecutionRequest,
  ExecutionResult,
  Health,
  Options,
  Session,
} from "./types.js";
import { Socket, usualFactory, type WebSocketFactory } from "./websocket.js";
import {
  baseUrl,
  clearTextWarning,
  executeBody,
  filePath,
  filesPath,
  result,
  sessionBody,
  sessionPath,
  warningsOf,
} from "./wire.js";

/** How a client behaves. */
export interface ClientOptions {
  /** The key that the server asks for; else that of `ISOL8_API_KEY`, else that of `isol8 login` for this server. */
  key?: string | undefined;
  /** The session that every run goes to; without one every run has a sandbox of its own. */
  sessionId?: string;
  /** How often a call is made again at most; 2 where nothing is given. */
  retries?: number;
  /** Milliseconds. A server that wants more patience is not waited for; 30000 where nothing is given. */
  maxRetryWaitMs?: number;
  /** In place of the global one. */
  fetch?: typeof fetch;
  /** In place of the platform's WebSocket, or in Node 20 of that of the package `ws`. */
  webSocket?: WebSocketFactory;
  /**
   * Is told what the server finds doubtful about a request, and of a key that is sent unencrypted; `console.warn`
   * where nothing is given.
   */
  onWarning?: (text: string) => void;
}

/** How one call behaves. */
export interface CallOptions {
  /** Gives up the call, with the signal's reason; a run ends. */
  signal?: AbortSignal;
}

/** How one run behaves. */
export interface ExecuteOptions extends CallOptions {
  /** Limits and behaviour of the run. */
  options?: Options;
  /** The program runs once, however often the call is made; it then goes on where the client goes away. */
  idempotencyKey?: string;
}

/** How one stream behaves. */
export interface StreamOptions extends CallOptions {
  /** Limits and behaviour of the run. */
  options?: Options;
  /**
   * `"sse"` asks for server-sent events at once. Their refusals are known by `code` and `status`, and calls are
   * made again after them; those over a WebSocket have a text only.
   */
  transport?: "websocket" | "sse";
}

/** The types of a file's content. */
export type FileContent = string | Uint8Array | Blob | ReadableStream<Uint8Array>;

interface Parts extends CallOptions {
  body?: FileContent;
  headers?: Record<string, string>;
}

/**
 * A server, and where `sessionId` is given one session of it.
 *
 * With a session every run goes to it: files and variables live on until {@link stop}, which the end of an
 * `await using` calls.
 *
 * Calls are made again where that cannot run anything twice: when the server cannot be connected to, when it
 * asks for patience with 429, and, where a repetition does no harm (reading, deleting, writing what is not a
 * stream, {@link execute} with an `idempotencyKey`), also with 503 and after a broken connection.
 */
export class Isol8 {
  /** The session that every run goes to, if any. */
  readonly sessionId: string | undefined;
  readonly #base: URL;
  readonly #headers: Record<string, string>;
  readonly #policy: RetryPolicy;
  readonly #fetch: typeof fetch;
  readonly #webSocket: WebSocketFactory | undefined;
  readonly #onWarning: (text: string) => void;

  /**
   * A server by its address, for example `http://127.0.0.1:3000`; else that of `ISOL8_HOST`, else that of
   * `isol8 login`. Nothing is sent yet.
   *
   * @throws TypeError if there is no server or no key, or the address is not one of a server.
   */
  constructor(url?: string, options: ClientOptions = {}) {
    const found = settings(url, options.key);
    this.sessionId = options.sessionId;
    this.#base = baseUrl(found.url);
    this.#headers = { Authorization: `Bearer ${found.key}` };
    this.#policy = { retries: options.retries ?? 2, maxWaitMs: options.maxRetryWaitMs ?? 30_000 };
    // Browsers want theirs to be called as a function, not as a method.
    this.#fetch = options.fetch ?? ((...request) => fetch(...request));
    this.#webSocket = options.webSocket;
    this.#onWarning = options.onWarning ?? ((text) => console.warn(`isol8: ${text}`));
    const inClear = clearTextWarning(this.#base);
    if (inClear !== undefined) {
      this.#onWarning(inClear);
    }
  }

  /**
   * Runs a program and waits for its end. A program that fails is a result.
   *
   * Node's own `fetch` waits five minutes for an answer: follow longer runs with {@link executeStream}, or
   * give the client another `fetch`.
   */
  async execute(request: ExecutionRequest, call: ExecuteOptions = {}): Promise<ExecutionResult> {
    const key = call.idempotencyKey;
    const response = await this.#request("POST", "execute", key === undefined ? "harmful" : "harmless", {
      ...call,
      body: JSON.stringify(executeBody(request, call.options, this.sessionId)),
      headers: key === undefined ? {} : { "Idempotency-Key": key },
    });
    return result(await read(response, (answer) => answer.json()), this.#warn(response));
  }

  /**
   * Runs a program and follows it: over a WebSocket, or if none is available, as in browsers, by server-sent events,
   * which take neither standard input nor signals.
   */
  async executeStream(request: ExecutionRequest, call: StreamOptions = {}): Promise<ExecutionStream> {
    const body = executeBody(request, call.options, this.sessionId);
    const socket = call.transport === "sse" ? undefined : await this.#connect(call.signal);
    if (socket !== undefined) {
      socket.send({ type: "execute", ...body });
      return new ExecutionStream(socket.texts(), socket, () => socket.close(), call.signal, []);
    }
    const ended = new AbortController();
    const end = () => ended.abort();
    call.signal?.addEventListener("abort", end, { once: true });
    try {
      call.signal?.throwIfAborted();
      const response = await this.#request("POST", "execute/stream", "harmful", {
        body: JSON.stringify(body),
        signal: ended.signal,
      });
      const texts = serverSentEvents(bodyOf(response));
      return new ExecutionStream(texts, undefined, end, call.signal, this.#warn(response));
    } catch (error) {
      call.signal?.throwIfAborted();
      throw error;
    } finally {
      call.signal?.removeEventListener("abort", end);
    }
  }

  /**
   * Writes a file of the session, parents created; what had its name is replaced once all of it is there.
   * The path is absolute, within `/sandbox` or `/tmp`. A stream is read once, and so sent once.
   */
  async putFile(path: string, content: FileContent, call: CallOptions = {}): Promise<void> {
    const repetition = content instanceof ReadableStream ? "impossible" : "harmless";
    const url = filePath(this.sessionId, path);
    const response = await this.#request("PUT", url, repetition, { ...call, body: content });
    await read(response, (answer) => answer.text());
  }

  /** Reads a file of the session. */
  async getFile(path: string, call: CallOptions = {}): Promise<Uint8Array> {
    const response = await this.#request("GET", filePath(this.sessionId, path), "harmless", call);
    return new Uint8Array(await read(response, (answer) => answer.arrayBuffer()));
  }

  /** Reads a file of the session piece by piece. */
  async streamFile(path: string, call: CallOptions = {}): Promise<ReadableStream<Uint8Array>> {
    return bodyOf(await this.#request("GET", filePath(this.sessionId, path), "harmless", call));
  }

  /** Lists a directory of the session. */
  async listFiles(path: string, call: CallOptions = {}): Promise<DirectoryListing> {
    const url = `${filesPath(this.sessionId)}?${new URLSearchParams({ path })}`;
    const response = await this.#request("GET", url, "harmless", call);
    return (await read(response, (answer) => answer.json())) as DirectoryListing;
  }

  /** The sessions that the key may see. */
  async sessions(call: CallOptions = {}): Promise<Session[]> {
    const response = await this.#request("GET", "sessions", "harmless", call);
    return ((await read(response, (answer) => answer.json())) as { sessions: Session[] }).sessions;
  }

  /**
   * Creates a session before anything runs in it. A session that exists raises an {@link Isol8Error} with the code
   * `SESSION_EXISTS`. A client for the session is `new Isol8(url, { sessionId: session.id })`.
   */
  async createSession(session: CreateSession, call: CallOptions = {}): Promise<Session> {
    const body = JSON.stringify(sessionBody(session));
    const response = await this.#request("POST", "sessions", "harmful", { ...call, body });
    return (await read(response, (answer) => answer.json())) as Session;
  }

  /** Deletes a session; one that is not there is as good as deleted. Ends its run. */
  async deleteSession(sessionId: string, call: CallOptions = {}): Promise<void> {
    const response = await this.#request("DELETE", sessionPath(sessionId), "harmless", call);
    await read(response, (answer) => answer.text());
  }

  /** Whether the server is up, which version it is, and its backend. */
  async health(call: CallOptions = {}): Promise<Health> {
    const response = await this.#request("GET", "health", "harmless", call);
    return (await read(response, (answer) => answer.json())) as Health;
  }

  /** Deletes the client's session, if it has one. */
  async stop(call: CallOptions = {}): Promise<void> {
    if (this.sessionId !== undefined) {
      await this.deleteSession(this.sessionId, call);
    }
  }

  /** As {@link stop}, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /** A success; everything else is thrown. */
  async #request(method: string, route: string, repetition: Repetition, parts: Parts): Promise<Response> {
    for (let tried = 1; ; tried += 1) {
      try {
        return await this.#try(method, route, parts);
      } catch (error) {
        const wait = waitBeforeNext(this.#policy, error, tried, repetition);
        if (wait === undefined) {
          throw error;
        }
        await sleep(wait, parts.signal);
      }
    }
  }

  async #try(method: string, route: string, parts: Parts): Promise<Response> {
    const { body, headers, signal } = parts;
    const init: RequestInit & { duplex?: "half" } = {
      method,
      headers: { ...this.#headers, ...headers },
      ...(body === undefined ? {} : { body: body as BodyInit }),
      ...(signal === undefined ? {} : { signal }),
      // Required by `fetch` for a body that is a stream.
      ...(body instanceof ReadableStream ? { duplex: "half" } : {}),
    };
    let response: Response;
    try {
      response = await this.#fetch(new URL(route, this.#base), init);
    } catch (error) {
      signal?.throwIfAborted();
      throw unreachable(error);
    }
    if (!response.ok) {
      throw await read(response, refusal);
    }
    return response;
  }

  /** Returns a WebSocket if one is available. If not, a request over HTTP will tell why. */
  async #connect(signal: AbortSignal | undefined): Promise<Socket | undefined> {
    const url = new URL("execute/ws", this.#base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const factory = this.#webSocket ?? (await usualFactory());
    return factory && Socket.connect(factory, url.href, this.#headers, signal);
  }

  /** Passes on the warnings of an answer, and returns them. */
  #warn(response: Response): string[] {
    const told = warningsOf(response);
    for (const text of told) {
      this.#onWarning(text);
    }
    return told;
  }
}

/** Reads the body of an answer. */
async function read<T>(response: Response, by: (response: Response) => Promise<T>): Promise<T> {
  try {
    return await by(response);
  } catch (error) {
    if (error instanceof SyntaxError) {
      const text = `answer is not one of isol8's: ${error.message}`;
      throw new Isol8Error(text, { status: response.status, cause: error });
    }
    throw error instanceof TypeError ? unreachable(error) : error;
  }
}
