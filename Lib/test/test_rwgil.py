"""The RW-GIL: its races, one by one (numbers as in Python/rwgil.c), then all at once."""

import os
import signal
import textwrap
import threading
import unittest
from test import support
from test.support import import_helper, script_helper, threading_helper

rwgil = import_helper.import_module('_testrwgil')
_interpreters = import_helper.import_module('_interpreters')
_parcels = import_helper.import_module('_parcels')

threading_helper.requires_working_threading(module=True)


def wait_for(condition, what):
    """Poll for a state that only shows from outside; not for ordering."""
    for _ in support.sleeping_retry(support.SHORT_TIMEOUT, what):
        if condition():
            return


class Thread(threading.Thread):
    """A thread whose exception is raised by join()."""

    def __init__(self, func, *args):
        super().__init__(daemon=True)
        self.func, self.args, self.exc, self.result = func, args, None, None
        self.start()

    def run(self):
        try:
            self.result = self.func(*self.args)
        except BaseException as exc:
            self.exc = exc

    def join(self):
        super().join(support.LONG_TIMEOUT)
        if self.is_alive():
            raise AssertionError('thread hangs')
        if self.exc is not None:
            raise self.exc
        return self.result


class Base(unittest.TestCase):

    def create(self):
        interp = _interpreters.create()
        self.addCleanup(self.destroy, interp)
        return interp

    def destroy(self, interp):
        try:
            _interpreters.destroy(interp)
        except _interpreters.InterpreterNotFoundError:
            pass

    def execute(self, interp, code, **ns):
        """Run code in an interpreter, in this thread."""
        ns.setdefault('timeout', support.SHORT_TIMEOUT)
        lines = [f'{name} = {value!r}' for name, value in ns.items()]
        lines += ['import _testrwgil as rwgil', textwrap.dedent(code)]
        excinfo = _interpreters.exec(interp, '\n'.join(lines))
        if excinfo is not None:
            raise AssertionError(excinfo.errdisplay)

    def start(self, interp, code, **ns):
        return Thread(lambda: self.execute(interp, code, **ns))

    def event(self):
        return rwgil.event_new()


class SectionTests(Base):

    def test_own(self):
        before = rwgil.word()
        wait, words = rwgil.write(None)
        self.assertEqual(words, 1)
        self.assertEqual(rwgil.word(), before + 1)

    def test_pair_covers_both(self):
        interp = self.create()
        self.assertEqual(rwgil.write(interp)[1], 2)
        self.execute(interp, 'assert rwgil.word() >= 1')

    def test_pair_with_itself_is_own(self):
        self.assertEqual(rwgil.write(_interpreters.get_current()[0])[1], 1)

    def test_all(self):
        self.create()
        self.assertEqual(rwgil.write('all')[1], -1)

    def test_legacy_interpreter_shares_the_slot(self):
        interp = _interpreters.create('legacy')
        self.addCleanup(self.destroy, interp)
        self.assertEqual(rwgil.write(interp)[1], 1)
        with self.assertRaises(LookupError):
            rwgil.state(interp)

    def test_unknown_interpreter(self):
        interp = self.create()
        _interpreters.destroy(interp)
        for bad in interp, 2**40:
            with self.assertRaisesRegex(
                    _interpreters.InterpreterNotFoundError, str(bad)):
                rwgil.write(bad)

    def test_reader_state(self):
        self.assertTrue(rwgil.state(0)['reading'])
        interp = self.create()
        self.assertFalse(rwgil.state(interp)['reading'])

    def test_slots_are_reused(self):
        slots = set()
        for _ in range(5):
            interp = _interpreters.create()
            slots.add(rwgil.state(interp)['slot'])
            _interpreters.destroy(interp)
        self.assertEqual(len(slots), 1)

    def test_statistics_survive_the_interpreter(self):
        interp = _interpreters.create()
        self.execute(interp, 'for i in range(7): rwgil.write(None)')
        own = 'all' if rwgil.mode() == 'global' else 'own'
        before = _parcels.lock_stats()['gone']
        _interpreters.destroy(interp)
        after = _parcels.lock_stats()['gone']
        self.assertGreaterEqual(
            after['sections'][own], before['sections'][own] + 7)
        self.assertGreaterEqual(
            after['write_hold']['count'], before['write_hold']['count'] + 7)
        with self.assertRaises(LookupError):
            rwgil.state(interp)


