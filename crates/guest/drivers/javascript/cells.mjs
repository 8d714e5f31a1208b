// Runs one cell after the other, as far as that is the same in all engines of JavaScript.

/** Looked up before cells put others in their places: what they declare is global. */
const { Number, Object, Promise, process } = globalThis;
const { listeners, on } = process;

/** Returns the answer that carries a cell's exit code. */
export const exitAnswer = (code) => `code ${Number(code ?? 0) & 255}`;

/** Returns the directory at which relative paths begin; `undefined` if code has removed it. */
export function currentDirectory() {
  try {
    return process.cwd();
  } catch {
    return undefined;
  }
}

/**
 * Enters the directory of a cell, if one is given. Returns a function that goes back, unless the code went elsewhere.
 * Throws if the directory cannot be entered.
 */
function enterDirectory(directory) {
  if (!directory) return () => {};
  const before = currentDirectory();
  process.chdir(directory);
  const entered = currentDirectory();
  return () => {
    const now = currentDirectory();
    if (before === undefined || (now !== entered && now !== undefined)) return;
    try {
      process.chdir(before);
    } catch {
      // The cell removed it.
    }
  };
}

/** Sets the variables of a cell. Returns a function that restores them, unless the code changed them. */
function setVariables(pairs) {
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

/** Waits for output that code has left to the event loop. */
export function flush(stream) {
  if (!stream?.writableLength || stream.destroyed) return;
  return new Promise((resolve) => {
    stream.once("close", resolve);
    stream.write("", resolve);
  });
}

/** Identifies the file that a descriptor leads to; `undefined` if the descriptor is closed. */
export function identifyFile(fstatSync, descriptor) {
  try {
    const { dev, ino } = fstatSync(descriptor);
    return `${dev} ${ino}`;
  } catch {
    return undefined;
  }
}

/** Adds listeners of the process, by event, that are not there: code may have removed all listeners. */
export function keepListeners(wanted) {
  for (const [event, listener] of Object.entries(wanted)) {
    if (!listeners.call(process, event).includes(listener)) on.call(process, event, listener);
  }
}

/** Names in the global scope of cells that change from cell to cell. */
export class GlobalNames {
  #values = {};

  /** Defines the names, except those under which code has put a value of its own. */
  define(values) {
    for (const [name, value] of Object.entries(values)) {
      if (globalThis[name] !== this.#values[name]) continue;
      this.#values[name] = value;
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
  }
}

const ignore = () => {};

/** Runs the cells that the guest asks for. Each engine has a subclass, which overrides the methods that do nothing here. */
export class CellRunner {
  #send;
  #readMailbox;
  #input;
  #outputs;
  #background;
  #Exit;
  /** Ends the running cell with this answer. */
  finish = ignore;

  constructor({ send, readMailbox, input, outputs, background, Exit }) {
    this.#send = send;
    this.#readMailbox = readMailbox;
    this.#input = input;
    this.#outputs = outputs;
    this.#background = background;
    this.#Exit = Exit;
  }

  /** Prepares the engine for a cell, in its directory, but before its variables are set. */
  prepare(_number, _source) {}

  /** Has the engine's clients use the proxy that the variables name. May return a function that undoes it. */
  useNetwork() {}

  /** Lets the event loop end while a cell runs, so that the engine says when nothing is left to do. */
  releaseLoop() {}

  /** Keeps the event loop alive between cells. */
  holdLoop() {}

  /** Evaluates a cell, and calls `resolve` with its answer. */
  evaluate(_number, _source, _resolve) {}

  /** Waits until all output of the cell is written. */
  async flush(_source) {}

  get exitCode() {
    return process.exitCode;
  }

  set exitCode(code) {
    process.exitCode = code;
  }

  /** Forgets the exit code of the last cell. */
  resetExitCode() {
    process.exitCode = undefined;
  }

  /** Stands for the engine's exit calls: ends the running cell, but not the process. */
  exit = (code) => {
    if (code !== undefined) this.exitCode = code;
    this.finish(exitAnswer(this.exitCode));
    throw new this.#Exit();
  };

  /** Runs the cell of a request, and sends the answer. */
  async answer([number, size, limit]) {
    const answer = await this.#run(Number(number), Number(limit), this.#readMailbox(Number(size)));
    this.#send(`cell ${number} ${answer}`);
  }

  async #run(number, limit, [directory, stdin, source, ...pairs]) {
    let leaveDirectory;
    try {
      leaveDirectory = enterDirectory(directory);
    } catch {
      return "directory";
    }
    this.#outputs.repair();
    this.#input.use(stdin);
    this.prepare(number, source);
    const restoreVariables = setVariables(pairs);
    const leaveNetwork = this.useNetwork();
    this.resetExitCode();
    this.#send(`begun ${number}`);
    this.releaseLoop();
    this.#background.begin(limit);
    const answer = await new Promise((resolve) => {
      this.finish = resolve;
      this.#background.run(() => this.evaluate(number, source, resolve));
    });
    this.holdLoop();
    this.finish = ignore;
    this.#background.end();
    this.resetExitCode();
    leaveNetwork?.();
    restoreVariables();
    leaveDirectory();
    if (stdin) this.#input.use("");
    await this.flush(source);
    return answer;
  }
}
