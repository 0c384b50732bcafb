#!/usr/bin/env python3
"""Run a pyperf worker in one subinterpreter, or the same in two at once.

    run_inside.py 1|2 SCRIPT ARGUMENTS...

For pyperformance_compare.py --inside.  The first interpreter reports to pyperf; the
second, where there is one, does the same work and what it says is thrown away.
Whatever isn't a worker (questions that pyperf asks of its --python) runs as it is.
"""

import os
import sys

WORK = """if True:
    import runpy, sys
    sys.argv[:] = argv
    sys.path[0] = directory
    if silent:
        import io
        sys.stdout = io.StringIO()
    runpy.run_path(argv[0], run_name="__main__")
"""


def without_pipe(argv):
    if "--pipe" not in argv:
        return [arg for arg in argv if not arg.startswith("--pipe=")]
    at = argv.index("--pipe")
    return argv[:at] + argv[at + 2:]


def main():
    count, *argv = sys.argv[1:]
    if "--worker" not in argv:
        os.execv(sys.executable, [sys.executable, *argv])
    while argv[0].startswith("-"):
        del argv[0]
    import interpreters
    import threading
    directory = os.path.dirname(os.path.abspath(argv[0]))
    sys.path.insert(0, directory)
    errors = []

    def work(argv, silent):
        interp = interpreters.create()
        interp.prepare_main(argv=argv, directory=directory, silent=silent)
        try:
            interp.exec(WORK)
        except interpreters.ExecutionFailed as exc:
            if "SystemExit" not in str(exc):
                errors.append(exc)
        finally:
            interp.close()

    neighbour = None
    if int(count) == 2:
        neighbour = threading.Thread(target=work, args=(without_pipe(argv), True))
        neighbour.start()
    work(argv, False)
    if neighbour is not None:
        neighbour.join()
    if errors:
        raise errors[0]


if __name__ == "__main__":
    main()
