#!/usr/bin/env python3
"""How fast is this Python in pyperformance, against stock?

    make pyperformance                          # both builds, then the whole suite
    python Tools/bench/pyperformance_compare.py --this build/obj/python \\
        --against build/stock/obj/python [--benchmarks json_loads,richards]

Question   What does one thread of an ordinary program pay or gain, in time and memory?
Method     Pairs: one process of each build, right after each other, with the same hash
           seed and number of loops; the next pair has the other order and the next
           seed.  Each process warms up and gives up to three values, the smallest
           counts: a disturbance only adds.  One pair of every benchmark, then the next
           of every benchmark, till it is known whether the benchmark is more than 3 %
           slower, or --minutes are over.
Baseline   Stock CPython 3.13.5 from the same tarball, with PGO and LTO as the base has them.
           Ours has other training and a flag more ("Flags" in Doc/internals/measurements.rst);
           rm -r build/obj-optimised, then PROFILE_TASK="-m test --pgo --timeout=1200"
           PROFILE_FLAGS= make optimised, makes equal ones.
Reading    speed: against / this, above 1 this one is faster; then an interval that has
           the true value in it with 95 % probability.  clock: what is compared, CPU time,
           or elapsed time if the program waits for half of it or more.  elapsed: the
           same by elapsed time in any case.  memory: this / against, of the peak of resident memory.
           "slower": all of the interval is below 1 / 1.03.  "?": it is not known yet.

The two of a pair meet the same noise, so the logarithm of their quotient is distributed
evenly around that of the true one, whatever the noise looks like.  For that case the
Hodges-Lehmann estimator (the median of all means of two pairs) and Wilcoxon's interval are
exact; they need 6 pairs.  Looking again and again, and at a hundred benchmarks, makes
errors more frequent than 5 in 100; that someone is called slower without being it is still
rare, since it takes an interval that lies 3 % off.

--inside 1 runs the workers of "this" in a subinterpreter, --inside 2 in two of them at
once, each with a whole worker (the first one's times count): with the same build as
--against that is the price of a subinterpreter, or of a busy neighbour.

Put "taskset -c 1 chrt -r 10" before the command on a machine that others use, too (nice
does nothing between sessions where sched_autogroup_enabled is 1).
Results are kept in --out: to go on after an interruption, or for longer, repeat the command.
Takes about an hour.
"""
import argparse
import functools
import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = ["pyperformance==1.14.0", "pyperf==2.11.0", "psutil", "setuptools<81"]   # django: distutils
ROLES = ["against", "this"]
SLOWER = 1 / 1.03           # the goal: no benchmark is slower than this
CONFIDENCE = 0.95           # of all intervals
CPU_BOUND = 0.5             # best CPU time per elapsed time, from which on CPU time is compared
PROCESS_SECONDS = 0.4       # what the values of one process may take
LONG = 1.0                  # from so many seconds for one loop on, no warm-up

LIST = """
import json, sys
from pyperformance import _manifest
json.dump({b.name: [b.runscript, *(b.extra_opts or ())]
           for b in _manifest.load_manifest(None).benchmarks}, sys.stdout)
"""


