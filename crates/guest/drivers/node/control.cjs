// The connection to the guest: a socket for lines, and a mailbox for texts, which is a file in memory.

"use strict";

const { Buffer } = require("node:buffer");
const fs = require("node:fs");

const { fstatSync, readSync, writeSync } = fs;

/** The descriptor of the socket. */
const CONTROL = 3;
const MAILBOX = 4;

const { dev, ino } = fstatSync(CONTROL);

/** Sends a line to the guest. */
const send = (line) => writeSync(CONTROL, `${line}\n`);

/** Returns the words of a line from the guest. */
const splitWords = (line) => line.split(/\s/).filter(Boolean);

/** Waits for the next line from the guest, and returns its words; none if the guest is gone. */
function receive() {
  const line = Buffer.alloc(64);
  return splitWords(line.toString("latin1", 0, readSync(CONTROL, line)));
}

/** Returns the texts in the mailbox. Each follows its length in bytes, as 4 bytes, little-endian. `size` is in bytes. */
function readMailbox(size) {
  const data = Buffer.alloc(size);
  for (let filled = 0; filled < size; ) {
    const read = readSync(MAILBOX, data, filled, size - filled, filled);
    if (read === 0) break;
    filled += read;
  }
  const found = [];
  for (let at = 0; at < size; ) {
    const begin = at + 4;
    at = begin + data.readUInt32LE(at);
    found.push(data.toString("utf8", begin, at));
  }
  return found;
}

const closeMailbox = () => fs.closeSync(MAILBOX);

const nothing = Buffer.alloc(1);

/** Sends a last line, and waits until the guest ends this process; does nothing if the script has closed the socket. */
function sendLast(line) {
  try {
    const found = fstatSync(CONTROL);
    if (found.dev !== dev || found.ino !== ino) return;
    send(line);
    readSync(CONTROL, nothing);
  } catch {
    // The script has closed it.
  }
}

module.exports = { CONTROL, closeMailbox, readMailbox, receive, send, sendLast, splitWords };
