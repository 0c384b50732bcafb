#!/usr/bin/env python3
"""How much faster than pickle is it to send objects from interpreter to interpreter?

For each kind of data this measures

  copy        queue.put(obj), then got = queue.get()
  move        queue.put(move(obj)), then got = queue.get()
  pickle      got = pickle.loads(pickle.dumps(obj, 5))

in this interpreter, so that one clock sees all of the work of both sides, and one
way to somewhere else, until the receiver says that the object is there:

  copy there  to another interpreter
  move there  to another interpreter, moved
  pipe        to another process, over a multiprocessing.Pipe

All in one process, in turns.  Making the objects and freeing them is not measured: before
each way, small objects are made and dropped, so that the heap has taken back what the
other interpreter has freed.  What arrives is compared with what was sent.

Usage:

  transfer.py [--only NAME ...] [--rounds N] [--smoke] [--json FILE]

How to read the table.  The columns of times are medians over the rounds; `+-` is
the interquartile range in percent of it, the largest of the row.  The columns with
a `/` are ratios of medians: pickle/copy = 4.0 means that to copy takes a quarter of
the time of pickle.  The baselines are pickle and pipe.  For "10,000 dicts"
the goals are: pickle/copy 4, pickle/move 12, pipe/copy 8, pipe/move 25.
"""

import array
import collections
import itertools
import json
import pickle
import random
import time

from benchlib import (
    Interpreter, Process, Tree, check_sum, ensure, in_turns, median, parse_args,
    print_table, show, spread, write_json)
import interpreters
from interpreters import move


def make_dicts(n):
    return [{'id': 1000 + i, 'name': f'name {i}', 'tags': [f'a{i}', f'b{i}', 'c'],
             'weight': i / 7} for i in range(n)]


def make_ints(n):
    return list(range(10**6, 10**6 + n))


def make_tree(n):
    return Tree(max(n.bit_length() - 1, 1), itertools.count())


def make_table(n):
    return {f'key {i}': i / 7 for i in range(n)}


def make_document(size):
    """A parsed JSON document of about `size` bytes."""
    rnd = random.Random(1)
    words = [f'word{i}' for i in range(2000)]
    def entry(i):
        return {'id': i, 'title': ' '.join(rnd.choices(words, k=8)),
                'score': rnd.random(), 'ok': i % 3 == 0, 'parent': None,
                'tags': rnd.choices(words, k=5),
                'author': {'name': words[i % 2000], 'age': i % 90,
                           'address': {'street': rnd.choice(words), 'no': i % 300}},
                'scores': [rnd.randint(0, 10**6) for _ in range(10)]}
    text = json.dumps(entry(0))
    return json.loads(json.dumps([entry(i) for i in range(size // len(text))]))


def make_columns(n):
    return {f'column {i}': array.array('d', range(n)) for i in range(20)}


CASES = {   # name: how to make it, size, size for --smoke
    '10,000 dicts': (make_dicts, 10_000, 100),
    '1,000,000 ints': (make_ints, 1_000_000, 1000),
    'tree of 100,000': (make_tree, 100_000, 100),
    'dict of 1,000,000': (make_table, 1_000_000, 1000),
    '20 MB of JSON': (make_document, 20_000_000, 20_000),
    '20 columns': (make_columns, 100_000, 1000),
}


def settled(way):
    def settle():
        # No large block: the C library would give back more than that.
        collections.deque(map(float, range(100_000)))
        return way()
    return settle


class Case:

    def __init__(self, make, size, interpreter, process):
        self.make = lambda: make(size)
        self.obj = self.make()
        self.sum = check_sum(self.obj)
        self.queue = interpreters.create_queue()
        self.interpreter = interpreter
        self.process = process

    def copy(self):
        obj, queue = self.obj, self.queue
        start = time.perf_counter()
        queue.put(obj)
        got = queue.get()
        seconds = time.perf_counter() - start
        ensure(got is not obj and check_sum(got) == self.sum, 'copy')
        return seconds

    def move(self):
        obj, queue = self.make(), self.queue
        start = time.perf_counter()
        queue.put(move(obj))
        got = queue.get()
        seconds = time.perf_counter() - start
        ensure(isinstance(obj, interpreters.MovedObject)
               and check_sum(got) == self.sum, 'move')
        return seconds

    def pickle(self):
        obj = self.obj
        start = time.perf_counter()
        got = pickle.loads(pickle.dumps(obj, 5))
        seconds = time.perf_counter() - start
        ensure(check_sum(got) == self.sum, 'pickle')
        return seconds

    def copy_there(self):
        return self.interpreter.time(self.obj, self.sum)

    def move_there(self):
        return self.interpreter.time(self.make(), self.sum, move)

    def pipe(self):
        return self.process.time(self.obj, self.sum)

    def ways(self):
        ways = {'copy': self.copy, 'move': self.move, 'pickle': self.pickle,
                'copy there': self.copy_there, 'move there': self.move_there,
                'pipe': self.pipe}
        return {name: settled(way) for name, way in ways.items()}


def row(name, times):
    m = {way: median(values) for way, values in times.items()}
    return (name, *(show(m[way]) for way in m),
            f'{max(map(spread, times.values())):.0f}%',
            *(f'{m[base] / m[way]:.1f}' for base, way in RATIOS))


RATIOS = (('pickle', 'copy'), ('pickle', 'move'), ('pipe', 'copy there'),
          ('pipe', 'move there'))


def main():
    def add(parser):
        parser.add_argument('--only', nargs='+', choices=CASES, metavar='NAME',
                            help=f'some of: {", ".join(CASES)}')
    args = parse_args(__doc__, 7, add)
    data, rows = {}, []
    with Interpreter() as interpreter, Process() as process:
        for name in args.only or CASES:
            make, size, small = CASES[name]
            case = Case(make, small if args.smoke else size, interpreter, process)
            data[name] = in_turns(case.ways(), args.rounds, name)
            rows.append(row(name, data[name]))
    head = ('', *data[name], '+-', *(f'{a}/{b}' for a, b in RATIOS))
    print_table(head, rows)
    write_json(args, data)


if __name__ == '__main__':
    main()
