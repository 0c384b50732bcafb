"""What the base breaks with subinterpreters and RWPython mends.

The tests fail on the base release, but for those marked as guards: they keep an
eye on what the mending could break itself.  Most of what they provoke is a crash
or a hang, so they run in processes of their own.
"""

import os
import signal
import subprocess
import sys
import textwrap
import unittest

from test import support
from test.support import import_helper, os_helper, threading_helper

_interpreters = import_helper.import_module('_interpreters')
_testcapi = import_helper.import_module('_testcapi')

# The largest version tag that is kept for static types (pycore_typeobject.h).
MAX_STATIC_TAG = (2 << 16) - 1

PRELUDE = """
import _interpreters, os, sys, threading
def run(interp, code):
    failure = _interpreters.exec(interp, code)
    if failure is not None:
        sys.exit(getattr(failure, 'errdisplay', failure.formatted))
"""


def script(code, prelude=PRELUDE):
    return prelude + textwrap.dedent(code)


@threading_helper.requires_working_threading()
class ProcessTest(unittest.TestCase):

    def check(self, code, *, expected=b'ok'):
        """Run code in a new process and compare what it prints."""
        res = subprocess.run([sys.executable, '-X', 'faulthandler', '-c',
                              script(code)],
                             stdin=subprocess.DEVNULL, capture_output=True,
                             timeout=support.LONG_TIMEOUT)
        self.assertEqual((res.returncode, res.stdout.strip(), res.stderr),
                         (0, expected, b''))


class VersionTagTest(ProcessTest):

    @support.cpython_only
    def test_heap_types_leave_static_tags_alone(self):
        # Each interpreter has its own re.Pattern, so its tag need not be
        # unique in the process, and 131071 is not enough for everybody.
        import re
        self.assertTrue(_testcapi.type_assign_version(re.Pattern))
        self.assertGreater(_testcapi.type_get_version(re.Pattern),
                           MAX_STATIC_TAG)

    @support.cpython_only
    def test_no_tag_twice_in_an_interpreter(self):
        # Types in many copies, whose tags are taken at the same time.  If two
        # types have the same one, the method cache mixes up their attributes.
        self.check("""
            code = '''if True:
                import _imp, os
                from importlib.machinery import BuiltinImporter, ModuleSpec
                spec = ModuleSpec('_functools', BuiltinImporter)
                types = []
                for _ in range(3000):
                    module = _imp.create_builtin(spec)
                    _imp.exec_builtin(module)
                    types.append(module.partial)
                os.write(ready, b'x')
                os.read(go, 1)
                for t in types:
                    t.__call__
                wrong = sum(t.__call__.__objclass__ is not t for t in types)
                assert not wrong, wrong
            '''
            ready, tell_ready = os.pipe()
            go, tell_go = os.pipe()
            interps = [_interpreters.create('isolated') for _ in range(2)]
            threads = []
            for interp in interps:
                _interpreters.set___main___attrs(
                    interp, {'ready': tell_ready, 'go': go})
                threads.append(threading.Thread(target=run,
                                                args=(interp, code)))
                threads[-1].start()
            for _ in interps:
                os.read(ready, 1)
            os.write(tell_go, b'xx')
            for t in threads:
                t.join()
            for interp in interps:
                _interpreters.destroy(interp)
            print('ok')
            """)


class StaticExtensionTypeTest(ProcessTest):
    # _datetime's types are static: shared by all interpreters.

    def test_first_importer_closes_first(self):
        self.check("""
            a = _interpreters.create('isolated')
            b = _interpreters.create('isolated')
            for interp in a, b:
                run(interp, 'import datetime; datetime.datetime.now()')
            _interpreters.destroy(a)
            run(b, 'import datetime; datetime.datetime.now()')
            _interpreters.destroy(b)
            import datetime
            assert datetime.datetime.__mro__ == (
                datetime.datetime, datetime.date, object)
            print('ok')
            """)

    def test_importer_is_alone_again_and_again(self):
        # A guard: nobody else uses the types between one and the next.
        self.check("""
            for _ in range(3):
                interp = _interpreters.create('isolated')
                run(interp, 'import datetime; datetime.datetime.now()')
                _interpreters.destroy(interp)
            print('ok')
            """)

    def test_parallel_first_import(self):
        self.check("""
            code = '''if True:
                import os
                import collections, functools, math, operator, re, time
                os.write(ready, b'x')
                os.read(go, 1)
                import _datetime
                assert _datetime.datetime(1, 2, 3).day == 3
                assert issubclass(_datetime.datetime, _datetime.date)
            '''
            ready, tell_ready = os.pipe()
            go, tell_go = os.pipe()
            interps = [_interpreters.create('isolated') for _ in range(4)]
            threads = []
            for interp in interps:
                _interpreters.set___main___attrs(
                    interp, {'ready': tell_ready, 'go': go})
                threads.append(threading.Thread(target=run,
                                                args=(interp, code)))
                threads[-1].start()
            for _ in interps:
                os.read(ready, 1)
            os.write(tell_go, b'x' * len(interps))
            for t in threads:
                t.join()
            for interp in interps:
                _interpreters.destroy(interp)
            print('ok')
            """)


