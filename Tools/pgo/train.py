#!/usr/bin/env python3
"""Give the compiler a profile of ordinary Python, to optimise by.

    PYTHON Tools/pgo/train.py [--share S] [--no-tests]

The build runs this as its PROFILE_TASK, with an interpreter that counts how often each
piece of its C code is executed.  What is never executed, gcc puts aside and compiles for
size.  The base trains with 43 of its test files.  They call nearly everything, but rarely
in the ways in which programs do: a test calls a function once, with odd arguments, and
wants an exception.  So here each lesson does something that programs do all day, often
enough that the interpreter specialises it, and now and then with other types, so that the
ways back are taken, too.  Then come the base's tests, as always.

The lessons know nothing of any benchmark.  Whoever adds one asks: is that a kind of thing
that programs spend time in?  Each is given as often as an optimised interpreter gets
through in about a second.  These are fixed numbers, and so are the seeds of all that is
random, since what the compiler makes of a program changes with every count: the same
sources are to give the same build, whose figures can be had again.
"""
import argparse
import asyncio
import base64
import binascii
import bisect
import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import heapq
import io
import itertools
import json
import logging
import operator
import os
import pickle
import queue
import random
import re
import string
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tokenize
import typing
import urllib.parse
import zlib

LESSONS = []
HASH_SEED = "0"


def lesson(times):
    """Teach it so often."""
    def add(func):
        LESSONS.append((func, times))
        return func
    return add


# --- Material ------------------------------------------------------------------

random.seed(20261129)
WORDS = ["".join(random.choices(string.ascii_lowercase, k=random.randint(2, 11))) for _ in range(400)]
TEXT = "\n".join(" ".join(random.choices(WORDS, k=12)).capitalize() + "." for _ in range(60))
FOREIGN = "Grüße, Ελλάδα, 東京 and \N{SNAKE}: " * 4
NUMBERS = [random.randrange(10 ** 6) for _ in range(300)]
FRACTIONS = [random.uniform(-50, 50) for _ in range(300)]


class Shape:
    """Attributes of all kinds: of the instance, of the class, computed, found late."""

    sides = 0
    made = 0

    def __init__(self, x, y):
        self.x = x
        self.y = y
        self.tags = []
        Shape.made += 1

    @property
    def area(self):
        return self.x * self.y

    @area.setter
    def area(self, value):
        self.x = value / self.y

    @classmethod
    def square(cls, side):
        return cls(side, side)

    @staticmethod
    def larger(a, b):
        return a if a.area > b.area else b

    def move(self, dx=0, dy=0):
        self.x += dx
        self.y += dy
        return self

    def describe(self):
        return f"{type(self).__name__} {self.x}x{self.y}"

    def __lt__(self, other):
        return self.x < other.x

    def __eq__(self, other):
        return isinstance(other, Shape) and self.x == other.x and self.y == other.y

    def __hash__(self):
        return hash((self.x, self.y))


class Box(Shape):
    sides = 4

    def __init__(self, x, y, label=None):
        super().__init__(x, y)
        self.label = label

    def move(self, dx=0, dy=0):
        super().move(dx, dy)
        self.tags.append((dx, dy))
        return self

    def __getattr__(self, name):
        if name.startswith("side_"):
            return self.y
        raise AttributeError(name)


class Vector:
    """Slots and operators."""

    __slots__ = ("a", "b", "c")

    def __init__(self, a, b, c):
        self.a, self.b, self.c = a, b, c

    def __add__(self, other):
        return Vector(self.a + other.a, self.b + other.b, self.c + other.c)

    def __sub__(self, other):
        return Vector(self.a - other.a, self.b - other.b, self.c - other.c)

    def __mul__(self, k):
        return Vector(self.a * k, self.b * k, self.c * k)

    __rmul__ = __mul__

    def __neg__(self):
        return Vector(-self.a, -self.b, -self.c)

    def __getitem__(self, i):
        return (self.a, self.b, self.c)[i]

    def __len__(self):
        return 3

    def __bool__(self):
        return bool(self.a or self.b or self.c)

    def __contains__(self, value):
        return value in (self.a, self.b, self.c)

    def dot(self, other):
        return self.a * other.a + self.b * other.b + self.c * other.c


