"""Waits inside the interpreter's own start until the guest says what to run.

The guest starts `python3 /sandbox/main.py` with this module as `sitecustomize`, the last thing that
CPython imports before it opens the script. Returning from here runs the script, by the
interpreter's own means; a cell never returns. Names and modules of this file are gone by then.
"""


def wait():
    import os
    import posix
    import site
    import sys

    archive, control, mailbox = 3, 4, 5
    place = "/proc/self/fd/3"
    cells = __loader__.get_data(place + "/cell.py")
    # Leave no trace of how this module came in.
    sys.path.remove(place)
    sys.path_importer_cache.pop(place, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(place, None)
    os.close(archive)

    # The image's own module of this name, whose place this one took.
    failure = None
    this = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize
    except Exception as error:
        failure = error

    # Touch what the script's start will touch, so that it is in memory by then.
    exec(compile("def f(x=1):\n    return [x for x in (x,)]\nf()\n", "<boot>", "exec"), {})

    request = os.read(control, 64)
    if not request:
        os._exit(0)

    # What `pip install --user` brought since this interpreter started.
    user = site.ENABLE_USER_SITE and site.getusersitepackages()
    if user and user not in sys.path and os.path.isdir(user):
        before = len(sys.path)
        site.addsitedir(user)
        added = sys.path[before:]
        del sys.path[before:]
        system = site.getsitepackages()
        at = next((i for i, path in enumerate(sys.path) if path in system), before)
        sys.path[at:at] = added

    if request[:1] == b"C":
        if failure is not None:
            sys.modules["sitecustomize"] = None
        scope = {"__name__": "isol8"}
        exec(compile(cells, "<isol8>", "exec"), scope)
        scope["serve"](control, mailbox)
        os._exit(0)

    data = os.pread(mailbox, int.from_bytes(request[8:16], "little"), 0)
    os.close(mailbox)
    fields, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        fields.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    try:
        os.chdir(fields[0])
    except OSError:
        os.write(control, b"directory")
        os._exit(1)
    zone = os.environ.get("TZ")
    pairs = list(zip(fields[1::2], fields[2::2]))
    os.environ.clear()
    for name, value in pairs:
        os.environb[name] = value
    posix.environ.clear()
    posix.environ.update(pairs)
    if os.environ.get("TZ") != zone:
        import time

        time.tzset()
    os.write(control, b"started")
    os.close(control)
    if failure is not None:
        # As if there were no such module, which is what `site` expects; the import that fails
        # takes this one out again.
        sys.modules["sitecustomize"] = this
        raise failure


try:
    wait()
finally:
    del wait
