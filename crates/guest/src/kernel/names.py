"""Has errors of Python's resolver say why a sandbox resolves no names.

The first line of `/etc/resolv.conf` says it, in a sandbox with a network of its own. In another one nothing changes.
"""


def explain():
    """Wraps what looks up names, before a module that uses it is imported."""
    try:
        import _socket
    except ImportError:
        return  # this Python has no network

    def reason():
        try:
            with open("/etc/resolv.conf", encoding="ascii", errors="replace") as file:
                first = file.readline().strip()
        except OSError:
            return ""
        return first.removeprefix("# ") if first.startswith("# isol8: ") else ""

    def explained(resolve):
        def resolving(*arguments, **named):
            try:
                return resolve(*arguments, **named)
            except _socket.gaierror as error:
                why = reason()
                if why and len(error.args) == 2:
                    error.args = (error.args[0], f"{error.args[1]} ({why})")
                    error.strerror = error.args[1]
                raise

        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(resolving, name, getattr(resolve, name, None))
        return resolving

    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(_socket, name, explained(getattr(_socket, name)))