@dataclasses.dataclass
class Order:
    number: int
    customer: str
    lines: list = dataclasses.field(default_factory=list)
    paid: bool = False


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Point:
    x: float
    y: float


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


Pair = collections.namedtuple("Pair", "left right")


class Node:
    def __init__(self, key):
        self.key = key
        self.left = self.right = None

    def insert(self, key):
        node = self
        while True:
            if key < node.key:
                if node.left is None:
                    node.left = Node(key)
                    return
                node = node.left
            else:
                if node.right is None:
                    node.right = Node(key)
                    return
                node = node.right

    def __iter__(self):
        if self.left is not None:
            yield from self.left
        yield self.key
        if self.right is not None:
            yield from self.right


@typing.runtime_checkable
class Drawable(typing.Protocol):
    def describe(self): ...


@typing.runtime_checkable
class Placed(typing.Protocol):
    x: int
    y: int


# --- Lessons: the language --------------------------------------------------------

@lesson(15_000)
def integers():
    total, low = 0, 10 ** 9
    for i, n in enumerate(NUMBERS):
        total += n * 3 - i
        total ^= n << (i & 7)
        if n % 7 == 3 and not n & 1:
            total -= n // 5
        low = n if n < low else low
        quotient, rest = divmod(n, 97)
        total += quotient if rest > 48 else -rest
        if i > 250:
            continue
    big = 1
    for n in NUMBERS[:40]:
        big = big * n + 1
    while big > 10 ** 6:
        big //= 1009
    return total, low, big, pow(7, 65537, 10 ** 9 + 7), int(str(total)), abs(-total)


@lesson(25_000)
def floats():
    total, energy = 0.0, 0
    for x, y in zip(FRACTIONS, reversed(FRACTIONS)):
        distance = (x * x + y * y) ** 0.5
        if distance > 30.0:
            total += x / distance
        elif x < y:
            total -= y * 0.25
        energy += distance
        energy = energy - 1 if energy >= 100.0 else energy + 0.5
    steps = 0
    z = 0.1j + 0.3
    while abs(z) < 2.0 and steps < 50:
        z = z * z + 0.35
        steps += 1
    return total, energy, round(total, 2), int(energy), float("1.5e3"), min(FRACTIONS), max(1, 2.5)


@lesson(15_000)
def matrices():
    n = 9
    a = [[float(i + j) for j in range(n)] for i in range(n)]
    b = [[(i - j) * 0.5 for j in range(n)] for i in range(n)]
    product = [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]
    for i in range(n):
        row = product[i]
        for j in range(n):
            row[j] += a[i][j] * b[j][i]
            product[j][i] = row[j] if i < j else -row[j]
    flat = [0] * (n * n)
    for k in range(n * n):
        flat[k] = k
    for k in range(1, n * n):
        flat[k] += flat[k - 1]
        flat[-k], flat[k] = flat[k], flat[-k]
    return product, flat


@lesson(42_000)
def unpacking():
    pairs = [(i, -i) for i in range(60)]
    triples = [[i, i + 1, i + 2] for i in range(60)]
    total = 0
    for a, b in pairs:
        a, b = b, a
        total += a - b
    for a, b, c in triples:
        a, b, c = c, a, b
        total += a
    for first, *middle, last in triples:
        total += first + last + len(middle)
    for (a, b), [c, d, _] in zip(pairs, triples):
        e, f, g, h = a, c, b, d
        total += e + f + g + h
    for letter, rest in ("ab", "cd", b"ef", {"g": 1, "h": 2}, iter("ij")):
        total += letter == rest
    for _ in range(10):
        a, b, c, d, e = range(5)
        a, b, c, d, e, f, g, h = "abcdefgh"
        a, b, c, d, e, f, g, h = [1, 2, 3, 4, 5, 6, 7, 8]
        a, b, c, d, e, f, g, h = 8, 7, 6, 5, 4, 3, 2, 1
    return total, [*pairs, *triples], (*pairs, 1), {*NUMBERS, 2}, {**dict(pairs), 3: 4}


