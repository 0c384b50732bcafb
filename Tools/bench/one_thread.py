#!/usr/bin/env python3
"""What does one thread pay for the RW-GIL?

Question.  Programs that never make a second interpreter should not notice that
the lock was taken apart.  Time is too noisy to show half a percent, so this
counts the instructions that each workload executes (user mode), which comes
out the same each time, but for hand-overs between threads.

Usage
    ./python Tools/bench/one_thread.py --stock build/stock/obj/python [--check]
    ./python Tools/bench/one_thread.py --stock ... --only dicts,reads --repeat 3
    ./python Tools/bench/one_thread.py --smoke           # two workloads, tiny

Needs valgrind (Debian: valgrind).  Takes about three minutes.  The two builds
should lie at paths of the same length: starting up handles every character.

Baseline.  --stock: the unpatched release, built from the same tarball by the
same compiler with the same flags.  Without it this build is compared with
itself, which shows the noise.  --stock-malloc NAME sets PYTHONMALLOC for stock,
to set the cost of another allocator apart from that of the lock.

Columns
    workload  what runs; a * marks those that do little but drop and take the lock
    units     how often its unit of work runs
    stock     million instructions of stock for it, without those that starting
              up and importing take ("startup" itself: all of them)
    this      the same of this build
    per unit  instructions that a unit takes here more than on stock
    ratio     this / stock: 1.0000 is no difference, more is slower
    spread    (most - least) / median over the repeats, the larger of the two
              builds; 0 when every repeat came to the same count

Goal (--check): every ratio at most 1.005.  Rows with a * do little but drop and
take the lock, so they show the cost of the read side alone.
"""
import argparse
import json
import math
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import threading

GOAL = 1.005
# Beyond this the two builds can't have had the same flags.
PLAUSIBLE = (0.5, 2.0)
FLAGS = ["-s", "-P"]
TIMEOUT = 900

# --- Workloads ---------------------------------------------------------------
#
# workload(units) runs in a process of its own.  WORKLOADS has for each how many
# units come to about 10**8 instructions.

WORKLOADS = {}
LOCKING = {"reads", "handovers"}


def workload(units):
    def register(func):
        WORKLOADS[func.__name__] = (func, units)
        return func
    return register


class Device:
    """A party of the `tasks` workload: takes messages, passes on others."""

    def __init__(self, name):
        self.name = name
        self.inbox = []
        self.handled = 0
        self.peer = None

    def accept(self, message):
        self.inbox.append(message)

    def ready(self):
        return bool(self.inbox)

    def step(self):
        message = self.inbox.pop()
        self.handled += 1
        self.handle(message)


class Echo(Device):
    def handle(self, message):
        message.hops += 1
        self.peer.accept(message)


class Counter(Device):
    total = 0

    def handle(self, message):
        self.total += message.value
        message.hops += 1
        if message.hops % 3:
            self.peer.accept(message)
        else:
            self.peer.peer.accept(message)


class Splitter(Device):
    def handle(self, message):
        half = message.value // 2
        message.value -= half
        message.hops += 1
        self.peer.accept(message)
        if half > 1000:
            self.peer.accept(Message(half))


class Message:
    def __init__(self, value):
        self.value = value
        self.hops = 0


@workload(60)
def tasks(units):
    """Method calls and attributes, as in richards: parties that send messages."""
    for _ in range(units):
        ring = [Echo("a"), Counter("b"), Splitter("c"), Counter("d")]
        for device, peer in zip(ring, ring[1:] + ring[:1]):
            device.peer = peer
        for i in range(6):
            ring[i % 4].accept(Message(4000 + i))
        steps = 0
        while steps < 1000:
            for device in ring:
                if device.ready():
                    device.step()
                    steps += 1


class Cell:
    """A value that other cells are computed from; see `constraints`."""

    def __init__(self, value=0):
        self.value = value
        self.users = []
        self.mark = 0


class Constraint:
    def __init__(self, inputs, output):
        self.inputs = inputs
        self.output = output
        for cell in inputs:
            cell.users.append(self)

    def satisfied(self):
        return self.output.value == self.compute()

    def enforce(self):
        self.output.value = self.compute()


class Equal(Constraint):
    def compute(self):
        return self.inputs[0].value


class Scaled(Constraint):
    def compute(self):
        scale, offset = 3, 7
        return (self.inputs[0].value * scale + offset) % 10007


class Sum(Constraint):
    def compute(self):
        return sum(cell.value for cell in self.inputs) % 10007