class RaceTests(Base):

    def test_r1_reader_leaves_while_a_writer_claims(self):
        # The reader is in C code without a safepoint; it leaves by detaching.
        interp = self.create()
        begun, end = self.event(), self.event()
        reader = self.start(interp, 'rwgil.busy(begun, end); '
                            'rwgil.event_wait(done)',
                            begun=begun, end=end, done=(done := self.event()))
        rwgil.event_wait(begun)
        writer = Thread(rwgil.write, interp)
        wait_for(lambda: rwgil.state(interp)['safepoints'] > 0, 'not asked')
        rwgil.event_set(end)
        self.assertEqual(writer.join()[1], 2)
        rwgil.event_set(done)
        reader.join()

    def test_r2_reader_comes_while_a_writer_has_the_heap(self):
        interp, helper = self.create(), self.create()
        entered, leave, ran = self.event(), self.event(), self.event()
        writer = self.start(helper, 'rwgil.write(other, entered, leave)',
                            other=interp, entered=entered, leave=leave)
        rwgil.event_wait(entered)
        reader = self.start(interp, 'rwgil.event_set(ran)', ran=ran)
        wait_for(lambda: rwgil.state(interp)['read_waiting'], 'reader waits')
        self.assertFalse(rwgil.event_is_set(ran))
        self.assertFalse(rwgil.state(interp)['reading'])
        rwgil.event_set(leave)
        reader.join()
        writer.join()
        self.assertTrue(rwgil.event_is_set(ran))

    def test_r2_reader_of_another_heap_runs_on(self):
        interp, helper, bystander = (self.create() for _ in range(3))
        entered, leave = self.event(), self.event()
        writer = self.start(helper, 'rwgil.write(other, entered, leave)',
                            other=interp, entered=entered, leave=leave)
        rwgil.event_wait(entered)
        if rwgil.mode() == 'pair':      # RW-3
            self.execute(bystander, 'x = sum(range(1000))')
        rwgil.event_set(leave)
        writer.join()

    def test_python_code_stops_at_once(self):
        interp = self.create()
        begun, stop = self.event(), self.event()
        reader = self.start(interp, '''
            rwgil.event_set(begun)
            while not rwgil.event_is_set(stop):
                pass
            ''', begun=begun, stop=stop)
        rwgil.event_wait(begun)
        before = rwgil.state(interp)['safepoints']
        for _ in range(50):
            rwgil.write(interp)
        self.assertGreater(rwgil.state(interp)['safepoints'], before)
        rwgil.event_set(stop)
        reader.join()

    def test_r3_thread_states_die_while_writers_ask(self):
        interp = self.create()
        stop = self.event()
        churn = self.start(interp, '''
            import _thread
            while not rwgil.event_is_set(stop):
                lock = _thread.allocate_lock()
                lock.acquire()
                _thread.start_new_thread(lock.release, ())
                lock.acquire()
            ''', stop=stop)
        for _ in range(2000):
            rwgil.write(interp)
        rwgil.event_set(stop)
        churn.join()

    def both_ways(self, code_a, code_b):
        a, b = self.create(), self.create()
        threads = [self.start(a, code_a, other=b, n=2000),
                   self.start(b, code_b, other=a, n=2000)]
        for thread in threads:
            thread.join()

    def test_r4_writers_want_the_same_pair(self):
        code = 'for i in range(n): rwgil.write(other)'
        self.both_ways(code, code)

    def test_r4_pair_against_all(self):
        self.both_ways('for i in range(n): rwgil.write(other)',
                       'for i in range(n): rwgil.write("all")')

    def test_r5_a_waiting_writer_gives_its_heap(self):
        # a waits for busy; meanwhile b gets a's heap, which a does not read.
        a, b, blocked = self.create(), self.create(), self.create()
        begun, end = self.event(), self.event()
        blocker = self.start(blocked, 'rwgil.busy(begun, end)',
                             begun=begun, end=end)
        rwgil.event_wait(begun)
        waiter = self.start(a, 'rwgil.write(other)', other=blocked)
        wait_for(lambda: rwgil.state(a)['backoffs'] > 0, 'no writer waits')
        self.execute(b, 'rwgil.write(other)', other=a)
        rwgil.event_set(end)
        blocker.join()
        waiter.join()

    def test_r6_slots_are_born_while_all_are_written(self):
        helper = self.create()
        writer = self.start(helper, '''
            for i in range(500):
                rwgil.write('all')
            ''')
        interps = [_interpreters.create() for _ in range(10)]
        for interp in interps:
            self.addCleanup(self.destroy, interp)
        writer.join()
        for interp in interps:
            self.assertEqual(rwgil.state(interp)['ticket'], 0)
            self.execute(interp, 'rwgil.write(None)')

    def test_r6_step_by_step(self):
        ticket = rwgil.state(0)['slot'] + 1
        lost = rwgil.lost_updates()
        for _ in range(2):
            birth = rwgil.birth()
            self.assertTrue(birth['waits'])
            self.assertEqual(birth['ticket'], ticket)
        self.assertEqual(rwgil.lost_updates(), lost)

    def test_r7_step_by_step(self):
        script = textwrap.dedent("""
            import _interpreters, _testrwgil as rwgil, os
            ticket = rwgil.state(0)['slot'] + 1
            death = rwgil.death()
            assert death['free'], death
            assert death['ticket'] == ticket, death
            assert death['next'] != death['slot'], death
            # Now that nobody claims it, it's used again.
            new = _interpreters.create()
            assert rwgil.state(new)['slot'] == death['slot'], death
            print('ok', flush=True)
            os._exit(0)
            """)
        rc, out, err = script_helper.assert_python_ok('-c', script)
        self.assertEqual(out.strip(), b'ok')

    def test_r7_a_slot_dies_while_others_are_claimed(self):
        helper = self.create()
        writer = self.start(helper, '''
            for i in range(500):
                rwgil.write('all')
            ''')
        for _ in range(10):
            _interpreters.destroy(_interpreters.create())
        writer.join()
        self.assertEqual(rwgil.write('all')[1], -1)

    def test_r8_a_reader_gets_turns(self):
        interp, helper = self.create(), self.create()
        stop, done = self.event(), self.event()
        writer = self.start(helper, '''
            while not rwgil.event_is_set(stop):
                rwgil.write(other)
            ''', other=interp, stop=stop)
        reader = self.start(interp, '''
            for i in range(20000):
                pass
            rwgil.event_set(done)
            ''', done=done)
        reader.join()
        self.assertTrue(rwgil.event_is_set(done))
        self.assertTrue(writer.is_alive())
        rwgil.event_set(stop)
        writer.join()

    def test_r9_a_writer_lets_go_of_its_lock(self):
        # While it waits for C code, other threads of its interpreter run.
        interp = self.create()
        begun, end = self.event(), self.event()
        blocker = self.start(interp, 'rwgil.busy(begun, end)',
                             begun=begun, end=end)
        rwgil.event_wait(begun)
        writer = Thread(rwgil.write, interp)
        wait_for(lambda: rwgil.state(0)['backoffs'] > 0, 'no back-off')
        self.assertTrue(writer.is_alive())
        rwgil.event_set(end)
        blocker.join()
        self.assertEqual(writer.join()[1], 2)
        self.assertFalse(rwgil.state(interp)['wanted'])

    def test_r9_a_claim_ends_the_readers_grace(self):
        self.addCleanup(rwgil.set_grace, rwgil.set_grace(
            int(2 * support.LONG_TIMEOUT * 1e9)))
        for _ in range(5):          # not every time it's in its grace
            interp = self.create()
            before = rwgil.state(0)['backoffs']
            begun, end = self.event(), self.event()
            reader = self.start(interp, '''
                rwgil.busy(begun, end)
                for i in range(10_000):
                    pass
                ''', begun=begun, end=end)
            rwgil.event_wait(begun)
            writer = Thread(rwgil.write, interp)
            wait_for(lambda: rwgil.state(0)['backoffs'] > before
                             and rwgil.state(interp)['wanted'], 'no back-off')
            rwgil.event_set(end)
            self.assertEqual(writer.join()[1], 2)
            reader.join()

    def test_r9_other_interpreter_is_closed_meanwhile(self):
        interp = self.create()
        begun, end = self.event(), self.event()
        def run():
            self.execute(interp, 'rwgil.busy(begun, end)', begun=begun, end=end)
            _interpreters.destroy(interp)
        blocker = Thread(run)
        rwgil.event_wait(begun)
        def write():
            try:
                return rwgil.write(interp)[1]
            except _interpreters.InterpreterNotFoundError:
                return 'gone'
        writer = Thread(write)
        wait_for(lambda: rwgil.state(0)['backoffs'] > 0, 'no back-off')
        rwgil.event_set(end)
        blocker.join()
        self.assertIn(writer.join(), (2, 'gone'))

    def test_long_c_code_has_safepoints_where_it_checks_signals(self):
        # Arithmetic on huge ints checks for signals, and so stops.
        interp = self.create()
        begun, end = self.event(), self.event()
        reader = self.start(interp, '''
            x = 3 ** 200_000
            rwgil.event_set(begun)
            while not rwgil.event_is_set(end):
                x * x
            ''', begun=begun, end=end)
        rwgil.event_wait(begun)
        for _ in range(20):
            rwgil.write(interp)
        rwgil.event_set(end)
        reader.join()


