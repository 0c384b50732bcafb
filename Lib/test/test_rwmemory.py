"""An object allocated in one interpreter can be freed in another.

Blocks are driven through _testmemheap, which hands out plain addresses.  The
stress tests print their seed when they fail; RWMEMORY_SEED repeats one, and
RWMEMORY_ROUNDS makes them longer.
"""

import contextlib
import os
import platform
import random
import sys
import tempfile
import textwrap
import threading
import unittest

from test import support
from test.support import import_helper, script_helper

_interpreters = import_helper.import_module('_interpreters')
_testmemheap = import_helper.import_module('_testmemheap')

# Other allocators have no heaps: only what doesn't ask for heaps is tested.
HAVE_HEAPS = _testmemheap.heap(_testmemheap.alloc(32)) != 0
requires_heaps = unittest.skipUnless(HAVE_HEAPS, "requires pymalloc")

ROUNDS = int(os.environ.get('RWMEMORY_ROUNDS', 50_000))
# The debug hooks make blocks up to 32 bytes longer.
SIZES = (16, 48, 100, 256, _testmemheap.SMALL_REQUEST_THRESHOLD - 32)


class Interp:
    """An isolated interpreter, driven from here."""

    def __init__(self, config='isolated'):
        self.id = _interpreters.create(config)
        self.run('import _testmemheap')
        self.heap = self.eval('_testmemheap.heap()')

    def run(self, script, **shared):
        script = textwrap.dedent(script)
        # What is shared is counted as the interpreter's: leave none of it.
        for name in shared:
            script += f'\ndel {name}'
        exc = _interpreters.exec(self.id, script, shared)
        if exc is not None:
            raise AssertionError(exc.formatted)

    def eval(self, expr, **shared):
        # A file, since a pipe holds only so much.
        with tempfile.TemporaryFile() as file:
            self.run(f'''if True:
                with open({file.fileno()}, 'wb', closefd=False) as file:
                    file.write(ascii({expr}).encode())
                del file
                ''', **shared)
            file.seek(0)
            return eval(file.read())

    def alloc(self, sizes):
        return self.eval('[_testmemheap.alloc(n) for n in sizes]',
                         sizes=tuple(sizes))

    def free(self, blocks):
        self.run('''
            for p in blocks:
                _testmemheap.free(p)
            del p''', blocks=tuple(blocks))

    def close(self):
        if self.id is not None:
            _interpreters.destroy(self.id)
            self.id = None

    __enter__ = lambda self: self

    def __exit__(self, *args):
        self.close()


def free_all(blocks):
    """Free them and empty the list, since each address is an object itself."""
    while blocks:
        _testmemheap.free(blocks.pop())


def requires_glibc(test):
    """What is expected of malloc() is glibc's."""
    test = unittest.skipUnless(platform.libc_ver()[0] == 'glibc', "needs glibc's malloc")(test)
    return unittest.skipIf(support.check_sanitizer(address=True, memory=True, thread=True), "has another malloc")(test)


def fill():
    return [float(i) for i in range(3_000_000)]     # 72 MB: 68 arenas


def difference(before):
    after = _testmemheap.stats()
    return (after['arenas'] - before['arenas'],
            after['spare'] - before['spare'])


