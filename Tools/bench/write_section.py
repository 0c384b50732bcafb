#!/usr/bin/env python3
"""How long does a writer wait for the interpreter that it writes to?

Question.  To move an object, an interpreter takes a write section over its own
heap and the receiver's (RW-3), and the receiver has to come to a safepoint
first.  How long does that take while the receiver runs pure Python, or a mix of
Python and C, or waits?  What does a section cost that covers every heap, with
bystanders (-X rwgil=global, the plain reading of a global lock)?  And what does
one cost that needs nobody else?

Usage
    ./python Tools/bench/write_section.py [--check]
    ./python Tools/bench/write_section.py --samples 20000 --rounds 9
    ./python Tools/bench/write_section.py --smoke        # seconds
    ./python Tools/bench/write_section.py --json FILE    # for report.py

Needs the test module _testrwgil.  The machine must be otherwise idle.  With
more running interpreters than cores a writer also waits for the scheduler, so
those rows say more about the system than about the lock, and such an entry takes
milliseconds: a row ends after --seconds with the entries that it has.  Takes up to
two minutes.

How.  The main interpreter enters and leaves the section again and again, with a
random pause of 50 to 500 us between, in which it computes, and goes on only
when the other one is back at work; the clock stands around the entry alone,
inside C code.  The other interpreters run in threads.
Modes are processes, run in turn.

Baseline.  The row "waits": the other interpreter sleeps, so there is nothing to
wait for.  Stock has no such lock; what it has, a request to drop an
interpreter's lock, is answered after the switch interval of 5000 us.

Columns (all times in us)
    mode      pair: the section covers two heaps; global: all of them
    others    what the other interpreter does
                waits     sleeps, detached
                python    a loop of calls, attributes and lists
                mixed     calls into C: json, sorted, regex, big ints, 5 to 200 us each
    bystd     further interpreters, not written to, that run "python"
    entries   how many there are, of all rounds
    median    half of the entries are faster; the median over the rounds
    lo..hi    the smallest and largest of the rounds' medians
    p90, p99  the same for 90 and 99 in 100
    lo..hi    the smallest and largest of the rounds' p99
    max       the slowest of all
The plots: one line per power of two, its length the share of entries.

Goal (--check): pair, python, no bystanders: median < 50 us, p99 < 1000 us.
"""
import argparse
import _interpreters
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time

from runner import Panel, write_own

GOAL_MEDIAN, GOAL_P99 = 50, 1000
# A writer gives up its interpreter's lock in between, but is let in.
PLAUSIBLE_MEDIAN = 100_000
TIMEOUT = 600

# What the other interpreter runs until the event `stop`.
OTHERS = {
    "waits": """
rwgil.event_set(started)
rwgil.event_wait(stop)
""",
    "python": """
class Node:
    def __init__(self, value):
        self.value = value
    def add(self, other):
        return Node((self.value + other.value) % 1000003)

rwgil.event_set(started)
node = Node(1)
while not rwgil.event_is_set(stop):
    row = []
    for i in range(50):
        node = node.add(Node(i))
        row.append(node.value)
""",
    "mixed": """
import json, re
rows = [{"id": i, "text": str(i) * 3} for i in range(40)]
word = re.compile(r"[a-z]+(\\\\d+)")
text = " ".join(f"abc{i}" for i in range(300))

rwgil.event_set(started)
while not rwgil.event_is_set(stop):
    json.loads(json.dumps(rows))
    sorted(range(2000), key=lambda i: -i % 17)
    word.findall(text)
    pow(3, 4001, 10 ** 300 + 7)
    [i for i in range(500)]
""",
}
# (mode, others, bystanders)
SCENES = [
    ("pair", "waits", 0), ("pair", "python", 0), ("pair", "mixed", 0),
    ("pair", "python", 1), ("pair", "python", 3),
    ("global", "waits", 0), ("global", "python", 0), ("global", "mixed", 0),
    ("global", "python", 1), ("global", "python", 3),
]
SMOKE = [("pair", "python", 0), ("global", "python", 1)]
PLOTTED = [("pair", "python", 0), ("pair", "mixed", 0), ("global", "python", 3)]


