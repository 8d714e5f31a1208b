/** The tour of the README runs as it stands there, with the Node that runs this, without being compiled. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";

import { KEY, startServer } from "./server.js";

/** The directory of the compiled tests is `build/test`. */
function file(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}

test("the README's tour runs", async () => {
  const page = await readFile(file("../../README.md"), "utf8");
  const tour = /^```ts\n([^]*?)^```$/m.exec(page)?.[1];
  assert(tour, "README.md has no block of TypeScript");
  const directory = await mkdtemp(join(tmpdir(), "isol8-client-"));
  const server = await startServer();
  try {
    const library = pathToFileURL(file("../src/index.js")).href;
    const program = tour.replace("isol8-client", library).replace("http://127.0.0.1:3000", server.url);
    const path = join(directory, "tour.mjs");
    await writeFile(path, program);
    const env = { ...process.env, ISOL8_API_KEY: KEY };
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [path], { env });
    assert.match(stdout, /^42 0\n[^]*World[^]*FILE_NOT_FOUND 404\n$/, stderr);
  } finally {
    await server.stop();
    await rm(directory, { recursive: true });
  }
});
