"""How interpreters end while others live: fork, exit, and being closed.

Every test runs a script of its own in a new process.  The docstrings say what
a release build of CPython 3.13.5 does with the same script.  Its debug build
fails an assertion where the release build crashes or hangs, but for
test_one_enters_while_another_closes, where it hangs too; forked children that
abort crash there.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
import unittest
from test import support
from test.support import import_helper, script_helper, threading_helper

import_helper.import_module('_interpreters')
threading_helper.requires_working_threading(module=True)

# What pycore_interp_lifecycle.h has as _PyInterp_EXIT_WAIT_NS.
EXIT_WAIT = 5.0

PRELUDE = """
import _interpreters, _thread, os, sys, threading, warnings
warnings.simplefilter('ignore', DeprecationWarning)     # fork and threads

class Signal:
    '''An event that works between interpreters and processes.'''
    def __init__(self):
        self.r, self.w = os.pipe()
    def wait(self):
        assert os.read(self.r, 1)
    def send(self):
        os.write(self.w, b'.')

def run(interp, code, **ns):
    ns = ''.join(f'{name} = {value!r}\\n' for name, value in ns.items())
    excinfo = _interpreters.exec(
        interp, 'import os, _interpreters, _thread, threading\\n' + ns + code)
    if excinfo is not None:
        raise RuntimeError(excinfo.errdisplay)

def run_in_thread(interp, code, daemon=True, **ns):
    thread = threading.Thread(target=run, args=(interp, code), kwargs=ns,
                              daemon=daemon)
    thread.start()
    return thread

def python_loop(interp):
    '''Run an endless loop; return when it runs.'''
    begun = Signal()
    thread = run_in_thread(interp, '''if True:
        os.write(w, b'.')
        while True:
            pass
        ''', w=begun.w)
    begun.wait()
    return thread

def c_code(interp):
    '''Go into C code that never ends; return when it has begun.

    It tells by writing to shared memory, for which it need not detach.
    '''
    import mmap, tempfile, time
    with tempfile.TemporaryFile() as file:
        file.truncate(1)
        flag = mmap.mmap(file.fileno(), 1)
        thread = run_in_thread(interp, '''if True:
            import itertools, mmap, operator
            flag = mmap.mmap(fd, 1)
            begin = filter(None, map(operator.setitem, [flag], [0], [1]))
            sum(itertools.chain(begin, range(10**18)))
            ''', fd=file.fileno())
        while not flag[0]:
            time.sleep(0.001)
    return thread

def blocked_thread(interp, how='os.read(r, 1)', **ns):
    '''Start a thread in the interpreter that blocks; return when it runs.'''
    begun = Signal()
    run(interp, f'''if True:
        def block():
            os.write(w, b'.')
            {how}
            while True:
                touched = [str(i) for i in range(100)]
        _thread.start_new_thread(block, ())
        ''', w=begun.w, **ns)
    begun.wait()

def forked(func):
    '''Call it in a forked child; return the exit status.'''
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            func()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def work():
    '''Interpreters work, and so do threads in them.'''
    for _ in range(2):
        interp = _interpreters.create()
        run(interp, '''if True:
            import json, threading
            json.loads('[1]')
            thread = threading.Thread(target=json.dumps, args=([],))
            thread.start()
            thread.join()
            ''')
        _interpreters.destroy(interp)
