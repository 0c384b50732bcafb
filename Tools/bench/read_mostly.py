#!/usr/bin/env python3
"""How fast is a table that all workers read and one changes now and then?

Question.  Configuration, routes, prices: a table that is read all the time and changed
rarely.  Threads share it.  Workers that share nothing have a copy each, and changes are
sent to all of them.  What do the lookups cost, and what does a change?

Usage
    ./python Tools/bench/read_mostly.py [--smoke | --full] [--rounds N]
                                        [--only WORD ...] [--json FILE]

How.  A fresh process with as many workers as there are cores.  Each has a dict of 10,000
entries (threads: the same one) and does rounds of 1,000 lookups; before a round it is
told to, and the changes since the last round come with that message.  The clock runs over
all of the rounds; what the lookups came to is checked against the last change.

How to read the table.  Lookups per second, of all workers together.  A column for each
number of changes between two rounds, a row for each way; medians over the processes and the
interquartile range in percent.  The baselines are on stock 3.13.5 with the same flags.  "one
thread" looks up with nobody else there: times the number of workers that is the limit, if
none of them shares a cache line that another one writes.
"""

import os
import time

from benchlib import ensure
from runner import Cell, Panel, run
from ways import Threads, Way

OWN_WAYS = Way('one thread', 'stock'),
ENTRIES, LOOKUPS = 10_000, 1000


def make():
    return {f'key {i}': 1 for i in range(ENTRIES)}


def look_up(table, keys):
    total = 0
    for key in keys:
        total += table[key]
    return total


def some_keys():
    return [f'key {i * 7 % ENTRIES}' for i in range(LOOKUPS)]


def serve(there, back, table):
    shared = table is not None
    table = table if shared else make()
    keys = some_keys()
    back.put(0)
    while (changes := there.get()) is not None:
        if not shared:
            table.update(changes)
        back.put(look_up(table, keys))


def measure(way, changes, rounds, workers):
    if way in OWN_WAYS:
        table, keys = make(), some_keys()
        look_up(table, keys)
        start = time.perf_counter()
        for _ in range(rounds):
            look_up(table, keys)
        return [(time.perf_counter() - start) / (rounds * LOOKUPS)]
    table = make() if isinstance(way, Threads) else None
    channels = [way.channel() for _ in range(workers)]
    back = [way.channel() for _ in range(workers)]
    started = [way.start(serve, *pair, table) for pair in zip(channels, back)]
    for answers in back:
        answers.get()
    total = 0
    start = time.perf_counter()
    for i in range(rounds):
        changed = {f'key {(i * changes + j) % ENTRIES}': 2 for j in range(changes)}
        if table is not None:
            table.update(changed)
        for there in channels:
            there.put(changed)
        total = sum(answers.get() for answers in back)
    seconds = time.perf_counter() - start
    # What has been changed by the end, of what is looked up.
    done = {i % ENTRIES for i in range(rounds * changes)}
    expected = LOOKUPS + sum(i * 7 % ENTRIES in done for i in range(LOOKUPS))
    ensure(total == expected * workers, 'lookups')
    for there in channels:
        there.put(None)
    for worker in started:
        worker.join()
    return [seconds / (rounds * LOOKUPS * workers)]


PANEL = Panel('A table that is mostly read', 'changes for each 1,000 lookups', 'rate',
              'lookups per second, all workers')


def cells(args):
    effort = args.effort
    result = []
    for changes in {'smoke': [1], 'quick': [0, 10, 100], 'full': [0, 1, 10, 100, 1000]}[effort]:
        for way in (*OWN_WAYS, 'interpreters', 'stock interpreters', 'processes, Pipe',
                    'processes, Queue', 'threads', 'threads without GIL'):
            rounds = {'smoke': 3, 'quick': 500, 'full': 2000}[effort]
            if way == 'stock interpreters':
                rounds = min(rounds, 30)
            result.append(Cell(PANEL, changes, way, dict(
                changes=changes, rounds=rounds, workers=os.cpu_count())))
    return result


if __name__ == '__main__':
    run(__doc__, cells)
