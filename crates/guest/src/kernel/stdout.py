"""Standard output of a program whose lines are to be seen as they are printed, at a pipe too.

Each line is written at once, as at a terminal: so it can be followed, and is not lost with the process. A
line costs a system call then. A program that prints thousands of lines a second gets its blocks back for the
next `PAUSE`, at whose end a thread writes what is left and goes.
"""


def make():
    """Makes the stream of the interpreter one that is written line by line, unless it is already."""
    import sys

    own = sys.stdout
    if own is None or own.line_buffering or own.write_through:
        return
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
    is_over = is_watched = False
    # Held while lines are held back; released by who wants them sooner; held by the thread.
    busy, sooner, running = (_thread.allocate_lock() for _ in range(3))
    sooner.acquire()
    write_out = _io.BufferedWriter.flush

    class BufferedWriter(_io.BufferedWriter):
        def flush(self):
            nonlocal left
            write_out(self)
            left -= 1
            if left < 0:
                refill()

    def refill():
        nonlocal left, since
        now = monotonic()
        left, since = min(BURST, int((now - since) * RATE)), now
        if left == 0 and text.line_buffering and not is_over:
            hold_back()

    def hold_back():
        nonlocal left
        if not is_watched:
            watch()
        with busy:
            running.acquire()
            try:
                _thread.start_new_thread(release, ())
            except RuntimeError:
                running.release()
                left = BURST  # the process may have no more threads
                return
            left = 2  # this, too, writes out
            text.reconfigure(line_buffering=False)

    def release():
        """The thread: writes what was held back, and lets lines be written at once again."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        sooner.acquire(timeout=PAUSE)
        with busy:
            try:
                text.reconfigure(line_buffering=True)
            except BaseException:
                pass  # closed, or nobody reads
            running.release()

    def stop():
        """Ends the thread: it must neither be lost in a fork nor meet the end of the interpreter."""
        if running.locked():
            try:
                sooner.release()
            except RuntimeError:
                pass  # two want it
            with running:
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
    raw = own.detach().detach()
    text = _io.TextIOWrapper(BufferedWriter(raw), encoding, errors, "\n", True)
    text.mode = mode
    sys.stdout = sys.__stdout__ = text