class ArenaTests(unittest.TestCase):

    @requires_heaps
    def test_spare_arenas(self):
        # What was given back is used again, in this interpreter or another.
        for _ in range(2):      # From the second time on: it does so again and again.
            before = _testmemheap.stats()
            floats = fill()
            self.assertGreaterEqual(difference(before)[0], 68)
            del floats
        empty = _testmemheap.stats()
        # One empty arena stays with the heap.
        self.assertLessEqual(difference(before)[0], 2)
        self.assertGreaterEqual(empty['spare'], 60)
        self.assertLessEqual(empty['spare'], 64)

        floats = fill()
        arenas, spare = difference(empty)
        self.assertLessEqual(spare, -60)
        del floats

        before = _testmemheap.stats()
        # Heaps that others have left may have room for one.
        interps = [Interp() for _ in range(before['orphans'] + 1)]
        arenas, spare = difference(before)
        self.assertGreater(arenas, 0)
        # So do their large blocks, together, for each MiB.
        yielded = _testmemheap.stats()['yielded'] - before['yielded']
        self.assertEqual(spare, -arenas - yielded)
        for interp in interps:
            interp.close()

    @requires_heaps
    @requires_glibc
    def test_large_blocks_and_spare_arenas(self):
        for _ in range(2):
            floats = fill()
            del floats
        self.assertGreaterEqual(_testmemheap.stats()['spare'], 60)
        # Large blocks take from what is spare, whole or as they grow.
        kept = []
        def taken_by(make):
            before = _testmemheap.stats()
            kept.append(make())
            return -difference(before)[1]
        growing = bytearray(1 << 20)
        four = bytes(1 << 10) * (4 << 10)
        self.assertIn(taken_by(lambda: growing.extend(four)), (3, 4))
        # But not for memory that malloc() had kept.
        six = lambda: [bytes(512 << 10) for _ in range(6)]
        for _ in range(40):
            taken = taken_by(six)
            if taken >= 3:
                break
        self.assertIn(taken, (3, 4))
        self.assertEqual(taken_by(lambda: bytes(100 << 10)), 0)
        kept.pop(-2)
        self.assertEqual(taken_by(six), 0)
        # This large, malloc() keeps none.
        self.assertIn(taken_by(lambda: bytes(33 << 20)), (33, 34))
        spare = _testmemheap.stats()['spare']
        self.assertEqual(taken_by(lambda: bytes(100 << 20)), spare)

    def count_spare(self, code):
        code = f"import _testmemheap as t\n{code}\nprint(t.stats()['spare'])"
        rc, out, err = script_helper.assert_python_ok('-S', '-c', code)
        return int(out)

    @requires_heaps
    def test_arenas_of_a_program_that_does_not_repeat(self):
        # They are asked for one by one, and go when they are empty.
        self.assertEqual(self.count_spare(""), 0)
        self.assertEqual(self.count_spare("[float(i) for i in range(1_000_000)]"), 0)
        self.assertGreater(self.count_spare("for _ in 1, 2: [float(i) for i in range(1_000_000)]"), 8)

    @requires_heaps
    @requires_glibc
    def test_memory_of_messages_stays(self):
        # A message that is like the last one needs no memory from the system.
        code = textwrap.dedent("""
            import array, interpreters, resource
            def faults():
                return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            queue = interpreters.create_queue()
            for message in ([array.array('d', bytes(800_000)) for _ in range(20)],
                            list(range(10 ** 6, 2 * 10 ** 6))):
                for _ in range(5):
                    before = faults()
                    queue.put(message)
                    got = queue.get()
                    del got
                print(faults() - before)
            """)
        rc, out, err = script_helper.assert_python_ok('-S', '-c', code)
        arrays, ints = map(int, out.split())
        # 16 MB are 3,906 pages, the list alone 1,953.
        self.assertLess(arrays, 400)
        self.assertLess(ints, 200)

    @requires_heaps
    @unittest.skipUnless(os.path.isdir("/sys/kernel/mm/transparent_hugepage"), "needs huge pages")
    def test_huge_pages_only_with_several_heaps(self):
        code = textwrap.dedent("""
            import _interpreters
            def advised():
                with open("/proc/self/smaps") as file:
                    return sum(" hg" in line for line in file if line.startswith("VmFlags"))
            def repeat(n):
                for _ in 1, 2, 3:
                    [float(i) for i in range(n)]
            repeat(1_000_000)
            print(advised())
            _interpreters.create()
            repeat(4_000_000)       # more than what stays
            print(advised() > 0)
            """)
        rc, out, err = script_helper.assert_python_ok('-S', '-c', code)
        self.assertEqual(out.split(), [b"0", b"True"])


class Base(unittest.TestCase):

    def interp(self, config='isolated'):
        interp = Interp(config)
        self.addCleanup(interp.close)
        return interp

    @contextlib.contextmanager
    def same_count(self, slack=200):
        """Blocks in the process, but for what the test itself uses."""
        support.gc_collect()
        before = sys.getallocatedblocks()
        yield
        support.gc_collect()
        self.assertLess(abs(sys.getallocatedblocks() - before), slack)


