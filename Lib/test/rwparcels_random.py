"""Random graphs of objects, and a description of a graph to compare it with others.

    python -m test.rwparcels_random [--graphs N] [--seed S] [--size N]

sends random graphs to another interpreter and back, as copies and moved.  Each is
described before, over there, and when it is back, and must look the same; and like
what pickle makes of it.  Prints the seed, which makes the same graphs again, and
for a graph that fails its number: --first skips those before it.

test_rwparcels_graph uses the parts.
"""

import argparse
import array
import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import pickle
import random
import sys
import threading
import time
import types
import uuid

import _testparcel
import interpreters


# --- Classes of which there are instances in graphs --------------------------

class Node:
    """An ordinary object; its hash is its address."""

    def __init__(self, label):
        self.label = label


class Slotted:
    __slots__ = 'label', 'left', 'right'

    def __init__(self, label):
        self.label = label


class Both(Slotted):
    """Has slots and a dict."""


class Leaf:
    """Needs no collector."""
    __slots__ = ()


@dataclasses.dataclass
class Record:
    name: object
    items: object = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class SlottedRecord:
    name: object
    items: object = None


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    name: object
    items: object = ()


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlottedRecord:
    name: object
    items: object = ()


Pair = collections.namedtuple('Pair', 'first second')


class Colour(enum.Enum):
    RED = 1
    GREEN = 'g'


class Flags(enum.IntFlag):
    READ = 1
    WRITE = 2


class MyInt(int):
    pass


class MyStr(str):
    pass


class MyBytes(bytes):
    pass


class MyFloat(float):
    pass


class MyList(list):
    pass


class MyTuple(tuple):
    pass


class MyDict(dict):
    pass


class MySet(set):
    pass


class MyFrozenSet(frozenset):
    pass


class SlottedList(list):
    __slots__ = 'label',


class Stateful:
    """Its state is not its dict."""

    def __init__(self, value):
        self.value = value
        self.cache = object()       # does not go along

    def __getstate__(self):
        return ['state', self.value]

    def __setstate__(self, state):
        word, self.value = state
        assert word == 'state'
        self.cache = object()


class NewArgs:
    """Is made with arguments."""

    def __new__(cls, value, *, label):
        self = super().__new__(cls)
        self.value = value
        self.label = label
        return self

    def __getnewargs_ex__(self):
        return (self.value,), {'label': self.label}

    def __getstate__(self):
        return None


class Reduced(list):
    """All parts that __reduce__() can have."""

    def __init__(self, label):
        self.label = label
        self.table = {}

    def __setitem__(self, key, value):
        self.table[key] = value

    def __reduce__(self):
        return (Reduced, (self.label,), {'extra': self.__dict__.get('extra')},
                iter(self), iter(self.table.items()))


class Setter:
    """Its state is set by a function that comes along."""

    def __init__(self):
        self.value = None

    def __reduce__(self):
        return Setter, (), self.value, None, None, set_value


def set_value(obj, value):
    obj.value = value


class Registered:
    """copyreg knows how it goes."""

    def __init__(self, value):
        self.value = value


def reduce_registered(obj):
    return Registered, (obj.value,)


copyreg.pickle(Registered, reduce_registered)


class Error(Exception):
    pass


# --- Description -------------------------------------------------------------

class Mark(str):
    """A part of a description."""


ATOMS = frozenset({
    type(None), bool, float, complex, str, bytes, range, type(...),
    type(NotImplemented),
})
NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
         types.MethodDescriptorType, types.WrapperDescriptorType)


def name_of(obj):
    return f'{getattr(obj, "__module__", "")}.{getattr(obj, "__qualname__", obj.__name__)}'


def sort_key(obj):
    """Of members of sets."""
    if isinstance(obj, (Node, Slotted)):
        return type(obj).__name__, str(obj.label)
    if isinstance(obj, tuple):
        return type(obj).__name__, repr([sort_key(part) for part in obj])
    if isinstance(obj, (set, frozenset)):
        return type(obj).__name__, repr(sorted(map(sort_key, obj)))
    return type(obj).__name__, repr(obj)


