"""Readers, writers, births, deaths, forks and an exit in the middle of it all.

    python -m test.rwgil_stress [--seconds N] [--seed S] [--threads N]
                                [--no-fork] [--quiet-exit]

Worker threads create interpreters, run random programs in them (Python code,
plain additions to a counter of the heap, write sections over the own heap, a
pair, or all, sleeps, threads of their own) and close them again.  The main
thread forks and takes the write side too.  At the end some interpreters are
left alive and busy, so that exit has to deal with them.

Prints the seed, which gives the same programs again, and the number of
additions that a race has lost: it must be 0.  Exit status 0 if all went well.
"""

import argparse
import os
import random
import sys
import threading
import time
import _interpreters
import _testrwgil as rwgil

PROGRAM = """
import _testrwgil as rwgil, _interpreters, _thread, random, time
rnd = random.Random({seed})
others = {others}
for _ in range({steps}):
    op = rnd.randrange(20)
    if op < 6:
        rwgil.read_touch(rnd.randrange(2000))
    elif op < 10:
        sum(i for i in range(rnd.randrange(2000)))
    elif op < 13:
        rwgil.write(None)
    elif op < 17:
        try:
            rwgil.write(rnd.choice(others))
        except _interpreters.InterpreterNotFoundError:
            pass
    elif op < 18:
        rwgil.write('all')
    elif op < 19:
        time.sleep(rnd.random() / 1000)
    else:
        lock = _thread.allocate_lock()
        lock.acquire()
        def touch():
            rwgil.read_touch(100)
            lock.release()
        _thread.start_new_thread(touch, ())
        lock.acquire()
"""

FOREVER = """
import _testrwgil as rwgil
while True:
    rwgil.read_touch(100)
    rwgil.write(None)
"""


class Stress:

    def __init__(self, args):
        self.args = args
        self.deadline = time.monotonic() + args.seconds
        self.lock = threading.Lock()
        self.live = [0]
        self.counts = {'interpreters': 0, 'programs': 0, 'forks': 0}
        self.errors = []

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def worker(self, seed):
        rnd = random.Random(seed)
        try:
            while time.monotonic() < self.deadline and not self.errors:
                self.one_life(rnd)
        except BaseException as exc:
            self.errors.append(repr(exc))

    def one_life(self, rnd):
        interp = _interpreters.create()
        self.count('interpreters')
        with self.lock:
            self.live.append(interp)
        try:
            for _ in range(rnd.randrange(1, 6)):
                with self.lock:
                    others = rnd.choices(self.live, k=4)
                code = PROGRAM.format(seed=rnd.randrange(2**32), others=others,
                                      steps=rnd.randrange(10, 100))
                excinfo = _interpreters.exec(interp, code)
                if excinfo is not None:
                    raise AssertionError(excinfo.errdisplay)
                self.count('programs')
        finally:
            with self.lock:
                self.live.remove(interp)
            _interpreters.destroy(interp)

    def fork(self):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                interp = _interpreters.create()
                _interpreters.exec(interp, 'import _testrwgil as t; t.write("all")')
                _interpreters.destroy(interp)
                rwgil.write('all')
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            self.errors.append(f'forked child: status {status}')
        self.count('forks')

    def run(self, rnd):
        threads = [threading.Thread(target=self.worker, args=(rnd.randrange(2**32),))
                   for _ in range(self.args.threads)]
        for thread in threads:
            thread.start()
        while time.monotonic() < self.deadline and not self.errors:
            op = rnd.randrange(10)
            if op == 0 and not self.args.no_fork:
                self.fork()
            elif op < 5:
                with self.lock:
                    other = rnd.choice(self.live)
                try:
                    rwgil.write(other)
                except _interpreters.InterpreterNotFoundError:
                    pass
            elif op < 6:
                rwgil.write('all')
            else:
                time.sleep(rnd.random() / 100)
        for thread in threads:
            thread.join()

    def leave_busy(self):
        started = []
        for _ in range(3):
            interp = _interpreters.create()
            ready = threading.Event()
            def busy(interp=interp, ready=ready):
                ready.set()
                _interpreters.exec(interp, FOREVER)
            threading.Thread(target=busy, daemon=True).start()
            started.append(ready)
        for ready in started:
            ready.wait()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=10)
    parser.add_argument('--seed', type=int, default=random.randrange(2**32))
    parser.add_argument('--threads', type=int, default=24)
    parser.add_argument('--no-fork', action='store_true',
                        help='for sanitizers that do not like fork')
    parser.add_argument('--quiet-exit', action='store_true',
                        help='leave no busy interpreters to the exit')
    args = parser.parse_args()
    print(f'seed {args.seed}', flush=True)
    stress = Stress(args)
    stress.run(random.Random(args.seed))
    lost = rwgil.lost_updates()
    counts = ', '.join(f'{n} {what}' for what, n in stress.counts.items())
    print(f'{counts}; {lost} lost updates', flush=True)
    for error in stress.errors:
        print(error, file=sys.stderr)
    if not args.quiet_exit:
        stress.leave_busy()
    return 1 if lost or stress.errors else 0


if __name__ == '__main__':
    import warnings
    warnings.simplefilter('ignore', DeprecationWarning)     # fork and threads
    sys.exit(main())
