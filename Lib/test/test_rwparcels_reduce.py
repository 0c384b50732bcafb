"""What goes into a parcel by name, and what goes as a call.

The functions under test are those of pycore_parcel_reduce.h; a small walker in
Python makes copies with nothing else, to compare them with what pickle makes.
"""

import array
import collections
import copyreg
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import pickle
import re
import sys
import types
import typing
import unittest
import uuid
from test import support
from test.support import import_helper

_testreduce = import_helper.import_module('_testreduce')
_testcapi = import_helper.import_module('_testcapi')

import interpreters
from interpreters import NotShareableError

NAMED, CALL = 1, 2
MODULE = __name__


class Reduction(typing.NamedTuple):
    kind: int
    innocent: int
    where: tuple | None
    callable: object
    args: tuple | None
    state: object
    list: list | None
    items: list | None
    setter: object


class Plain:
    pass

class Slotted:
    __slots__ = 'a', 'b'

class Both(Slotted):
    __slots__ = 'c', '__dict__'

class Stateful:
    def __init__(self, value):
        self.value = value
    def __getstate__(self):
        return self.value
    def __setstate__(self, state):
        self.value = ['set', state]

class NewArgs:
    def __new__(cls, a, *, b):
        self = super().__new__(cls)
        self.new = a, b
        return self
    def __getnewargs_ex__(self):
        return (self.new[0],), {'b': self.new[1]}

class ListOf(list):
    pass

class DictOf(dict):
    pass

class Reduced:
    """Reduces to whatever it is told."""
    def __init__(self, *result):
        self.result = result[0] if len(result) == 1 else result
    def __reduce_ex__(self, protocol):
        assert protocol == 5
        return self.result

class OldStyle:
    __reduce_ex__ = None
    def __reduce__(self):
        return str, ('old',)

class Meta(type):
    pass

class WithMeta(metaclass=Meta):
    class Inner:
        def method(self):
            pass

Point = collections.namedtuple('Point', 'x y')

class Typed(typing.NamedTuple):
    x: int
    y: str = 'y'

class PointWithDict(Point):
    pass

class OtherPoint(Point):
    __slots__ = ()
    def __reduce__(self):
        return OtherPoint, (0, 0)

class Color(enum.Enum):
    RED = 1
    GREEN = [2]
    ALIAS = 1

class Number(enum.IntEnum):
    ONE = 1

class Flags(enum.Flag):
    A = 1
    B = 2

class Custom(enum.Enum):
    X = 1
    def __reduce_ex__(self, protocol):
        return getattr, (type(self), 'X')

class Broken(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b
    def __reduce__(self):
        return Broken, (self.args[0], self.b), self.__dict__

the_singleton = Reduced('the_singleton')

def function(x):
    return x + 1


PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, type(...),
         type(NotImplemented))