def positional(a, b, c):
    return a + b + c


def defaults(a, b=2, *, c=3, d=4):
    return a + b + c + d


def everything(*args, **kwargs):
    return len(args) + len(kwargs)


def forwards(*args, **kwargs):
    return everything(*args, **kwargs)


def recursive(n):
    return n if n < 2 else recursive(n - 1) + recursive(n - 2)


@lesson(5_500)
def calls():
    total = recursive(11)
    add_two = functools.partial(positional, 1, 1)
    double = lambda x: x + x                # noqa: E731
    append = [].append
    for i in range(120):
        total += positional(i, 1, 2) + positional(i, c=1, b=2)
        total += defaults(i) + defaults(i, 5) + defaults(i, c=7) + defaults(i, 1, c=2, d=3)
        total += everything(i, i, key=i) + forwards(i, b=1) + positional(*(1, 2, 3))
        total += add_two(i) + double(i) + abs(-i) + len("abc") + ord("a") + max(i, 3) + max(i, 4, key=double)
        append(i)
        total += isinstance(i, int) + isinstance(total, (str, float)) + callable(double) + bool(i)
        total += int(i) + len(str(i)) + len(tuple((1, 2))) + len(list((1, 2))) + hash(i) + id(total) % 2
        total += getattr(double, "missing", 0) + hasattr(i, "real") + (type(i) is int)
    return total


def counter(start):
    count = start

    def step(by=1):
        nonlocal count
        count += by
        return count
    return step


@functools.lru_cache(maxsize=50)
def cached(n):
    return n * n


def traced(func):
    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        wrapper.calls += 1
        return func(*args, **kwargs)
    wrapper.calls = 0
    return wrapper


@traced
def decorated(a, b=1):
    return a * b


@lesson(23_000)
def closures():
    step = counter(10)
    for i in range(100):
        step()
        step(by=i)
        cached(i % 60)
        decorated(i, b=2)
    compose = [lambda x, k=k: x + k for k in range(5)]
    return step(), [f(1) for f in compose], sorted(WORDS[:40], key=lambda w: (len(w), w))


@lesson(4_300)
def objects():
    shapes = [Shape(i, i + 1) for i in range(30)] + [Box(i, 2, "b") for i in range(30)]
    total = 0
    for shape in shapes:
        shape.move(1, 2).move(dx=3)
        total += shape.area + shape.sides + Shape.made
        shape.area = 12
        shape.tags.extend((1, 2))
        largest = Shape.larger(shape, shapes[0])
        if isinstance(shape, Box) and shape.label is not None:
            total += shape.side_left + (largest is shape)
        total += len(shape.describe()) + getattr(shape, "weight", 1)
        shape.extra = total
        del shape.extra
    shapes.sort()
    return total, Box.square(3) == Box.square(3), {shape: 1 for shape in shapes}, shapes[0] in shapes


@lesson(17_000)
def operators():
    position, speed = Vector(0.0, 1.0, 2.0), Vector(0.5, 0.25, -0.5)
    hits = 0
    for i in range(60):
        position = position + speed * 0.1 - 0.01 * position
        if position.dot(speed) > i and position:
            position = -position
        hits += position[1] > position[0]
        hits += len(position) + (1.0 in position)
        position.a += 0.5
    a, b = {1, 2, 3}, {2, 3, 4}
    a |= b
    return position, hits, a & b, a - {1}, a ^ b, [1] * 3 + [2], "ab" * 3, (1,) + (2,), not a, ~hits, +hits


