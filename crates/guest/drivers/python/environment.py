"""Environment variables that a cell's request sets, for the cell only.

The files of the cells share one namespace; `driver.py` lists them.
"""

import os
import sys

USUAL_HANDLERS = (
    "ProxyHandler UnknownHandler HTTPHandler HTTPDefaultErrorHandler HTTPRedirectHandler"
    " FTPHandler FileHandler HTTPErrorProcessor DataHandler HTTPSHandler"
).split()


def is_proxy(name):
    return name.lower().endswith(b"_proxy")


def forget_proxies():
    """Has `urllib` read the variables of proxies again, unless the code has put its own opener there."""
    try:
        request = sys.modules["urllib.request"]
        handlers = {type(handler) for handler in request._opener.handlers}
        if handlers <= {getattr(request, name) for name in USUAL_HANDLERS}:
            request._opener = None
    except (AttributeError, KeyError):
        pass  # Nothing was opened yet.


def apply_variables(names):
    """Has libraries take note of variables that they have read before."""
    if b"TZ" in names:
        import time

        time.tzset()
    if any(map(is_proxy, names)):
        forget_proxies()


def put_environment(overlay):
    """Sets variables, and returns their former values."""
    saved = {name: os.environb.get(name) for name in overlay}
    for name, value in overlay.items():
        os.environb[name] = value
    apply_variables(overlay)
    return saved


def restore_environment(overlay, saved):
    """Sets the variables back, but for those that the code has changed itself, to stay."""
    for name, value in overlay.items():
        if os.environb.get(name) != value:
            continue
        if saved[name] is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = saved[name]
    apply_variables(overlay)


def current_directory():
    try:
        return os.getcwd()
    except OSError:
        return None  # The directory was removed.


class Surroundings:
    """The working directory and the variables of one cell."""

    def __init__(self, directory, variables):
        self.directory, self.variables = directory, variables
        self.before = current_directory()
        self.there = self.saved = None

    def enter_directory(self):
        """Changes to the cell's directory. Returns whether that could be done."""
        if self.directory:
            try:
                os.chdir(self.directory)
            except OSError:
                return False
        self.there = current_directory()
        return True

    def set_variables(self):
        self.saved = put_environment(self.variables)

    def restore(self):
        """Restores the directory, unless the cell has changed to another one, and the variables."""
        restore_environment(self.variables, self.saved)
        if self.directory and self.before is not None and current_directory() in (self.there, None):
            try:
                os.chdir(self.before)
            except OSError:
                pass  # The cell has removed the directory.