def parts_of(obj, as_pickle):
    kind = type(obj)
    if kind is list or kind is tuple:
        return list(obj)
    if kind is dict:
        return [part for item in obj.items() for part in item]
    if kind is set or kind is frozenset:
        return sorted(obj, key=sort_key)
    if kind is bytearray or kind is memoryview:
        return [bytes(obj)]
    if kind is array.array:
        return [obj.typecode, obj.tobytes()]
    if issubclass(kind, (set, frozenset)):      # __reduce__() has no fixed order
        return [sorted(obj, key=sort_key), obj.__dict__]
    reduce = copyreg.dispatch_table.get(kind)
    parts = reduce(obj) if reduce is not None else obj.__reduce_ex__(5)
    if isinstance(parts, str):
        return [parts]
    parts = list(parts)
    if len(parts) > 3 and parts[3] is not None:
        parts[3] = list(parts[3])
    if len(parts) > 4 and parts[4] is not None:
        parts[4] = [part for item in parts[4] for part in item]
    if isinstance(obj, BaseException) and not as_pickle:
        parts += [obj.__cause__, obj.__context__, obj.__suppress_context__]
    return parts


def describe(root, *, as_pickle=False):
    """Return a text that is the same for graphs with the same types and values,
    and the same references between objects that are not values only.

    as_pickle: leave out what pickle forgets."""
    numbers = {}        # of objects, by id
    alive = []          # so that ids stay what they are
    out = []
    todo = [root]
    while todo:
        obj = todo.pop()
        kind = type(obj)
        if kind in ATOMS:
            out.append(f'{kind.__name__} {ascii(obj)}')
        elif kind is int:
            out.append(f'int {obj:x}')
        elif isinstance(obj, NAMED):
            out.append(f'{kind.__name__} {name_of(obj)}')
        elif isinstance(obj, enum.Enum):
            out.append(f'{name_of(kind)} {obj!r}')
        elif obj in ((), frozenset()) if kind in (tuple, frozenset) else False:
            out.append(f'empty {kind.__name__}')
        elif id(obj) in numbers:
            out.append(f'@{numbers[id(obj)]}')
        else:
            numbers[id(obj)] = len(numbers)
            parts = parts_of(obj, as_pickle)
            alive.append((obj, parts))
            out.append(f'{name_of(kind)} {len(parts)}:')
            todo.extend(reversed(parts))
    return '\n'.join(out)


# --- Random graphs -----------------------------------------------------------

STRINGS = ('', 'a', '\xe9', 'abc', 'key', 'label', 'x' * 300, '\xff' * 20,
           '\u20ac uro', '\U0001f40d' * 3, '\udc80', 'a\ud800b', '\x00')