@lesson(9_900)
def trees():
    root = Node(NUMBERS[0])
    for n in NUMBERS[1:100]:
        root.insert(n)
    values = list(root)
    graph = collections.defaultdict(list)
    for a, b in zip(WORDS, WORDS[7:120]):
        graph[a[:2]].append(b[:2])
        graph[b[:2]].append(a[:2])
    seen, todo = set(), collections.deque([WORDS[0][:2]])
    while todo:
        here = todo.popleft()
        if here not in seen:
            seen.add(here)
            todo.extend(there for there in graph[here] if there not in seen)
    return values, seen


def countdown(n):
    while n:
        sent = yield n
        n = n - 1 if sent is None else sent


def chained(n):
    result = yield from countdown(n)
    return result


@lesson(35_000)
def generators():
    total = sum(countdown(50)) + sum(x for x in chained(40) if x % 2)
    talking = countdown(100)
    next(talking)
    for i in range(30, 20, -1):
        total += talking.send(i)
    talking.close()
    total += sum(map(operator.mul, range(50), itertools.count()))
    with contextlib.suppress(StopIteration):
        next(iter(()))
    evens = filter(lambda n: not n & 1, NUMBERS)
    return (total, any(n > 999_000 for n in NUMBERS), all(n >= 0 for n in NUMBERS), list(evens),
            list(itertools.islice(itertools.chain(NUMBERS, countdown(3)), 20)),
            list(itertools.permutations(range(4))), list(itertools.product("ab", range(3))))


@lesson(16_000)
def comprehensions():
    squares = [n * n for n in NUMBERS]
    odd = [n for n in squares if n & 1]
    lengths = {word: len(word) for word in WORDS}
    initials = {word[0] for word in WORDS}
    table = [[i * j for j in range(8)] for i in range(8)]
    flat = [cell for row in table for cell in row if cell]
    inverse = {}
    for word, length in lengths.items():
        inverse.setdefault(length, []).append(word)
    return odd, initials, flat, {k: sorted(v) for k, v in inverse.items()}, sum([len(w) for w in WORDS])


class Failure(Exception):
    def __init__(self, message, code=0):
        super().__init__(message)
        self.code = code


class Guard:
    def __init__(self, swallow):
        self.swallow = swallow

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        return self.swallow


@contextlib.contextmanager
def managed(log):
    log.append("in")
    try:
        yield log
    finally:
        log.append("out")


def fails(n):
    if n % 3 == 0:
        raise Failure("no", code=n)
    if n % 3 == 1:
        return {}["missing"]
    return int("x")


@lesson(8_000)
def exceptions():
    log, count = [], 0
    for i in range(60):
        try:
            fails(i)
        except Failure as exc:
            count += exc.code
        except (KeyError, IndexError) as exc:
            count += len(exc.args)
        except Exception as exc:
            try:
                raise RuntimeError("worse") from exc
            except RuntimeError as worse:
                count += worse.__cause__ is exc
        else:
            count += 1
        finally:
            count += 1
        try:
            count += 1
        except ValueError:
            count -= 1
        with Guard(True) as guard, managed(log):
            count += guard.swallow
            if i % 5 == 0:
                raise Failure("swallowed")
        with Guard(False):
            count += 1
    try:
        raise ExceptionGroup("several", [ValueError(1), TypeError(2)])
    except* ValueError as group:
        count += len(group.exceptions)
    except* TypeError:
        count += 1
    return count, log


@lesson(56_000)
def matching():
    found = []
    for subject in [1, "text", [1, 2, 3], (4, 5), {"kind": "a", "value": 3}, {"kind": "b"}, Point(1, 2),
                    Point(0, 0), Pair(1, 2), None, 3.5, Colour.RED, [], ["go", "north"]] * 5:
        match subject:
            case 1 | 2:
                found.append("small")
            case str() as word if word:
                found.append(word)
            case ["go", direction]:
                found.append(direction)
            case [first, *rest] if rest:
                found.append(first)
            case {"kind": "a", "value": value, **others}:
                found.append((value, others))
            case {"kind": kind}:
                found.append(kind)
            case Point(x=0, y=0):
                found.append(0)
            case Point(x, y):
                found.append(x + y)
            case Colour.RED:
                found.append("red")
            case None:
                found.append(None)
            case _:
                found.append("?")
    return found


