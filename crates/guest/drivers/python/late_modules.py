"""Modules of the interpreter's own for cells. Those that take longer to load than most cells run are loaded when they
are first used.

The files of the cells share one namespace; `driver.py` lists them.
"""

import _frozen_importlib
import _thread
import io
import sys

own_path = list(sys.path)


class OwnPath:
    """Has imports look only in the interpreter's own directories, and not in those of user code."""

    def __enter__(self):
        self.path = sys.path
        sys.path = own_path

    def __exit__(self, *_):
        sys.path = self.path


def own_module(name):
    """Imports a module of the interpreter, even if user code has one of the same name."""
    with OwnPath():
        return __import__(name)


def load_later(name, complete):
    """Puts an empty module in the place of the named one, which is loaded when it is first used. `complete` is called
    with the loaded module."""
    module = sys.modules.get(name)
    if module is not None:
        complete(module)
        return
    lock, is_loading = _thread.RLock(), False

    def load(module):
        nonlocal is_loading
        is_loading = True
        with OwnPath():
            spec = _frozen_importlib._find_spec(name, None)
            _frozen_importlib._init_module_attrs(spec, module)
            spec.loader.exec_module(module)
        complete(module)
        module.__class__ = type(sys)

    class Unloaded(type(sys)):
        def __getattribute__(self, name):
            with lock:
                if not is_loading:
                    load(self)
            return type(sys).__getattribute__(self, name)  # The class of the module has changed by now.

    sys.modules[name] = Unloaded(name)


class CellSources:
    """The sources of cells, by their names, in `linecache`, where tools look for them."""

    def __init__(self):
        self.kept, self.cache = {}, None
        load_later("linecache", self.use_cache)

    def use_cache(self, linecache):
        self.cache = linecache.cache
        self.cache.update(self.kept)

    def add(self, name, source):
        lines = io.StringIO(source, None).readlines()
        sources = self.kept if self.cache is None else self.cache
        sources[name] = len(source), None, lines, name

    def cells(self):
        """Returns the name and the lines of each cell, oldest first."""
        known = self.kept if self.cache is None else dict(self.cache)
        return [(name, entry[2]) for name, entry in known.items() if name.startswith("<cell ")]
