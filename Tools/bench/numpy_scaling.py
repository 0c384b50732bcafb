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
interpreter and several take turns.  The work is checked.

Baseline.  One interpreter: with its time t(1), n interpreters that take t(n) do
n * t(1) / t(n) times its work.

Columns
    work      ufuncs: arithmetic on 2,000 floats; small: lots of arrays of 10;
              sort: sorting and searching 5,000; linalg: systems of 40 equations
    one       ms for a unit in one interpreter, median of the rounds
    n         the same for each of n that run at the same time
    times     how much more work n do; best and worst round in brackets
"""

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


def make(site):
    interp = interpreters.create()
    queues = {name: interpreters.create_queue() for name in ('ready', 'go', 'done')}
    interp.prepare_main(**queues)
    interp.exec(WORK.format(site=site))
    return interp, queues


def measure(made, kind, units):
    threads = [threading.Thread(target=interp.exec, args=(f'run({kind!r}, {units})',))
               for interp, _ in made]
    for thread in threads:
        thread.start()
    for _, queues in made:
        queues['ready'].get(timeout=120)
    for _, queues in made:
        queues['go'].put(None)
    starts, ends, results = zip(*[queues['done'].get(timeout=600)
                                  for _, queues in made])
    for thread in threads:
        thread.join()
    if len(set(results)) != 1:
        sys.exit(f'{kind}: different results: {results}')
    return (max(ends) - min(starts)) / units


def add_options(parser):
    parser.add_argument('--site', action='append', default=[], metavar='DIR',
                        help='where NumPy is')
    parser.add_argument('--interpreters', type=int, default=2, metavar='N')


def main():
    args = benchlib.parse_args(__doc__, 7, add_options)
    made = [make(args.site) for _ in range(args.interpreters)]
    data = {}
    print(f'{"work":10} {"one":>9} {args.interpreters:>9} {"times":>7}')
    for kind, units in KINDS.items():
        units = 3 if args.smoke else units
        one, many = [], []
        for _ in range(args.rounds):
            one.append(measure(made[:1], kind, units))
            many.append(measure(made, kind, units))
        ratios = sorted(len(made) * a / b for a, b in zip(one, many))
        print(f'{kind:10} {benchlib.median(one) * 1e3:9.3f} '
              f'{benchlib.median(many) * 1e3:9.3f} {benchlib.median(ratios):7.2f} '
              f'[{ratios[0]:.2f}, {ratios[-1]:.2f}]', flush=True)
        data[kind] = {'one interpreter': one, f'{len(made)} interpreters': many}
    for interp, _ in made:
        interp.close()
    if args.json:
        benchlib.write_json(args, data)


if __name__ == '__main__':
    main()
