/** Every verb, against a real server. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, describe, test } from "node:test";

import { bytesOf, type ExecutionStream, Isol8, Isol8ConnectionError, type StreamEvent } from "../src/index.js";
import { refused } from "./refused.js";
import { KEY, type Server, startServer, untilActive } from "./server.js";

const TRANSPORTS = ["websocket", "sse"] as const;

let server: Server;
before(async () => {
  server = await startServer();
});
after(() => server.stop());

function client(): Isol8 {
  return new Isol8(server.url, { key: KEY });
}

/** Runs a test in a session of its own. */
async function inSession(body: (session: Isol8) => Promise<void>): Promise<void> {
  const session = new Isol8(server.url, { key: KEY, sessionId: `typescript-${randomUUID()}` });
  try {
    await body(session);
  } finally {
    await session[Symbol.asyncDispose]();
  }
}

async function all(run: ExecutionStream): Promise<StreamEvent[]> {
  const events: StreamEvent[] = [];
  for await (const event of run) {
    events.push(event);
  }
  return events;
}

function textOf(events: StreamEvent[], type = "stdout"): string {
  return events.map((event) => (event.type === type ? event.data : "")).join("");
}

test("a program has a result", async () => {
  const result = await client().execute({ runtime: "python", code: "print(6 * 7)" });
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ["42", "", 0]);
  assert(result.executionId && result.timings && result.timings.runMs > 0);
});

test("a session is created before anything runs in it", async () => {
  const id = `typescript-${randomUUID()}`;
  const created = await client().createSession({
    runtime: "py",
    id,
    options: { memoryLimit: "256m" },
    env: { STAGE: "test" },
    files: { "/tmp/in": Uint8Array.of(255, 52, 50) },
  });
  assert.deepEqual([created.id, created.runtime, created.isActive], [id, "python", false]);
  const session = new Isol8(server.url, { key: KEY, sessionId: id });
  try {
    const code = "import os; print(os.environ['STAGE'], open('/tmp/in', 'rb').read())";
    const { stdout } = await session.execute({ runtime: "python", code });
    assert.equal(stdout, "test b'\\xff42'");
    const { code: refusedBy, status } = await refused(client().createSession({ runtime: "python", id }));
    assert.deepEqual([refusedBy, status], ["SESSION_EXISTS", 409]);
  } finally {
    await session.stop();
  }
});

test("bytes pass unchanged in both directions", async () => {
  const content = Uint8Array.of(255, 0, 10, 32);
  const request = { runtime: "bash", outputEncoding: "base64", trim: false } as const;
  const result = await client().execute({ ...request, code: "cat; printf 'text ' >&2", stdin: content });
  assert.deepEqual(bytesOf(result.stdout, result.stdoutEncoding), content);
  assert.equal(result.stderr, "text ");
  assert(result.resourceUsage && result.resourceUsage.cpuMs > 0);
  const run = await client().executeStream({ ...request, code: "cat" });
  run.sendStdin(content);
  run.endStdin();
  const events = await all(run);
  const written = events.flatMap((event) => (event.type === "stdout" ? [...bytesOf(event.data, event.encoding)] : []));
  assert.deepEqual(Uint8Array.from(written), content);
});

test("everything that a request may hold arrives", async () => {
  const bytes = Uint8Array.from({ length: 100_000 }, (_, index) => index % 256);
  const result = await client().execute(
    {
      runtime: "bash",
      code: 'read line; echo "$line $GIVEN $SECRET"; cat text bytes > made; exit 3',
      env: { GIVEN: "given" },
      stdin: "told\n",
      files: { "/sandbox/text": "é", "/sandbox/bytes": bytes },
      outputPaths: ["/sandbox/made", "/sandbox/none"],
      metadata: { who: "test" },
    },
    { options: { memoryLimit: "128m", cpuLimit: 0.5, secrets: { SECRET: "hunter2" } } },
  );
  assert.deepEqual([result.stdout, result.exitCode], ["told given ***", 3], result.stderr);
  const made = result.files?.["/sandbox/made"];
  assert.deepEqual(Object.keys(result.files ?? {}), ["/sandbox/made"]);
  assert.deepEqual(made, new Uint8Array([0xc3, 0xa9, ...bytes]));
});

