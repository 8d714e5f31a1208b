"""Errors of cells as the interpreter shows them, without frames of the driver.

The files of the cells share one namespace, by which they know their own frames; `driver.py` lists them.
"""

import _thread
import sys


def look_like(own, replacement):
    """Gives the replacement of a function the names and the documentation of the function."""
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(replacement, name, getattr(own, name))
    return replacement


def is_own(frame):
    """Returns whether a frame is one of the driver's."""
    return frame.f_globals is globals()


def cell_of(found, sources):
    """Returns the name of the cell that has made a class, or `None` if it is not known."""
    for member in vars(found).values():
        code = getattr(getattr(member, "__func__", member), "__code__", None)
        if code is not None and code.co_filename.startswith("<cell "):
            return code.co_filename
    # A class without functions: the last cell that has a class of this name.
    heads = tuple(f"class {found.__name__}{end}" for end in ":( [")
    for name, lines in reversed(sources.cells()):
        if any(line.lstrip().startswith(heads) for line in lines):
            return name
    return None


def find_classes(inspect, sources):
    """Has `inspect` find the cell that has made a class, as it finds that of a function."""
    own = inspect.getfile

    def getfile(object):
        is_here = isinstance(object, type) and object.__module__ == "__main__"
        name = cell_of(object, sources) if is_here else None
        return own(object) if name is None else name

    inspect.getfile = look_like(own, getfile)


def hide_frames(sources):
    """Has the modules that walk up the stack stop above the frames of the driver."""

    def complete_traceback(module):
        own = module.walk_stack

        def shown(frames):
            for frame, line in frames:
                if is_own(frame):
                    return
                yield frame, line

        # Without a frame, the function starts at its caller, which must not be one of the driver's.
        module.walk_stack = look_like(own, lambda f: own(f) if f is None else shown(own(f)))

    def complete_inspect(module):
        own = module.getouterframes

        def getouterframes(frame, context=1):
            found = own(frame, context)
            ends = (at for at, info in enumerate(found) if is_own(info.frame))
            return found[: next(ends, None)]

        module.getouterframes = look_like(own, getouterframes)
        find_classes(module, sources)

    load_later("traceback", complete_traceback)
    load_later("inspect", complete_inspect)


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
    place = "" if what.object is None else f" {what.object!r}"
    print(f"{message}:{place}", file=sys.stderr)
    display(what.exc_type, what.exc_value, what.exc_traceback)


def use_hooks():
    """Replaces the interpreter's own hooks, which look for sources in files only."""
    sys.excepthook = sys.__excepthook__ = display
    sys.unraisablehook = sys.__unraisablehook__ = display_ignored
    _thread._excepthook = display_of_thread
    if "threading" in sys.modules:
        threading = sys.modules["threading"]
        threading.excepthook = threading.__excepthook__ = display_of_thread


def without_own(trace, code):
    """Returns the trace from the frame of the cell's code on; without a code, from the first frame that is not one of
    the driver's."""
    while trace is not None:
        frame = trace.tb_frame
        if not is_own(frame) if code is None else frame.f_code is code:
            break
        trace = trace.tb_next
    return trace


def show(error, code=None):
    """Shows an error by the hook of user code, as the interpreter does."""
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
