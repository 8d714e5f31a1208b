// Asynchronous work that a cell has started, and for how long its cell waits for it.
//
// The engine says when nothing is left that it would wait for at the end of a script. While a cell waits,
// everything that is not the cell's own finite work is taken out of that account (`unref`), and put back
// afterwards, because a later `await` may depend on it:
//
// - intervals, servers, and what else waits for others (watchers, bound datagram sockets);
// - what earlier cells have left;
// - after `OPEN_TIMEOUT`, connections, workers, and children whose end no code waits for: they may stay open for as long
//   as the session.

/** Looked up before cells put others in their places. */
const { Map, Object, Proxy, Reflect, Set, performance } = globalThis;
const { max, min } = globalThis.Math;

/** How long a cell waits for connections and workers that it leaves open, in milliseconds. */
const OPEN_TIMEOUT = 1000;

/** How often new servers and the like are looked for, in milliseconds: at first, and at most. */
const FIRST_PAUSE = 4;
const MAX_PAUSE = 100;

/** Number of timers above which those that are over are forgotten. */
const MANY_TIMERS = 256;

/** The cell must answer this long before its timeout, in milliseconds: at least, and at most. */
const MIN_MARGIN = 20;
const MAX_MARGIN = 500;

/** The line that a cell prints which ends before its work does. */
const NOTE = "--- CELL ENDED BEFORE ITS TIMEOUT, WORK THAT IT STARTED GOES ON ---";

const isPending = (timer) => !timer._destroyed;

export class Background {
  /** The engine's own functions. */
  #clock;
  /** Gives what there is: `{ waiting, open }`. */
  #scan;
  /** Knows which cell the running code belongs to; undefined where the engine cannot tell that cheaply. */
  #context;
  #cell = 0;
  #intervals = new Set();
  /** Timers of setTimeout and setImmediate: those of the running cell, and those of earlier ones. */
  #timers = [];
  #old = [];
  /** Handles that earlier cells have left. */
  #left = new Set();
  /** Handles that do not count. */
  #held = new Set();
  #deadline = Infinity;
  #since = 0;
  #look;
  #done;
  #isDrained = false;

  constructor(scan, AsyncLocalStorage) {
    this.#scan = scan;
    this.#context = AsyncLocalStorage && new AsyncLocalStorage();
    const { setTimeout, clearTimeout } = globalThis;
    this.#clock = { setTimeout, clearTimeout };
  }

  /** Runs the begin of a cell so that what it starts is known to be its. */
  run(begin) {
    const number = ++this.#cell;
    return this.#context ? this.#context.run(number, begin) : begin();
  }

  /** Whether a cell has nothing left to do but to wait. */
  get isWaiting() {
    return this.#done !== undefined;
  }

  /** Puts functions that keep account in the place of the ones that make timers. */
  observe(...places) {
    const replacements = new Map();
    const names = { setTimeout: false, setImmediate: false, setInterval: true };
    for (const place of places) {
      for (const [name, isInterval] of Object.entries(names)) {
        const original = place[name];
        if (!replacements.has(original)) replacements.set(original, this.#observed(original, isInterval));
        place[name] = replacements.get(original);
      }
    }
  }

  #observed(original, isInterval) {
    const apply = (target, self, given) => {
      const timer = Reflect.apply(target, self, given);
      if (typeof timer !== "object") return timer;
      if (isInterval) this.#addInterval(timer);
      else this.#addTimer(timer);
      return timer;
    };
    return new Proxy(original, { apply });
  }

  #addInterval(timer) {
    this.#intervals.add(timer);
    if (this.#intervals.size > MANY_TIMERS) this.#forgetIntervals();
    if (this.isWaiting) this.#hold(timer);
  }

  #addTimer(timer) {
    const cell = this.#context?.getStore() ?? this.#cell;
    const list = cell === this.#cell ? this.#timers : this.#old;
    list.push(timer);
    if (list === this.#old && this.isWaiting) this.#hold(timer);
    const { length } = list;
    if (length > MANY_TIMERS && (length & (length - 1)) === 0) this.#forgetTimers();
  }