test("a timeout is a result", async () => {
  const result = await client().execute({ runtime: "bash", code: "echo early; sleep 60", timeoutMs: 200 });
  assert.deepEqual([result.timedOut, result.exitCode, result.stdout], [true, 137, "early"]);
});

test("a session keeps variables until it is stopped", async () => {
  let id: string | undefined;
  await inSession(async (session) => {
    id = session.sessionId;
    await session.execute({ runtime: "python", code: "x = 41" });
    assert.equal((await session.execute({ runtime: "python", code: "print(x + 1)" })).stdout, "42");
    const found = (await session.sessions()).find((each) => each.id === id);
    assert.deepEqual([found?.runtime, found?.isActive], ["python", false]);
  });
  assert(!(await client().sessions()).some((each) => each.id === id));
  await client().deleteSession(String(id)); // As good as deleted.
});

test("the server is well", async () => {
  const health = await client().health();
  assert.deepEqual([health.status, health.backend], ["ok", "native"]);
});

test("refusals are typed", () =>
  inSession(async (session) => {
    const invalid = await refused(session.execute({ runtime: "python", code: "1", timeoutMs: 0 }));
    assert.deepEqual([invalid.code, invalid.status, invalid.name], ["INVALID_REQUEST", 400, "Isol8Error"]);
    assert.match(invalid.message, /timeoutMs/);
    await session.execute({ runtime: "python", code: "1" });
    const mismatch = await refused(session.execute({ runtime: "bash", code: "1" }));
    assert.deepEqual([mismatch.code, mismatch.status], ["RUNTIME_MISMATCH", 409]);
    const stranger = new Isol8(server.url, { key: "wrong" });
    const wrong = await refused(stranger.execute({ runtime: "bash", code: "1" }));
    assert.deepEqual([wrong.code, wrong.status], ["FORBIDDEN", 403]);
    const followed = await refused(stranger.executeStream({ runtime: "bash", code: "1" }));
    assert.deepEqual([followed.code, followed.status], ["FORBIDDEN", 403]);
  }));

test("a repeated call with a key runs once", async () => {
  const request = { runtime: "bash", code: "echo $RANDOM$RANDOM" } as const;
  const idempotencyKey = randomUUID();
  const first = await client().execute(request, { idempotencyKey });
  assert.deepEqual(await client().execute(request, { idempotencyKey }), first);
  assert.notEqual((await client().execute(request)).executionId, first.executionId);
});

test("files go in and out", () =>
  inSession(async (session) => {
    await session.execute({ runtime: "bash", code: ":" });
    const odd = "/sandbox/new/a b%2F?#é\n.bin";
    const content = Uint8Array.from({ length: 4 << 20 }, (_, index) => index % 251);
    await session.putFile(odd, content);
    assert(Buffer.compare(await session.getFile(odd), content) === 0);
    const lengths: number[] = [];
    for await (const piece of await session.streamFile(odd)) {
      lengths.push(piece.length);
    }
    assert.equal(lengths.reduce((sum, length) => sum + length), content.length);
    assert(lengths.length > 1);
    await session.putFile("/sandbox/new/stream", new Blob(["one", "two"]).stream());
    await session.putFile("/sandbox/new/text", "é");
    assert.equal(new TextDecoder().decode(await session.getFile("/sandbox/new/stream")), "onetwo");
    const { entries, truncated } = await session.listFiles("/sandbox/new");
    const found = entries.map((entry) => [entry.name, entry.type, entry.size]);
    assert.deepEqual(found, [
      ["a b%2F?#é\n.bin", "file", content.length],
      ["stream", "file", 6],
      ["text", "file", 2],
    ]);
    assert.equal(truncated, false);
  }));

test("files that cannot be had are refused", () =>
  inSession(async (session) => {
    await session.execute({ runtime: "bash", code: ":" });
    const none = await refused(session.getFile("/sandbox/none"));
    assert.deepEqual([none.code, none.status], ["FILE_NOT_FOUND", 404]);
    assert.equal((await refused(session.streamFile("/etc/passwd"))).status, 400);
    await assert.rejects(client().getFile("/sandbox/x"), /sessionId/);
    await assert.rejects(session.getFile("/../../other/files/sandbox/secret"), TypeError);
  }));

