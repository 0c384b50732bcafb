#!/usr/bin/env python3
"""What do others' messages cost an interpreter that has nothing to do with them?

A few interpreters, the bystanders, count as fast as they can, a thread each.  Two
others exchange messages as fast as they can, which takes a write section for every
message.  Measured is how far the bystanders get:

  alone       nobody exchanges messages
  elsewhere   two interpreters of another process do: the same load on the machine,
              but no lock in common
  pair        two interpreters of the same process do
  global      the same with -X rwgil=global, where each write section stops all

Each measurement is a fresh process; they take turns.  The two that exchange messages
share the first processor and the bystanders have the others, so that nobody takes
processor time from a bystander: what it loses, it loses to the lock and to caches.

Usage:

  bystander.py [--bystanders N ...] [--seconds S] [--rounds N] [--smoke]
               [--json FILE]

  --bystanders   how many of them, one line each (default: 1 2 4)
  --seconds      length of a measurement (default 2)

How to read the table.  Speeds are million steps per second, of all bystanders
together, medians over the rounds; `+-` is the interquartile range in percent, the
largest of the line.  `pair` and `global` in the last columns are ratios to
`elsewhere`, the baseline: 1.00 means that the messages cost nothing.  The goal for
pair is at least 0.98.  `messages/s` is what the two
exchanged meanwhile; where that is far apart, so is the load.

`lost` is what the lock itself says: the share of the time for which write sections kept
the bystanders waiting, from lock_stats().  It does not scatter as speeds do, and has
the same goal: at most 2 %.
"""

import json
import os
import subprocess
import sys
import time

from benchlib import ensure, median, parse_args, print_table, progress, spread
from runner import Panel, write_own

WAYS = 'alone', 'elsewhere', 'pair', 'global'


# --- What a measuring process does -------------------------------------------
# The functions run in other interpreters, which import this script.

def pin(first):
    """This thread runs on the first processor, or on all others."""
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[:1] if first else usable[1:] or usable)


def count(ready, go, back, seconds):
    """How far does a loop come?"""
    pin(first=False)
    ready.put(True)
    go.get()
    steps = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(10_000):
            steps += 1
    back.put(steps)


def send_back(there, back):
    pin(first=True)
    while (item := there.get()) is not None:
        back.put(item)


def exchange(ready, go, done, there, back, seconds):
    """Round trips of messages; two each."""
    pin(first=True)
    ready.put(True)
    go.get()
    n = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(100):
            there.put([n, 'message'])
            n += back.get()[0] == n
    there.put(None)
    done.put(2 * n)


def run(bystanders, exchanging, seconds):
    import bystander
    import interpreters
    queues = ready, go, steps, messages, there, back = [
        interpreters.create_queue() for _ in range(6)]
    calls = [(bystander.count, ready, go, steps, seconds)] * bystanders
    if exchanging:
        calls.append((bystander.exchange, ready, go, messages, there, back,
                      seconds))
        calls.append((bystander.send_back, there, back))
    interps = [interpreters.create() for _ in calls]
    threads = [interp.call_in_thread(*call)
               for interp, call in zip(interps, calls)]
    begin = bystanders + bool(exchanging)
    for _ in range(begin):
        ready.get()
    for _ in range(begin):
        go.put(True)
    for thread in threads:
        thread.join()
    total = sum(steps.get_nowait() for _ in range(bystanders))
    stats = interpreters.lock_stats()['interpreters']
    lost = sum(stats[interp.id]['read_wait']['total_ns']
               for interp in interps[:bystanders])
    exchanged = messages.get_nowait() if exchanging else 0
    for interp in interps:
        interp.close()
    print(json.dumps([total / seconds, exchanged / seconds,
                      lost / 1e9 / seconds / max(bystanders, 1)]))


# --- What the program does ---------------------------------------------------

def start(way, bystanders, exchanging, args):
    options = ['-X', 'rwgil=global'] if way == 'global' else []
    return subprocess.Popen(
        [sys.executable, *options, os.path.abspath(__file__), '--run',
         str(bystanders), str(int(exchanging)), str(args.seconds)],
        stdout=subprocess.PIPE, text=True)


def measure(way, bystanders, args):
    """Return steps per second, messages per second, and the share of time lost."""
    procs = [start(way, bystanders, way in ('pair', 'global'), args)]
    if way == 'elsewhere':
        procs.append(start(way, 0, True, args))
    results = []
    for proc in procs:
        out, _ = proc.communicate()
        ensure(proc.returncode == 0, way)
        results.append(json.loads(out))
    steps, messages, lost = map(sum, zip(*results))
    ensure(steps > 0 and (messages > 0) == (way != 'alone'), way)
    return steps, messages, lost


def main():
    if sys.argv[1:2] == ['--run']:
        bystanders, exchanging, seconds = sys.argv[2:]
        return run(int(bystanders), int(exchanging), float(seconds))

    def add(parser):
        parser.add_argument('--bystanders', type=int, nargs='+',
                            default=[1, 2, 4])
        parser.add_argument('--seconds', type=float, default=2)
    args = parse_args(__doc__, 7, add)
    if args.smoke:
        args.seconds, args.bystanders = 0.1, args.bystanders[:1]

    data, rows = {}, []
    for n in args.bystanders:
        found = data[str(n)] = {way: [] for way in WAYS}
        for i in range(args.rounds):
            for way in WAYS:
                progress(f'{n} bystanders, {way} {i + 1}/{args.rounds}')
                found[way].append(measure(way, n, args))
        progress('')
        speeds = {way: [s for s, _, _ in found[way]] for way in WAYS}
        base = median(speeds['elsewhere'])
        rows.append((
            n, *(f'{median(speeds[way]) / 1e6:.2f}' for way in WAYS),
            f'{max(map(spread, speeds.values())):.1f}%',
            *(f'{median([m for _, m, _ in found[way]]):,.0f}' for way in WAYS[1:]),
            *(f'{median(speeds[way]) / base:.3f}' for way in WAYS[2:]),
            *(f'{median([lost for _, _, lost in found[way]]):.3%}'
              for way in WAYS[2:])))
    print_table(('bystanders', *WAYS, '+-', 'messages/s: elsewhere', 'pair',
                 'global', 'ratio: pair', 'global', 'lost: pair', 'global'), rows)
    speed = Panel('Bystanders of others\' messages', 'bystanders', 'speed',
                  'speed of the bystanders, elsewhere = 1', base='elsewhere')
    messages = Panel('Messages that the bystanders leave', 'bystanders', 'rate',
                     'messages per second')
    write_own(args.json, __file__,
              [(speed, int(n), way, [[1 / s] for s, _, _ in found])
               for n, ways in data.items() for way, found in ways.items()]
              + [(messages, int(n), way, [[1 / m] for _, m, _ in found])
                 for n, ways in data.items() for way, found in ways.items()
                 if way != 'alone'])


if __name__ == '__main__':
    main()
