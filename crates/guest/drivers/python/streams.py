"""Standard input, output and error of a session's cells.

The files of the cells share one namespace; `driver.py` lists them.
"""

import io
import os
import sys


def move_away(descriptor):
    """Moves a descriptor to a high number, because code may close all low ones, as daemons do."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3000)
    os.close(descriptor)
    return moved


def is_usable(stream):
    try:
        return not getattr(stream, "closed", False)
    except ValueError:
        return False  # The stream is detached.


class Streams:
    """The streams that each cell begins with. `renew_stdout` puts a new standard output in the place of one that was
    closed."""

    def __init__(self, renew_stdout):
        self.renew_stdout = renew_stdout
        self.stdin = sys.stdin
        self.encoding, self.errors = self.stdin.encoding, self.stdin.errors
        self.own = [sys.stdout, sys.stderr]
        self.null = None
        self.descriptors = None

    def keep(self):
        """Keeps copies of the descriptors, with which later cells begin too."""
        self.null = move_away(os.open("/dev/null", os.O_RDONLY))
        self.descriptors = [move_away(os.dup(number)) for number in (1, 2)]

    def text_input(self, raw):
        return io.TextIOWrapper(io.BufferedReader(raw), self.encoding, self.errors)

    def use_stdin(self, path):
        """Makes a file the standard input; without a path, an empty one."""
        null = self.null
        try:
            descriptor = os.open(path, os.O_RDONLY) if path else null
        except OSError:
            descriptor = null  # The code has removed the file.
        if descriptor != 0:
            os.dup2(descriptor, 0)
        if descriptor not in (0, null):
            os.close(descriptor)
        current = getattr(sys, "stdin", None)
        if current is not self.stdin and current is not None and is_usable(current):
            return  # The code has put a stream of its own there.
        raw = io.FileIO(0, "r", closefd=False)
        raw.name = "<stdin>"
        self.stdin = self.text_input(raw)
        self.stdin.mode = "r"
        sys.stdin = sys.__stdin__ = self.stdin

    def renew_stderr(self):
        raw = io.FileIO(2, "w", closefd=False)
        raw.name = "<stderr>"
        writer = io.BufferedWriter(raw)
        sys.stderr = io.TextIOWrapper(writer, self.encoding, "backslashreplace", "\n", True)
        sys.stderr.mode = "w"
        sys.__stderr__ = sys.stderr

    def use_outputs(self):
        """Puts standard output and error back, whatever the cell before has done to them."""
        renewals = (1, "stdout", self.renew_stdout), (2, "stderr", self.renew_stderr)
        for number, name, renew in renewals:
            os.dup2(self.descriptors[number - 1], number)
            stream = self.own[number - 1]
            if stream is None:
                continue
            if not is_usable(stream):
                renew()
                self.own[number - 1] = getattr(sys, name)
            elif getattr(sys, name, None) is not stream:
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)

    def flush(self):
        current = getattr(sys, "stdout", None), getattr(sys, "stderr", None)
        for stream in *current, *self.own:
            try:
                stream.flush()
            except BaseException:
                pass  # The code has closed or replaced the stream.
