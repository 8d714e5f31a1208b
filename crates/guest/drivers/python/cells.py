"""Runs cells one after the other in one namespace, for the guest.

A request is a line on the control descriptor; its fields are in the mailbox file. The answers are lines with the
request's number: that the cell has begun, and how it ended. Code of a cell can forge these lines, and so end its own
cell early: only that code is deceived.

The files of the cells share one namespace; `driver.py` lists them.
"""

import _signal
import builtins
import contextvars
import io
import os
import sys

EBADF = 9
DONE, SIGNALLED, NO_DIRECTORY = b"code", b"signal", b"directory"

TOP_LEVEL_AWAIT, COROUTINE = 0x2000, 0x80
# The flags that every code object may have; others come from `from __future__`.
USUAL_FLAGS = 0x3FF


def future_flags():
    """Returns the flags of all features of `__future__`."""
    import __future__

    flags = 0
    for name in __future__.all_feature_names:
        flags |= getattr(__future__, name).compiler_flag
    return flags


def ignore_interrupt(*_):
    """Handles an interrupt that comes too late for its cell."""


def status_of(end):
    """Returns the status that a `SystemExit` asks for, as the interpreter understands it."""
    code = end.code
    if code is None:
        return DONE, 0
    if isinstance(code, int):
        return DONE, code & 0xFF if -(1 << 63) <= code < 1 << 63 else 255
    print(code, file=sys.stderr)
    return DONE, 1


def calmly(step, *given):
    """Does a step that must be done, and may be done twice, even if handlers of signals raise errors meanwhile."""
    while True:
        try:
            return step(*given)
        except BaseException as error:
            if getattr(error, "errno", None) == EBADF:
                raise  # The code has closed a descriptor of the driver.
            try:
                show(error)
            except BaseException:
                pass


def forget_coarse_listings():
    """Has imports look again into the directories of user code: the importer compares times that are coarse."""
    for path, finder in list(sys.path_importer_cache.items()):
        if hasattr(finder, "invalidate_caches") and not path.startswith(sys.prefix):
            finder.invalidate_caches()


class Requests:
    """The requests of the guest, and the answers to them."""

    def __init__(self, control, mailbox):
        self.control, self.mailbox = move_away(control), move_away(mailbox)

    def fields(self, size):
        """Yields the fields of the request: a length of four bytes, the bytes, and so on."""
        data = os.pread(self.mailbox, size, 0)
        while len(data) < size:
            piece = os.pread(self.mailbox, size - len(data), len(data))
            if not piece:
                break
            data += piece
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "little")
            yield data[at + 4 : at + 4 + length]
            at += 4 + length

    def next(self):
        return os.read(self.control, 64).split()

    def send_begun(self, number):
        os.write(self.control, b"begun %d\n" % number)

    def send_end(self, number, kind, code):
        # A line of its own, whatever the code may have written there.
        calmly(os.write, self.control, b"\ncell %d %s %d\n" % (number, kind, code))


