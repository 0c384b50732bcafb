"""Tests of what object graphs become in another interpreter, copied and moved.

After each test the heaps of all interpreters are searched for objects that two
of them have.  Random graphs use a seed that is printed if one fails; it is taken
back from the environment variable RWPARCELS_SEED.
"""

import array
import collections
import contextlib
import copy
import datetime
import decimal
import fractions
import functools
import gc
import itertools
import os
import pathlib
import pickle
import random
import sys
import textwrap
import threading
import types
import unittest
import uuid
import weakref
from test import support
from test.support import import_helper
from test.support import os_helper
from test.support import script_helper

_testparcel = import_helper.import_module('_testparcel')
interpreters = import_helper.import_module('interpreters')

from interpreters import MovedObject, MovedError, NotShareableError, TransferError
from interpreters import move, pack
from test import rwparcels_random as graphs
from test.rwparcels_random import (
    Both, Colour, Error, Flags, FrozenRecord, FrozenSlottedRecord, Leaf, MyBytes,
    MyDict, MyFloat, MyFrozenSet, MyInt, MyList, MySet, MyStr, MyTuple, NewArgs,
    Node, Pair, Record, Reduced, Registered, Setter, Slotted, SlottedList,
    SlottedRecord, Stateful, describe)

SETUP = """
import gc, sys, weakref
import interpreters
from interpreters import MovedError, MovedObject, TransferError, move, pack
from test.rwparcels_random import *
from test import test_rwparcels_graph as here
"""


class GraphTestCase(unittest.TestCase):
    """Has another interpreter, and a queue to it and one back."""

    @classmethod
    def setUpClass(cls):
        cls.interp = interpreters.create()
        cls.addClassCleanup(cls.interp.close)
        cls.there = interpreters.create_queue()
        cls.back = interpreters.create_queue()
        cls.interp.prepare_main(there=cls.there, back=cls.back)
        cls.interp.exec(SETUP)

    def setUp(self):
        self.addCleanup(self.check_heaps)

    def empty_queues(self):
        for queue in self.there, self.back:
            while queue.qsize():
                with contextlib.suppress(TransferError):
                    queue.get_nowait()

    def check_heaps(self):
        self.interp.exec('obj = None')
        self.empty_queues()
        self.assertEqual(_testparcel.check_ownership(), [])
        self.check_own_heap()
        self.interp.exec('here.check_own_heap()')

    def check_own_heap(self):
        check_own_heap()

    def run_there(self, source):
        """Run source over there; return what it puts into `back`, if anything."""
        self.interp.exec(textwrap.dedent(source))
        if self.back.qsize():
            return self.back.get(timeout=support.SHORT_TIMEOUT)

    def check_same(self, text, expected):
        """Compare descriptions; show where they begin to differ."""
        if text != expected:
            a, b = text.splitlines(), expected.splitlines()
            n = 0
            while n < min(len(a), len(b)) and a[n] == b[n]:
                n += 1
            self.fail('\n'.join([f'line {n}:', *a[max(n - 5, 0):n],
                                 '--- got:', *a[n:n + 8],
                                 '--- expected:', *b[n:n + 8]]))

    def check_arrived(self, expected):
        """What is in the queue looks as expected, there and when it is back.
        Return it."""
        self.check_same(
            self.run_there('obj = there.get(); back.put(describe(obj))'), expected)
        obj = self.run_there('back.put(obj); del obj')
        self.check_same(describe(obj), expected)
        return obj

    def check_copy(self, obj):
        self.empty_queues()
        expected = describe(obj)
        self.there.put(obj)
        self.check_same(describe(obj), expected)
        return self.check_arrived(expected)

    def check_move(self, obj):
        """The caller has no other reference than its variable."""
        self.empty_queues()
        expected = describe(obj)
        self.there.put(move(obj))
        self.assertIsInstance(obj, MovedObject)
        return self.check_arrived(expected)


def check_own_heap():
    found = _testparcel.check_heap()
    if found:
        raise AssertionError('\n'.join(found))


# --- Types -------------------------------------------------------------------

def make_dict_with_holes():
    d = {f'k{i}': [i] for i in range(20)}
    for i in range(0, 20, 3):
        del d[f'k{i}']
    return d


def make_row(i):
    """A dict with containers that are done with it, and such as are not."""
    return {'first': 1000 + i, 'leaf': [f'a{i}', f'b{i}'], 'pair': (i / 7, f'c{i}'),
            'empty': [[], (), {}, [()]], 'nested': [f'd{i}', [f'e{i}', {f'f{i}'}], i / 3],
            'dict': {'a': {'b': {'c': {'d': [f'g{i}', 2000 + i]}, 'last': f'h{i}'},
                           'list': [[f'i{i}'], f'j{i}']}, 'end': 3000 + i},
            'last': f'k{i}'}


def make_split_dict():
    node = Node('x')
    node.a = [1]
    node.b = {}
    return node.__dict__


def make_instance_with_holes():
    node = Node('x')
    node.a = node.b = node.c = [1]
    del node.b
    node.b = 'late'
    del node.a
    return node


def make_slotted():
    obj = Slotted('s')
    obj.right = [1]
    return obj


def make_both():
    obj = Both('b')
    obj.left = {'a': 1}
    obj.extra = [2]
    return obj


def make_slotted_list():
    obj = SlottedList([1, []])
    obj.label = {}
    return obj


def make_reduced():
    obj = Reduced('r')
    obj.append([1])
    obj['k'] = obj
    obj.extra = {}
    return obj


def make_setter():
    obj = Setter()
    obj.value = [obj]
    return obj


def make_exception():
    try:
        try:
            raise KeyError('inner')
        except KeyError:
            raise Error('outer', [1])
    except Error as exc:
        exc.add_note('a note')
        exc.extra = {'a': 1}
        exc.__context__.__traceback__ = None
        exc.__traceback__ = None
        return exc


def make_caused():
    exc = ValueError(1, 2)
    exc.__cause__ = TypeError('why')
    return exc


def make_ordered():
    d = collections.OrderedDict((str(i), [i]) for i in range(10))
    d.move_to_end('3')
    del d['5']
    return d


def make_attributes(kind, *args):
    obj = kind(*args)
    obj.attribute = [1]
    return obj


ATOMS = {
    'None': None, 'True': True, '...': ..., 'NotImplemented': NotImplemented,
    'small int': 7, 'negative int': -7, 'int': 10**6, 'long int': -2**100,
    'huge int': 1 << 100_000, 'float': 1.5, 'minus zero': -0.0, 'nan': float('nan'),
    'inf': float('-inf'), 'complex': complex(-0.0, 2),
    'empty str': '', 'letter': 'a', 'latin letter': '\xe9', 'str': 'some text',
    'latin-1 str': '\xff' * 30, 'UCS-2 str': '\u20ac\u0101' * 20,
    'UCS-4 str': '\U0001f40d' * 10, 'surrogate': '\udc80', 'surrogates': 'a\ud800\udfffb',
    'null character': 'a\0b', 'long str': 'x' * 100_000, 'interned': sys.intern('some_name'),
    'empty bytes': b'', 'byte': b'a', 'bytes': bytes(range(256)), 'long bytes': bytes(10**6),
    'range': range(2, 10**30, 3), 'type': int, 'exception type': KeyError,
    'class': Node, 'class in a class': unittest.TestCase, 'builtin': len,
    'function': os.path.join, 'module': os, 'enum member': Colour.RED,
    'flags': Flags.READ | Flags.WRITE, 'empty tuple': (),
}

# Each makes a new object that nobody else refers to.
MAKERS = {
    'list': lambda: [1, 'a', [2.5, None], []],
    'empty list': lambda: [],
    'tuple': lambda: (1, ('a', [2], ()), b'c'),
    'dict': lambda: {'a': [1], 'b': {'c': 2}, 3: (4,), (5, 'x'): None, None: {}},
    'empty dict': lambda: {},
    'dict of str': lambda: {f'key{i}': i / 7 for i in range(100)},
    'dict of int': lambda: {i * 1000: str(i) for i in range(100)},
    'dict with holes': make_dict_with_holes,
    'cleared dict': lambda: (d := {'a': 1}, d.clear(), d)[-1],
    'set': lambda: {1, 'two', (3, 4), None, 5.5},
    'empty set': lambda: set(),
    'set of instances': lambda: {Node('a'), Node('b'), Slotted('c')},
    'frozenset': lambda: frozenset({1, ('a', 2), frozenset({3})}),
    'empty frozenset': lambda: frozenset(),
    'slice': lambda: slice([1], 'b', None),
    'bytearray': lambda: bytearray(b'some bytes'),
    'empty bytearray': lambda: bytearray(),
    'sliced bytearray': lambda: (b := bytearray(1000), b.__delitem__(slice(0, 100)), b)[-1],
    'long bytearray': lambda: bytearray(10**6),
    'array': lambda: array.array('d', [1.5, 2.5]),
    'empty array': lambda: array.array('i'),
    'long array': lambda: array.array('q', range(10**5)),
    'unicode array': lambda: array.array('w', 'a\U0001f40d'),
    'deque': lambda: collections.deque([1, [2], 3], maxlen=5),
    'long deque': lambda: collections.deque(range(1000)),
    'defaultdict': lambda: collections.defaultdict(list, a=[1]),
    'defaultdict of None': lambda: collections.defaultdict(None, a=[1]),
    'OrderedDict': make_ordered,
    'Counter': lambda: collections.Counter('abracadabra'),
    'ChainMap': lambda: collections.ChainMap({'a': 1}, {'b': [2]}),
    'UserDict': lambda: collections.UserDict({'a': [1]}),
    'namedtuple': lambda: Pair([1], {'a': 2}),
    'struct_time': lambda: __import__('time').gmtime(0),
    'dataclass': lambda: Record('name', [1, {}]),
    'dataclass with slots': lambda: SlottedRecord('name', [1]),
    'frozen dataclass': lambda: FrozenRecord('name', [1]),
    'frozen dataclass with slots': lambda: FrozenSlottedRecord('name', [1]),
    'instance': lambda: make_attributes(Node, 'n'),
    'instance without attributes': lambda: Leaf(),
    'instance with a hole': make_instance_with_holes,
    'split-table dict': make_split_dict,
    'dicts in dicts': lambda: [make_row(i) for i in range(3)],
    'instance with slots': make_slotted,
    'instance with slots and dict': make_both,
    'SimpleNamespace': lambda: types.SimpleNamespace(a=[1], b='c'),
    'int subclass': lambda: make_attributes(MyInt, 2**70),
    'str subclass': lambda: make_attributes(MyStr, 'text'),
    'bytes subclass': lambda: make_attributes(MyBytes, b'text'),
    'float subclass': lambda: make_attributes(MyFloat, 1.5),
    'list subclass': lambda: make_attributes(MyList, [1, [2]]),
    'list subclass with slots': make_slotted_list,
    'tuple subclass': lambda: make_attributes(MyTuple, ([1], 2)),
    'dict subclass': lambda: make_attributes(MyDict, {'a': [1]}),
    'set subclass': lambda: make_attributes(MySet, {1, 2}),
    'frozenset subclass': lambda: make_attributes(MyFrozenSet, {1, 2}),
    'date': lambda: datetime.date(2024, 2, 29),
    'time': lambda: datetime.time(1, 2, 3, 4, tzinfo=datetime.UTC),
    'datetime': lambda: datetime.datetime(2024, 2, 29, 1, 2, 3, 4, fold=1),
    'datetime with zone': lambda: datetime.datetime(
        2024, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=-5), 'EST')),
    'timedelta': lambda: datetime.timedelta(-1, 2, 3),
    'timezone': lambda: datetime.timezone(datetime.timedelta(minutes=90)),
    'Decimal': lambda: decimal.Decimal('-1.230E+500'),
    'Decimal NaN': lambda: decimal.Decimal('NaN123'),
    'Fraction': lambda: fractions.Fraction(-3, 2**70),
    'UUID': lambda: uuid.UUID(int=2**127 + 5),
    'Path': lambda: pathlib.Path('a', 'b') / 'c',
    'PureWindowsPath': lambda: pathlib.PureWindowsPath('c:/a'),
    'exception': make_exception,
    'exception with a cause': make_caused,
    'OSError': lambda: FileNotFoundError(2, 'no', 'name'),
    'UnicodeDecodeError': lambda: UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad'),
    'ExceptionGroup': lambda: ExceptionGroup('many', [ValueError(1), make_caused()]),
    'partial': lambda: functools.partial(Node, [1], key={}),
    'bound method': lambda: Node('x').__eq__,
    'method of a list': lambda: [1].append,
    'itemgetter': lambda: __import__('operator').itemgetter(1, 'a'),
    '__getstate__': lambda: Stateful([1]),
    '__getnewargs_ex__': lambda: NewArgs([1], label={}),
    '__reduce__': make_reduced,
    'state setter': make_setter,
    'copyreg': lambda: Registered([1]),
    'generic alias': lambda: list[int],
    'random.Random': lambda: random.Random(5),
}


