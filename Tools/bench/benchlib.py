"""What the scripts here that measure transfers have in common.

Not a script.  Classes whose instances are sent and functions that run in the other
interpreter are here, because they have to be importable there.
"""

import argparse
import dataclasses
import gc
import json
import multiprocessing
import statistics
import sys
import time
import zlib

try:
    import interpreters
except ImportError:
    pass            # another build, as a baseline: see ways.py


# --- Arguments, figures, tables ----------------------------------------------

def parse_args(doc, rounds, add=None):
    """--rounds, --smoke, --json, and what add(parser) adds."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog='The head of the script says how to read the table.')
    parser.add_argument('--rounds', type=int, default=rounds,
                        help=f'measurements of each way (default {rounds})')
    parser.add_argument('--smoke', action='store_true',
                        help='small and quick: sees that it works; the figures '
                             'mean nothing')
    parser.add_argument('--json', metavar='FILE',
                        help='write all results to FILE (-: stdout), in the format of '
                             'pyperf')
    if add is not None:
        add(parser)
    args = parser.parse_args()
    if args.smoke:
        args.rounds = min(args.rounds, 2)
    if args.rounds < 1:
        parser.error('--rounds must be positive')
    return args


def write_json(args, data, stock=None, title='', x_label=''):
    """data: {what: {way: [seconds]}}; stock: as write_own()'s.  With a title, what is
    (kind, number): a picture with lines for each kind."""
    import runner       # which imports this module
    script = sys.argv[0]
    def place(what):
        if title:
            kind, x = what
            return runner.Panel(f'{title}: {kind}', x_label), x
        return runner.Panel(runner.question_of(script), ''), what
    runner.write_own(args.json, script, [
        (*place(what), way, [times]) for what, ways in data.items()
        for way, times in ways.items()], stock)


def median(times):
    return statistics.median(times)


def spread(times):
    """The interquartile range, in percent of the median."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method='inclusive')
    return (high - low) / statistics.median(times) * 100


def progress(text):
    if sys.stderr.isatty():
        print(f'\r{text}\033[K', end='', file=sys.stderr, flush=True)


def in_turns(ways, rounds, what=''):
    """Call each of the functions `rounds` times, in turns, and once before to
    warm up.  Return what they returned, in seconds: {name: [float]}."""
    times = {name: [] for name in ways}
    for i in range(-1, rounds):
        for name, way in ways.items():
            progress(f'{what} {name} {i + 1}/{rounds}')
            gc.collect()
            seconds = way()
            if i >= 0:
                times[name].append(seconds)
    progress('')
    return times


def show(seconds):
    for unit, factor in ('s', 1), ('ms', 1e3), ('us', 1e6):
        if seconds * factor >= 1:
            break
    else:
        unit, factor = 'ns', 1e9
    value = seconds * factor
    return f'{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}'


def print_table(head, rows):
    """The first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print(row[0].ljust(widths[0]),
              *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])),
              sep='  ')


def ensure(condition, what):
    """There is no figure for what went wrong."""
    if not condition:
        sys.exit(f'wrong result: {what}')


# --- What is sent ------------------------------------------------------------

class Tree:
    """A node of a tree."""

    def __init__(self, depth, counter):
        self.number = next(counter)
        self.name = f'node {self.number}'
        self.left = self.right = None
        if depth > 0:
            self.left = Tree(depth - 1, counter)
            self.right = Tree(depth - 1, counter)

    def total(self):
        total = self.number + len(self.name)
        if self.left is not None:
            total += self.left.total() + self.right.total()
        return total


@dataclasses.dataclass
class Point:
    x: int
    y: int
    name: str
    weight: float
    tags: tuple


# --- Receivers ---------------------------------------------------------------

def check_sum(obj):
    """A number that depends on all of a graph.  Only types that are sent here."""
    total = 0
    todo = [obj]
    while todo:
        obj = todo.pop()
        kind = type(obj)
        if kind is int or kind is float:
            total += obj
        elif kind is str:
            total += zlib.crc32(obj.encode())
        elif kind is bytes or kind is bytearray:
            total += zlib.crc32(obj)
        elif kind is dict:
            todo.extend(obj)
            todo.extend(obj.values())
        elif kind is list or kind is tuple or kind is set:
            todo.extend(obj)
        elif kind is Tree:
            total += obj.total()
        elif kind is Point:
            todo.append(obj.__dict__)
        elif obj is not None and kind is not bool:
            total += zlib.crc32(obj)
        total += 1
    return total


def serve(get, put):
    """Say when something has come, then what its sum is; until there is None."""
    while (obj := get()) is not None:
        put(True)
        put(check_sum(obj))
        del obj


def serve_queues(there, back):
    serve(there.get, back.put)


def serve_pipe(conn):
    serve(conn.recv, conn.send)


class Receiver:
    """Another interpreter or process, and how long it takes to send it something.

    The clock runs from the beginning of the sending until the other side has
    said that the object is there, ready to be used."""

    def time(self, obj, expected, wrap=lambda obj: obj):
        start = time.perf_counter()
        self.send(wrap(obj))
        ok = self.receive()
        seconds = time.perf_counter() - start
        ensure(ok is True and self.receive() == expected, type(self).__name__)
        return seconds


class Interpreter(Receiver):

    def __enter__(self):
        self.interp = interpreters.create()
        self.there = interpreters.create_queue()
        self.back = interpreters.create_queue()
        self.send, self.receive = self.there.put, self.back.get
        self.thread = self.interp.call_in_thread(
            serve_queues, self.there, self.back)
        return self

    def __exit__(self, *exc_info):
        self.there.put(None)
        self.thread.join()
        self.interp.close()


class Process(Receiver):
    """At the other end of a multiprocessing.Pipe."""

    def __enter__(self):
        context = multiprocessing.get_context('spawn')
        conn, other = context.Pipe()
        self.send, self.receive = conn.send, conn.recv
        self.process = context.Process(target=serve_pipe, args=(other,))
        self.process.start()
        return self

    def __exit__(self, *exc_info):
        self.send(None)
        self.process.join()


# --- Small messages -----------------------------------------------------------

def value(item):
    """A number that shows that it is the right item."""
    if type(item) is int:
        return item
    if type(item) is tuple:
        return item[0] + len(item[1])
    return item.x + len(item.name)


def echo(get, put, get_many=None, batch=0):
    """Send back what comes, until there is None.  Between 'sum' or 'many' and
    'end', only how many there were and what their values add up to."""
    while (item := get()) is not None:
        if type(item) is not str:
            put(item)
        elif item == 'sum':
            put(add_up(get))
        else:
            put(add_up_many(get_many, batch))


def add_up(get):
    count = total = 0
    while type(item := get()) is not str:
        total += item if type(item) is int else value(item)
        count += 1
    return [count, total]


def add_up_many(get_many, batch):
    count = total = 0
    while True:
        for item in get_many(batch):
            if type(item) is str:
                return [count, total]
            total += item if type(item) is int else value(item)
            count += 1


def echo_queues(there, back, batch):
    echo(there.get, back.put, there.get_many, batch)


def echo_pipe(conn):
    echo(conn.recv, conn.send)
