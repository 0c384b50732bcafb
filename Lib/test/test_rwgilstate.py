"""PyGILState_Ensure(): code gets the interpreter that it belongs to.

On CPython 3.13.5 a callback runs in the main interpreter, or in whichever the
thread was last, under a lock that does not guard the callback's objects: the ids
below come out wrong, or the process crashes.
"""

import os
import threading
import time
import unittest
from test import support
from test.support import import_helper, script_helper, threading_helper

threading_helper.requires_working_threading(module=True)
gilstate = import_helper.import_module('_testrwgilstate')
ctypes = import_helper.import_module('ctypes')
interpreters = import_helper.import_module('interpreters')

# In the main interpreter as in the others.
PRELUDE = """
import ctypes, interpreters, threading

VOID = ctypes.CFUNCTYPE(None)           # lets go of the lock around the call
VOID_HELD = ctypes.PYFUNCTYPE(None)     # keeps it
seen = []           # ids of the interpreters in which callbacks ran
work = []           # changed by every callback: needs its interpreter's lock
callbacks = []

def here():
    return interpreters.get_current().id

def note():
    seen.append(here())
    work.append(work[-10:])
    if len(work) > 100:
        work.clear()

def by_ctypes(func):
    callbacks.append(VOID(func))
    return ctypes.cast(callbacks[-1], ctypes.c_void_p).value
"""
exec(PRELUDE)


class Base(unittest.TestCase):

    def setUp(self):
        self.addCleanup(threading_helper.threading_cleanup,
                        *threading_helper.threading_setup())
        seen.clear()
        callbacks.clear()

    def create(self, code='', **ns):
        """An interpreter that has run the prelude and the code."""
        interp = interpreters.create()
        self.addCleanup(self.close, interp)
        if ns:
            interp.prepare_main(ns)
        interp.exec(PRELUDE + code)
        return interp

    def close(self, interp):
        try:
            interp.close()
        except interpreters.InterpreterNotFoundError:
            pass

    def get(self, interp, expression):
        interp.exec(f'_result = {expression}')
        return interp.take('_result')

    def run_crowd(self, address, calls, threads=2):
        crowd = gilstate.start(address, calls, threads)
        gilstate.join(crowd, support.LONG_TIMEOUT)

    def check_seen(self, interp, count):
        self.assertEqual(self.get(interp, '(set(seen), len(seen))'),
                         ({interp.id}, count))