class CurrentFramesTest(ProcessTest):
    # What a thread of another interpreter runs is that one's own business:
    # its frames and exceptions are objects of another heap, and in use.

    CODE = """
        go, tell_go = os.pipe()
        started, tell_started = os.pipe()
        interp = _interpreters.create('isolated')
        _interpreters.set___main___attrs(
            interp, {'go': go, 'tell_started': tell_started})
        run(interp, '''if True:
            import os, sys, threading
            def wait():
                try:
                    raise ValueError('foreign')
                except ValueError:
                    os.write(tell_started, b'x')
                    os.read(go, 1)
            thread = threading.Thread(target=wait)
            thread.start()
        ''')
        os.read(started, 1)
        result = sys.FUNCTION()
        assert set(result) == {threading.get_ident()}, result
        run(interp, '''if True:
            result = sys.FUNCTION()
            assert set(result) == {threading.get_ident(), thread.ident}, result
        ''')
        os.write(tell_go, b'x')
        _interpreters.destroy(interp)
        print('ok')
        """

    def test_current_frames(self):
        self.check(self.CODE.replace('FUNCTION', '_current_frames'))

    def test_current_exceptions(self):
        self.check(self.CODE.replace('FUNCTION', '_current_exceptions'))


class KeywordTest(ProcessTest):

    def test_first_call_does_not_wait_for_main(self):
        # The main interpreter's lock is held in a system call until the
        # subinterpreter has called a C function with a keyword.
        import_helper.import_module('ctypes')
        import_helper.import_module('_bisect')
        self.check("""
            import ctypes
            libc = ctypes.PyDLL(None)       # calls keep the lock
            sys.setswitchinterval(1000)
            started, tell_started = os.pipe()
            go, tell_go = os.pipe()
            done, tell_done = os.pipe()
            interp = _interpreters.create('isolated')
            _interpreters.set___main___attrs(interp, {
                'tell_started': tell_started, 'go': go, 'tell_done': tell_done})
            thread = threading.Thread(target=run, args=(interp, '''if True:
                import os, _bisect
                os.write(tell_started, b'x')
                os.read(go, 1)
                assert _bisect.bisect_left([1, 2], 2, lo=0) == 1
                os.write(tell_done, b'x')
            '''))
            thread.start()
            os.read(started, 1)
            buf = ctypes.create_string_buffer(1)
            libc.write(tell_go, b'x', 1)
            libc.read(done, buf, 1)
            thread.join()
            _interpreters.destroy(interp)

            # The parser is the same one for all.
            import _bisect
            assert _bisect.bisect_left([1, 2], 2, lo=2) == 2
            try:
                _bisect.bisect_left([1, 2], 2, low=2)
            except TypeError as exc:
                assert 'low' in str(exc)
            print('ok')
            """)


class TracemallocTest(ProcessTest):

    def test_file_names_of_closed_interpreters(self):
        import_helper.import_module('_tracemalloc')
        self.check("""
            import tracemalloc
            tracemalloc.start(3)
            code = '''if True:
                import sys
                kept = []
                for i in range(100):
                    name = f'source {i}' + ['', ' \\xe9', ' \\u20ac'][i % 3]
                    exec(compile('kept.append([object()])', name, 'exec'))
            '''
            def use():
                interp = _interpreters.create('isolated')
                run(interp, code)
                names.update(frame.filename
                             for trace in tracemalloc.take_snapshot().traces
                             for frame in trace.traceback)
                _interpreters.destroy(interp)
            names = set()
            threads = [threading.Thread(target=use) for _ in range(3)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert names >= {'source 9', 'source 10 \\xe9', 'source 11 \\u20ac'}
            tracemalloc.clear_traces()
            tracemalloc.stop()
            print('ok')
            """)


