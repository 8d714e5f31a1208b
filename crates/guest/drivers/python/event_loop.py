"""The event loop of a session, in which the coroutines of cells run, and in which their tasks go on between cells.

No loop runs while a cell does that awaits nothing. So `asyncio.run` and `run_until_complete` work there, and libraries
that look for a running loop find none; only `asyncio.create_task` takes the session's then.
"""

import _thread


class SessionLoop:
    """The session's loop, made anew when code has closed it."""

    def __init__(self, asyncio):
        self.asyncio = asyncio
        self.loop = self.run_in = None

    def renew(self):
        if hasattr(self.asyncio, "Runner"):
            runner = self.asyncio.Runner()
            self.loop, self.run_in = runner.get_loop(), runner.run
            return
        self.loop = self.asyncio.new_event_loop()
        self.run_in = lambda main, context: self.loop.run_until_complete(main)

    def current(self):
        """Returns the current loop of this thread, or `None`, and makes none."""
        asyncio = self.asyncio
        get_policy = getattr(asyncio.events, "_get_event_loop_policy", asyncio.get_event_loop_policy)
        return getattr(getattr(get_policy(), "_local", None), "_loop", None)

    def use(self):
        """Makes the loop the current one, unless the code has one of its own: `asyncio.run` leaves none."""
        if self.loop is None or self.loop.is_closed():
            self.renew()
        now = self.current()
        if now is None or now.is_closed():
            self.asyncio.set_event_loop(self.loop)

    def run(self, main, context):
        """Runs a coroutine to its end."""
        self.use()
        self.run_in(main, context=context)

    def wait(self, descriptor):
        """Runs the loop until a descriptor can be read."""
        if self.loop.is_closed():
            return
        self.loop.add_reader(descriptor, self.loop.stop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.remove_reader(descriptor)


def make(asyncio, look_like):
    """Returns the session's loop, which is the current one from now on."""
    session = SessionLoop(asyncio)
    own_create_task = asyncio.create_task
    main_thread = _thread.get_ident()

    def create_task(coro, **options):
        if asyncio._get_running_loop() is not None or _thread.get_ident() != main_thread:
            return own_create_task(coro, **options)
        session.use()
        return session.loop.create_task(coro, **options)

    asyncio.create_task = asyncio.tasks.create_task = look_like(own_create_task, create_task)
    session.use()
    return session
