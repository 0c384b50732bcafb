#!/usr/bin/env python3
"""How much memory does a worker take, and what stays when it is closed?

Usage
    ./python Tools/bench/worker_memory.py [--smoke | --full] [--rounds N] [--json FILE]

How.  In a fresh process, workers are created and wait.  What all the processes have
in memory is read from /proc (PSS: pages that two processes share count half for
each), before and then; the difference is divided by the number of workers.  "Closed
workers" does a few to warm up, then creates and closes more, one after the other, and
reads what the process has grown by for each.

    a worker    one that has only been started, or imported json, re, dataclasses and
                logging, or has besides a dict of 100,000 entries, made by itself
    closed      growth for each worker that was created and closed

How to read the tables.  A column for each of these, a row for each way; medians over the
processes, and the interquartile range in percent.  The baselines are on stock 3.13.5 with
the same flags.  Forked processes share pages with their parent until one writes to
them, so they grow while they work.  The limit of a thread is its stack: two pages or so
until it is used.
"""

import gc
import os

from benchlib import ensure
from runner import Cell, Panel, run
from small_workers import wait

CONTENTS = {'nothing': 0, '4 modules': 1, '4 modules, a dict of 100,000': 2}


def family(pid):
    """A process and those that it started."""
    yield pid
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/children', encoding='ascii') as file:
            for child in file.read().split():
                yield from family(int(child))


def memory():
    """Bytes of this process and all that it started."""
    gc.collect()
    total = 0
    for pid in family(os.getpid()):
        with open(f'/proc/{pid}/smaps_rollup', encoding='ascii') as file:
            total += next(int(line.split()[1]) for line in file
                          if line.startswith('Pss:'))
    return total * 1024


def while_there(way, content, workers):
    back = way.answers()
    waiting = [way.answers() for _ in range(workers + 1)]
    # The first one brings what all have in common, like multiprocessing's tracker.
    started = [way.start(wait, waiting[0], back, content)]
    ensure(back.get() == 'here', 'the answer')
    before = memory()
    for there in waiting[1:]:
        started.append(way.start(wait, there, back, content))
        ensure(back.get() == 'here', 'the answer')
    after = memory()
    for there in waiting:
        there.put(None)
    for worker in started:
        worker.join()
    return [(after - before) / workers]


def when_closed(way, workers):
    def cycles(n):
        for _ in range(n):
            there, back = way.answers(), way.answers()
            worker = way.start(wait, there, back, 1)
            ensure(back.get() == 'here', 'the answer')
            there.put(None)
            worker.join()
    cycles(5)
    before = memory()
    cycles(workers)
    return [(memory() - before) / workers]


def measure(way, what, **arguments):
    return globals()[what](way, **arguments)


THERE = Panel('Memory of a worker', 'what it has loaded', 'bytes', 'memory per worker')
CLOSED = Panel('Memory that a closed worker leaves behind', 'what was done', 'bytes',
               'growth per worker')
WAYS = {'interpreters': '', 'stock interpreters': '', 'processes, Pipe': 'processes, fork',
        'processes, spawn': '', 'threads': '', 'threads without GIL': ''}


def cells(args):
    effort = args.effort
    result = []
    workers = {'smoke': 1, 'quick': 4, 'full': 16}[effort]
    for x, content in CONTENTS.items():
        for way, label in WAYS.items():
            if effort != 'smoke' or content == 0:
                result.append(Cell(THERE, x, way, dict(
                    what='while_there', content=content, workers=workers), label))
    closed = {'smoke': 2, 'quick': 20, 'full': 100}[effort]
    for way in 'interpreters', 'stock interpreters', 'threads':
        result.append(Cell(CLOSED, 'created and closed', way,
                           dict(what='when_closed', workers=closed)))
    return result


if __name__ == '__main__':
    run(__doc__, cells)