def log(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def environment(seed=0):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env["PYTHONHASHSEED"] = str(seed)
    return env


# --- Running -------------------------------------------------------------------

class Failed(Exception):
    pass


class Build:
    """One of the two Pythons, with a venv of its own."""

    def __init__(self, role, python, out, inside=0):
        self.role, self.inside = role, inside
        self.python = pathlib.Path(python).resolve()
        self.out = out
        self.venv = out / f"venv-{role}"
        self.venv_python = self.venv / "bin" / "python"

    def prepare(self):
        mark = self.venv / "made-for"
        if mark.exists() and mark.read_text() == str(self.python):
            return
        log(f"venv for {self.role}: {self.python}")
        subprocess.run([self.python, "-m", "venv", "--clear", self.venv], check=True,
                       env=environment())
        if why := self.pip(*PACKAGES):
            sys.exit(why)
        mark.write_text(str(self.python))

    def pip(self, *args):
        """Install; return why that did not work, or None."""
        done = subprocess.run(
            [self.venv_python, "-m", "pip", "install", "-q", "--disable-pip-version-check",
             *args], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.stderr.strip().splitlines()[-1] if done.returncode else None

    @functools.cached_property
    def commands(self):
        """{benchmark: [script, its options...]}

        Each build has its own: coverage asks whether a file belongs to a library."""
        found = subprocess.run([self.venv_python, "-c", LIST], check=True,
                               capture_output=True, text=True, env=environment())
        return json.loads(found.stdout)

    def require(self, name):
        """Install what a benchmark needs.  Return why that isn't to be had, or None."""
        wanted = pathlib.Path(self.commands[name][0]).parent / "requirements.txt"
        if not wanted.exists():
            return None
        mark = self.venv / f"has-{wanted.parent.name}"
        if not mark.exists():
            mark.write_text(self.pip("-r", wanted) or "")
        return mark.read_text() or None

    def work(self, name, task, options, limit, seed=0):
        """Run one worker; return what pyperf_worker.py found."""
        file = self.out / "worker.json"
        file.unlink(missing_ok=True)
        script, *more = self.commands[name]
        argv = [self.venv_python, HERE / "pyperf_worker.py", f"--inside={self.inside}",
                "--out", file, script, *more, "--worker", f"--worker-task={task}", *options]
        try:
            done = subprocess.run(argv, env=environment(seed), cwd=self.out, timeout=limit,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.role}: more than {limit:.0f} s") from None
        if done.returncode or not file.exists():
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Failed(f"{self.role}: {lines[-1] if lines else done.returncode}")
        return json.loads(file.read_text())


class Row:
    """A benchmark as pyperf sees it (a script can have several), and how it is run."""

    def __init__(self, benchmark, plan, out):
        self.benchmark, self.plan = benchmark, plan
        self.name = plan["name"]
        self.file = out / "runs" / f"{self.name}.jsonl"
        self.pairs = []
        if self.file.exists():
            self.pairs = [json.loads(line) for line in self.file.read_text().splitlines()]

    def measure(self, builds, limit):
        """One more pair."""
        number = len(self.pairs)
        plan = self.plan
        options = [f"-w{plan['warmups']}", f"-n{plan['values']}", f"-l{plan['loops']}"]
        pair = {}
        for build in builds if number % 2 else builds[::-1]:
            found = build.work(self.benchmark, plan["task"], options, limit, seed=number)
            values = [(wall / loops, None if cpu is None else cpu / loops)
                      for loops, wall, cpu in found["calls"][plan["warmups"]:]]
            pair[build.role] = {"values": values, "memory": found["memory"]}
        self.pairs.append(pair)
        self.file.parent.mkdir(exist_ok=True)
        with open(self.file, "a") as file:
            print(json.dumps(pair), file=file)


def plan_benchmark(build, benchmark, limit):
    """[how to run it] for each benchmark of a script: loops of 0.1 s or more."""
    plans = []
    while True:
        found = build.work(benchmark, len(plans), ["-w0", "-n1", "--calibrate-loops"], limit)
        if not found["calls"]:
            return plans
        loops, wall, _ = found["calls"][-1]
        plans.append({"name": found["name"], "task": len(plans), "loops": loops,
                      "values": min(3, max(1, round(PROCESS_SECONDS / wall))),
                      "warmups": int(wall < LONG)})


def plan_all(build, names, options):
    """{benchmark: its plans, or why it can't be run}; kept from the last time."""
    file = options.out / "plan.json"
    plans = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        if not isinstance(plans.get(name), list):
            try:
                plans[name] = plan_benchmark(build, name, options.limit)
            except Failed as exc:
                plans[name] = str(exc)
            log(f"planned {name}: {plans[name]}")
            file.write_text(json.dumps(plans, indent=1))
    return plans


def measure_all(options):
    builds = [Build("against", options.against, options.out),
              Build("this", options.this, options.out, options.inside)]
    options.out.mkdir(parents=True, exist_ok=True)
    for build in builds:
        build.prepare()
    known = builds[0].commands
    names = options.benchmarks.split(",") if options.benchmarks else list(known)
    if unknown := set(names) - set(known):
        sys.exit(f"no such benchmark: {' '.join(unknown)}; there are: {' '.join(known)}")
    left_out = {}
    for name in names:
        for build in builds:
            if why := build.require(name):
                left_out[name] = why
    if not options.prepare_only:
        plans = plan_all(builds[0], [name for name in names if name not in left_out], options)
        rows = []
        for name in names:
            if isinstance(plans.get(name), list):
                rows += [Row(name, plan, options.out) for plan in plans[name]]
            elif name in plans:
                left_out[name] = plans[name]
        measure_rows(rows, builds, left_out, options)
    for name, why in left_out.items():
        log(f"left out: {name}: {why}")


def measure_rows(rows, builds, left_out, options):
    """A pair of each, again and again, until all are decided or time is over."""
    last = time.monotonic()
    deadline = last + 60 * options.minutes
    while True:
        undecided = [row for row in rows if row.benchmark not in left_out
                     and not Judged(row).decided(options.pairs)]
        if not undecided:
            return
        for row in sorted(undecided, key=lambda row: len(row.pairs)):
            now = time.monotonic()
            if now > deadline:
                return
            if now - last > 20:
                last = now
                log(f"{len(undecided)} of {len(rows)} are not decided; pair {len(row.pairs) + 1} of "
                    f"{row.name}; {(deadline - now) / 60:.0f} minutes left")
            try:
                row.measure(builds, options.limit)
            except Failed as exc:
                left_out[row.benchmark] = str(exc)
                log(f"{row.name}: {exc}")


# --- Statistics ------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def rank_sums_beyond(n, chance):
    """How many of the smallest rank sums of n pairs come up with at most this probability."""
    ways = [1]
    for rank in range(1, n + 1):
        ways = [a + b for a, b in zip(ways + [0] * rank, [0] * rank + ways)]
    total, limit = 0, chance * 2 ** n
    for rank_sum, count in enumerate(ways):
        total += count
        if total > limit:
            return rank_sum
    return len(ways)


def estimate(differences, confidence=CONFIDENCE):
    """(low, estimate, high) of what the differences are symmetrical around."""
    n = len(differences)
    means = sorted((differences[i] + differences[j]) / 2 for i in range(n) for j in range(i, n))
    beyond = rank_sums_beyond(n, (1 - confidence) / 2)
    if not beyond:
        return -math.inf, statistics.median(means), math.inf
    return means[beyond - 1], statistics.median(means), means[-beyond]


class Judged:
    """What the pairs of a row say."""

    def __init__(self, row):
        self.name, self.pairs = row.name, row.pairs
        self.verdict = "?"
        if not self.pairs:
            return
        values = [value for pair in self.pairs for role in ROLES for value in pair[role]["values"]]
        # The best: others may have taken the core from the rest.
        self.cpu = (all(cpu is not None for _, cpu in values)
                    and max(cpu / wall for wall, cpu in values) >= CPU_BOUND)
        self.elapsed = math.exp(self.logs(0)[1])
        self.logarithms = self.logs(int(self.cpu))
        self.low, self.speed, self.high = map(math.exp, self.logarithms)
        self.memory = statistics.median(pair["this"]["memory"] / pair["against"]["memory"]
                                        for pair in self.pairs)
        if self.low > SLOWER:
            self.verdict = ""
        elif self.high < SLOWER:
            self.verdict = "slower"

    def logs(self, clock):
        return estimate([math.log(min(value[clock] for value in pair["against"]["values"])
                                  / min(value[clock] for value in pair["this"]["values"]))
                         for pair in self.pairs])

    def decided(self, pairs):
        return len(self.pairs) >= pairs and self.verdict != "?"


def mean_of(rows):
    """(low, mean, high): the geometric mean of the speeds."""
    known = [row for row in rows if math.isfinite(row.logarithms[0])]
    if not known:
        return 0.0, statistics.geometric_mean(row.speed for row in rows), math.inf
    mean = statistics.mean(row.logarithms[1] for row in known)
    # The rows' errors are independent of each other.
    half = math.hypot(*((row.logarithms[2] - row.logarithms[0]) / 2 for row in known)) / len(known)
    return tuple(math.exp(mean + sign * half) for sign in (-1, 0, 1))


# --- The table ---------------------------------------------------------------------

def bound(number):
    return f"{number:>8.3f}" if 0 < number < math.inf else f"{'':>8}"


def report(out, only=()):
    """The table, and what make bench-report reads."""
    plans = json.loads((out / "plan.json").read_text())
    rows = [Judged(Row(name, plan, out)) for name, benchmarks in plans.items()
            if isinstance(benchmarks, list) and (not only or name in only)
            for plan in benchmarks]
    rows = sorted((row for row in rows if row.pairs), key=lambda row: row.speed)
    if not rows:
        log("nothing has been measured")
        return 1
    print(f"{'benchmark':<33}{'speed':>8}{'low':>8}{'high':>8}  {'clock':<8}{'elapsed':>8}"
          f"{'memory':>8}{'pairs':>6}")
    for row in rows:
        print(f"{row.name:<33}{row.speed:>8.3f}{bound(row.low)}{bound(row.high)}"
              f"  {'CPU' if row.cpu else 'elapsed':<8}{row.elapsed:>8.3f}{row.memory:>8.3f}"
              f"{len(row.pairs):>6}  {row.verdict}".rstrip())
    low, mean, high = mean_of(rows)
    slower, unknown = ([row.name for row in rows if row.verdict == verdict]
                       for verdict in ("slower", "?"))
    memory = statistics.geometric_mean(row.memory for row in rows)
    most = max(rows, key=lambda row: row.memory)
    print(f"\n{len(rows)} benchmarks; {sum(len(row.pairs) for row in rows)} pairs\n"
          f"speed, geometric mean: {mean:.4f}, {CONFIDENCE:.0%} interval {low:.4f} to {high:.4f};"
          f" of elapsed time {statistics.geometric_mean(row.elapsed for row in rows):.4f}\n"
          f"more than 3 % slower: {' '.join(slower) or 'none'}\n"
          f"not decided: {' '.join(unknown) or 'none'}\n"
          f"memory, geometric mean: {memory:.4f}; the most {most.memory:.4f}, {most.name}")
    (out / "table.json").write_text(json.dumps(
        {"rows": [{"name": row.name, "speed": row.speed, "low": row.low, "high": row.high,
                   "elapsed": row.elapsed, "memory": row.memory, "pairs": len(row.pairs),
                   "clock": "CPU" if row.cpu else "elapsed"} for row in rows],
         "mean": [low, mean, high], "memory": memory, "date": time.strftime("%Y-%m-%d"),
         "command": shlex.join(sys.argv)}, indent=1))
    return 0


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--this", default="build/obj-optimised/python", metavar="PYTHON")
    parser.add_argument("--against", default="build/stock/obj-optimised/python", metavar="PYTHON")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR",
                        default="build/bench/pyperformance")
    parser.add_argument("--benchmarks", metavar="NAMES", default="",
                        help="comma-separated (default: all)")
    parser.add_argument("--minutes", type=float, default=60,
                        help="for measuring; a longer list of pairs is begun, not ended (default 60)")
    parser.add_argument("--pairs", type=int, default=6,
                        help="of processes, at least (default 6)")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS",
                        help="for one process (default 300)")
    parser.add_argument("--inside", type=int, choices=(0, 1, 2), default=0)
    parser.add_argument("--smoke", action="store_true",
                        help="one pair of one benchmark, to see that it works")
    parser.add_argument("--prepare-only", action="store_true",
                        help="install what the benchmarks need")
    parser.add_argument("--report-only", action="store_true",
                        help="print the table of what is there")
    options = parser.parse_args()
    options.out = options.out.resolve()
    if options.smoke:
        options.benchmarks = options.benchmarks or "xml_etree"
        options.pairs, options.minutes = 1, 0.05
    for python in options.this, options.against:
        if not options.report_only and not os.access(python, os.X_OK):
            parser.error(f"{python} isn't there: 'make optimised' builds it")
    return options


def main():
    options = parse_args()
    if not options.report_only:
        measure_all(options)
    if options.prepare_only:
        return 0
    return report(options.out, options.benchmarks.split(",") if options.benchmarks else ())


if __name__ == "__main__":
    sys.exit(main())
