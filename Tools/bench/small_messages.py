#!/usr/bin/env python3
"""How fast do small messages go to another interpreter?

Two questions, each for an int, a tuple of five and an instance of a dataclass:

  round trip    send it, and get it back: through two interpreters.Queue, to another
                interpreter; over a multiprocessing.Pipe, to another process
  one way       how many items per second arrive, when one sends as fast as it can
                and the other receives: put/get; put_many/get_many; the Pipe

In one process (and one at the other end of the Pipe), in turns.  Each item that
arrives is counted and its content added up on the other side.

Usage:

  small_messages.py [--trips N] [--items N] [--batch N] [--rounds N] [--smoke]
                    [--json FILE]

  --trips    round trips in a measurement (default 20,000)
  --items    items one way in a measurement (default 200,000)
  --batch    items in one put_many() (default 100)

How to read the tables.  Medians over the rounds; `+-` is the interquartile range in
percent.  `pipe/queue` is the ratio of the times of a round trip: 3 is the goal.  One
way, the goal is 500,000 items per second with put/get, and more with put_many.  The
baseline is pipe.  Two processors are needed for the figures to mean much.
"""

import multiprocessing
import time

import interpreters
from benchlib import (
    Point, echo_pipe, echo_queues, ensure, in_turns, median, parse_args,
    print_table, show, spread, value, write_json)


# --- What is sent -------------------------------------------------------------

def make_int(i):
    return 100_000 + i


def make_tuple(i):
    return (i, 'name', 2.5, None, b'data')


def make_point(i):
    return Point(i, 1, 'name', 2.5, ('a', 'b'))


KINDS = {'int': make_int, 'tuple of 5': make_tuple, 'dataclass': make_point}


# --- This side ---------------------------------------------------------------

def round_trips(send, receive, make, trips):
    items = [make(i) for i in range(trips)]
    send(items[0])
    ensure(receive() == items[0], 'round trip')
    total = 0
    start = time.perf_counter()
    for item in items:
        send(item)
        total += value(receive())
    seconds = time.perf_counter() - start
    ensure(total == sum(map(value, items)), 'round trips')
    return seconds / trips


def one_way(send, receive, make, n):
    items = [make(i) for i in range(n)]
    send('sum')
    start = time.perf_counter()
    for item in items:
        send(item)
    send('end')
    answer = receive()
    seconds = time.perf_counter() - start
    ensure(answer == [n, sum(map(value, items))], 'one way')
    return seconds / n


def one_way_many(send, send_many, receive, make, n, batch):
    items = [make(i) for i in range(n)]
    batches = [items[i:i + batch] for i in range(0, n, batch)]
    send('many')
    start = time.perf_counter()
    for items_ in batches:
        send_many(items_)
    send('end')
    answer = receive()
    seconds = time.perf_counter() - start
    ensure(answer == [n, sum(map(value, items))], 'one way, many')
    return seconds / n


def main():
    def add(parser):
        parser.add_argument('--trips', type=int, default=20_000)
        parser.add_argument('--items', type=int, default=200_000)
        parser.add_argument('--batch', type=int, default=100)
    args = parse_args(__doc__, 7, add)
    if args.smoke:
        args.trips, args.items = 100, 1000

    interp = interpreters.create()
    there, back = interpreters.create_queue(), interpreters.create_queue()
    thread = interp.call_in_thread(echo_queues, there, back, args.batch)
    context = multiprocessing.get_context('spawn')
    conn, other = context.Pipe()
    process = context.Process(target=echo_pipe, args=(other,))
    process.start()

    data, trips, ways = {}, [], []
    try:
        for name, make in KINDS.items():
            times = in_turns({
                'queue': lambda: round_trips(there.put, back.get, make,
                                             args.trips),
                'pipe': lambda: round_trips(conn.send, conn.recv, make,
                                            args.trips),
            }, args.rounds, f'{name}, round trip,')
            data[f'{name}, round trip'] = times
            queue, pipe = median(times['queue']), median(times['pipe'])
            trips.append((name, show(queue), f'{spread(times["queue"]):.0f}%',
                          show(pipe), f'{spread(times["pipe"]):.0f}%',
                          f'{pipe / queue:.2f}'))
            times = in_turns({
                'put': lambda: one_way(there.put, back.get, make, args.items),
                'put_many': lambda: one_way_many(
                    there.put, there.put_many, back.get, make, args.items,
                    args.batch),
                'pipe': lambda: one_way(conn.send, conn.recv, make, args.items),
            }, args.rounds, f'{name}, one way,')
            data[f'{name}, one way'] = times
            row = [name]
            for way in 'put', 'put_many', 'pipe':
                row += [f'{1 / median(times[way]):,.0f}',
                        f'{spread(times[way]):.0f}%']
            ways.append(row)
    finally:
        there.put(None)
        conn.send(None)
        thread.join()
        process.join()
        interp.close()
    print_table(('round trip', 'queue', '+-', 'pipe', '+-', 'pipe/queue'), trips)
    print()
    print_table(('items/s one way', 'put', '+-', 'put_many', '+-', 'pipe', '+-'),
                ways)
    write_json(args, data)


if __name__ == '__main__':
    main()
