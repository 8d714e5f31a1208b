"""Waits inside the interpreter's own start until the guest says what to run.

The guest starts `python3 /sandbox/main.py` with this module as `sitecustomize`, the last thing that
CPython imports before it opens the script. Returning from here runs the script, by the
interpreter's own means; a cell never returns. Names and modules of this file are gone by then.

As a zygote the interpreter stays here and forks: each child goes on as if it had been started
itself. `zygote.py` tells how, `finish.py` how a child ends.
"""


def wait():
    """Returns where the script is to be run: what the image's own `sitecustomize` raised, if it did."""
    import builtins
    import os
    import posix
    import site
    import sys
    import time

    control, mailbox, archive = 3, 4, 5
    place = "/proc/self/fd/5"
    sources = {
        name: __loader__.get_data(f"{place}/{name}.py") for name in (
            "cell", "finish", "loop", "names", "packages", "stdout", "workers", "zygote"
        )
    }
    # Leave no trace of how this module came in.
    sys.path.remove(place)
    sys.path_importer_cache.pop(place, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(place, None)
    os.close(archive)
    modules = os.environ.pop("PYTHONPATH")[len(place) + 1 :]
    if modules:
        os.environ["PYTHONPATH"] = modules

    parts = {}

    def part(name):
        """Returns the names that a file defines, with builtins of its own, whatever the code does to them. The file is
        compiled when it is first asked for."""
        if name not in parts:
            parts[name] = {"__name__": "isol8", "__builtins__": dict(vars(builtins))}
            exec(compile(sources[name], "<isol8>", "exec"), parts[name])
        return parts[name]

    def fields():
        size = os.fstat(mailbox).st_size
        data, at = os.pread(mailbox, size, 0), 0
        while len(data) < size:
            data += os.pread(mailbox, size - len(data), len(data))
        while at < size:
            length = int.from_bytes(data[at : at + 4], "little")
            yield data[at + 4 : at + 4 + length]
            at += 4 + length

    # For each Python that the code starts; this interpreter writes line by line without it.
    unbuffered = (b"PYTHONUNBUFFERED", b"1")

    def set_environment(pairs):
        zone = os.environ.get("TZ")
        pairs = [unbuffered, *pairs]
        os.environ.clear()
        for name, value in pairs:
            os.environb[name] = value
        posix.environ.clear()
        posix.environ.update(pairs)
        if os.environ.get("TZ") != zone:
            time.tzset()

    # Whether this process is user code's; the zygote looks at nothing that user code writes.
    is_users = False
    add_user_packages, find_late_packages = part("packages")["finder"](lambda: is_users)
    cell = None

    def cells():
        """How to serve cells, how to rehearse it, and the modules that come with it."""
        nonlocal cell
        if cell is None:
            before = set(sys.modules)
            make = part("cell")["make"]
            cell = *make(add_user_packages, renew_stdout, part), {name: sys.modules.pop(name) for name in set(sys.modules) - before}
        return cell

    def rehearse_start():
        """Does what the start of a script will bring, without an effect, in steps."""
        set_environment(list(os.environb.items()))
        for hook in sys.path_hooks:
            try:
                # As the script: a file, and too short to be an archive.
                hook("/proc/self/oom_score_adj")
            except ImportError:
                pass
        yield
        exec(compile("def f(x=1):\n    print(end='')\nf()\n", "<boot>", "exec"), {})

    def rehearse():
        """Goes through the steps that any request will need. The pages that they touch are then in memory, and a fork has
        its own copy."""
        yield from rehearse_start()
        yield
        try:
            # `site` looks for one more module, which hardly ever is there.
            import isol8_no_such_module
        except ImportError:
            pass
        yield
        yield from rehearse_end()
        yield
        rehearse_cell = cells()[1]
        yield
        rehearse_cell()

    renew_stdout = part("stdout")["make"]()
    part("names")["explain"]()

    # The image's own module of this name, whose place this one took.
    failure = None
    this = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize
    except Exception as error:
        failure = error

    find_late_packages()
    finish_by, rehearse_end, share = part("finish")["finisher"]()
    mode, *more = fields()
    if mode == b"zygote":
        user, path, *preload = more
        soon, leave = part("zygote")["serve"](int(user), preload, share, lambda: part("cell"))
        os.environb[b"PATH"] = path
    else:
        # The memory of this process is its own already, and a guest that boots each interpreter anew has no processor
        # to spare: parts that only cells need are made with the first.
        soon, leave = (lambda _: True), os._exit
        for _ in rehearse_start():
            pass

    # The user's own packages are under its home, which a zygote does not look at.
    os.environ["HOME"] = "/sandbox"
    os.environb.setdefault(*unbuffered)
    os.chdir("/sandbox")
    if site.ENABLE_USER_SITE:
        site.USER_BASE = site.USER_SITE = None
        site.USER_SITE = site.getusersitepackages()
    os.write(control, b"ready %d\n" % os.getpid())
    if not soon(control):
        for _ in rehearse():
            # A request that comes now waits for one step, and not for all.
            if soon(control, 0):
                break
    request = os.read(control, 64).split()
    if not request:
        os._exit(0)

    add_user_packages()
    is_users = True

    if request[0] == b"C":
        if failure is not None:
            sys.modules["sitecustomize"] = None
        serve, _, modules = cells()
        sys.modules.update(modules)
        serve(control, mailbox, request)
        os._exit(0)

    _, directory, *pairs = fields()
    os.close(mailbox)
    try:
        os.chdir(directory)
    except OSError:
        os.write(control, b"directory\n")
        os._exit(1)
    set_environment(list(zip(pairs[::2], pairs[1::2])))
    # Letting go of what is not needed any more would touch, and so copy, its pages.
    finish_by(leave, (parts, cells, cell))
    os.write(control, b"started\n")
    os.close(control)
    if failure is not None:
        # As if there were no such module, which is what `site` expects; the import that fails
        # takes this one out again.
        sys.modules["sitecustomize"] = this
    return failure


def wait_or_end(wait):
    """`site` reports an error of this module and goes on to the script. None of ours may lead there:
    the process may be a zygote, or one that is not yet as powerless as user code."""
    import os

    try:
        failure = wait()
    except BaseException:
        os._exit(1)
    if failure is not None:
        raise failure


try:
    wait_or_end(wait)
finally:
    del wait, wait_or_end