class Cells:
    """The namespace of a session, and the cells that run in it. `part` returns the names of another file."""

    def __init__(self, add_user_packages, renew_stdout, part):
        self.add_user_packages, self.part = add_user_packages, part
        self.streams = Streams(renew_stdout)
        self.context = contextvars.copy_context()
        self.flags = TOP_LEVEL_AWAIT
        self.loop = self.process = self.interrupt = None
        self.requests = self.sources = self.namespace = None

    def use_loop(self):
        """Makes the session's event loop the current one."""
        if self.loop is None:
            self.loop = self.part("event_loop")["make"](own_module("asyncio"), look_like)
        else:
            self.loop.use()

    def evaluate(self, code):
        if not code.co_flags & COROUTINE:
            self.context.run(exec, code, self.namespace)
            return
        if self.loop is None:
            self.use_loop()
        self.loop.run(eval(code, self.namespace), self.context)

    def compile(self, source, name):
        code = compile(source, name, "exec", self.flags, True)
        if code.co_flags & ~USUAL_FLAGS:
            self.flags |= code.co_flags & future_flags()
        return code

    def run(self, source, name):
        """Runs a source, and returns its status. Raises the cell's `SystemExit`."""
        self.sources.add(name, source)
        self.namespace.pop("__warningregistry__", None)  # The registry goes by lines.
        code = None
        try:
            try:
                _signal.signal(_signal.SIGINT, self.interrupt)
                code = self.compile(source, name)
                if self.loop is not None or "asyncio" in source or "asyncio" in sys.modules:
                    self.use_loop()
                self.evaluate(code)
            finally:
                self.interrupt = _signal.signal(_signal.SIGINT, ignore_interrupt)
        except SystemExit:
            raise
        except KeyboardInterrupt as error:
            show(error, code)
            return SIGNALLED, int(_signal.SIGINT)
        except BaseException as error:
            show(error, code)
            return DONE, 1
        return DONE, 0

    def serve_one(self, number, size):
        """Runs one cell, and returns its status."""
        directory, stdin, source, *pairs = self.requests.fields(size)
        surroundings = Surroundings(directory, dict(zip(pairs[::2], pairs[1::2])))
        if not surroundings.enter_directory():
            return NO_DIRECTORY, 0
        self.streams.use_outputs()
        self.streams.use_stdin(stdin)
        self.add_user_packages()
        forget_coarse_listings()
        surroundings.set_variables()
        self.requests.send_begun(number)
        try:
            try:
                status = self.run(source.decode("utf-8-sig", "replace"), f"<cell {number}>")
            except SystemExit as end:
                status = status_of(end)
        except BaseException as error:  # An interrupt came, or the code's own hook or stream failed.
            status = DONE, 130 if isinstance(error, KeyboardInterrupt) else 1
        if os.getpid() != self.process:
            self.streams.flush()
            os._exit(status[1])  # A fork has come to the end of its cell.
        calmly(self.restore, surroundings, stdin)
        return status

    def restore(self, surroundings, stdin):
        surroundings.restore()
        if stdin:
            self.streams.use_stdin(b"")
        self.streams.flush()

    def next_request(self):
        if self.loop is not None:
            self.loop.wait(self.requests.control)
            if os.getpid() != self.process:
                os._exit(0)  # A task has forked in the loop.
        return self.requests.next()

    def begin(self, control, mailbox):
        """Makes this process a session's interpreter."""
        import __main__

        self.namespace = __main__.__dict__
        __main__.__class__ = main_class(self)
        self.requests = Requests(control, mailbox)
        self.streams.keep()
        self.process = os.getpid()
        self.sources = CellSources()
        hide_frames(self.sources)
        self.interrupt = _signal.signal(_signal.SIGINT, ignore_interrupt)
        # This module is imported by `site`, whose import therefore never ends. Threads that import it must not wait
        # for that.
        sys.modules["site"].__spec__._initializing = False
        sys.argv[:] = [""]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[:] = ["python3"]
        sys.path.insert(0, "")
        self.namespace.update(__name__="__main__", __doc__=None, __package__=None, __spec__=None)
        self.namespace["__loader__"] = None
        self.namespace["__builtins__"] = builtins
        use_hooks()

    def serve(self, control, mailbox, request):
        """Serves cells, beginning with the request, until there are no more."""
        self.begin(control, mailbox)
        while request:
            number = int(request[1])
            kind, code = self.serve_one(number, int(request[2]))
            self.requests.send_end(number, kind, code)
            request = calmly(self.next_request)

    def rehearse(self):
        """Goes through a cell without an effect, so that the pages that a cell touches are in memory."""
        code = compile("def f(x=1):\n    print(end='')\nf()\n", "<boot>", "exec", self.flags, True)
        self.context.run(exec, code, {})
        io.StringIO("\n", None).readlines()
        self.streams.text_input(io.FileIO(0, "r", closefd=False))
        list(sys.path_importer_cache.items())
        restore_environment({}, put_environment({}))
        current_directory()
        self.streams.flush()


def main_class(cells):
    """Returns the class of a main module that has a file for workers of `multiprocessing`, and for no other code."""

    class Main(type(sys)):
        @property
        def __file__(self):
            if sys._getframe(1).f_globals.get("__name__") != "multiprocessing.spawn":
                raise AttributeError("module '__main__' has no attribute '__file__'")
            sources = ("".join(lines) for _, lines in cells.sources.cells())
            return cells.part("workers")["main_file"](own_module, sources)

    return Main