class Maker:
    """Makes graphs.  Nothing here refers to one when it is done.

    rnd has the methods of random.Random; hypothesis can give one."""

    def __init__(self, rnd):
        self.rnd = rnd
        self.count = 0
        self.nodes = []         # may refer to each other in the end
        self.keys = []          # hashable; no references to nodes, but Nodes

    def label(self):
        self.count += 1
        return f'n{self.count}'

    # Values

    def make_int(self):
        rnd = self.rnd
        return rnd.choice((rnd.randint(-10, 300), rnd.randint(-2**70, 2**70), 0,
                           1 << rnd.randint(0, 300), True, False))

    def make_float(self):
        return self.rnd.choice((0.0, -0.0, 1.5, float('inf'), 1e-320,
                                self.rnd.randint(0, 10**6) / 7))

    def make_str(self):
        rnd = self.rnd
        return rnd.choice((rnd.choice(STRINGS), str(rnd.randint(0, 10**6)),
                           sys.intern(f'interned{rnd.randint(0, 99)}'),
                           rnd.choice(STRINGS) + str(rnd.randint(0, 9))))

    def make_bytes(self):
        return bytes([self.rnd.randint(0, 255)]) * self.rnd.choice((0, 1, 5, 600))

    def make_value(self):
        rnd = self.rnd
        return rnd.choice((
            self.make_int, self.make_int, self.make_float, self.make_str,
            self.make_str, self.make_bytes,
            lambda: rnd.choice((None, ..., NotImplemented, Colour.RED,
                                Colour.GREEN, Flags.READ | Flags.WRITE)),
            lambda: complex(self.make_float(), 1),
            lambda: rnd.choice((int, dict, Node, len, os.path.join, Error)),
            lambda: range(rnd.randint(0, 5), rnd.randint(5, 10**9)),
            lambda: decimal.Decimal(rnd.randint(-10**9, 10**9)) / 1000,
            lambda: fractions.Fraction(rnd.randint(-99, 99), rnd.randint(1, 99)),
            lambda: uuid.UUID(int=rnd.randint(0, 2**128 - 1)),
            lambda: pathlib.PurePosixPath('a', str(rnd.randint(0, 99))),
            lambda: datetime.date.fromordinal(rnd.randint(1, 10**6)),
            lambda: datetime.timedelta(seconds=rnd.randint(-10**6, 10**9)),
            lambda: datetime.datetime.fromtimestamp(
                rnd.randint(0, 2**31), rnd.choice((None, datetime.UTC))),
            lambda: MyInt(self.make_int()), lambda: MyStr(self.make_str()),
            lambda: MyBytes(self.make_bytes()),
            lambda: MyFloat(self.make_float()),
        ))()

    def make_key(self):
        rnd = self.rnd
        if self.keys and rnd.random() < 0.3:
            return rnd.choice(self.keys)
        key = rnd.choice((
            self.make_value, self.make_value, self.make_str,
            lambda: tuple(self.some_keys()), lambda: frozenset(self.some_keys()),
            lambda: FrozenRecord(self.make_str()),
            lambda: FrozenSlottedRecord(self.make_value(), self.make_str()),
            lambda: Pair(self.make_value(), self.make_value()),
            lambda: MyTuple((self.make_value(),)),
        ))()
        self.keys.append(key)
        return key

    def some_keys(self):
        return [self.make_key() for _ in range(self.rnd.randint(0, 3))]

    # Nodes

    def anything(self):
        rnd = self.rnd
        if self.nodes and rnd.random() < 0.7:
            return rnd.choice(self.nodes)
        return self.make_value() if rnd.random() < 0.5 else self.make_key()

    def some(self, most=4):
        return [self.anything() for _ in range(self.rnd.randint(0, most))]

    def make_holed_dict(self):
        d = {self.make_key(): self.anything() for _ in range(8)}
        for key in list(d)[::2]:
            del d[key]
        return d

    def make_array(self):
        return array.array('d', [self.make_float()] * self.rnd.randint(0, 100))

    def make_node(self):
        rnd = self.rnd
        return rnd.choice((
            lambda: [], lambda: [], lambda: {}, lambda: {}, set,
            self.make_holed_dict,
            lambda: tuple(self.some()), lambda: tuple(self.some()),
            lambda: frozenset(self.some_keys()),
            lambda: slice(*self.some(3)[:3] or [None]),
            lambda: Node(self.label()), lambda: Node(self.label()),
            lambda: Slotted(self.label()), lambda: Both(self.label()),
            lambda: Record(self.make_value()),
            lambda: SlottedRecord(self.make_value()),
            lambda: FrozenRecord(self.make_value(), tuple(self.some_keys())),
            lambda: Pair(self.make_value(), self.make_key()),
            MyList, MyDict, Leaf, lambda: MySet(self.some_keys()),
            lambda: MyTuple(self.some_keys()),
            lambda: MyFrozenSet(self.some_keys()),
            lambda: bytearray(self.make_bytes()), self.make_array,
            lambda: collections.deque(maxlen=rnd.choice((None, 5))),
            lambda: collections.defaultdict(rnd.choice((list, None, int))),
            collections.OrderedDict,
            lambda: collections.Counter(self.make_str()),
            types.SimpleNamespace,
            lambda: functools.partial(rnd.choice((len, Node, sort_key)),
                                      *self.some_keys(), x=self.make_value()),
            lambda: Error(*self.some_keys()), lambda: Stateful(self.make_value()),
            lambda: NewArgs(self.make_value(), label=self.label()),
            lambda: Reduced(self.label()), Setter,
            lambda: Registered(self.make_value()),
        ))()

    def join(self, node):
        """Let the node refer to others, and to itself perhaps."""
        rnd = self.rnd
        match node:
            case list() | collections.deque():
                node.extend(self.some())
                if isinstance(node, (MyList, Reduced)):
                    node.extra = self.anything()
                if isinstance(node, Reduced):
                    node[self.make_str()] = self.anything()
            case collections.Counter():
                pass
            case dict():
                for _ in range(rnd.randint(0, 4)):
                    node[self.make_key()] = self.anything()
                others = [n for n in self.nodes if type(n) in (Node, Slotted)]
                if others:
                    node[rnd.choice(others)] = self.anything()
                if isinstance(node, MyDict):
                    node.extra = self.anything()
            case MySet():
                node.extra = self.make_value()
            case set():
                node.update(self.some_keys())
                node.update(n for n in self.nodes
                            if type(n) in (Node, Both) and rnd.random() < 0.2)
            case Slotted():
                if rnd.random() < 0.7:
                    node.left = self.anything()
                node.right = self.anything()
                if isinstance(node, Both) and rnd.random() < 0.7:
                    node.extra = self.anything()
            case Node() | types.SimpleNamespace() | Error():
                for name in rnd.sample(('a', 'b', 'c', 'd', 'e'),
                                       rnd.randint(0, 4)):
                    setattr(node, name, self.anything())
                if hasattr(node, 'a') and rnd.random() < 0.3:
                    del node.a
                if rnd.random() < 0.2:
                    node.__dict__       # materialised
                if isinstance(node, Error):
                    others = [n for n in self.nodes if type(n) is Error]
                    node.__cause__ = rnd.choice((None, *others))
                    node.add_note(self.make_str())
            case Record() | SlottedRecord():
                node.items = self.anything()
            case Stateful() | Setter():
                node.value = self.anything()

    def make_graph(self, size):
        """A graph of some `size` objects that are more than values, all of them
        in reach of the one that is returned."""
        rnd = self.rnd
        for _ in range(size):
            self.nodes.append(self.make_node())
        for node in self.nodes:
            self.join(node)
        nodes, self.nodes, self.keys = self.nodes, [], []
        rnd.shuffle(nodes)
        root = rnd.choice((
            lambda: nodes, lambda: tuple(nodes), lambda: {'all': nodes},
            lambda: Record('root', nodes), lambda: collections.deque(nodes),
            lambda: MyList(nodes)))()
        return root


