// Reports the end of a script to the guest, before node takes its engine apart.

"use strict";

const process = require("node:process");
const { sendLast } = require("./control.cjs");

/** The code with which node ends if a top-level `await` is never settled; it prints a warning then. */
const UNSETTLED = 13;
/** The code with which node ends after an uncaught error. */
const UNCAUGHT = 1;

/**
 * Reports the end of a script whose code is certain. Listeners and functions of the driver would be seen, so they are put
 * in place when `exit` is about to be emitted: node looks up `emit` on the process then.
 */
exports.reportEnd = () => {
  const { reallyExit } = process;
  const activeRequests = process._getActiveRequests.bind(process);
  const prototype = Object.getPrototypeOf(process);
  const emitter = Object.getPrototypeOf(prototype);
  let isReported = false;

  function report(code) {
    // Node waits for work of other threads, such as writing to a file.
    if (isReported || process.reallyExit !== exit || activeRequests().length > 0) return;
    isReported = true;
    // The guest ends this process, once there is time to take its memory apart.
    sendLast(`ended ${code & 255}`);
  }

  /** Ends the process if no listener of the script would run, after an exit call or not. */
  function end(code) {
    // The text of an uncaught error comes later.
    if (code !== UNSETTLED && code !== UNCAUGHT) report(Number(code));
  }

  /** The last that an exit call does. */
  function exit(code) {
    report(Number(code));
    reallyExit.call(process, code);
  }

  Object.defineProperty(prototype, "emit", {
    configurable: true,
    enumerable: true,
    get() {
      if (this === process && process._exiting) {
        if (process.reallyExit === reallyExit) process.reallyExit = exit;
        process._events.exit ??= end;
      }
      return emitter.emit;
    },
    set(value) {
      Object.defineProperty(this, "emit", { value, writable: true, enumerable: true, configurable: true });
    },
  });
};
