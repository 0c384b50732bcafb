#!/usr/bin/env python3
"""What does a Python's object allocator cost when there is one interpreter?

Compares two Pythons, or one Python under two allocators, over workloads that
allocate a lot.  Two uses:

  does our pymalloc keep up with stock's (same compiler, same flags)?
      allocators.py --python build/obj/python --against build/stock/obj/python

  would mimalloc be faster than pymalloc?
      allocators.py --python python --malloc mimalloc \\
                    --against python --against-malloc pymalloc

Two ways to measure:

  --by instructions   (default) valgrind's callgrind counts instructions.  The
                      count doesn't depend on what else the machine does, and two
                      runs differ by less than 0.01 %.  It knows nothing of caches.
  --by time           CPU time of fresh processes, the two sides taking turns.
                      Needs a quiet machine.

How to read the table.  `ratio` is A divided by B, where A is --python and B is
--against: above 1.00 A is slower.  What an empty script costs has been taken off
both.  With --by time each side is the median of its runs, and `spread` is the
larger of the two sides' interquartile ranges in percent of the median: a
difference below it says nothing.  The last line is the geometric mean.
"""

import argparse
import functools
import math
import os
import re
import shutil
import statistics
import subprocess
import sys


# --- the workloads: each is a function of a number of rounds -----------------

def nothing(n):
    pass


def scheduler(n):
    """Tasks that pass packets on, as in an operating system's kernel."""
    class Packet:
        def __init__(self, kind, source):
            self.kind, self.source, self.data = kind, source, [0] * 4

    class Task:
        def __init__(self, name):
            self.name, self.queue, self.seen = name, [], 0

        def put(self, packet):
            self.queue.append(packet)

        def step(self, others):
            if not self.queue:
                return False
            packet = self.queue.pop(0)
            self.seen += packet.kind
            if packet.data[0] < 3:
                answer = Packet(packet.kind ^ 1, self)
                answer.data[0] = packet.data[0] + 1
                others[(self.name + packet.kind) % len(others)].put(answer)
            return True

    tasks = [Task(i) for i in range(6)]
    for i in range(n):
        for task in tasks:
            task.put(Packet(i & 1, None))
        while any([task.step(tasks) for task in tasks]):
            pass


def constraints(n):
    """A graph of variables and of objects that keep them equal."""
    class Variable:
        def __init__(self, value):
            self.value, self.users, self.mark = value, [], 0

    class Constraint:
        def __init__(self, *variables):
            self.variables = variables
            for variable in variables:
                variable.users.append(self)

        def execute(self):
            raise NotImplementedError

    class Equal(Constraint):
        def execute(self):
            a, b = self.variables
            b.value = a.value
            return b

    class Scale(Constraint):
        def execute(self):
            a, factor, b = self.variables
            b.value = a.value * factor.value + 1.5
            return b

    def propagate(start, mark):
        todo = [start]
        while todo:
            for constraint in todo.pop().users:
                changed = constraint.execute()
                if changed.mark != mark:
                    changed.mark = mark
                    todo.append(changed)

    for i in range(n):
        chain = [Variable(float(j)) for j in range(40)]
        factor = Variable(1.25)
        for a, b in zip(chain, chain[1:]):
            if int(a.value) % 3:
                Equal(a, b)
            else:
                Scale(a, factor, b)
        for mark in range(1, 6):
            propagate(chain[0], mark)


def json_round_trip(n):
    import json
    record = {'id': 17, 'name': 'a name', 'tags': ['x', 'yy', 'zzz'], 'at': 1.5,
              'inner': {'ok': True, 'none': None, 'values': list(range(60))}}
    document = {f'key{i}': dict(record, id=i) for i in range(50)}
    for i in range(n):
        json.loads(json.dumps(document))


def pickle_round_trip(n):
    import pickle
    rows = [{'number': i, 'text': f'row {i}', 'pair': (i, -i), 'list': [i, [i]]}
            for i in range(200)]
    for i in range(n):
        pickle.loads(pickle.dumps(rows, 5))


def pickle_in_python(n):
    import io
    import pickle
    rows = [{'number': i, 'text': f'row {i}', 'pair': (i, -i)} for i in range(50)]
    for i in range(n):
        file = io.BytesIO()
        pickle._Pickler(file).dump(rows)
        pickle._Unpickler(io.BytesIO(file.getvalue())).load()


def tuples_and_lists(n):
    for i in range(n):
        pairs = [(j, j + i) for j in range(1000)]
        rows = [[a, b, a + b] for a, b in pairs]
        rows.sort(key=lambda row: -row[2])
        del pairs[::2], rows[::3]


def dicts(n):
    for i in range(n):
        table = {}
        for j in range(500):
            table.setdefault(j % 61, {})[j] = {'value': j}
        del table


def trees(n):
    def grow(depth):
        return (grow(depth - 1), grow(depth - 1)) if depth else (None, None)

    def count(tree):
        left, right = tree
        return 1 + (count(left) + count(right) if left else 0)

    for i in range(n):
        count(grow(12))


def floats(n):
    bodies = [[float(j), j * 0.5, 1.0 / (j + 1)] for j in range(12)]
    for i in range(n):
        for a in bodies:
            for b in bodies:
                dx, dy = a[0] - b[0], a[1] - b[1]
                force = a[2] * b[2] / (dx * dx + dy * dy + 0.01)
                a[0] -= dx * force * 0.001
                a[1] -= dy * force * 0.001


