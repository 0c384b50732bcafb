#!/usr/bin/env python3
"""Run one worker of a pyperf script, and note more than pyperf does.

    pyperf_worker.py [--inside 1|2] --out FILE SCRIPT --worker ARGUMENTS...

For pyperformance_compare.py, which starts every worker by this, on both builds.  FILE
gets, as JSON: the name of the benchmark; of each value (and of each warm-up before
them) the loops, the time on the clock, and the CPU time of the process and of those of
its children that have ended; and the peak of resident memory, of the process or of the
largest of these children, in bytes.

The benchmark's own clock is read: pyperf and its benchmarks take time.perf_counter()
where they begin and where they end, and the CPU time is taken at the same two places.
Where a benchmark uses that clock in another way, there is no CPU time.

--inside 1 runs the worker in a subinterpreter, --inside 2 in two of them at once: the
second does the same work, and what it finds is thrown away.  CPU time is then that of
the first one's thread.
"""
import argparse
import builtins
import json
import os
import resource
import runpy
import sys
import threading
import time


class Clock:
    """time.perf_counter() that takes the CPU time along."""

    def __init__(self, cpu):
        self.cpu = cpu
        self.real = time.perf_counter
        self.readings = []

    def __call__(self):
        now = self.real()
        self.readings.append((now, self.cpu()))
        return now

    def cpu_of(self, seconds):
        """CPU time of what a benchmark says took this long since the readings were cleared."""
        read = self.readings
        for pairs in zip(read[::2], read[1::2]), [(read[0], read[-1])]:
            spans = [(end[0] - start[0], end[1] - start[1]) for start, end in pairs]
            if abs(sum(wall for wall, _ in spans) - seconds) <= 1e-6:
                return sum(cpu for _, cpu in spans)
        return None


def process_cpu():
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def peak_memory():
    # Not ru_maxrss of this process: that remembers the one that started it.
    with open("/proc/self/status") as status:
        own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return 1024 * max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def observe(clock, found):
    """Make pyperf's tasks note each of their values in found."""
    import pyperf
    from pyperf._worker import WorkerTask
    time.perf_counter = pyperf.perf_counter = clock
    init = WorkerTask.__init__

    def observed_init(self, runner, name, task_func, metadata):
        def observed(task, loops):
            clock.readings.clear()
            before = clock.cpu()
            seconds = task_func(task, loops)
            # A command has been timed by another process.
            cpu = clock.cpu_of(seconds) if clock.readings else clock.cpu() - before
            found["calls"].append((loops, seconds, cpu))
            return seconds
        init(self, runner, name, observed, metadata)
        found["name"] = name
    WorkerTask.__init__ = observed_init


def run(argv, out, inside=False):
    """Run the script in this interpreter; write what it found to out, if there is one."""
    found = {"name": None, "calls": []}
    sys.argv[:] = argv
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    observe(Clock(time.thread_time if inside else process_cpu), found)
    try:
        # As in a program that is started: sphinx replaces functions in __builtins__.
        runpy.run_path(argv[0], {"__builtins__": builtins}, run_name="__main__")
    except SystemExit as exc:
        if exc.code:
            raise RuntimeError(f"exit status {exc.code}") from None
    if out:
        found["memory"] = peak_memory()
        with open(out, "w") as file:
            json.dump(found, file)


def run_inside(argv, out):
    import interpreters
    interp = interpreters.create()
    try:
        interp.prepare_main(argv=argv, out=out, here=os.path.dirname(os.path.abspath(__file__)))
        interp.exec("import sys; sys.path.insert(0, here)\n"
                    "import pyperf_worker; pyperf_worker.run(argv, out, inside=True)")
    finally:
        interp.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", type=int, choices=(0, 1, 2), default=0)
    parser.add_argument("--out", metavar="FILE", required=True)
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="SCRIPT ...")
    options = parser.parse_args()
    if not options.inside:
        return run(options.argv, options.out)
    if options.inside == 2:
        threading.Thread(target=run_inside, args=(options.argv, None)).start()
    run_inside(options.argv, options.out)


if __name__ == "__main__":
    main()