@requires_heaps
class RemoteFreeTests(Base):

    def test_each_interpreter_has_its_heap(self):
        a, b = self.interp(), self.interp()
        main = _testmemheap.heap()
        self.assertEqual(len({main, a.heap, b.heap}), 3)
        [p] = a.alloc([32])
        # The answer doesn't depend on who asks.
        self.assertEqual(_testmemheap.heap(p), a.heap)
        self.assertEqual(b.eval(f'_testmemheap.heap({p})'), a.heap)
        a.free([p])

    def test_legacy_interpreter_shares_main_heap(self):
        legacy = self.interp('legacy')
        self.assertEqual(legacy.heap, _testmemheap.heap())

    def test_no_heap(self):
        big = _testmemheap.alloc(_testmemheap.SMALL_REQUEST_THRESHOLD + 1)
        self.assertEqual(_testmemheap.heap(big), 0)
        for address in 0, 1, 2**(sys.maxsize.bit_length()) + 1, 2**64 - 1:
            self.assertEqual(_testmemheap.heap(address & sys.maxsize * 2 + 1), 0)
        _testmemheap.free(big)

    def test_allocated_in_sub_freed_in_main(self):
        a = self.interp()
        for size in SIZES:
            with self.subTest(size=size):
                blocks = a.alloc([size] * 100)
                pending = _testmemheap.pending(a.heap)
                for p in blocks:
                    self.assertTrue(_testmemheap.check(p))
                    _testmemheap.free(p)
                self.assertEqual(_testmemheap.pending(a.heap), pending + 100)
                self.check_taken_back(a, blocks, size)

    def check_taken_back(self, a, blocks, size):
        # The owner looks when it runs out of pools of that size.
        remote = _testmemheap.stats()['remote']
        a.run('''
            own = []
            while _testmemheap.pending(heap):
                own.append(_testmemheap.alloc(size))
                if len(own) > 100_000:
                    raise AssertionError('never taken back')
            own += [_testmemheap.alloc(size) for _ in range(1000)]
            for p in own:
                assert _testmemheap.check(p)
            reused = len(set(own) & set(blocks))
            for p in own:
                _testmemheap.free(p)
            del own, p
            ''', heap=a.heap, size=size, blocks=tuple(blocks))
        self.assertGreaterEqual(_testmemheap.stats()['remote'] - remote,
                                len(blocks))
        self.assertGreater(a.eval('reused'), 0)

    def test_allocated_in_main_freed_in_sub(self):
        a = self.interp()
        main = _testmemheap.heap()
        with self.same_count():
            blocks = [_testmemheap.alloc(n) for n in SIZES * 100]
            pending = _testmemheap.pending(main)
            a.free(blocks)
            blocks.clear()
            self.assertGreater(_testmemheap.pending(main), pending)

    def test_between_subs(self):
        a, b = self.interp(), self.interp()
        with self.same_count():
            blocks = a.alloc(SIZES * 100)
            b.free(blocks)
            self.assertGreaterEqual(_testmemheap.pending(a.heap), len(blocks))
            self.assertEqual(_testmemheap.pending(b.heap), 0)
            blocks.clear()

    def test_counted_once(self):
        n = 10_000
        a = self.interp()
        with self.same_count():
            blocks = a.alloc([64] * n)
            before = sys.getallocatedblocks()
            for p in blocks:
                _testmemheap.free(p)
            self.assertLess(abs(before - sys.getallocatedblocks() - n), 200)
            del blocks, p

    def test_malloc_blocks_counted_in_sum(self):
        a = self.interp()
        with self.same_count():
            free_all(a.alloc([1000] * 1000))

    def test_thread_of_c_code(self):
        a = self.interp()
        with self.same_count():
            blocks = a.alloc(SIZES * 20)
            blocks += [_testmemheap.alloc(n) for n in SIZES * 20]
            _testmemheap.free_in_thread(tuple(blocks), support.SHORT_TIMEOUT)
            blocks.clear()