class CtypesTests(Base):
    """The owner is the interpreter in which the callback was made."""

    def with_callback(self, code='', func='note', **ns):
        interp = self.create(code, **ns)
        return interp, self.get(interp, f'by_ctypes({func})')

    def test_threads_of_c(self):
        # In all at the same time.
        interps, crowds = [], []
        for _ in range(3):
            interp, address = self.with_callback()
            interps.append(interp)
            crowds.append(gilstate.start(address, 300, 2))
        for crowd in crowds:
            gilstate.join(crowd, support.LONG_TIMEOUT)
        for interp in interps:
            self.check_seen(interp, 600)

    def test_main(self):
        address = by_ctypes(note)
        self.create()
        self.run_crowd(address, 50)
        self.assertEqual(seen, [0] * 100)

    def test_thread_of_another_interpreter(self):
        interp, address = self.with_callback()
        for kind in VOID, VOID_HELD:
            with self.subTest(kind):
                kind(address)()
                self.assertEqual(here(), 0)
        self.check_seen(interp, 2)

    def test_thread_that_visits(self):
        # The thread's latest state is the visited interpreter's.
        address = by_ctypes(note)
        interp = self.create(address=address)
        interp.exec('VOID(address)(); VOID_HELD(address)(); note()')
        self.check_seen(interp, 1)
        self.assertEqual(seen, [0, 0])

    def test_own_thread(self):
        interp = self.create('''if True:
            VOID(by_ctypes(note))()
            VOID_HELD(by_ctypes(note))()
            thread = threading.Thread(target=VOID(by_ctypes(note)))
            thread.start()
            thread.join()
            ''')
        self.check_seen(interp, 3)

    # One callback calls the next, in another interpreter.
    NESTED = '''if True:
        def nest():
            note()
            for kind in VOID, VOID_HELD:
                kind(inner)()
                note()
        '''

    def nested(self):
        """Interpreters a and b, and the address of a callback of a which calls
        one of b twice, each of which calls another one of a twice."""
        a = self.create()
        innermost = self.get(a, 'by_ctypes(note)')
        b, inner = self.with_callback(self.NESTED, 'nest', inner=innermost)
        a.exec(f'inner = {inner}\n' + self.NESTED)
        return a, b, self.get(a, 'by_ctypes(nest)')

    def test_nested_in_thread_of_c(self):
        a, b, outer = self.nested()
        self.run_crowd(outer, 50)
        self.check_seen(a, 100 * (3 + 4))
        self.check_seen(b, 100 * 2 * 3)

    def test_nested_in_thread_of_another_interpreter(self):
        a, b, outer = self.nested()
        for _ in range(50):
            VOID(outer)()
            VOID_HELD(outer)()
            self.assertEqual(here(), 0)
        self.check_seen(a, 100 * (3 + 4))
        self.check_seen(b, 100 * 2 * 3)

    def test_nested_against_the_order(self):
        # Threads that go from a to b, and threads that go from b to a: each
        # lets go of one lock before it takes the other.
        a, inner_a = self.with_callback(self.NESTED)
        b, inner_b = self.with_callback(self.NESTED)
        a.exec(f'inner = {inner_b}')
        b.exec(f'inner = {inner_a}')
        crowds = [gilstate.start(self.get(interp, 'by_ctypes(nest)'), 100, 2)
                  for interp in (a, b)]
        for crowd in crowds:
            gilstate.join(crowd, support.LONG_TIMEOUT)
        for interp in a, b:
            self.check_seen(interp, 200 * (3 + 2))

    def test_state_is_used_again(self):
        # Back in an interpreter in which it is already, the thread finds what
        # it has there.
        local.x = 'mine'
        found = []
        inner = by_ctypes(lambda: found.append(getattr(local, 'x', None)))
        interp, outer = self.with_callback(
            'def call():\n'
            '    VOID(inner)()\n'
            '    VOID_HELD(inner)()\n', 'call', inner=inner)
        VOID(outer)()
        VOID_HELD(outer)()
        self.assertEqual(found, ['mine'] * 4)

    def test_not_closed_while_another_interpreter_waits(self):
        entered = interpreters.create_queue()
        leave = interpreters.create_queue()
        interp, address = self.with_callback(
            'def stay():\n'
            '    entered.put(1)\n'
            '    leave.get(timeout=timeout)\n'
            '    note()\n', 'stay', entered=entered, leave=leave,
            timeout=support.SHORT_TIMEOUT)
        thread = threading.Thread(target=VOID(address))
        thread.start()
        entered.get(timeout=support.SHORT_TIMEOUT)
        try:
            with self.assertRaisesRegex(interpreters.InterpreterError, 'running'):
                interp.close()
        finally:
            leave.put(1)
            thread.join(support.SHORT_TIMEOUT)
        self.check_seen(interp, 1)
        interp.close()

    def test_fork(self):
        # The child could not go back to the interpreter that waits.
        address = by_ctypes(try_fork)
        interp = self.create(address=address)
        errors.clear()
        interp.exec('VOID(address)()')
        self.assertEqual(len(errors), 1)
        self.assertIn('another interpreter waits', str(errors[0]))


local = threading.local()
errors = []


def try_fork():
    try:
        if os.fork() == 0:
            os._exit(1)
    except RuntimeError as exc:
        errors.append(exc)