class TypeTests(GraphTestCase):

    def test_atoms(self):
        for name, obj in ATOMS.items():
            with self.subTest(name):
                self.check_copy(obj)
                self.check_copy([obj, {'a': obj}])
                self.there.put(move(obj))
                self.check_arrived(describe(obj))
                self.check_move([obj, {'a': obj}])

    def test_copy(self):
        for name, make in MAKERS.items():
            with self.subTest(name):
                obj = make()
                self.check_copy(obj)
                self.check_copy([obj, obj])
                self.check_copy(pickle.loads(pickle.dumps(obj)))

    def test_move(self):
        for name, make in MAKERS.items():
            with self.subTest(name):
                obj = [make()] * 2
                self.check_move(obj)

    def test_move_as_root(self):
        for name in ('list', 'dict', 'set', 'bytearray', 'array', 'deque',
                     'instance', 'instance with slots', 'dataclass',
                     'dict subclass', 'exception', 'tuple', 'OrderedDict'):
            with self.subTest(name):
                obj = MAKERS[name]()
                self.check_move(obj)

    def test_pickle_agrees(self):
        # The description sees what pickle sees: it is fit to be compared.
        for name, make in MAKERS.items():
            with self.subTest(name):
                obj = make()
                self.assertEqual(
                    describe(pickle.loads(pickle.dumps(obj)), as_pickle=True),
                    describe(obj, as_pickle=True))

    def test_copies_are_independent(self):
        obj = {'a': [1], 'b': Node('n'), 'c': bytearray(b'x'), 'd': {1}}
        self.there.put(obj)
        text = self.run_there("""
            obj = there.get()
            obj['a'].append(2); obj['b'].label = 'new'; obj['c'] += b'y'
            obj['d'].add(2); obj['e'] = 5
            back.put(describe(obj))
            """)
        self.assertEqual(obj['a'], [1])
        self.assertEqual(obj['b'].label, 'n')
        self.assertEqual(obj['c'], b'x')
        self.assertEqual(obj['d'], {1})
        self.assertNotIn('e', obj)
        obj['a'].append(2); obj['b'].label = 'new'; obj['c'] += b'y'
        obj['d'].add(2); obj['e'] = 5
        self.check_same(text, describe(obj))

    def test_all_in_one(self):
        everything = lambda: [make() for make in MAKERS.values()]
        self.check_copy(everything())
        obj = everything()
        self.check_move(obj)

    def test_usable_over_there(self):
        # What has been taken over works: it grows, is hashed, is sorted, ...
        obj = [make() for make in MAKERS.values()]
        self.there.put(move(obj))
        self.run_there("""
            obj = there.get()
            for part in obj:
                match part:
                    case list() | collections.deque():
                        part.extend(part and [part[0]] * 100)
                    case dict():
                        part.update((str(i), i) for i in range(100))
                        for key in list(part)[::2]:
                            del part[key]
                    case set():
                        part.update(range(100))
                        part -= set(range(50))
                    case bytearray():
                        part.extend(b'x' * 1000)
                    case array.array():
                        part.extend(part)
                    case Node() | types.SimpleNamespace():
                        for i in range(40):
                            setattr(part, f'attribute{i}', i)
                        del part.attribute0
                        part.__dict__
                repr(part)
            gc.collect()
            """)

    def test_functions(self):
        def outer(step, start=[10]):
            def inner(x, *, scale=2):
                return (inner and x + step) * scale + start[0]
            return inner
        inner = outer(1)
        self.there.put(inner)
        self.assertEqual(
            self.run_there('f = there.get(); back.put((f(1), f(1, scale=3)))'),
            (14, 16))
        self.there.put([inner, lambda: 5, {'f': inner}])
        self.assertEqual(
            self.run_there('a, b, c = there.get();'
                           ' back.put((a(0), b(), a is c["f"]))'),
            (12, 5, True))
        self.run_there('del f, a, b, c')

    def test_lent_buffer(self):
        data = bytearray(b'0123')
        self.there.put([memoryview(data)[1:], 5])
        self.run_there('obj = there.get(); obj[0][0] = 255; del obj')
        self.assertEqual(data, b'0\xff23')

    def test_refused(self):
        lock = threading.Lock()
        for obj in lock, (x for x in ()), sys._getframe():
            for graph in obj, [obj], {'a': [(obj,)]}, Node(obj):
                before = self.there.qsize()
                with self.assertRaises(NotShareableError):
                    self.there.put(graph)
                with self.assertRaises((NotShareableError, TransferError)):
                    self.there.put(move([graph]))
                self.assertEqual(self.there.qsize(), before)

    def test_refusal_names_the_path(self):
        with self.assertRaises(NotShareableError) as cm:
            self.there.put({'jobs': [1, 2, 3, Node(threading.Lock())]})
        self.assertIn("['jobs'][3].label", str(cm.exception))


# --- Identity, cycles --------------------------------------------------------

def cycle(make, join):
    def make_cycle():
        obj = make()
        join(obj)
        return obj
    return make_cycle


def make_tuple_cycle():
    part = []
    part.append((part, 1))
    return part[0]


def make_frozenset_cycle():
    node = Node('n')
    node.all = frozenset([node, 1])
    return node.all


def make_namedtuple_cycle():
    part = []
    part.append(Pair(part, 1))
    return part


def make_slice_cycle():
    part = []
    part.append(slice(part))
    return part


def make_closure_cycle():
    part = []
    def function():
        return part
    part.append(function)
    return part


def make_exception_cycle():
    exc = Error()
    exc.args = [exc],
    exc.extra = exc
    return exc


def make_cause_cycle():
    a, b = Error('a'), Error('b')
    a.__context__ = b
    b.extra = [a]
    return a


def make_set_cycle():
    node = Node('n')
    node.all = {node, Node('other')}
    return node.all


def make_key_cycle():
    node = Node('n')
    node.table = {node: [node]}
    return node.table


CYCLES = {
    'list': cycle(list, lambda x: x.append(x)),
    'dict': cycle(dict, lambda x: x.update(me=x)),
    'key of a dict': make_key_cycle,
    'tuple': make_tuple_cycle,
    'set': make_set_cycle,
    'frozenset': make_frozenset_cycle,
    'slice': make_slice_cycle,
    'deque': cycle(collections.deque, lambda x: x.append(x)),
    'defaultdict': cycle(lambda: collections.defaultdict(list),
                         lambda x: x['me'].append(x)),
    'OrderedDict': cycle(collections.OrderedDict, lambda x: x.update(me=x)),
    'Counter': cycle(collections.Counter, lambda x: x.__dict__.update(me=x)),
    'namedtuple': make_namedtuple_cycle,
    'instance': cycle(lambda: Node('n'), lambda x: setattr(x, 'me', x)),
    'slots': cycle(lambda: Slotted('s'), lambda x: setattr(x, 'left', [x])),
    'slots and dict': cycle(lambda: Both('b'), lambda x: (
        setattr(x, 'left', x), setattr(x, 'extra', x))),
    'dataclass': cycle(lambda: Record('r'), lambda x: x.items.append(x)),
    'dataclass with slots': cycle(lambda: SlottedRecord('r'),
                                  lambda x: setattr(x, 'items', x)),
    'SimpleNamespace': cycle(types.SimpleNamespace, lambda x: setattr(x, 'me', x)),
    'list subclass': cycle(MyList, lambda x: (x.append(x), setattr(x, 'me', x))),
    'dict subclass': cycle(MyDict, lambda x: x.update(me=x)),
    'set subclass': cycle(MySet, lambda x: setattr(x, 'me', x)),
    'exception': make_exception_cycle,
    'causes': make_cause_cycle,
    '__setstate__': cycle(lambda: Stateful(None), lambda x: setattr(x, 'value', x)),
    '__reduce__': make_reduced,
    'state setter': make_setter,
    'partial': cycle(lambda: functools.partial(len), lambda x: x.__setstate__(
        (len, (x,), {}, {'me': x}))),
}


class Given:
    """Made with its value: a cycle through that can't be made anew."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return Given, (self.value,)


class IdentityTests(GraphTestCase):

    def given_to_itself(self, wrap):
        obj = Given(None)
        obj.value = wrap(obj)
        return obj

    def test_among_its_own_arguments(self):
        # pickle gives up by RecursionError.  Nothing may arrive with a hole in it.
        for wrap in (lambda obj: obj, Given, lambda obj: frozenset([obj])):
            with self.assertRaises(RecursionError):
                pickle.dumps(self.given_to_itself(wrap), 5)
            for mark in list, move:
                # The queue is given the only reference.
                with self.assertRaises(NotShareableError) as caught:
                    self.there.put(mark([self.given_to_itself(wrap)]))
                self.assertIn('arguments that it is made with',
                              str(caught.exception.__cause__))
            self.assertEqual(self.there.qsize(), 0)

    def test_in_what_it_is_made_with(self):
        # These can be filled when it is made; pickle makes a second one or gives up.
        def node(obj):
            node = Node('n')
            node.other = obj
            return node
        inner = {
            'list': (lambda obj: [obj], lambda value: value[0]),
            'tuple': (lambda obj: Given((obj,)), lambda value: value.value[0]),
            'instance': (node, lambda value: value.other),
            'value': (lambda obj: {1: obj}, lambda value: value[1]),
            'key': (lambda obj: {obj: 1}, lambda value: next(iter(value))),
            'member': (lambda obj: {obj}, lambda value: next(iter(value))),
            'deep': (lambda obj: Given([{obj: Given(node(obj))}]),
                     lambda value: next(iter(value.value[0].values())).value.other),
        }
        for name, (wrap, find) in inner.items():
            for mark in list, move:
                with self.subTest(name, mark=mark):
                    self.there.put(mark([self.given_to_itself(wrap)]))
                    obj, = self.there.get()
                    self.assertIs(type(obj), Given)
                    self.assertIs(find(obj.value), obj)

    def test_cycles(self):
        for name, make in CYCLES.items():
            with self.subTest(name):
                obj = make()
                self.check_copy(obj)
                self.check_copy([obj, obj])
                del obj
                gc.collect()
                obj = [make()]
                self.check_move(obj)
                obj = {'a': [make()] * 2}
                self.check_move(obj)

    def test_all_cycles(self):
        obj = [make() for make in CYCLES.values()]
        for part in obj:
            if isinstance(part, (Node, types.SimpleNamespace)):
                part.all = obj
        self.check_copy(obj)
        del part
        self.check_move(obj)

    def test_closure_cycle(self):
        self.there.put(make_closure_cycle())
        self.assertIs(self.run_there('obj = there.get();'
                                     ' back.put(obj[0]() is obj)'), True)

    def test_shared_references_stay_shared(self):
        for name in ('list', 'dict', 'tuple', 'set', 'bytearray', 'instance',
                     'deque', 'exception', 'namedtuple', 'array', 'Decimal',
                     'datetime', '__reduce__', 'slice', 'partial'):
            part = MAKERS[name]()
            with self.subTest(name):
                obj = [part, [part], {'a': part}, (part,), Node(part)]
                del part
                check = """
                    obj = there.get()
                    back.put(obj[0] is obj[1][0] is obj[2]['a'] is obj[3][0]
                             is obj[4].label)
                    """
                self.there.put(obj)
                self.assertTrue(self.run_there(check))
                self.there.put(move(obj))
                self.assertTrue(self.run_there(check))

    def test_shared_text(self):
        # Only memory is at stake, and what `is` says.
        text = 'not interned ' * 5
        obj = [text, text, text.encode(), {text: text}]
        obj.append(obj[2])
        check = """
            obj = there.get()
            (key, value), = obj[3].items()
            back.put(obj[0] is obj[1] is key is value and obj[2] is obj[4])
            """
        self.there.put(obj)
        self.assertTrue(self.run_there(check))
        del text
        self.there.put(move(obj))
        self.assertTrue(self.run_there(check))

    def test_equal_objects_stay_apart(self):
        self.there.put([[], [], {}, {}, (1, []), (1, [])])
        self.assertEqual(
            self.run_there('obj = there.get(); back.put(len(set(map(id, obj))))'), 6)

    def test_singletons(self):
        self.there.put([None, True, ..., NotImplemented, (), '', b'', 5, 'a', int,
                        Colour.RED, Node, len, os.path.join, datetime.UTC])
        self.assertTrue(self.run_there("""
            import os, datetime
            expected = [None, True, ..., NotImplemented, (), '', b'', 5, 'a', int,
                        Colour.RED, Node, len, os.path.join, datetime.UTC]
            obj = there.get()
            back.put(all(a is b for a, b in zip(obj, expected, strict=True)))
            """))


# --- Containers --------------------------------------------------------------

class ByValue:
    """Hashed and compared by Python code."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return hash(self.value) + 1

    def __eq__(self, other):
        return isinstance(other, ByValue) and self.value == other.value


