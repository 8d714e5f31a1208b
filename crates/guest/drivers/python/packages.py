"""Packages that user code installs are found at once, by the interpreter that installed them too."""

import posix
import site
import sys
import time

# Nanoseconds after which a directory's time of change tells of each further change: the clock of the file system is
# coarse.
COARSE = 100_000_000


class UserPackages:
    """The packages that `pip install --user` brings. `is_users()` tells whether the process runs user code by now; until
    then nothing that user code writes is looked at."""

    def __init__(self, is_users):
        self.is_users = is_users
        # When the directory of the packages was changed last, and which of its files were read.
        self.changed, self.read = 0, None
        self.is_busy = False

    def add(self):
        """Adds the packages that came since the last call, or since the interpreter started."""
        user = site.ENABLE_USER_SITE and site.USER_SITE
        try:
            changed = posix.stat(user).st_mtime_ns if user else 0
        except OSError:
            return  # No package was installed.
        if changed == self.changed:
            return
        self.changed = changed if time.time_ns() - changed > COARSE else 0
        files = {name for name in posix.listdir(user) if name.endswith(".pth")}
        before = len(sys.path)
        if user not in sys.path:
            site.addsitedir(user)
        elif self.read is not None:
            for name in sorted(files - self.read):
                site.addpackage(user, name, None)
        self.read = files
        added = sys.path[before:]
        del sys.path[before:]
        system = site.getsitepackages()
        at = next((i for i, path in enumerate(sys.path) if path in system), before)
        sys.path[at:at] = added

    def find_again(self, find_spec, fullname, target):
        """Looks once more for a module that was not found, if packages have come since."""
        if self.is_busy or not self.is_users():
            return None
        self.is_busy = True
        try:
            before = len(sys.path)
            self.add()
            return find_spec(fullname, None, target) if len(sys.path) > before else None
        finally:
            self.is_busy = False

    def find_late(self):
        """Has an import that finds nothing look once more."""
        PathFinder = sys.modules["_frozen_importlib_external"].PathFinder
        find_spec = PathFinder.find_spec
        find_again = self.find_again

        def find(cls, fullname, path=None, target=None):
            spec = find_spec(fullname, path, target)
            if spec is not None or path is not None:
                return spec
            return find_again(find_spec, fullname, target)

        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(find, name, getattr(find_spec, name))
        PathFinder.find_spec = classmethod(find)