def strings(n):
    for i in range(n):
        words = [f'word-{j}-{i}' for j in range(300)]
        text = ' '.join(words)
        [word.upper().partition('-') for word in text.split()]


def records(n):
    """As logging does it: a record, its formatting, a string, all thrown away."""
    import logging
    logger = logging.Logger('bench')
    handler = logging.NullHandler()
    formatter = logging.Formatter('%(levelname)s %(name)s %(message)s')
    handler.handle = formatter.format
    logger.addHandler(handler)
    for i in range(n):
        logger.info('request %d took %s', i, 'long')


def big_blocks(n):
    """Blocks above 512 bytes, which go to malloc, among small ones."""
    for i in range(n):
        blocks = [bytes(600 + j) for j in range(200)]
        lists = [[j] * 100 for j in range(200)]
        del blocks[::2], lists[::2]


def generators(n):
    def walk(depth):
        if depth:
            yield from walk(depth - 1)
            yield depth, str(depth)
            yield from walk(depth - 1)

    for i in range(n):
        for _ in walk(9):
            pass


# rounds for roughly 0.15 s of CPU each on a machine of 2024
WORKLOADS = [
    (scheduler, 15000), (constraints, 1800), (json_round_trip, 750),
    (pickle_round_trip, 900), (pickle_in_python, 240), (tuples_and_lists, 750),
    (dicts, 3000), (trees, 200), (floats, 5000), (strings, 2400),
    (records, 30000), (big_blocks, 2500), (generators, 1500),
]


# --- running them ------------------------------------------------------------

class Side:
    def __init__(self, python, malloc):
        self.python = python
        self.env = {'PATH': os.environ.get('PATH', ''), 'PYTHONHASHSEED': '0'}
        if malloc:
            self.env['PYTHONMALLOC'] = malloc

    def command(self, name, rounds):
        # Without site, so that both sides import the same.
        return [self.python, '-S', '-s', '-B', os.path.abspath(__file__),
                '--workload', name, '--rounds', str(rounds)]

    def run(self, command):
        done = subprocess.run(command, env=self.env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            sys.exit(f'{" ".join(command)} failed:\n{done.stderr[-2000:]}')
        return done

    @functools.cache
    def instructions(self, name, rounds):
        done = self.run(['valgrind', '--tool=callgrind',
                         '--callgrind-out-file=/dev/null',
                         *self.command(name, rounds)])
        return int(re.search(r'Collected : (\d+)', done.stderr)[1])

    def seconds(self, name, rounds):
        return float(self.run(self.command(name, rounds)).stdout)


def by_instructions(a, b, name, rounds, args):
    rounds = max(1, rounds // args.shorten)
    counts = [side.instructions(name, rounds) - side.instructions('nothing', 0)
              for side in (a, b)]
    return *counts, 0.0


def by_time(a, b, name, rounds, args):
    taken = [], []
    for _ in range(args.runs):
        for side, values in zip((a, b), taken):
            values.append(side.seconds(name, rounds))
    spread = 0.0
    for values in taken:
        low, median, high = statistics.quantiles(values, n=4)
        spread = max(spread, (high - low) / median)
    return *map(statistics.median, taken), 100 * spread


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--python', metavar='A', default=sys.executable)
    parser.add_argument('--malloc', metavar='NAME', help="A's PYTHONMALLOC")
    parser.add_argument('--against', metavar='B', default=sys.executable)
    parser.add_argument('--against-malloc', metavar='NAME', help="B's PYTHONMALLOC")
    parser.add_argument('--by', choices=('instructions', 'time'),
                        default='instructions')
    parser.add_argument('--runs', type=int, default=15,
                        help='processes per side and workload, for --by time (15)')
    parser.add_argument('--shorten', type=int, default=60, metavar='N',
                        help='an Nth of the rounds, for --by instructions (60)')
    parser.add_argument('--only', metavar='REGEX', default='')
    parser.add_argument('--workload', help=argparse.SUPPRESS)
    parser.add_argument('--rounds', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.workload:
        import time
        function = globals()[args.workload]
        start = time.process_time()
        function(args.rounds)
        print(time.process_time() - start)
        return
    if args.by == 'instructions' and not shutil.which('valgrind'):
        parser.error('--by instructions needs valgrind (Debian package: valgrind)')

    a = Side(args.python, args.malloc)
    b = Side(args.against, args.against_malloc)
    measure = by_instructions if args.by == 'instructions' else by_time
    unit, scale = ('M instr', 1e6) if args.by == 'instructions' else ('ms', 1e-3)
    print(f'{"workload":20} {"A " + unit:>12} {"B " + unit:>12} {"ratio":>8}'
          f' {"spread":>8}')
    ratios = []
    for function, rounds in WORKLOADS:
        name = function.__name__
        if not re.search(args.only, name):
            continue
        va, vb, spread = measure(a, b, name, rounds, args)
        ratios.append(va / vb)
        spread = f'{spread:7.1f}%' if spread else f'{"-":>8}'
        print(f'{name:20} {va / scale:12.2f} {vb / scale:12.2f} {va / vb:8.4f}'
              f' {spread}', flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f'{"geometric mean":20} {"":12} {"":12} {mean:8.4f}')


if __name__ == '__main__':
    main()
