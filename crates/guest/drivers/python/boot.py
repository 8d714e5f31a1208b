"""The steps from the interpreter's start to its first request, and to what the request asks for."""

import os
import posix
import site
import sys
import time

CONTROL, MAILBOX = 3, 4

# For each Python that the code starts; this interpreter writes line by line without it.
UNBUFFERED = (b"PYTHONUNBUFFERED", b"1")


def fields():
    """Yields the fields of the mailbox: a length of four bytes, the bytes, and so on."""
    size = os.fstat(MAILBOX).st_size
    data, at = os.pread(MAILBOX, size, 0), 0
    while len(data) < size:
        data += os.pread(MAILBOX, size - len(data), len(data))
    while at < size:
        length = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def set_environment(pairs):
    zone = os.environ.get("TZ")
    pairs = [UNBUFFERED, *pairs]
    os.environ.clear()
    for name, value in pairs:
        os.environb[name] = value
    posix.environ.clear()
    posix.environ.update(pairs)
    if os.environ.get("TZ") != zone:
        time.tzset()


def rehearse_start():
    """Does in steps, and without an effect, what the start of a script will do."""
    set_environment(list(os.environb.items()))
    for hook in sys.path_hooks:
        try:
            # As the script: a file, and too short to be an archive.
            hook("/proc/self/oom_score_adj")
        except ImportError:
            pass
    yield
    exec(compile("def f(x=1):\n    print(end='')\nf()\n", "<boot>", "exec"), {})


def import_image_module():
    """Imports the image's own module of the driver's name. Returns its error, or `None`."""
    try:
        import sitecustomize
    except Exception as error:
        return error
    return None


def use_home():
    """Has the packages of the sandbox's user found, which lie under a home that a zygote does not look at."""
    os.environ["HOME"] = "/sandbox"
    os.environb.setdefault(*UNBUFFERED)
    os.chdir("/sandbox")
    if site.ENABLE_USER_SITE:
        site.USER_BASE = site.USER_SITE = None
        site.USER_SITE = site.getusersitepackages()


class Spare:
    """An interpreter that waits for its first request. `this` is the module that loaded the driver."""

    def __init__(self, parts, this):
        self.parts, self.this = parts, this
        # Whether this process is user code's; the zygote looks at nothing that user code writes.
        self.is_users = False
        self.packages = parts.names("packages")["UserPackages"](lambda: self.is_users)
        self.renew_stdout = parts.names("stdout")["make"]()
        parts.names("names")["explain"]()
        self.failure = import_image_module()
        self.packages.find_late()
        self.finish = parts.names("finish")
        self.cells, self.cell_modules = None, {}

    def make_cells(self):
        """Returns what serves cells, and keeps the modules that come with it from scripts."""
        if self.cells is None:
            before = set(sys.modules)
            make = self.parts.names("cells")["Cells"]
            self.cells = make(self.packages.add, self.renew_stdout, self.parts.names)
            new = set(sys.modules) - before
            self.cell_modules = {name: sys.modules.pop(name) for name in new}
        return self.cells

    def rehearse(self):
        """Goes through the steps that any request will need. The pages that they touch are then in memory, and a fork
        has its own copy."""
        yield from rehearse_start()
        yield
        try:
            # `site` looks for one more module, which hardly ever exists.
            import isol8_no_such_module
        except ImportError:
            pass
        yield
        yield from self.finish["rehearse"]()
        yield
        cells = self.make_cells()
        yield
        cells.rehearse()

    def begin(self):
        """Forks from here on, if this is to be a zygote. Returns, in a process that serves a request, how to wait for the
        request and how a script ends."""
        mode, *more = fields()
        if mode == b"zygote":
            user, path, *preload = more
            serve = self.parts.names("zygote")["serve"]
            waiting = serve(int(user), preload, self.finish["share"], lambda: self.parts.compile("cells"))
            os.environb[b"PATH"] = path
            return waiting
        # The memory of this process is its own already, and a guest that boots each interpreter anew has no processor
        # to spare: parts that only cells need are made with the first cell.
        for _ in rehearse_start():
            pass
        return (lambda *_: True), os._exit

    def receive(self, soon):
        """Returns the words of the request; rehearses while there is none."""
        os.write(CONTROL, b"ready %d\n" % os.getpid())
        if not soon(CONTROL):
            for _ in self.rehearse():
                # A request that comes now waits for one step, and not for all.
                if soon(CONTROL, 0):
                    break
        request = os.read(CONTROL, 64).split()
        if not request:
            os._exit(0)
        return request

    def serve_cells(self, request):
        if self.failure is not None:
            sys.modules["sitecustomize"] = None
        cells = self.make_cells()
        sys.modules.update(self.cell_modules)
        cells.serve(CONTROL, MAILBOX, request)
        os._exit(0)

    def go_to_script(self, leave):
        """Prepares what the script finds, and reports that it starts."""
        _, directory, *pairs = fields()
        os.close(MAILBOX)
        try:
            os.chdir(directory)
        except OSError:
            os.write(CONTROL, b"directory\n")
            os._exit(1)
        set_environment(list(zip(pairs[::2], pairs[1::2])))
        # To free what is not needed any more would touch, and so copy, its pages.
        self.finish["finish_by"](leave, self)
        os.write(CONTROL, b"started\n")
        os.close(CONTROL)

    def wait(self):
        """Follows the first request. Returns only where a script is to be run."""
        soon, leave = self.begin()
        use_home()
        request = self.receive(soon)
        self.packages.add()
        self.is_users = True
        if request[0] == b"C":
            self.serve_cells(request)
        self.go_to_script(leave)
        if self.failure is not None:
            # As if there were no such module, which is what `site` expects; the import that fails takes this one out
            # again.
            sys.modules["sitecustomize"] = self.this
        return self.failure
