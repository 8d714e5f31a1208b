"""Runs cells one after the other in one namespace, for the guest.

A request is a line on the control descriptor; what it asks for lies in the mailbox file. The answers
are lines with the request's number: that the cell has begun, and how it ended. Code of a cell can
forge them, and so end its own cell early: it deceives nobody else.
"""


def serve(control, mailbox, request):
    import __future__
    import __main__
    import _signal
    import builtins
    import io
    import linecache
    import os
    import sys
    import traceback

    DONE, SIGNALLED, NO_DIRECTORY = b"code", b"signal", b"directory"

    def out_of_the_way(descriptor):
        """Code that closes all low descriptors, as daemons do, should not hit ours."""
        import fcntl

        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3000)
        os.close(descriptor)
        return moved

    control = out_of_the_way(control)
    mailbox = out_of_the_way(mailbox)
    null = out_of_the_way(os.open("/dev/null", os.O_RDONLY))
    kernel = os.getpid()

    # This module is imported by `site`, whose import therefore never ends. Threads that import it
    # must not wait for that.
    sys.modules["site"].__spec__._initializing = False
    sys.argv[:] = [""]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = ["python3"]
    sys.path.insert(0, "")
    namespace = __main__.__dict__
    namespace.update(__name__="__main__", __doc__=None, __package__=None, __spec__=None)
    namespace["__loader__"] = None
    namespace["__builtins__"] = builtins

    futures = 0
    for name in __future__.all_feature_names:
        futures |= getattr(__future__, name).compiler_flag
    top_level_await, coroutine = 0x2000, 0x80
    flags = top_level_await
    runner = None
    own_stdin = sys.stdin
    stdin_is_null = False

    def idle(*_):
        """An interrupt that comes too late belongs to nobody."""

    interrupt = _signal.signal(_signal.SIGINT, idle)

    def fields(size):
        data = os.pread(mailbox, size, 0)
        while len(data) < size:
            piece = os.pread(mailbox, size - len(data), len(data))
            if not piece:
                break
            data += piece
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "little")
            yield data[at + 4 : at + 4 + length]
            at += 4 + length

    def use_stdin(path):
        nonlocal own_stdin
        if path:
            descriptor = os.open(path, os.O_RDONLY)
            os.dup2(descriptor, 0)
            os.close(descriptor)
        else:
            os.dup2(null, 0)
        if sys.stdin is not own_stdin:
            return  # the code has put one of its own there
        old = sys.__stdin__
        encoding, errors = getattr(old, "encoding", "utf-8"), getattr(old, "errors", "strict")
        raw = io.FileIO(0, "r", closefd=False)
        raw.name = "<stdin>"
        own_stdin = io.TextIOWrapper(io.BufferedReader(raw), encoding, errors)
        own_stdin.mode = "r"
        sys.stdin = sys.__stdin__ = own_stdin

    def set_zone():
        import time

        time.tzset()

    def put_environment(overlay):
        saved = {name: os.environb.get(name) for name in overlay}
        for name, value in overlay.items():
            os.environb[name] = value
        if b"TZ" in overlay:
            set_zone()
        return saved

    def restore_environment(overlay, saved):
        for name, value in overlay.items():
            if os.environb.get(name) != value:
                continue  # the code has changed it itself, to stay
            if saved[name] is None:
                os.environb.pop(name, None)
            else:
                os.environb[name] = saved[name]
        if b"TZ" in overlay:
            set_zone()

    def current_directory():
        try:
            return os.getcwd()
        except OSError:
            return None

    def evaluate(code):
        nonlocal runner
        if not code.co_flags & coroutine:
            exec(code, namespace)
            return
        if runner is None:
            import asyncio

            if hasattr(asyncio, "Runner"):
                runner = asyncio.Runner().run
            else:
                loop = asyncio.new_event_loop()
                asyncio.set_event_loop(loop)
                runner = loop.run_until_complete
        runner(eval(code, namespace))

    def show(error, code):
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code is not code:
            trace = trace.tb_next
        error.__traceback__ = trace
        hook = sys.excepthook
        if hook is sys.__excepthook__:
            traceback.print_exception(type(error), error, trace)
        else:
            hook(type(error), error, trace)

    def status_of(end):
        code = end.code
        if code is None:
            return DONE, 0
        if isinstance(code, int):
            return DONE, code & 0xFF
        print(code, file=sys.stderr)
        return DONE, 1

    def run(source, name):
        nonlocal flags, interrupt
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        code = None
        try:
            try:
                _signal.signal(_signal.SIGINT, interrupt)
                code = compile(source, name, "exec", flags, True)
                flags |= code.co_flags & futures
                evaluate(code)
            finally:
                interrupt = _signal.signal(_signal.SIGINT, idle)
        except SystemExit as end:
            return status_of(end)
        except KeyboardInterrupt as error:
            show(error, code)
            return SIGNALLED, int(_signal.SIGINT)
        except BaseException as error:
            show(error, code)
            return DONE, 1
        return DONE, 0

    def flush():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass  # closed or replaced by the code

    def serve_one(number, size):
        nonlocal stdin_is_null
        directory, stdin, source, *pairs = fields(size)
        before = current_directory()
        if directory:
            try:
                os.chdir(directory)
            except OSError:
                return NO_DIRECTORY, 0
        there = current_directory()
        if stdin or not stdin_is_null:
            use_stdin(stdin)
        overlay = dict(zip(pairs[::2], pairs[1::2]))
        saved = put_environment(overlay)
        os.write(control, b"begun %d\n" % number)
        try:
            status = run(source.decode("utf-8", "replace"), f"<cell {number}>")
        except BaseException as error:  # an interrupt, or the code's own hook or stream failed
            status = DONE, 130 if isinstance(error, KeyboardInterrupt) else 1
        if os.getpid() != kernel:
            flush()
            os._exit(status[1])  # a fork that came to the end of its cell
        restore_environment(overlay, saved)
        if directory and before is not None and current_directory() == there:
            try:
                os.chdir(before)
            except OSError:
                pass  # the cell removed it
        if stdin:
            use_stdin(b"")
        stdin_is_null = True
        flush()
        return status

    while request:
        number = int(request[1])
        kind, code = serve_one(number, int(request[2]))
        # A line of its own, whatever the code may have written there.
        os.write(control, b"\ncell %d %s %d\n" % (number, kind, code))
        request = os.read(control, 64).split()
