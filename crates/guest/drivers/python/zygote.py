"""Forks an interpreter for each run, on the guest's request.

The zygote never runs user code. A user id of its own lets it change ids; a child gives up both before it reads a byte
of any request, with the help of the guest's extension (descriptor 6). The child is a grandchild, whose parent has
ended: so its parent is the guest, as with every program.
"""

import os
import sys

# Milliseconds without a request after which there is time for what is not needed yet.
MOMENT = 2

CONTROL, MAILBOX, EXTENSION = 3, 4, 6

loaded = set(sys.modules)
import _imp
import _socket
import gc
import select


def forget_modules(known):
    """Takes out all modules but the known ones."""
    for name in set(sys.modules) - known:
        sys.modules.pop(name)


def load_extension():
    """Loads the guest's extension. `importlib` would leave traces in what it imports."""
    ModuleSpec = type(os.__spec__)
    origin = f"/proc/self/fd/{EXTENSION}"
    extension = _imp.create_dynamic(ModuleSpec("confine", None, origin=origin))
    os.close(EXTENSION)
    return extension


def refusal(name, known):
    """Imports a module. Returns the fault of the import, or `None`."""
    try:
        __import__(name)
    except BaseException as error:
        forget_modules(known)
        return f"{name} cannot be imported: {type(error).__name__}: {error}"
    if len(sys._current_frames()) > 1:
        return f"{name} leaves threads running after its import, which a fork would lose"
    return None


def soon(descriptor, moment=MOMENT):
    """Returns whether the descriptor can be read within some milliseconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(moment))


def freeze():
    """Has collections in a child leave alone what is shared now, and so leave it shared."""
    gc.collect()
    gc.disable()
    gc.freeze()


def renew():
    """Makes anew what must not be the same in every child, such as what came from randomness."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    # The one that was frozen would keep alive for ever what the script puts into it.
    main = type(sys)("__main__")
    vars(main).update(vars(sys.modules["__main__"]))
    sys.modules["__main__"] = main
    gc.enable()


class Zygote:
    """The process that forks. Its children take on the id `user`."""

    def __init__(self, user):
        self.user = user
        self.extension = load_extension()
        os.close(MAILBOX)
        self.channel = _socket.socket(fileno=os.dup(CONTROL))
        self.number = self.channel.fileno()
        self.room = _socket.CMSG_SPACE(5 * 4)

    def preload(self, names):
        """Imports modules ahead of all children; reports the first that cannot be imported, and ends."""
        for name in names:
            reason = refusal(name.decode("utf-8", "replace"), set(sys.modules))
            if reason is not None:
                self.channel.send(b"refused " + reason.encode("utf-8", "replace")[:900])
                os._exit(1)

    def receive(self):
        """Returns the descriptors of a request."""
        message, ancillary, _, _ = self.channel.recvmsg(16, self.room)
        if not message:
            os._exit(0)
        data = b"".join(data for _, _, data in ancillary)
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]

    def adopt(self, files):
        """Makes this child a process of its own, with the descriptors that it is to have."""
        self.channel.detach()
        os.close(self.number)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(len(files), max(files) + 1)
        os.setsid()
        if self.extension.confine(self.user) != 0:
            os._exit(1)
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        while os.getppid() != 1:
            os.sched_yield()

    def fork(self, files):
        """Forks a child. Returns `True` in the child."""
        child = os.fork()
        if child == 0:
            if os.fork() != 0:
                os._exit(0)
            self.adopt(files)
            renew()
            return True
        for file in files:
            os.close(file)
        os.waitpid(child, 0)
        return False

    def serve(self, grow):
        """Forks on request. Returns only in a child. `grow` prepares what only sessions need."""
        is_grown = False
        while not self.fork(self.receive()):
            if not is_grown and not soon(self.number):
                # Nothing is urgent.
                is_grown = True
                gc.enable()
                grow()
                freeze()


def serve(user, preload, share, grow):
    """Imports modules, calls `share`, and forks. Returns in a child: how to wait a moment for a request, and how to
    end."""
    zygote = Zygote(user)
    forget_modules(loaded)
    zygote.preload(preload)
    share()
    freeze()
    zygote.channel.send(b"ready")
    zygote.serve(grow)
    return soon, zygote.extension.leave