for (const transport of TRANSPORTS) {
  describe(`over ${transport}`, () => {
    test("a run is followed", async () => {
      const code = "printf 'out\\u2028\\n'; sleep 0.1; echo err >&2; exit 3";
      const request = { runtime: "bash", code, setupScript: "echo setting up" } as const;
      const events = await all(await client().executeStream(request, { transport }));
      assert.deepEqual(events, [
        { type: "stdout", data: "setting up\n", phase: "setup" },
        { type: "stdout", data: "out\u2028\n", phase: "code" },
        { type: "stderr", data: "err\n", phase: "code" },
        { type: "exit", data: "3", phase: "code" },
      ]);
    });

    test("much output arrives whole", async () => {
      const request = { runtime: "python", code: "print('é' * 1_500_000)" } as const;
      const options = { maxOutputSize: 8 << 20 };
      const events = await all(await client().executeStream(request, { transport, options }));
      assert.equal(textOf(events), `${"é".repeat(1_500_000)}\n`);
    });

    test("leaving a stream ends its run", () =>
      inSession(async (session) => {
        const request = { runtime: "bash", code: "echo ready; sleep 600", timeoutMs: 600_000 } as const;
        for await (const event of await session.executeStream(request, { transport })) {
          assert.equal(event.data, "ready\n");
          await untilActive(session, true);
          break;
        }
        await untilActive(session, false);
      }));

    test("an aborted stream ends its run and throws the reason", () =>
      inSession(async (session) => {
        const request = { runtime: "bash", code: "echo ready; sleep 600", timeoutMs: 600_000 } as const;
        const abort = new AbortController();
        const run = await session.executeStream(request, { transport, signal: abort.signal });
        const following = (async () => {
          for await (const event of run) {
            assert.equal(event.data, "ready\n");
            abort.abort(new Error("enough"));
          }
        })();
        await assert.rejects(following, /enough/);
        await untilActive(session, false);
        await assert.rejects(
          session.executeStream(request, { transport, signal: abort.signal }),
          /enough/,
        );
      }));

    test("a stream that fails throws", async () => {
      const broken = { runtime: "bash", code: "echo never", setupScript: "exit 4" } as const;
      const failed = await refused(client().executeStream(broken, { transport }).then(all));
      assert.match(failed.message, /4/);
      assert(!(failed instanceof Isol8ConnectionError));
      const invalid = { runtime: "bash", code: "1", timeoutMs: 0 } as const;
      assert.match((await refused(client().executeStream(invalid, { transport }).then(all))).message, /timeoutMs/);
    });
  });
}

test("a program is written to", () =>
  inSession(async (session) => {
    const code = "import sys\nfor line in sys.stdin: print('got', len(line), flush=True)";
    const run = await session.executeStream({ runtime: "python", code });
    run.sendStdin(`x${"\u{1f980}".repeat(150_000)}\n`);
    const events: StreamEvent[] = [];
    for await (const event of run) {
      events.push(event);
      if (textOf(events) === "got 150002\n") {
        run.sendStdin("x\n");
        run.endStdin();
      }
    }
    assert.equal(textOf(events), "got 150002\ngot 2\n");
    assert.equal(events.at(-1)?.data, "0");
  }));

test("a program is signalled", async () => {
  const code = "import time; print('ready', flush=True); time.sleep(60)";
  const run = await client().executeStream({ runtime: "python", code });
  const events: StreamEvent[] = [];
  for await (const event of run) {
    events.push(event);
    if (event.type === "stdout") {
      run.sendSignal("SIGINT");
    }
  }
  assert.equal(events.at(-1)?.data, "130");
  assert.match(textOf(events, "stderr"), /KeyboardInterrupt/);
});

test("an aborted call ends its run", () =>
  inSession(async (session) => {
    const abort = new AbortController();
    const request = { runtime: "bash", code: "sleep 600", timeoutMs: 600_000 } as const;
    const call = session.execute(request, { signal: abort.signal });
    const rejected = assert.rejects(call, /enough/);
    await untilActive(session, true);
    abort.abort(new Error("enough"));
    await rejected;
    await untilActive(session, false);
  }));

test("server-sent events take no messages, and are what there is without a WebSocket", async () => {
  const browser = new Isol8(server.url, {
    key: KEY,
    webSocket: () => {
      throw new SyntaxError("a browser's takes no headers");
    },
  });
  const run = await browser.executeStream({ runtime: "bash", code: "cat" });
  assert.throws(() => run.sendStdin("x"), /no WebSocket/);
  run.close();
  assert(await refused(all(run)));
});
