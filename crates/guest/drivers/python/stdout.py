"""Standard output of a program whose lines are to be seen as they are printed, at a pipe too.

Each line is written at once, as at a terminal: so it can be followed, and is not lost with the process. A
line costs a system call then. A program that prints thousands of lines a second gets its blocks back for the
next `PAUSE`, at whose end a thread writes what is left and goes.
"""


def make():
    """Makes the stream of the interpreter one that is written line by line, unless it is already. Returns what
    puts a new one in its place."""
    import sys

    own = sys.stdout
    if own is None:
        return lambda: None
    modules = set(sys.modules)
    import _io
    import _signal
    import _thread
    import atexit
    import os
    from time import monotonic

    for name in set(sys.modules) - modules:
        sys.modules.pop(name)

    # Lines that are written at once, whenever they come; and after these as many a second.
    BURST, RATE = 1000, 2000
    # Seconds for which lines may be held back.
    PAUSE = 0.02

    left, since = BURST, monotonic()
    is_over = is_watched = is_releasing = False
    # Held while lines are held back; released by who wants them sooner; held by the thread.
    busy, sooner, running = (_thread.allocate_lock() for _ in range(3))
    sooner.acquire()
    write_out = _io.BufferedWriter.flush

    class BufferedWriter(_io.BufferedWriter):
        def flush(self):
            nonlocal left
            write_out(self)
            left -= 1
            if left < 0 and not is_releasing:
                refill()

    def refill():
        nonlocal left, since
        now = monotonic()
        left, since = min(BURST, int((now - since) * RATE)), now
        if left == 0 and text.line_buffering and not is_over:
            hold_back()

    def hold_back():
        """Starts to hold lines back. Nothing is waited for: a handler of a signal may have come in between."""
        nonlocal left
        if not is_watched:
            watch()
        if not busy.acquire(False):
            return
        try:
            if not running.acquire(False):
                return
            try:
                _thread.start_new_thread(release, ())
            except BaseException as error:
                running.release()
                left = BURST
                if isinstance(error, RuntimeError):
                    return  # the process may have no more threads
                raise
            left = 2  # this, too, writes out
            text.reconfigure(line_buffering=False)
        finally:
            busy.release()

    def release():
        """The thread: writes what was held back, and lets lines be written at once again."""
        nonlocal is_releasing
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        sooner.acquire(timeout=PAUSE)
        with busy:
            is_releasing = True
            try:
                text.reconfigure(line_buffering=True)
                # Text that was printed while the first flush let other threads run.
                text.flush()
            except BaseException:
                pass  # Standard output is closed, or its reader has gone.
            is_releasing = False
            running.release()

    def stop():
        """Ends the thread: it must neither be lost in a fork nor meet the end of the interpreter."""
        if running.locked():
            try:
                sooner.release()
            except RuntimeError:
                pass  # two want it
            # The reader of the output may be slow.
            if running.acquire(timeout=1):
                running.release()
            sooner.acquire(False)

    def end():
        nonlocal is_over
        is_over = True
        stop()

    def watch():
        nonlocal is_watched
        is_watched = True
        os.register_at_fork(before=stop)
        atexit.register(end)

    # For who looks at it.
    BufferedWriter.__module__ = "_io"
    BufferedWriter.__name__, BufferedWriter.__qualname__ = "_io.BufferedWriter", "BufferedWriter"
    encoding, errors, mode = own.encoding, own.errors, own.mode
    text = None

    def put(raw):
        nonlocal text
        text = _io.TextIOWrapper(BufferedWriter(raw), encoding, errors, "\n", True)
        text.mode = mode
        sys.stdout = sys.__stdout__ = text

    def renew():
        stop()
        raw = _io.FileIO(1, "w", closefd=False)
        raw.name = "<stdout>"
        put(raw)

    if not (own.line_buffering or own.write_through):
        put(own.detach().detach())
    return renew
