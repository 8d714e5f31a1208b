// Asynchronous work that a cell has started, and for how long its cell waits for it.
//
// The engine says when nothing is left that it would wait for at the end of a script. While a cell waits,
// everything that is not the cell's own finite work is taken out of that account (`unref`), and put back
// afterwards, because a later `await` may depend on it:
//
// - intervals, servers, and what else waits for others (watchers, bound datagram sockets);
// - what earlier cells have left;
// - after `OPEN_FOR`, connections, workers, and children whose end no code waits for: they may stay open for as long
//   as the session.

/** Looked up before cells put others in their places. */
const { Proxy, Reflect, Set, performance } = globalThis;
const { max, min } = globalThis.Math;

/** How long a cell waits for connections and workers that it leaves open, in milliseconds. */
const OPEN_FOR = 1000;

/** How often new servers and the like are looked for, in milliseconds: at first, and at most. */
const FIRST_LOOK = 4;
const LAST_LOOK = 100;

/** Above so many, timers that are over are forgotten. */
const MANY_TIMERS = 256;

/** The cell must answer this long before its timeout, in milliseconds: at least, and at most. */
const LEAST_MARGIN = 20;
const MOST_MARGIN = 500;

export const NOTE = "--- CELL ENDED BEFORE ITS TIMEOUT, WORK THAT IT STARTED GOES ON ---";

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
    const margin = max(LEAST_MARGIN, min(MOST_MARGIN, limit / 10));
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
    else this.#lookLater(FIRST_LOOK);
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
      this.#holdHandles(now - this.#since >= OPEN_FOR);
      this.#lookLater(min(pause * 2, LAST_LOOK, max(1, this.#deadline - now)));
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