@unittest.skipUnless(hasattr(signal, 'pthread_kill'), 'needs POSIX signals')
class SignalTests(Base):

    def test_ctrl_c_ends_a_writers_wait(self):
        script = textwrap.dedent("""
            import _interpreters, _testrwgil as rwgil, signal, threading
            interp = _interpreters.create()
            begun, end = rwgil.event_new(), rwgil.event_new()
            thread = threading.Thread(target=_interpreters.exec, args=(
                interp, f'import _testrwgil; _testrwgil.busy({begun}, {end})'))
            thread.start()
            rwgil.event_wait(begun)
            def interrupt():
                while not rwgil.state(0)['backoffs']:
                    pass
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            threading.Thread(target=interrupt).start()
            try:
                rwgil.write(interp)
            except KeyboardInterrupt:
                print('interrupted')
            rwgil.event_set(end)
            thread.join()
            print(rwgil.write(interp)[1])
            """)
        rc, out, err = script_helper.assert_python_ok('-c', script)
        self.assertEqual(out.split(), [b'interrupted', b'2'])


class ModeTests(unittest.TestCase):

    CODE = 'import _testrwgil as t; print(t.mode(), t.write(None)[1])'

    def test_option(self):
        for args, env, expected in [
            ((), None, b'pair 1'),
            (('-X', 'rwgil=pair'), None, b'pair 1'),
            (('-X', 'rwgil=global'), None, b'global -1'),
            ((), 'global', b'global -1'),
            (('-X', 'rwgil=pair'), 'global', b'pair 1'),
            (('-E',), 'global', b'pair 1'),
        ]:
            with self.subTest(args=args, env=env):
                env = {} if env is None else {'PYTHON_RWGIL': env}
                rc, out, err = script_helper.assert_python_ok(
                    *args, '-c', self.CODE, __isolated=False, **env)
                self.assertEqual(out.strip(), expected)

    def test_repeated_initialisation(self):
        # One without the option does not inherit the mode of an earlier one.
        from test.test_embed import EmbeddingTestsMixin
        class Embedding(EmbeddingTestsMixin, unittest.TestCase):
            def runTest(self):
                code = ("import _testrwgil as t, os; print(t.mode(), flush=True);"
                        "os.unsetenv('PYTHON_RWGIL')")
                self.out, err = self.run_embedded_interpreter(
                    'test_repeated_init_exec', code,
                    env=dict(os.environ, PYTHON_RWGIL='global'))
        test = Embedding()
        result = unittest.TestResult()
        test.run(result)
        for skipped, why in result.skipped:
            self.skipTest(why)
        self.assertTrue(result.wasSuccessful(), result.failures + result.errors)
        self.assertEqual(test.out.split(), ['global', 'pair', 'pair', 'pair'])

    def test_help(self):
        for option, name in ('--help-xoptions', b'-X rwgil='), \
                            ('--help-env', b'PYTHON_RWGIL'):
            rc, out, err = script_helper.assert_python_ok(option)
            self.assertIn(name, out)

    def test_bad_value(self):
        for args, env in [(('-X', 'rwgil=fast'), {}), (('-X', 'rwgil'), {}),
                          ((), {'PYTHON_RWGIL': 'fast'})]:
            with self.subTest(args=args, env=env):
                with support.SuppressCrashReport():
                    rc, out, err = script_helper.assert_python_failure(
                        *args, '-c', '1', __isolated=False, **env)
                self.assertEqual(rc, 1)
                self.assertIn(b'"pair" or "global"', err)


