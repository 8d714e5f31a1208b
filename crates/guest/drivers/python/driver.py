"""Waits inside the interpreter's own start until the guest says what to run.

The guest starts `python3 /sandbox/main.py` with this module as `sitecustomize`, the last module that CPython imports
before it opens the script. The return from here runs the script, by the interpreter's own means; cells never return.
Names and modules of the driver are gone by then.

As a zygote the interpreter stays here and forks: each child goes on as if it had been started itself. `boot.py` has the
steps, `zygote.py` the forks, `finish.py` the end of a child.
"""


# The files of each part of the driver, which share a namespace.
FILES = {
    "boot": ("boot",),
    "cells": ("late_modules", "traces", "streams", "environment", "cells"),
    "event_loop": ("event_loop",),
    "finish": ("finish",),
    "names": ("names",),
    "packages": ("packages",),
    "stdout": ("stdout",),
    "workers": ("workers",),
    "zygote": ("zygote",),
}


class Parts:
    """The parts of the driver, which are compiled and executed when they are first asked for."""

    def __init__(self, sources, builtins):
        self.sources, self.builtins = sources, builtins
        self.compiled, self.executed = {}, {}

    def compile(self, part):
        if part not in self.compiled:
            self.compiled[part] = [compile(source, "<isol8>", "exec") for source in self.sources[part]]
        return self.compiled[part]

    def names(self, part):
        """Returns the names that a part defines. A part has builtins of its own, whatever user code does to them."""
        if part not in self.executed:
            names = {"__name__": "isol8", "__builtins__": dict(self.builtins)}
            for code in self.compile(part):
                exec(code, names)
            self.executed[part] = names
        return self.executed[part]


def wait(files, make_parts):
    """Returns where the script is to be run: with the error of the image's own `sitecustomize`, or `None`."""
    import builtins
    import os
    import sys

    place = "/proc/self/fd/5"
    sources = {
        part: [__loader__.get_data(f"{place}/{name}.py") for name in names] for part, names in files.items()
    }
    # Leave no trace of how this module came in.
    sys.path.remove(place)
    sys.path_importer_cache.pop(place, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(place, None)
    os.close(int(place.rpartition("/")[2]))
    modules = os.environ.pop("PYTHONPATH")[len(place) + 1 :]
    if modules:
        os.environ["PYTHONPATH"] = modules
    parts = make_parts(sources, vars(builtins))
    this = sys.modules.pop("sitecustomize")
    return parts.names("boot")["Spare"](parts, this).wait()


def wait_or_end(wait, *given):
    """Ends the process at an error of the driver. `site` would report the error and go on to the script, but the process
    may be a zygote, or one that is not yet as powerless as user code."""
    import os

    try:
        failure = wait(*given)
    except BaseException:
        os._exit(1)
    if failure is not None:
        raise failure


try:
    wait_or_end(wait, FILES, Parts)
finally:
    del wait, wait_or_end, FILES, Parts
