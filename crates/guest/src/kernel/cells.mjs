// The functions that every interpreter of JavaScript calls around a cell.

/** Looked up before cells put others in their places: what they declare is global. */
const { Number, Promise, process } = globalThis;

/** The answer that carries a cell's exit code. */
export const code = (number) => `code ${Number(number ?? 0) & 255}`;

/** The directory at which relative paths begin; `undefined` if the code has removed it. */
export function currentDirectory() {
  try {
    return process.cwd();
  } catch {
    return undefined;
  }
}

/** Enters the directory, if one is given; what comes back returns, unless the code went elsewhere. */
export function enter(directory) {
  if (!directory) return () => {};
  const before = currentDirectory();
  process.chdir(directory);
  const there = currentDirectory();
  return () => {
    const here = currentDirectory();
    if (before === undefined || (here !== there && here !== undefined)) return;
    try {
      process.chdir(before);
    } catch {
      // The cell removed it.
    }
  };
}

/** Sets variables of one cell; what comes back restores them, unless the code changed them. */
export function overlay(pairs) {
  const { env } = process;
  const saved = [];
  for (let at = 0; at + 1 < pairs.length; at += 2) {
    const [name, value] = pairs.slice(at, at + 2);
    saved.push([name, value, env[name]]);
    env[name] = value;
  }
  return () => {
    for (const [name, value, before] of saved.reverse()) {
      if (process.env[name] !== value) continue;
      if (before === undefined) delete process.env[name];
      else process.env[name] = before;
    }
  };
}

/** Output that the code has left to the event loop. */
export function flushed(stream) {
  if (!stream?.writableLength || stream.destroyed) return;
  return new Promise((resolve) => {
    stream.once("close", resolve);
    stream.write("", resolve);
  });
}
