#!/usr/bin/env python3
"""Do two interpreters do twice the work of one in the same time?

Question.  Interpreters of one process share its memory allocator, its address
space and, here, the RW-GIL.  How much of each core is left for Python?  Five
kinds of work, all CPU-bound, with nothing shared between the workers: fib
(calls), containers (dict and list), strings, regex, json.

Usage
    ./python Tools/bench/scaling.py --stock build/stock/obj/python [--check]
    ./python Tools/bench/scaling.py --workers 4 --rounds 15
    ./python Tools/bench/scaling.py --quick              # seconds; proves little

The machine must be otherwise idle, and --workers at most the number of cores.
Takes about three minutes.

How.  Every worker, whatever its kind, runs the same source, does the same N
units (calibrated to take --seconds) and times itself from a common start, which
it gets over a pipe.  The time of several workers is from the first one's start
to the last one's end.  All variants are run in turn, in every round; a round's
figures are divided by each other, then the median is taken over the rounds.
Each round has fresh processes: where their memory comes to lie makes them up to
4 % faster or slower for all of their life, stock's too.

Baselines.  One interpreter; as many processes of --stock (the unpatched release
with the same flags; default: this build); as many threads in one interpreter.

Columns
    work       the kind of work
    one        seconds that one interpreter takes for N units
    interps    work per time of the interpreters against one; W would be perfect
    lo..hi     smallest and largest of the rounds
    per cpu    work per CPU second of the interpreters against one: 1 if they
               don't slow each other down. Shows contention for caches and busy
               waiting, not sleeping; holds on a busy machine too
    processes  the same ratio for processes of --stock against one process
    threads    the same ratio for threads of one interpreter
    vs procs   work per time of the interpreters against the processes; below 1
               the interpreters are slower
    lo..hi     as above

Goal (--check): interps at least 0.975 W (1.95 on two cores), vs procs at least
0.97, in every kind of work.
"""
import argparse
import _interpreters
import json
import os
import select
import statistics
import subprocess
import sys
import threading

GOAL_SCALE = 0.975
GOAL_PROCESSES = 0.97
TIMEOUT = 300

# What a worker runs: in an interpreter, in a process, or in a thread.
# serve(read_fd, write_fd): "kind units\n" -> "ready\n",
# then "go\n" -> "start end cpu sum\n".
WORKER = r'''
import json, os, re, time

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def do_fib():
    return fib(15)

def do_containers():
    groups = {}
    for i in range(700):
        groups.setdefault(i * 7919 % 101, []).append({"id": i, "next": [i + 1]})
    order = sorted(groups, key=lambda key: -len(groups[key]))
    return sum(row["next"][0] for key in order for row in groups[key][::2])

def do_strings():
    words = ["%d-%s" % (i, "xyz"[i % 3] * (i % 17)) for i in range(400)]
    text = ", ".join(words).upper().replace("Y", "why")
    parts = [part.strip().partition("-")[2] for part in text.split(",")]
    return len("".join(parts)) + text.count("X") + text.find("399")

TEXT = " ".join(f"user{i}@host{i % 7}.example +{i * 7919:09d};" for i in range(60))
MAIL = re.compile(r"(\w+)@(\w+(?:\.\w+)*)")
NUMBER = re.compile(r"\+0*(\d{2})(\d+)")

def do_regex():
    return len(MAIL.findall(TEXT)) + len(NUMBER.sub(r"<\2-\1>", TEXT))

ROWS = [{"id": i, "weight": i / 7, "text": f"row {i}\n", "tags": ["a", None, i]}
        for i in range(60)]

def do_json():
    return len(json.loads(json.dumps(ROWS))) + len(json.dumps(ROWS, indent=1))

WORK = {"fib": do_fib, "containers": do_containers, "strings": do_strings,
        "regex": do_regex, "json": do_json}

def run(func, units):
    total = 0
    for _ in range(units):
        total += func()
    return total

def serve(read_fd, write_fd):
    with open(read_fd) as commands:
        for line in commands:
            kind, units = line.split()
            func, units = WORK[kind], int(units)
            run(func, 1)
            os.write(write_fd, b"ready\n")
            commands.readline()
            start, cpu = time.monotonic(), time.thread_time()
            total = run(func, units)
            end, cpu = time.monotonic(), time.thread_time() - cpu
            os.write(write_fd, b"%r %r %r %d\n" % (start, end, cpu, total))
    os.close(write_fd)
'''
KINDS = ["fib", "containers", "strings", "regex", "json"]


