#!/usr/bin/env python3
"""How long does it take to send an int to another interpreter and get it back?

Measures round trips over three ways, in fresh processes that take turns, so that
what else the machine does hits all of them alike:

  queue     interpreters.Queue: two interpreters, a thread each, a queue for each
            direction
  pipe      multiprocessing.Pipe between two processes of the same Python
  stock     the same as queue with a stock CPython 3.13 and its own queue, that
            of test.support.interpreters, which became 3.14's; it polls.  Only
            with --stock.

Usage:

  queue_pingpong.py [--python PYTHON] [--stock PYTHON] [--rounds N] [--trips N]
                    [--smoke]

  --python   the Python to measure (default: the one that runs this)
  --stock    a stock 3.13 build, for example build/stock/obj/python
  --rounds   how many processes for each way (default 7)
  --trips    round trips that one process is timed for (default 20000; the
             polling queue does a hundredth of that)

How to read the table.  `median` is the median over the rounds of one process's
mean time of a round trip, in microseconds; `spread` is the interquartile range
in percent of it; `best` and `worst` are the extremes.  `ratio` is the way's
median divided by that of queue: above 1.00 the queue is that much faster.  The
baseline is pipe, which the queue must not be slower than, and stock, which it
must beat by a factor of 500.

Two processors are needed for the figures to mean much.  When something else
keeps them busy a round trip takes two changes of threads on one processor.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time

WARM_UP = 0.05      # as part of the trips, but at least one


# --- what a measuring process does -------------------------------------------

def time_trips(send, receive, trips):
    """Return the mean time of a round trip in microseconds."""
    for i in range(max(1, int(trips * WARM_UP))):
        send(i)
        receive()
    start = time.perf_counter()
    for i in range(trips):
        send(i)
        receive()
    return (time.perf_counter() - start) / trips * 1e6


SERVE = """
get, put = there.get, back.put
while (item := get()) is not None:
    put(item)
"""


def time_queue(trips, create, create_queue, module):
    interp = create()
    interp.exec(f'import {module}')     # stock's can't receive a queue before
    there, back = create_queue(), create_queue()
    interp.prepare_main(there=there, back=back)
    thread = threading.Thread(target=interp.exec, args=(SERVE,))
    thread.start()
    try:
        return time_trips(there.put, back.get, trips)
    finally:
        there.put(None)
        thread.join()
        interp.close()


def measure_queue(trips):
    import interpreters
    return time_queue(trips, interpreters.create, interpreters.create_queue,
                      interpreters.__name__)


def measure_stock(trips):
    from test.support import interpreters
    from test.support.interpreters import queues
    return time_queue(max(trips // 100, 1), interpreters.create,
                      lambda: queues.create(syncobj=True), queues.__name__)


def serve_pipe(conn):
    while (item := conn.recv()) is not None:
        conn.send(item)


def measure_pipe(trips):
    import multiprocessing
    context = multiprocessing.get_context('fork')
    conn, other = context.Pipe()
    process = context.Process(target=serve_pipe, args=(other,))
    process.start()
    try:
        return time_trips(conn.send, conn.recv, trips)
    finally:
        conn.send(None)
        process.join()


WAYS = {'queue': measure_queue, 'pipe': measure_pipe, 'stock': measure_stock}


# --- what the program does ---------------------------------------------------

def run(python, way, trips):
    """Measure in a fresh process."""
    proc = subprocess.run(
        [python, os.path.abspath(__file__), '--measure', way,
         '--trips', str(trips)],
        stdout=subprocess.PIPE, text=True)
    if proc.returncode != 0:
        sys.exit(f'{python} failed to measure {way}')
    return json.loads(proc.stdout)


def spread(times):
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method='inclusive')
    return (high - low) / statistics.median(times) * 100


def print_table(times):
    base = statistics.median(times['queue'])
    print(f'{"":<7}{"median us":>12}{"spread %":>10}{"best":>12}{"worst":>12}'
          f'{"ratio":>12}')
    for way, values in times.items():
        median = statistics.median(values)
        print(f'{way:<7}{median:>12.2f}{spread(values):>10.1f}'
              f'{min(values):>12.2f}{max(values):>12.2f}{median / base:>12.2f}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='The head of the script says how to read the table.')
    parser.add_argument('--python', default=sys.executable)
    parser.add_argument('--stock')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--trips', type=int, default=20_000)
    parser.add_argument('--smoke', action='store_true',
                        help='sees that it works; the figures mean nothing')
    parser.add_argument('--measure', choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.trips = 1, 100
    if args.rounds < 1 or args.trips < 1:
        parser.error('--rounds and --trips must be positive')
    if args.measure:
        print(json.dumps(WAYS[args.measure](args.trips)))
        return

    pythons = {'queue': args.python, 'pipe': args.python}
    if args.stock:
        pythons['stock'] = args.stock
    times = {way: [] for way in pythons}
    for i in range(args.rounds):
        for way, python in pythons.items():
            print(f'\rround {i + 1} of {args.rounds}: {way}  ', end='',
                  file=sys.stderr, flush=True)
            times[way].append(run(python, way, args.trips))
    print('\r' + ' ' * 40 + '\r', end='', file=sys.stderr)
    print_table(times)


if __name__ == '__main__':
    main()
