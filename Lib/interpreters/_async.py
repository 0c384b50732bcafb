"""Interpreters and queues in asyncio: put_async(), get_async(), call_async().

No thread waits for a queue.  Each event loop has a bell, a file descriptor that it watches
and that rings when one of the loop's waits may be over.  What is put or taken is
so in one step, without an await after it: a task that is cancelled has either
done it all or nothing.
"""

import asyncio
from threading import Thread
from weakref import WeakKeyDictionary

from _parcels import Bell, Queue, QueueEmpty, QueueFull, Wait


async def get(queue: Queue, /) -> object:
    """Take the next item out of the queue."""
    try:
        return queue.get_nowait()
    except QueueEmpty:
        pass
    watch = _watch()
    wait = Wait(queue, watch.bell, False)
    try:
        while True:
            try:
                return wait.get()
            except QueueEmpty:
                pass
            await watch.until_over(wait)
    finally:
        wait.close()


async def put(queue: Queue, obj: object, unbounditems: object, /) -> None:
    """Put an item into the queue."""
    try:
        queue.put_nowait(obj, unbounditems=unbounditems)
        return
    except QueueFull:
        pass
    watch = _watch()
    wait = Wait(queue, watch.bell, True)
    try:
        while True:
            try:
                wait.put(obj, unbounditems)
                return
            except QueueFull:
                pass
            await watch.until_over(wait)
    finally:
        wait.close()


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, '_Watch'] = (
    WeakKeyDictionary())


def _watch():
    loop = asyncio.get_running_loop()
    try:
        return _watches[loop]
    except KeyError:
        watch = _watches[loop] = _Watch()
        return watch


class _Watch:
    """The waits of one event loop."""

    def __init__(self):
        self.bell = Bell()
        self._futures = {}

    async def until_over(self, wait):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self._futures:
            loop.add_reader(self.bell.fileno(), self._rung)
        self._futures[wait] = future
        try:
            await future
        finally:
            del self._futures[wait]
            if not self._futures:
                loop.remove_reader(self.bell.fileno())

    def _rung(self):
        # First, so that what rings from now on is not missed.
        self.bell.silence()
        for wait, future in self._futures.items():
            if wait.over and not future.done():
                future.set_result(None)


async def in_thread(func, /, *args) -> object:
    """Call func(*args) in a new thread and return what it returns."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(set, value):
        if not future.done():
            set(value)

    def work():
        try:
            outcome = future.set_result, func(*args)
        except BaseException as exc:
            outcome = future.set_exception, exc
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:
            pass                    # the loop has been closed

    Thread(target=work).start()
    return await future
