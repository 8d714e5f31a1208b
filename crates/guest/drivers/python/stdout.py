"""Standard output of a program whose lines are to be seen as they are printed, at a pipe too.

Each line is written at once, as at a terminal: so it can be followed, and is not lost with the process. A line costs a
system call then. A program that prints thousands of lines a second gets its blocks back for the next `PAUSE`, at whose
end a thread writes what is left and goes.
"""

import sys

loaded = set(sys.modules)
import _io
import _signal
import _thread
import atexit
import os
from time import monotonic

for name in set(sys.modules) - loaded:
    sys.modules.pop(name)

# Lines that are written at once, whenever they come; and after these as many a second.
BURST, RATE = 1000, 2000

# Seconds for which lines may be held back.
PAUSE = 0.02

write_out = _io.BufferedWriter.flush


class LineOutput:
    """A standard output in the place of the interpreter's `own`."""

    def __init__(self, own):
        self.encoding, self.errors, self.mode = own.encoding, own.errors, own.mode
        self.writer = writer_class(self)
        self.text = None
        # How many lines are still written at once, as of a moment.
        self.left, self.since = BURST, monotonic()
        self.is_over = self.is_watched = self.is_releasing = False
        # Held while lines are held back.
        self.busy = _thread.allocate_lock()
        # Released to have the lines sooner than after the pause.
        self.sooner = _thread.allocate_lock()
        self.sooner.acquire()
        # Held by the thread.
        self.running = _thread.allocate_lock()

    def put(self, raw):
        """Puts a stream that writes to `raw` in the place of standard output."""
        self.text = _io.TextIOWrapper(self.writer(raw), self.encoding, self.errors, "\n", True)
        self.text.mode = self.mode
        sys.stdout = sys.__stdout__ = self.text

    def renew(self):
        """Puts a new stream in the place of standard output."""
        self.stop()
        raw = _io.FileIO(1, "w", closefd=False)
        raw.name = "<stdout>"
        self.put(raw)

    def refill(self):
        now = monotonic()
        self.left, self.since = min(BURST, int((now - self.since) * RATE)), now
        if self.left == 0 and self.text.line_buffering and not self.is_over:
            self.hold_back()

    def hold_back(self):
        """Starts to hold lines back. Waits for nothing, because a handler of a signal may have come in between."""
        if not self.is_watched:
            self.watch()
        if not self.busy.acquire(False):
            return
        try:
            if not self.running.acquire(False) or not self.start_thread():
                return
            self.left = 2  # The next call, too, writes out.
            self.text.reconfigure(line_buffering=False)
        finally:
            self.busy.release()

    def start_thread(self):
        """Starts the thread that lets lines go. Returns `False` if the process may have no more threads."""
        try:
            _thread.start_new_thread(self.release, ())
        except BaseException as error:
            self.running.release()
            self.left = BURST
            if isinstance(error, RuntimeError):
                return False
            raise
        return True

    def release(self):
        """Writes in the thread what was held back, and lets lines be written at once again."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        self.sooner.acquire(timeout=PAUSE)
        with self.busy:
            self.is_releasing = True
            try:
                self.text.reconfigure(line_buffering=True)
                # Text that was printed while the first flush let other threads run.
                self.text.flush()
            except BaseException:
                pass  # Standard output is closed, or its reader has gone.
            self.is_releasing = False
            self.running.release()

    def stop(self):
        """Ends the thread: it must neither be lost in a fork nor meet the end of the interpreter."""
        if self.running.locked():
            try:
                self.sooner.release()
            except RuntimeError:
                pass  # Another call has released the lock.
            # The reader of the output may be slow.
            if self.running.acquire(timeout=1):
                self.running.release()
            self.sooner.acquire(False)

    def end(self):
        self.is_over = True
        self.stop()

    def watch(self):
        self.is_watched = True
        os.register_at_fork(before=self.stop)
        atexit.register(self.end)


def writer_class(lines):
    """Returns a class of writers that count the lines of an output, and that look like the interpreter's own."""

    class BufferedWriter(_io.BufferedWriter):
        def flush(self):
            write_out(self)
            lines.left -= 1
            if lines.left < 0 and not lines.is_releasing:
                lines.refill()

    BufferedWriter.__module__ = "_io"
    BufferedWriter.__name__, BufferedWriter.__qualname__ = "_io.BufferedWriter", "BufferedWriter"
    return BufferedWriter


def make():
    """Has the interpreter's standard output written line by line, unless it is already. Returns a function that puts a
    new stream in its place."""
    own = sys.stdout
    if own is None:
        return lambda: None
    output = LineOutput(own)
    if not (own.line_buffering or own.write_through):
        output.put(own.detach().detach())
    return output.renew
