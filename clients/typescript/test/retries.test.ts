/** Calls that are tried again and calls that are not, with a scripted server. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";

import { Isol8, Isol8ConnectionError } from "../src/index.js";
import { serverSentEvents } from "../src/sse.js";
import { refused } from "./refused.js";

const REQUEST = { runtime: "bash", code: "echo 1" } as const;
const RESULT = { stdout: "1", stderr: "", exitCode: 0, executionId: "id", runtime: "bash" };

/** The answer of a scripted server to one request; `undefined`: the server hangs up. */
type Answer = { status: number; body: unknown; after?: string } | undefined;

const done: Answer = { status: 200, body: RESULT };
const hangsUp: Answer = undefined;

function refusal(status: number, after?: string): Answer {
  const answer = { status, body: { error: "not now", code: "UNAVAILABLE" } };
  return after === undefined ? answer : { ...answer, after };
}

interface Stub {
  url: string;
  isol8: Isol8;
  asked: string[];
}

/** Runs a test with a server that gives these answers, one after another. */
async function withStub(answers: Answer[], body: (stub: Stub) => Promise<void>): Promise<void> {
  const asked: string[] = [];
  const server = createServer((request: IncomingMessage, response) => {
    request.resume().on("end", () => {
      asked.push(`${request.method} ${request.url} ${request.headers["idempotency-key"] ?? ""}`.trim());
      const answer = answers.shift();
      if (answer === undefined) {
        request.socket.destroy();
        return;
      }
      const text = typeof answer.body === "string" ? answer.body : JSON.stringify(answer.body);
      const headers = answer.after === undefined ? {} : { "Retry-After": answer.after };
      response.writeHead(answer.status, headers).end(text);
    });
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    const isol8 = new Isol8(url, { key: "key", sessionId: "s", maxRetryWaitMs: 2000 });
    await body({ url, isol8, asked });
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const execute = (isol8: Isol8) => isol8.execute(REQUEST);
const executeOnce = (isol8: Isol8) => isol8.execute(REQUEST, { idempotencyKey: "once" });
const stop = (isol8: Isol8) => isol8.stop();
const write = (isol8: Isol8) => isol8.putFile("/tmp/x", "x");

test("what does no harm is tried again", async () => {
  const cases: [(isol8: Isol8) => Promise<unknown>, Answer[]][] = [
    [execute, [refusal(429, "0"), refusal(429, "0"), done]],
    [executeOnce, [refusal(503, "0"), hangsUp, done]],
    [stop, [refusal(503, "0"), refusal(429, "0"), done]],
    [write, [hangsUp, refusal(503, "0"), done]],
  ];
  for (const [call, answers] of cases) {
    await withStub(answers, async ({ isol8, asked }) => {
      await call(isol8);
      assert.equal(asked.length, 3);
      assert.equal(new Set(asked).size, 1, asked.join());
    });
  }
});

test("what may do harm is not", async () => {
  const cases: [(isol8: Isol8) => Promise<unknown>, Answer, number | undefined][] = [
    // The run may have started.
    [execute, refusal(503, "0"), 503],
    [execute, hangsUp, undefined],
    // Too long, at no time, or by a date.
    [execute, refusal(429, "3"), 429],
    [stop, refusal(503), 503],
    [stop, refusal(503, "Wed, 21 Oct 2026 07:28:00 GMT"), 503],
    // The answer would be the same again.
    [executeOnce, refusal(500, "0"), 500],
    // Its body is gone.
    [(isol8) => isol8.putFile("/tmp/x", new Blob(["x"]).stream()), refusal(429, "0"), 429],
  ];
  for (const [call, answer, status] of cases) {
    await withStub([answer], async ({ isol8, asked }) => {
      const error = await refused(call(isol8));
      assert.equal(asked.length, 1);
      assert.equal(error.status, status);
      if (status === undefined) {
        assert(error instanceof Isol8ConnectionError && error.maybeSent);
      }
    });
  }
});

test("patience ends", () =>
  withStub([refusal(429, "0"), refusal(429, "0"), refusal(429, "0")], async ({ isol8, asked }) => {
    const error = await refused(execute(isol8));
    assert.equal(asked.length, 3);
    assert.deepEqual([error.retryAfterMs, error.code], [0, "UNAVAILABLE"]);
  }));

test("the server says how long to wait, and a signal ends the wait", () =>
  withStub([refusal(429, "1"), done, refusal(429, "2")], async ({ isol8 }) => {
    const started = performance.now();
    await execute(isol8);
    assert(performance.now() - started > 990);
    const enough = new Error("enough");
    const abort = new AbortController();
    const call = isol8.execute(REQUEST, { signal: abort.signal });
    setTimeout(() => abort.abort(enough), 50);
    await assert.rejects(call, enough);
  }));

test("a server that starts late is found", async () => {
  const unused = createServer();
  await once(unused.listen(0, "127.0.0.1"), "listening");
  const { port } = unused.address() as AddressInfo;
  unused.close();
  await once(unused, "close");
  const isol8 = new Isol8(`http://127.0.0.1:${port}`, { key: "key", retries: 20 });
  const late = createServer((_, response) => response.end(JSON.stringify(RESULT)));
  setTimeout(() => late.listen(port, "127.0.0.1"), 150);
  assert.equal((await execute(isol8)).stdout, "1");
  late.closeAllConnections();
  late.close();
  await once(late, "close");
  const error = await refused(new Isol8(`http://127.0.0.1:${port}`, { key: "key" }).health());
  assert(error instanceof Isol8ConnectionError && !error.maybeSent, error.message);
});

test("answers of others are errors", () =>
  withStub([{ status: 502, body: "<html>" }, { status: 200, body: "<html>" }], async ({ isol8 }) => {
    const foreign = await refused(execute(isol8));
    assert.deepEqual([foreign.status, foreign.code], [502, undefined]);
    assert.match((await refused(execute(isol8))).message, /not one of isol8's/);
  }));

test("events are sent by the server where there is no WebSocket", async () => {
  const exit = '{"type":"exit","data":"137","phase":"code","timedOut":true,"files":{"/tmp/x":"eA=="}}';
  const noUpgrade = { status: 404, body: { error: "no such route", code: "NOT_FOUND" } };
  const answers = [
    noUpgrade,
    refusal(429, "0"),
    { status: 200, body: `:\n\ndata: ${exit}\n\n` },
    noUpgrade,
    { status: 200, body: 'data: {"type":"stdout","data":"1","phase":"code"}\n\n' },
  ];
  await withStub(answers, async ({ isol8, asked }) => {
    const follow = async () => {
      const events = [];
      for await (const event of await isol8.executeStream(REQUEST)) {
        events.push(event);
      }
      return events;
    };
    const [event] = await follow();
    assert.deepEqual(asked, ["GET /execute/ws", "POST /execute/stream", "POST /execute/stream"]);
    const files = { "/tmp/x": new Uint8Array([120]) };
    assert.deepEqual(event, { type: "exit", data: "137", phase: "code", timedOut: true, files });
    const cut = await refused(follow());
    assert(cut instanceof Isol8ConnectionError);
    assert.match(cut.message, /before the exit/);
  });
});

test("events come in any pieces", async () => {
  const text = new TextEncoder().encode('data: {"é": "\u2028"}\n\n:\n\ndata: 2\r\n\r\ndata:3\n\n');
  for (let size = 1; size <= text.length; size += 1) {
    const pieces = new ReadableStream<Uint8Array>({
      start(controller) {
        for (let start = 0; start < text.length; start += size) {
          controller.enqueue(text.subarray(start, start + size));
        }
        controller.close();
      },
    });
    const events = [];
    for await (const event of serverSentEvents(pieces)) {
      events.push(event.trim());
    }
    assert.deepEqual(events, ['{"é": "\u2028"}', "2", "3"], `${size}`);
  }
});

test("an address that is no server is refused by name", () => {
  for (const bad of ["host", "localhost:3000", "ftp://host/"]) {
    assert.throws(() => new Isol8(bad, { key: "key" }), /is not the URL of a server/);
  }
});