class ClosedTests(Base):
    """Function pointers of ctypes outlive the interpreter that made them."""

    def address_in(self, interp):
        return self.get(interp, 'by_ctypes(note)')

    def test_while_threads_call(self):
        # As at exit: the threads end.
        for _ in range(10):
            interp = self.create()
            crowd = gilstate.start(self.address_in(interp), -1, 3)
            for _ in support.sleeping_retry(support.SHORT_TIMEOUT):
                if gilstate.made(crowd) > 10:
                    break
            interp.close()
            gilstate.join(crowd, support.SHORT_TIMEOUT)

    def test_before_threads_call(self):
        interp = self.create()
        address = self.address_in(interp)
        interp.close()
        # Others may come to where it was.
        for _ in range(3):
            self.address_in(self.create())
        crowd = gilstate.start(address, -1, 3)
        gilstate.join(crowd, support.SHORT_TIMEOUT)
        self.assertEqual(gilstate.made(crowd), 0)


class CopyTests(Base):
    """The owner is the interpreter whose private copy the code is in."""

    def with_copy(self, how='plain', func='note', **ns):
        interp = self.create('import _testrwgilstate as copy\n', **ns)
        if func != 'note':
            interp.exec(CtypesTests.NESTED)
        return interp, self.get(interp, f'copy.set_target({func}, {how!r})')

    def check_order(self, interp):
        self.assertEqual(self.get(interp, 'copy.disorder()'), 0)

    def test_threads_of_c(self):
        # In all at the same time.  What nests calls five times.
        for how, times in ('plain', 1), ('keeping', 1), ('nesting', 5):
            with self.subTest(how):
                interps, crowds = [], []
                for _ in range(3):
                    interp, address = self.with_copy(how)
                    interps.append(interp)
                    crowds.append(gilstate.start(address, 200, 2))
                for crowd in crowds:
                    gilstate.join(crowd, support.LONG_TIMEOUT)
                for interp in interps:
                    self.check_seen(interp, 400 * times)
                    self.check_order(interp)

    def test_thread_of_another_interpreter(self):
        for how, times in ('plain', 1), ('keeping', 1), ('nesting', 5):
            with self.subTest(how):
                interp, address = self.with_copy(how)
                for _ in range(20):
                    VOID(address)()
                    VOID_HELD(address)()
                    self.assertEqual(here(), 0)
                self.check_seen(interp, 40 * times)
                self.check_order(interp)

    def test_nested(self):
        # a's callback calls one of b, in every way that each has.
        for how_a in 'plain', 'keeping':
            for how_b in 'plain', 'keeping', 'nesting':
                with self.subTest(a=how_a, b=how_b):
                    b, inner = self.with_copy(how_b)
                    a, outer = self.with_copy(how_a, 'nest', inner=inner)
                    self.run_crowd(outer, 50)
                    for _ in range(50):
                        VOID(outer)()
                        VOID_HELD(outer)()
                    self.check_seen(a, 200 * 3)
                    self.check_seen(b, 200 * 2 * (5 if how_b == 'nesting' else 1))
                    self.check_order(a)
                    self.check_order(b)

    def test_by_turns(self):
        # One thread, which is in neither, calls back now this one, now that.
        addresses, interps = [], []
        for how in 'keeping', 'plain', 'keeping':
            interp, address = self.with_copy(how)
            addresses.append(address)
            interps.append(interp)
        turn = by_ctypes(lambda: [VOID(address)() for address in addresses])
        self.run_crowd(turn, 100)
        for interp in interps:
            self.check_seen(interp, 200)
            self.check_order(interp)

    def test_no_state_is_left(self):
        # A thread that comes back and back uses what it has kept.
        interp, address = self.with_copy('keeping')
        for _ in range(100):
            VOID(address)()
        self.assertLess(self.get(interp, 'copy.count_states()'), 5)

    def test_closed_while_it_calls(self):
        # As at exit: the threads end.
        interp, address = self.with_copy()
        crowd = gilstate.start(address, -1, 3)
        self.wait_for_calls(crowd)
        interp.close()
        gilstate.join(crowd, support.SHORT_TIMEOUT)

    def test_closed_before_it_calls(self):
        interp, address = self.with_copy()
        interp.close()
        crowd = gilstate.start(address, -1, 3)
        gilstate.join(crowd, support.SHORT_TIMEOUT)
        self.assertEqual(gilstate.made(crowd), 0)

    def wait_for_calls(self, crowd):
        for _ in support.sleeping_retry(support.SHORT_TIMEOUT):
            if gilstate.made(crowd) > 10:
                return

    def test_closed_while_it_calls_below_a_cleanup(self):
        # Unwinding would run code without the lock, or abort: the threads wait.
        for how in 'plain', 'keeping', 'nesting':
            with self.subTest(how):
                interp, address = self.with_copy(how)
                crowd = gilstate.start(address, -1, 3, True)
                self.wait_for_calls(crowd)
                interp.close()
                made = -1
                for _ in support.sleeping_retry(support.SHORT_TIMEOUT):
                    before, made = made, gilstate.made(crowd)
                    if made == before:
                        break
                self.assertEqual(gilstate.unwound(crowd), 0)
                with self.assertRaisesRegex(TimeoutError, '3 threads still run'):
                    gilstate.join(crowd, 0.1)

    def test_careful_code_is_told(self):
        for how in 'careful', 'considerate':
            with self.subTest(how):
                interp, address = self.with_copy(how)
                self.run_crowd(address, 20)
                self.check_seen(interp, 40)
                interp.close()
                for guarded in False, True:
                    crowd = gilstate.start(address, 100, 3, guarded)
                    gilstate.join(crowd, support.SHORT_TIMEOUT)
                    self.assertEqual(gilstate.made(crowd), 300)
                    self.assertEqual(gilstate.unwound(crowd), 0)

    def test_at_the_door_when_it_is_closed(self):
        # The interpreter's last code, with the lock held, sees the thread come.
        came = ctypes.c_int(0)
        interp, address = self.with_copy()
        interp.prepare_main(came=ctypes.addressof(came), address=address)
        interp.exec('''if True:
            import atexit, sys
            def come():
                ctypes.c_int.from_address(came).value += 1
            def start():
                sys.setswitchinterval(100)
                before = copy.count_states()
                copy.start(address, 1, 1)
                while copy.count_states() == before:
                    pass
            copy.set_target(come, 'plain')
            atexit.register(start)
            ''')
        interp.close()
        self.assertEqual(came.value, 1)

    def close_during_a_call(self, code):
        """Close an interpreter while a thread of C is in a callback, which then runs the
        code.  Returns how many seconds that took, and whether the callback has come to
        its end."""
        ended = ctypes.c_int(0)
        began = interpreters.create_queue()
        interp = self.create(f'''if True:
            import time, _testrwgilstate as copy
            def call():
                began.put(1)
                {code}
                ctypes.c_int.from_address(ended).value = 1
            ''', began=began, ended=ctypes.addressof(ended))
        gilstate.start(self.get(interp, "copy.set_target(call, 'plain')"), 1, 1)
        began.get(timeout=support.SHORT_TIMEOUT)
        start = time.monotonic()
        interp.close()
        return time.monotonic() - start, ended.value

    def test_call_is_finished_before_it_is_closed(self):
        seconds, ended = self.close_during_a_call('time.sleep(0.1)')
        self.assertTrue(ended)

    def test_call_that_takes_too_long(self):
        # The thread comes back when the interpreter is gone.
        seconds, ended = self.close_during_a_call('time.sleep(4)')
        self.assertFalse(ended)
        self.assertGreater(seconds, 0.4)
        self.assertLess(seconds, 3.5)

    def test_another_interpreter_calls_after_close(self):
        script = ('import ctypes, interpreters\n'
                  'interp = interpreters.create()\n'
                  'interp.exec("import _testrwgilstate as copy\\n"\n'
                  '            "result = copy.set_target(print, \'plain\')")\n'
                  'address = interp.take("result")\n'
                  'interp.close()\n'
                  'with __import__("test.support").support.SuppressCrashReport():\n'
                  '    ctypes.CFUNCTYPE(None)(address)()\n')
        rc, out, err = script_helper.assert_python_failure('-c', script)
        self.assertIn(b'called by code of an interpreter that has ended', err)


