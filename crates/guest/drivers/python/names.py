"""Has errors of Python's resolver say why a sandbox resolves no names.

The first line of `/etc/resolv.conf` says it, in a sandbox with a network of its own. In another one nothing changes.
"""


def explain():
    """Wraps what looks up names, when the module that has it is loaded: no script is to find that loaded."""
    import _imp

    def reason():
        try:
            with open("/etc/resolv.conf", encoding="ascii", errors="replace") as file:
                first = file.readline().strip()
        except OSError:
            return ""
        return first.removeprefix("# ") if first.startswith("# isol8: ") else ""

    def named(new, old):
        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(new, name, getattr(old, name, None))
        return new

    def explained(resolve, failure):
        def resolving(*arguments, **options):
            try:
                return resolve(*arguments, **options)
            except failure as error:
                why = reason()
                if why and len(error.args) == 2:
                    error.args = (error.args[0], f"{error.args[1]} ({why})")
                    error.strerror = error.args[1]
                raise

        return named(resolving, resolve)

    def after(load):
        def loading(module):
            result = load(module)
            if module.__name__ == "_socket":
                for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
                    setattr(module, name, explained(getattr(module, name), module.gaierror))
            return result

        return named(loading, load)

    # Debian's Python has the module built in, others have it in a file.
    _imp.exec_builtin = after(_imp.exec_builtin)
    _imp.exec_dynamic = after(_imp.exec_dynamic)
