#!/usr/bin/env python3
"""How fast is this Python in pyperformance, against stock?

    make pyperformance                          # both builds, then the whole suite
    python Tools/bench/pyperformance_compare.py --this build/obj/python \\
        --against build/stock/obj/python [--benchmarks json_loads,richards]

Question   What does one thread of an ordinary program pay or gain?
Method     Each benchmark of the suite runs on the one build, then on the other, in
           the next round the other way round: what changes on the machine meanwhile
           hits both.  A round is a few processes of each; the median of all values
           of all rounds is compared.
Baseline   Stock CPython 3.13.5 from the same tarball with the same flags.
Reading    median and best: the medians and the smallest values, against / this: above 1,
           this one is faster.  Where other work on the machine comes and goes, which
           can only slow things down, the smallest values are the steadier measure.
           "noise" is the larger relative interquartile range of the two: a median
           closer to 1 than that says nothing by itself.

--inside 1 runs the workers of "this" in a subinterpreter, --inside 2 in two of them at
once, each with a whole worker (the first one's times count): with the same build as
--against that is the price of a subinterpreter, or of a busy neighbour.
--memory compares the peak of resident memory instead of time.

Files already measured are not measured again: to go on after an interruption, repeat
the command.  Takes about an hour; a benchmark that ends within --limit seconds on
neither build is left out and named.
"""

import argparse
import itertools
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
PYPERFORMANCE = "pyperformance==1.14.0"

LIST = """
import json, pathlib, sys
import pyperformance
from pyperformance import _manifest
base = pathlib.Path(pyperformance.__file__).parent / "data-files" / "benchmarks"
manifest = _manifest.load_manifest(str(base / "MANIFEST"))
json.dump([(b.name, b.runscript, b.extra_opts,
            b.requirements_lockfile if b.requirements_lockfile else None)
           for b in manifest.benchmarks if "disabled" not in (b.tags or ())],
          sys.stdout)
"""


