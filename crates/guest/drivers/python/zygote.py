"""Forks an interpreter for each run, on the guest's request.

The zygote never runs user code. A user id of its own lets it change ids; a child gives up both
before it reads a byte of any request, with the help of the guest's extension (descriptor 6). The
child is a grandchild, whose parent has ended: so its parent is the guest, as with every program.
"""

# Milliseconds without a request after which there is time for what is not needed yet.
MOMENT = 2


def serve(user, preload, share, grow):
    """Imports modules, and tells `share` of it. Children take on the id `user`. Returns in a child: how to await a request for a moment,
    and how to end."""
    import os
    import sys

    control, mailbox, file = 3, 4, 6
    before = set(sys.modules)
    import _imp
    import _socket
    import gc
    import select

    # Its home, `importlib`, would leave traces in what it imports.
    ModuleSpec = type(os.__spec__)
    origin = f"/proc/self/fd/{file}"
    extension = _imp.create_dynamic(ModuleSpec("confine", None, origin=origin))
    os.close(file)
    os.close(mailbox)
    channel = _socket.socket(fileno=os.dup(control))
    room = _socket.CMSG_SPACE(5 * 4)

    def forget(names):
        for name in set(sys.modules) - names:
            sys.modules.pop(name)

    forget(before)

    def refusal(name):
        """Imports a module; says what is wrong with that, if anything is."""
        try:
            __import__(name)
        except BaseException as error:
            forget(before)
            return f"{name} cannot be imported: {type(error).__name__}: {error}"
        if len(sys._current_frames()) > 1:
            return f"{name} leaves threads running after its import, which a fork would lose"
        return None

    for name in preload:
        reason = refusal(name.decode("utf-8", "replace"))
        if reason is not None:
            channel.send(b"refused " + reason.encode("utf-8", "replace")[:900])
            os._exit(1)
        before = set(sys.modules)
    share()

    def receive():
        message, ancillary, _, _ = channel.recvmsg(16, room)
        if not message:
            os._exit(0)
        data = b"".join(data for _, _, data in ancillary)
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]

    def adopt(files):
        """Becomes a process of its own, with the descriptors that it is to have."""
        channel.detach()
        os.close(channel_number)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(len(files), max(files) + 1)
        os.setsid()
        if extension.confine(user) != 0:
            os._exit(1)
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        while os.getppid() != 1:
            os.sched_yield()

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

    def soon(descriptor, moment=MOMENT):
        """Whether something can be read there within a moment."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(moment))

    def freeze():
        """Collections in a child will leave alone what is shared now, and so leave it shared."""
        gc.collect()
        gc.disable()
        gc.freeze()

    channel_number = channel.fileno()
    freeze()
    channel.send(b"ready")
    grown = False
    while True:
        files = receive()
        child = os.fork()
        if child == 0:
            if os.fork() != 0:
                os._exit(0)
            adopt(files)
            renew()
            return soon, extension.leave
        for file in files:
            os.close(file)
        os.waitpid(child, 0)
        # Parts that only sessions need are made once nothing is urgent.
        if not grown and not soon(channel_number):
            grown = True
            gc.enable()
            grow()
            freeze()
