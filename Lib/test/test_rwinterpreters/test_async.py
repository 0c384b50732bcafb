"""Queues and calls in asyncio."""

import asyncio
import gc
import threading
import unittest
from test import support
from test.support import import_helper, script_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import (
    ExecutionFailed, InterpreterError, MovedObject, NotShareableError,
    TransferError, move,
)
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase

TIMEOUT = support.SHORT_TIMEOUT


def setUpModule():
    # Closing the last loop makes a policy.
    unittest.addModuleCleanup(asyncio.set_event_loop_policy, None)


async def turns(n=3):
    """Let other tasks come to where they wait."""
    for _ in range(n):
        await asyncio.sleep(0)


class AsyncTestCase(TestCase):

    def run_async(self, main):
        async def limited():
            async with asyncio.timeout(TIMEOUT):
                return await main
        before = threading.enumerate()
        try:
            return asyncio.run(limited())
        finally:
            # A thread of call_async() has a handle to the interpreter.
            for thread in threading.enumerate():
                if thread not in before:
                    self.finish(thread)


class QueueTests(AsyncTestCase):

    def test_nothing_to_wait_for(self):
        async def main():
            await queue.put_async(obj)
            await queue.put_async('b', unbounditems=interpreters.UNBOUND_REMOVE)
            return await queue.get_async(), await queue.get_async()
        queue = interpreters.create_queue()
        obj = [1]
        self.assertEqual(self.run_async(main()), ([1], 'b'))

    def test_get_waits(self):
        async def main():
            task = asyncio.create_task(queue.get_async())
            await turns()
            self.assertFalse(task.done())
            thread = interp.call_in_thread(queue.put, 'item')
            item = await task
            thread.join()
            return item
        queue = interpreters.create_queue()
        interp = self.create()
        before = threading.active_count()
        self.assertEqual(self.run_async(main()), 'item')
        self.assertEqual(threading.active_count(), before)

    def test_no_thread_waits(self):
        async def main():
            tasks = [asyncio.create_task(queue.get_async()) for _ in range(50)]
            await turns()
            self.assertEqual(threading.active_count(), before)
            queue.put_many(range(50))
            return await asyncio.gather(*tasks)
        queue = interpreters.create_queue()
        before = threading.active_count()
        self.assertEqual(self.run_async(main()), list(range(50)))

    def test_put_waits(self):
        async def main():
            tasks = [asyncio.create_task(queue.put_async(move(obj)))
                     for obj in objs]
            await turns()
            # None of them has been sent while there is no place for it.
            self.assertEqual(objs, [[1], [2]])
            self.assertEqual(queue.get_nowait(), 'first')
            self.assertEqual(await queue.get_async(), [1])
            self.assertEqual(await queue.get_async(), [2])
            await asyncio.gather(*tasks)
        queue = interpreters.create_queue(1)
        queue.put('first')
        objs = [[1], [2]]
        self.run_async(main())
        self.assertIsInstance(objs[0], MovedObject)

    def test_there_and_back(self):
        async def main():
            for i in range(200):
                await requests.put_async(i)
                self.assertEqual(await answers.get_async(), i + 1)
            await requests.put_async(None)
        requests = interpreters.create_queue()
        answers = interpreters.create_queue()
        interp = self.create()
        thread = interp.call_in_thread(helpers.take_and_answer,
                                       requests, answers)
        self.run_async(main())
        self.finish(thread)

    def test_cancelled_while_it_waits(self):
        async def main():
            tasks = [asyncio.create_task(queue.get_async()) for _ in range(6)]
            await turns()
            for task in tasks[::2]:
                task.cancel()
            await turns()
            queue.put_many(range(3))
            got = await asyncio.gather(*tasks, return_exceptions=True)
            self.assertEqual(sorted(got[1::2]), [0, 1, 2])
            for exc in got[::2]:
                self.assertIsInstance(exc, asyncio.CancelledError)
        queue = interpreters.create_queue()
        self.run_async(main())
        self.assertTrue(queue.empty())

    def test_cancelled_when_it_was_woken(self):
        # The item is for the other one then.
        async def main():
            first = asyncio.create_task(queue.get_async())
            await turns()
            second = asyncio.create_task(queue.get_async())
            await turns()
            queue.put('item')
            first.cancel()
            self.assertEqual(await second, 'item')
            self.assertTrue(first.cancelled())
        queue = interpreters.create_queue()
        self.run_async(main())

    def test_cancelled_put(self):
        async def main():
            task = asyncio.create_task(queue.put_async(move(obj)))
            await turns()
            task.cancel()
            await turns()
            self.assertEqual(queue.get(), 'first')
            self.assertTrue(queue.empty())
            self.assertEqual(obj, [1])
            await queue.put_async('next')
        queue = interpreters.create_queue(1)
        queue.put('first')
        obj = [1]
        self.run_async(main())
        self.assertEqual(queue.get(), 'next')

    def test_time_is_up(self):
        async def main():
            with self.assertRaises(TimeoutError):
                await asyncio.wait_for(queue.get_async(), 0.01)
            queue.put(1)
            return await queue.get_async()
        queue = interpreters.create_queue()
        self.assertEqual(self.run_async(main()), 1)

    def test_errors(self):
        async def main():
            task = asyncio.create_task(queue.get_async())
            await turns()
            with self.assertRaises(NotShareableError):
                await queue.put_async(helpers.Unpicklable())
            await queue.put_async(helpers.OpensNowhere())
            with self.assertRaises(TransferError) as caught:
                await task
            self.assertIsInstance(caught.exception.parcel, interpreters.Parcel)
        queue = interpreters.create_queue()
        self.run_async(main())

    def test_one_queue_in_several_loops(self):
        async def main():
            return [await queue.get_async() for _ in range(20)]
        def work():
            got.extend(asyncio.run(main()))
        queue = interpreters.create_queue(3)
        got = []
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        self.assertEqual(queue.put_many(range(60), timeout=TIMEOUT), 60)
        for thread in threads:
            self.finish(thread)
        self.assertEqual(sorted(got), list(range(60)))

    def test_loop_ends_before_the_wait(self):
        async def main():
            task = asyncio.create_task(queue.get_async())
            await turns()
            waiting.append(task)
        queue = interpreters.create_queue()
        waiting = []
        for _ in range(3):
            self.run_async(main())
        waiting.clear()
        gc.collect()
        queue.put('item')
        self.assertEqual(queue.get(timeout=0), 'item')

    def test_in_another_interpreter(self):
        # In a process of its own: the base's asyncio leaks a subinterpreter in
        # which a task has waited.
        result = script_helper.assert_python_ok('-c', """if True:
            import interpreters
            from test.test_rwinterpreters import helpers
            interp = interpreters.create()
            requests = interpreters.create_queue()
            answers = interpreters.create_queue(1)
            thread = interp.call_in_thread(helpers.take_and_answer_async,
                                           requests, answers)
            requests.put_many([*range(10), None])
            print([answers.get(timeout=60) for _ in range(10)])
            thread.join()
            """)
        self.assertEqual(result.out.decode().strip(),
                         str([i + 1 for i in range(10)]))


