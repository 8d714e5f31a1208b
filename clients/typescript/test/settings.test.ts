/** The server that is called, the key, and the warnings about both. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Isol8 } from "../src/index.js";
import { settings } from "../src/settings.js";

const HERE = "http://127.0.0.1:1";
const ELSEWHERE = "http://127.0.0.1:2";
const LOGIN = JSON.stringify({ host: `${HERE}/`, key: "of the login" });

interface Case {
  url?: string;
  key?: string;
  host?: string;
  envKey?: string;
  login?: string;
  expected: [string, string] | RegExp;
}

const CASES: Case[] = [
  { url: HERE, key: "k", expected: [HERE, "k"] },
  { url: HERE, key: "k", host: ELSEWHERE, envKey: "e", login: LOGIN, expected: [HERE, "k"] },
  { host: ELSEWHERE, envKey: "e", login: LOGIN, expected: [ELSEWHERE, "e"] },
  { login: LOGIN, expected: [`${HERE}/`, "of the login"] },
  { host: "", envKey: "", login: LOGIN, expected: [`${HERE}/`, "of the login"] },
  { envKey: "e", login: LOGIN, expected: [`${HERE}/`, "e"] },
  { url: HERE, login: LOGIN, expected: [HERE, "of the login"] },
  // A login's key goes nowhere else.
  { url: ELSEWHERE, login: LOGIN, expected: /API key required/ },
  { host: ELSEWHERE, login: LOGIN, expected: /API key required/ },
  { expected: /no server is named/ },
  { key: "k", envKey: "e", expected: /no server is named/ },
  { url: HERE, expected: /API key required/ },
  { login: "{hunter2", expected: /^(?!.*hunter2).*is not a login/ },
  { login: '["hunter2"]', expected: /^(?!.*hunter2).*is not a login/ },
];

/** Sets a variable of this process's environment, or removes it. */
function setVariable(name: string, value: string | undefined): void {
  if (value === undefined) {
    delete process.env[name];
  } else {
    process.env[name] = value;
  }
}

test("a server and a key are found", () => {
  for (const { url, key, host, envKey, login, expected } of CASES) {
    const home = mkdtempSync(join(tmpdir(), "isol8-client-"));
    try {
      if (login !== undefined) {
        mkdirSync(join(home, ".isol8"));
        writeFileSync(join(home, ".isol8", "login.json"), login);
      }
      setVariable("HOME", home);
      setVariable("ISOL8_HOST", host);
      setVariable("ISOL8_API_KEY", envKey);
      if (expected instanceof RegExp) {
        const call = () => new Isol8(url, key === undefined ? {} : { key });
        assert.throws(call, (error: Error) => error instanceof TypeError && expected.test(error.message));
      } else {
        assert.deepEqual(settings(url, key), { url: expected[0], key: expected[1] });
      }
    } finally {
      rmSync(home, { recursive: true });
    }
  }
});

test("a key that is sent unencrypted is warned of", () => {
  const cases: [string, boolean][] = [
    ["http://isol8.example.com", true],
    ["HTTP://10.0.0.1:3000/", true],
    ["http://[2001:db8::1]:3000", true],
    ["http://localhost.example.com", true],
    ["http://127.0.0.1.example.com", true],
    ["https://isol8.example.com", false],
    ["http://127.0.0.1:3000", false],
    ["http://127.1:3000", false],
    ["http://[::1]:3000", false],
    ["http://[::ffff:127.0.0.1]:3000", false],
    ["http://localhost:3000", false],
    ["http://dev.localhost", false],
  ];
  for (const [url, expected] of cases) {
    const told: string[] = [];
    new Isol8(url, { key: "hunter2", onWarning: (text) => told.push(text) });
    assert.equal(told.length, expected ? 1 : 0, url);
    assert(told.every((text) => text.includes("can be read on the way") && !text.includes("hunter2")));
  }
});

test("warnings of the server reach the program", async () => {
  const exit = 'data: {"type":"exit","data":"0","phase":"code"}\n\n';
  const server = createServer((request, response) => {
    response.setHeader("X-Isol8-Warning", "doubtful");
    response.end(request.url === "/execute" ? '{"stdout":"","exitCode":0}' : exit);
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    const told: string[] = [];
    const isol8 = new Isol8(url, { key: "key", onWarning: (text) => told.push(text) });
    const request = { runtime: "bash", code: "true" } as const;
    assert.deepEqual((await isol8.execute(request)).warnings, ["doubtful"]);
    const run = await isol8.executeStream(request, { transport: "sse" });
    for await (const event of run) {
      assert.equal(event.type, "exit");
    }
    assert.deepEqual([run.warnings, told], [["doubtful"], ["doubtful", "doubtful"]]);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