"""


class Base(unittest.TestCase):

    def start(self, script, *args):
        script = PRELUDE + textwrap.dedent(script)
        process = script_helper.spawn_python(
            *args, '-c', script, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.stop, process)
        return process

    def stop(self, process):
        process.kill()
        process.communicate()

    def finish(self, process, code=0):
        """Returns stdout and stderr."""
        try:
            out, err = process.communicate(timeout=support.LONG_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.fail(f'hangs; stdout: {out}\nstderr: {err}')
        self.assertEqual(process.returncode, code, f'{out}\n{err}')
        return out, err

    def run_script(self, script, *args, code=0):
        with support.SuppressCrashReport():
            return self.finish(self.start(script, *args), code)

    def check(self, script, out, *args, code=0):
        """Run it; it must print `out` and nothing on stderr."""
        got, err = self.run_script(script, *args, code=code)
        self.assertEqual(got, out)
        self.assertEqual(self.without_debug_output(err), '')

    def without_debug_output(self, err):
        return '\n'.join(line for line in err.splitlines()
                         if not line.startswith('[') or 'refs' not in line)


@support.requires_fork()
class ForkTests(Base):

    def test_child_uses_interpreters(self):
        """Stock: the child aborts."""
        self.check("""
            others = [_interpreters.create() for _ in range(3)]
            def child():
                assert [id for id, _ in _interpreters.list_all()] == [0]
                for other in others:
                    try:
                        run(other, 'pass')
                    except _interpreters.InterpreterNotFoundError:
                        pass
                    else:
                        raise AssertionError
                work()
            print(forked(child))
            for other in others:
                run(other, 'import json')
                _interpreters.destroy(other)
            """, '0\n')

    def test_child_exits_by_sys_exit(self):
        """Stock: the child aborts."""
        self.check("""
            import atexit
            other = _interpreters.create()
            pid = os.fork()
            if pid == 0:
                left = _interpreters.create()
                run(left, 'x = 1')
                atexit.register(print, 'child is finalized')
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            run(other, 'pass')
            """, 'child is finalized\n7\n')

    def test_child_of_a_thread(self):
        """Stock: the child aborts."""
        self.check("""
            other = _interpreters.create()
            python_loop(_interpreters.create())
            thread = threading.Thread(target=lambda: print(forked(work)))
            thread.start()
            thread.join()
            """, '0\n')

    def test_grandchild(self):
        """Stock: the child aborts."""
        self.check("""
            other = _interpreters.create()
            def child():
                other = _interpreters.create()
                assert forked(work) == 0
                run(other, 'pass')
            print(forked(child))
            """, '0\n')

    def test_multiprocessing(self):
        """Stock: the child aborts."""
        self.check("""
            import multiprocessing
            other = _interpreters.create()
            context = multiprocessing.get_context('fork')
            process = context.Process(target=work)
            process.start()
            process.join()
            print(process.exitcode)
            """, '0\n')

    def test_refused_in_subinterpreters(self):
        """Stock: in the legacy interpreter the child aborts."""
        self.check("""
            for kind in 'legacy', 'isolated':
                interp = _interpreters.create(kind)
                run(interp, '''if True:
                    for fork in os.fork, os.forkpty:
                        try:
                            fork()
                        except RuntimeError as exc:
                            assert 'fork' in str(exc)
                        else:
                            os._exit(1)
                    ''')
                _interpreters.destroy(interp)
            print('refused')
            """, 'refused\n')

    def test_subprocess_works_in_subinterpreters(self):
        """Stock: the same."""
        self.check("""
            interp = _interpreters.create()
            run(interp, '''if True:
                import subprocess, sys
                subprocess.run([sys.executable, '-c', 'print(1)'], check=True)
                ''')
            """, '1\n')

    def test_others_run_python(self):
        """Stock: the child aborts."""
        self.check("""
            stop = Signal()
            loops = []
            for _ in range(2):
                interp, begun = _interpreters.create(), Signal()
                loops.append(run_in_thread(interp, '''if True:
                    import json, select
                    os.write(w, b'.')
                    while not select.select([r], [], [], 0)[0]:
                        json.loads(json.dumps([{str(i): i} for i in range(50)]))
                    ''', w=begun.w, r=stop.r))
                begun.wait()
            print({forked(work) for _ in range(10)})
            stop.send()
            for loop in loops:
                loop.join()
            """, '{0}\n')

    def test_others_are_born_and_die(self):
        """Stock: the child aborts, or the script hangs for ever."""
        self.check("""
            stop = threading.Event()
            def births():
                while not stop.is_set():
                    work()
            threads = [threading.Thread(target=births) for _ in range(2)]
            for thread in threads:
                thread.start()
            print({forked(work) for _ in range(5)})
            stop.set()
            for thread in threads:
                thread.join()
            """, '{0}\n')

    @unittest.skipIf(support.check_sanitizer(address=True),
                     "AddressSanitizer's malloc() locks are not made for fork()")
    def test_another_is_busy_in_c_code(self):
        """Stock: the child aborts."""
        self.check("""
            busy, idle = _interpreters.create(), _interpreters.create()
            thread = c_code(busy)
            print(forked(work))
            run(idle, 'x = 1')
            assert thread.is_alive() and _interpreters.is_running(busy)
            sys.stdout.flush()
            os._exit(0)
            """, '0\n')

    def test_others_are_closed_on_top_of_threads(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            wake = Signal()
            interp = _interpreters.create()
            blocked_thread(interp, r=wake.r)
            _interpreters.destroy(interp)
            print(forked(work))
            """, '0\n')


