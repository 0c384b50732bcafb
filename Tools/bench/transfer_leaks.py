#!/usr/bin/env python3
"""Does memory stay flat over a million transfers of mixed graphs?

Sends random graphs (those of test.rwparcels_random: all types, shared references,
cycles) between two interpreters, back and forth.  Half of them are copied, the
others moved, and some are discarded unopened or fail.  Ten times on the way it
collects in both and looks at the memory of the process and at the number of
allocated blocks in each interpreter.  Every thousandth graph is compared with what
it was.

Usage:

  transfer_leaks.py [--transfers N] [--seed S] [--smoke] [--json FILE]

  --transfers   how many one-way trips (default 1,000,000)
  --seed        of the graphs (default: random; it is printed)

How to read the table.  One line for each tenth: memory of the process in MB and
allocated blocks in the two interpreters, `here` and `there`.  The first two tenths
are for warming up.  The last line is the growth from there to the end: the script
fails if it is more than 1% of the memory and 1000 blocks in an interpreter.
"""

import gc
import json
import random
import sys
import threading

import benchlib
import interpreters
from interpreters import move
from test import rwparcels_random as graphs

LINES = 10
WARM_UP = 2
GRAPHS = 200


def resident():
    """Memory of the process in MB."""
    try:
        with open('/proc/self/status', encoding='ascii') as file:
            for line in file:
                if line.startswith('VmRSS:'):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Unopenable:
    """Not in the other interpreter."""


def trips(there, back, seed, n):
    """n / 2 round trips; every thousandth is looked at closely."""
    made = [graphs.make_graph(seed, i) for i in range(GRAPHS)]
    for i in range(n // 2):
        if i % 2:
            graph = made[i // 2 % GRAPHS]
            expected = graphs.describe(graph) if i % 1000 == 1 else None
            there.put((False, graph))
        else:
            graph = graphs.make_graph(seed, i % 5000)
            expected = graphs.describe(graph) if i % 1000 == 0 else None
            there.put((True, move(graph)))
        del graph
        got = back.get()
        benchlib.ensure(expected is None or graphs.describe(got) == expected,
                        f'graph {i}')
        del got
        if i % 100 == 0:
            fail(there, made[i // 100 % GRAPHS])


def fail(queue, graph):
    """Transfers that come to nothing."""
    parcel = interpreters.pack(graph)
    del parcel
    lock = threading.Lock()
    try:
        queue.put([graph, lock])
    except interpreters.NotShareableError:
        pass
    else:
        benchlib.ensure(False, 'a lock was sent')
    part = [graph]
    try:
        queue.put(move([part]))
    except interpreters.TransferError:
        pass
    else:
        benchlib.ensure(False, 'a part that is referred to was moved')


def run_there(there, back):
    """In the other interpreter."""
    while (item := there.get()) is not None:
        if item == 'blocks':
            gc.collect()
            back.put(sys.getallocatedblocks())
            continue
        moved, obj = item
        del item
        if moved:
            back.put(move(obj))
        else:
            back.put(obj)
        del obj


def look(there, back):
    there.put('blocks')
    blocks = back.get()
    gc.collect()
    return resident(), sys.getallocatedblocks(), blocks


def main():
    def add(parser):
        parser.add_argument('--transfers', type=int, default=1_000_000)
        parser.add_argument('--seed', type=int)
    args = benchlib.parse_args(__doc__, 1, add)
    if args.smoke:
        args.transfers = 10_000
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(2**32)
    print(f'seed: {args.seed}', flush=True)

    import transfer_leaks
    interp = interpreters.create()
    there, back = interpreters.create_queue(), interpreters.create_queue()
    thread = interp.call_in_thread(transfer_leaks.run_there, there, back)
    found, rows = [], []
    try:
        for i in range(LINES):
            trips(there, back, args.seed, args.transfers // LINES)
            found.append(look(there, back))
            memory, here, blocks = found[-1]
            rows.append((f'{args.transfers * (i + 1) // LINES:,}',
                         f'{memory:.1f}', f'{here:,}', f'{blocks:,}'))
            benchlib.progress(f'{rows[-1]}')
    finally:
        benchlib.progress('')
        there.put(None)
        thread.join()
        interp.close()
    growth = [b - a for a, b in zip(found[WARM_UP - 1], found[-1])]
    rows.append(('growth', f'{growth[0]:+.1f}', *(f'{g:+,}' for g in growth[1:])))
    benchlib.print_table(('transfers', 'MB', 'blocks here', 'there'), rows)
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(found, file, indent=1)
    if args.smoke:
        return              # it takes longer until everything is warm
    if growth[0] > found[-1][0] * 0.01 or max(growth[1:]) > 1000:
        sys.exit('memory grows')


if __name__ == '__main__':
    main()
