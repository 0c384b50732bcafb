"""InterpreterPoolExecutor."""

import operator
import sys
import threading
import unittest
from test import support
from test.support import import_helper, script_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from concurrent import futures
from concurrent.futures import InterpreterPoolExecutor, thread
from concurrent.futures.interpreter import BrokenInterpreterPool
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase

TIMEOUT = support.SHORT_TIMEOUT


class ExecutorTests(TestCase):

    def test_names(self):
        self.assertIn('InterpreterPoolExecutor', futures.__all__)
        self.assertTrue(issubclass(BrokenInterpreterPool, thread.BrokenThreadPool))
        self.assertTrue(issubclass(InterpreterPoolExecutor, futures.Executor))

    def test_import_is_lazy(self):
        script_helper.assert_python_ok('-c', '''if True:
            import concurrent.futures, sys
            assert "interpreters" not in sys.modules
            concurrent.futures.InterpreterPoolExecutor
            assert "interpreters" in sys.modules
            ''')

    def test_submit(self):
        with InterpreterPoolExecutor(2) as executor:
            self.assertEqual(executor.submit(pow, 2, 10).result(TIMEOUT), 1024)
            ids = [executor.submit(helpers.current_id) for _ in range(4)]
            self.assertNotIn(0, [future.result(TIMEOUT) for future in ids])
            future = executor.submit(helpers.echo, [1], b=lambda: 2)
            (one,), kwargs = future.result(TIMEOUT)
            self.assertEqual((one, kwargs['b']()), ([1], 2))

    def test_one_interpreter_for_each_worker(self):
        barrier = interpreters.create_queue(), interpreters.create_queue()
        with InterpreterPoolExecutor(2) as executor:
            a = executor.submit(meet, *barrier)
            b = executor.submit(meet, *reversed(barrier))
            ids = {a.result(TIMEOUT), b.result(TIMEOUT)}
            self.assertEqual(len(ids), 2)
            self.assertTrue(ids <= {i.id for i in interpreters.list_all()})
        self.assertFalse(ids & {i.id for i in interpreters.list_all()})

    def test_workers_are_reused(self):
        with InterpreterPoolExecutor(3) as executor:
            ids = {executor.submit(helpers.current_id).result(TIMEOUT)
                   for _ in range(5)}
        self.assertLessEqual(len(ids), 3)

    def test_state_stays_in_a_worker(self):
        with InterpreterPoolExecutor(1) as executor:
            executor.submit(helpers.set_state, 5).result(TIMEOUT)
            self.assertEqual(executor.submit(helpers.get_state).result(TIMEOUT), 5)

    def test_in_another_interpreter(self):
        interp = self.create()
        self.assertEqual(interp.call(use_a_pool), [0, 1, 4])

    def test_thread_names(self):
        with InterpreterPoolExecutor(1, thread_name_prefix='spam') as executor:
            executor.submit(len, '').result(TIMEOUT)
            self.assertEqual([t.name for t in executor._threads], ['spam_0'])
        with InterpreterPoolExecutor(1) as executor:
            executor.submit(len, '').result(TIMEOUT)
            worker, = executor._threads
            self.assertRegex(worker.name, r'InterpreterPoolExecutor-\d+_0')

    def test_bad_arguments(self):
        for bad in 0, -1:
            with self.assertRaises(ValueError):
                InterpreterPoolExecutor(bad)
        with self.assertRaises(TypeError):
            InterpreterPoolExecutor(initializer=1)
        with InterpreterPoolExecutor(1) as executor:
            with self.assertRaises(TypeError):
                executor.submit()
            with self.assertRaises(TypeError):
                executor.submit(1).result(TIMEOUT)
            with self.assertRaises(ValueError):
                executor.map(len, 'a', chunksize=0)


def use_a_pool():
    from concurrent.futures import InterpreterPoolExecutor
    with InterpreterPoolExecutor(2) as executor:
        return list(executor.map(pow, range(3), [2] * 3))


def meet(mine, other):
    """Return only when somebody does the same with the queues swapped."""
    import interpreters
    other.put(1)
    mine.get()
    return interpreters.get_current().id


