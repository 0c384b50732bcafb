#!/usr/bin/env python3
"""What does a message to another worker cost, by its kind and its size?

Question.  A message goes to a worker and comes back, or goes one way as fast as it
can.  How long does that take between interpreters, and what would you use instead?

Usage
    ./python Tools/bench/messages.py [--smoke | --full] [--rounds N]
                                     [--only WORD ...] [--json FILE]
    ./python Tools/bench/messages.py --only "Round trip" --full

How.  Every figure comes from fresh processes of the Python it is about, --rounds of
them, in turns.  What comes back is compared; what goes one way is counted and added
up at the other end.

    Round trip      seconds from before put() until the answer is there
    One way         messages per second that arrive, when one side only sends and the
                    other only receives; the last row: put_many() of a hundred
    Bytes           seconds from before put() until the other side has said that the
                    bytes are there (so a round trip); made anew each time

How to read the tables.  A column for each kind or size, a row for each way; medians
over all processes, and after each the interquartile range of the processes' medians
in percent.  The baselines are all on stock 3.13.5 with the same flags:

    stock interpreters   test.support.interpreters with its own queue, the one that
                         became 3.14's: it looks for messages every 10 ms
    processes, Pipe      multiprocessing.Pipe
    processes, Queue     multiprocessing.Queue, which has a thread for sending
    processes, shared memory   bytes are copied into a block and used there; a Pipe
                         says when
    threads              queue.SimpleQueue, shares the object; the last row: the same
                         on a build without a GIL

The physical limit is a wake-up of a sleeping thread, there and back ("futex" of
limits.py); below that both sides must be spinning.  For bytes that are copied it is the
bandwidth of memory.
"""

import time

from benchlib import Point, ensure
from runner import Cell, Panel, run

KINDS = {
    'int': lambda i: 100_000 + i,
    'str of 20': lambda i: f'message {i:012}',
    'tuple of 5': lambda i: (i, 'name', 2.5, None, b'data'),
    'dict of 5': lambda i: {'id': i, 'name': f'n{i}', 'weight': 2.5, 'tags': ['a', 'b'],
                            'next': None},
    'dataclass': lambda i: Point(i, 1, 'name', 2.5, ('a', 'b')),
}


# --- The other side ----------------------------------------------------------

def echo(there, back):
    while (item := there.get()) is not None:
        back.put(item)


def count(there, back, many):
    """How many have come, once there is None."""
    back.put('ready')
    n = 0
    if many:
        while True:
            items = there.get_many(100)
            n += len(items)
            if items[-1] is None:
                return back.put(n - 1)
    while there.get() is not None:
        n += 1
    back.put(n)


def acknowledge(there, back):
    while (item := there.get()) is not None:
        back.put(len(item))
        del item        # now, not while the next is on its way


# --- This side ---------------------------------------------------------------

def round_trips(way, kind, trips, values):
    there, back = way.channel(), way.channel()
    worker = way.start(echo, there, back)
    items = [KINDS[kind](i) for i in range(trips)]
    there.put(items[0])
    ensure(back.get() == items[0], 'round trip')
    times = []
    for _ in range(values):
        start = time.perf_counter()
        for item in items:
            there.put(item)
            got = back.get()
        times.append((time.perf_counter() - start) / trips)
        ensure(got == items[-1], 'round trip')
    there.put(None)
    worker.join()
    return times


def one_way(way, kind, trips, many):
    there, back = way.channel(), way.channel()
    worker = way.start(count, there, back, many)
    items = [KINDS[kind](i) for i in range(trips)]
    ensure(back.get() == 'ready', 'start')
    start = time.perf_counter()
    if many:
        for i in range(0, trips, 100):
            there.put_many(items[i:i + 100])
    else:
        for item in items:
            there.put(item)
    there.put(None)
    n = back.get()
    seconds = time.perf_counter() - start
    ensure(n == trips, f'{n} of {trips} messages')
    worker.join()
    return [seconds / trips]


def send_bytes(way, size, values):
    there, back = way.channel(), way.answers()
    worker = way.start(acknowledge, there, back)
    times = []
    for i in range(-1, values):
        data = bytearray(b'x') * size   # moves as it is, with its pages touched
        start = time.perf_counter()
        there.put(way.wrap(data))
        length = back.get()
        seconds = time.perf_counter() - start
        ensure(length == size, 'bytes')
        if i >= 0:
            times.append(seconds)
    there.put(None)
    worker.join()
    return times


def measure(way, what, **arguments):
    return globals()[what](way, **arguments)


# --- What is measured --------------------------------------------------------

TRIP = Panel('Round trip of a small message', 'kind of message',
             y_label='time there and back', limit='futex')
RATE = Panel('Small messages one way', 'kind of message', 'rate',
             'messages per second')
BYTES = Panel('Bytes to another worker', 'size in bytes',
              y_label='time until the receiver has answered', limit='copy', per_x=1)
POLLING = 'stock interpreters'
ALL = ('interpreters', POLLING, 'processes, Pipe', 'processes, Queue', 'threads',
       'threads without GIL')


def cells(args):
    effort = args.effort
    smoke, full = effort == 'smoke', effort == 'full'
    kinds = list(KINDS) if full else ['dataclass'] if smoke else [
        'int', 'tuple of 5', 'dataclass']
    sizes = [100, 10**4] if smoke else [100, 10**4, 10**6, 10**8] if full else [
        100, 10**4, 10**6, 10**7]
    result = []
    for kind in kinds:
        for way in ALL:
            polls = way == POLLING
            trips = 2 if smoke or polls else 4000 if full else 1000
            result.append(Cell(TRIP, kind, way, dict(
                what='round_trips', kind=kind, trips=trips, values=1 if polls else 3)))
            trips = 200 if smoke else 20_000 if polls or not full else 100_000
            result.append(Cell(RATE, kind, way, dict(
                what='one_way', kind=kind, trips=trips, many=False)))
        result.append(Cell(RATE, kind, 'interpreters', dict(
            what='one_way', kind=kind, trips=trips, many=True),
            'interpreters, put_many'))
    for size in sizes:
        for way in ('interpreters', 'interpreters, moved', POLLING, 'processes, Pipe',
                    'processes, Queue', 'processes, shared memory', 'threads',
                    'threads without GIL'):
            values = 2 if smoke or size >= 10**8 or way == POLLING else 10
            result.append(Cell(BYTES, size, way, dict(
                what='send_bytes', size=size, values=values)))
    return result


if __name__ == '__main__':
    run(__doc__, cells)