# --- One process, one scene --------------------------------------------------

class Other:
    """An interpreter that runs one of OTHERS in a thread of its own."""

    def __init__(self, rwgil, kind):
        self.rwgil, self.stop = rwgil, rwgil.event_new()
        started = rwgil.event_new()
        self.id = _interpreters.create()
        code = (f"import _testrwgil as rwgil\n"
                f"started, stop = {started}, {self.stop}\n{OTHERS[kind]}")
        self.thread = threading.Thread(target=self.run, args=(code,))
        self.thread.start()
        rwgil.event_wait(started)

    def run(self, code):
        failure = _interpreters.exec(self.id, code)
        if failure is not None:
            print(failure.errdisplay, file=sys.stderr)
            os._exit(1)

    def close(self):
        self.rwgil.event_set(self.stop)
        self.thread.join()
        _interpreters.destroy(self.id)


def compute_for(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def run_scene(kind, bystanders, samples, seconds):
    """Print the waits in ns as JSON; runs in a process with the right mode."""
    import _testrwgil as rwgil
    other = Other(rwgil, kind)
    crowd = [Other(rwgil, "python") for _ in range(bystanders)]
    pause = random.Random(samples)
    waits, heaps = [], set()
    end = time.monotonic() + seconds
    while len(waits) < samples and (not waits or time.monotonic() < end):
        compute_for(pause.uniform(50e-6, 500e-6))
        while kind != "waits" and not rwgil.state(other.id)["reading"]:
            pass
        wait, words = rwgil.write(other.id)
        waits.append(wait)
        heaps.add(words)
    for interp in [other, *crowd]:
        interp.close()
    json.dump({"waits": waits, "heaps": sorted(heaps),
               "mode": rwgil.mode(), "lost": rwgil.lost_updates()}, sys.stdout)


def run_own(samples):
    """ns per call of a section over the own heap, and of a call that does nothing."""
    import _testrwgil as rwgil
    loop = range(samples)
    begin = time.perf_counter_ns()
    for _ in loop:
        rwgil.write(None)
    middle = time.perf_counter_ns()
    for _ in loop:
        rwgil.event_is_set(0)
    end = time.perf_counter_ns()
    json.dump([(middle - begin) / samples, (end - middle) / samples], sys.stdout)


# --- All of them -------------------------------------------------------------

class Failed(Exception):
    pass


def child(mode, *args):
    command = [sys.executable, "-X", f"rwgil={mode}",
               os.path.abspath(__file__), "--run", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True,
                            timeout=TIMEOUT)
    if result.returncode:
        raise Failed(f"{' '.join(command)}: status {result.returncode}\n"
                     f"{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def scene(mode, kind, bystanders, options):
    answer = child(mode, kind, bystanders, options.samples, options.seconds)
    # "all": -1, whatever the number of heaps
    expected = [2] if mode == "pair" else [-1]
    if (answer["mode"], answer["heaps"], answer["lost"]) != (mode, expected, 0):
        raise Failed(f"{mode}, {kind}: not the sections that were asked for:"
                     f" mode {answer['mode']}, heaps {answer['heaps']},"
                     f" lost updates {answer['lost']}")
    return sorted(wait / 1000 for wait in answer["waits"])


def percentile(waits, share):
    return waits[min(len(waits) - 1, int(len(waits) * share))]


def bounds(values, digits):
    return f"{min(values):.{digits}f}..{max(values):.{digits}f}"


def report(name, rounds):
    medians, p90s, p99s = ([percentile(waits, share) for waits in rounds]
                           for share in (0.5, 0.9, 0.99))
    figures = [statistics.median(values) for values in (medians, p90s, p99s)]
    print(f"{name[0]:7}{name[1]:8}{name[2]:6}"
          f"{sum(map(len, rounds)):9}{figures[0]:8.1f}{bounds(medians, 1):>14}"
          f"{figures[1]:9.1f}{figures[2]:9.1f}{bounds(p99s, 0):>14}"
          f"{max(waits[-1] for waits in rounds):9.0f}")
    return figures[0], figures[2]


def plot(name, rounds):
    waits = [wait for part in rounds for wait in part]
    counts = {}
    for wait in waits:
        bucket = max(0, int(wait * 10)).bit_length()
        counts[bucket] = counts.get(bucket, 0) + 1
    print(f"\n{name[0]}, {name[1]}, {name[2]} bystanders"
          f" ({len(waits)} entries), us below")
    for bucket in range(min(counts), max(counts) + 1):
        share = counts.get(bucket, 0) / len(waits)
        print(f"{2 ** bucket / 10:10.1f} {share:7.2%} {'#' * round(share * 60)}")


def measure(options):
    scenes = SMOKE if options.smoke else SCENES
    results = {name: [] for name in scenes}
    own = []
    for number in range(options.rounds):
        for name in scenes:
            results[name].append(scene(*name, options))
        own.append(child("pair", "own", 0, options.samples * 20, 0))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print(f"{os.cpu_count()} cores, {options.rounds} rounds of up to"
          f" {options.samples} entries; {os.path.relpath(sys.executable)}\n")
    print(f"{'mode':7}{'others':8}{'bystd':>6}{'entries':>9}{'median':>8}{'lo..hi':>14}"
          f"{'p90':>9}{'p99':>9}{'lo..hi':>14}{'max':>9}")
    figures = {name: report(name, results[name]) for name in scenes}
    section, call = ([pair[i] for pair in own] for i in (0, 1))
    print(f"\nown section, call included: {statistics.median(section):.0f} ns"
          f" ({bounds(section, 0)}); a call that does nothing:"
          f" {statistics.median(call):.0f} ns ({bounds(call, 0)})")
    for name in scenes:
        if name in PLOTTED:
            plot(name, results[name])
    write(options.json, results)
    return figures


def write(path, results):
    panels = {share: Panel(f'Waiting for the write side: {what}',
                           'what the others do', y_label='wait')
              for share, what in ((0.5, 'median'), (0.99, '99 of 100 wait less'))}
    write_own(path, __file__, [
        (panel, f'{kind}, {bystanders} bystanders' if bystanders else kind, mode,
         [[max(percentile(waits, share), 0.001) / 1e6] for waits in rounds])
        for share, panel in panels.items()
        for (mode, kind, bystanders), rounds in results.items()])


def main():
    parser = argparse.ArgumentParser(
        description="Time to enter a write section, by what the others do.",
        epilog="The script's header says how to read the columns.")
    parser.add_argument("--samples", type=int, default=4000, metavar="N",
                        help="entries per row and round (default: 4000)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S",
                        help="for a row in a round at most (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N",
                        help="default: 5")
    parser.add_argument("--json", metavar="FILE",
                        help="write the results, in the format of pyperf")
    parser.add_argument("--smoke", action="store_true",
                        help="two rows, few entries: does the script work?")
    parser.add_argument("--check", action="store_true",
                        help="fail when the goal is missed")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        kind, bystanders, samples, seconds = options.run
        if kind == "own":
            run_own(int(samples))
        else:
            run_scene(kind, int(bystanders), int(samples), float(seconds))
        return 0
    if options.smoke:
        options.samples, options.rounds = 200, 1
    try:
        figures = measure(options)
    except Failed as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    median, p99 = figures["pair", "python", 0]
    if not 0 < median < PLAUSIBLE_MEDIAN:
        print(f"implausible: median {median:.1f} us")
        return 1
    if median >= GOAL_MEDIAN or p99 >= GOAL_P99:
        print(f"missed: median {median:.1f} us of {GOAL_MEDIAN},"
              f" p99 {p99:.1f} us of {GOAL_P99}")
        return 1 if options.check else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