def check_table(obj):
    """All keys or members are found, and nothing else."""
    assert all(key in obj for key in obj)
    assert len(list(obj)) == len(obj)
    assert object() not in obj and 'not in there' not in obj
    if isinstance(obj, dict):
        for key, value in obj.items():
            assert obj[key] is value, key
        obj['new'] = 1
        assert obj.pop('new') == 1
    elif isinstance(obj, set):
        obj.add('new')
        assert 'new' in obj
        obj.remove('new')
    return True


class TableTests(GraphTestCase):
    """Dicts and sets."""

    def check(self, make):
        check = 'obj = there.get(); back.put(here.check_table(obj))'
        obj = make()
        expected = describe(obj)
        self.there.put(obj)
        self.assertTrue(self.run_there(check))
        self.check_copy(obj)
        check_table(obj)
        self.check_same(describe(obj), expected)
        self.there.put(move(obj))
        self.assertTrue(self.run_there(check))
        obj = make()
        check_table(self.check_move(obj))

    def test_order(self):
        keys = [f'{i * 7919 % 1000}' for i in range(1000)]
        def make():
            d = dict.fromkeys(keys, 0)
            for key in keys[::3]:
                del d[key]
            for key in keys[::6]:
                d[key] = 1
            return d
        obj = make()
        self.there.put(obj)
        self.assertEqual(self.run_there('back.put(list(there.get().items()))'),
                         list(obj.items()))
        self.check(make)

    def test_kinds_of_keys(self):
        for keys in (['a', 'b'], [1, 2.5, 'a', None, (1, 'b'), b'x', ..., int],
                     [frozenset([1]), Colour.RED, decimal.Decimal(1)],
                     [datetime.date(2024, 1, 1), uuid.UUID(int=1)],
                     [MyStr('a'), MyInt(1)], list(range(-5, 1000)),
                     ['\xe9', '\u20ac', '\U0001f40d', '\udc80'],
                     [2**61 - 1, 2**61, -1, -2, 2**200]):
            with self.subTest(keys=str(keys)[:50]):
                self.check(lambda: {key: [i] for i, key in enumerate(keys)})
                self.check(lambda: set(keys))
                self.check(lambda: frozenset(keys))

    def test_keys_hashed_by_address(self):
        def nodes():
            return [Node(i) for i in range(300)] + [Slotted(i) for i in range(9)]
        self.check(lambda: {node: i for i, node in enumerate(nodes())})
        self.check(lambda: set(nodes()))
        self.check(lambda: frozenset(nodes()))
        self.check(lambda: {(i, node): i for i, node in enumerate(nodes())})
        self.check(lambda: {Node: 1, int: 2, len: 3, os.path.join: 4, None: 5})

    def test_keys_hashed_by_code(self):
        make = lambda: {ByValue(str(i)): i for i in range(50)}
        check = """
            obj = there.get()
            back.put(obj[here.ByValue('7')] == 7 and here.check_table(obj))
            """
        obj = make()
        self.there.put(obj)
        self.assertTrue(self.run_there(check))
        self.there.put(move(obj))
        self.assertTrue(self.run_there(check))
        obj = {ByValue((1, i)) for i in range(50)}
        self.there.put(move(obj))
        self.assertTrue(self.run_there(
            'obj = there.get(); back.put(here.check_table(obj))'))

    def test_collisions(self):
        # All of the members begin their search at the same place.
        self.check(lambda: {i << 20 for i in range(1000)})
        self.check(lambda: {i << 40: [i] for i in range(500)})
        self.check(lambda: {Node(i): i << 20 for i in range(100)}
                           | {i << 20: i for i in range(100)})

    def test_removed_members(self):
        def make():
            s = set(range(0, 1000, 8)) | {(i,) for i in range(100)}
            for i in range(0, 1000, 16):
                s.remove(i)
            return s
        self.check(make)

    def test_shrunk(self):
        def make_dict():
            d = {str(i): i for i in range(5000)}
            for i in range(4990):
                del d[str(i)]
            return d
        def make_set():
            s = set(range(5000))
            s.difference_update(range(4990))
            return s
        self.check(make_dict)
        self.check(make_set)
        self.check(lambda: (d := {i: [i] for i in range(100)}, d.popitem(), d)[-1])

    def test_split_tables(self):
        self.check(make_split_dict)
        def make_orphan():
            node = Node('n')
            node.x = [1]
            d = node.__dict__
            node.__dict__ = {}
            return d
        self.check(make_orphan)
        def many():
            nodes = [Node(i) for i in range(50)]
            for i, node in enumerate(nodes):
                for j in range(i):
                    setattr(node, f'a{(i * j) % 40}', j)
            return nodes
        obj = many()
        self.check_copy(obj)
        obj = many()
        got = self.check_move(obj)
        for node in got:
            node.another = 1
            self.assertEqual(node.__dict__['another'], 1)

    def test_big_instances(self):
        # More attributes than an object has place for.
        def make():
            node = Node('n')
            for i in range(200):
                setattr(node, f'attribute{i}', [i])
            return node
        obj = make()
        self.check_copy(obj)
        self.check_move(obj)

    def test_attributes_of_the_receiver(self):
        # The same class, with other attributes over there.
        self.run_there("""
            nodes = [Node(i) for i in range(40)]
            for i, node in enumerate(nodes):
                setattr(node, f'only_there{i}', i)
            """)
        node = Node('n')
        for i in range(20):
            setattr(node, f'only_here{i}', i)
        self.check_copy(node)
        obj = [node]
        del node
        self.check_move(obj)
        self.run_there('del nodes, node')

    def test_big(self):
        obj = {f'key {i}': i / 3 for i in range(100_000)}
        expected = hash(frozenset(obj.items()))
        check = 'obj = there.get(); back.put(hash(frozenset(obj.items())))'
        self.there.put(obj)
        self.assertEqual(self.run_there(check), expected)
        self.there.put(move(obj))
        self.assertEqual(self.run_there(check), expected)

    def test_watched_dict(self):
        _testcapi = import_helper.import_module('_testcapi')
        id = _testcapi.add_dict_watcher(0)
        self.addCleanup(_testcapi.clear_dict_watcher, id)
        obj = {'a': [1]}
        _testcapi.watch_dict(id, obj)
        self.check_copy(obj)
        with contextlib.suppress(TransferError):
            # Refused or no longer watched: nothing gets here from over there.
            self.there.put(move(obj))
            self.run_there('obj = there.get(); obj["b"] = 2')
        self.assertEqual(_testcapi.get_dict_watcher_events(), [])


class TextTests(GraphTestCase):

    def test_interned(self):
        name = sys.intern('an interned name, made for this')
        for way in lambda x: x, move:
            self.there.put(way([name, {name: name}]))
            self.assertTrue(self.run_there("""
                obj = there.get()
                name = obj[0]
                same = sys.intern('an interned name, ' + 'made for this'[:])
                back.put(name == same and obj[1][same] == same)
                del obj, name, same
                gc.collect()
                """))
            self.assertIs(sys.intern('an interned name, made for ' + 'this'[:]), name)

    def test_interned_in_both(self):
        # The one who gives it up must not take the other's out of its table.
        self.run_there("text = sys.intern('interned in ' + 'both'[:])")
        for _ in range(3):
            obj = [sys.intern('interned in ' + 'both'[:]), []]
            self.there.put(move(obj))
            self.assertTrue(self.run_there("""
                obj = there.get()
                ok = obj[0] == text
                del obj
                back.put(ok and sys.intern('interned in ' + 'both'[:]) is text)
                """))
        self.run_there('del text')

    def test_names_of_attributes(self):
        node = Node('n')
        setattr(node, 'made_up_' + str(12345), [1])
        obj = [node]
        del node
        self.there.put(move(obj))
        self.assertEqual(
            self.run_there('obj = there.get()[0]; back.put(obj.made_up_12345)'), [1])

    def test_cached_utf8(self):
        obj = ['\xe9' * 20, '\u20ac' * 20, 'ascii' * 20]
        # int() and len(encode) leave the UTF-8 form in the string.
        for text in obj:
            with contextlib.suppress(ImportError, ValueError):
                __import__(text)
        del text
        self.check_copy(obj)
        self.check_move(obj)

    def test_hash(self):
        text = 'a text whose hash is known' * 3
        hash(text)
        obj = [text]
        expected = hash(text)
        del text
        self.there.put(move(obj))
        self.assertEqual(
            self.run_there('obj = there.get(); back.put(hash(obj[0]))'), expected)


# --- Size --------------------------------------------------------------------

