/** The server that is called, and the key, if a program names none. */

/** A server and its key. */
export interface Settings {
  url: string;
  key: string;
}

/** The parts of Node's globals that are used here; Bun and Deno have them too, browsers have not. */
interface Process {
  env?: Record<string, string | undefined>;
  getBuiltinModule?(name: "node:fs"): { readFileSync(path: string, encoding: "utf8"): string };
}

const NO_SERVER = "no server is named: pass its URL, set ISOL8_HOST, or use `isol8 login`";
const NO_KEY = "API key required: pass `key`, set ISOL8_API_KEY, or use `isol8 login`";

/**
 * The URL and the key: what is given, else `ISOL8_HOST` and `ISOL8_API_KEY`, else those of `isol8 login`.
 *
 * Empty texts count as missing. The key of a login is used for the server of that login only.
 *
 * @throws TypeError if there is no server or no key.
 */
export function settings(givenUrl: string | undefined, givenKey: string | undefined): Settings {
  const url = givenUrl || environment("ISOL8_HOST");
  const key = givenKey || environment("ISOL8_API_KEY");
  if (url && key) {
    return { url, key };
  }
  const login = readLogin();
  const host = url || login?.url;
  if (!host) {
    throw new TypeError(NO_SERVER);
  }
  const found = key || (login !== undefined && isSame(host, login.url) ? login.key : undefined);
  if (!found) {
    throw new TypeError(NO_KEY);
  }
  return { url: host, key: found };
}

function isSame(one: string, other: string): boolean {
  return one.replace(/\/+$/, "") === other.replace(/\/+$/, "");
}

function process(): Process | undefined {
  return (globalThis as { process?: Process }).process;
}

/** A variable of the environment; `undefined` in browsers, and where Deno does not permit reading it. */
function environment(name: string): string | undefined {
  try {
    return process()?.env?.[name];
  } catch {
    return undefined;
  }
}

/** Returns the settings that `isol8 login` keeps, if there are any. */
function readLogin(): Settings | undefined {
  const home = environment("HOME");
  const files = process()?.getBuiltinModule?.("node:fs");
  if (!home || files === undefined) {
    return undefined;
  }
  const path = `${home}/.isol8/login.json`;
  let text: string;
  try {
    text = files.readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
  return parsed(text, path);
}

function parsed(text: string, path: string): Settings {
  try {
    const { host, key } = JSON.parse(text) as { host: unknown; key: unknown };
    if (typeof host === "string" && typeof key === "string") {
      return { url: host, key };
    }
  } catch {
    // The error of the parser quotes the text, which holds a key.
  }
  throw new TypeError(`${path} is not a login: use \`isol8 logout\`, then \`isol8 login\``);
}
