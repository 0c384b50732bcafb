#!/usr/bin/env python3
"""What does it cost to send a graph of objects, by its size: moved, copied, pickled?

Question.  Bulk bytes move fast between processes, too; it is walking graphs of objects
that costs.  How much does a parcel save, from ten dicts to a million?

Usage
    ./python Tools/bench/graphs.py [--smoke | --full] [--rounds N] [--only WORD ...]
                                   [--json FILE]

How.  The graph is a list of dicts, each with an int, a str, a float and a list of
three str: ten objects.  Fresh processes, in turns.

    To a worker     from before put() until the worker has said that it is there and
                    ready for use; made anew each time, as what was moved is gone
    The work alone  put() and get() in one interpreter, pickle.dumps() and loads() on
                    stock: the work of both sides without anybody waking up

How to read the tables.  A column for each number of dicts, a row for each way, medians
over all processes, and the interquartile range of the processes' medians in percent.
The baselines are stock's ways, see messages.py.  Threads share the graph instead: that
is the price of isolation.

The physical limit of a move is one look at each object ("walk" of limits.py: a load
that misses the cache); the cycle collector's walk over the same graph is shown beside
it as the row "gc.collect()".  Scripts on the same: transfer.py for other kinds of data,
open_flat.py for opening alone.
"""

import gc
import pickle
import time

from benchlib import ensure
from runner import Cell, Panel, run
from ways import Way

OWN_WAYS = (Way('pickle', 'stock'), Way('gc.collect()', 'stock'))


def make(n):
    return [{'id': 1000 + i, 'name': f'name {i}', 'tags': [f'a{i}', f'b{i}', 'c'],
             'weight': i / 7} for i in range(n)]


def is_right(obj, n):
    return len(obj) == n and obj[-1] == make(n)[-1] if n <= 100 else (
        len(obj) == n and obj[-1]['tags'][1] == f'b{n - 1}')


def acknowledge(there, back):
    while (item := there.get()) is not None:
        back.put(len(item))
        del item


def to_worker(way, n, values):
    there, back = way.channel(), way.answers()
    worker = way.start(acknowledge, there, back)
    times = []
    for i in range(-1, values):
        obj = make(n)
        start = time.perf_counter()
        there.put(way.wrap(obj))
        length = back.get()
        seconds = time.perf_counter() - start
        ensure(length == n, 'to a worker')
        if i >= 0:
            times.append(seconds)
    there.put(None)
    worker.join()
    return times


def alone(way, n, values):
    if way.name == 'pickle':
        def there_and_back(obj):
            return pickle.loads(pickle.dumps(obj, 5))
    elif way.name == 'gc.collect()':
        def there_and_back(obj):
            gc.collect()
            return obj
    else:
        channel = way.channel()

        def there_and_back(obj):
            channel.put(way.wrap(obj))
            return channel.get()
    # A clock that is read for each of the small ones would cost more than they do.
    batch = 1 if way.name == 'gc.collect()' else max(1, 1000 // n)
    gc.collect()
    gc.freeze()         # what is there already is not collected with the graph
    times = []
    for i in range(-1, values):
        objs = [make(n) for _ in range(batch)]
        gc.collect()
        start = time.perf_counter()
        for obj in objs:
            got = there_and_back(obj)
        seconds = (time.perf_counter() - start) / batch
        ensure(is_right(got, n), 'alone')
        del got, obj, objs
        if i >= 0:
            times.append(seconds)
    return times


def measure(way, what, **arguments):
    return globals()[what](way, **arguments)


THERE = Panel('A graph to a worker', 'dicts in the graph',
              y_label='time until the receiver has answered', limit='futex')
ALONE = Panel('A graph: the work alone', 'dicts in the graph',
              y_label='time of both sides', limit='walk', per_x=10)


def cells(args):
    effort = args.effort
    sizes = {'smoke': [10, 100], 'quick': [10, 100, 1000, 10_000, 100_000],
             'full': [10, 100, 1000, 10_000, 100_000, 1_000_000]}[effort]
    result = []
    for n in sizes:
        values = 2 if effort == 'smoke' or n >= 100_000 else 5
        for way in ('interpreters', 'interpreters, moved', 'stock interpreters',
                    'processes, Pipe', 'processes, Queue', 'threads',
                    'threads without GIL'):
            result.append(Cell(THERE, n, way, dict(what='to_worker', n=n,
                                                   values=values)))
        for way in 'interpreters', 'interpreters, moved', *OWN_WAYS:
            result.append(Cell(ALONE, n, way, dict(what='alone', n=n,
                                                   values=values)))
    return result


if __name__ == '__main__':
    run(__doc__, cells)
