"""Queues, as users of the package see them."""

import pickle
import signal
import threading
import time
import unittest
from test import support
from test.support import import_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import (
    UNBOUND, UNBOUND_ERROR, UNBOUND_REMOVE, ItemInterpreterDestroyed, Queue,
    QueueEmpty, QueueFull, TransferError,
)
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase

TIMEOUT = support.SHORT_TIMEOUT


class QueueTests(TestCase):

    def test_attributes(self):
        queue = interpreters.create_queue()
        self.assertIsInstance(queue, Queue)
        self.assertIsInstance(queue.id, int)
        self.assertEqual(queue.maxsize, 0)
        self.assertIs(queue.unbounditems, UNBOUND)
        queue = interpreters.create_queue(3, unbounditems=UNBOUND_ERROR)
        self.assertEqual(queue.maxsize, 3)
        self.assertIs(queue.unbounditems, UNBOUND_ERROR)
        with self.assertRaises(AttributeError):
            queue.maxsize = 4

    def test_one_instance_for_each_id(self):
        queue = interpreters.create_queue()
        self.assertIs(Queue(queue.id), queue)
        self.assertIs(pickle.loads(pickle.dumps(queue)), queue)
        queue.put(queue)
        self.assertIs(queue.get(), queue)
        self.assertEqual({queue: 1}[Queue(queue.id)], 1)

    def test_order_and_size(self):
        queue = interpreters.create_queue(3)
        for i in range(3):
            self.assertEqual((queue.qsize(), queue.empty(), queue.full()),
                             (i, i == 0, False))
            queue.put(i)
        self.assertTrue(queue.full())
        self.assertEqual([queue.get() for _ in range(3)], [0, 1, 2])
        self.assertTrue(queue.empty())

    def test_values(self):
        queue = interpreters.create_queue()
        for value in [
            None, True, 0, -1, 10 ** 100, 1.5, 2j, '', 'a\u20ac\U0001f40d',
            '\ud800', b'', b'bytes', (), (1, ('two', (3.0, None))), ...,
            [1], {2: [3]}, {4}, frozenset([5]), bytearray(b'6'), range(7),
            helpers.Point(8, [9]), helpers.Point, helpers.echo, UNBOUND,
        ]:
            with self.subTest(value):
                queue.put(value)
                copy = queue.get()
                self.assertEqual(copy, value)
                self.assertIs(type(copy), type(value))

    def test_is_shareable(self):
        for value in None, True, 1, 1.5, 2j, 'a', b'b', (1, ('2',)), ...:
            self.assertTrue(interpreters.is_shareable(value), value)
        self.assertTrue(interpreters.is_shareable(interpreters.create_queue()))
        self.assertTrue(interpreters.is_shareable(interpreters.get_current()))
        for value in [], {}, {1}, bytearray(), (1, []), range(3):
            self.assertTrue(interpreters.is_shareable(value), value)
        for value in object(), helpers.Point, [helpers.Point], self:
            self.assertFalse(interpreters.is_shareable(value), value)

    def test_copies(self):
        queue = interpreters.create_queue()
        mine = [1]
        queue.put(mine)
        mine.append(2)
        self.assertEqual(queue.get(), [1])

    def test_not_waiting(self):
        queue = interpreters.create_queue(1)
        for get in (queue.get_nowait, lambda: queue.get(block=False),
                    lambda: queue.get(False), lambda: queue.get(timeout=0),
                    lambda: queue.get(False, 100)):
            with self.assertRaises(QueueEmpty):
                get()
        queue.put(1)
        for put in (queue.put_nowait, lambda x: queue.put(x, block=False),
                    lambda x: queue.put(x, False),
                    lambda x: queue.put(x, timeout=0)):
            with self.assertRaises(QueueFull):
                put(2)
        self.assertEqual(queue.get_nowait(), 1)

    def test_timeout(self):
        queue = interpreters.create_queue(1)
        began = time.monotonic()
        with self.assertRaises(QueueEmpty):
            queue.get(timeout=0.1)
        queue.put(1)
        with self.assertRaises(QueueFull):
            queue.put(2, timeout=0.1)
        took = time.monotonic() - began
        self.assertGreaterEqual(took, 0.19)
        self.assertLess(took, TIMEOUT)

    def test_between_interpreters(self):
        interp = self.create()
        requests = interpreters.create_queue()
        answers = interpreters.create_queue()
        thread = interp.call_in_thread(helpers.take_and_answer,
                                       requests, answers)
        for i in range(50):
            requests.put(i)
            self.assertEqual(answers.get(timeout=TIMEOUT), i + 1)
        requests.put(None)
        self.finish(thread)

    def test_many_producers_and_consumers(self):
        queue = interpreters.create_queue(4)
        total = interpreters.create_queue()
        interps = [self.create() for _ in range(4)]
        takers = [i.call_in_thread(take_all, queue, total) for i in interps[:2]]
        givers = [i.call_in_thread(put_range, queue, 200) for i in interps[2:]]
        for thread in givers:
            self.finish(thread)
        for _ in takers:
            queue.put(None)
        for thread in takers:
            self.finish(thread)
        self.assertEqual(total.get(timeout=0) + total.get(timeout=0),
                         2 * sum(range(200)))

    def test_sender_closed(self):
        for default, own, expected in [
            (UNBOUND, None, [UNBOUND, 'mine']),
            (UNBOUND_REMOVE, None, ['mine']),
            (UNBOUND_REMOVE, UNBOUND, [UNBOUND, 'mine']),
            (UNBOUND, UNBOUND_REMOVE, ['mine']),
        ]:
            with self.subTest(default=default, own=own):
                interp = interpreters.create()
                queue = interpreters.create_queue(unbounditems=default)
                interp.call(put_one, queue, own)
                queue.put('mine')
                interp.close()
                self.assertEqual(queue.qsize(), len(expected))
                self.assertEqual([queue.get(timeout=0) for _ in expected],
                                 expected)

    def test_sender_closed_error(self):
        interp = interpreters.create()
        queue = interpreters.create_queue(unbounditems=UNBOUND_ERROR)
        interp.call(put_one, queue, None)
        interp.close()
        queue.put('mine')
        with self.assertRaises(ItemInterpreterDestroyed):
            queue.get(timeout=0)
        self.assertEqual(queue.get(timeout=0), 'mine')

    def test_receiver_closed(self):
        interp = interpreters.create()
        queue = interpreters.create_queue()
        queue.put('mine')
        interp.call(queue.qsize)
        interp.close()
        self.assertEqual(queue.get(timeout=0), 'mine')

    def test_opens_in_the_receiver(self):
        # What can't be opened comes back as a parcel, and the queue goes on.
        queue = interpreters.create_queue()
        queue.put(helpers.OpensNowhere())
        queue.put('next')
        with self.assertRaisesRegex(TransferError, 'not here') as caught:
            queue.get(timeout=0)
        self.assertIs(type(caught.exception.__cause__), LookupError)
        queue.put(caught.exception.parcel)
        self.assertEqual(queue.get(timeout=0), 'next')
        with self.assertRaisesRegex(TransferError, 'not here'):
            queue.get(timeout=0).open()

    def test_handover_is_a_write_section(self):
        queue = interpreters.create_queue()
        id = interpreters.get_current().id
        def count():
            own = interpreters.lock_stats()['interpreters'][id]
            return sum(own['sections'].values())
        # A graph is given up in a section of its own; what is in the parcel
        # becomes the receiver's in another than the one that takes it out.
        for obj, expected in (1, (1, 2)), ([[1], {}], (2, 2)):
            with self.subTest(obj=obj):
                before = count()
                queue.put(obj)
                between = count()
                queue.get()
                self.assertEqual((between - before, count() - between), expected)

    @unittest.skipUnless(hasattr(signal, 'pthread_kill'), 'needs pthread_kill')
    @unittest.skipUnless(threading.current_thread() is threading.main_thread(),
                         'needs the main thread')
    def test_ctrl_c(self):
        queue = interpreters.create_queue()
        me = threading.get_ident()
        timer = threading.Timer(
            0.1, signal.pthread_kill, (me, signal.SIGINT))
        timer.start()
        try:
            with self.assertRaises(KeyboardInterrupt):
                queue.get(timeout=TIMEOUT)
        finally:
            timer.join()


def put_one(queue, unbounditems):
    queue.put('theirs', unbounditems=unbounditems)


def put_range(queue, n):
    for i in range(n):
        queue.put(i)


def take_all(queue, total):
    taken = 0
    while (item := queue.get()) is not None:
        taken += item
    total.put(taken)


if __name__ == '__main__':
    unittest.main()