@support.requires_fork()
class ForkTests(unittest.TestCase):

    def fork(self, busy):
        """Fork with one more interpreter, that is maybe in C code for longer than
        fork waits.  Returns what the child saw."""
        script = textwrap.dedent(f"""
            import _interpreters, _testmemheap, _testrwgil as rwgil, os
            import threading, warnings
            warnings.simplefilter('ignore', DeprecationWarning)
            interp = _interpreters.create()
            begun, end = rwgil.event_new(), rwgil.event_new()
            thread = threading.Thread(target=_interpreters.exec, args=(
                interp, f'import _testrwgil; _testrwgil.busy({{begun}}, {{end}})'))
            if {busy}:
                thread.start()
                rwgil.event_wait(begun)
            before = _testmemheap.stats()
            pid = os.fork()
            if pid == 0:
                after = _testmemheap.stats()
                new = _interpreters.create()
                _interpreters.exec(new, 'x = [str(i) for i in range(10_000)]')
                _interpreters.destroy(new)
                print(rwgil.forked_quietly(),
                      after['orphans'] - before['orphans'],
                      _testmemheap.stats()['adopted'] - before['adopted'], flush=True)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            rwgil.event_set(end)
            if {busy}:
                thread.join()
            assert status == 0, status
            """)
        rc, out, err = script_helper.assert_python_ok('-c', script)
        return out.split()

    @unittest.skipUnless(import_helper.import_module('_testmemheap').heap(), 'needs heaps')
    def test_heaps_that_stand_still_are_used_again(self):
        self.assertEqual(self.fork(busy=False), [b'True', b'1', b'1'])

    @unittest.skipUnless(import_helper.import_module('_testmemheap').heap(), 'needs heaps')
    def test_heaps_that_were_changing_are_left_alone(self):
        self.assertEqual(self.fork(busy=True), [b'False', b'0', b'0'])


class StressTests(unittest.TestCase):

    def test_stress(self):
        seconds = 10 if support.is_resource_enabled('cpu') else 3
        rc, out, err = script_helper.assert_python_ok(
            '-m', 'test.rwgil_stress', '--seconds', str(seconds))
        self.assertIn(b'0 lost updates', out)


if __name__ == '__main__':
    unittest.main()