class UseAndCloseTest(ProcessTest):

    def test_exec_while_closing(self):
        # Closing waits for a thread of the interpreter: nobody gets in
        # meanwhile, and nobody closes it a second time.
        self.check("""
            closing, tell_closing = os.pipe()
            go, tell_go = os.pipe()
            interp = _interpreters.create('isolated')
            _interpreters.set___main___attrs(
                interp, {'tell_closing': tell_closing, 'go': go})
            run(interp, '''if True:
                import os, threading
                threading._register_atexit(os.write, tell_closing, b'x')
                threading.Thread(target=os.read, args=(go, 1)).start()
            ''')
            thread = threading.Thread(target=_interpreters.destroy,
                                      args=(interp,))
            thread.start()
            os.read(closing, 1)
            for func, *args in (
                (_interpreters.exec, 'pass'),
                (_interpreters.run_string, 'pass'),
                (_interpreters.run_func, lambda: None),
                (_interpreters.call, lambda: None),
                (_interpreters.set___main___attrs, {'a': 1}),
                (_interpreters.is_running,),
                (_interpreters.get_config,),
                (_interpreters.whence,),
                (_interpreters.incref,),
                (_interpreters.destroy,),
            ):
                try:
                    func(interp, *args)
                except _interpreters.InterpreterNotFoundError:
                    pass
                else:
                    sys.exit(f'{func.__name__}() worked')
            os.write(tell_go, b'x')
            thread.join()
            print('ok')
            """)

    def test_exec_destroy_at_random(self):
        self.check("""
            current = None
            done = False
            def work(func, *args):
                while not done:
                    try:
                        func(current, *args)
                    except (_interpreters.InterpreterError, TypeError):
                        pass            # gone, or not yet there
            threads = [
                threading.Thread(target=work, args=(_interpreters.exec, '1')),
                threading.Thread(target=work, args=(_interpreters.destroy,)),
                threading.Thread(target=work, args=(_interpreters.whence,)),
            ]
            for t in threads:
                t.start()
            for _ in range(30):
                interp = current = _interpreters.create('isolated')
                while interp in dict(_interpreters.list_all()):
                    try:
                        _interpreters.destroy(interp)
                    except _interpreters.InterpreterError:
                        pass
            done = True
            for t in threads:
                t.join()
            print('ok')
            """)


@unittest.skipUnless(hasattr(signal, 'SIGINT') and os.name == 'posix',
                     'needs POSIX signals')