class ExitTests(Base):

    def test_nothing_to_wait_for(self):
        """Stock: the same."""
        self.check("""
            for kind in 'isolated', 'legacy':
                interp = _interpreters.create(kind)
                run(interp, 'x = [1]')
            sys.exit(3)
            """, '', code=3)

    def test_thread_is_joined(self):
        """Stock: hangs for ever."""
        self.check("""
            import atexit
            go = Signal()
            run(_interpreters.create(), '''if True:
                def wait():
                    os.read(r, 1)
                    import json     # the interpreter is still whole
                    print('joined', json.dumps([1]), flush=True)
                threading.Thread(target=wait).start()
                ''', r=go.r)
            atexit.register(go.send)
            """, 'joined [1]\n')

    def test_atexit(self):
        """Stock: the same."""
        self.check("""
            run(_interpreters.create(), '''if True:
                import atexit
                def callback():
                    import json
                    print('atexit', json.dumps([1]), flush=True)
                atexit.register(callback)
                ''')
            """, 'atexit [1]\n')

    def test_endless_python_code(self):
        """Stock: crashes."""
        self.check("""
            for _ in range(2):
                python_loop(_interpreters.create())
            sys.exit(3)
            """, '', code=3)

    def test_endless_python_code_in_thread_of_the_interpreter(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            interp = _interpreters.create()
            for _ in range(3):
                blocked_thread(interp, how='pass')
            sys.exit(3)
            """, '', code=3)

    def test_threads_that_are_blocked(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            never = Signal()
            interp = _interpreters.create()
            blocked_thread(interp, r=never.r)
            blocked_thread(interp, 'import time; time.sleep(3600)')
            blocked_thread(interp, 'lock = _thread.allocate_lock(); '
                                   'lock.acquire(); lock.acquire()')
            sys.exit(3)
            """, '', code=3)

    def test_threads_that_wake_up(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            import atexit
            wake = Signal()
            interp = _interpreters.create()
            for _ in range(8):
                blocked_thread(interp, r=wake.r)
            atexit.register(os.write, wake.w, b'.' * 8)
            """, '')

    def test_interpreters_are_born_and_die(self):
        """Stock: crashes."""
        for _ in range(3):
            self.check("""
                begun = Signal()
                def births():
                    while True:
                        interp = _interpreters.create()
                        begun.send()
                        try:
                            run(interp, 'import json')
                            _interpreters.destroy(interp)
                        except _interpreters.InterpreterNotFoundError:
                            pass        # the exit was first
                def births_until_late():
                    try:
                        births()
                    except _interpreters.InterpreterError as exc:
                        # After a second, if the exit has not got through yet.
                        assert 'creation failed' in str(exc), exc
                for _ in range(3):
                    threading.Thread(target=births_until_late, daemon=True).start()
                for _ in range(4):
                    begun.wait()
                sys.exit(3)
                """, '', code=3)

    def test_born_in_threads_of_c_code(self):
        """Stock: crashes.  Such threads hold no lock when they begin, and never stop."""
        for _ in range(2):
            self.check("""
                import _testrwgilstate as gilstate, time
                makers = gilstate.start(gilstate.maker(), -1, 3)
                while gilstate.made(makers) < 3:
                    time.sleep(0.001)
                sys.exit(3)
                """, '', code=3)

    def test_interpreters_in_interpreters(self):
        """Stock: gets by; a debug build fails an assertion."""
        self.check("""
            begun = Signal()
            for _ in range(2):
                run_in_thread(_interpreters.create(), '''if True:
                    while True:
                        interp = _interpreters.create()
                        os.write(w, b'.')
                        try:
                            _interpreters.exec(interp, 'import json')
                            _interpreters.destroy(interp)
                        except _interpreters.InterpreterNotFoundError:
                            pass
                    ''', w=begun.w)
            for _ in range(4):
                begun.wait()
            sys.exit(3)
            """, '', code=3)

    LEFT_BEHIND = 'interpreter 1 is still busy in C code at exit: left behind\n'

    def test_endless_c_code(self):
        """Stock: hangs for ever."""
        process = self.start("""
            import atexit
            c_code(_interpreters.create())
            run(_interpreters.create(), 'import json')
            atexit.register(print, 'exiting', flush=True)
            sys.exit(3)
            """)
        self.assertEqual(process.stdout.readline(), 'exiting\n')
        begun = time.monotonic()
        out, err = self.finish(process, 3)
        self.assertEqual(self.without_debug_output(err), self.LEFT_BEHIND.strip())
        self.assertGreater(time.monotonic() - begun, EXIT_WAIT - 1)

    def interrupt(self, process):
        """Ctrl-C until it ends.  Returns how long that took and its stderr."""
        begun = time.monotonic()
        for _ in support.sleeping_retry(support.SHORT_TIMEOUT, error=False):
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGINT)
        took = time.monotonic() - begun
        out, err = process.communicate(timeout=support.SHORT_TIMEOUT)
        # The last one may come when Python does not handle signals any more.
        self.assertIn(process.returncode, (0, -signal.SIGINT), err)
        return took, err

    @unittest.skipUnless(os.name == 'posix', 'needs POSIX signals')
    def test_ctrl_c_in_endless_c_code(self):
        """Stock: hangs for ever."""
        process = self.start("""
            import atexit
            c_code(_interpreters.create())
            atexit.register(print, 'exiting', flush=True)
            """)
        self.assertEqual(process.stdout.readline(), 'exiting\n')
        took, err = self.interrupt(process)
        self.assertLess(took, EXIT_WAIT - 1)
        self.assertIn(self.LEFT_BEHIND, err)

    @unittest.skipUnless(os.name == 'posix', 'needs POSIX signals')
    def test_ctrl_c_in_join(self):
        """Stock: hangs for ever, whatever one types."""
        process = self.start("""
            import atexit
            never = Signal()
            run(_interpreters.create(), '''if True:
                threading.Thread(target=os.read, args=(r, 1)).start()
                ''', r=never.r)
            atexit.register(print, 'exiting', flush=True)
            """)
        self.assertEqual(process.stdout.readline(), 'exiting\n')
        self.interrupt(process)

    def test_somebody_waits_in_destroy(self):
        """Stock: hangs for ever."""
        out, err = self.run_script("""
            never, begun = Signal(), Signal()
            interp = _interpreters.create()
            run(interp, '''if True:
                import atexit
                threading.Thread(target=os.read, args=(r, 1)).start()
                threading._register_atexit(os.write, w, b'.')
                ''', r=never.r, w=begun.w)
            threading.Thread(target=_interpreters.destroy, args=(interp,),
                             daemon=True).start()
            begun.wait()
            sys.exit(3)
            """, code=3)
        self.assertIn(self.LEFT_BEHIND, err)


class CloseTests(Base):

    def test_thread_blocked_in_c_code(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            wake = Signal()
            interp = _interpreters.create()
            for _ in range(5):
                blocked_thread(interp, r=wake.r)
            _interpreters.destroy(interp)
            assert [id for id, _ in _interpreters.list_all()] == [0]
            work()
            for _ in range(5):
                wake.send()     # the threads wake up and exit
            work()
            print('alive')
            """, 'alive\n')

    @unittest.skipUnless(os.path.isdir('/proc/self/task'), 'needs /proc')
    def test_threads_exit_when_they_wake_up(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            import time
            wake = Signal()
            def threads():
                return len(os.listdir('/proc/self/task'))
            before = threads()
            for _ in range(3):
                interp = _interpreters.create()
                blocked_thread(interp, r=wake.r)
                blocked_thread(interp, 'import time; time.sleep(0.001)')
                blocked_thread(interp, 'pass')
                _interpreters.destroy(interp)
                wake.send()
            deadline = time.monotonic() + 60
            while threads() != before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            print('all exited')
            """, 'all exited\n')

    def test_thread_that_waits_for_the_lock(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            for _ in range(5):
                interp = _interpreters.create()
                for _ in range(3):
                    blocked_thread(interp, 'pass')
                _interpreters.destroy(interp)
            print('alive')
            """, 'alive\n')

    def test_thread_that_waits_for_a_mutex(self):
        """It gets the mutex when its interpreter has been closed.
        Stock: aborts, not the last thread.
        """
        self.check("""
            import _testrwgil as rwgil, time
            interp = _interpreters.create()
            rwgil.mutex_lock()
            blocked_thread(interp, 'import _testrwgil; _testrwgil.mutex_lock()')
            while not rwgil.mutex_is_waited_for():
                time.sleep(0.001)
            _interpreters.destroy(interp)
            time.sleep(0.01)    # who has waited longer than 1 ms is given it
            rwgil.mutex_unlock()
            rwgil.mutex_lock()
            print('alive')
            """, 'alive\n')

    def test_thread_that_is_woken_by_a_signal(self):
        """Its interpreter is gone, so it leaves.  Nobody must give it the mutex later.
        Stock: aborts, not the last thread.
        """
        self.check("""
            import _testrwgil as rwgil, signal, time
            signal.signal(signal.SIGUSR1, lambda *args: None)
            interp = _interpreters.create()
            r, w = os.pipe()
            rwgil.mutex_lock()
            blocked_thread(interp, "import _testrwgil;"
                f"os.write({w}, b'%d' % threading.get_ident());"
                "_testrwgil.mutex_lock()")
            ident = int(os.read(r, 100))
            while not rwgil.mutex_is_waited_for():
                time.sleep(0.001)
            _interpreters.destroy(interp)
            signal.pthread_kill(ident, signal.SIGUSR1)
            while len(os.listdir('/proc/self/task')) > 1:
                time.sleep(0.001)
            rwgil.mutex_unlock()
            rwgil.mutex_lock()
            print('alive')
            """, 'alive\n')

    def test_threads_just_being_started(self):
        """Stock: aborts, not the last thread."""
        self.check("""
            for _ in range(10):
                interp = _interpreters.create()
                run(interp, '''if True:
                    def loop():
                        while True:
                            pass
                    for _ in range(4):
                        _thread.start_new_thread(loop, ())
                    ''')
                _interpreters.destroy(interp)
            print('alive')
            """, 'alive\n')

    def test_destructor_closes_another(self):
        """A thread that is given up holds the last reference to an object whose
        destructor closes another interpreter, which has a thread as well.
        Stock: aborts, not the last thread.
        """
        self.check("""
            wake = Signal()
            inner, outer = _interpreters.create(), _interpreters.create()
            blocked_thread(inner, r=wake.r)
            run(outer, '''if True:
                class Closer:
                    def __del__(self, destroy=_interpreters.destroy):
                        destroy(inner)
                local = _thread._local()
                ''', inner=inner)
            held = Signal()
            blocked_thread(
                outer, 'local.closer = Closer(); os.write(h, b"."); os.read(r, 1)',
                r=wake.r, h=held.w)
            held.wait()
            _interpreters.destroy(outer)
            assert [id for id, _ in _interpreters.list_all()] == [0]
            wake.send()
            wake.send()
            work()
            print('alive')
            """, 'alive\n')

    def test_two_close_the_same(self):
        """Stock: hangs for ever."""
        self.check("""
            closers = [_interpreters.create() for _ in range(2)]
            for _ in range(20):
                target = _interpreters.create()
                go = Signal()
                code = '''if True:
                    os.read(r, 1)
                    try:
                        _interpreters.destroy(target)
                    except _interpreters.InterpreterNotFoundError:
                        pass
                    '''
                threads = [run_in_thread(closer, code, r=go.r, target=target)
                           for closer in closers]
                go.send()
                go.send()
                for thread in threads:
                    thread.join()
                assert len(_interpreters.list_all()) == 3
            print('alive')
            """, 'alive\n')

    def test_one_enters_while_another_closes(self):
        """Stock: hangs for ever."""
        self.check("""
            for _ in range(30):
                interp = _interpreters.create()
                go = threading.Barrier(2)
                results = []
                def enter():
                    go.wait()
                    try:
                        run(interp, 'for i in range(10_000): pass')
                    except _interpreters.InterpreterError:
                        pass
                    results.append('came back')
                thread = threading.Thread(target=enter)
                thread.start()
                go.wait()
                while True:
                    try:
                        _interpreters.destroy(interp)
                        break
                    except _interpreters.InterpreterNotFoundError:
                        raise
                    except _interpreters.InterpreterError:
                        pass        # running
                thread.join(60)
                assert results == ['came back']
            print('alive')
            """, 'alive\n')


