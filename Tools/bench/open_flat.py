#!/usr/bin/env python3
"""Does the time to open a parcel depend on how many objects are in it?

Packs plain data (moved) of 10 to 10,000,000 objects and measures Parcel.open(), and
for comparison pack() and pickle.loads() of the same.  What comes out is checked.

Shapes: `floats` is one list of n floats; `lists` is a list of n lists of one small
int each, n objects for the collector to know; `dicts` is a list of n / 3 dicts with
a str and a float.

Usage:

  open_flat.py [--most N] [--rounds N] [--smoke] [--json FILE]

  --most     the largest number of objects (default 10,000,000, which takes some
             2 GB of memory)

How to read the table.  `open` is the median over the rounds, `+-` the interquartile
range in percent of it; `/10` is open divided by the same for 10 objects: 1.0
everywhere is flat, which is the goal.  `pack` is the time to take the objects out
of the sender, which has to look at each.  `loads/open` is how many times longer
pickle takes to make them; it is the baseline, measured up to 1,000,000 objects.
"""

import pickle
import sys
import time

from benchlib import (
    ensure, in_turns, median, parse_args, print_table, show, spread, write_json)
from interpreters import move, pack


def make_floats(n):
    return [i / 2 for i in range(n)]


def make_lists(n):
    return [[i & 0x7f] for i in range(n)]


def make_dicts(n):
    return [{'name': str(i), 'weight': i / 2} for i in range((n + 2) // 3)]


SHAPES = {'floats': make_floats, 'lists': make_lists, 'dicts': make_dicts}
PICKLED = 10**6


def is_right(obj, make, n):
    """Look at some of it: nothing of what is looked at is a coincidence."""
    expected = make(min(n, 1000))
    return (len(obj) == (len(expected) if n <= 1000 else len(range(n))
                         if make is not make_dicts else (n + 2) // 3)
            and obj[:len(expected)] == expected)


class Case:

    def __init__(self, make, n):
        self.make = make
        self.n = n
        self.packing = []
        if n <= PICKLED:
            self.data = pickle.dumps(make(n), 5)

    def open(self):
        obj = self.make(self.n)
        start = time.perf_counter()
        parcel = pack(move(obj))
        self.packing.append(time.perf_counter() - start)
        start = time.perf_counter()
        got = parcel.open()
        seconds = time.perf_counter() - start
        ensure(is_right(got, self.make, self.n), 'open')
        return seconds

    def loads(self):
        start = time.perf_counter()
        got = pickle.loads(self.data)
        seconds = time.perf_counter() - start
        ensure(is_right(got, self.make, self.n), 'loads')
        return seconds

    def ways(self):
        if self.n <= PICKLED:
            return {'open': self.open, 'loads': self.loads}
        return {'open': self.open}


def main():
    def add(parser):
        parser.add_argument('--most', type=int, default=10**7)
    args = parse_args(__doc__, 7, add)
    most = 1000 if args.smoke else args.most
    data, rows = {}, []
    for shape, make in SHAPES.items():
        n = 10
        while n <= most:
            case = Case(make, n)
            times = in_turns(case.ways(), args.rounds, f'{shape} {n}')
            times['pack'] = case.packing[1:]
            data[shape, n] = times
            opened = median(times['open'])
            flat = opened / median(data[shape, 10]['open'])
            loads = (f'{median(times["loads"]) / opened:.0f}'
                     if 'loads' in times else '')
            rows.append((f'{shape}, {n:,}', show(opened),
                         f'{spread(times["open"]):.0f}%', f'{flat:.2f}',
                         show(median(times['pack'])), loads))
            n *= 10
    print_table(('', 'open', '+-', '/10', 'pack', 'loads/open'), rows)
    write_json(args, data, title='Opening a parcel', x_label='objects')


if __name__ == '__main__':
    sys.exit(main())