class InterruptTest(ProcessTest):

    def interrupt(self, code):
        """Run code, send SIGINT when it prints 'ready', return what follows."""
        proc = subprocess.Popen(
            [sys.executable, '-c', script(code)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT,
                                             signal.default_int_handler))
        with proc:
            try:
                self.assertEqual(proc.stdout.readline(), b'ready\n')
                proc.send_signal(signal.SIGINT)
                out, err = proc.communicate(timeout=support.LONG_TIMEOUT)
            finally:
                proc.kill()
        self.assertEqual(err, b'')
        self.assertEqual(proc.returncode, 0)
        return out.decode().split('\n')[:-1]

    CODE = """
        interp = _interpreters.create('isolated')
        failure = _interpreters.exec(interp, '''if True:
            CODE
        ''')
        print('back')
        try:
            # What is left over would come here.
            for _ in range(1000):
                os.stat('.')
        except KeyboardInterrupt:
            print('main')
        print(failure and failure.type.__name__)
        _interpreters.destroy(interp)
        """

    def check_interrupt(self, *code, expected):
        code = self.CODE.replace('CODE', ('\n' + ' ' * 12).join(code))
        self.assertEqual(self.interrupt(code), expected)

    def test_loop(self):
        self.check_interrupt(
            "print('ready', flush=True)",
            "while True: pass",
            expected=['back', 'KeyboardInterrupt'])

    def test_caught(self):
        self.check_interrupt(
            "try:",
            "    print('ready', flush=True)",
            "    while True: pass",
            "except KeyboardInterrupt:",
            "    print('caught', flush=True)",
            expected=['caught', 'back', 'None'])

    def test_sleep(self):
        self.check_interrupt(
            "import time",
            "print('ready', flush=True)",
            "while True: time.sleep(1000)",
            expected=['back', 'KeyboardInterrupt'])

    def test_lock(self):
        self.check_interrupt(
            "import threading",
            "lock = threading.Lock()",
            "lock.acquire()",
            "print('ready', flush=True)",
            "lock.acquire()",
            expected=['back', 'KeyboardInterrupt'])

    def test_exit_status(self):
        # The caller has seen to it: the process does not die of it at its end.
        self.check("""
            interp = _interpreters.create('isolated')
            for _ in range(2):
                failure = _interpreters.exec(interp, 'raise KeyboardInterrupt')
                assert failure.type.__name__ == 'KeyboardInterrupt'
            _interpreters.destroy(interp)
            print('ok')
            """)

    def test_nested(self):
        self.check_interrupt(
            "import _interpreters",
            "inner = _interpreters.create('isolated')",
            'failure = _interpreters.exec(inner, """if True:',
            "    print('ready', flush=True)",
            "    while True: pass",
            '""")',
            "print(failure.type.__name__, flush=True)",
            "_interpreters.destroy(inner)",
            expected=['KeyboardInterrupt', 'back', 'None'])

    def test_not_in_other_threads(self):
        # SIGINT is for the main thread, wherever that is.
        self.assertEqual(self.interrupt("""
            interp = _interpreters.create('isolated')
            go, tell_go = os.pipe()
            _interpreters.set___main___attrs(interp, {'go': go})
            thread = threading.Thread(target=run, args=(
                interp, 'import os; os.read(go, 1)'))
            thread.start()
            try:
                print('ready', flush=True)
                while True: pass
            except KeyboardInterrupt:
                print('main')
            os.write(tell_go, b'x')
            thread.join()
            own = _interpreters.create('isolated')
            failure = _interpreters.exec(own, '''if True:
                import _thread
                _thread.interrupt_main()
                while True: pass
            ''')
            print(failure.type.__name__)
            """), ['main', 'KeyboardInterrupt'])

    def test_handler_runs_in_main(self):
        # A handler is an object of the main interpreter: it waits until the
        # main thread is back there, and nobody else gets hold of it.
        self.assertEqual(self.interrupt("""
            import signal
            def handler(signum, frame):
                seen.append(_interpreters.get_current()[0])
            seen = []
            signal.signal(signal.SIGINT, handler)
            signal.signal(signal.SIGUSR1, handler)
            interp = _interpreters.create('isolated')
            watch, tell = os.pipe()
            os.set_blocking(tell, False)
            signal.set_wakeup_fd(tell)
            _interpreters.set___main___attrs(interp, {'watch': watch})
            run(interp, '''if True:
                import os, signal
                assert signal.getsignal(signal.SIGUSR1) is None
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
                print('ready', flush=True)
                os.read(watch, 1)           # the signal has arrived
                for _ in range(1000):
                    os.stat('.')
            ''')
            print(*seen)
            """), ['0'])

    def test_once_each(self):
        # A guard: signals at any moment, while the main thread goes in and out.
        self.check("""
            import signal, time
            signal.signal(signal.SIGINT, signal.default_int_handler)
            interp = _interpreters.create('isolated')
            requests, request = os.pipe()
            def kill():
                while os.read(requests, 1) == b'x':
                    os.kill(os.getpid(), signal.SIGINT)
            thread = threading.Thread(target=kill)
            thread.start()
            def once():
                try:
                    os.write(request, b'x')
                    while True:
                        failure = _interpreters.exec(
                            interp, 'for _ in range(300): pass')
                        if failure is not None:
                            return failure.type.__name__
                except KeyboardInterrupt:
                    return 'KeyboardInterrupt'
            for _ in range(100):
                assert once() == 'KeyboardInterrupt'
                for _ in range(10):
                    run(interp, 'pass')
            os.write(request, b'-')
            thread.join()
            _interpreters.destroy(interp)
            print('ok')
            """)


if __name__ == '__main__':
    unittest.main()
