"""Ends a script that came to its end, without taking the interpreter apart.

The effects of CPython's finalization that a user can see happen here too: threads were waited for and `atexit`
functions called before this, the last of them, is; the objects of the main module are released,
and files are flushed. The release of the interpreter itself is left out, which costs more
than all the rest, and most of all in a forked process, which must copy every page for it.

This is done only where the script surely ended well. In every other case, an exception or an exit
with a status, nothing happens here and CPython ends by its own means. How to tell: CPython removes
`__file__` and `__cached__` from a main module that it is done with, while an exit out of
the middle of the script leaves them; and an exception that was shown leaves `sys.last_type`.
"""


def finisher():
    """Returns what makes the end of this process so, by the given function; what goes through it
    in steps and without an effect, so that it is in memory by then; and what is told that every module which is there
    now is not the script's."""
    import sys

    modules = sys.modules
    before = set(modules)
    import atexit
    import gc
    import io
    import os
    from _weakref import ref

    for name in set(modules) - before:
        modules.pop(name)
    FunctionType, ModuleType = type(finisher), type(sys)
    shared = {}
    system = tuple({sys.prefix, sys.exec_prefix, sys.base_prefix})
    # As `finalize_modules` of CPython does.
    emptied = ("path", "argv", "ps1", "ps2", "path_hooks", "path_importer_cache", "meta_path")

    def share():
        shared.update((id(module), module) for name, module in modules.items() if name != "__main__")

    def ended_well(names):
        return (
            not ("__file__" in names or "__cached__" in names)
            and all(name in names for name in ("__name__", "__builtins__", "__spec__", "__loader__"))
            and not ("last_type" in vars(sys) or "last_exc" in vars(sys))
        )

    def flush():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()

    def is_users(module):
        """Whether a module came with the script, so that its objects end with it."""
        if not isinstance(module, ModuleType) or id(module) in shared:
            return False
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        return not origin or origin.startswith("/") and not origin.startswith(system)

    def clear(names):
        """As CPython clears a module that is still used: private names first."""
        for name in list(names):
            if name[:1] == "_" and name[1:2] != "_":
                names[name] = None
        for name in list(names):
            if name != "__builtins__":
                names[name] = None

    def release():
        for name in emptied:
            setattr(sys, name, None)
        for name in ("stdin", "stdout", "stderr"):
            setattr(sys, name, getattr(sys, f"__{name}__", None))
        functions, kept = [], []
        for name, module in list(modules.items()):
            if name == "__main__" or is_users(module):
                used = [f for f in vars(module).values() if type(f) is FunctionType]
                functions += [ref(f) for f in used if f.__globals__ is vars(module)][:1]
            else:
                kept.append(module)
            modules[name] = module = used = None
        gc.collect()
        for function in functions:
            function = function()
            if function is not None:
                clear(function.__globals__)
                function = None
        # Once, as CPython does: a collection after each module takes seconds where a package has a thousand of them.
        gc.collect()

    def flush_files():
        for one in gc.get_objects():
            if issubclass(type(one), io.IOBase) and hasattr(one, "flush"):
                try:
                    one.flush()
                except Exception:
                    pass

    def finish(_):
        main = modules.get("__main__")
        if os.getpid() != owner or main is None or not ended_well(vars(main)):
            return
        del main
        try:
            flush()
        except BaseException:
            return
        try:
            release()
            flush_files()
            flush()
        finally:
            leave(0)

    owner = leave = None

    def start(end, keep):
        nonlocal owner, leave
        owner, leave = os.getpid(), end
        atexit.register(finish, keep)

    def rehearse():
        flush()
        for name, module in list(modules.items()):
            is_users(module)
            modules[name] = module
        yield
        gc.collect()
        yield
        flush_files()

    share()
    return start, rehearse, share
