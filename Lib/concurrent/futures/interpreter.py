"""InterpreterPoolExecutor: a pool of threads, each with an interpreter of its own.

The threads, their queue of work and their end are ThreadPoolExecutor's.  What
is added: a worker thread makes an interpreter before its first task, calls the
initializer and the tasks in it, and closes it when it ends.
"""

from __future__ import annotations

import sys
import threading
import weakref
from concurrent.futures import _base
from concurrent.futures import thread as _thread
from itertools import batched

import interpreters
from interpreters import _entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class BrokenInterpreterPool(_thread.BrokenThreadPool):
    """A worker could not be made ready: its interpreter could not be created,
    or the initializer raised an exception, which is the __cause__."""


_worker_state = threading.local()


def _call(interp, message):
    """Make a packed call in interp; an exception comes as itself, from
    ExecutionFailed."""
    try:
        return interp._run('call', message)
    except interpreters.ExecutionFailed as failed:
        exc = failed.__cause__
        if exc is None:
            raise
        # Cause of what it was caused by: the other way round it was a cycle.
        failed.__cause__ = exc.__cause__
        failed.__context__ = None
        raise exc from failed


def _run_task(message):
    return _call(_worker_state.interp, message)


def _refuse_task(exc):
    try:
        raise exc
    finally:
        del exc


def _start_worker(initializer, initargs):
    _worker_state.interp = interpreters.create()
    if initializer is not None:
        _call(_worker_state.interp,
              interpreters._pack_call(initializer, initargs, {}))


def _work(executor_ref, work_queue, initializer, initargs):
    try:
        _thread._worker(executor_ref, work_queue,
                        _start_worker, (initializer, initargs))
    finally:
        interp = _worker_state.__dict__.pop('interp', None)
        if interp is not None:
            interp.close()


class InterpreterPoolExecutor(_thread.ThreadPoolExecutor):
    """Runs calls in parallel, in interpreters of this process.

    max_workers: how many interpreters at most, each in a thread; by default
        as ThreadPoolExecutor has it.
    thread_name_prefix: for the names of these threads.
    initializer, initargs: initializer(*initargs) is called in each interpreter
        before its first task.  Should it raise an exception, the pool is
        broken: BrokenInterpreterPool, from that exception, for all tasks that
        have not begun, and for further submit()s.

    Tasks, arguments and results cross as with interpreters.Interpreter.call().
    An exception of a task is raised by Future.result() as itself, from an
    interpreters.ExecutionFailed that has its traceback as text; or as that, if
    it can't be re-created here.  What can't be sent is a NotShareableError of
    the future.

    Interface as of Python 3.14.
    """

    def __init__(self, max_workers: int | None = None,
                 thread_name_prefix: str = '',
                 initializer: Callable | None = None, initargs: tuple = ()):
        if not thread_name_prefix:
            thread_name_prefix = f'InterpreterPoolExecutor-{self._counter()}'
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        self._broken_by = None

    def submit(self, fn: Callable, /, *args, **kwargs) -> _base.Future:
        # Taken now, so that later changes are not seen; but not for nothing,
        # as what is moved can't be given back.
        try:
            message = (None if self._shutdown or self._broken else
                       interpreters._pack_call(fn, args, kwargs))
            task = _run_task, message
        except Exception as exc:
            task = _refuse_task, exc
        try:
            return super().submit(*task)
        except _thread.BrokenThreadPool:
            raise self._broken_error() from self._broken_by
    submit.__doc__ = _base.Executor.submit.__doc__

    def map(self, fn: Callable, *iterables: Iterable,
            timeout: float | None = None, chunksize: int = 1) -> Iterator:
        """Return an iterator like the builtin map()'s, of calls made in parallel.

        timeout: seconds after this call by which each result must be there
            when it is asked for, else TimeoutError; None for no limit.
        chunksize: how many calls a worker gets as one task; more make less
            overhead.  ValueError if less than 1.  An exception of one of them
            takes the place of the results of its chunk.

        An exception of a call is raised when its result is asked for.
        """
        if chunksize < 1:
            raise ValueError('chunksize must be at least 1')
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = [list(rows) for rows in batched(zip(*iterables), chunksize)]
        results = super().map(_entry.call_each, [fn] * len(chunks), chunks,
                              timeout=timeout)
        return (result for chunk in results for result in chunk)

    def _adjust_thread_count(self):
        # Called by submit() of the base class, which holds its locks.
        if self._idle_semaphore.acquire(blocking=False):
            return
        count = len(self._threads)
        if count == self._max_workers:
            return
        work_queue = self._work_queue
        executor_ref = weakref.ref(self, lambda _: work_queue.put(None))
        worker = threading.Thread(
            name=f'{self._thread_name_prefix}_{count}', target=_work,
            args=(executor_ref, work_queue, self._initializer, self._initargs))
        worker.start()
        self._threads.add(worker)
        _thread._threads_queues[worker] = work_queue

    def _initializer_failed(self):
        # Called by a worker in the except clause of its initializer.  Which is
        # _start_worker() here: so creating the interpreter counts, too.
        with self._shutdown_lock:
            exc = self._broken_by = sys.exception()
            self._broken = (
                f'a worker of the pool could not be initialized: '
                f'{type(exc).__name__}: {str(exc).partition('\n')[0]}')
            while not self._work_queue.empty():
                item = self._work_queue.get_nowait()
                if item and item.future.set_running_or_notify_cancel():
                    item.future.set_exception(self._broken_error())

    def _broken_error(self):
        error = BrokenInterpreterPool(self._broken)
        error.__cause__ = self._broken_by
        return error