class ReduceCase(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.queue = interpreters.create_queue()

    def reduce(self, obj, message=None):
        result, self.message = _testreduce.reduce(self.queue, obj, message)
        return Reduction(*result)

    def quick(self, obj):
        result = _testreduce.quick_reduce(self.queue, obj)
        return result and Reduction(*result)

    def quick_name(self, obj):
        return _testreduce.quick_name(self.queue, obj)

    def find(self, where):
        return _testreduce.find(self.queue, where)

    def copy(self, obj):
        self.memo = {}
        self.message = None
        return self.copied(obj)

    def copied(self, obj):
        """What the receiver would make of obj."""
        if isinstance(obj, type) and not obj.__flags__ & (1 << 9):
            return obj      # static types go by address
        if type(obj) in PLAIN:
            return obj
        if id(obj) not in self.memo:
            self.memo[id(obj)] = self.copied_once(obj), obj
        return self.memo[id(obj)][0]

    def copied_once(self, obj):
        kind = type(obj)
        if kind in (list, set, dict):
            new = kind()
            self.memo[id(obj)] = new, obj
            if kind is dict:
                for key, value in obj.items():
                    new[self.copied(key)] = self.copied(value)
                return new
            for item in obj if kind is list else ():
                new.append(self.copied(item))
            for item in obj if kind is set else ():
                new.add(self.copied(item))
            return new
        if kind in (tuple, frozenset):
            return kind(self.copied(item) for item in obj)
        r = self.reduce(obj, self.message)
        if r.kind == NAMED:
            return self.find(r.where)
        new = _testreduce.construct(self.queue, self.copied(r.callable),
                                    self.copied(r.args))
        self.memo[id(obj)] = new, obj
        _testreduce.build(self.queue, new, self.copied(r.state),
                          r.list and list(map(self.copied, r.list)),
                          r.items and list(map(self.copied, r.items)),
                          self.copied(r.setter))
        return new

    def check_like_pickle(self, obj):
        mine = self.copy(obj)
        theirs = pickle.loads(pickle.dumps(obj, 5))
        self.assertIs(type(mine), type(theirs))
        self.assertEqual(mine, theirs)
        self.assertEqual(repr(mine), repr(theirs))
        self.assertEqual(getattr(mine, '__dict__', None),
                         getattr(theirs, '__dict__', None))
        return mine


class NameTests(ReduceCase):

    NAMED = [
        (Plain, 'Plain'), (WithMeta, 'WithMeta'),
        (WithMeta.Inner, 'WithMeta.Inner'), (function, 'function'),
        (WithMeta.Inner.method, 'WithMeta.Inner.method'),
        (Color, 'Color'),
    ]

    def test_quick_names(self):
        for obj, name in self.NAMED:
            with self.subTest(name):
                self.assertEqual(self.quick_name(obj), (MODULE, name))
                self.assertEqual(self.reduce(obj).where, (MODULE, name))
                self.assertIs(self.find((MODULE, name)), obj)

    def test_names_elsewhere(self):
        for obj, where in [
            (len, ('builtins', 'len')), (int, ('builtins', 'int')),
            (os.path.join, ('posixpath', 'join')),
            (os.path, ('posixpath', None)), (os, ('os', None)),
            (datetime.datetime, ('datetime', 'datetime')),
            (decimal.Decimal, ('decimal', 'Decimal')),
            (collections.deque, ('collections', 'deque')),
            (list.__new__, ('builtins', 'list.__new__')),
            (dict.__new__, ('builtins', 'dict.__new__')),
        ]:
            with self.subTest(where):
                if os.name != 'posix' and where[0] == 'posixpath':
                    continue
                self.assertEqual(self.quick_name(obj), where)
                self.assertIs(self.find(where), obj)

    def test_another_object_has_the_name(self):
        class Plain:
            pass
        Plain.__qualname__ = 'Plain'
        self.assertIsNone(self.quick_name(Plain))
        with self.assertRaisesRegex(NotShareableError, 'another object'):
            self.reduce(Plain)

    def test_local_class(self):
        class Local:
            pass
        self.assertIsNone(self.quick_name(Local))
        with self.assertRaisesRegex(NotShareableError, '<locals>'):
            self.reduce(Local)

    def test_module_that_is_gone(self):
        module = types.ModuleType('rw_gone')
        exec('class C: pass', vars(module))
        self.assertIsNone(self.quick_name(module.C))
        with self.assertRaisesRegex(NotShareableError, 'rw_gone') as caught:
            self.reduce(module.C)
        self.assertIsInstance(caught.exception.__cause__, ModuleNotFoundError)
        with support.swap_item(sys.modules, 'rw_gone', module):
            self.assertEqual(self.quick_name(module.C), ('rw_gone', 'C'))
            self.assertIs(self.find(('rw_gone', 'C')), module.C)
            # What was found once is not found for ever.
            old, module.C = module.C, 5
            self.assertIsNone(self.quick_name(old))
            self.assertEqual(self.find(('rw_gone', 'C')), 5)
            del module.C
            with self.assertRaises(AttributeError):
                self.find(('rw_gone', 'C'))
        with self.assertRaises(ModuleNotFoundError):
            self.find(('rw_gone', 'C'))

    def test_module_with_getattr(self):
        # Not quick: it takes Python code.
        module = types.ModuleType('rw_lazy')
        exec('class C: pass', vars(module))
        lazy = module.C
        del module.C
        module.__getattr__ = {'C': lazy}.__getitem__
        with support.swap_item(sys.modules, 'rw_lazy', module):
            self.assertIsNone(self.quick_name(lazy))
            self.assertEqual(self.reduce(lazy).where, ('rw_lazy', 'C'))
            self.assertIs(self.find(('rw_lazy', 'C')), lazy)

    def test_strings(self):
        self.assertEqual(self.reduce(the_singleton).where,
                         (MODULE, 'the_singleton'))
        with self.assertRaisesRegex(NotShareableError, 'nowhere'):
            self.reduce(Reduced('nowhere'))
        with self.assertRaisesRegex(NotShareableError, 'another object'):
            self.reduce(Reduced('the_singleton'))

    def test_builtin_types_without_a_name(self):
        for kind in types.FunctionType, types.CellType, type(None):
            self.assertIs(self.find(self.reduce(kind).where), kind)

    def test_no_python_code(self):
        # A metaclass, a property and a module that would notice.
        calls = []
        class Nosy(type):
            def __getattribute__(cls, name):
                calls.append(name)
                return super().__getattribute__(name)
            def __hash__(cls):
                calls.append('hash')
                return 1
        class C(metaclass=Nosy):
            class Inner:
                pass
        inner = C.Inner
        C.__qualname__ = 'C'
        inner.__qualname__ = 'C.Inner'
        with support.swap_attr(sys.modules[MODULE], 'C', C):
            calls.clear()
            self.quick_name(C)
            self.quick_name(inner)
            self.quick(C)
            self.quick(C())
            self.assertEqual(calls, ['__call__'] if calls else [])
            # The slow way finds it.
            self.assertIs(self.find(self.reduce(inner).where), inner)

    def test_main(self):
        # Names of a main script carry the script.
        main = sys.modules['__main__']
        class InMain:
            pass
        InMain.__module__ = '__main__'
        InMain.__qualname__ = 'InMain'
        script = interpreters._codec.main_script()
        with support.swap_attr(main, 'InMain', InMain):
            where = self.reduce(InMain).where
            self.assertEqual(where, ('__main__', 'InMain', script))
            self.assertEqual(self.quick_name(InMain), where)
            self.assertIs(self.find(where), InMain)
            with support.swap_attr(main, '__file__', '/some/script.py'), \
                 support.swap_attr(main, '__spec__', None):
                # It is noticed that this is another script.
                self.assertIsNone(self.quick_name(InMain))
                self.assertEqual(self.reduce(InMain).where[2],
                                 ('path', '/some/script.py'))


class QuickTests(ReduceCase):
    """Types that need no Python code in the sender, and most not in the receiver."""

    INNOCENT = [
        datetime.date(2026, 11, 23), datetime.time(5, 30, 1, 7),
        datetime.datetime(2026, 11, 23, 5, fold=1),
        datetime.datetime(2026, 11, 23, tzinfo=datetime.timezone.utc),
        datetime.timedelta(-3, 4, 5),
        datetime.timezone(datetime.timedelta(hours=1)),
        datetime.timezone(datetime.timedelta(hours=1), 'name'),
        decimal.Decimal('1.50'), decimal.Decimal('-Infinity'),
        decimal.Decimal('NaN123'), decimal.Decimal(10) ** 40,
        fractions.Fraction(3, -7), fractions.Fraction(10 ** 30),
        pathlib.Path('a', 'b/c'), pathlib.PurePosixPath('/x'),
        pathlib.PureWindowsPath('c:/x'), pathlib.Path(),
        uuid.UUID(int=12345), uuid.uuid4(),
        uuid.UUID(int=1, is_safe=uuid.SafeUUID.safe),
        collections.deque('abc'), collections.deque([1, [2]], 5),
        collections.deque((), 0), collections.deque(),
        collections.defaultdict(list, a=[1], b=2), collections.defaultdict(),
        collections.defaultdict(None, {1: 2}),
        collections.OrderedDict(a=1, b=[2]), collections.OrderedDict(),
        collections.Counter('hello'), collections.Counter(),
        array.array('i', [1, -2, 3]), array.array('d'), array.array('w', 'aä\U0001f40d'),
        functools.partial(pow, 2), functools.partial(print, 1, end=[2]),
        Point(1, [2]), Typed(1), Point(Point(1, 2), ()),
    ]

    def test_like_pickle(self):
        for obj in self.INNOCENT:
            with self.subTest(repr(obj)):
                if isinstance(obj, decimal.Decimal) and obj.is_nan():
                    self.assertEqual(repr(self.copy(obj)), repr(obj))
                elif type(obj) is functools.partial:
                    new = self.copy(obj)
                    self.assertEqual((new.func, new.args, new.keywords),
                                     (obj.func, obj.args, obj.keywords))
                else:
                    self.check_like_pickle(obj)
                self.assertTrue(self.quick(obj).innocent)

    def test_really_innocent(self):
        for obj in self.INNOCENT:
            with self.subTest(repr(obj)):
                r = self.quick(obj)
                calls = []
                def trace(frame, event, arg):
                    calls.append(frame.f_code.co_name)
                sys.setprofile(trace)
                try:
                    new = _testreduce.construct(self.queue, r.callable, r.args)
                    _testreduce.build(self.queue, new, r.state, r.list, r.items,
                                      r.setter)
                    again = _testreduce.quick_reduce(self.queue, new)
                finally:
                    sys.setprofile(None)
                # c_call events name the frame of this test.
                self.assertEqual(set(calls), {'test_really_innocent'})
                self.assertEqual(Reduction(*again).callable, r.callable)

    def test_enum_members_go_by_name(self):
        for member in Color.RED, Color.GREEN, Number.ONE, Flags.B, re.I:
            with self.subTest(member):
                r = self.quick(member)
                self.assertEqual(r.kind, NAMED)
                self.assertEqual(r.where[1],
                                 f'{type(member).__name__}.{member.name}')
                self.assertIs(self.find(r.where), member)
                self.assertIs(self.copy(member), member)
        self.assertIs(self.copy(Color.ALIAS), Color.RED)

    def test_flags_that_are_no_member(self):
        both = Flags.A | Flags.B
        self.assertIsNone(self.quick(both))
        self.assertIs(self.copy(both), both)

    def test_not_quick(self):
        # Subclasses can change anything.
        class SubDecimal(decimal.Decimal):
            pass
        class Iterated(list):
            def __iter__(self):
                return iter('ab')
        class SlottedDict(dict):
            __slots__ = 'a'
        for obj in [Custom.X, OtherPoint(1, 2), PointWithDict(1, 2), Plain(),
                    SubDecimal(1), Iterated(), SlottedDict(), Broken(1, 2), the_singleton,
                    collections.OrderedDict({Plain(): 1}), lambda: 0, 1, [],
                    os.stat_result(range(19))]:
            with self.subTest(type(obj)):
                self.assertIsNone(self.quick(obj))
        self.assertIs(self.copy(Custom.X), Custom.X)
        self.assertEqual(self.copy(OtherPoint(1, 2)), (0, 0))

    def test_keys_that_hash_by_themselves(self):
        # The receiver has to run their code.
        for obj in (collections.defaultdict(None, {Plain(): 1}),
                    collections.Counter([Plain()])):
            self.assertFalse(self.quick(obj).innocent)

    def test_order_of_an_ordered_dict(self):
        obj = collections.OrderedDict(a=1, b=2, c=3)
        obj.move_to_end('a')
        obj.attribute = [1]
        new = self.copy(obj)
        self.assertEqual(list(new), ['b', 'c', 'a'])
        self.assertEqual(new.attribute, [1])

    def test_attributes_of_a_point(self):
        obj = PointWithDict(1, 2)
        obj.z = 3
        self.check_like_pickle(obj)

    def test_subclasses_of_containers(self):
        for obj in (ListOf(), ListOf([1, [2]]), DictOf(), DictOf(a=1, b=[2]),
                    DictOf({(1, 2): 3})):
            for attributes in {}, {'x': [1]}:
                vars(obj).update(attributes)
                with self.subTest(repr(obj), attributes=attributes):
                    self.check_like_pickle(obj)
                    self.assertIsNotNone(self.quick(obj))
                    self.assertEqual(self.quick(obj).innocent,
                                     (1, 2) not in obj)
        obj = ListOf()
        obj += obj, obj
        obj.me = obj
        new = self.copy(obj)
        self.assertIs(new[0], new)
        self.assertIs(new.me, new)

    def test_type_that_changes(self):
        class Changing(enum.Enum):
            X = 1
        Changing.__qualname__ = 'Changing'
        with support.swap_attr(sys.modules[MODULE], 'Changing', Changing):
            self.assertIsNotNone(self.quick(Changing.X))
            Changing.__reduce_ex__ = lambda self, protocol: 'the_singleton'
            self.assertIsNone(self.quick(Changing.X))

    def test_dispatch_table_comes_first(self):
        for obj in Color.RED, decimal.Decimal(1), Point(1, 2):
            def reducer(obj):
                return str, ('registered',)
            with support.swap_item(copyreg.dispatch_table, type(obj), reducer):
                self.assertIsNone(self.quick(obj))
                self.assertEqual(self.copy(obj), 'registered')
            self.assertIsNotNone(self.quick(obj))

    def test_innocent_callables(self):
        for func in (decimal.Decimal, datetime.datetime, collections.deque,
                     dict.__new__):
            self.assertTrue(_testreduce.is_innocent(self.queue, func), func)
        for func in (Plain, fractions.Fraction, len, function, print, list, Point):
            self.assertFalse(_testreduce.is_innocent(self.queue, func), func)


class ProtocolTests(ReduceCase):

    def test_instances(self):
        obj = Plain()
        obj.a = obj
        obj.b = [obj]
        new = self.copy(obj)
        self.assertIs(new.a, new)
        self.assertIs(new.b[0], new)
        slotted = Slotted()
        slotted.a = [1]
        self.assertEqual(self.copy(slotted).a, [1])
        self.assertFalse(hasattr(self.copy(slotted), 'b'))
        both = Both()
        both.a, both.c, both.d = 1, [2], 3
        new = self.copy(both)
        self.assertEqual((new.a, new.c, new.d), (1, [2], 3))

    def test_states(self):
        for value in [1], 'text', None, (1, 2), {'a': 1}:
            with self.subTest(value):
                new = self.copy(Stateful(value))
                # Without a state nothing is set.
                self.assertEqual(vars(new), vars(pickle.loads(
                    pickle.dumps(Stateful(value), 5))))

    def test_new_args(self):
        self.assertEqual(self.copy(NewArgs([1], b={2})).new, ([1], {2}))

    def test_containers(self):
        items = ListOf([1, [2]])
        items.attribute = items
        new = self.copy(items)
        self.assertEqual(new, [1, [2]])
        self.assertIs(new.attribute, new)
        self.check_like_pickle(ListOf())
        self.check_like_pickle(DictOf(a=1, b=[2]))

    def test_all_six_items(self):
        def reduction(*rest):
            return Reduced(types.SimpleNamespace, (), *rest)
        r = self.reduce(Reduced(list, ((1,),), None, iter([2, 3])))
        self.assertEqual((r.kind, r.callable, r.args, r.state, r.list, r.items),
                         (CALL, list, ((1,),), None, [2, 3], None))
        self.assertEqual(self.copy(Reduced(list, ((1,),), None, iter([2, 3]))),
                         [1, 2, 3])
        self.assertEqual(
            self.copy(Reduced(dict, (), None, None, iter([('a', 1), ('b', 2)]))),
            {'a': 1, 'b': 2})
        self.assertEqual(self.copy(reduction({'x': 1})).x, 1)
        # The setter's result is of no interest.
        new = self.copy(reduction({'x': 1}, None, None, setter))
        self.assertEqual(new.state, ['set', {'x': 1}])
        self.assertEqual(self.copy(Reduced(str, ('5',))), '5')

    def test_append_without_extend(self):
        self.assertEqual(self.copy(Reduced(Appendable, (), None, iter('ab'))).items,
                         ['a', 'b'])

    def test_old_style(self):
        class Old:
            def __reduce__(self):
                return str, ('old',)
        self.assertEqual(self.copy(Old()), 'old')

    def test_tuples_of_other_types(self):
        class T(tuple):
            pass
        r = self.reduce(Reduced(T((str, T(['a'])))))
        self.assertIs(type(r.args), tuple)

    def test_errors(self):
        for result, message in [
            (5, 'str or a tuple'), ((str,), '1 items'), ((1,) * 7, '7 items'),
            ((1, ()), 'first item .* not callable'),
            ((str, []), 'second item .* not a tuple'),
            ((str, (), None, [1]), 'fourth item .* iterator'),
            ((str, (), None, None, {}), 'fifth item .* iterator'),
            ((str, (), None, None, iter([1])), 'pairs'),
            ((str, (), None, None, None, 1), 'sixth item .* not callable'),
            ((copyreg.__newobj__, ()), 'without a class'),
            ((copyreg.__newobj__, (str,)), 'another class'),
        ]:
            with self.subTest(result):
                with self.assertRaisesRegex(NotShareableError, message):
                    self.reduce(Reduced(result))

    def test_own_errors(self):
        class Refuses:
            def __reduce__(self):
                raise ZeroDivisionError('not me')
        with self.assertRaisesRegex(ZeroDivisionError, 'not me'):
            self.reduce(Refuses())
        for obj in open(os.devnull), (x for x in 'ab'), sys._getframe():
            with self.subTest(obj):
                with self.assertRaises(TypeError):
                    self.reduce(obj)
                getattr(obj, 'close', int)()

    def test_dispatch_table(self):
        pattern = re.compile('a+', re.I)
        self.assertEqual(self.copy(pattern), pattern)
        # A metaclass can be in it; other classes go by name.
        with support.swap_item(copyreg.dispatch_table, Meta,
                               lambda cls: (str, ('class',))):
            self.assertEqual(self.copy(WithMeta), 'class')
        self.assertIs(self.copy(WithMeta), WithMeta)

    def test_bad_state(self):
        for state in 5, ({}, 5), (5, {}):
            with self.assertRaisesRegex(TypeError, 'dict is wanted'):
                _testreduce.build(self.queue, Plain(), state, None, None, None)

    def test_methods(self):
        obj = Stateful([1])
        self.assertIs(self.copy(Stateful.__getstate__), Stateful.__getstate__)
        self.assertEqual(self.copy(obj.__getstate__)(), ['set', [1]])
        self.assertEqual(self.copy('abc'.upper)(), 'ABC')
        self.assertEqual(self.copy(str.upper), str.upper)
        self.assertEqual(self.copy(datetime.datetime.fromtimestamp),
                         datetime.datetime.fromtimestamp)


def setter(obj, state):
    obj.state = ['set', state]
    return 'ignored'


class Appendable:
    def __init__(self):
        self.items = []
    def append(self, item):
        self.items.append(item)
    def __eq__(self, other):
        return self.items == other


class FunctionTests(ReduceCase):

    def test_by_code(self):
        marker = [1]
        def func(a, b=marker, *, c=3):
            "Its docstring."
            return a, b, c, marker
        func.attribute = marker
        new = self.copy([func, marker])
        other, mark = new
        self.assertEqual(other(1), (1, [1], 3, [1]))
        # Values keep their identity in the rest of the graph.
        self.assertIs(other(1)[3], mark)
        self.assertIs(other.__defaults__[0], mark)
        self.assertIs(other.attribute, mark)
        self.assertIs(other.__globals__, globals())
        self.assertEqual(other.__doc__, func.__doc__)

    def test_recursion(self):
        def factorial(n):
            return 1 if n < 2 else n * factorial(n - 1)
        self.assertEqual(self.copy(factorial)(5), 120)

    def test_fresh_space(self):
        namespace = {'__name__': 'no_module'}
        exec('base = [10]\n'
             'def helper(x): return x + base[0]\n'
             'def func(x): return helper(x)\n'
             'def other(x): base.append(x)\n', namespace)
        func, other = self.copy([namespace['func'], namespace['other']])
        self.assertEqual(func(1), 11)
        self.assertIs(func.__globals__, other.__globals__)
        self.assertIs(func.__globals__['helper'].__globals__, func.__globals__)
        self.assertIsNot(func.__globals__, namespace)
        other(5)
        self.assertEqual(func.__globals__['base'], [10, 5])

    def test_of_main(self):
        # The interpreter's own __main__: comes home to its globals.
        main = sys.modules['__main__']
        with support.swap_attr(main, 'rw_value', [1]):
            func = types.FunctionType(
                compile('lambda: rw_value', '<main>', 'eval').co_consts[0],
                vars(main))
            new = self.copy(func)
            self.assertIs(new.__globals__, vars(main))
            self.assertIs(new(), main.rw_value)

    def test_values_of_main_are_one_dict(self):
        main = sys.modules['__main__']
        codes = [compile(f'lambda: {name}', '<main>', 'eval').co_consts[0]
                 for name in ('rw_one', 'rw_queue', 'rw_missing')]
        one, two, three = (types.FunctionType(code, vars(main)) for code in codes)
        with (support.swap_attr(main, 'rw_one', [1]),
              support.swap_attr(main, 'rw_queue', self.queue)):
            space = self.reduce(one).args[1]
            self.assertIs(self.reduce(two, self.message).args[1], space)
            self.reduce(three, self.message)
            r = self.reduce(space, self.message)
        origin, script, values, missing = r.args
        self.assertEqual(set(values), {'rw_one', 'rw_queue'})
        # A handle goes beside the bytes.
        self.assertEqual(values['rw_queue'][1], (self.queue,))
        self.assertEqual(values['rw_one'][1], ())
        self.assertEqual(missing, {'rw_missing'})

    def test_code_and_cells(self):
        code = function.__code__
        self.assertEqual(self.copy(code), code)
        self.assertIsInstance(self.copy(types.CellType(1)), types.CellType)


class ExceptionTests(ReduceCase):

    def raised(self, func, *args):
        try:
            func(*args)
        except BaseException as exc:
            return exc

    def test_plain(self):
        for exc in (ValueError(), KeyError('a'), OSError(2, 'no', 'file'),
                    UnicodeDecodeError('a', b'b', 0, 1, 'c'),
                    ExceptionGroup('g', [ValueError(1)]), Broken(1, [2]),
                    SystemExit(3), StopIteration(4)):
            with self.subTest(repr(exc)):
                new = self.copy(exc)
                self.assertIs(type(new), type(exc))
                self.assertEqual(new.args if 'g' not in exc.args else 'g',
                                 exc.args if 'g' not in exc.args else 'g')
                self.assertEqual(str(new), str(exc))
                self.assertFalse(new.__suppress_context__)
                exc.add_note('a note')
                self.assertEqual(self.copy(exc).__notes__, ['a note'])

    def test_chain(self):
        def fail():
            try:
                {}['key']
            except KeyError as exc:
                exc.add_note('noted')
                raise Broken('outer', exc) from exc
        exc = self.raised(fail)
        new = self.copy(exc)
        self.assertIs(type(new), Broken)
        self.assertIs(type(new.__cause__), KeyError)
        self.assertIs(new.__context__, new.__cause__)
        self.assertIs(new.b, new.__cause__)
        self.assertTrue(new.__suppress_context__)
        self.assertEqual(new.__cause__.__notes__, ['noted'])
        self.assertIsNone(new.__traceback__)
        self.assertIn('in fail', new._traceback_text)
        self.assertIn("{}['key']", new.__cause__._traceback_text)

    def test_suppressed(self):
        def fail():
            try:
                1 / 0
            except ZeroDivisionError:
                raise ValueError from None
        new = self.copy(self.raised(fail))
        self.assertIsNone(new.__cause__)
        self.assertIs(type(new.__context__), ZeroDivisionError)
        self.assertTrue(new.__suppress_context__)

    def test_cycle(self):
        a, b = ValueError('a'), ValueError('b')
        a.__context__, b.__context__ = b, a
        new = self.copy(a)
        self.assertIs(new.__context__.__context__, new)

    def test_context_that_cannot_go(self):
        def fail():
            try:
                raise ValueError(open(os.devnull))
            except ValueError as exc:
                exc.args[0].close()
                raise KeyError('it')
        new = self.copy(self.raised(fail))
        self.assertEqual(repr(new), "KeyError('it')")
        self.assertIsNone(new.__context__)

    def test_text_travels_on(self):
        def fail():
            1 / 0
        first = self.copy(self.raised(fail))
        def again():
            raise first
        second = self.copy(self.raised(again))
        text = second._traceback_text
        self.assertLess(text.index('in again'), text.index('in fail'))


class MemoryTests(ReduceCase):

    OBJECTS = [
        decimal.Decimal('1.5'), Color.RED, Point(1, 2), uuid.UUID(int=5),
        collections.deque([1], 3), collections.OrderedDict(a=1),
        collections.Counter('ab'), array.array('i', [1]), fractions.Fraction(1, 2),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        functools.partial(pow, 2), Plain, function, len, os, Stateful([1]),
        DictOf(a=1), NewArgs(1, b=2), the_singleton,
    ]

    @support.disable_gc()       # it would fail, too, and says so as unraisable
    def each_failure(self, call):
        """Let every allocation fail in turn, until none does."""
        call()
        for nth in range(1, 1000):
            _testcapi.set_nomemory(nth, nth + 1)
            try:
                call()
                return nth
            except MemoryError:
                pass
            finally:
                _testcapi.remove_mem_hooks()
        self.fail('it never stops')

    def test_reduce(self):
        for obj in self.OBJECTS:
            with self.subTest(repr(obj)):
                expected = _testreduce.reduce(self.queue, obj, None)[0][:2]
                self.each_failure(
                    lambda: _testreduce.reduce(self.queue, obj, None))
                self.assertEqual(
                    _testreduce.reduce(self.queue, obj, None)[0][:2], expected)

    @unittest.skipUnless(hasattr(sys, 'gettotalrefcount'), 'needs a debug build')
    def test_no_leak(self):
        def all_of_it():
            for obj in self.OBJECTS:
                self.copy(obj)
                self.each_failure(
                    lambda: _testreduce.quick_reduce(self.queue, obj))
        deltas = []
        for _ in range(6):
            all_of_it()
            support.gc_collect()
            deltas.append(sys.gettotalrefcount())
        growth = [b - a for a, b in zip(deltas[2:], deltas[3:])]
        self.assertLess(min(growth), 5, growth)


if __name__ == '__main__':
    # Classes of __main__ go in another way.
    unittest.main(module='test.test_rwparcels_reduce')
