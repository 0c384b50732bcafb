#!/usr/bin/env python3
"""Does the time to move a buffer depend on its size?

Moves a bytes, a bytearray and an array.array of 100 bytes to 100 MB through a queue
(put, then get, in this interpreter, so that one clock sees both), and sends the same
over a multiprocessing.Pipe to another process, one way.  In one process, in turns.
What arrives is compared with what was sent.  What is moved is in a list: the content
of a bytes is a part of the object, so that it can move only if nobody else has it.

Usage:

  buffers.py [--rounds N] [--smoke] [--json FILE]

How to read the table.  `move` and `pipe` are medians over the rounds, `+-` the
interquartile range in percent of it.  `/100 B` is move divided by the same for 100
bytes: 1.0 everywhere means that size does not matter, which is the goal.
`pipe/move` is how many times faster moving is; the goal is 1000 at 100 MB.  The
baseline is pipe.
"""

import array
import random
import time

import interpreters
from benchlib import (
    Process, check_sum, ensure, in_turns, median, parse_args, print_table, show,
    spread, write_json)
from interpreters import move

SIZES = {'100 B': 100, '10 kB': 10**4, '1 MB': 10**6, '100 MB': 10**8}
PATTERN = random.Random(1).randbytes(1000)
BATCH = 20      # moves in one measurement


def make_bytes(size):
    return PATTERN * (size // len(PATTERN)) or PATTERN[:size]


def make_bytearray(size):
    return bytearray(make_bytes(size))


def make_array(size):
    return array.array('B', make_bytes(size))


KINDS = {'bytes': make_bytes, 'bytearray': make_bytearray, 'array': make_array}


def time_move(make, size, expected):
    """The mean of a few: one takes too little time for the clock."""
    queue = interpreters.create_queue()
    seconds = 0
    for _ in range(BATCH if size < 10**7 else 2):
        obj = [make(size)]
        start = time.perf_counter()
        queue.put(move(obj))
        got = queue.get()
        seconds += time.perf_counter() - start
        ensure(got == [expected] and isinstance(obj, interpreters.MovedObject),
               'move')
        del got
    return seconds / (BATCH if size < 10**7 else 2)


def measure(process, kind, size, rounds, what):
    make = KINDS[kind]
    expected = make(size)
    total = check_sum(expected)
    return in_turns({
        'move': lambda: time_move(make, size, expected),
        'pipe': lambda: process.time(expected, total)}, rounds, what)


def main():
    args = parse_args(__doc__, 9)
    sizes = dict(list(SIZES.items())[:2]) if args.smoke else SIZES
    data, rows = {}, []
    with Process() as process:
        for kind in KINDS:
            for label, size in sizes.items():
                name = f'{kind}, {label}'
                times = data[kind, size] = measure(process, kind, size, args.rounds,
                                                   name)
                moved, piped = median(times['move']), median(times['pipe'])
                smallest = median(data[kind, 100]['move'])
                rows.append((name, show(moved), f'{spread(times["move"]):.0f}%',
                             f'{moved / smallest:.2f}', show(piped),
                             f'{spread(times["pipe"]):.0f}%',
                             f'{piped / moved:.0f}'))
    print_table(('', 'move', '+-', '/100 B', 'pipe', '+-', 'pipe/move'), rows)
    write_json(args, data, title='Moving a buffer', x_label='size in bytes')


if __name__ == '__main__':
    main()