  #forgetIntervals() {
    for (const timer of this.#intervals) if (!isPending(timer)) this.#intervals.delete(timer);
  }

  #forgetTimers() {
    this.#old = this.#old.filter(isPending);
    this.#timers = this.#timers.filter(isPending);
  }

  /** A cell begins that has this many milliseconds, or no end. */
  begin(limit) {
    this.#since = performance.now();
    this.#leaveTimers();
    const margin = max(MIN_MARGIN, min(MAX_MARGIN, limit / 10));
    this.#deadline = limit > 0 ? this.#since + limit - margin : Infinity;
  }

  /**
   * Calls `done` once no work of the cell is left, or, with a note, when its time is nearly over. `hasMore` asks the
   * engine whether it has more to do, if the engine can tell.
   */
  wait(done, hasMore) {
    this.#done = done;
    this.#since = performance.now();
    for (const timer of this.#old) this.#hold(timer);
    for (const timer of this.#intervals) this.#hold(timer);
    this.#holdHandles(false);
    if (hasMore?.() === false) this.drained();
    else this.#lookLater(FIRST_PAUSE);
  }

  #hold(one) {
    if (one.hasRef?.() === false || one._destroyed || one.destroyed === true || this.#held.has(one)) return;
    this.#held.add(one);
    one.unref?.();
  }

  #holdHandles(isLate) {
    const { waiting, open } = this.#scan();
    for (const one of waiting) this.#hold(one);
    for (const one of open) if (isLate || this.#left.has(one)) this.#hold(one);
  }

  #lookLater(pause) {
    const again = () => {
      const now = performance.now();
      if (now >= this.#deadline) return this.#finish(NOTE);
      this.#holdHandles(now - this.#since >= OPEN_TIMEOUT);
      this.#lookLater(min(pause * 2, MAX_PAUSE, max(1, this.#deadline - now)));
    };
    this.#look = this.#clock.setTimeout(again, pause);
    this.#look.unref();
  }

  /** The engine says that nothing is left. */
  drained() {
    this.#isDrained = true;
    this.#finish();
  }

  #finish(note) {
    const done = this.#done;
    this.#done = undefined;
    done?.(note);
  }

  /** The cell has ended, however it did. */
  end() {
    const isClean = this.#isDrained && this.#held.size === 0;
    this.#isDrained = false;
    this.#done = undefined;
    if (this.#look) this.#clock.clearTimeout(this.#look);
    this.#look = undefined;
    for (const one of this.#held) if (!one._destroyed) one.ref?.();
    this.#held.clear();
    this.#leaveTimers();
    if (this.#intervals.size > 0) this.#forgetIntervals();
    if (isClean && this.#left.size === 0) return;
    const { waiting, open } = this.#scan();
    this.#left = new Set([...waiting, ...open]);
  }

  /** Timers that are due later count as an earlier cell's from here on. */
  #leaveTimers() {
    if (this.#timers.length + this.#old.length === 0) return;
    this.#old = this.#old.concat(this.#timers).filter(isPending);
    this.#timers = [];
  }
}

/** Number of handles above which closed ones are forgotten. */
const MANY_HANDLES = 64;

const isClosed = (handle) => handle.destroyed === true || handle.listening === false || handle.exitCode != null;

/** Returns whether code waits for the end of this child process. */
export const isAwaited = (child) => child.listenerCount("exit") + child.listenerCount("close") > 0;

/** Sets a property, whether it is a plain one or has no setter. */
function define(owner, name, value) {
  if (Reflect.set(owner, name, value)) return;
  Object.defineProperty(owner, name, { value, writable: true, configurable: true });
}

/** Replaces a method by one that calls `note` with each result. */
function noteResults(owner, name, note) {
  const apply = (target, self, given) => {
    const result = Reflect.apply(target, self, given);
    note(result);
    return result;
  };
  define(owner, name, new Proxy(owner[name], { apply }));
}

/** Replaces a method by one that first calls `note` with the object that it is called on. */
function noteCalls(prototype, name, note) {
  const apply = (target, self, given) => {
    note(self);
    return Reflect.apply(target, self, given);
  };
  define(prototype, name, new Proxy(prototype[name], { apply }));
}

/** Replaces the class of this name in all owners by one that calls `note` with each instance. */
function noteInstances(owners, name, note) {
  const construct = (target, given, newTarget) => {
    const instance = Reflect.construct(target, given, newTarget);
    note(instance);
    return instance;
  };
  for (const owner of owners) {
    const original = owner[name];
    owner[name] = new Proxy(original, { construct });
    define(original.prototype, "constructor", owner[name]);
  }
}

/**
 * Notes the handles that an engine makes which has no list of them, as bun and deno: the functions that make handles are
 * replaced by ones that also note the result.
 */
export class Handles {
  /** Handles that wait for others, such as servers. */
  #waiting = new Set();
  /** Handles that may stay open, such as connections. */
  #open = new Set();
  /** Child processes of `node:child_process`. */
  #children = new Set();

  #add(list, handle) {
    if (!handle?.unref) return;
    if (list.size > MANY_HANDLES) for (const known of list) if (isClosed(known)) list.delete(known);
    list.add(handle);
  }

  /** Notes what the functions of these names give, at once or as a promise. */
  #noteFunctions(engine, names, list) {
    const note = (result) => {
      if (typeof result?.then !== "function") return this.#add(list, result);
      result.then((handle) => this.#add(list, handle), () => {});
    };
    for (const name of names) if (engine[name]) noteResults(engine, name, note);
  }

  /** Notes a server and the connections that it accepts, which wait for others. */
  #noteServer(server, net) {
    this.#add(this.#waiting, server);
    if (!(server instanceof net.Server)) return;
    server.on("connection", (socket) => this.#add(this.#waiting, socket));
  }

  /**
   * Watches the functions that make handles:
   * - `engine` is the engine's global object; its functions `listeners` give handles that wait for others, and its
   *   functions `connectors` give handles that may stay open;
   * - `servers` are the classes of node's whose method `listen` makes a server wait; `net` is `node:net`;
   * - `spawn` is the owner of the engine's own function of that name, and `hasInput` tells of a child that it gives
   *   whether the child was given a pipe to read from; `ChildProcess` is node's class;
   * - `workers` are the owners of a class `Worker`, and `workerHandle` gives what takes a worker out of the event loop's
   *   account.
   */
  observe({ engine, listeners, connectors, servers, net, spawn, hasInput, ChildProcess, workers, workerHandle }) {
    this.#noteFunctions(engine, listeners, this.#waiting);
    this.#noteFunctions(engine, connectors, this.#open);
    for (const { prototype } of servers) noteCalls(prototype, "listen", (server) => this.#noteServer(server, net));
    noteCalls(net.Socket.prototype, "connect", (socket) => this.#add(this.#open, socket));
    noteInstances([globalThis], "MessageChannel", ({ port1, port2 }) => {
      for (const port of [port1, port2]) this.#add(this.#open, port);
    });
    noteInstances(workers, "Worker", (worker) => this.#add(this.#open, workerHandle(worker)));
    // A child that no code waits for may wait for input.
    noteResults(spawn, "spawn", (child) => {
      if (hasInput(child)) this.#add(this.#open, child);
    });
    noteCalls(ChildProcess.prototype, "spawn", (child) => this.#add(this.#children, child));
  }

  /** Returns the handles that wait for others, and those that may stay open. */
  scan() {
    const children = [...this.#children].filter((child) => !isAwaited(child));
    return { waiting: [...this.#waiting], open: [...this.#open, ...children] };
  }
}
