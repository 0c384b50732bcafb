#!/usr/bin/env python3
"""How fast does a pool map a function over many small items, by the size of a chunk?

Usage
    ./python Tools/bench/pool_map.py [--smoke | --full] [--rounds N] [--only WORD ...]
                                     [--json FILE]

How.  A fresh process makes a concurrent.futures executor with as many workers as there
are cores and maps once, so that all of them are there; then the clock stands around a
second map over the same dicts, and the results are checked.  Only ProcessPoolExecutor.map()
makes chunks of its own (chunksize=); for the others a chunk is a call of a function
that does a list of items, which costs the same and can be done with any executor.

How to read the table.  Items per second.  A column for each size of a chunk, a row for
each way; medians over the processes and the interquartile range in percent.  The baselines
are on stock 3.13.5 with the same flags: ProcessPoolExecutor with fork and with spawn,
ThreadPoolExecutor, also without a GIL; and the built-in map() in one thread, which
a pool has to beat, and at most by the number of cores.
"""

import concurrent.futures
import multiprocessing
import os
import time

from benchlib import ensure
from runner import Cell, Panel, run
from ways import FreeThreads, Way

OWN_WAYS = (Way('InterpreterPoolExecutor', 'this'),
            Way('ProcessPoolExecutor, fork', 'stock'),
            Way('ProcessPoolExecutor, spawn', 'stock'),
            Way('ThreadPoolExecutor', 'stock'),
            FreeThreads('ThreadPoolExecutor without GIL', 'freethreaded'),
            Way('map() in one thread', 'stock'))


def make(n):
    return [{'id': i, 'name': f'name {i}', 'words': ['a', 'bc', 'def'] * 5}
            for i in range(n)]


def check(item):
    """What is done with an item: some 5 us."""
    words = [word.upper() for word in item['words']]
    return item['id'] + len(''.join(sorted(words)))


def check_all(items):
    return [check(item) for item in items]


def executor(name, workers):
    if name == 'InterpreterPoolExecutor':
        return concurrent.futures.InterpreterPoolExecutor(workers)
    if name.startswith('Process'):
        method = name.rpartition(' ')[2]
        return concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context(method))
    return concurrent.futures.ThreadPoolExecutor(workers)


def mapped(pool, items, chunk):
    if isinstance(pool, concurrent.futures.ProcessPoolExecutor):
        return list(pool.map(check, items, chunksize=chunk))
    if chunk == 1:
        return list(pool.map(check, items))
    chunks = [items[i:i + chunk] for i in range(0, len(items), chunk)]
    return [value for part in pool.map(check_all, chunks) for value in part]


def measure(way, n, chunk, workers):
    items = make(n)
    expected = check_all(items)
    if way.name.startswith('map'):
        start = time.perf_counter()
        got = list(map(check, items))
        seconds = time.perf_counter() - start
    else:
        with executor(way.name, workers) as pool:
            mapped(pool, items, chunk)      # then all workers are there
            start = time.perf_counter()
            got = mapped(pool, items, chunk)
            seconds = time.perf_counter() - start
    ensure(got == expected, 'what was mapped')
    return [seconds / n]


PANEL = Panel('Map over a pool', 'items in a chunk', 'rate', 'items per second')


def cells(args):
    effort = args.effort
    result = []
    for chunk in {'smoke': [1, 10], 'quick': [1, 10, 100],
                  'full': [1, 10, 100, 1000]}[effort]:
        n = 40 if effort == 'smoke' else 2000 * (chunk if chunk < 10 else 10)
        for way in OWN_WAYS:
            result.append(Cell(PANEL, chunk, way,
                               dict(n=n, chunk=chunk, workers=os.cpu_count())))
    return result


if __name__ == '__main__':
    run(__doc__, cells)