async def answer(n, lock):
    async with lock:
        if n % 4 == 0:
            await asyncio.sleep(0)
    return n


async def numbers(n):
    for i in range(n):
        yield i
        if i % 16 == 0:
            await asyncio.sleep(0)


async def conversation():
    lock = asyncio.Lock()
    total = sum(await asyncio.gather(*[answer(i, lock) for i in range(40)]))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(i, lock)) for i in range(40)]
    total += sum(task.result() for task in tasks)
    async for n in numbers(100):
        total += n
    total += sum([n async for n in numbers(50) if n & 1])
    line, done = asyncio.Queue(5), asyncio.Event()

    async def consume():
        while (item := await line.get()) is not None:
            line.task_done()
        done.set()
    consumer = asyncio.create_task(consume())
    for i in range(30):
        await line.put(i)
    await line.put(None)
    await done.wait()
    await consumer
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(1), 0)
    return total


@lesson(1_800)
def coroutines():
    return asyncio.run(conversation())


@lesson(4_800)
def mixed_types():
    """The same places in the code with other types: what was specialised goes back."""
    values = [1, 2.5, "s", b"b", (1,), [2], {3: 4}, None, True, 10 ** 30, Pair(1, 2), Colour.BLUE]
    found = []
    for value in values * 6:
        for other in (1, 2.0, "s", value):
            found.append(value == other)
            try:
                found.append(value + other)
            except TypeError:
                found.append(value != other)
            try:
                found.append(value < other)
            except TypeError:
                found.append(value is other)
        try:
            found.append(value[0])
        except (TypeError, KeyError):
            found.append(bool(value))
        found.append(len(str(value)) if value else not value)
        with contextlib.suppress(TypeError):
            found.extend(value)
        found.append(getattr(value, "real", getattr(value, "left", None)))
    things = [Shape(1, 2), Box(1, 2), Point(3, 4), Vector(5, 6, 7), Order(1, "c"), Pair(1, 2)]
    for thing in things * 10:
        found.append(getattr(thing, "x", 0))
        if hasattr(thing, "describe"):
            found.append(thing.describe())
        found.append(thing.__class__.__name__)
        found.append(isinstance(thing, (Shape, Pair)))
    return found


@lesson(10_000)
def protocols():
    found = 0
    for thing in [Shape(1, 2), Box(1, 2), Point(3, 4), Order(1, "c"), 3, "text"] * 4:
        found += isinstance(thing, Drawable) + isinstance(thing, Placed)
        found += isinstance(thing, collections.abc.Hashable) + isinstance(thing, collections.abc.Mapping)
    return found, typing.Optional[int], list[int], dict[str, "Shape"], int | None


# --- Lessons: containers and text ---------------------------------------------------

@lesson(12_000)
def lists():
    values = list(NUMBERS)
    values.sort()
    values.reverse()
    values.insert(3, 4)
    stack = []
    for n in values:
        stack.append(n)
        if len(stack) > 20:
            stack.pop()
            del stack[0]
    heap = []
    for n in values[:80]:
        heapq.heappush(heap, -n)
    smallest = [heapq.heappop(heap) for _ in range(40)]
    slices = values[2:9], values[::-1], values[-5:], values[::3]
    values[2:5] = [1, 2, 3, 4]
    copies = values[:], values.copy(), list(map(str, values)), sorted(values, key=operator.neg)
    return (smallest, slices, copies, values.index(4), values.count(4), 5 in values, bisect.bisect(smallest, -9),
            [a for a, b in itertools.pairwise(values) if a != b], tuple(values), values == copies[0],
            sorted(FRACTIONS), sorted(WORDS), sorted([(len(w), w) for w in WORDS[:60]]), max(values), sum(FRACTIONS))