class ObjectTests(Base):

    def give(self, interp):
        return interp.eval(
            '[_testmemheap.give(bytes([i]) * 100) for i in range(200)]'
            '+ [_testmemheap.give(i + 0.5) for i in range(200)]')

    def check_taken(self, addresses):
        objects = [_testmemheap.take(p) for p in addresses]
        self.assertEqual(objects[:200], [bytes([i]) * 100 for i in range(200)])
        self.assertEqual(objects[200:], [i + 0.5 for i in range(200)])

    def test_objects_change_hands(self):
        a = self.interp()
        self.check_taken(self.give(a))
        with self.same_count():
            self.check_taken(self.give(a))

    def test_objects_outlive_their_interpreter(self):
        a = Interp()
        addresses = self.give(a)
        a.close()
        # The floats go to main's free list: they serve main now.
        self.check_taken(addresses)
        with Interp() as b:
            self.check_taken(self.give(b))
        floats = [i + 0.25 for i in range(1000)]
        self.assertEqual(sum(floats), 999 * 500 + 250)


@requires_heaps
class ReallocTests(Base):

    def setUp(self):
        self.a = self.interp()

    def test_realloc(self):
        for old in 16, 64, 200, 512:
            for new in 16, 40, 64, 190, 400, 512, 513, 4000:
                with self.subTest(old=old, new=new):
                    [p] = self.a.alloc([old])
                    q = _testmemheap.realloc(p, new)    # checks the contents
                    self.assertTrue(_testmemheap.check(q))
                    if q != p:
                        self.assertNotEqual(_testmemheap.heap(q), self.a.heap)
                    elif _testmemheap.heap(q):
                        self.assertLessEqual(new, -(-old // 16) * 16)
                    _testmemheap.free(q)

    def test_realloc_counts(self):
        with self.same_count():
            for old, new in (32, 256), (32, 600), (600, 32):
                blocks = self.a.alloc([old] * 1000)
                while blocks:
                    p = _testmemheap.realloc(blocks.pop(), new)
                    _testmemheap.free(p)


@requires_heaps
class CloseTests(Base):

    def test_block_outlives_its_interpreter(self):
        a = Interp()
        heap = a.heap
        blocks = a.alloc(SIZES * 100)
        a.close()
        orphans = _testmemheap.stats()['orphans']
        self.assertGreater(orphans, 0)
        for p in blocks:
            self.assertTrue(_testmemheap.check(p))
            self.assertEqual(_testmemheap.heap(p), heap)

        # The next one adopts it; the blocks stay what they are.
        adopted = _testmemheap.stats()['adopted']
        b = self.interp()
        self.assertEqual(_testmemheap.stats()['adopted'], adopted + 1)
        self.assertEqual(_testmemheap.stats()['orphans'], orphans - 1)
        self.assertEqual(b.heap, heap)
        b.run('new = [_testmemheap.alloc(n) for n in sizes]', sizes=SIZES * 100)
        for p in blocks:
            self.assertTrue(_testmemheap.check(p))
            _testmemheap.free(p)
        b.run('for p in new: assert _testmemheap.check(p); _testmemheap.free(p)')

    def test_freed_while_orphan(self):
        n = 10_000
        a = Interp()
        blocks = a.alloc([64] * n)
        heap = a.heap
        a.close()
        before = sys.getallocatedblocks()
        for p in blocks:
            _testmemheap.free(p)
        # Not counted any more, though nobody has taken them back.
        self.assertEqual(_testmemheap.pending(heap), n)
        self.assertLess(abs(before - sys.getallocatedblocks() - n), 200)
        before = sys.getallocatedblocks()
        with Interp() as b:
            self.assertEqual(b.heap, heap)
            self.assertEqual(_testmemheap.pending(heap), 0)
        # What the first one left isn't counted again at the second one's end.
        self.assertLess(abs(sys.getallocatedblocks() - before), 500)

    def test_blocks_of_others_at_close(self):
        # An interpreter that holds blocks of main, and frees some, ends.
        Interp().close()
        with self.same_count(slack=500):
            a = Interp()
            blocks = [_testmemheap.alloc(n) for n in SIZES * 100]
            a.free(blocks[::2])
            a.close()
            for p in blocks[1::2]:
                self.assertTrue(_testmemheap.check(p))
                _testmemheap.free(p)
            del blocks, p

    def test_plateau(self):
        # Stock leaves 1700 KiB and 2700 blocks behind for each.
        code = textwrap.dedent('''
            import _interpreters, sys
            def memory():
                with open('/proc/self/status') as f:
                    for line in f:
                        if line.startswith('VmRSS'):
                            return int(line.split()[1])
            def cycle(n):
                for i in range(n):
                    interp = _interpreters.create('isolated')
                    exc = _interpreters.exec(interp, 'import json, re, enum')
                    assert exc is None, exc
                    _interpreters.destroy(interp)
            cycle(20)
            rss, blocks = memory(), sys.getallocatedblocks()
            cycle(100)
            print(memory() - rss, sys.getallocatedblocks() - blocks)
            ''')
        if not os.path.exists('/proc/self/status'):
            self.skipTest('requires /proc')
        _, out, _ = script_helper.assert_python_ok('-c', code)
        kib, blocks = map(int, out.split())
        self.assertLess(kib / 100, 20)
        self.assertLess(blocks / 100, 20)

    @unittest.skipIf(support.Py_DEBUG, 'debug builds free interned strings')
    def test_interned_strings_are_inherited(self):
        # C code may keep an immortal interned string in a static variable.
        code = '''if True:
            rwmemory_name = 1
            where, = [id(k) for k in globals() if k.startswith('rwmemory')]
            '''
        with Interp() as a:
            a.run(code)
            where, heap = a.eval('where'), a.heap
        with Interp() as b:
            self.assertEqual(b.heap, heap)
            b.run(code)
            self.assertEqual(b.eval('where'), where)

    def test_several_at_a_time(self):
        # Orphans are used up before memory is taken for a new heap.
        for _ in range(2):
            interps = [Interp() for _ in range(5)]
            for interp in interps:
                # keep a block alive, so that it's an orphan in any build
                interp.keep = interp.alloc([32])
            for interp in interps:
                interp.close()
            for interp in interps:
                _testmemheap.free(interp.keep[0])
        opened = _testmemheap.stats()['opened']
        interps = [Interp() for _ in range(5)]
        for interp in interps:
            interp.close()
        self.assertEqual(_testmemheap.stats()['opened'], opened)


@requires_heaps
@support.requires_fork()
class ForkTests(Base):

    def test_child_adopts(self):
        # In a process of its own: no other thread, and nothing to clean up twice.
        code = textwrap.dedent('''
            import os, sys
            import _testmemheap
            from test.support import wait_process
            from test.test_rwmemory import Interp

            n = 1000
            a = Interp()
            blocks = a.alloc([64] * n)
            blocks_of_main = [_testmemheap.alloc(64) for _ in range(n)]
            a.free(blocks_of_main)
            pid = os.fork()
            if pid == 0:
                before = sys.getallocatedblocks()
                assert _testmemheap.stats()['orphans'] == 1
                for p in blocks:
                    assert _testmemheap.check(p)
                    _testmemheap.free(p)
                assert abs(before - sys.getallocatedblocks() - n) < 50
                with Interp() as b:
                    assert b.heap == a.heap
                    assert _testmemheap.pending(b.heap) == 0
                    b.alloc([64] * n)
                os._exit(0)
            wait_process(pid, exitcode=0)
            # To the parent nothing has happened.
            assert _testmemheap.heap(blocks[0]) == a.heap
            a.free(blocks)
            a.close()
            ''')
        script_helper.assert_python_ok('-c', code)


class ConfigTests(Base):

    @requires_heaps
    def test_own_lock_means_own_heap(self):
        # Stock lets main and this one work on one heap under two locks.
        config = _interpreters.new_config(
            'isolated', gil='own', use_main_obmalloc=True)
        interp = self.interp(config)
        self.assertNotEqual(interp.heap, _testmemheap.heap())
        # The dict of interned strings goes with it.
        interp.run('import sys; name = sys.intern("rwmemory " * 3)')
        mine = sys.intern("rwmemory " * 3)
        self.assertNotEqual(interp.eval('id(name)'), id(mine))

    def test_allocators(self):
        code = textwrap.dedent('''
            import _interpreters, _testmemheap, sys
            def run(interp, code):
                exc = _interpreters.exec(interp, code)
                assert exc is None, exc
            a = _interpreters.create('isolated')
            blocks = [_testmemheap.alloc(n % 600 + 16) for n in range(2000)]
            half = [_testmemheap.realloc(p, 300) for p in blocks[::2]]
            run(a, f"""if True:
                import _testmemheap
                for p in {blocks[1::2]}:
                    _testmemheap.free(_testmemheap.realloc(p, 64))
                """)
            _interpreters.destroy(a)
            b = _interpreters.create('isolated')
            run(b, f"""if True:
                import _testmemheap
                for p in {half}:
                    assert _testmemheap.check(p)
                    _testmemheap.free(p)
                """)
            _interpreters.destroy(b)

            # With copies of extension modules, whose remains are given back.
            import interpreters
            for _ in range(2):
                c = interpreters.create()
                c.exec('import datetime, decimal, _testcapi; held = [bytes(5000)]')
                c.close()
            ''')
        for name in ('malloc', 'debug', 'malloc_debug', 'pymalloc',
                     'pymalloc_debug', 'mimalloc', 'mimalloc_debug'):
            if name.startswith('pymalloc') and not support.with_pymalloc():
                continue
            if name.startswith('mimalloc') and not support.with_mimalloc():
                continue
            with self.subTest(name):
                script_helper.assert_python_ok('-c', code, PYTHONMALLOC=name)


class StressTests(Base):

    def setUp(self):
        seed = os.environ.get('RWMEMORY_SEED')
        self.seed = int(seed) if seed else random.getrandbits(32)
        self.random = random.Random(self.seed)
        self.addCleanup(_testmemheap.clear_board)

    def run_threads(self, functions):
        failures = []
        def guard(function):
            try:
                function()
            except BaseException as exc:
                failures.append(exc)
        threads = [threading.Thread(target=guard, args=(f,), daemon=True)
                   for f in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(support.LONG_TIMEOUT)
        with self.subTest(seed=self.seed):
            self.assertFalse(any(t.is_alive() for t in threads))
            self.assertEqual(failures, [])

    def exchanger(self, interp, rounds):
        seed = self.random.getrandbits(32)
        return lambda: interp.run(
            f'foreign = _testmemheap.exchange({seed}, {rounds})')

    def test_exchange(self):
        # Interpreters on their threads and main on two free each other's.
        interps = [self.interp() for _ in range(4)]
        seeds = [self.random.getrandbits(32) for _ in range(2)]
        with self.same_count(slack=500):
            _testmemheap.exchange(seeds[0], 1000)   # something to begin with
            self.run_threads(
                [self.exchanger(interp, ROUNDS) for interp in interps]
                + [lambda s=s: _testmemheap.exchange(s, ROUNDS) for s in seeds])
            _testmemheap.clear_board()
        if HAVE_HEAPS:
            for interp in interps:
                self.assertGreater(interp.eval('foreign'), 0)

    def test_open_and_close(self):
        # Interpreters come and go under what the others free into their heaps.
        def churn(seeds):
            for seed in seeds:
                with Interp() as interp:
                    interp.run(f'_testmemheap.exchange({seed}, {ROUNDS // 50})')

        cycles = max(2, ROUNDS // 10_000)
        lists = [[self.random.getrandbits(32) for _ in range(cycles)]
                 for _ in range(3)]
        seed = self.random.getrandbits(32)
        self.run_threads([lambda seeds=seeds: churn(seeds) for seeds in lists]
                         + [lambda: _testmemheap.exchange(seed, ROUNDS)])
        _testmemheap.clear_board()
        before = sys.getallocatedblocks()
        # All of it again: nothing has piled up.
        self.run_threads([lambda seeds=seeds: churn(seeds) for seeds in lists])
        _testmemheap.clear_board()
        self.assertLess(sys.getallocatedblocks() - before, 1000)

    def test_count_while_others_run(self):
        # Counting walks heaps whose arenas come and go meanwhile.
        done = threading.Event()
        def count():
            while not done.is_set():
                sys.getallocatedblocks()
        def grow(interp):
            try:
                interp.run('''
                    for n in range(10):
                        blocks = [_testmemheap.alloc(512) for _ in range(20_000)]
                        for p in blocks:
                            _testmemheap.free(p)
                    ''')
            finally:
                done.set()
        interp = self.interp()
        self.run_threads([count, lambda: grow(interp)])


if __name__ == "__main__":
    unittest.main()