def make_graph(seed, number, size=12):
    rnd = random.Random(f'{seed}/{number}')
    return Maker(rnd).make_graph(rnd.randint(0, size))


# --- Sending -----------------------------------------------------------------

def serve(there, back):
    """Runs in the other interpreter: describe what comes, and send it back."""
    while (item := there.get()) is not None:
        moved, obj = item
        del item
        back.put(describe(obj))
        if moved:
            back.put(interpreters.move(obj))
        else:
            back.put(obj)
        del obj


class Failed(Exception):
    pass


class Session:
    """Another interpreter to which graphs are sent, with a thread that serves."""

    def __enter__(self):
        self.interp = interpreters.create()
        self.there = interpreters.create_queue()
        self.back = interpreters.create_queue()
        self.thread = self.interp.call_in_thread(serve, self.there, self.back)
        return self

    def __exit__(self, *exc_info):
        self.there.put(None)
        self.thread.join()
        self.interp.close()

    def check(self, what, got, expected):
        if got != expected:
            raise Failed(f'{what}\n--- got:\n{got}\n--- expected:\n{expected}')

    def get(self):
        try:
            return self.back.get(timeout=60)
        except interpreters.QueueEmpty:
            raise Failed('no answer') from None

    def check_graph(self, graph, *, moved):
        """Raise Failed unless it arrives as it is there, and here again."""
        expected = describe(graph)
        try:
            copy = pickle.loads(pickle.dumps(graph, 5))
        except RecursionError:
            pass
        else:
            self.check('pickle differs', describe(copy, as_pickle=True),
                       describe(graph, as_pickle=True))
            del copy
        if moved:
            self.there.put((True, interpreters.move(graph)))
            if type(graph) in (list, dict, Record, MyList):
                raise Failed(f'{type(graph)} has not been moved')
        else:
            self.there.put((False, graph))
            self.check('changed by being sent', describe(graph), expected)
        self.check('over there', self.get(), expected)
        self.check('back here', describe(self.get()), expected)


def check_heaps():
    found = _testparcel.check_ownership() + _testparcel.check_heap()
    if found:
        raise Failed('\n'.join(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--graphs', type=int, default=1000)
    parser.add_argument('--seed', type=int)
    parser.add_argument('--first', type=int, default=0,
                        help='number of the first graph')
    parser.add_argument('--size', type=int, default=12,
                        help='objects in a graph, at most')
    parser.add_argument('--only', choices=('copy', 'move'))
    args = parser.parse_args()
    seed = args.seed
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    print(f'seed: {seed}', flush=True)
    ways = [args.only] if args.only else ['copy', 'move']
    start = time.monotonic()
    with Session() as session:
        for number in range(args.first, args.first + args.graphs):
            try:
                for way in ways:
                    graph = make_graph(seed, number, args.size)
                    session.check_graph(graph, moved=way == 'move')
                    del graph
                if number % 1000 == 0:
                    check_heaps()
            except BaseException:
                print(f'graph {number}, {way}; again: --seed {seed} '
                      f'--first {number} --graphs 1 --only {way}', flush=True)
                raise
        check_heaps()
    print(f'{args.graphs} graphs, each sent by {" and ".join(ways)}: '
          f'{time.monotonic() - start:.1f} s')


if __name__ == '__main__':
    from test import rwparcels_random    # whose classes have names elsewhere
    rwparcels_random.main()