class Failed(Exception):
    """A worker is gone, or did not do what it should."""


class Worker:
    """One end of the two pipes to a worker; start() makes the other."""

    def __init__(self):
        read_fd, self.commands = os.pipe()
        self.answers, write_fd = os.pipe()
        self.start(read_fd, write_fd)

    def send(self, line):
        os.write(self.commands, line.encode() + b"\n")

    def receive(self):
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.answers], [], [], TIMEOUT)[0]:
                raise Failed(f"{self.kind}: no answer in {TIMEOUT} s")
            part = os.read(self.answers, 200)
            if not part:
                raise Failed(f"{self.kind}: a worker ended early")
            line += part
        return line.decode().split()

    def close(self):
        os.close(self.commands)
        self.join()
        os.close(self.answers)


class InThread(Worker):
    """A thread of this interpreter."""
    kind = "threads"

    def start(self, read_fd, write_fd):
        self.thread = threading.Thread(target=self.work, daemon=True,
                                       args=(read_fd, write_fd))
        self.thread.start()

    def work(self, read_fd, write_fd):
        namespace = {}
        exec(WORKER, namespace)
        namespace["serve"](read_fd, write_fd)

    def join(self):
        self.thread.join(TIMEOUT)


class InInterpreter(InThread):
    """An interpreter of its own, in a thread of this process."""
    kind = "interpreters"

    def work(self, read_fd, write_fd):
        self.interp = _interpreters.create()
        failure = _interpreters.exec(
            self.interp, f"{WORKER}\nserve({read_fd}, {write_fd})")
        if failure is not None:
            print(failure.errdisplay, file=sys.stderr)
            os.close(write_fd)

    def join(self):
        super().join()
        _interpreters.destroy(self.interp)


class InProcess(Worker):
    """A process of another build."""
    kind = "processes"
    python = sys.executable

    def start(self, read_fd, write_fd):
        self.process = subprocess.Popen(
            [self.python, "-I", "-c",
             f"{WORKER}\nserve({read_fd}, {write_fd})"],
            pass_fds=(read_fd, write_fd))
        os.close(read_fd)
        os.close(write_fd)

    def join(self):
        self.process.wait(TIMEOUT)


def timed(workers, kind, units):
    """Let each of the workers do `units`: (seconds, CPU seconds, result)."""
    for worker in workers:
        worker.send(f"{kind} {units}")
    for worker in workers:
        worker.receive()
    for worker in workers:
        worker.send("go")
    starts, ends, cpu, results = zip(*[worker.receive() for worker in workers])
    if len(set(results)) != 1:
        raise Failed(f"{kind}: the workers disagree: {results}")
    return (max(map(float, ends)) - min(map(float, starts)),
            sum(map(float, cpu)), results[0])


def calibrate(worker, kind, seconds):
    """How many units take that long."""
    units = 1
    while (cpu := timed([worker], kind, units)[1]) < seconds / 8:
        units *= 2
    return max(1, round(units * seconds / cpu))


def one_round(groups, kind, units, count, turn):
    """Ratios of one round, and what one interpreter took."""
    runs = [(name, n) for name in groups for n in (1, count)]
    runs = runs[turn % len(runs):] + runs[:turn % len(runs)]
    took, cpu, results = {}, {}, set()
    for name, n in runs:
        took[name, n], cpu[name, n], result = timed(groups[name][:n], kind, units)
        results.add(result)
    if len(results) != 1:
        raise Failed(f"{kind}: the variants disagree: {results}")
    ratios = {name: count * took[name, 1] / took[name, count] for name in groups}
    ratios["vs"] = took["processes", count] / took["interpreters", count]
    ratios["cpu"] = count * cpu["interpreters", 1] / cpu["interpreters", count]
    ratios["one"] = took["interpreters", 1]
    return ratios