@workload(45)
def constraints(units):
    """Small methods on a graph of objects, as in deltablue."""
    cells = [Cell() for _ in range(300)]
    for i in range(1, len(cells)):
        if i % 7 == 0:
            Sum([cells[i - 1], cells[i // 2]], cells[i])
        elif i % 2:
            Equal([cells[i - 1]], cells[i])
        else:
            Scaled([cells[i - 1]], cells[i])
    for round in range(1, units + 1):
        for source in (0, 50, 150):
            cells[source].value = round * 31 + source
            plan = [cells[source]]
            while plan:
                cell = plan.pop()
                if cell.mark == round * 1000 + source:
                    continue
                cell.mark = round * 1000 + source
                for user in cell.users:
                    if not user.satisfied():
                        user.enforce()
                    plan.append(user.output)


@workload(2_500)
def nbody(units):
    """Float arithmetic on lists."""
    bodies = [[math.cos(i), math.sin(i), i / 10, 0.0, 0.0, 0.0, 1.0 + i]
              for i in range(6)]
    dt = 0.001
    for _ in range(units):
        for i, a in enumerate(bodies):
            for b in bodies[i + 1:]:
                dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
                pull = dt / (dx * dx + dy * dy + dz * dz + 0.01) ** 1.5
                for axis, d in ((3, dx), (4, dy), (5, dz)):
                    a[axis] -= d * b[6] * pull
                    b[axis] += d * a[6] * pull
        for body in bodies:
            for axis in range(3):
                body[axis] += dt * body[axis + 3]


DOCUMENT = {
    "name": "a document",
    "tags": ["one", "two", "thr\u00e9e", None, True],
    "rows": [{"id": i, "weight": i / 7, "text": f"row {i}\n", "sub": [i] * 5}
             for i in range(40)],
}


@workload(250)
def json_both_ways(units):
    for _ in range(units):
        assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


@workload(550)
def pickle_both_ways(units):
    for _ in range(units):
        assert pickle.loads(pickle.dumps(DOCUMENT, 5)) == DOCUMENT


@workload(200)
def regex(units):
    text = " ".join(f"user{i}@host{i % 7}.example, +{i * 7919:09d};"
                    for i in range(60))
    mail = re.compile(r"(\w+)@(\w+(?:\.\w+)*)")
    number = re.compile(r"\+0*(\d{2})(\d+)")
    for _ in range(units):
        assert len(mail.findall(text)) == 60
        number.sub(r"<\2-\1>", text)
        re.split(r"[,;]\s*", text)


@workload(260)
def strings(units):
    for n in range(units):
        parts = []
        for i in range(100):
            word = "item-%d" % (i + n)
            parts.append(word.upper() + f"[{i:>4}|{word!r}]")
        text = ", ".join(parts)
        text = text.replace("ITEM", "\u00eft\u00e9m").title()
        for line in text.split(", "):
            line.strip("[]").partition("|")


@workload(280)
def dicts(units):
    for n in range(units):
        table = {}
        for i in range(400):
            table[(i * 7919 + n) % 1009] = i
        for i in range(0, 1009, 3):
            table.pop(i, None)
        names = {str(key): value for key, value in table.items()}
        names.update(a=1, b=2)
        sorted(names)


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y


class Slotted:
    __slots__ = ("left", "right")


@workload(200)
def objects(units):
    """Creation and collection of objects, cycles among them."""
    for _ in range(units):
        points = [Point(i, -i) for i in range(400)]
        for point in points[::4]:
            point.extra = [point]
        pairs = [Slotted() for _ in range(300)]
        for pair, point in zip(pairs, points):
            pair.left, pair.right = point, (point.x, [point.y])


@workload(500)
def exceptions(units):
    def fail(depth):
        if depth == 0:
            raise KeyError("deep")
        try:
            fail(depth - 1)
        except ValueError:
            raise AssertionError

    for _ in range(units):
        for depth in range(20):
            try:
                fail(depth)
            except KeyError as exc:
                exc.add_note("caught")
            try:
                int("x")
            except ValueError:
                pass


@workload(280)
def generators(units):
    def walk(low, high):
        if low < high:
            middle = (low + high) // 2
            yield from walk(low, middle)
            yield middle
            yield from walk(middle + 1, high)

    for _ in range(units):
        assert sum(x * x for x in walk(0, 300)) == 8955050


@workload(80_000)
def reads(units):
    """Each read drops the lock and takes it again."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    for _ in range(units):
        os.read(fd, 1)
    os.close(fd)


@workload(2_000)
def handovers(units):
    """Two threads that wait for each other in turn."""
    ping, pong = threading.Lock(), threading.Lock()
    ping.acquire()
    pong.acquire()

    def answer():
        for _ in range(units):
            ping.acquire()
            pong.release()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(units):
        ping.release()
        pong.acquire()
    thread.join()


@workload(0)
def nothing(units):
    """What all the others contain: starting up and importing."""


# --- Counting ----------------------------------------------------------------

class Build:
    """An interpreter whose instructions are counted."""

    def __init__(self, python, cache, malloc=None):
        self.python = python
        self.env = {name: value for name, value in os.environ.items()
                    if not name.startswith("PYTHON")}
        self.env["PYTHONHASHSEED"] = "0"
        self.env["PYTHONPYCACHEPREFIX"] = cache
        # valgrind counts every byte of a "rep stosb"; a processor doesn't.
        self.env["GLIBC_TUNABLES"] = ("glibc.cpu.x86_rep_stosb_threshold=1000000000:"
                                      "glibc.cpu.x86_rep_movsb_threshold=1000000000")
        if malloc:
            self.env["PYTHONMALLOC"] = malloc
        # From now on no source but this file is compiled.
        for name in ("startup", "nothing"):
            self.execute([python, *self.args(name, 0)])
        self.base = self.count("nothing", 0)

    def args(self, name, units):
        if name == "startup":
            return [*FLAGS, "-c", "pass"]
        return [*FLAGS, "-S", os.path.abspath(__file__), "--run", name, str(units)]

    def execute(self, command):
        result = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=TIMEOUT)
        if result.returncode:
            sys.exit(f"{' '.join(command)}: status {result.returncode}\n"
                     f"{result.stderr[-2000:]}")
        return result.stderr

    def count(self, name, units):
        """Instructions of one run."""
        log = self.execute(["valgrind", "--tool=callgrind",
                            "--callgrind-out-file=/dev/null",
                            self.python, *self.args(name, units)])
        return int(re.search(r"Collected *: *(\d+)", log)[1])

    def counts(self, name, units, repeat):
        """Of a workload alone, for each repeat."""
        base = 0 if name == "startup" else self.base
        return [self.count(name, units) - base for _ in range(repeat)]


def spread(counts):
    return (max(counts) - min(counts)) / statistics.median(counts)


def compare(options, names, cache):
    print(f"stock: {options.stock}", f"(PYTHONMALLOC={options.stock_malloc})"
          if options.stock_malloc else "")
    print(f"this:  {sys.executable}\n")
    builds = [Build(options.stock, cache, options.stock_malloc),
              Build(sys.executable, cache)]
    print(f"{'workload':18}{'units':>8}{'stock':>10}{'this':>10}"
          f"{'per unit':>10}{'ratio':>9}{'spread':>9}")
    ratios = {}
    for name in names:
        units = 1 if name == "startup" else WORKLOADS[name][1]
        if options.smoke:
            units = max(units // 20, 1)
        star = "*" if name in LOCKING else ""
        # Which thread comes first is chance.
        repeat = max(options.repeat, 5) if name == "handovers" else options.repeat
        counts = [build.counts(name, units, repeat) for build in builds]
        stock, this = map(statistics.median, counts)
        ratios[name] = this / stock
        print(f"{name + star:18}{units:8}{stock / 1e6:10.2f}{this / 1e6:10.2f}"
              f"{(this - stock) / units:10.1f}{this / stock:9.4f}"
              f"{max(map(spread, counts)):9.5f}", flush=True)
    print(f"\ngeometric mean    {statistics.geometric_mean(ratios.values()):.4f}"
          f"\nlargest           {max(ratios.values()):.4f}")
    return ratios


def main():
    parser = argparse.ArgumentParser(
        description="Instructions of one-thread workloads, against stock.",
        epilog="The script's header says how to read the columns.")
    parser.add_argument("--stock", metavar="PYTHON", default=sys.executable,
                        help="the interpreter to compare with (default: this one)")
    parser.add_argument("--stock-malloc", metavar="NAME",
                        help="PYTHONMALLOC for it")
    parser.add_argument("--only", metavar="NAME,...",
                        help="some of: startup, " + ", ".join(list(WORKLOADS)[:-1]))
    parser.add_argument("--repeat", type=int, default=1, metavar="N",
                        help="runs of each (default: 1; handovers at least 5)")
    parser.add_argument("--smoke", action="store_true",
                        help="two workloads, small: does the script work?")
    parser.add_argument("--check", action="store_true",
                        help="fail when the goal is missed")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        WORKLOADS[options.run[0]][0](int(options.run[1]))
        return 0

    names = ["startup", *WORKLOADS]
    names.remove("nothing")
    if options.smoke:
        names = ["dicts", "reads"]
    if options.only:
        names = options.only.split(",")
        if unknown := set(names) - {"startup", *WORKLOADS}:
            parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as cache:
        ratios = compare(options, names, cache)
    odd = [f"{name} {ratio:.3f}" for name, ratio in ratios.items()
           if not PLAUSIBLE[0] < ratio < PLAUSIBLE[1]]
    if odd:
        print("implausible:", ", ".join(odd))
        return 1
    missed = [f"{name} {ratio:.4f}" for name, ratio in ratios.items()
              if ratio > GOAL]
    if missed:
        print("over the goal:", ", ".join(missed))
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