class CheckTests(Base):

    def test_check(self):
        # It says 1 to everybody once there was a subinterpreter, on the base.
        self.create()
        check = ctypes.pythonapi.PyGILState_Check
        self.assertEqual(check(), 1)
        detached = ctypes.CDLL(None).PyGILState_Check
        self.assertEqual(detached(), 0)


EXIT = '''
interps = [interpreters.create() for _ in range(3)]
for interp in interps:
    interp.exec(PRELUDE + '_result = by_ctypes(note)')
addresses = [interp.take('_result') for interp in interps] + [by_ctypes(note)]
crowds = [gilstate.start(address, -1, 2, guarded)
          for address in addresses for guarded in (False, True)]
while any(gilstate.made(crowd) < 10 for crowd in crowds):
    pass
'''


class EndTests(unittest.TestCase):
    """Threads of C call back while, and after, interpreters end."""

    def test_exit(self):
        script = ('import os, sys, _testrwgilstate as gilstate\n'
                  f'PRELUDE = {PRELUDE!r}\n' + PRELUDE + EXIT + "print('end')")
        # The hook of tracemalloc calls PyGILState_Ensure(), too.
        for options in (), ('-X', 'tracemalloc'):
            with self.subTest(options):
                rc, out, err = script_helper.assert_python_ok(*options, '-c', script)
                self.assertEqual(out.strip(), b'end')
                self.assertEqual(err, b'')

    def test_python_thread_calls_while_it_is_closed(self):
        # The interpreter's last code tells that it is being closed.  A thread of C keeps
        # it from that, until this thread, of main, has come.  That must not be lost.  If
        # it takes longer than the closing waits, that is a fatal error: try again.
        script = PRELUDE + '''if True:
            import time, _testrwgilstate as gilstate
            NAMES = 'calling', 'closing', 'visiting', 'visited'
            flags = {name: ctypes.c_int(0) for name in NAMES}
            def wait_for(name):
                while not flags[name].value:
                    time.sleep(0.001)
            interp = interpreters.create()
            interp.prepare_main(where={n: ctypes.addressof(f) for n, f in flags.items()})
            interp.exec("""if True:
                import atexit, ctypes, time
                flags = {n: ctypes.c_int.from_address(a) for n, a in where.items()}
                def tell(name):
                    flags[name].value += 1
                def call():
                    tell('calling')
                    while not flags['visiting'].value:
                        time.sleep(0.001)
                def visit():
                    tell('visiting')
                    time.sleep(0.2)     # the call has ended: nothing else is waited for
                    tell('visited')
                atexit.register(tell, 'closing')
                callbacks = [ctypes.CFUNCTYPE(None)(f) for f in (call, visit)]
                addresses = [ctypes.cast(c, ctypes.c_void_p).value for c in callbacks]
                """)
            call, visit = interp.take('addresses')
            gilstate.start(call, 1, 1)
            wait_for('calling')
            closer = threading.Thread(target=interp.close)
            closer.start()
            wait_for('closing')
            VOID(visit)()
            closer.join()
            print(here(), flags['visited'].value)
            '''
        with support.SuppressCrashReport():
            for _ in range(5):
                res, _ = script_helper.run_python_until_end('-c', script)
                if b'called by code of an interpreter that has ended' not in res.err:
                    break
        self.assertEqual((res.rc, res.out.strip(), res.err), (0, b'0 1', b''))


if __name__ == '__main__':
    unittest.main()
