/** A server of the tests' own, of the executable that $ISOL8 names. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import type { Isol8 } from "../src/index.js";

export const KEY = "clients-key-5b2e";
export const PATIENCE_MS = 60_000;

export interface Server {
  url: string;
  /** Ends it, and expects a clean end. */
  stop(): Promise<void>;
}

export async function startServer(): Promise<Server> {
  const executable = process.env["ISOL8"];
  if (executable === undefined) {
    throw new Error("ISOL8 is not set: name isol8's executable in it");
  }
  const state = await mkdtemp(join(tmpdir(), "isol8-client-"));
  // The ids of sandboxes have no user here, and must pass through.
  await chmod(state, 0o711);
  const config = join(state, "config.toml");
  await writeFile(config, "");
  const environment: NodeJS.ProcessEnv = { ...process.env, ISOL8_API_KEY: KEY, ISOL8_STATE_DIR: state };
  delete environment["RUST_LOG"];
  const server = spawn(executable, ["serve", "--port", "0", "--backend", "native", "--config", config], {
    env: environment,
    stdio: ["ignore", "inherit", "pipe"],
  });
  const ended = once(server, "exit");
  const log = createInterface({ input: server.stderr });
  const seen: string[] = [];
  const url = await new Promise<string>((resolve, reject) => {
    log.on("line", (line) => {
      seen.push(line);
      const address = line.split("address=")[1];
      if (address !== undefined) {
        resolve(`http://${address.trim()}`);
      }
    });
    log.on("close", () => reject(new Error(`the server did not start: ${seen.join("\n")}`)));
  });
  const stop = async () => {
    server.kill("SIGTERM");
    const [status] = await ended;
    await rm(state, { recursive: true, force: true });
    if (status !== 0) {
      throw new Error(`the server ended with ${status}: ${seen.join("\n")}`);
    }
  };
  return { url, stop };
}

/** Waits until a session is busy, or is not. */
export async function untilActive(isol8: Isol8, active: boolean): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  const isActive = async () => (await isol8.sessions()).find(({ id }) => id === isol8.sessionId)?.isActive;
  while ((await isActive()) !== active) {
    if (Date.now() > deadline) {
      throw new Error(`waited in vain until the session's activity is ${active}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
