/** The messages over a WebSocket, with a scripted one. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { type ExecutionStream, Isol8, Isol8ConnectionError } from "../src/index.js";

const EXIT = '{"type":"exit","data":"0","phase":"code","stateLost":true}';
const REQUEST = { runtime: "bash", cmd: "top", tty: true, cols: 80, rows: 24 } as const;

/** Ends each run at its third message, and without an exit where that is no resize. */
class Scripted extends EventTarget {
  readonly said: { type: string }[] = [];

  constructor() {
    super();
    queueMicrotask(() => this.dispatchEvent(new Event("open")));
  }

  send(text: string): void {
    const message = JSON.parse(text) as { type: string };
    this.said.push(message);
    if (message.type === "resize") {
      this.dispatchEvent(new MessageEvent("message", { data: EXIT }));
    }
    if (this.said.length === 3) {
      this.close();
    }
  }

  close(): void {
    this.dispatchEvent(new Event("close"));
  }
}

/** Talks over a scripted WebSocket. The messages come after the address and the headers. */
async function talk(say: (run: ExecutionStream) => void): Promise<{ run: ExecutionStream; said: unknown[] }> {
  const said: unknown[] = [];
  const isol8 = new Isol8("https://host/isol8", {
    key: "key",
    sessionId: "s",
    webSocket: (url, headers) => {
      const socket = new Scripted();
      said.push([url, headers], socket.said);
      return socket as unknown as WebSocket;
    },
  });
  const run = await isol8.executeStream(REQUEST, { options: { timeoutMs: 1 } });
  run.sendSignal("SIGTERM");
  say(run);
  return { run, said };
}

test("messages are the contract's", async () => {
  const { run, said } = await talk((run) => run.resize(120, 40));
  const events = [];
  for await (const event of run) {
    events.push(event);
  }
  assert.deepEqual(events, [{ type: "exit", data: "0", phase: "code", stateLost: true }]);
  assert.deepEqual(said, [
    ["wss://host/isol8/execute/ws", { Authorization: "Bearer key" }],
    [
      { type: "execute", request: REQUEST, options: { timeoutMs: 1 }, sessionId: "s" },
      { type: "signal", signal: "SIGTERM" },
      { type: "resize", cols: 120, rows: 40 },
    ],
  ]);
});

test("a stream without an exit broke off, and takes nothing any more", async () => {
  const { run } = await talk((run) => run.endStdin());
  await assert.rejects(run[Symbol.asyncIterator]().next(), Isol8ConnectionError);
  assert.throws(() => run.sendStdin("x"), Isol8ConnectionError);
});
