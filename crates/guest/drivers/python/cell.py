"""Runs cells one after the other in one namespace, for the guest.

A request is a line on the control descriptor; what it asks for lies in the mailbox file. The answers
are lines with the request's number: that the cell has begun, and how it ended. Code of a cell can
forge them, and so end its own cell early: only that code is deceived.
"""


def make(add_user_packages, renew_stdout, part):
    """Returns how to serve, and how to go through a cell without an effect."""
    import _frozen_importlib
    import _signal
    import _thread
    import builtins
    import contextvars
    import io
    import os
    import sys

    EBADF = 9
    DONE, SIGNALLED, NO_DIRECTORY = b"code", b"signal", b"directory"

    USUAL_HANDLERS = (
        "ProxyHandler UnknownHandler HTTPHandler HTTPDefaultErrorHandler HTTPRedirectHandler"
        " FTPHandler FileHandler HTTPErrorProcessor DataHandler HTTPSHandler"
    ).split()

    def out_of_the_way(descriptor):
        """Code that closes all low descriptors, as daemons do, should not hit ours."""
        import fcntl

        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3000)
        os.close(descriptor)
        return moved

    own_path = list(sys.path)

    def own_module(name):
        """Imports a module of the interpreter's, whatever lies in the code's directories."""
        path = sys.path
        sys.path = own_path
        try:
            return __import__(name)
        finally:
            sys.path = path

    def load_later(name, complete):
        """Makes a module of the interpreter's one in name only, until it is used: a module that cells may
        ask for takes longer to load than most cells take. `complete` gets what was loaded."""
        module = sys.modules.get(name)
        if module is not None:
            complete(module)
            return
        lock, is_loading = _thread.RLock(), False

        def load(module):
            nonlocal is_loading
            is_loading = True
            path = sys.path
            sys.path = own_path
            try:
                spec = _frozen_importlib._find_spec(name, None)
                _frozen_importlib._init_module_attrs(spec, module)
                spec.loader.exec_module(module)
            finally:
                sys.path = path
            complete(module)
            module.__class__ = type(sys)

        class Unloaded(type(sys)):
            def __getattribute__(self, name):
                with lock:
                    if not is_loading:
                        load(self)
                return type(sys).__getattribute__(self, name)  # whose class it is by now

        sys.modules[name] = Unloaded(name)

    def line_keeper():
        """Returns how to make the source of a cell known to `linecache`, the place in which tools look for it, and how
        to get the names and lines of those that are known there."""
        kept, cache = {}, None

        def complete(module):
            nonlocal cache
            cache = module.cache
            cache.update(kept)

        def keep(name, entry):
            if cache is None:
                kept[name] = entry
            else:
                cache[name] = entry

        def cells():
            known = kept if cache is None else dict(cache)
            return [(name, entry[2]) for name, entry in known.items() if name.startswith("<cell ")]

        load_later("linecache", complete)
        return keep, cells

    def like(own, replacement):
        """The replacement, as it shows to who looks at it."""
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(replacement, name, getattr(own, name))
        return replacement

    def find_sources(inspect):
        """Lets `inspect` find the cell that a class was made by, as it finds a function's."""
        own = inspect.getfile

        def cell_of(found):
            for member in vars(found).values():
                code = getattr(getattr(member, "__func__", member), "__code__", None)
                if code is not None and code.co_filename.startswith("<cell "):
                    return code.co_filename
            # Without a function: the last cell that has a class of this name.
            heads = tuple(f"class {found.__name__}{end}" for end in ":( [")
            for name, lines in reversed(cells()):
                if any(line.lstrip().startswith(heads) for line in lines):
                    return name

        def getfile(object):
            is_here = isinstance(object, type) and object.__module__ == "__main__"
            name = cell_of(object) if is_here else None
            return own(object) if name is None else name

        inspect.getfile = like(own, getfile)

    def hide_frames():
        """Lets who walks up the stack stop at the frames of cells: below are those of this file."""

        def complete_traceback(module):
            own = module.walk_stack

            def shown(frames):
                for frame, line in frames:
                    if frame.f_globals is globals():
                        return
                    yield frame, line

            # Without a frame, the own one goes by who calls it.
            module.walk_stack = like(own, lambda f: own(f) if f is None else shown(own(f)))

        def complete_inspect(module):
            own = module.getouterframes

            def getouterframes(frame, context=1):
                found = own(frame, context)
                ends = (at for at, info in enumerate(found) if info.frame.f_globals is globals())
                return found[: next(ends, None)]

            module.getouterframes = like(own, getouterframes)
            find_sources(module)

        load_later("traceback", complete_traceback)
        load_later("inspect", complete_inspect)

    control = mailbox = null = kernel = keep = cells = interrupt = namespace = outputs = None
    top_level_await, coroutine = 0x2000, 0x80
    # The flags that every code object may have; others come from `from __future__`.
    usual = 0x3FF
    flags = top_level_await
    context = contextvars.copy_context()
    loop = None
    own_stdin = sys.stdin
    encoding, errors = own_stdin.encoding, own_stdin.errors
    own_output = [sys.stdout, sys.stderr]

    def future_flags():
        import __future__

        flags = 0
        for name in __future__.all_feature_names:
            flags |= getattr(__future__, name).compiler_flag
        return flags

    def idle(*_):
        """An interrupt that comes too late belongs to no cell."""

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
        try:
            descriptor = os.open(path, os.O_RDONLY) if path else null
        except OSError:
            descriptor = null  # the code has removed it
        if descriptor != 0:
            os.dup2(descriptor, 0)
        if descriptor not in (0, null):
            os.close(descriptor)
        current = getattr(sys, "stdin", None)
        if current is not own_stdin and current is not None and is_usable(current):
            return  # the code has put one of its own there
        raw = io.FileIO(0, "r", closefd=False)
        raw.name = "<stdin>"
        own_stdin = io.TextIOWrapper(io.BufferedReader(raw), encoding, errors)
        own_stdin.mode = "r"
        sys.stdin = sys.__stdin__ = own_stdin

    def renew_stderr():
        raw = io.FileIO(2, "w", closefd=False)
        raw.name = "<stderr>"
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", "\n", True)
        sys.stderr.mode = "w"
        sys.__stderr__ = sys.stderr

    def is_usable(stream):
        try:
            return not getattr(stream, "closed", False)
        except ValueError:
            return False  # detached

    def use_outputs():
        """Puts standard output and error back, whatever the cell before has done to them."""
        for number, name, renew in (1, "stdout", renew_stdout), (2, "stderr", renew_stderr):
            os.dup2(outputs[number - 1], number)
            stream = own_output[number - 1]
            if stream is None:
                continue
            if not is_usable(stream):
                renew()
                own_output[number - 1] = getattr(sys, name)
            elif getattr(sys, name, None) is not stream:
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)

    def set_zone():
        import time

        time.tzset()

    def is_proxy(name):
        return name.lower().endswith(b"_proxy")

    def forget_proxies():
        # urllib remembers them with what it has opened first, unless the code has put its own there.
        try:
            request = sys.modules["urllib.request"]
            handlers = {type(handler) for handler in request._opener.handlers}
            if handlers <= {getattr(request, name) for name in USUAL_HANDLERS}:
                request._opener = None
        except (AttributeError, KeyError):
            pass  # nothing was opened

    def put_environment(overlay):
        saved = {name: os.environb.get(name) for name in overlay}
        for name, value in overlay.items():
            os.environb[name] = value
        if b"TZ" in overlay:
            set_zone()
        if any(map(is_proxy, overlay)):
            forget_proxies()
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
        if any(map(is_proxy, overlay)):
            forget_proxies()

    def current_directory():
        try:
            return os.getcwd()
        except OSError:
            return None

    def use_loop():
        nonlocal loop
        if loop is None:
            loop = part("loop")["make"](own_module("asyncio"), like)
        else:
            use, _, _ = loop
            use()

    def evaluate(code):
        if not code.co_flags & coroutine:
            context.run(exec, code, namespace)
            return
        if loop is None:
            use_loop()
        _, run, _ = loop
        run(eval(code, namespace), context)

    class Main(type(sys)):
        """A main module that has a file for workers of `multiprocessing`, and for nothing else."""

        @property
        def __file__(self):
            if sys._getframe(1).f_globals.get("__name__") != "multiprocessing.spawn":
                raise AttributeError("module '__main__' has no attribute '__file__'")
            sources = ("".join(lines) for _, lines in cells())
            return part("workers")["main_file"](own_module, sources)

    def display(kind, error, trace):
        own_module("traceback").print_exception(kind, error, trace)

    def display_of_thread(what):
        if what.exc_type is SystemExit:
            return
        name = _thread.get_ident() if what.thread is None else what.thread.name
        print(f"Exception in thread {name}:", file=sys.stderr, flush=True)
        display(what.exc_type, what.exc_value, what.exc_traceback)
        sys.stderr.flush()

    def display_ignored(what):
        message = what.err_msg or "Exception ignored in"
        of = "" if what.object is None else f" {what.object!r}"
        print(f"{message}:{of}", file=sys.stderr)
        display(what.exc_type, what.exc_value, what.exc_traceback)

    def without_own(trace, code):
        """The trace from the cell's own frame on; without a cell, from the first that is not ours."""
        while trace is not None:
            frame = trace.tb_frame
            if frame.f_globals is not globals() if code is None else frame.f_code is code:
                break
            trace = trace.tb_next
        return trace

    def show(error, code=None):
        trace = error.__traceback__ = without_own(error.__traceback__, code)
        if isinstance(error, SyntaxError) and error.text is None and error.lineno:
            line = own_module("linecache").getline(error.filename, error.lineno)
            error.text = line or None
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
        sys.last_exc = error
        try:
            getattr(sys, "excepthook", display)(type(error), error, trace)
        except SystemExit:
            raise
        except BaseException as problem:
            print("Error in sys.excepthook:", file=sys.stderr)
            display(type(problem), problem, without_own(problem.__traceback__, None))
            print("\nOriginal exception was:", file=sys.stderr)
            display(type(error), error, trace)

    def status_of(end):
        code = end.code
        if code is None:
            return DONE, 0
        if isinstance(code, int):
            return DONE, code & 0xFF if -(1 << 63) <= code < 1 << 63 else 255
        print(code, file=sys.stderr)
        return DONE, 1

    def run(source, name):
        nonlocal flags, interrupt
        lines = io.StringIO(source, None).readlines()
        keep(name, (len(source), None, lines, name))
        namespace.pop("__warningregistry__", None)  # it goes by lines
        code = None
        try:
            try:
                _signal.signal(_signal.SIGINT, interrupt)
                code = compile(source, name, "exec", flags, True)
                if code.co_flags & ~usual:
                    flags |= code.co_flags & future_flags()
                if loop is not None or "asyncio" in source or "asyncio" in sys.modules:
                    use_loop()
                evaluate(code)
            finally:
                interrupt = _signal.signal(_signal.SIGINT, idle)
        except SystemExit:
            raise
        except KeyboardInterrupt as error:
            show(error, code)
            return SIGNALLED, int(_signal.SIGINT)
        except BaseException as error:
            show(error, code)
            return DONE, 1
        return DONE, 0

    def flush():
        current = getattr(sys, "stdout", None), getattr(sys, "stderr", None)
        for stream in *current, *own_output:
            try:
                stream.flush()
            except BaseException:
                pass  # closed or replaced by the code

    def serve_one(number, size):
        directory, stdin, source, *pairs = fields(size)
        before = current_directory()
        if directory:
            try:
                os.chdir(directory)
            except OSError:
                return NO_DIRECTORY, 0
        there = current_directory()
        use_outputs()
        use_stdin(stdin)
        add_user_packages()
        for path, finder in list(sys.path_importer_cache.items()):
            # The finder compares times that are coarse.
            if hasattr(finder, "invalidate_caches") and not path.startswith(sys.prefix):
                finder.invalidate_caches()
        overlay = dict(zip(pairs[::2], pairs[1::2]))
        saved = put_environment(overlay)
        os.write(control, b"begun %d\n" % number)
        try:
            try:
                status = run(source.decode("utf-8-sig", "replace"), f"<cell {number}>")
            except SystemExit as end:
                status = status_of(end)
        except BaseException as error:  # an interrupt, or the code's own hook or stream failed
            status = DONE, 130 if isinstance(error, KeyboardInterrupt) else 1
        if os.getpid() != kernel:
            flush()
            os._exit(status[1])  # a fork that came to the end of its cell

        def restore():
            restore_environment(overlay, saved)
            if directory and before is not None and current_directory() in (there, None):
                try:
                    os.chdir(before)
                except OSError:
                    pass  # the cell removed it
            if stdin:
                use_stdin(b"")
            flush()

        calmly(restore)
        return status

    def calmly(step, *given):
        """Does what has to be done, and may be done twice, whatever handlers of signals raise meanwhile."""
        while True:
            try:
                return step(*given)
            except BaseException as error:
                if getattr(error, "errno", None) == EBADF:
                    raise  # the code has closed what this kernel needs
                try:
                    show(error)
                except BaseException:
                    pass

    def next_request():
        if loop is not None:
            _, _, wait = loop
            wait(control)
            if os.getpid() != kernel:
                os._exit(0)  # a fork that a task has left in the loop
        return os.read(control, 64).split()

    def begin(control_line, mailbox_file):
        import __main__

        nonlocal control, mailbox, null, kernel, keep, cells, interrupt, namespace, outputs
        namespace = __main__.__dict__
        __main__.__class__ = Main
        control, mailbox = out_of_the_way(control_line), out_of_the_way(mailbox_file)
        null = out_of_the_way(os.open("/dev/null", os.O_RDONLY))
        outputs = [out_of_the_way(os.dup(number)) for number in (1, 2)]
        kernel = os.getpid()
        keep, cells = line_keeper()
        hide_frames()
        interrupt = _signal.signal(_signal.SIGINT, idle)
        # This module is imported by `site`, whose import therefore never ends. Threads that import it
        # must not wait for that.
        sys.modules["site"].__spec__._initializing = False
        sys.argv[:] = [""]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[:] = ["python3"]
        sys.path.insert(0, "")
        namespace.update(__name__="__main__", __doc__=None, __package__=None, __spec__=None)
        namespace["__loader__"] = None
        namespace["__builtins__"] = builtins
        # The interpreter's own hooks look for the source in files only.
        sys.excepthook = sys.__excepthook__ = display
        sys.unraisablehook = sys.__unraisablehook__ = display_ignored
        _thread._excepthook = display_of_thread
        if "threading" in sys.modules:
            threading = sys.modules["threading"]
            threading.excepthook = threading.__excepthook__ = display_of_thread

    def serve(control_line, mailbox_file, request):
        begin(control_line, mailbox_file)
        while request:
            number = int(request[1])
            kind, code = serve_one(number, int(request[2]))
            # A line of its own, whatever the code may have written there.
            calmly(os.write, control, b"\ncell %d %s %d\n" % (number, kind, code))
            request = calmly(next_request)

    def rehearse():
        code = compile("def f(x=1):\n    print(end='')\nf()\n", "<boot>", "exec", flags, True)
        context.run(exec, code, {})
        io.StringIO("\n", None).readlines()
        io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding, errors)
        list(sys.path_importer_cache.items())
        restore_environment({}, put_environment({}))
        current_directory()
        flush()

    return serve, rehearse