class WaitTests(TestCase):

    @support.requires_fork()
    def test_fork(self):
        # The child's queue knows nothing of waits that were begun before.
        script_helper.assert_python_ok('-W', 'ignore', '-c', """if True:
            import _parcels, os
            queue = _parcels.create_queue()
            bell = _parcels.Bell()
            waits = [_parcels.Wait(queue, bell, False) for _ in range(3)]
            def begin(wait):
                try:
                    wait.get()
                except _parcels.QueueEmpty:
                    pass
            for wait in waits:
                begin(wait)
            queue.put(1)
            assert [wait.over for wait in waits] == [True, False, False]
            pid = os.fork()
            if pid == 0:
                waits.pop().close()
                assert queue.get() == 1
                for wait in waits:
                    begin(wait)
                queue.put_many([2, 3])
                assert [wait.get() for wait in waits] == [2, 3]
                del wait
                waits.clear()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            # Here a wait that ends hands its turn on.
            waits.pop(0).close()
            assert waits[0].over and not waits[1].over
            assert waits[0].get() == 1
            """)


class CallTests(AsyncTestCase):

    def test_call(self):
        interp = self.create()
        obj = [1]
        result = self.run_async(
            interp.call_async(helpers.echo, move(obj), k='v'))
        self.assertEqual(result, (([1],), {'k': 'v'}))
        self.assertIsInstance(obj, MovedObject)

    def test_loop_goes_on(self):
        async def main():
            call = asyncio.create_task(
                interp.call_async(helpers.signal_and_wait, started, go_on))
            self.assertEqual(await started.get_async(), 'started')
            with self.assertRaises(InterpreterError):
                await interp.call_async(len, 'a')
            await go_on.put_async('result')
            return await call
        interp = self.create()
        started = interpreters.create_queue()
        go_on = interpreters.create_queue()
        self.assertEqual(self.run_async(main()), 'result')

    def test_several(self):
        async def main():
            return await asyncio.gather(
                *(interp.call_async(helpers.identity, i)
                  for i, interp in enumerate(interps)))
        interps = [self.create() for _ in range(3)]
        self.assertEqual(self.run_async(main()), [0, 1, 2])

    def test_errors(self):
        interp = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            self.run_async(interp.call_async(helpers.raise_custom))
        self.assertEqual(caught.exception.__cause__.code, 7)
        with self.assertRaises(NotShareableError):
            self.run_async(interp.call_async(len, helpers.Unpicklable()))
        with self.assertRaises(TypeError):
            self.run_async(interp.call_async(1))

    def test_cancelled(self):
        async def main():
            call = asyncio.create_task(
                interp.call_async(helpers.signal_and_wait, started, go_on))
            await started.get_async()
            call.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await call
            await go_on.put_async(None)
        interp = self.create()
        started = interpreters.create_queue()
        go_on = interpreters.create_queue()
        self.run_async(main())


if __name__ == '__main__':
    unittest.main()