class MapTests(TestCase):

    def test_map(self):
        with InterpreterPoolExecutor(2) as executor:
            for chunksize in 1, 2, 3, 100:
                with self.subTest(chunksize):
                    self.assertEqual(
                        list(executor.map(pow, range(10), range(10),
                                          chunksize=chunksize)),
                        list(map(pow, range(10), range(10))))
            self.assertEqual(list(executor.map(pow, [], [], chunksize=3)), [])

    def test_shortest(self):
        with InterpreterPoolExecutor(1) as executor:
            for chunksize in 1, 2:
                self.assertEqual(
                    list(executor.map(operator.add, [1, 2, 3], [4, 5],
                                      chunksize=chunksize)), [5, 7])

    def test_starts_at_once(self):
        with InterpreterPoolExecutor(1) as executor:
            queue = interpreters.create_queue()
            executor.map(queue.put, [1, 2, 3], chunksize=2)
            self.assertEqual([queue.get(timeout=TIMEOUT) for _ in range(3)],
                             [1, 2, 3])

    def test_timeout(self):
        for chunksize in 1, 2:
            with InterpreterPoolExecutor(1) as executor:
                go_on = interpreters.create_queue()
                results = executor.map(wait_for, [None, go_on], timeout=0.1,
                                       chunksize=chunksize)
                with self.assertRaises(TimeoutError):
                    list(results)
                go_on.put(None)

    def test_exception(self):
        with InterpreterPoolExecutor(1) as executor:
            results = executor.map(helpers.fail_for, [2] * 4, range(4))
            self.assertEqual([next(results), next(results)], [0, 1])
            with self.assertRaises(helpers.CustomError):
                next(results)
            results = executor.map(helpers.fail_for, [3] * 4, range(4),
                                   chunksize=2)
            self.assertEqual([next(results), next(results)], [0, 1])
            with self.assertRaises(helpers.CustomError):
                next(results)


def wait_for(queue):
    if queue is not None:
        queue.get()


class ExceptionTests(TestCase):

    def test_own_type(self):
        with InterpreterPoolExecutor(1) as executor:
            error = executor.submit(helpers.raise_custom).exception(TIMEOUT)
            self.assertIs(type(error), helpers.CustomError)
            self.assertEqual(error.detail, 'seven')
            self.assertIs(type(error.__cause__), interpreters.ExecutionFailed)
            self.assertIn('in raise_custom', str(error.__cause__))

    def test_cause_stays(self):
        def func():
            raise ValueError from KeyError('why')
        with InterpreterPoolExecutor(1) as executor:
            error = executor.submit(func).exception(TIMEOUT)
        self.assertIs(type(error), ValueError)
        self.assertEqual(repr(error.__cause__.__cause__), "KeyError('why')")

    def test_not_to_be_recreated(self):
        with InterpreterPoolExecutor(1) as executor:
            error = executor.submit(helpers.raise_picky).exception(TIMEOUT)
        self.assertIs(type(error), interpreters.ExecutionFailed)

    def test_not_shareable(self):
        with InterpreterPoolExecutor(1) as executor:
            future = executor.submit(helpers.echo, threading.Lock())
            self.assertIs(type(future.exception(TIMEOUT)),
                          interpreters.NotShareableError)
            future = executor.submit(threading.Lock)
            self.assertIs(type(future.exception(TIMEOUT)),
                          interpreters.NotShareableError)
            self.assertEqual(executor.submit(len, 'a').result(TIMEOUT), 1)

    def test_system_exit(self):
        with InterpreterPoolExecutor(1) as executor:
            error = executor.submit(sys.exit, 3).exception(TIMEOUT)
            self.assertEqual(repr(error), 'SystemExit(3)')
            self.assertEqual(executor.submit(len, 'a').result(TIMEOUT), 1)


