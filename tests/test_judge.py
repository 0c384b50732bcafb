"""The judge: what is red, what is stock's, what is a busy machine's."""
import pathlib

import pytest

import judge
from basetar import OverlayError

SUITE = """\
0:00:01 load avg: 1.00 [ 1/4] test_fine passed
0:00:02 load avg: 1.00 [ 2/4/1] test_a failed (1 failure) (1 min 2 sec) -- running (1): test_other (31.0 sec)
0:00:02 load avg: 1.00 [ 3/4/2] test_crash worker non-zero exit code (Exit code -11 (SIGSEGV))
0:00:03 load avg: 1.00 [ 4/4/2] test_other skipped
FAIL: test_one (test.test_a.ATest.test_one)
Total tests: run=1,100 failures=1 skipped=9
Total test files: run=4/4 failed=2 skipped=1
"""
A_FAILS = """\
[1/1/1] test_a failed (1 error, 1 failure) (59.3 sec)
FAIL: test_one (test.test_a.ATest.test_one)
ERROR: test_two (test.test_a.ATest.test_two) (i=3)
Total tests: run=10 failures=2
"""
A_FAILS_LESS = """\
[1/1/1] test_a failed (1 failure)
FAIL: test_one (test.test_a.ATest.test_one)
Total tests: run=10 failures=1
"""
A_PASSES = "[1/1] test_a passed\nTotal tests: run=10\n"
CRASHES = "[1/1/1] test_crash worker non-zero exit code (Exit code -11 (SIGSEGV))\nTotal tests: run=0\n"
CRASH_PASSES = "[1/1] test_crash passed\nTotal tests: run=5\n"


@pytest.fixture
def suite(monkeypatch):
    """Judge a suite of which each run prints what the test says; return the part."""

    def judged(outputs, expected=None):
        def regrtest(tree, title, names, processes, exclude=()):
            text = outputs[title]
            ended = {m[1]: judge.ending(m) for m in judge.FINISHED.finditer(text)}
            bad = {name: how for name, how in ended.items() if judge.is_bad(how)}
            return judge.Run(pathlib.Path(title), text, 0, ended, bad, judge.cases_by_file(text, bad))

        built = []
        monkeypatch.setattr(judge, "regrtest", regrtest)
        monkeypatch.setattr(judge, "build_stock", lambda: built.append(1))
        monkeypatch.setattr(judge, "expected_differences", lambda: expected or {})
        part = judge.run_suite()
        assert len(built) <= 1
        return part, bool(built)

    return judged


def test_stock_passes_so_it_is_red(suite):
    part, built = suite({"suite": SUITE, "alone-test_a": A_FAILS, "stock-test_a": A_PASSES,
                         "alone-test_crash": CRASHES, "stock-test_crash": CRASH_PASSES})
    assert built
    assert part.failed == 3
    assert any("test_two" in line for line in part.red) and any("SIGSEGV" in line for line in part.red)


def test_what_a_file_printed_is_shown(suite):
    """Who reads what CI printed has no log."""
    altered = ("[1/2/1] test_a failed (env changed)\ntest_x (test.test_a.X.test_x) ... Warning -- Unraisable exception\n"
               "MemoryError\nok\n[2/2/1] test_crash passed\nother\nTotal tests: run=10\n")
    part, _ = suite({"suite": altered, "alone-test_a": altered, "stock-test_a": A_PASSES})
    red, = part.red
    assert red.splitlines() == [
        "test_a: (failed (env changed)) passes on stock",
        "    test_x (test.test_a.X.test_x) ... Warning -- Unraisable exception", "    MemoryError", "    ok"]


def test_stock_fails_too(suite):
    part, _ = suite({"suite": SUITE, "alone-test_a": A_FAILS_LESS, "stock-test_a": A_FAILS,
                     "alone-test_crash": CRASHES, "stock-test_crash": CRASHES})
    assert part.failed == 0
    assert (part.passed, part.skipped) == (1100 - 9 - 1, 9 + 2)


def test_files_without_cases_are_compared_by_their_ending(suite):
    """However long they took."""
    broken = "[1/1/1] test_crash failed (uncaught exception) ({} sec)\nTotal tests: run=0\n"
    part, _ = suite({"suite": broken.format("1.5"), "alone-test_crash": broken.format("2.5"),
                     "stock-test_crash": broken.format("59.5")})
    assert part.failed == 0 and part.notes == ["test_crash: (failed (uncaught exception)) fails on stock too"]


def test_one_case_of_a_file_that_stock_fails_otherwise(suite):
    part, _ = suite({"suite": SUITE, "alone-test_a": A_FAILS, "stock-test_a": A_FAILS_LESS,
                     "alone-test_crash": CRASH_PASSES})
    assert part.red == ["test_a: test_two (test.test_a.ATest.test_two) passes on stock"]


def test_failures_that_vanish_alone_need_no_stock(suite):
    part, built = suite({"suite": SUITE, "alone-test_a": A_PASSES, "alone-test_crash": CRASH_PASSES})
    assert not built and not part.failed
    assert part.passed == 1091
    assert len(part.notes) == 2


def test_expected_difference(suite):
    outputs = {"suite": SUITE, "alone-test_a": A_FAILS_LESS, "stock-test_a": A_PASSES, "alone-test_crash": CRASH_PASSES}
    case = ("test_a", "test_one (test.test_a.ATest.test_one)")
    part, _ = suite(outputs, {case: "on purpose"})
    assert not part.failed and any("on purpose" in note for note in part.notes)


def test_unfinished_suite_is_red(suite):
    part, _ = suite({"suite": "[1/4] test_fine passed\n"})
    assert part.failed == 1 and "did not finish" in part.red[0]


def test_expected_differences_need_reasons(tmp_path):
    path = tmp_path / "expected.txt"
    path.write_text("# comment\ntest_a test_one (test.test_a.A.test_one)  # a reason\n\ntest_b  # all of it\n")
    assert judge.expected_differences(path) == {
        ("test_a", "test_one (test.test_a.A.test_one)"): "a reason", ("test_b", ""): "all of it"}
    path.write_text("test_a\n")
    with pytest.raises(OverlayError, match="needs its reason"):
        judge.expected_differences(path)


def test_closing_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "LOGS", tmp_path)
    assert judge.show([judge.Part("a", 5, 1, 2, red=["x"]), judge.Part("b", 1)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "6 passed, 1 failed, 2 skipped"
    assert (tmp_path / "result.txt").read_text() == "6 passed, 1 failed, 2 skipped\n"