@lesson(3_700)
def dicts():
    counts = {}
    for word in TEXT.split():
        counts[word] = counts.get(word, 0) + 1
    for number in NUMBERS:
        if number not in counts:
            counts[number] = number
        else:
            counts[number] += 1
    for word in WORDS[:50]:
        counts.pop(word, None)
    merged = counts | {"a": 1}
    merged.update(b=2, c=3)
    merged.update({(1, 2): 3, None: 4, 1.5: 6})
    ordered = collections.OrderedDict.fromkeys(WORDS[:30])
    ordered.move_to_end(WORDS[3])
    del merged["a"]
    return (collections.Counter(TEXT).most_common(3), sorted(map(str, merged)), ordered, list(counts.items()),
            max(counts.values()), set(WORDS) & set(counts), frozenset(WORDS[:9]), dict(zip(WORDS, NUMBERS)),
            collections.ChainMap({}, counts).get("zz"))


@lesson(1_400)
def strings():
    lines = []
    for number, line in enumerate(TEXT.splitlines()):
        head, _, tail = line.partition(" ")
        words = tail.strip().rstrip(".").split(" ")
        if head.lower().startswith("a") or "x" in line:
            line = line.replace("x", "ks").title()
        lines.append(f"{number:>4}: {head!r:<14} {len(words)} {number / 7:.3f} " + "-".join(words[:3]))
        lines.append("%s %5d %.2f %r" % (head, number, number / 3, words[0]))
        lines.append("{} {key:<10}|".format(head, key=number))
        lines.append(line[1:4] + line[-1] + line[number % 8] + line.upper().swapcase().center(80))
    out = ""
    for char in TEXT[:300]:
        if char.isalpha() and char != "e":
            out += chr(ord(char) ^ 1)
        elif char.isspace():
            out += "_"
    return (lines, out, FOREIGN.encode().decode(), FOREIGN.upper(), FOREIGN.find("東"), FOREIGN.split(","),
            TEXT.translate({97: "A", 98: None}), TEXT.count("a"), "".join(reversed(TEXT)), sorted(TEXT),
            textwrap.fill(TEXT[:400]), TEXT.encode("latin-1"), str(1234567), repr(FOREIGN), "a" < "b", "12".isdigit())


EVEN = bytes(byte & 0xFE for byte in range(256))


@lesson(1_300)
def binary():
    data = TEXT.encode()
    buffer = bytearray(data)
    for i in range(0, len(buffer), 7):
        buffer[i] ^= 0x20
    view = memoryview(buffer)[4:-4]
    packed = b"".join(struct.pack("<IhBd", n, n % 999, n % 256, n / 3) for n in NUMBERS)
    total = sum(fields[0] for fields in struct.iter_unpack("<IhBd", packed))
    total += sum(byte for byte in data[:300]) + view[3] + int.from_bytes(data[:8], "big")
    for size in 3, 60, 2000:
        part = data[:size]
        for encode, decode in ((base64.b64encode, base64.b64decode), (base64.b32encode, base64.b32decode),
                               (base64.urlsafe_b64encode, base64.urlsafe_b64decode),
                               (base64.b16encode, base64.b16decode), (base64.b85encode, base64.b85decode),
                               (binascii.hexlify, binascii.unhexlify), (zlib.compress, zlib.decompress)):
            assert decode(encode(part)) == part
    return (total, hashlib.sha256(data).hexdigest(), zlib.crc32(data), data.split(b" "), data.find(b"zz"),
            data.replace(b"a", b"bb"), bytes(buffer), data.hex(), (12345).to_bytes(4, "little"), data.translate(None),
            # It can't be foretold which bytes change.
            data.translate(EVEN), buffer.translate(EVEN, b"aeiou"))


# --- Lessons: the library -------------------------------------------------------------

DOCUMENT = {"orders": [{"id": i, "name": WORDS[i], "price": FRACTIONS[i], "tags": WORDS[i:i + 3],
                        "open": i % 2 == 0, "note": None, "text": FOREIGN[:i]} for i in range(30)]}


