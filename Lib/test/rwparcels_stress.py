"""Use queues at random, from interpreters and threads that come and go.

    python -m test.rwparcels_stress [--seconds N] [--seed S] [--no-fork]

Some threads make an interpreter, let it put and get for a while, perhaps with
threads of its own, and close it, perhaps while those still wait.  Others put and
get in the main interpreter.  Meanwhile the process forks, and the child uses the
queues, too.

What is checked: nothing crashes or hangs, no item of an unexpected kind comes
out, and in the end nobody is in the way of a put and a get, and all queues that
were made on the way are gone.

Prints the seed, which gives the same choices again, though not at the same
times.
"""

import argparse
import contextlib
import os
import random
import threading
import time
import warnings

import _parcels
import interpreters

# Runs in any interpreter, with `qs`.
WORK = """
import random
import threading
import time
import _testparcel
import interpreters

OBJECTS = (1, 2**100, 'x' * 50, b'y' * 1000, (1, (2, 'z')), [1, {'a': 2}], None)
EXPECTED = (int, str, bytes, tuple, list, type(None), memoryview,
            interpreters.Queue, type(interpreters.UNBOUND))
UNBOUND = (None, interpreters.UNBOUND, interpreters.UNBOUND_ERROR,
           interpreters.UNBOUND_REMOVE)

def make_object(rnd):
    kind = rnd.random()
    if kind < 0.8:
        return rnd.choice(OBJECTS)
    if kind < 0.9:
        return rnd.choice(qs)
    if kind < 0.95:
        return memoryview(bytearray(100))
    return [rnd.choice(qs), interpreters.create_queue()]

def step(rnd):
    q = rnd.choice(qs)
    timeout = rnd.choice((0, 0.00001, 0.001, 0.05, 0.2))
    if rnd.random() < 0.5:
        q.put(make_object(rnd), timeout=timeout,
              unbounditems=rnd.choice(UNBOUND))
    else:
        _testparcel.expect(rnd.choice(qs))
        obj = q.get(timeout=timeout)
        assert isinstance(obj, EXPECTED), obj
        if isinstance(obj, memoryview):
            assert bytes(obj) == bytes(100)

def work(seed, end):
    rnd = random.Random(seed)
    while time.monotonic() < end:
        try:
            step(rnd)
        except (interpreters.QueueEmpty, interpreters.QueueFull,
                interpreters.ItemInterpreterDestroyed):
            pass
        except interpreters.InterpreterError:
            break       # it is being closed
"""

# Runs in a new interpreter.
LIFE = WORK + """
end = time.monotonic() + span
threads = [threading.Thread(target=work, args=(seed + i, end + linger))
           for i in range(extra)]
for thread in threads:
    thread.start()
work(seed, end)
"""


class Stress:

    def __init__(self, seconds, rnd, may_fork):
        self.may_fork = may_fork
        self.end = time.monotonic() + seconds
        self.rnd = rnd
        self.qs = tuple(interpreters.create_queue(maxsize)
                        for maxsize in (0, 1, 3, 10))
        self.lives = self.forks = 0
        self.errors = []

    def go_on(self):
        return time.monotonic() < self.end and not self.errors

    def live(self, seed):
        rnd = random.Random(seed)
        while self.go_on():
            interp = interpreters.create()
            interp.prepare_main(
                qs=self.qs, seed=rnd.randrange(2**32),
                span=rnd.choice((0, 0.05, 0.5)), extra=rnd.choice((0, 0, 1, 3)),
                linger=rnd.choice((0, 3600)))
            interp.exec(LIFE)
            interp.close()
            self.lives += 1

    def work_here(self, seed):
        namespace = {'qs': self.qs}
        exec(WORK, namespace)
        namespace['work'](seed, self.end)

    def drain(self, seed):
        while self.go_on():
            self.drain_once()
            time.sleep(0.05)        # so that the queues fill up

    def drain_once(self):
        for q in self.qs:
            with contextlib.suppress(interpreters.QueueEmpty):
                while True:
                    with contextlib.suppress(
                            interpreters.ItemInterpreterDestroyed):
                        q.get_nowait()

    def use_in_child(self):
        for q in self.qs:
            for _ in range(3):
                with contextlib.suppress(interpreters.QueueFull):
                    q.put_nowait(1)
                with contextlib.suppress(interpreters.QueueError):
                    q.get_nowait()
            with contextlib.suppress(interpreters.QueueError):
                q.get(timeout=0.001)

    def fork(self):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.use_in_child()
                code = 0
            except BaseException as exc:
                print(f'in the child: {exc!r}', flush=True)
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        self.forks += 1

    def guarded(self, target):
        seed = self.rnd.randrange(2**32)
        def run():
            try:
                target(seed)
            except BaseException as exc:
                self.errors.append(exc)
                raise
        return threading.Thread(target=run)

    def run(self):
        before = _parcels.list_queues()
        threads = [self.guarded(target) for target in
                   [self.live] * 3 + [self.work_here] * 2 + [self.drain]]
        for thread in threads:
            thread.start()
        while self.go_on():
            time.sleep(0.3)         # between forks
            if self.may_fork:
                self.fork()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        self.drain_once()
        for q in self.qs:
            q.put(1, timeout=1)
            assert q.get(timeout=1) == 1
            assert q.empty()
        assert _parcels.list_queues() == before, _parcels.list_queues()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=10)
    parser.add_argument('--seed', type=int, default=random.randrange(2**32))
    parser.add_argument('--no-fork', action='store_true',
                        help='for sanitizers that do not like fork')
    args = parser.parse_args()
    print(f'seed {args.seed}', flush=True)
    stress = Stress(args.seconds, random.Random(args.seed),
                    hasattr(os, 'fork') and not args.no_fork)
    stress.run()
    print(f'ok: {stress.lives} interpreters, {stress.forks} forks')


if __name__ == '__main__':
    main()
