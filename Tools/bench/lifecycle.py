#!/usr/bin/env python3
"""What does it cost to create a worker and to close it?

Usage
    ./python Tools/bench/lifecycle.py [--smoke | --full] [--rounds N] [--only WORD ...]
                                      [--json FILE]

How.  In a fresh process, workers are made one after the other: each is created, runs
a function, answers through a channel that was there before, and ends.  Two figures:

    until it answers    from before the creation until the answer is there
    until it is closed  the whole, with its end, and its memory given back

for a worker that imports nothing more, and for one that imports json, re, dataclasses
and logging, which is what workers do.

How to read the table.  A column for each of the four, a row for each way; medians over
all, and the interquartile range of the processes' medians in percent.  The baselines
are on stock 3.13.5 with the same flags: its interpreters, processes that are forked
(from one that has imported those modules: that is what fork is good at) and spawned,
threads, and threads without a GIL.  A stock interpreter answers through a queue that
looks for messages every 10 ms.

The physical limits are the creation of a thread and fork() of a small process, see
limits.py.
"""

import time

from benchlib import ensure
from runner import Cell, Panel, run
from small_workers import answer


def measure(way, imports, until, workers):
    if imports:
        import dataclasses, json, logging, re       # for those that are forked
    back = way.answers()
    times = []
    for i in range(-1, workers):
        start = time.perf_counter()
        worker = way.start(answer, back, imports)
        ensure(back.get() == 'here', 'the answer')
        answered = time.perf_counter() - start
        worker.join()
        closed = time.perf_counter() - start
        if i >= 0:
            times.append(answered if until == 'answer' else closed)
    return times


PANEL = Panel('Creating and closing workers', 'until when, and what it imports',
              limit='thread')
WAYS = {'interpreters': '', 'stock interpreters': '', 'processes, Pipe': 'processes, fork',
        'processes, spawn': '', 'threads': '', 'threads without GIL': ''}


def cells(args):
    effort = args.effort
    result = []
    for until, x in ('answer', 'until it answers'), ('close', 'until it is closed'):
        for imports in False, True:
            if imports and effort == 'smoke':
                continue
            for way, label in WAYS.items():
                workers = {'smoke': 2, 'quick': 10, 'full': 50}[effort]
                if 'spawn' in way:
                    workers = min(workers, 3)
                result.append(Cell(
                    PANEL, x + (', imports' if imports else ''), way,
                    dict(imports=imports, until=until, workers=workers), label))
    return result


if __name__ == '__main__':
    run(__doc__, cells)
