import { brokenOff } from "./errors.js";

/** Opens a WebSocket that sends these headers, or throws if it cannot. */
export type WebSocketFactory = (url: string, headers: Record<string, string>) => WebSocket;

/**
 * Opens WebSockets with headers, which those of Node since 22, of Bun and of Deno take; Node 20 has the package `ws`
 * for it. `undefined` in browsers, whose WebSockets take none.
 */
export async function usualFactory(): Promise<WebSocketFactory | undefined> {
  const { process, WebSocket } = globalThis as {
    process?: { versions?: { node?: string } };
    WebSocket?: new (url: string, options: object) => WebSocket;
  };
  if (process?.versions?.node === undefined) {
    return undefined;
  }
  if (WebSocket !== undefined) {
    return (url, headers) => new WebSocket(url, { headers });
  }
  try {
    const ws = await import("ws");
    // No limit on a message: an exit may carry files of any size.
    return (url, headers) => new ws.WebSocket(url, { headers, maxPayload: 0, perMessageDeflate: false });
  } catch {
    // A bundle without the package has server-sent events.
    return undefined;
  }
}

/** An open WebSocket as a sequence of the texts that arrive. */
export class Socket {
  readonly #socket: WebSocket;
  readonly #waiting: string[] = [];
  #closed = false;
  #wake: () => void = () => undefined;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }: MessageEvent) => {
      this.#waiting.push(String(data));
      this.#wake();
    });
    for (const end of ["close", "error"]) {
      socket.addEventListener(end, () => {
        this.#closed = true;
        this.#wake();
      });
    }
  }

  /** Connects; `undefined` where no WebSocket can be had. */
  static async connect(
    factory: WebSocketFactory,
    url: string,
    headers: Record<string, string>,
    signal: AbortSignal | undefined,
  ): Promise<Socket | undefined> {
    signal?.throwIfAborted();
    let socket: WebSocket;
    try {
      socket = factory(url, headers);
    } catch {
      return undefined;
    }
    const connected = new Socket(socket);
    const abort = () => socket.close();
    signal?.addEventListener("abort", abort, { once: true });
    const opened = await new Promise<boolean>((resolve) => {
      socket.addEventListener("open", () => resolve(true), { once: true });
      connected.#wake = () => resolve(false);
    });
    signal?.removeEventListener("abort", abort);
    signal?.throwIfAborted();
    return opened ? connected : undefined;
  }

  /** Sends a message. */
  send(message: object): void {
    if (this.#closed) {
      throw brokenOff();
    }
    this.#socket.send(JSON.stringify(message));
  }

  /** Closes; what has not been taken is dropped. */
  close(): void {
    this.#waiting.length = 0;
    this.#closed = true;
    this.#socket.close();
    this.#wake();
  }

  /** The texts that arrive until the end. */
  async *texts(): AsyncGenerator<string> {
    for (;;) {
      const text = this.#waiting.shift();
      if (text !== undefined) {
        yield text;
      } else if (this.#closed) {
        return;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    }
  }
}
