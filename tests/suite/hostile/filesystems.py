# Run in a sandbox that watches, in another one, and on the host: the same functions, so that all of them mean
# the same by "open", "lock" and "see".
import ctypes, errno, fcntl, json, os, signal, stat, struct, sys

TIMES = 60
LIBC = ctypes.CDLL(None, use_errno=True)
SEEN = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x100 | 0x200  # IN_ACCESS to IN_OPEN, IN_CREATE, IN_DELETE
DN_ALL = 0x3F | 0x80000000  # every event, and again
F_NOTIFY, F_SETSIG, F_OFD_GETLK, F_OFD_SETLK = 1026, 10, 36, 37
SIGNAL = signal.SIGRTMIN + 1


def mounts():
    """Device, root, mount point and type of each mount."""
    lines = [line.split() for line in open("/proc/self/mountinfo")]
    return [(line[2], line[3], line[4], line[line.index("-") + 1]) for line in lines]


def places():
    """Each mount point, and of what is mounted there a few directories, files and devices."""
    points = {point for _, _, point, _ in mounts()}
    found = []
    for _, _, point, kind in mounts():
        found.append(point)
        if kind == "proc":
            continue
        level = [point]
        for most in (20, 3):
            level = [inner for place in level for inner in some_of(place, points, most)]
            found += level
    return sorted(set(found))


def some_of(directory, points, most):
    """Returns the first and the last ones of each kind: the first directories of a tree are often empty."""
    try:
        names = [os.path.join(directory, name) for name in sorted(os.listdir(directory))]
    except OSError:
        return []
    kinds = {}
    for name in names:
        mode = os.lstat(name).st_mode
        if name not in points and (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            kinds.setdefault(stat.S_IFMT(mode), []).append(name)
    return [name for some in kinds.values() for name in some[:most] + some[-most:]]


def opened(path):
    # A FIFO or a terminal would be waited for.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def whole_file(kind):
    return struct.pack("hhqqi", kind, 0, 0, 0, 0)


class Watcher:
    def __init__(self):
        self.paths = places()
        signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
        self.inotify = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watched, self.files, self.held, self.notified = {}, [], [], []

    def hold_all(self):
        for path in self.paths:
            self.hold(path)
        self.seen()

    def hold(self, path):
        watch = LIBC.inotify_add_watch(self.inotify, path.encode(), SEEN)
        if watch >= 0:
            self.watched[watch] = path
        try:
            file = opened(path)
        except OSError:
            return
        self.files.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.fcntl(file, F_OFD_SETLK, whole_file(fcntl.F_RDLCK))
            self.held.append(path)
        except OSError:
            pass
        try:
            fcntl.fcntl(file, F_SETSIG, SIGNAL)
            fcntl.fcntl(file, F_NOTIFY, DN_ALL)
            self.notified.append(path)
        except OSError:
            pass

    def seen(self):
        """How often something was seen, for each path; signals do not tell theirs."""
        counts = {}
        while True:
            try:
                events = os.read(self.inotify, 1 << 20)
            except OSError:
                break
            while events:
                watch, _, _, length = struct.unpack("iIII", events[:16])
                path = self.watched.get(watch, "queue overflow")
                counts[path] = counts.get(path, 0) + 1
                events = events[16 + length :]
        signals = 0
        while signal.sigtimedwait([SIGNAL], 0):
            signals += 1
        if signals:
            counts["signals"] = signals
        return counts


def use(paths):
    """Opens and reads each path often, and tells which cannot be locked."""
    blocked = []
    for path in paths:
        try:
            for _ in range(TIMES):
                file = opened(path)
                read(file)
                os.close(file)
            file = opened(path)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            blocked.append(f"flock on {path}: {errno.errorcode[error.errno]}")
        try:
            found = fcntl.fcntl(file, F_OFD_GETLK, whole_file(fcntl.F_WRLCK))
            if struct.unpack("hhqqi", found)[0] != fcntl.F_UNLCK:
                blocked.append(f"record lock on {path}")
        except OSError:
            pass
        os.close(file)
    return blocked


def read(file):
    try:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            with os.scandir(file) as entries:
                next(entries, None)
        else:
            os.read(file, 1)
    except OSError:
        pass


def here(theirs, paths):
    """Returns the places here of a watcher's paths, if its mounts show a part of ours; and the same paths."""
    found = set(paths)
    for path in paths:
        under = [mount for mount in theirs if is_within(path, mount[2])]
        for device, root, point, _ in sorted(under, key=lambda mount: len(mount[2]))[-1:]:
            inner = joined(root, os.path.relpath(path, point))
            for own_device, own_root, own_point, _ in mounts():
                if own_device == device and is_within(inner, own_root):
                    found.add(joined(own_point, os.path.relpath(inner, own_root)))
    return sorted(path for path in found if not is_within(path, "/proc"))


def joined(directory, path):
    return os.path.normpath(os.path.join(directory, path))


def is_within(path, place):
    return path == place or place == "/" or path.startswith(place + "/")
