#!/usr/bin/env python3
"""How much more NumPy work do two interpreters do than one?

Question.  NumPy holds its interpreter's lock for most of what it does with small
and middle-sized arrays.  Each interpreter has a private copy of NumPy and a lock
of its own, so two of them should do twice the work of one.

Usage
    ./python Tools/bench/numpy_scaling.py [--site DIR] [--interpreters 2]
    ./python Tools/bench/numpy_scaling.py --rounds 9
    ./python Tools/bench/numpy_scaling.py --smoke        # seconds
    ./python Tools/bench/numpy_scaling.py --json FILE    # for report.py

Needs NumPy: --site names the folder that has it, if that isn't on sys.path.
BLAS runs on one thread, so that it does not use the other core: set before NumPy
is imported.  The machine must be otherwise idle and have as many cores.

How.  Every interpreter does the same number of units at the same time, in a thread
of its own; the clock runs from a common start to the end of the last one.  One
interpreter, several, and as many processes, take turns.  The work is checked.

Baseline.  One interpreter: with its time t(1), n interpreters that take t(n) do
n * t(1) / t(n) times its work.  The limit is what processes do, which share nothing
but the machine; if that isn't n, the machine has no n whole cores to give.

Columns
    work       ufuncs: arithmetic on 2,000 floats; small: lots of arrays of 10;
               sort: sorting and searching 5,000; linalg: systems of 40 equations
    one        ms for a unit in one interpreter, median of the rounds
    n          the same for each of n that run at the same time
    processes  the same for n processes
    times      how much more work n do; worst and best round in brackets
    limit      the same for the processes
"""

import multiprocessing
import os
import sys
import threading
import time

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import benchlib
import interpreters

WORK = '''
import sys
sys.path[:0] = {site!r}
import time
import numpy as np

rng = np.random.default_rng(7)
floats = rng.random(2000)
tens = [rng.random(10) for _ in range(50)]
keys = rng.random(5000)
matrix = rng.random((40, 40)) + 40 * np.eye(40)
right = rng.random(40)

def ufuncs():
    for _ in range(100):
        x = np.sqrt(floats * 2 + 1)
        y = np.where(x > 1.2, x, -x).sum()
    return float(y)

def small():
    total = 0.0
    for a in tens:
        for b in tens[:20]:
            total += (a + b)[3] - a.max()
    return float(total)

def sort():
    for _ in range(5):
        order = np.sort(keys)
        found = np.searchsorted(order, keys[:500])
    return float(found.sum())

def linalg():
    for _ in range(30):
        x = np.linalg.solve(matrix, right)
    assert np.allclose(matrix @ x, right)
    return float(x.sum())

def run(name, units):
    func = globals()[name]
    func()
    ready.put(None)
    go.get()
    start = time.monotonic()
    for _ in range(units):
        result = func()
    done.put((start, time.monotonic(), result))
'''

KINDS = {'ufuncs': 150, 'small': 120, 'sort': 120, 'linalg': 150}


QUEUES = ('ready', 'go', 'done')


class Interpreter:

    def __init__(self, site):
        self.interp = interpreters.create()
        self.queues = {name: interpreters.create_queue() for name in QUEUES}
        self.interp.prepare_main(**self.queues)
        self.interp.exec(WORK.format(site=site))

    def start(self, kind, units):
        self.thread = threading.Thread(target=self.interp.exec,
                                       args=(f'run({kind!r}, {units})',))
        self.thread.start()

    def join(self):
        self.thread.join()

    def close(self):
        self.interp.close()


def serve(source, jobs, queues):
    namespace = dict(queues)
    exec(source, namespace)
    while (job := jobs.get()) is not None:
        namespace['run'](*job)


class Process:

    def __init__(self, site):
        context = multiprocessing.get_context('spawn')
        self.queues = {name: context.Queue() for name in QUEUES}
        self.jobs = context.Queue()
        self.process = context.Process(target=serve, args=(
            WORK.format(site=site), self.jobs, self.queues))
        self.process.start()

    def start(self, kind, units):
        self.jobs.put((kind, units))

    def join(self):
        pass

    def close(self):
        self.jobs.put(None)
        self.process.join()


def measure(made, kind, units):
    for worker in made:
        worker.start(kind, units)
    for worker in made:
        worker.queues['ready'].get(timeout=120)
    for worker in made:
        worker.queues['go'].put(None)
    starts, ends, results = zip(*[worker.queues['done'].get(timeout=600)
                                  for worker in made])
    for worker in made:
        worker.join()
    if len(set(results)) != 1:
        sys.exit(f'{kind}: different results: {results}')
    return (max(ends) - min(starts)) / units


def add_options(parser):
    parser.add_argument('--site', action='append', default=[], metavar='DIR',
                        help='where NumPy is')
    parser.add_argument('--interpreters', type=int, default=2, metavar='N')


def main():
    args = benchlib.parse_args(__doc__, 7, add_options)
    n = args.interpreters
    made = [Interpreter(args.site) for _ in range(n)]
    processes = [Process(args.site) for _ in range(n)]
    data, rows = {}, []
    for kind, units in KINDS.items():
        units = 3 if args.smoke else units
        times = data[kind] = benchlib.in_turns({
            'one interpreter': lambda: measure(made[:1], kind, units),
            f'{n} interpreters': lambda: measure(made, kind, units),
            f'{n} processes': lambda: measure(processes, kind, units),
        }, args.rounds, kind)
        one, *others = times.values()
        row = [kind, *(f'{benchlib.median(values) * 1e3:.3f}' for values in times.values())]
        for values in others:
            ratios = sorted(n * a / b for a, b in zip(one, values))
            row.append(f'{benchlib.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]')
        rows.append(row)
    benchlib.print_table(('work', 'one', n, 'processes', 'times', 'limit'), rows)
    for worker in made + processes:
        worker.close()
    if args.json:
        benchlib.write_json(args, data)


if __name__ == '__main__':
    main()
