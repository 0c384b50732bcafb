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

and, if there is a stock Python with the same flags (make stock), what its users have:

  stock pickle, stock pipe    the same as pickle and pipe, by that Python

All but these in one process, all in turns.  Making the objects and freeing them is not measured: before
each way, small objects are made and dropped, so that the heap has taken back what the
other interpreter has freed.  What arrives is compared with what was sent.

Usage:

  transfer.py [--only NAME ...] [--rounds N] [--smoke] [--json FILE] [--stock PYTHON]

How to read the table.  The columns of times are medians over the rounds; `+-` is
the interquartile range in percent of it, the largest of the row.  The columns with
a `/` are ratios of medians: pickle/copy = 4.0 means that to copy takes a quarter of
the time of pickle.  The baselines are pickle and pipe, in the second table those of
stock.  For "10,000 dicts" the goals are: pickle/copy 4, pickle/move 12, pipe/copy 8,
pipe/move 25.
"""

import array
import collections
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time

from benchlib import (
    Interpreter, Process, Tree, check_sum, ensure, in_turns, median, parse_args,
    print_table, show, spread, write_json)
from runner import BASELINES, TOP, clean_environment

try:
    import interpreters
    from interpreters import move
except ImportError:
    pass            # stock: serve_stock()


def make_dicts(n):
    return [{'id': 1000 + i, 'name': f'name {i}', 'tags': [f'a{i}', f'b{i}', 'c'],
             'weight': i / 7} for i in range(n)]


def make_ints(n):
    return list(range(10**6, 10**6 + n))


def make_tree(n):
    return Tree(max(n.bit_length() - 1, 1), itertools.count())


def make_table(n):
    return {f'key {i}': i / 7 for i in range(n)}


def make_members(n):
    return {f'member {i}' for i in range(n)}


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
    'set of 1,000,000': (make_members, 1_000_000, 1000),
    '20 MB of JSON': (make_document, 20_000_000, 20_000),
    '20 columns': (make_columns, 100_000, 1000),
}


def settled(way):
    def settle():
        # No large block: the C library would give back more than that.
        collections.deque(map(float, range(100_000)))
        return way()
    return settle


class Baselines:

    def __init__(self, make, size, process):
        self.make = lambda: make(size)
        self.obj = self.make()
        self.sum = check_sum(self.obj)
        self.process = process

    def pickle(self):
        obj = self.obj
        start = time.perf_counter()
        got = pickle.loads(pickle.dumps(obj, 5))
        seconds = time.perf_counter() - start
        ensure(check_sum(got) == self.sum, 'pickle')
        return seconds

    def pipe(self):
        return self.process.time(self.obj, self.sum)


class Case(Baselines):

    def __init__(self, make, size, interpreter, process, stock):
        super().__init__(make, size, process)
        self.queue = interpreters.create_queue()
        self.interpreter = interpreter
        self.stock = stock

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

    def copy_there(self):
        return self.interpreter.time(self.obj, self.sum)

    def move_there(self):
        return self.interpreter.time(self.make(), self.sum, move)

    def ways(self):
        ways = {'copy': self.copy, 'move': self.move, 'pickle': self.pickle,
                'copy there': self.copy_there, 'move there': self.move_there,
                'pipe': self.pipe}
        ways = {name: settled(way) for name, way in ways.items()}
        return ways if self.stock is None else {**ways, **self.stock.ways()}


# --- Stock -------------------------------------------------------------------

class Stock:
    """Another Python, and what it measures: its own ways."""

    TIMEOUT = 300       # seconds for an answer

    def __init__(self, python):
        self.child = subprocess.Popen(
            [python, os.path.abspath(__file__), '--serve'], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=clean_environment(),
            start_new_session=True)

    def ask(self, *words):
        # With the process at the other end of its pipe.
        timer = threading.Timer(self.TIMEOUT, os.killpg, [self.child.pid, signal.SIGKILL])
        timer.daemon = True
        timer.start()
        self.child.stdin.write(json.dumps(words) + '\n')
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        timer.cancel()
        ensure(answer, f'stock, {" ".join(map(str, words))}, within {self.TIMEOUT} s')
        return json.loads(answer)

    def take(self, name, size):
        self.ask('take', name, size)

    def ways(self):
        return {f'stock {way}': lambda way=way: self.ask(way) for way in ('pickle', 'pipe')}

    def close(self):
        self.child.stdin.close()
        self.child.wait()


def serve_stock():
    """Answer Stock.ask() with a time, or with null."""
    ways = {}
    with Process() as process:
        for line in sys.stdin:
            word, *rest = json.loads(line)
            if word == 'take':
                name, size = rest
                case = Baselines(CASES[name][0], size, process)
                ways = {'pickle': settled(case.pickle), 'pipe': settled(case.pipe)}
                answer = None
            else:
                answer = ways[word]()
            print(json.dumps(answer), flush=True)


# --- Tables ------------------------------------------------------------------

RATIOS = (('pickle', 'copy'), ('pickle', 'move'), ('pipe', 'copy there'),
          ('pipe', 'move there'))


def head(ways, prefix=''):
    return ('', *ways, '+-', *(f'{prefix}{a}/{b}' for a, b in RATIOS))


def row(name, times, ways, prefix=''):
    m = {way: median(values) for way, values in times.items()}
    return (name, *(show(m[way]) for way in ways),
            f'{max(spread(times[way]) for way in ways):.0f}%',
            *(f'{m[prefix + base] / m[way]:.1f}' for base, way in RATIOS))


def main():
    if sys.argv[1:] == ['--serve']:     # see Stock
        return serve_stock()
    def add(parser):
        parser.add_argument('--only', nargs='+', choices=CASES, metavar='NAME',
                            help=f'some of: {", ".join(CASES)}')
        parser.add_argument('--stock', metavar='PYTHON', default=TOP / BASELINES['stock'],
                            help=f'default: {BASELINES["stock"]}')
    args = parse_args(__doc__, 7, add)
    stock = Stock(args.stock) if os.path.exists(args.stock) else None
    if stock is None:
        print('without a baseline: stock; next: make stock')
    data = {}
    with Interpreter() as interpreter, Process() as process:
        for name in args.only or CASES:
            make, size, small = CASES[name]
            size = small if args.smoke else size
            if stock is not None:
                stock.take(name, size)
            case = Case(make, size, interpreter, process, stock)
            data[name] = in_turns(case.ways(), args.rounds, name)
    ways = [way for way in data[name] if not way.startswith('stock ')]
    print_table(head(ways), [row(name, times, ways) for name, times in data.items()])
    if stock is not None:
        stock.close()
        ways = [way for way in data[name] if way.startswith('stock ')]
        print()
        print_table(head(ways, 'stock '), [row(name, times, ways, 'stock ')
                                           for name, times in data.items()])
    write_json(args, data, stock and args.stock)


if __name__ == '__main__':
    main()