class ModuleTests(Base):
    """The same through the package `interpreters`."""

    @support.requires_fork()
    def test_fork_during_calls(self):
        """A child's threads get the stacks of threads that were in call()."""
        self.check("""
            import interpreters
            wake = Signal()
            calls = []
            for _ in range(4):
                interp, begun = interpreters.create(), Signal()
                calls.append(interp.call_in_thread(exec, f'''if True:
                    import os
                    os.write({begun.w}, b'.')
                    os.read({wake.r}, 1)
                    '''))
                begun.wait()
            def call():
                interp = interpreters.create()
                assert interp.call(pow, 2, 10) == 1024
                interp.close()
            def child():
                threads = [threading.Thread(target=call) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            print(forked(child))
            for thread in calls:
                wake.send()
            for thread in calls:
                thread.join()
            """, '0\n')

    def test_exit_during_calls(self):
        self.check("""
            import atexit, interpreters
            never = Signal()
            def call():
                interp = interpreters.create()
                interp.call(exec, f'''if True:
                    import os
                    os.write({begun.w}, b'.')
                    os.read({never.r}, 1)
                    ''')
            for _ in range(4):
                begun = Signal()
                threading.Thread(target=call, daemon=True).start()
                begun.wait()
            class Late:
                def __init__(self):
                    self.interp = interpreters.create()
                def __del__(self):
                    try:
                        self.interp.close()
                    except interpreters.InterpreterError:
                        pass
            late = Late()
            """, '')

    def test_close_during_calls(self):
        self.check("""
            import interpreters
            for _ in range(30):
                interp = interpreters.create()
                go = threading.Barrier(2)
                results = []
                def call():
                    go.wait()
                    try:
                        interp.call(sum, [1, 2])
                    except interpreters.InterpreterError:
                        pass
                    results.append('came back')
                thread = threading.Thread(target=call)
                thread.start()
                go.wait()
                while True:
                    try:
                        interp.close()
                        break
                    except interpreters.InterpreterNotFoundError:
                        raise
                    except interpreters.InterpreterError:
                        pass        # running
                thread.join(60)
                assert results == ['came back']
            print('alive')
            """, 'alive\n')


if __name__ == '__main__':
    unittest.main()