def log(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def environment():
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env["PYTHONHASHSEED"] = "0"
    return env


class Build:
    """One of the two Pythons, with a venv of its own."""

    def __init__(self, role, python, out, inside=0):
        self.role = role
        self.python = pathlib.Path(python).resolve()
        self.venv = out / f"venv-{role}"
        self.inside = inside

    @property
    def venv_python(self):
        return self.venv / "bin" / "python"

    def prepare(self):
        mark = self.venv / "made-for"
        if mark.exists() and mark.read_text() == str(self.python):
            return
        log(f"venv for {self.role}: {self.python}")
        subprocess.run([self.python, "-m", "venv", "--clear", self.venv], check=True)
        self.pip(PYPERFORMANCE, "psutil")
        mark.write_text(str(self.python))

    def pip(self, *args):
        return subprocess.run(
            [self.venv_python, "-m", "pip", "install", "-q",
             "--disable-pip-version-check", *args], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, check=not args[0] == "-r")

    def benchmarks(self):
        found = subprocess.run([self.venv_python, "-c", LIST], check=True,
                               capture_output=True, text=True, env=environment())
        return {name: (script, opts or [], lock)
                for name, script, opts, lock in json.loads(found.stdout)}

    def require(self, lock):
        """Install what a benchmark needs.  Return why that isn't to be had, or None."""
        if lock is None or not os.path.exists(lock):
            return None
        key = lock.replace("/", "_")
        mark = self.venv / f"has{key}"
        if not mark.exists():
            done = self.pip("-r", lock)
            mark.write_text("" if done.returncode == 0 else
                            done.stderr.strip().splitlines()[-1])
        return mark.read_text() or None

    def worker_python(self):
        """What pyperf is to start for its workers."""
        if not self.inside:
            return self.venv_python
        script = self.venv / f"inside{self.inside}"
        script.write_text("#!/bin/sh\nexec " + shlex.join(
            [str(self.venv_python), str(HERE / "run_inside.py"), str(self.inside)])
            + ' "$@"\n')
        script.chmod(0o755)
        return script

    def measure(self, script, opts, file, options):
        command = [str(self.venv_python), "-u", script, *opts,
                   "--python", str(self.worker_python()),
                   "--inherit-environ", "PYTHONHASHSEED",
                   f"--processes={options.processes}", "--values=2",
                   "--warmups=1", "-o", str(file)]
        if options.affinity:
            command.append(f"--affinity={options.affinity}")
        if options.memory:
            command.append("--track-memory")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(command, env=environment(), cwd=file.parent,
                                  stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return f"more than {options.limit} s"
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            return lines[-1] if lines else f"exit status {done.returncode}"
        return None


def values_of(file):
    """{name: values} of one pyperf result."""
    data = json.loads(file.read_text())
    found = {}
    for bench in data["benchmarks"]:
        name = (bench.get("metadata", {}).get("name")
                or data["metadata"]["name"])
        values = list(itertools.chain.from_iterable(
            run.get("values", ()) for run in bench["runs"]))
        found.setdefault(name, []).extend(values)
    return found


def collect(out, role):
    values = {}
    for file in sorted(out.glob(f"*/{role}-*.json")):
        for name, more in values_of(file).items():
            values.setdefault(name, []).extend(more)
    return values


def noise(values):
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def report(out, apart):
    """The table, and what make bench-report reads."""
    this, against = collect(out, "this"), collect(out, "against")
    rows = []
    for name in sorted(this.keys() & against.keys()):
        rows.append({
            "name": name, "this": statistics.median(this[name]),
            "against": statistics.median(against[name]),
            "ratio": statistics.median(against[name]) / statistics.median(this[name]),
            "best": min(against[name]) / min(this[name]),
            "noise": max(noise(this[name]), noise(against[name])),
            "values": [len(against[name]), len(this[name])]})
    if not rows:
        log("nothing has been measured")
        return 1
    rows.sort(key=lambda row: row["ratio"])
    print(f"\n{'benchmark':<34}{'median':>8}{'best':>8}{'noise':>9}{'values':>8}")
    for row in rows:
        mark = ""
        if abs(row["ratio"] - 1) > apart:
            mark = "  faster" if row["ratio"] > 1 else "  slower"
            if abs(row["ratio"] - 1) < row["noise"]:
                mark += "?"
        print(f"{row['name']:<34}{row['ratio']:>8.3f}{row['best']:>8.3f}{100 * row['noise']:>8.1f}%"
              f"{sum(row['values']):>8}{mark}")
    mean, best = (statistics.geometric_mean(row[key] for row in rows)
                  for key in ("ratio", "best"))
    print(f"\n{len(rows)} benchmarks, geometric mean {mean:.3f}, of the best {best:.3f}; "
          f"marked: medians more than {100 * apart:.0f} % apart, '?': within their noise")
    (out / "table.json").write_text(json.dumps(
        {"rows": rows, "geometric_mean": mean, "best": best, "date": time.strftime("%Y-%m-%d"),
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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3,
                        help="of each build in a round (default 3)")
    parser.add_argument("--limit", type=float, default=180, metavar="SECONDS",
                        help="for one benchmark in one round (default 180)")
    parser.add_argument("--affinity", metavar="CPUS")
    parser.add_argument("--inside", type=int, choices=(0, 1, 2), default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--apart", type=float, default=0.02, metavar="FRACTION",
                        help="what the table marks (default 0.02)")
    parser.add_argument("--around", metavar="COMMAND",
                        help="is run with 'begin' and 'end' around each measurement: "
                             "to silence the machine")
    parser.add_argument("--report-only", action="store_true",
                        help="print the table of what is there")
    options = parser.parse_args()
    options.out = options.out.resolve()
    for python in options.this, options.against:
        if not options.report_only and not os.access(python, os.X_OK):
            parser.error(f"{python} isn't there: 'make' builds this Python, "
                         "'make stock' what it is compared with")
    return options


def measure_all(options):
    builds = [Build("this", options.this, options.out, options.inside),
              Build("against", options.against, options.out)]
    options.out.mkdir(parents=True, exist_ok=True)
    for build in builds:
        build.prepare()
    known = builds[0].benchmarks()
    names = options.benchmarks.split(",") if options.benchmarks else list(known)
    for name in names:
        if name not in known:
            sys.exit(f"no benchmark is named {name!r}; there are: "
                     + " ".join(sorted(known)))
    failed = {}
    for number in range(1, options.rounds + 1):
        for i, name in enumerate(names):
            if name in failed:
                continue
            script, opts, lock = known[name]
            order = builds if (i + number) % 2 else builds[::-1]
            for build in order:
                file = options.out / name / f"{build.role}-{number}.json"
                if file.exists():
                    continue
                why = build.require(lock)
                if why is None:
                    if options.around:
                        subprocess.run([*shlex.split(options.around), "begin"])
                    begin = time.monotonic()
                    why = build.measure(script, opts, file, options)
                    took = time.monotonic() - begin
                    if options.around:
                        subprocess.run([*shlex.split(options.around), "end"])
                if why is not None:
                    failed[name] = f"{build.role}: {why}"
                    log(f"{name}: {failed[name]}")
                    break
                log(f"round {number}, {i + 1}/{len(names)} {name} {build.role}: "
                    f"{took:.0f} s")
    for name, why in failed.items():
        log(f"left out: {name}: {why}")


def main():
    options = parse_args()
    if not options.report_only:
        measure_all(options)
    return report(options.out, options.apart)


if __name__ == "__main__":
    sys.exit(main())
