#!/usr/bin/env python3
"""How fast is one build against another, over several pyperformance runs of each?

Usage (with a Python that has pyperf, as pyperformance's own has):
    python Tools/bench/pyperf_ratio.py --stock S1.json S2.json --this T1.json T2.json

Columns:
    stock / this  median time on stock over median time here, all runs taken
                  together: above 1 is faster here
    deviation     standard deviation in % of the mean, of the noisier build;
                  a ratio closer to 1 than this says nothing

The baseline is stock, built from the same tarball with the same flags.
"""
import argparse
import statistics

import pyperf


def load(files):
    values = {}
    for file in files:
        for bench in pyperf.BenchmarkSuite.load(file).get_benchmarks():
            values.setdefault(bench.get_name(), []).extend(bench.get_values())
    return values


def deviation(values):
    return statistics.stdev(values) / statistics.mean(values)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--this", nargs="+", required=True, metavar="FILE")
    options = parser.parse_args()
    stock, this = load(options.stock), load(options.this)
    if stock.keys() != this.keys():
        parser.error("the files are not of the same benchmarks: "
                     + ", ".join(sorted(stock.keys() ^ this.keys())))
    ratios = {name: statistics.median(stock[name]) / statistics.median(this[name])
              for name in sorted(stock)}
    print(f"{'benchmark':<20}{'stock / this':>12}{'deviation':>12}")
    for name, ratio in ratios.items():
        noise = max(deviation(stock[name]), deviation(this[name]))
        print(f"{name:<20}{ratio:>12.3f}{100 * noise:>10.1f} %")
    print(f"{'geometric mean':<20}{statistics.geometric_mean(ratios.values()):>12.3f}")


if __name__ == "__main__":
    main()