@lesson(1_600)
def documents():
    text = json.dumps(DOCUMENT)
    assert json.loads(text) == DOCUMENT
    pretty = json.dumps(DOCUMENT, indent=2, sort_keys=True)
    orders = [Order(i, WORDS[i], [Pair(i, 2)]) for i in range(30)]
    for protocol in 2, 5:
        assert pickle.loads(pickle.dumps(orders, protocol)) == orders
        pickle.loads(pickle.dumps(DOCUMENT, protocol))
    out = io.BytesIO()
    pickle._Pickler(out, 5).dump(DOCUMENT["orders"][:10])
    pickle._Unpickler(io.BytesIO(out.getvalue())).load()
    return pretty, copy.deepcopy(DOCUMENT), copy.copy(orders[0]), dataclasses.asdict(orders[0]), repr(orders)


LOGGER = logging.getLogger("training")
LOGGER.propagate = False


@lesson(1_300)
def records():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    LOGGER.addHandler(handler)
    for level in logging.WARNING, logging.DEBUG:
        LOGGER.setLevel(level)
        for i in range(25):
            LOGGER.debug("quiet")
            LOGGER.debug("quiet %s", i)
            LOGGER.warning("plain")
            LOGGER.info("with %d of %s", i, "these")
    LOGGER.removeHandler(handler)
    return stream.getvalue()


WORD = re.compile(r"\b([a-z])(\w*?)(ing|ed|s)?\b", re.IGNORECASE)
LINE = re.compile(r"^(?P<key>[\w.-]+)\s*[=:]\s*(?P<value>\"[^\"]*\"|\S+)\s*(?:#.*)?$", re.MULTILINE)


@lesson(680)
def expressions():
    settings = "\n".join(f'{word}.{i} = "{word} {i}"  # {i}' for i, word in enumerate(WORDS[:40]))
    found = [match["key"] for match in LINE.finditer(settings)]
    re.purge()
    for source in r"(a|b)*c+[^x-z]{2,5}?", r"(?P<year>\d{4})-(?P<month>\d\d)", r"(?i:foo|bar|foobar)(?=\.)(?!\()":
        found += re.compile(source).findall(TEXT + settings)
    return (found, WORD.sub(lambda m: m[1].upper() + m[2], TEXT), WORD.findall(TEXT), re.split(r"[\s.]+", TEXT),
            re.sub(r"\s+", " ", TEXT), re.fullmatch(r"(\w+\s)+", WORDS[0]), re.search("東|京", FOREIGN))


@lesson(460)
def compiling():
    with open(textwrap.__file__, encoding="utf-8") as file:
        source = file.read()
    code = compile(source, "textwrap.py", "exec", dont_inherit=True)
    tokens = collections.Counter(token.type for token in tokenize.generate_tokens(io.StringIO(source).readline))
    space = {"a": 3, "__name__": "training"}
    exec("def f(x):\n    return x * a\nb = [f(i) for i in range(5)]", space)
    return code, tokens, space["b"], eval("a + b[2]", space)


@lesson(11_000)
def amounts():
    total = decimal.Decimal(0)
    cent = decimal.Decimal("0.01")
    for n in NUMBERS[:60]:
        price = (decimal.Decimal(n) / 100 * decimal.Decimal("1.19")).quantize(cent, decimal.ROUND_HALF_EVEN)
        total += price if price > 50 else -price
    share = sum((fractions.Fraction(1, n) for n in range(1, 25)), fractions.Fraction(0))
    day = datetime.datetime(2026, 11, 29, 10, 30)
    days = [day + datetime.timedelta(days=n % 400, seconds=n) for n in NUMBERS[:40]]
    return (str(total), float(share), sorted(days)[0].isoformat(), day.strftime("%Y-%m-%d %H:%M"), days[1] - days[0],
            datetime.date.fromisoformat("2026-11-29").weekday(), [random.gauss(0, 1) for _ in range(20)],
            random.sample(WORDS, 9), random.choice(WORDS), Access.READ | Access.RUN, Colour(2).name, Colour["RED"])