class SizeTests(GraphTestCase):

    @support.bigmemtest(size=10_000_000, memuse=200)
    def test_ten_million_objects(self, size):
        obj = [[i] for i in range(size // 2)]
        self.there.put(move(obj))
        self.assertEqual(self.run_there(
            'obj = there.get(); back.put(sum(x[0] for x in obj)); del obj'),
            sum(range(size // 2)))

    def test_many_objects(self):
        def make():
            return [{'id': i, 'name': f'name {i}', 'tags': ['a', f't{i}', 'c'],
                     'weight': i / 3} for i in range(20_000)]
        check = """
            obj = there.get()
            back.put((len(obj), sum(d['id'] for d in obj),
                      sum(d['weight'] for d in obj), obj[777]))
            """
        obj = make()
        expected = (len(obj), sum(d['id'] for d in obj),
                    sum(d['weight'] for d in obj), copy.deepcopy(obj[777]))
        self.there.put(obj)
        self.assertEqual(self.run_there(check), expected)
        self.there.put(move(obj))
        self.assertEqual(self.run_there(check), expected)
        self.run_there('del obj; gc.collect()')

    def test_tree_of_instances(self):
        def tree(depth):
            node = Node(depth)
            if depth:
                node.left = tree(depth - 1)
                node.right = tree(depth - 1)
            return node
        obj = tree(12)
        self.check_copy(obj)
        self.check_move(obj)

    DEEP = """
        import interpreters
        from interpreters import move
        from test.rwparcels_random import Node

        CASES = [
            (lambda x: [x], 'obj[0]'),
            (lambda x: (x,), 'obj[0]'),
            (lambda x: {{'a': x}}, 'obj["a"]'),
            (lambda x: {{1: x}}, 'obj[1]'),
            (lambda x: [[], {{'a': (0, x)}}], 'obj[1]["a"][1]'),
            (Node, 'obj.label'),
        ]

        def nest(wrap):
            obj = []
            for _ in range({depth}):
                obj = wrap(obj)
            return obj

        interp = interpreters.create()
        q = interpreters.create_queue()
        interp.prepare_main(q=q)
        for wrap, step in CASES:
            receive = '\\n'.join([
                'obj = q.get()',
                'depth = 0',
                'while obj != []:',
                '    obj = ' + step,
                '    depth += 1',
                'assert depth == {depth}, depth'])
            obj = nest(wrap)
            q.put(obj)
            interp.exec(receive)
            q.put(move(obj))
            interp.exec(receive)
            del obj
        interp.close()
        print('done')
        """

    def check_deep(self, depth):
        with os_helper.temp_dir() as folder:
            source = textwrap.dedent(self.DEEP).format(depth=depth)
            name = script_helper.make_script(folder, 'script', source)
            result = script_helper.assert_python_ok('-X', 'faulthandler', name)
        self.assertEqual(result.out.strip(), b'done')

    def test_deep(self):
        self.check_deep(100_000)

    @support.requires_resource('cpu')
    def test_very_deep(self):
        self.check_deep(1_000_000)

    def test_long_chain(self):
        # Deep, and each part is a cycle with its neighbour.
        obj = root = {}
        for _ in range(100_000):
            obj['next'] = {'previous': obj}
            obj = obj['next']
        del obj
        self.there.put(root)
        check = """
            obj = there.get()
            n = 0
            while 'next' in obj:
                assert obj['next']['previous'] is obj
                obj = obj['next']
                n += 1
            back.put(n)
            """
        self.assertEqual(self.run_there(check), 100_000)
        self.there.put(move(root))
        self.assertEqual(self.run_there(check), 100_000)


# --- What classes say about themselves ---------------------------------------

calls = []


class Traced:
    """Notes what is called, in the interpreter where it is."""

    def __new__(cls, *args):
        calls.append('__new__')
        return super().__new__(cls)

    def __init__(self, value):
        calls.append('__init__')
        self.value = value

    def __getstate__(self):
        calls.append('__getstate__')
        return self.__dict__.copy()

    def __setstate__(self, state):
        calls.append('__setstate__')
        self.__dict__.update(state)


class TracedPlain:
    """No protocol of its own: nothing is called."""

    def __init__(self, value):
        calls.append('__init__')
        self.value = value

    def __setattr__(self, name, value):
        calls.append('__setattr__')
        super().__setattr__(name, value)


class Finalized:

    def __init__(self, label):
        self.label = label

    def __del__(self):
        calls.append(f'__del__ {self.label}')


class Numbered:
    """Says when it is made, in which order."""

    def __init__(self, number):
        self.number = number

    def __setstate__(self, state):
        self.__dict__.update(state)
        calls.append(self.number)


class MeetsItself:
    """Sends itself while it is sent."""
    queue = None

    def __reduce__(self):
        if MeetsItself.queue is not None:
            queue, MeetsItself.queue = MeetsItself.queue, None
            queue.put([self])
        return MeetsItself, ()


class Spoiler:
    """Changes the graph in which it is."""

    def __init__(self, graph, how):
        self.graph = graph
        self.how = how

    def __reduce__(self):
        self.how(self.graph)
        return Node, ('spoiled',)


class ProtocolTests(GraphTestCase):

    def setUp(self):
        super().setUp()
        calls.clear()
        self.run_there('here.calls.clear()')

    def calls_there(self):
        return self.run_there('back.put(here.calls); here.calls.clear()')

    def test_calls(self):
        obj = Traced([1])
        calls.clear()
        self.there.put(obj)
        self.assertEqual(calls, ['__getstate__'])
        self.run_there('obj = there.get()')
        self.assertEqual(self.calls_there(), ['__new__', '__setstate__'])
        self.assertEqual(self.run_there('back.put(obj.value)'), [1])

    def test_calls_when_moved(self):
        obj = [Traced([1])]
        calls.clear()
        self.there.put(move(obj))
        self.assertEqual(calls, ['__getstate__'])
        self.run_there('obj = there.get()')
        self.assertEqual(self.calls_there(), ['__new__', '__setstate__'])

    @support.cpython_only
    def test_counts_of_the_collector(self):
        # What leaves is not counted, however often the walk begins again; and what a walk
        # has made for nothing does not make others uncounted.
        rows = [{'a': [5000 + i], 'b': {'c': 6000 + i}} for i in range(10_000)]
        refused = [*rows, threading.Lock()]
        with_code = [*rows, Traced([1])]
        with support.disable_gc():
            for _ in range(2):
                gc.collect(0)
                before = gc.get_count()[0]
                self.there.put(with_code)
                self.assertLess(abs(gc.get_count()[0] - before), 1000)
                self.run_there('there.get()')
                kept = [[] for _ in range(200)]
                before = gc.get_count()[0]
                with self.assertRaises(NotShareableError):
                    self.there.put(refused)
                self.assertGreaterEqual(gc.get_count()[0], before)
                del kept

    def test_order_of_calls(self):
        # It is pickle's, wherever in lists, tuples and dicts they are.
        def make():
            numbers = map(Numbered, itertools.count())
            def row():
                return {'a': ['text', next(numbers), next(numbers)], 'b': next(numbers),
                        'c': {'d': (1.5, [next(numbers)]), 'e': {'f': next(numbers)},
                              'g': {'h': [5000], 'i': next(numbers)}, 'j': next(numbers)},
                        'k': [[next(numbers)], {'l': next(numbers)}], 'm': next(numbers)}
            return [row(), (row(), [row()]), row()]
        pickle.loads(pickle.dumps(make(), 5))
        expected = calls.copy()
        self.assertEqual(len(expected), 40)
        for way in lambda x: x, move:
            obj = make()
            self.there.put(way(obj))
            del obj
            self.run_there('obj = there.get()')
            self.assertEqual(self.calls_there(), expected)

    def test_no_calls(self):
        obj = TracedPlain([1])
        calls.clear()
        self.there.put([obj])
        del obj
        self.assertEqual(calls, [])
        self.run_there('obj = there.get()')
        self.assertEqual(self.calls_there(), [])

    def test_del_of_a_copy(self):
        obj = Finalized('x')
        self.there.put(obj)
        self.assertEqual(calls, [])
        self.run_there('obj = there.get()')
        self.assertEqual(self.calls_there(), [])
        self.run_there('del obj; gc.collect()')
        self.assertEqual(self.calls_there(), ['__del__ x'])
        self.assertEqual(calls, [])
        del obj
        self.assertEqual(calls, ['__del__ x'])

    def test_del_of_what_was_moved(self):
        # It runs once, where the object has gone.
        obj = [Finalized('y')]
        self.there.put(move(obj))
        del obj
        gc.collect()
        self.assertEqual(calls, [])
        self.run_there('obj = there.get()')
        self.assertEqual(self.calls_there(), [])
        self.run_there('del obj; gc.collect()')
        self.assertEqual(self.calls_there(), ['__del__ y'])
        self.assertEqual(calls, [])

    def test_state_is_not_what_the_dict_is(self):
        obj = Stateful([1])
        obj.unsaved = 5
        self.there.put(obj)
        self.assertEqual(self.run_there("""
            obj = there.get()
            back.put((obj.value, hasattr(obj, 'unsaved'), type(obj.cache).__name__))
            """), ([1], False, 'object'))

    def test_reduce_fails(self):
        class Fails:
            def __reduce__(self):
                raise LookupError('as it likes')
        obj = [1, {'a': Fails()}]
        for way in lambda x: x, move:
            with self.assertRaises(NotShareableError) as cm:
                self.there.put(way(obj))
            self.assertIn('as it likes', repr(cm.exception.__cause__))
        self.assertEqual(obj[0], 1)
        self.assertIs(type(obj[1]['a']), Fails)
        self.assertEqual(self.there.qsize(), 0)

    def test_interrupt_passes(self):
        class Fails:
            def __reduce__(self):
                raise KeyboardInterrupt
        obj = [Fails()]
        for way in lambda x: x, move:
            with self.assertRaises(KeyboardInterrupt):
                self.there.put(way(obj))
        self.assertIs(type(obj[0]), Fails)

    def test_sent_while_it_is_sent(self):
        MeetsItself.queue = self.back
        self.there.put([MeetsItself(), 1])
        self.assertIsNone(MeetsItself.queue)
        inner = self.run_there('obj = there.get(); assert obj[1] == 1')
        self.assertIsInstance(inner[0], MeetsItself)

    def test_graph_changes_while_it_is_sent(self):
        def clear(graph):
            graph.clear()
        def grow(graph):
            for i in range(1000):
                graph.append([i])
        def replace(graph):
            graph[:] = [[i] for i in range(5)]
        def shrink(graph):
            del graph[1:]
        def collect(graph):
            gc.collect()
        for how in clear, grow, replace, shrink, collect:
            for moved in False, True:
                with self.subTest(how=how.__name__, moved=moved):
                    graph = [[1], {'a': []}, 'text' * 5]
                    graph.append(Spoiler(graph, how))
                    graph.extend([[2], {'b': [3]}, 'more' * 5])
                    # Whatever arrives, it is not half of something.
                    with contextlib.suppress(NotShareableError, TransferError):
                        self.there.put(move(graph) if moved else graph)
                        self.run_there(
                            'obj = there.get(); describe(obj); gc.collect()')
                    if not isinstance(graph, MovedObject):
                        graph.clear()

    def test_copyreg_extension(self):
        obj = [Registered([1]), Registered({})]
        self.check_copy(obj)
        self.check_move(obj)

    def test_class_state_does_not_go(self):
        Node.here_only = 5
        self.addCleanup(delattr, Node, 'here_only')
        self.there.put(Node('x'))
        self.assertFalse(self.run_there(
            'obj = there.get(); back.put(hasattr(obj, "here_only"))'))


# --- Instances that stay whole -------------------------------------------------

PLAIN_THING = """
class Thing:
    deleted = 0
    def __del__(self):
        Thing.deleted += 1
"""

MAKE_THING = """
import sys, types
module = types.ModuleType(NAME)
sys.modules[NAME] = module
exec(SOURCE, module.__dict__)
Thing = module.Thing
"""


class FamilyTests(GraphTestCase):
    """Instances go as they are; what their class is like is each interpreter's."""

    NAME = 'thing_of_family_tests'

    def make_classes(self, source_here, source_there):
        def make(source):
            return f'NAME = {self.NAME!r}\nSOURCE = {source!r}\n{MAKE_THING}'
        self.interp.exec(make(source_there))
        namespace = {}
        exec(make(source_here), namespace)
        self.addCleanup(self.interp.exec, f'del sys.modules[{self.NAME!r}]')
        self.addCleanup(sys.modules.pop, self.NAME)
        return namespace['Thing']

    def make_things(self, Thing, n, names='abc'):
        things = [Thing() for _ in range(n)]
        for i, thing in enumerate(things):
            for name in names:
                setattr(thing, name, [name, i])
            thing.next = things[i - 1]
        return things

    def read_there(self, n):
        """Read all attributes, often enough for the code to be specialised."""
        self.assertEqual(self.run_there(f"""
            obj = there.get()
            def read(thing):
                return thing.a, thing.b, thing.c
            back.put([read(thing) for _ in range(20) for thing in obj][:{n}])
            """), [(['a', i], ['b', i], ['c', i]) for i in range(n)])
        self.assertEqual(self.run_there(
            'back.put([list(vars(x)) for x in obj] + [obj[0].next is obj[-1]])'),
            [['a', 'b', 'c', 'next']] * n + [True])

    def test_objects_stay_what_they_are(self):
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        things = self.make_things(Thing, 5)
        where = [id(thing) for thing in things]
        parcel = pack(move(things))
        self.assertEqual(parcel.stats.rebuilt, 0)
        things = parcel.open()
        self.assertEqual([id(thing) for thing in things], where)
        copies = pack(things).open()
        self.assertEqual([x.a for x in copies], [x.a for x in things])
        self.assertFalse(set(map(id, copies)) & set(where))

    def test_same_names(self):
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        things = self.make_things(Thing, 50)
        self.there.put(things)
        self.read_there(50)
        things = self.make_things(Thing, 50)
        self.there.put(move(things))
        self.read_there(50)

    def test_names_in_other_places(self):
        Thing = self.make_classes(
            PLAIN_THING, PLAIN_THING + 'x = Thing(); x.other = x.c = x.b = 1')
        for wrap in (lambda x: x), move:
            things = self.make_things(Thing, 5)
            self.there.put(wrap(things))
            self.read_there(5)

    def test_names_in_other_places_and_a_record(self):
        # One whose __dict__ is an object can't be in the family.
        Thing = self.make_classes(
            PLAIN_THING, PLAIN_THING + 'x = Thing(); x.other = x.c = x.b = 1')
        things = self.make_things(Thing, 5)
        vars(things[3])
        self.there.put(move(things))
        self.read_there(5)

    def test_names_in_other_places_and_code(self):
        # What makes the dict looks into its keys, so they can't be in the family.
        thing = PLAIN_THING + """
    def __hash__(self):
        return hash(self.c)
    def __eq__(self, other):
        return self.c == other.c
"""
        Thing = self.make_classes(
            thing, thing + 'x = Thing(); x.other = x.c = x.b = 1')
        for wrap in (lambda x: x), move:
            thing = Thing()
            thing.a = thing.b = 1
            thing.c = 'key'
            table = collections.OrderedDict({thing: 1})
            del thing
            self.assertEqual(pack(table).stats.rebuilt, 1)
            self.there.put(wrap(table))
            self.assertEqual(self.run_there("""
                [(thing, value)] = there.get().items()
                back.put((thing.a, thing.b, thing.c, hash(thing), value))
                """)[:3], (1, 1, 'key'))

    def test_no_room_for_names(self):
        Thing = self.make_classes(
            PLAIN_THING, PLAIN_THING + """
for i in range(20):
    setattr(Thing(), f'name{i}', i)
""")
        self.make_things(Thing, 40)
        for wrap in (lambda x: x), move:
            things = self.make_things(Thing, 5)
            self.there.put(wrap(things))
            self.read_there(5)

    def test_names_that_come_later(self):
        # Those of the sender have no room for more values than there are; they
        # must not be read where others have some.
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        self.make_things(Thing, 40)
        for wrap in (lambda x: x), move:
            things = self.make_things(Thing, 5)
            self.there.put(wrap(things))
            self.assertEqual(self.run_there("""
                obj = there.get()
                mine = Thing()
                for i in range(28):
                    setattr(mine, f'name{i}', i)
                def read(thing):
                    return [getattr(thing, 'name0', None), thing.name1]
                def probe(thing, i, namespace={}):
                    exec(f'def read(thing): return thing.name{i}', namespace)
                    for _ in range(20):
                        namespace['read'](mine)
                    try:
                        return namespace['read'](thing)
                    except AttributeError:
                        return None
                back.put([probe(thing, i) for thing in obj for i in range(28)])
                """), [None] * 5 * 28)

    def test_class_that_is_different(self):
        Thing = self.make_classes(PLAIN_THING, """
class Thing:
    __slots__ = 'a', 'b', 'c', 'next'
    def __setstate__(self, state):
        for name, value in state.items():
            setattr(self, name, (name, value))
""")
        for wrap in (lambda x: x), move:
            things = self.make_things(Thing, 5)
            obj = [things, things[2]]
            del things
            self.there.put(wrap(obj))
            self.assertEqual(self.run_there("""
                obj, third = there.get()
                back.put([[x.a, x.b, x.c] for x in obj]
                         + [obj[0].next == ('next', obj[-1]), third is obj[2]])
                """), [[('a', ['a', i]), ('b', ['b', i]), ('c', ['c', i])]
                       for i in range(5)] + [True, True])

    def test_no_class(self):
        Thing = self.make_classes(PLAIN_THING, 'Thing = 5')
        things = self.make_things(Thing, 5)
        expected = describe(things)
        self.there.put(move(things))
        parcel = self.run_there("""
            try:
                there.get()
            except TransferError as exc:
                back.put(exc.parcel)
            """)
        self.check_same(describe(parcel.open()), expected)

    def test_discarded(self):
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        gc.collect()
        before = sys.getrefcount(Thing)
        for moved in False, True:
            things = self.make_things(Thing, 5)
            ring = [things, (things,), {'a': things}]
            things.append(ring)
            things[2].ring = slice(things, ring)
            self.assertEqual(sys.getrefcount(Thing), before + 5)
            if moved:
                del things
                parcel = pack(move(ring))
            else:
                parcel = pack(ring)
                things[2].ring = None
                things.clear()
                ring.clear()
                del things
                gc.collect()
            self.assertEqual(sys.getrefcount(Thing), before)
            Thing.deleted = 0
            del parcel, ring
            # Nothing is left for the collector to find.
            self.assertEqual(gc.collect(), 0)
            self.assertEqual(Thing.deleted, 0)

    def test_class_is_counted(self):
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        self.run_there('before = sys.getrefcount(Thing)')
        before = sys.getrefcount(Thing)
        things = self.make_things(Thing, 5)
        self.there.put(things)
        self.assertEqual(sys.getrefcount(Thing), before + 5)
        self.there.put(move(things))
        self.assertEqual(sys.getrefcount(Thing), before)
        self.assertEqual(Thing.deleted, 0)
        self.assertEqual(self.run_there("""
            import gc
            obj = [there.get(), there.get()]
            counts = [sys.getrefcount(Thing) - before]
            obj = None
            gc.collect()
            back.put(counts + [sys.getrefcount(Thing) - before, Thing.deleted])
            """), [10, 0, 10])

    def test_sender_has_references_of_its_own(self):
        # A weak reference, or a __dict__ that is an object: it is made anew.
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        things = self.make_things(Thing, 5)
        ref = weakref.ref(things[1])
        things[3].__dict__
        parcel = pack(move(things))
        self.assertEqual(parcel.stats.rebuilt, 2)
        self.assertIsNone(ref())
        self.check_same(describe(parcel.open()),
                        describe(self.make_things(Thing, 5)))

    def test_refused(self):
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        things = self.make_things(Thing, 5)
        expected = describe(things)
        things[4].lock = threading.Lock()
        for obj in things, move(things):
            with self.assertRaises(NotShareableError):
                pack(obj)
        del things[4].lock
        self.check_same(describe(things), expected)
        self.assertEqual(Thing.deleted, 0)

    def test_code_that_runs(self):
        # It meets instances that are complete.
        Thing = self.make_classes(PLAIN_THING, PLAIN_THING)
        for wrap in (lambda x: x), move:
            things = self.make_things(Thing, 5)
            obj = [things, {Node('x'): things[3]}, things[2]]
            expected = describe(obj)
            del things
            self.there.put(wrap(obj))
            self.check_arrived(expected)


# --- Moving ------------------------------------------------------------------

class Holder:
    """A place that refers to something."""
    thing = None


class MoveTests(GraphTestCase):

    def check_moved(self, obj):
        self.assertIsInstance(obj, MovedObject)
        for use in (len, iter, hash, bool, list, vars,
                    lambda x: x[0], lambda x: x.attribute, lambda x: x == 1,
                    lambda x: x + x, lambda x: x(), lambda x: 1 in x,
                    lambda x: setattr(x, 'a', 1), lambda x: x.append(1),
                    memoryview, pickle.dumps, copy.copy, lambda x: x < x):
            with self.assertRaises(MovedError):
                use(obj)
        self.assertIn('MovedObject', repr(obj))
        id(obj), obj is None

    def test_moved_object(self):
        for name in ('list', 'dict', 'set', 'bytearray', 'instance', 'deque',
                     'array', 'OrderedDict', 'instance with slots'):
            with self.subTest(name):
                obj = MAKERS[name]()
                self.there.put(move(obj))
                self.check_moved(obj)
                self.run_there('there.get()')
                self.check_moved(obj)
                with self.assertRaises((NotShareableError, MovedError)):
                    self.there.put(obj)
                with self.assertRaises((NotShareableError, MovedError)):
                    self.there.put(move(obj))
                del obj
                gc.collect()

    def test_root_has_many_names(self):
        # References to the root don't count: all of them see that it is gone.
        obj = [1, [2]]
        holder = {'a': obj, 'b': [obj]}
        try:
            self.there.put(move(obj))
        except TransferError:
            self.assertEqual(holder, {'a': [1, [2]], 'b': [[1, [2]]]})
        else:
            self.assertIsInstance(holder['a'], MovedObject)
            self.assertIs(holder['b'][0], obj)

    def refused(self, obj, path, outside=1):
        before = describe(obj)
        ids = [id(obj), sys.getrefcount(obj)]
        qsize = self.there.qsize()
        with self.assertRaises(TransferError) as cm:
            self.there.put(move(obj))
        exc = cm.exception
        self.assertEqual(exc.path, path)
        self.assertIn(str(outside), exc.reason)
        self.assertIn(path, str(exc))
        self.assertIsNone(exc.parcel)
        del cm, exc
        self.assertEqual(self.there.qsize(), qsize)
        self.check_same(describe(obj), before)
        self.assertEqual([id(obj), sys.getrefcount(obj)], ids)
        check_own_heap()

    def test_referred_to_from_outside(self):
        part = ['part']
        self.refused([1, part], 'obj[1]')
        self.refused({'jobs': [1, 2, 3, part]}, "obj['jobs'][3]")
        self.refused([Node(part)], 'obj[0].label')
        self.refused({'a': ({'b': (part,)},)}, "obj['a'][0]['b'][0]")
        for name in ('dict', 'set', 'bytearray', 'instance', 'deque', 'array',
                     'OrderedDict', 'instance with slots', 'dataclass',
                     'exception', 'list subclass', 'Counter'):
            with self.subTest(name):
                part = MAKERS[name]()
                self.refused([[], part], 'obj[1]')
                self.refused({5: part}, 'obj[5]')

    def test_number_of_references(self):
        part = []
        others = [part] * 6
        self.refused([part], 'obj[0]', outside=7)
        del others

    def test_reached_through_something_immutable(self):
        # The tuple can't be left behind as a copy: the list is in both.
        part = (1, ['mutable'])
        with self.assertRaises(TransferError):
            self.there.put(move([part]))
        self.assertEqual(part, (1, ['mutable']))

    def test_immutable_parts_may_have_other_references(self):
        text, data, number = 'text' * 9, b'data' * 9, 10**30
        key = ('a', 2, ('b', 3.5))
        when = datetime.datetime(2024, 1, 1)
        obj = [text, data, number, key, {key: text}, 1.5, None, range(10**9),
               frozenset([text]), decimal.Decimal(5), when, Node, len]
        self.check_move(obj)
        self.assertEqual((text, data, number), ('text' * 9, b'data' * 9, 10**30))
        self.assertEqual(key, ('a', 2, ('b', 3.5)))
        self.assertEqual(when.year, 2024)

    def test_then_without(self):
        part = ['part']
        obj = {'a': part}
        self.refused(obj, "obj['a']")
        del part
        self.check_move(obj)

    def test_referred_to_by_an_iterator(self):
        part = [1, 2, 3]
        iterator = iter(part)
        next(iterator)
        obj = [part]
        del part
        with self.assertRaises(TransferError):
            self.there.put(move(obj))
        self.assertEqual(list(iterator), [2, 3])
        self.check_move(obj)

    def test_buffer_in_use(self):
        for make in (lambda: bytearray(b'abc'), lambda: array.array('B', b'abc')):
            obj = [make()]
            with memoryview(obj[0]) as view:
                with self.assertRaises(TransferError):
                    self.there.put(move(obj))
                self.assertEqual(view[0], 97)
            self.check_move(obj)

    def test_weak_references(self):
        for make in (lambda: Node('n'), lambda: {1, 2}, collections.deque,
                     lambda: array.array('i', [1])):
            part = make()
            ref = weakref.ref(part)
            obj = [part]
            # A copy does not mind.
            self.check_copy(obj)
            self.assertIs(ref(), part)
            del part
            # Nor does a move: what has gone is not here any more.
            self.check_move(obj)
            self.assertIsNone(ref())

    def test_weak_references_to_what_is_moved(self):
        # They have to be found where the object has them, whatever it is now.
        for make in (lambda: Node('n'), lambda: {1, 2}, collections.deque,
                     lambda: array.array('i', [1]),
                     lambda: collections.OrderedDict(a=1)):
            called = []
            obj = make()
            with self.naming(repr(obj)):
                refs = [weakref.ref(obj), weakref.ref(obj, called.append)]
                refs += [weakref.ref(obj, called.append) for i in range(3)]
                self.there.put(move(obj))
                self.run_there('obj = there.get(); del obj')
                self.assertIsInstance(obj, MovedObject)
                self.assertIs(refs[0](), obj)
                del refs[0], refs[1]
                self.assertIs(refs[0](), obj)
                left = list(refs)
                del obj
                self.assertEqual(refs[0](), None)
                self.assertCountEqual(called, left)

    def test_weak_references_to_what_is_moved_and_in_a_cycle(self):
        for make in (lambda: Node('n'), lambda: {1, 2}, collections.deque):
            obj = make()
            with self.naming(repr(obj)):
                inner, outer = weakref.ref(obj), weakref.ref(obj, lambda ref: None)
                self.there.put(move(obj))
                self.run_there('obj = there.get(); del obj')
                cycle = [obj, inner]
                cycle.append(cycle)
                del obj, inner, cycle
                gc.collect()
                self.assertIsNone(outer())

    def test_weak_reference_that_calls_back(self):
        called = []
        node = Node('n')
        ref = weakref.ref(node, called.append)
        self.there.put(node)
        self.assertEqual(called, [])
        self.run_there('obj = there.get(); del obj; gc.collect()')
        self.assertEqual(called, [])
        del node
        self.assertEqual(called, [ref])

    def test_weak_dictionary(self):
        registry = weakref.WeakValueDictionary()
        node = registry['a'] = Node('n')
        self.there.put([node])
        self.run_there('obj = there.get()')
        self.assertIs(registry['a'], node)

    @contextlib.contextmanager
    def naming(self, name):
        try:
            yield
        except AssertionError as exc:
            exc.add_note(f'It was: {name}')
            raise

    def test_nothing_that_stays_has_what_was_moved(self):
        # Each of these is made anew in the receiver.  The one here stays, as
        # garbage in a cycle of its own: it must not have parts that others, which
        # refer to them too, took along.
        def with_weakref(part):
            node = Node(part)
            node.refs = weakref.WeakSet([node])
            return node
        holders = {
            'key hashed by address': lambda part: {Node('key'): part},
            'subclass of dict': lambda part: MyDict(a=part),
            'defaultdict': lambda part: collections.defaultdict(list, a=part),
            'OrderedDict': lambda part: collections.OrderedDict(a=part),
            'deque': lambda part: collections.deque([part]),
            'subclass of list': lambda part: MyList([part]),
            'exception': lambda part: Error(part),
            'SimpleNamespace': lambda part: types.SimpleNamespace(a=part),
            '__getstate__': Stateful,
            '__reduce__': lambda part: (r := Reduced('r'), r.append(part), r)[-1],
            'partial': lambda part: functools.partial(len, part),
            'dict of an instance': lambda part: Node(part).__dict__,
            'instance with a dict': lambda part: (n := Node(part), n.__dict__, n)[-1],
            'instance with slots and dict': lambda part: (
                b := Both('b'), setattr(b, 'left', part), setattr(b, 'x', part), b)[-1],
            'subclass of set': lambda part: make_attributes(MySet),
        }
        for name, hold in holders.items():
            for part in list, dict, bytearray, lambda: {1, 2}, lambda: Node([]):
                # The first that fails leaves things in disorder: no subtests.
                with self.naming(name):
                    part = part()
                    holder = hold([part])
                    match holder:
                        case dict():
                            holder['me'] = holder
                        case list() | collections.deque():
                            holder.append(holder)
                        case functools.partial():
                            holder.__setstate__((len, (part, holder), {}, {}))
                        case _:
                            holder.me = holder
                    obj = [part, holder, [part]]
                    del part, holder
                    gc.disable()
                    try:
                        self.check_move(obj)
                        self.assertEqual(_testparcel.check_ownership(), [])
                        check_own_heap()
                    finally:
                        gc.enable()
                    del obj
                    gc.collect()

    def check_keys_of_many_dicts(self, nkeys):
        def make_keys():
            # Not interned, and not constants.
            return [''.join(['key ', str(i)]) for i in range(nkeys)]
        def rows(keys, **more):
            return [dict.fromkeys(keys, i) | more for i in range(2000, 2050)]
        cases = {
            'nobody else': lambda keys: (rows(keys), None),
            'somebody else': lambda keys: (rows(keys), keys[3:17:7]),
            'values': lambda keys: ([rows(keys), keys[:9:2]], None),
            'values, before': lambda keys: ([keys[:9:2], rows(keys)], None),
            'both': lambda keys: ([rows(keys), keys[:2]], keys[1:3]),
            'a dict of them': lambda keys: (dict(zip(keys, rows(keys))), keys[:1]),
            'other keys': lambda keys: (rows(keys, **{'a': 1, 'key 5': 2}), keys[2:4]),
            'three kinds in turns': lambda keys: (
                [row for three in zip(rows(keys), rows(keys[:-1]), rows(keys[::-1]))
                 for row in three], keys[2:4]),
            'interned': lambda keys: (rows([sys.intern(key) for key in keys]), None),
            'deleted': lambda keys: ([row for row in rows(keys) if row.pop(keys[1])],
                                     None),
        }
        for name, make in cases.items():
            with self.subTest(name):
                keys = make_keys()
                obj, kept = make(keys)
                del keys
                where = {id(key) for key in kept or ()}
                self.check_copy(obj)
                self.check_move(obj)
                self.assertEqual({id(key) for key in kept or ()}, where)
                self.assertEqual(_testparcel.check_ownership(), [])
        keys = make_keys()
        stats = pack(move(rows(keys))).stats
        self.assertEqual(stats.copied, 50 + len(keys))      # the ints, too
        stats = pack(rows(keys)).stats
        self.assertEqual(stats.copied, 50 + len(keys))
        del keys
        self.assertEqual(pack(move(rows(make_keys()))).stats.copied, 50)

    def test_keys_of_many_dicts(self):
        self.check_keys_of_many_dicts(8)

    def test_keys_of_many_large_dicts(self):
        self.check_keys_of_many_dicts(20)

    def test_more_kinds_of_dicts_than_are_remembered(self):
        obj = [{f'a{kind}': i, f'b{kind}': [i]} for i in range(2000, 2003)
               for kind in range(5000)]
        self.check_copy(obj)
        self.check_move(obj)

    def keys_of(self, rows):
        return [id(key) for row in rows for key in row]

    def test_keys_are_what_they_were_after_a_failure(self):
        held = {'alpha': 1}
        for interned in False, True:
            names = [''.join(['key ', str(i)]) for i in range(5)]
            if interned:
                names = [*map(sys.intern, names)]
            rows = [dict.fromkeys(names, i) for i in range(2000, 2050)]
            rows[-1]['held'] = held
            del names
            before, refs = self.keys_of(rows), [*map(sys.getrefcount, rows[0])]
            for _ in range(3):
                with self.assertRaises(TransferError):
                    pack(move(rows))
                self.assertEqual(self.keys_of(rows), before)
                self.assertEqual([*map(sys.getrefcount, rows[0])], refs)
            rows[-1]['held'] = None
            self.check_move(rows)
        self.assertEqual(held, {'alpha': 1})

    def test_keys_are_replaced_and_all_is_walked_again(self):
        # The marker is found when the rows have been done.
        for nkeys in 5, 20:
            keys = [''.join(['key ', str(i)]) for i in range(nkeys)]
            def rows():
                return [dict.fromkeys(keys, i) for i in range(2000, 2050)]
            refs = [*map(sys.getrefcount, keys)]
            expected = describe([rows(), rows()])
            parcel = pack([rows(), move(rows())])
            self.assertEqual([*map(sys.getrefcount, keys)], refs)
            self.check_same(describe(parcel.open()), expected)
            self.assertEqual([*map(sys.getrefcount, keys)], refs)

    @support.disable_gc()       # it would fail, too, and says so as unraisable
    def test_keys_without_memory(self):
        _testcapi = import_helper.import_module('_testcapi')
        for nkeys, interned, give in itertools.product((5, 20), (False, True),
                                                       (move, lambda obj: obj)):
            keys = [''.join(['key ', str(i)]) for i in range(nkeys)]
            if interned:
                keys = [*map(sys.intern, keys)]
            obj = [dict.fromkeys(keys, i) for i in range(2000, 2050)]
            keys = keys[::2]
            expected, before = describe(obj), self.keys_of(obj)
            for i in range(1000):
                _testcapi.set_nomemory(i, i + 1)
                try:
                    parcel = pack(give(obj))
                    break
                except MemoryError:
                    pass
                finally:
                    _testcapi.remove_mem_hooks()
                self.check_same(describe(obj), expected)
                self.assertEqual(self.keys_of(obj), before)
            self.check_same(describe(parcel.open()), expected)
            self.assertGreater(i, 20 if nkeys == 20 else 8)

    def test_move_marker_inside(self):
        part = ['moved']
        kept = ['kept']
        self.there.put([move(part), kept])
        self.assertEqual(
            self.run_there('obj = there.get(); back.put(obj)'), [['moved'], ['kept']])
        self.assertIsInstance(part, MovedObject)
        self.assertEqual(kept, ['kept'])

    def test_marker_met_again(self):
        for make in (lambda: [[2000]], lambda: {'a': [2000]}, lambda: ([2000],), lambda: {2000},
                     lambda: slice(2000, 3000), lambda: Node('n'), lambda: bytearray(b'abc')):
            marker = move(make())
            obj = pack([marker, [marker], marker]).open()
            self.assertIs(obj[0], obj[1][0])
            self.assertIs(obj[0], obj[2])
            self.assertIs(type(obj[0]), type(make()))

    def test_move_twice_in_one(self):
        part = ['moved']
        with contextlib.suppress(TransferError):
            self.there.put([move(part), move(part)])
            self.assertTrue(self.run_there(
                'obj = there.get(); back.put(obj[0] is obj[1])'))

    def test_part_of_it_failed(self):
        # Nothing has happened to the others.
        good, bad = ['good'], [['bad']]
        hold = bad[0]
        with self.assertRaises(TransferError):
            self.there.put([move(good), move(bad)])
        self.assertEqual((good, bad), (['good'], [['bad']]))
        self.assertIs(bad[0], hold)
        with self.assertRaises(NotShareableError):
            self.there.put([move(good), threading.Lock()])
        self.assertEqual(good, ['good'])

    def test_same_memory(self):
        data = bytearray(10**7)
        view = memoryview(data)
        address = array_address(view)
        view.release()
        self.there.put(move(data))
        self.assertEqual(self.run_there("""
            obj = there.get()
            view = memoryview(obj)
            back.put(here.array_address(view))
            view.release()
            """), address)

    def test_temporaries_are_moved(self):
        def build():
            return [[i, {'a': [[]]}] for i in range(1000)]
        self.assertGreaterEqual(pack(build()).stats.moved, 3000)
        self.assertEqual(pack(build()).stats.copied, 0)
        obj = build()
        stats = pack(obj).stats
        self.assertGreaterEqual(stats.copied, 3001)
        self.assertEqual(obj, build())

    def test_move_in_a_call(self):
        obj = [1, [2], {'a': 3}]
        self.assertEqual(self.interp.call(len, move(obj)), 3)
        self.assertIsInstance(obj, MovedObject)

    def test_move_in_prepare_main(self):
        obj = [1, [2], {'a': 3}]
        self.interp.prepare_main(prepared=move(obj))
        self.assertIsInstance(obj, MovedObject)
        self.assertEqual(self.run_there('back.put(prepared)'), [1, [2], {'a': 3}])
        self.run_there('del prepared')

    def test_across_and_back(self):
        obj = graphs.make_graph(1, 1, 50)
        expected = describe(obj)
        for _ in range(20):
            self.there.put(move(obj))
            del obj
            obj = self.run_there(
                'obj = there.get(); back.put(move(obj)); del obj')
        self.check_same(describe(obj), expected)


def array_address(view):
    import ctypes
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# --- All or nothing ----------------------------------------------------------

class Picky:
    """Can be made only where that is allowed."""
    allowed = True

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        if not Picky.allowed:
            raise LookupError('not here')
        self.__dict__.update(state)


@contextlib.contextmanager
def only_here():
    """A module that can't be imported over there; yields a class in it."""
    module = types.ModuleType('only_in_this_interpreter')
    exec('class Thing:\n'
         '    def __init__(self, value):\n'
         '        self.value = value\n', module.__dict__)
    sys.modules[module.__name__] = module
    try:
        yield module.Thing
    finally:
        del sys.modules[module.__name__]


class FailureTests(GraphTestCase):

    # What is simple and what needs help of Python code.
    GRAPHS = {
        'plain': lambda: {'a': [1, 2.5, 'text' * 5, (b'x' * 50, {10**30})],
                          'b': bytearray(b'y' * 1000)},
        'rows': lambda: [make_row(i) for i in range(3)],
        'instances': lambda: [make_attributes(Node, 'n'), Record('r', [1]),
                              make_slotted(), make_both()],
        'reduced': lambda: [Stateful([1]), decimal.Decimal('1.5'), make_reduced(),
                            datetime.datetime(2024, 1, 1), Pair([1], 2),
                            collections.deque([1, [2]]), make_ordered()],
    }

    @support.disable_gc()       # it would fail, too, and says so as unraisable
    def attempts(self, call, after):
        """Let each allocation of call() fail in turn, until none is left.
        after() sees whether all is as before.  Return what call() returned."""
        _testcapi = import_helper.import_module('_testcapi')
        for n in range(10_000):
            error = None
            _testcapi.set_nomemory(n, n + 1)
            try:
                result = call()
            except BaseException as exc:
                error = exc
            finally:
                _testcapi.remove_mem_hooks()
            if error is None:
                return result, n
            # Python code that runs meanwhile may hide it in another error.
            self.assertIsInstance(
                error, (MemoryError, NotShareableError, TransferError))
            error = None
            after()
        self.fail('it still fails')

    def test_no_memory_in_put(self):
        for name, make in self.GRAPHS.items():
            for moved in False, True:
                with self.subTest(name, moved=moved):
                    self.empty_queues()
                    obj = make()
                    self.there.put(obj)         # warm up
                    self.run_there('there.get()')
                    expected = describe(obj)
                    def put():
                        self.there.put(move(obj) if moved else obj)
                    def after():
                        self.assertNotIsInstance(obj, MovedObject)
                        self.assertEqual(self.there.qsize(), 0)
                        self.check_same(describe(obj), expected)
                        check_own_heap()
                    with support.captured_stderr() as stderr:
                        _, failures = self.attempts(put, after)
                    self.assertEqual(stderr.getvalue(), '')
                    self.assertGreater(failures, 0)
                    self.check_arrived(expected)

    def test_no_memory_in_get(self):
        # The item stays in the queue.
        for name, make in self.GRAPHS.items():
            for moved in False, True:
                with self.subTest(name, moved=moved):
                    self.empty_queues()
                    obj = make()
                    expected = describe(obj)
                    self.back.put(obj)
                    self.back.get(timeout=support.SHORT_TIMEOUT)             # warm up
                    self.back.put(move(obj) if moved else obj)
                    caught = []
                    def get():
                        try:
                            return (caught.pop().open() if caught
                                    else self.back.get(timeout=support.SHORT_TIMEOUT))
                        except TransferError as exc:
                            if exc.parcel is not None:
                                caught.append(exc.parcel)
                            raise
                    def after():
                        self.assertEqual(self.back.qsize() + len(caught), 1)
                        check_own_heap()
                    got, failures = self.attempts(get, after)
                    self.check_same(describe(got), expected)

    def test_no_memory_in_open(self):
        for name, make in self.GRAPHS.items():
            for moved in False, True:
                with self.subTest(name, moved=moved):
                    self.empty_queues()
                    obj = make()
                    expected = describe(obj)
                    pack(obj).open()
                    parcel = pack(move(obj) if moved else obj)
                    got, failures = self.attempts(parcel.open, check_own_heap)
                    self.check_same(describe(got), expected)
                    with self.assertRaises(TransferError):
                        parcel.open()

    def test_refused_in_dicts(self):
        lock = threading.Lock()
        spoilers = {
            'leaf': lambda row: row['leaf'].append(lock),
            'first of a leaf': lambda row: row['leaf'].insert(0, lock),
            'in a list': lambda row: row['nested'][1].append(lock),
            'in a tuple': lambda row: row.update(pair=(lock, 1)),
            'deep': lambda row: row['dict']['a']['b']['c']['d'].append(lock),
            'behind a dict': lambda row: row['dict']['a'].update(x=lock),
            'behind all': lambda row: row.update(x=lock),
        }
        for name, spoil in spoilers.items():
            for way in lambda x: x, move:
                with self.subTest(name):
                    rows = [make_row(i) for i in range(3)]
                    spoil(rows[1])
                    before = repr(rows)
                    for _ in range(2):
                        with self.assertRaisesRegex(
                                (NotShareableError, TransferError), r'obj\[1\]\['):
                            self.there.put(way(rows))
                        self.assertEqual(repr(rows), before)
                        check_own_heap()

    def test_nothing_leaks_when_it_fails(self):
        make = self.GRAPHS['plain']
        obj = make()
        def put():
            self.there.put(obj)
        def round():
            self.attempts(put, lambda: None)
            self.there.get()
        round()
        before = sys.getallocatedblocks()
        for _ in range(5):
            round()
        self.assertLess(sys.getallocatedblocks() - before, 60)

    def test_unopenable(self):
        for moved in False, True:
            with self.subTest(moved=moved), only_here() as Thing:
                obj = [Thing([1]), {'a': Thing(2)}, 'text' * 5]
                expected = describe(obj)
                self.there.put(move(obj) if moved else obj)
                name = self.run_there("""
                    try:
                        there.get()
                    except TransferError as exc:
                        back.put(type(exc.__cause__).__name__)
                        parcel = exc.parcel
                    """)
                self.assertEqual(name, 'ModuleNotFoundError')
                # Again, with the same result; then home.
                self.run_there("""
                    try:
                        parcel.open()
                    except TransferError as exc:
                        assert exc.parcel is parcel
                    else:
                        raise AssertionError
                    """)
                parcel = self.run_there('back.put(parcel); del parcel')
                self.check_same(describe(parcel.open()), expected)
                with self.assertRaises(TransferError):
                    parcel.open()

    def test_code_that_raises_in_open(self):
        for moved in False, True:
            with self.subTest(moved=moved):
                obj = [[1], Picky([2]), Node([3]), {'a': Picky({})}]
                expected = describe(obj)
                self.there.put(move(obj) if moved else obj)
                self.assertEqual(self.run_there("""
                    here.Picky.allowed = False
                    try:
                        there.get()
                    except TransferError as exc:
                        parcel = exc.parcel
                        back.put(repr(exc.__cause__))
                    """), "LookupError('not here')")
                self.assertEqual(self.run_there("""
                    here.Picky.allowed = True
                    obj = parcel.open()
                    del parcel
                    back.put(describe(obj))
                    """), expected)

    def test_attribute_is_missing(self):
        with only_here() as Thing:
            self.run_there("""
                import types
                sys.modules['only_in_this_interpreter'] = types.ModuleType(
                    'only_in_this_interpreter')
                """)
            self.there.put([Thing(1)])
            self.assertEqual(self.run_there("""
                try:
                    there.get()
                except TransferError as exc:
                    back.put(type(exc.__cause__).__name__)
                del sys.modules['only_in_this_interpreter']
                """), 'AttributeError')


# --- Parcels -----------------------------------------------------------------

class ParcelTests(GraphTestCase):

    def test_opened_once(self):
        parcel = pack([1, [2]])
        self.assertEqual(parcel.open(), [1, [2]])
        for _ in range(2):
            with self.assertRaisesRegex(TransferError, 'opened'):
                parcel.open()

    def test_survives_its_sender(self):
        for moved in False, True:
            with self.subTest(moved=moved):
                interp = interpreters.create()
                interp.prepare_main(back=self.back)
                interp.exec(SETUP)
                interp.exec(textwrap.dedent(f"""
                    obj = [make() for make in here.MAKERS.values()]
                    back.put(describe(obj))
                    parcel = pack(move(obj) if {moved} else obj)
                    back.put(parcel)
                    del obj, parcel
                    """))
                expected = self.back.get(timeout=support.SHORT_TIMEOUT)
                parcel = self.back.get(timeout=support.SHORT_TIMEOUT)
                interp.close()
                gc.collect()
                self.assertEqual(_testparcel.check_ownership(), [])
                self.check_same(describe(parcel.open()), expected)

    def test_receiver_ends(self):
        # What was moved there can be sent on, and outlives it.
        interp = interpreters.create()
        obj = graphs.make_graph(2, 2, 60)
        expected = describe(obj)
        interp.prepare_main(there=self.there, back=self.back)
        self.there.put(move(obj))
        interp.exec('from interpreters import move, pack\n'
                    'obj = there.get(); back.put(pack(move(obj))); del obj')
        parcel = self.back.get(timeout=support.SHORT_TIMEOUT)
        interp.close()
        self.check_same(describe(parcel.open()), expected)

    def test_discarded(self):
        for make in (lambda: [make() for make in MAKERS.values()],
                     lambda: [make() for make in CYCLES.values()]):
            for moved in False, True:
                def once():
                    obj = make()
                    parcel = pack(move(obj) if moved else obj)
                    del parcel
                    self.there.put(move(make()) if moved else make())
                    self.there.get()
                    queue = interpreters.create_queue()
                    queue.put(make())
                once()
                gc.collect()
                before = sys.getallocatedblocks()
                for _ in range(10):
                    once()
                gc.collect()
                self.assertLess(sys.getallocatedblocks() - before, 300)

    def test_discarded_elsewhere(self):
        for moved in False, True:
            obj = graphs.make_graph(3, 3, 60)
            parcel = pack(move(obj) if moved else obj)
            self.there.put(parcel)
            del parcel
            self.run_there('obj = there.get(); del obj; gc.collect()')

    def test_nested(self):
        inner = pack(['inner', Node('n')])
        outer = pack([inner, {'a': inner}])
        self.there.put(outer)
        text = self.run_there("""
            obj = there.get().open()
            assert obj[0] is obj[1]['a']
            back.put(describe(obj[0].open()))
            """)
        self.check_same(text, describe(['inner', Node('n')]))

    def test_deeply_nested(self):
        parcel = pack(['inside'])
        for _ in range(1000):
            parcel = pack([parcel])
        self.there.put(parcel)
        del parcel
        self.assertEqual(self.run_there("""
            obj = there.get().open()
            n = 0
            while isinstance(obj[0], interpreters.Parcel):
                obj = obj[0].open()
                n += 1
            back.put((n, obj))
            """), (1000, ['inside']))

    def test_from_queue_to_queue(self):
        obj = graphs.make_graph(4, 4, 40)
        expected = describe(obj)
        parcel = pack(move(obj))
        queues = [interpreters.create_queue() for _ in range(10)]
        for queue in queues:
            queue.put(parcel)
            del parcel
            self.there.put(queue)
            parcel = self.run_there("""
                queue = there.get()
                parcel = queue.get()
                back.put(parcel)
                del queue, parcel
                """)
        self.check_same(describe(parcel.open()), expected)

    def test_stats(self):
        obj = [[1], (2.5, 'text' * 5), Slotted([3]), decimal.Decimal(1), None, 7]
        stats = pack(obj).stats
        self.assertGreater(stats.copied, 0)
        self.assertGreater(stats.rebuilt, 0)
        stats = pack(move([[1], [2]])).stats
        self.assertGreaterEqual(stats.moved, 3)
        self.assertEqual(stats.copied, 0)
        self.assertGreater(pack(obj).nbytes, 50)

    def test_handles(self):
        queue = interpreters.create_queue()
        obj = {'q': queue, 'all': [queue, self.interp, pack([1])]}
        self.there.put(obj)
        self.assertEqual(self.run_there("""
            obj = there.get()
            assert obj['q'] is obj['all'][0]
            obj['q'].put(obj['all'][1].id)
            back.put(obj['all'][2].open())
            """), [1])
        self.assertEqual(queue.get(), self.interp.id)

    def test_queue_of_itself(self):
        queue = interpreters.create_queue()
        queue.put([queue, {'a': queue}])
        got = queue.get()
        self.assertIs(got[0], queue)
        self.assertIs(got[1]['a'], queue)


# --- Collectors --------------------------------------------------------------

class Collecting:
    """Is made, and filled, by code that the collector interrupts."""

    def __reduce__(self):
        return make_collecting, (self.number,), vars(self)

    def __setstate__(self, state):
        gc.collect()
        vars(self).update(state)
        gc.collect()


def make_collecting(number):
    gc.collect()
    return Collecting()


class Hashing(type):
    """A class whose hash is Python code."""

    hook = staticmethod(int)

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        Hashing.hook()
        return type.__hash__(self)


class Hashed(metaclass=Hashing):

    def __init__(self):
        self.value = [1]


class CollectorTests(GraphTestCase):

    def test_collection_while_it_is_opened(self):
        # A tuple or dict with nothing in it yet is no reason to leave it alone for good.
        for wrap in (lambda x: x), move:
            things = [Collecting() for _ in range(3)]
            for i, thing in enumerate(things):
                thing.number = i
                thing.tuple = things[i - 1], 1
                thing.dict = {'thing': things[i - 2]}
                thing.nested = ((things[i - 1],),)
            del thing
            self.there.put(wrap(things))
            del things
            self.assertEqual(self.run_there("""
                things = there.get()
                numbers = [[thing.number, thing.tuple[0].number, thing.dict['thing'].number,
                            thing.nested[0][0].number] for thing in things]
                tracked = [gc.is_tracked(part) for thing in things
                           for part in (thing.tuple, thing.dict, thing.nested, thing.nested[0])]
                refs = [weakref.ref(thing) for thing in things]
                del things
                gc.collect()
                back.put((numbers, tracked, [ref() for ref in refs]))
                """), ([[0, 2, 1, 2], [1, 0, 2, 0], [2, 1, 0, 1]], [True] * 12, [None] * 3))

    def test_functions_that_refer_to_themselves(self):
        # Where they come from is imported there while they are made.
        def factorial(n):
            return 1 if n == 0 else n * factorial(n - 1)
        interp = interpreters.create()
        self.addCleanup(interp.close)
        there, back = interpreters.create_queue(), interpreters.create_queue()
        interp.prepare_main(there=there, back=back)
        there.put(factorial)
        interp.exec(textwrap.dedent("""
            import gc, weakref
            func = there.get()
            ref = weakref.ref(func)
            result = func(5)
            del func
            gc.collect()
            back.put((result, ref()))
            """))
        self.assertEqual(back.get(timeout=support.SHORT_TIMEOUT), (120, None))

    def test_cycles_are_collected(self):
        for moved in False, True:
            obj = [make() for make in CYCLES.values()]
            obj.append(obj)
            self.there.put(move(obj) if moved else obj)
            if not moved:
                obj.clear()
            del obj
            gc.collect()
            self.run_there("""
                gc.collect()
                obj = there.get()
                refs = [weakref.ref(part) for part in obj
                        if type(part) in (Node, Both, MySet, Record)]
                assert len(refs) >= 3
                del obj
                gc.collect()
                back.put([ref() for ref in refs if ref() is not None])
                """)

    def test_tracked(self):
        obj = [[1], {'a': []}, (1, []), {1}, Node('n')]
        self.there.put(move(obj))
        self.assertEqual(self.run_there("""
            obj = there.get()
            back.put([gc.is_tracked(part) for part in (obj, *obj)])
            """), [True] * 6)

    def test_collection_while_it_is_under_way(self):
        obj = [[make() for make in CYCLES.values()] for _ in range(20)]
        expected = describe(obj)
        self.there.put(move(obj))
        del obj
        for generation in 0, 1, 2:
            gc.collect(generation)
        self.run_there('gc.collect()')
        self.check_arrived(expected)

    def test_any_order(self):
        # What is moved leaves the collector's list as it stands there: neighbours together.
        def make(order):
            kinds = (lambda i: [i + 2000], lambda i: {'a': [i + 2000]}, lambda i: {'a': i + 2000},
                     lambda i: (i + 2000, [i]), lambda i: [{'a': {'b': []}}], lambda i: {i: {i + 2000}},
                     Node, lambda i: [])
            parts, others = [None] * 200, []
            for i in order:
                parts[i] = kinds[i % len(kinds)](i)
                if i % 3 == 0:
                    others.append([i])
            return [parts[i:i + 5] for i in range(0, 200, 5)], others
        def count_tracked():
            return collections.Counter(id(obj) for obj in gc.get_objects())
        rng = random.Random(1)
        forth, back = range(200), range(199, -1, -1)
        for order, collect in itertools.product(
                (forth, back, [*forth[::2], *forth[1::2]], rng.sample(forth, 200)), (False, True)):
            obj, others = make(order)
            if collect:
                gc.collect()
            expected = describe(obj)
            held = obj[-1][-1]
            before = count_tracked()
            with self.assertRaises(TransferError):
                pack(move(obj))
            after = count_tracked()
            for part in [obj, *obj, *itertools.chain(*obj), *others]:
                # A dict that it did not know, because it has only values, it may know now.
                self.assertIn(after[id(part)], {before[id(part)], 1}, part)
            del held, part
            obj = self.check_move(obj)
            after = count_tracked()
            self.assertEqual([after[id(part)] for part in others], [1] * len(others))
            self.check_same(describe(self.check_move(obj)), expected)

    def check_collection_while_it_is_packed(self, make_thing):
        # Tuples of ints leave the collector's list when it runs for the first time.
        def tuples():
            return [(i + 2000, i + 3000) for i in range(20)]
        gc.collect()
        gc.disable()
        try:
            # Neighbours in that list: lists, if it runs before, and tuples.
            obj = [tuples(), tuples(), *tuples(), make_thing(), tuples()]
        finally:
            gc.enable()
        obj = pack(move(obj)).open()
        self.assertEqual([*obj[:2], obj[2:22], obj[23]], [tuples()] * 4)
        gc.collect()
        ids = [id(obj) for obj in gc.get_objects()]
        self.assertEqual(len(ids), len(set(ids)))

    def test_collection_when_an_interpreter_is_met(self):
        pack(self.interp).open()
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(1)
        self.check_collection_while_it_is_packed(lambda: self.interp)

    def test_collection_when_a_class_is_hashed(self):
        self.addCleanup(setattr, Hashing, 'hook', staticmethod(int))
        pack([Hashed()]).open()
        Hashing.hook = staticmethod(gc.collect)
        self.check_collection_while_it_is_packed(Hashed)

    def test_collection_by_another_thread(self):
        # The table in which a date's type is looked up is the process's, with a lock.
        def make():
            return [part for i in range(3000)
                    for part in ((i, i + 2000), datetime.date.fromordinal(i + 1))]
        expected = make()
        there = self.interp.call_in_thread(exec, textwrap.dedent("""
            import datetime, time, interpreters
            days = [datetime.date(2000, 1, 1) + datetime.timedelta(i) for i in range(20000)]
            end = time.monotonic() + 1
            while time.monotonic() < end:
                interpreters.pack(days)
            """))
        collecting = True
        def collect():
            while collecting:
                gc.collect(0)
        thread = threading.Thread(target=collect)
        thread.start()
        try:
            while there.is_alive():
                obj = make()
                self.assertEqual(pack(move(obj)).open(), expected)
        finally:
            collecting = False
            thread.join()
            there.join()

    def test_frozen(self):
        obj = [[1], {'a': []}]
        gc.freeze()
        try:
            self.check_copy(obj)
            self.check_move(obj)
        finally:
            gc.unfreeze()

    def test_from_a_callback_of_the_collector(self):
        results = []
        def callback(phase, info):
            obj = [[1], {'a': [2]}]
            try:
                self.there.put(move(obj))
                results.append(self.there.get())
            except (NotShareableError, TransferError) as exc:
                results.append(exc)
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        self.assertGreaterEqual(len(results), 2)
        for result in results:
            if not isinstance(result, Exception):
                self.assertEqual(result, [[1], {'a': [2]}])

    def test_from_a_finalizer(self):
        results = []
        class Sender:
            def __del__(self):
                obj = [self.me]
                try:
                    queue.put(move([[1]]))
                    results.append(queue.get())
                except (NotShareableError, TransferError) as exc:
                    results.append(exc)
        queue = interpreters.create_queue()
        sender = Sender()
        sender.me = [sender]
        del sender
        gc.collect()
        self.assertEqual(len(results), 1)
        if not isinstance(results[0], Exception):
            self.assertEqual(results, [[[1]]])


# --- Random graphs -----------------------------------------------------------

class RandomTests(unittest.TestCase):

    def test_seeded(self):
        seed = int(os.environ.get('RWPARCELS_SEED') or random.randrange(2**32))
        with graphs.Session() as session:
            for number in range(300):
                for moved in False, True:
                    graph = graphs.make_graph(seed, number)
                    try:
                        session.check_graph(graph, moved=moved)
                    except Exception as exc:
                        exc.add_note(f'RWPARCELS_SEED={seed}, graph {number}, '
                                     f'{moved=}')
                        raise
                    del graph
            graphs.check_heaps()

    def test_same_seed_same_graph(self):
        # Else the seed would be of no use.
        for number in range(20):
            self.assertEqual(describe(graphs.make_graph(5, number)),
                             describe(graphs.make_graph(5, number)))

    def test_hypothesis(self):
        hypothesis = import_helper.import_module('hypothesis')
        from hypothesis import strategies as st
        with graphs.Session() as session:
            @hypothesis.settings(deadline=None, database=None)
            @hypothesis.given(st.randoms(use_true_random=False),
                              st.integers(0, 12), st.booleans())
            def check(rnd, size, moved):
                graph = graphs.Maker(rnd).make_graph(size)
                session.check_graph(graph, moved=moved)
            check()
            graphs.check_heaps()


# --- The checker -------------------------------------------------------------

class CheckerTests(GraphTestCase):
    """That _testparcel finds what it looks for."""

    def find_planted(self, obj, source='obj = _testparcel.object_at({})'):
        self.run_there('import _testparcel\n' + source.format(id(obj)))
        found = _testparcel.check_ownership()
        self.run_there('del obj')
        self.assertEqual(_testparcel.check_ownership(), [])
        self.assertEqual(len(found), 1, found)
        self.assertIn(f'{type(obj).__name__} at ', found[0])
        self.assertIn(f'in interpreter {self.interp.id}', found[0])
        return found[0]

    def test_objects_of_another_interpreter(self):
        for obj in [1], 'text' * 5, 2.5, (1, 'a'), Node('n'), Node, 10**30:
            with self.subTest(obj):
                self.find_planted(obj)

    def test_interned(self):
        self.find_planted(sys.intern('an interned text'))

    def test_places(self):
        part = Node('n')
        for source in ('obj = {{_testparcel.object_at({}): 1}}',
                       'obj = range(1); obj = (obj, _testparcel.object_at({}))',
                       'obj = lambda x=_testparcel.object_at({}): x'):
            with self.subTest(source):
                self.find_planted(part, source)
        self.find_planted('a key' * 5, 'obj = {{_testparcel.object_at({}): 1}}')
        self.assertIn('weakly', self.find_planted(
            part, 'obj = weakref.ref(_testparcel.object_at({}))'))

    def test_types(self):
        class Strange:
            pass
        self.find_planted(
            Strange, 'obj = Node(1); obj.__class__ = _testparcel.object_at({})')

    def test_local_variable(self):
        # No collector knows it.
        part = ('local ' * 5).encode()
        queue = interpreters.create_queue()
        self.interp.prepare_main(queue=queue, address=id(part))
        def run():
            self.interp.exec(textwrap.dedent("""
                import _testparcel
                def wait():
                    local = _testparcel.object_at(address)
                    back.put('there')
                    queue.get()
                wait()
                """))
        thread = threading.Thread(target=run)
        thread.start()
        try:
            self.assertEqual(self.back.get(timeout=support.SHORT_TIMEOUT), 'there')
            found = _testparcel.check_ownership()
        finally:
            queue.put(None)
            thread.join(support.SHORT_TIMEOUT)
        self.assertEqual(len(found), 1)
        self.assertIn('bytes at', found[0])
        self.run_there('del queue, address')

    def test_count(self):
        obj = [1]
        holders = [obj, obj]
        _testparcel.add_references(obj, -1)
        found = _testparcel.check_heap()
        _testparcel.add_references(obj, 1)
        self.assertEqual(len(found), 1)
        self.assertIn('fewer references', found[0])
        self.assertEqual(_testparcel.check_heap(), [])


if __name__ == '__main__':
    unittest.main()
