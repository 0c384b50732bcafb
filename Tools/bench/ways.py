"""The ways to have several workers at once, behind one interface.

Not a script.  It runs on every build that is measured: this one, stock, and stock
without a GIL.  A script's measure(way, ...) does the same work whatever the way is:

    channel = way.channel()         for two or more; pipe: for one at each end
    worker = way.start(func, channel, ...)
    channel.put(way.wrap(obj)); channel.get()
    worker.join()

What a worker runs is a function of an importable module, since that is the least
that all ways have in common.  What one way can't do well has no figure, instead of
one that is measured in another manner.
"""

import multiprocessing
import os
import pickle
import queue
import sys
import threading
from multiprocessing import shared_memory

FOLDER = os.path.dirname(os.path.abspath(__file__))
# The Pythons, by the names that the ways use for them, and how to get them.
BUILDS = {
    'this': 'RWPython, the Python that runs the script',
    'stock': 'stock 3.13.5 with the same flags; next: make stock',
    'freethreaded': 'the same release with --disable-gil; next: make stock-freethreaded',
}


class Way:
    """Channels and workers of one kind."""

    def __init__(self, name, build, options=()):
        self.name = name
        self.build = build
        self.options = options      # of the Python

    def wrap(self, obj):
        """What to put into a channel so that obj arrives."""
        return obj

    def answers(self):
        """A channel for small answers."""
        return self.channel()


# --- Interpreters of one process ---------------------------------------------

class Interpreters(Way):

    def channel(self):
        import interpreters
        return interpreters.create_queue()

    def start(self, func, *args):
        return InterpreterWorker(func, args)


class InterpreterWorker:

    def __init__(self, func, args):
        import interpreters
        self.interp = interpreters.create()
        self.thread = self.interp.call_in_thread(func, *args)

    def join(self):
        self.thread.join()
        self.interp.close()


class Moving(Interpreters):

    def wrap(self, obj):
        import interpreters
        return interpreters.move(obj)


class StockInterpreters(Way):
    """With stock's own queue, which polls and pickles."""

    def channel(self):
        from test.support.interpreters import queues
        return queues.create()

    def start(self, func, *args):
        return StockWorker(func, args)


class StockWorker:
    # Neither functions nor arguments can be handed over, but text can.
    SOURCE = """if True:
        import pickle, sys
        sys.path.insert(0, {folder!r})
        import test.support.interpreters.queues
        func, args = pickle.loads({data!r})
        func(*args)
        """

    def __init__(self, func, args):
        from test.support import interpreters
        self.interp = interpreters.create()
        source = self.SOURCE.format(folder=FOLDER,
                                    data=pickle.dumps((func, args)))
        self.thread = threading.Thread(target=self.interp.exec, args=(source,))
        self.thread.start()

    def join(self):
        self.thread.join()
        self.interp.close()


# --- Processes ---------------------------------------------------------------

class Processes(Way):
    """With a multiprocessing.Queue."""

    def __init__(self, name, build, method='fork'):
        super().__init__(name, build)
        self.context = multiprocessing.get_context(method)

    def channel(self):
        return self.context.Queue()

    def start(self, func, *args):
        worker = self.context.Process(target=func, args=args)
        worker.start()
        return worker


class PipeChannel:
    """One way, between two."""

    def __init__(self, context):
        self.reader, self.writer = context.Pipe(duplex=False)

    def put(self, obj):
        self.writer.send(obj)

    def get(self):
        return self.reader.recv()


class Pipes(Processes):
    """With a multiprocessing.Pipe."""

    def channel(self):
        return PipeChannel(self.context)


class MemoryChannel(PipeChannel):
    """A block of shared memory for bytes, and a pipe that says how many.

    put() copies them into the block; get() gives a view, nothing is copied.  The
    block can be filled again when the receiver has said that it is done."""

    SIZE = 128 * 2**20

    def __init__(self, context):
        super().__init__(context)
        self.memory = shared_memory.SharedMemory(create=True, size=self.SIZE)
        self.memory.unlink()        # the mapping stays, with the two processes

    def put(self, obj):
        if obj is not None:
            self.memory.buf[:len(obj)] = obj
        self.writer.send(None if obj is None else len(obj))

    def get(self):
        length = self.reader.recv()
        return None if length is None else self.memory.buf[:length]


class SharedMemory(Processes):

    def channel(self):
        return MemoryChannel(self.context)

    def answers(self):
        return PipeChannel(self.context)


# --- Threads -----------------------------------------------------------------

class Threads(Way):
    """They share what they send."""

    def channel(self):
        return queue.SimpleQueue()

    def start(self, func, *args):
        worker = threading.Thread(target=func, args=args)
        worker.start()
        return worker


class FreeThreads(Threads):

    def channel(self):
        if sys._is_gil_enabled():
            sys.exit('not a build without a GIL')
        return super().channel()


WAYS = {way.name: way for way in (
    Interpreters('interpreters', 'this'),
    Moving('interpreters, moved', 'this'),
    StockInterpreters('stock interpreters', 'stock'),
    Pipes('processes, Pipe', 'stock'),
    Processes('processes, Queue', 'stock'),
    SharedMemory('processes, shared memory', 'stock'),
    Processes('processes, spawn', 'stock', 'spawn'),
    Threads('threads', 'stock'),
    FreeThreads('threads without GIL', 'freethreaded'),
)}