def start(workers):
    return {cls.kind: [cls() for _ in range(workers)]
            for cls in (InInterpreter, InProcess, InThread)}


def stop(groups):
    for group in groups.values():
        for worker in group:
            worker.close()


def run_round(kind, units, count, turn):
    """Print a round's ratios as JSON; runs in a process of its own."""
    groups = start(count)
    json.dump(one_round(groups, kind, units, count, turn), sys.stdout)
    stop(groups)


def child(options, *args):
    command = [sys.executable, os.path.abspath(__file__), "--stock", options.stock,
               "--workers", str(options.workers), "--run", *map(str, args)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                            timeout=TIMEOUT)
    if result.returncode:
        raise Failed(f"{' '.join(command)}: status {result.returncode}")
    return json.loads(result.stdout)


def measure(options):
    """{kind: {column: [a figure per round]}}, printed as it comes."""
    groups = start(1)
    print(f"{options.workers} workers, {os.cpu_count()} cores,"
          f" {options.rounds} rounds; this: {sys.executable};"
          f" processes: {options.stock}\n")
    print(f"{'work':12}{'one':>7}{'interps':>9}{'lo..hi':>12}"
          f"{'per cpu':>9}{'processes':>11}{'threads':>9}"
          f"{'vs procs':>10}{'lo..hi':>12}")
    table = {}
    for kind in KINDS:
        units = calibrate(groups["interpreters"][0], kind, options.seconds)
        rounds = [child(options, kind, units, turn)
                  for turn in range(options.rounds)]
        table[kind] = column = {name: [ratios[name] for ratios in rounds]
                                for name in rounds[0]}
        middle = {name: statistics.median(values)
                  for name, values in column.items()}
        spread = {name: f"{min(values):.2f}..{max(values):.2f}"
                  for name, values in column.items()}
        print(f"{kind:12}{middle['one']:7.3f}{middle['interpreters']:9.3f}"
              f"{spread['interpreters']:>12}{middle['cpu']:9.3f}"
              f"{middle['processes']:11.3f}{middle['threads']:9.3f}{middle['vs']:10.3f}"
              f"{spread['vs']:>12}", flush=True)
    stop(groups)
    return table


def judge(table, workers):
    """(what can't be, what misses the goal)"""
    odd, missed = [], []
    for kind, column in table.items():
        scale = statistics.median(column["interpreters"])
        against = statistics.median(column["vs"])
        if not 0.2 < scale < 1.5 * workers or not 0.2 < against < 5:
            odd.append(f"{kind} ({scale:.2f}, {against:.2f})")
        if scale < GOAL_SCALE * workers:
            missed.append(f"{kind}: interps {scale:.3f} < {GOAL_SCALE * workers:.3f}")
        if against < GOAL_PROCESSES:
            missed.append(f"{kind}: vs procs {against:.3f} < {GOAL_PROCESSES}")
    return odd, missed


def main():
    parser = argparse.ArgumentParser(
        description="Work per time of several interpreters against one.",
        epilog="The script's header says how to read the columns.")
    parser.add_argument("--stock", metavar="PYTHON", default=sys.executable,
                        help="the interpreter for the processes (default: this one)")
    parser.add_argument("--workers", type=int, default=2, metavar="W",
                        help="default: 2")
    parser.add_argument("--rounds", type=int, default=9, metavar="N",
                        help="default: 9")
    parser.add_argument("--seconds", type=float, default=0.7, metavar="S",
                        help="how long one worker works (default: 0.7)")
    parser.add_argument("--quick", action="store_true",
                        help="short work, two rounds: does the script work?")
    parser.add_argument("--check", action="store_true",
                        help="fail when the goal is missed")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.workers < 1:
        parser.error("--workers: at least 1")
    InProcess.python = options.stock
    if options.quick:
        options.seconds, options.rounds = 0.03, 2
    try:
        if options.run:
            kind, units, turn = options.run
            run_round(kind, int(units), options.workers, int(turn))
            return 0
        table = measure(options)
    except Failed as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    odd, missed = judge(table, options.workers)
    for line in missed:
        print("missed:", line)
    # A short run on a busy machine can give any figure.
    if odd and not options.quick:
        print("implausible:", ", ".join(odd))
        return 1
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