@lesson(3_100)
def addresses():
    found = []
    for i, word in enumerate(WORDS[:40]):
        address = f"https://{word}.example.org:80{i:02}/a/{word}%20b/../c?x={i}&y={word}#part"
        parts = urllib.parse.urlsplit(address)
        found.append((parts.hostname, parts.port, urllib.parse.parse_qs(parts.query), parts.geturl()))
        found.append(urllib.parse.urljoin(address, "../d"))
        found.append(os.path.splitext(os.path.join("/tmp", word, "file.txt")))
    return found, urllib.parse.urlencode({"a": "b c", "d": FOREIGN}), urllib.parse.unquote("a%20b")


@lesson(5_600)
def files():
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "text")
        with open(name, "w", encoding="utf-8") as file:
            for line in TEXT.splitlines():
                file.write(line + "\n")
            print(FOREIGN, 1, 2.5, sep=";", file=file)
        with open(name, encoding="utf-8") as file:
            lengths = [len(line) for line in file]
        with open(name, "rb") as file:
            data = file.read(100) + file.readline()
        return lengths, data, os.stat(name).st_size, os.listdir(folder), os.path.exists(name)


@lesson(2_100)
def threads():
    line, back, lock, sums = queue.Queue(8), queue.SimpleQueue(), threading.Lock(), []

    def work():
        total = 0
        while (item := line.get()) is not None:
            total += item
            back.put(item)
        with lock:
            sums.append(total)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for n in NUMBERS[:60] + [None, None]:
        line.put(n)
    for worker in workers:
        worker.join()
    return sums, back.qsize()


def echo(requests, answers):
    while (item := requests.get()) is not None:
        answers.put(item)


def hand_overs():
    """In a process of its own: see main()."""
    import interpreters
    requests, answers = interpreters.create_queue(), interpreters.create_queue()
    interp = interpreters.create()
    thread = interp.call_in_thread(echo, requests, answers)
    try:
        # One of the two waits at any time: two that count at once would spoil the counts.
        for _ in range(20):
            orders = [Order(i, WORDS[i], [Pair(i, 2)]) for i in range(30)]
            for item in [1, "text", b"data", (1, 2.5, "t"), NUMBERS, DOCUMENT, orders, {1, 2}, 1 << 90]:
                requests.put(item)
                answers.get()
            for item in [bytearray(3000), list(NUMBERS), copy.deepcopy(DOCUMENT), orders, Shape(1, 2)]:
                requests.put(interpreters.move(item))
                answers.get()
    finally:
        requests.put(None)
        thread.join()
    interp.close()


@lesson(5_500)
def elements():
    from xml.etree import ElementTree
    root = ElementTree.Element("root")
    for i, word in enumerate(WORDS[:60]):
        child = ElementTree.SubElement(root, "entry", id=str(i), kind=word)
        child.text = word
    text = ElementTree.tostring(root)
    again = ElementTree.fromstring(text)
    return [child.get("kind") for child in again.iter("entry") if child.text], again.find("entry[@id='3']")


# --- Running --------------------------------------------------------------------------

def teach(lessons, share):
    for func, times in lessons:
        times = max(round(times * share), 1)
        for _ in range(times):
            func()
        print(f"lesson {func.__name__}: {times} times", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1, help="of the lessons, each is given once at least (default 1)")
    parser.add_argument("--hand-overs", action="store_true", help="only what goes between interpreters")
    parser.add_argument("--no-tests", action="store_true", help="without the base's tests")
    parser.add_argument("--timeout", default="1200", help="for one of these tests (default 1200)")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if options.hand_overs:
        teach([(hand_overs, 15)], options.share)
        return 0
    teach(LESSONS, options.share)
    # An extension module that counts can't be copied for another interpreter.
    status = subprocess.call([sys.executable, __file__, "--hand-overs", f"--share={options.share}"],
                             env={**os.environ, "PYTHON_EXTCOPY": "off"})
    if not options.no_tests:
        status |= subprocess.call([sys.executable, "-m", "test", "--pgo", f"--timeout={options.timeout}",
                                   "--randseed=20261129"])
    return status


if __name__ == "__main__":
    sys.exit(main())
