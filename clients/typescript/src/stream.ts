import { brokenOff, Isol8Error } from "./errors.js";
import type { Signal, StreamEvent } from "./types.js";
import type { Socket } from "./websocket.js";
import { event, stdinMessages } from "./wire.js";

/**
 * The events of a run, while it goes on. Iterate over it once; the last event is the `exit`. Leaving the
 * iteration before it, and {@link close}, end the run.
 *
 * Over server-sent events, what is not taken slows the program down. WebSockets of JavaScript know no such
 * thing: there it waits in memory.
 */
export class ExecutionStream implements AsyncIterable<StreamEvent> {
  readonly #texts: AsyncGenerator<string>;
  readonly #socket: Socket | undefined;
  readonly #end: () => void;
  readonly #signal: AbortSignal | undefined;

  /** Doubts of the server about the request, as far as server-sent events carry them. */
  readonly warnings: readonly string[];

  /** @internal */
  constructor(
    texts: AsyncGenerator<string>,
    socket: Socket | undefined,
    end: () => void,
    signal: AbortSignal | undefined,
    warnings: readonly string[],
  ) {
    this.warnings = warnings;
    this.#texts = texts;
    this.#socket = socket;
    // A function of its own: the caller may have listened with the other while it connected.
    this.#end = () => end();
    this.#signal = signal;
    signal?.addEventListener("abort", this.#end, { once: true });
    if (signal?.aborted) {
      end();
    }
  }

  /** The events, once. Throws {@link Isol8Error} where the run has no exit code. */
  async *[Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, undefined> {
    try {
      for (;;) {
        const next = await this.#texts.next().catch((error: unknown) => {
          this.#signal?.throwIfAborted();
          throw brokenOff(error);
        });
        this.#signal?.throwIfAborted();
        if (next.done) {
          throw brokenOff();
        }
        const happened = event(next.value);
        yield happened;
        if (happened.type === "exit") {
          return;
        }
      }
    } finally {
      this.close();
    }
  }

  /** Writes to the program's standard input. */
  sendStdin(text: string | Uint8Array): void {
    for (const message of stdinMessages(text)) {
      this.#send(message);
    }
  }

  /** Ends the program's standard input. */
  endStdin(): void {
    this.#send({ type: "stdinEnd" });
  }

  /** Signals the program. */
  sendSignal(signal: Signal): void {
    this.#send({ type: "signal", signal });
  }

  /** Changes the size of the terminal of a run with `tty`. */
  resize(cols: number, rows: number): void {
    this.#send({ type: "resize", cols, rows });
  }

  /** Ends the run, if it goes on, and the stream. */
  close(): void {
    this.#signal?.removeEventListener("abort", this.#end);
    this.#end();
  }

  #send(message: object): void {
    if (this.#socket === undefined) {
      throw new Isol8Error("this stream has no WebSocket, and takes no messages");
    }
    this.#socket.send(message);
  }
}
