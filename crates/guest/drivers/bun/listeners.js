// Listeners of the process that cells add, where bun tells them more than they shall know.

"use strict";

const EventEmitter = require("node:events");

/** Looked up before cells put others in their places. */
const { Object, Proxy, Reflect, Set, process } = globalThis;

const UNHANDLED = "unhandledRejection";

/** Methods by which listeners come, go, and are told. */
const LISTENER_METHODS = ["addListener", "emit", "listenerCount", "listeners", "off", "on", "once", "prependListener"]
  .concat("prependOnceListener", "rawListeners", "removeAllListeners", "removeListener");

/** Events that happen to bun at other times than to the code. */
const SEPARATE_EVENTS = new Set([UNHANDLED, "beforeExit"]);

/**
 * Keeps the code's listeners for some events apart: bun tells those for rejections all that it knows of exits too,
 * and each cell that waits comes to what bun takes for its own end. `listen` makes up for listeners that the code has
 * removed.
 */
function separateListeners(listen) {
  const apart = new EventEmitter();
  const prototype = Object.getPrototypeOf(process);
  for (const method of LISTENER_METHODS) {
    const apply = (target, self, given) => {
      if (self !== process || !SEPARATE_EVENTS.has(given[0] ?? UNHANDLED)) return Reflect.apply(target, self, given);
      const answer = apart[method](...given);
      if (given.length === 0) {
        Reflect.apply(target, self, given);
        listen();
      }
      return answer === apart ? process : answer;
    };
    prototype[method] = new Proxy(prototype[method], { apply });
  }
  return apart;
}

module.exports = { UNHANDLED, separateListeners };
