"""The event loop of a session: what a cell awaits runs in it, and tasks of cells go on in it between cells.

No loop runs while a cell does that awaits nothing. So `asyncio.run` and `run_until_complete` work there, and
libraries that look for a running loop find none; only `asyncio.create_task` takes the session's then.
"""


def make(asyncio, like):
    """Returns what makes the loop the current one, what runs a coroutine in it, and what runs it until a
    descriptor can be read."""
    import _thread

    own_create_task = asyncio.create_task
    main_thread = _thread.get_ident()
    loop = run_in = None

    def renew():
        nonlocal loop, run_in
        if hasattr(asyncio, "Runner"):
            runner = asyncio.Runner()
            loop, run_in = runner.get_loop(), runner.run
            return
        loop = asyncio.new_event_loop()
        run_in = lambda main, context: loop.run_until_complete(main)

    def current():
        get_policy = getattr(asyncio.events, "_get_event_loop_policy", asyncio.get_event_loop_policy)
        return getattr(getattr(get_policy(), "_local", None), "_loop", None)

    def use():
        """Makes the loop the current one, unless the code has one of its own: `asyncio.run` leaves none."""
        if loop is None or loop.is_closed():
            renew()
        now = current()
        if now is None or now.is_closed():
            asyncio.set_event_loop(loop)

    def create_task(coro, **options):
        if asyncio._get_running_loop() is not None or _thread.get_ident() != main_thread:
            return own_create_task(coro, **options)
        use()
        return loop.create_task(coro, **options)

    def run(main, context):
        use()
        run_in(main, context=context)

    def wait(descriptor):
        if loop.is_closed():
            return
        loop.add_reader(descriptor, loop.stop)
        try:
            loop.run_forever()
        finally:
            loop.remove_reader(descriptor)

    asyncio.create_task = asyncio.tasks.create_task = like(own_create_task, create_task)
    use()
    return use, run, wait
