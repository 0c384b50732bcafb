#!/usr/bin/env python3
"""Do two workers do twice the work of one in the same time?

Question.  Interpreters of one process share its memory allocator, its address
space and, here, the RW-GIL.  How much of each core is left for Python?  Five
kinds of work, all CPU-bound, with nothing shared between the workers: fib
(calls), containers (dict and list), strings, regex, json.

Usage
    ./python Tools/bench/scaling.py [--smoke | --full] [--workers N ...] [--check]
                                    [--rounds N] [--only WORD ...] [--json FILE]

The machine must be otherwise idle, and --workers at most the number of cores.

How.  Every worker, whatever its kind, runs the same function for the same number of
units and times itself from a common start.  The time of several workers is from the
first one's start to the last one's end.  All figures are taken in turns, each in a fresh
process: where its memory comes to lie makes it up to 4 % faster or slower for all
of its life, stock's too.

How to read the tables.  Speed: units per second of all workers together, against one
thread of stock, which is 1; twice as many workers should be twice as fast.  A table for
each kind of work, a column for each number of workers, a row for each way; medians over the
processes and the interquartile range in percent.  The baselines are on stock 3.13.5 with
the same flags: its interpreters, forked processes, threads; and threads without a GIL.
The limit is the number of cores, less what they share: memory, cache and, in a virtual
machine, often the core itself.

Goal (--check): interpreters reach at least 0.975 W times one of them (1.95 on two
cores) and 0.97 of the processes, in every kind of work.
"""

import json
import os
import re
import time

from benchlib import ensure, median
from runner import Cell, Panel, run

GOAL_SCALE = 0.975
GOAL_PROCESSES = 0.97


# --- The work ----------------------------------------------------------------

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def do_fib():
    return fib(15)


def do_containers():
    groups = {}
    for i in range(700):
        groups.setdefault(i * 7919 % 101, []).append({"id": i, "next": [i + 1]})
    order = sorted(groups, key=lambda key: -len(groups[key]))
    return sum(row["next"][0] for key in order for row in groups[key][::2])


def do_strings():
    words = ["%d-%s" % (i, "xyz"[i % 3] * (i % 17)) for i in range(400)]
    text = ", ".join(words).upper().replace("Y", "why")
    parts = [part.strip().partition("-")[2] for part in text.split(",")]
    return len("".join(parts)) + text.count("X") + text.find("399")


TEXT = " ".join(f"user{i}@host{i % 7}.example +{i * 7919:09d};" for i in range(60))
MAIL = re.compile(r"(\w+)@(\w+(?:\.\w+)*)")
NUMBER = re.compile(r"\+0*(\d{2})(\d+)")


def do_regex():
    return len(MAIL.findall(TEXT)) + len(NUMBER.sub(r"<\2-\1>", TEXT))


ROWS = [{"id": i, "weight": i / 7, "text": f"row {i}\n", "tags": ["a", None, i]}
        for i in range(60)]


def do_json():
    return len(json.loads(json.dumps(ROWS))) + len(json.dumps(ROWS, indent=1))


# The units that take some 0.1 s.
KINDS = {'fib': (do_fib, 1000), 'containers': (do_containers, 400),
         'strings': (do_strings, 800), 'regex': (do_regex, 700),
         'json': (do_json, 450)}


# --- Measuring ---------------------------------------------------------------

def work(there, back, kind, units):
    func = KINDS[kind][0]
    func()
    back.put('ready')
    there.get()
    total = 0
    start = time.monotonic()        # the same clock in all processes
    for _ in range(units):
        total += func()
    back.put((start, time.monotonic(), total))


def measure(way, kind, workers, units):
    there = [way.channel() for _ in range(workers)]
    back = [way.channel() for _ in range(workers)]
    started = [way.start(work, *channels, kind, units)
               for channels in zip(there, back)]
    for channel in back:
        ensure(channel.get() == 'ready', 'start')
    for channel in there:
        channel.put('go')
    starts, ends, totals = zip(*[channel.get() for channel in back])
    for worker in started:
        worker.join()
    ensure(set(totals) == {KINDS[kind][0]() * units}, 'the work')
    return [(max(ends) - min(starts)) / (units * workers)]


PANELS = {kind: Panel(f'CPU-bound work: {kind}', 'workers', 'speed',
                      'speed, one thread of stock = 1', base='threads|1')
          for kind in KINDS}


def cells(args):
    effort = args.effort
    numbers = args.workers or ([1, 2, 4] if effort == 'full' else [1, 2])
    share = {'smoke': 0.02, 'quick': 1, 'full': 5}[effort]
    return [Cell(PANELS[kind], workers, way,
                 dict(kind=kind, workers=workers,
                      units=max(1, int(KINDS[kind][1] * share))), label)
            for kind in (list(KINDS)[:2] if effort == 'smoke' else KINDS)
            for workers in numbers
            for way, label in WAYS.items()]


# Pipes, since a Queue's thread would run beside the work.
WAYS = {'interpreters': '', 'stock interpreters': '',
        'processes, Pipe': 'processes, fork', 'threads': '', 'threads without GIL': ''}


def check(args, results):
    if not args.check:
        return []
    times = {(cell.panel.title, cell.x, cell.name()): median(sum(runs, []))
             for cell, runs in results}
    missed = []
    for (title, workers, way), seconds in times.items():
        if way != 'interpreters' or workers == 1:
            continue
        scale = times[title, 1, way] / seconds
        if scale < GOAL_SCALE * workers:
            missed.append(f'{title}: {workers} interpreters do {scale:.3f} times'
                          f' the work of one, the goal is {GOAL_SCALE * workers:.3f}')
        processes = times.get((title, workers, 'processes, fork'))
        if processes and processes / seconds < GOAL_PROCESSES:
            missed.append(f'{title}: {processes / seconds:.3f} of as many processes,'
                          f' the goal is {GOAL_PROCESSES}')
    return missed


def main():
    def add(parser):
        parser.add_argument('--workers', type=int, nargs='+', default=[],
                            help=f'default: 1 2, with --full 1 2 4; here are {os.cpu_count()} cores')
        parser.add_argument('--check', action='store_true',
                            help='fail when the goal is missed')
    run(__doc__, cells, add, check)


if __name__ == '__main__':
    main()
