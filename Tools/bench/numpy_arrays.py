#!/usr/bin/env python3
"""What does it cost to send a NumPy array to another interpreter?

Sends float64 arrays of 8 kB to 100 MB one way to another interpreter, which has a NumPy
of its own: moved, copied.  For comparison: over a multiprocessing.Pipe to another process
(which pickles it), and how long numpy's own copy() takes, which is one memcpy into new
memory.  The clock stops when the other side has said that it has the array, so these have
the time in it that a thread or process takes to wake up, twice.  `put+get` is a move without
that: one thread does both.  What arrives is compared with what was sent.

Usage (NumPy must be importable):

  numpy_arrays.py [--rounds N] [--smoke] [--json FILE]

How to read the table.  Medians over the rounds, `+-` the interquartile range in percent.
`pipe/...` says how many times faster than the Pipe: at 100 MB the goals are 1000 for moves
and 3 for copies.  `copy/memcpy` is copy divided by numpy's copy(): near 1, the array is
copied once.  A move lends the memory from 64 KiB on, that is 66 kB, and copies less.  The
baseline is pipe.
"""

import time

import numpy

from benchlib import (
    Interpreter, Process, check_sum, ensure, in_turns, median, parse_args, print_table,
    show, spread, write_json)
import interpreters
from interpreters import MovedObject, move

SIZES = {'8 kB': 10**3, '64 kB': 8000, '66 kB': 8250, '1 MB': 125_000, '100 MB': 12_500_000}


def time_move(interp, n, expected):
    array = numpy.arange(n, dtype=numpy.float64)
    seconds = interp.time(array, expected, move)
    ensure(isinstance(array, MovedObject), 'move')
    return seconds


def time_put_get(queue, n, expected):
    array = numpy.arange(n, dtype=numpy.float64)
    start = time.perf_counter()
    queue.put(move(array))
    got = queue.get()
    seconds = time.perf_counter() - start
    ensure(isinstance(array, MovedObject) and check_sum(got) == expected, 'put and get')
    return seconds


def time_memcpy(array):
    start = time.perf_counter()
    array.copy()
    return time.perf_counter() - start


def main():
    args = parse_args(__doc__, 9)
    sizes = dict(list(SIZES.items())[:4]) if args.smoke else SIZES
    data, rows = {}, []
    queue = interpreters.create_queue()
    with Interpreter() as interp, Process() as process:
        for label, n in sizes.items():
            array = numpy.arange(n, dtype=numpy.float64)
            expected = check_sum(array)
            times = data[label] = in_turns({
                'put+get': lambda: time_put_get(queue, n, expected),
                'move': lambda: time_move(interp, n, expected),
                'copy': lambda: interp.time(array, expected),
                'memcpy': lambda: time_memcpy(array),
                'pipe': lambda: process.time(array, expected),
            }, args.rounds, label)
            here, move_, copy, memcpy, pipe = (
                median(times[way]) for way in ('put+get', 'move', 'copy', 'memcpy', 'pipe'))
            rows.append((label, show(here), f'{spread(times["put+get"]):.0f}%',
                         show(move_), f'{spread(times["move"]):.0f}%',
                         show(copy), f'{spread(times["copy"]):.0f}%',
                         show(memcpy), show(pipe), f'{spread(times["pipe"]):.0f}%',
                         f'{pipe / here:.0f}', f'{pipe / move_:.0f}', f'{pipe / copy:.1f}',
                         f'{copy / memcpy:.2f}'))
    print_table(('', 'put+get', '+-', 'move', '+-', 'copy', '+-', 'memcpy', 'pipe', '+-',
                 'pipe/put+get', 'pipe/move',
                 'pipe/copy', 'copy/memcpy'), rows)
    write_json(args, data)


if __name__ == '__main__':
    main()