class InitializerTests(TestCase):

    def test_initializer(self):
        with InterpreterPoolExecutor(2, initializer=helpers.set_state,
                                     initargs=('ready',)) as executor:
            self.assertEqual(set(executor.map(helpers.get_state, range(8))),
                             {'ready'})

    def test_of_main_with_global(self):
        self.assertEqual(self.run_script('''
            from concurrent.futures import InterpreterPoolExecutor
            model = None
            def init(value):
                global model
                model = value
            def task(x):
                return model * x
            with InterpreterPoolExecutor(2, initializer=init,
                                         initargs=(10,)) as executor:
                print(list(executor.map(task, range(4))), model)
            '''), '[0, 10, 20, 30] None')

    def check_broken(self, pattern, **kwargs):
        with support.captured_stderr(), \
             self.assertLogs('concurrent.futures', 'CRITICAL'):
            executor = InterpreterPoolExecutor(1, **kwargs)
            try:
                future = executor.submit(len, 'a')
                error = future.exception(TIMEOUT)
                self.assertIs(type(error), BrokenInterpreterPool)
                self.assertRegex(str(error), pattern)
                with self.assertRaisesRegex(BrokenInterpreterPool,
                                            pattern) as caught:
                    executor.submit(len, 'a')
                self.assertIs(caught.exception.__cause__, error.__cause__)
            finally:
                executor.shutdown()
        return error.__cause__

    def test_fails(self):
        cause = self.check_broken('CustomError: 7',
                                  initializer=helpers.raise_custom)
        self.assertIs(type(cause), helpers.CustomError)

    def test_cannot_be_sent(self):
        cause = self.check_broken('NotShareableError.*lock',
                                  initializer=helpers.echo,
                                  initargs=(threading.Lock(),))
        self.assertIs(type(cause), interpreters.NotShareableError)

    def test_no_interpreter(self):
        with support.swap_attr(interpreters, 'create', no_memory):
            cause = self.check_broken('MemoryError')
        self.assertIs(type(cause), MemoryError)


def no_memory():
    raise MemoryError


class ShutdownTests(TestCase):

    def test_closes_the_interpreters(self):
        executor = InterpreterPoolExecutor(2)
        id = executor.submit(helpers.current_id).result(TIMEOUT)
        executor.shutdown()
        with self.assertRaises(interpreters.InterpreterNotFoundError):
            interpreters.Interpreter(id)
        with self.assertRaises(RuntimeError):
            executor.submit(len, '')

    def test_finishes_what_is_pending(self):
        executor = InterpreterPoolExecutor(1)
        pending = [executor.submit(abs, -i) for i in range(20)]
        executor.shutdown()
        self.assertEqual([f.result(0) for f in pending], list(range(20)))

    def test_cancel_futures(self):
        executor = InterpreterPoolExecutor(1)
        started, go_on = interpreters.create_queue(), interpreters.create_queue()
        first = executor.submit(helpers.signal_and_wait, started, go_on)
        pending = [executor.submit(len, 'a') for _ in range(5)]
        started.get(timeout=TIMEOUT)
        executor.shutdown(wait=False, cancel_futures=True)
        self.assertTrue(all(future.cancelled() for future in pending))
        self.assertFalse(first.done())
        go_on.put('went on')
        self.assertEqual(first.result(TIMEOUT), 'went on')
        executor.shutdown()

    def test_collected(self):
        executor = InterpreterPoolExecutor(1)
        id = executor.submit(helpers.current_id).result(TIMEOUT)
        workers = list(executor._threads)
        del executor
        support.gc_collect()
        for worker in workers:
            self.finish(worker)
        with self.assertRaises(interpreters.InterpreterNotFoundError):
            interpreters.Interpreter(id)

    def test_exit_with_a_live_pool(self):
        self.assertEqual(self.run_script('''
            from concurrent.futures import InterpreterPoolExecutor
            executor = InterpreterPoolExecutor(2)
            futures = [executor.submit(pow, 2, n) for n in range(5)]
            print([future.result() for future in futures])
            '''), '[1, 2, 4, 8, 16]')

    def test_exit_with_pending_work(self):
        self.assertEqual(self.run_script('''
            import os
            from concurrent.futures import InterpreterPoolExecutor
            executor = InterpreterPoolExecutor(1)
            for n in range(3):
                executor.submit(os.write, 1, b'%d' % n)
            '''), '012')

    def test_exit_by_an_exception(self):
        error = self.run_script('''
            from concurrent.futures import InterpreterPoolExecutor
            executor = InterpreterPoolExecutor(2)
            executor.submit(pow, 2, 2).result()
            1/0
            ''', fails=True)
        self.assertTrue(error.endswith('ZeroDivisionError: division by zero'),
                        error)


if __name__ == '__main__':
    unittest.main()
