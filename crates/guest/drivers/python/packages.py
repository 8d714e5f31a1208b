"""Packages that user code installs are found at once, by the interpreter that installed them too."""


def finder(is_users):
    """Returns a function that adds the packages which came since its last call, and one that has imports call it.

    `is_users()` tells whether the process runs user code by now; until then nothing that user code writes is looked
    at.
    """
    import posix
    import site
    import sys
    import time

    # When the directory of the user's packages was changed last, and which of its files were read.
    changed, read = 0, None

    def add_user_packages():
        """Adds what `pip install --user` brought since the last call, or since the interpreter started."""
        nonlocal changed, read
        user = site.ENABLE_USER_SITE and site.USER_SITE
        try:
            now_changed = posix.stat(user).st_mtime_ns if user else 0
        except OSError:
            return  # No package was installed.
        if now_changed == changed:
            return
        # The clock of the file system is coarse: a directory may change again within the same time.
        is_old = time.time_ns() - now_changed > 100_000_000
        changed = now_changed if is_old else 0
        files = {name for name in posix.listdir(user) if name.endswith(".pth")}
        before = len(sys.path)
        if user not in sys.path:
            site.addsitedir(user)
        elif read is not None:
            for name in sorted(files - read):
                site.addpackage(user, name, None)
        read = files
        added = sys.path[before:]
        del sys.path[before:]
        system = site.getsitepackages()
        at = next((i for i, path in enumerate(sys.path) if path in system), before)
        sys.path[at:at] = added

    def find_late_packages():
        """Has an import that finds nothing look once more where user packages have come since."""
        PathFinder = sys.modules["_frozen_importlib_external"].PathFinder
        find_spec = PathFinder.find_spec
        is_busy = False

        def find(cls, fullname, path=None, target=None):
            nonlocal is_busy
            spec = find_spec(fullname, path, target)
            if spec is not None or path is not None or is_busy or not is_users():
                return spec
            is_busy = True
            try:
                before = len(sys.path)
                add_user_packages()
                return find_spec(fullname, None, target) if len(sys.path) > before else None
            finally:
                is_busy = False

        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(find, name, getattr(find_spec, name))
        PathFinder.find_spec = classmethod(find)

    return add_user_packages, find_late_packages
