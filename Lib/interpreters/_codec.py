"""How objects that a parcel can't take as they are become bytes, and objects again.

This module registers dumps() and loads() with ``_parcels``, which from then on
calls the one to send and the other to receive.

What goes is pickle, protocol 5, with one thing added: functions, lambdas and
whatever else lives in ``__main__``.  A receiver has a ``__main__`` of its own,
so a reference by name does not lead anywhere there.

Functions
    By name, if the receiver can import them.  Else by code: the code object,
    defaults, closure cells, attributes, and the globals that the code names.

Spaces
    A function that went by code needs globals in the receiver.  Those of an
    importable module are that module's, imported.  Those of a ``__main__`` are
    a *space*: a dict that the receiver keeps for each interpreter it got
    functions from, so that what one function stores there with ``global`` the
    next one finds.  Any other globals are a fresh dict for each message.

    (S1) A value that is in a space is replaced only when the sender's value
         has changed since the last message; otherwise the receiver's stays.
    (S2) A function that comes home gets its own globals, untouched.
    (S3) A name that neither the sender's globals nor its builtins have is
         taken from the receiver's ``__main__``, if it is there.

Classes of ``__main__``, and globals that can't be pickled
    By name: the receiver's own ``__main__`` is asked first, then the sender's
    main script, which is loaded once per receiver as ``__interp_main__``,
    like multiprocessing's "spawn" does.  ``if __name__ == '__main__'`` keeps out.

A message that needs none of this is a plain pickle.
"""

import _pickle
import builtins
import marshal
import sys
from _opcode_metadata import opmap
from _thread import RLock, get_ident
from importlib import import_module
from io import BytesIO, open_code
from types import CellType, CodeType, FunctionType, ModuleType

import _interpreters
from _parcels import NotShareableError, register_codec

from interpreters import Interpreter

MAIN = '__main__'
SCRIPT = '__interp_main__'      # the sender's main script, loaded here
MP_MAIN = '__mp_main__'         # what multiprocessing calls that in a child
_MAINS = {MAIN, SCRIPT, MP_MAIN}

_PROTOCOL = 5
_HOME = _interpreters.get_current()[0]


# Sending

def dumps(obj: object, /) -> bytes:
    """Return a message that loads() turns into a copy of obj, in any interpreter.

    Raises NotShareableError, from the error that pickling it gave, if obj or
    something inside it can't be sent.
    """
    message = _Message()
    data = _encode(obj, message)
    message.add_globals()
    if not message.is_plain(data):
        data = _pickle.dumps(_Wrapped(message.header() + (data,)), _PROTOCOL)
    return data


def name_of(func: object, /) -> str | None:
    """Return 'module:qualified.name' if a receiver can import func by it, or None."""
    if (type(func) is FunctionType and func.__module__ != SCRIPT
            and _is_importable(func)):
        return f'{func.__module__}:{func.__qualname__}'
    return None


def find(name: str, /) -> object:
    """Return what name_of() named, importing its module if need be."""
    module, _, qualname = name.partition(':')
    return _resolve(import_module(module), qualname)


class _Message:
    """What belongs to one message beside its root object."""

    def __init__(self):
        self.origin = None      # whose space the functions of a __main__ need
        self.globals = None     # that space in the sender
        self.wanted = []        # names in it that have to be encoded
        self.values = {}        # name: bytes, or None to take it from the script
        self.missing = set()    # names for (S3)
        self.streamed = False   # more than one pickle in the data

    def is_plain(self, data):
        return (self.origin is None and not self.streamed
                and b'main__' not in data)

    def header(self):
        return main_script(), self.origin, self.values, tuple(self.missing)

    def add_globals(self):
        # Each by itself, for (S1).  Encoding one can add to what is wanted.
        while self.wanted:
            name = self.wanted.pop()
            try:
                self.values[name] = _encode(self.globals[name], self)
            except NotShareableError as exc:
                if main_script() is None:
                    exc.add_note(f'It is the global {name!r} of a function '
                                 f'that was to be sent.')
                    raise
                self.values[name] = None

    def want(self, name):
        if name in self.values or name in self.missing:
            return
        if name in self.globals:
            self.values[name] = None
            self.wanted.append(name)
        elif not hasattr(builtins, name):
            self.missing.add(name)


class _Wrapped:
    """Pickles as a call of _open_message()."""

    def __init__(self, args):
        self.args = args

    def __reduce__(self):
        return _open_message, self.args


class _Space:
    """Stands for the globals of functions while they are pickled."""

    def __init__(self, module=None, origin=None):
        self.module = module
        self.origin = origin

    def __reduce__(self):
        return _open_space, (self.module, self.origin)


class _Pickler(_pickle.Pickler):
    """Pickles one object, with the functions and modules in it."""

    def __init__(self, file, message):
        super().__init__(file, _PROTOCOL)
        self.message = message
        self.last = None        # what was being reduced last: the culprit
        self.spaces = {}        # id of globals: the _Space that stands for it
        self.fresh = []         # (space, name, value) still to be written
        self.sent = set()       # (id of globals, name) that need no more of it

    def reducer_override(self, obj):
        self.last = obj
        reduce = _REDUCERS.get(type(obj))
        return NotImplemented if reduce is None else reduce(self, obj)

    def function(self, func):
        if _is_importable(func):
            return NotImplemented
        code, names, attributes = _analyse(func.__code__)
        space = self.space_of(func)
        if space.origin is not None:
            for name in names:
                self.message.want(name)
        elif space.module is None:
            self.want_fresh(space, func.__globals__, names)
        submodules = _submodules(func.__globals__, names, attributes)
        cells = func.__closure__ or ()
        state = {
            'contents': tuple(_content(cell) for cell in cells),
            '__qualname__': func.__qualname__,
            '__doc__': func.__doc__,
            '__defaults__': func.__defaults__,
            '__kwdefaults__': func.__kwdefaults__,
            '__annotations__': _plain_annotations(func),
            '__dict__': func.__dict__,
        }
        args = (code, space, func.__name__, cells, submodules)
        return _make_function, args, state, None, None, _fill_function

    def space_of(self, func):
        namespace = func.__globals__
        space = self.spaces.get(id(namespace))
        if space is None:
            space = self.spaces[id(namespace)] = self.new_space(namespace)
        return space

    def new_space(self, namespace):
        origin = _origin_of(namespace)
        message = self.message
        if origin is not None and (message.globals is None
                                   or message.globals is namespace):
            message.origin = origin
            message.globals = namespace
            return _Space(origin=origin)
        name = namespace.get('__name__')
        module = sys.modules.get(name)
        if (name not in _MAINS and getattr(module, '__spec__', None)
                and vars(module) is namespace):
            return _Space(module=name)
        message.streamed = True
        return _Space()

    def want_fresh(self, space, namespace, names):
        for name in names:
            if name in namespace and (id(namespace), name) not in self.sent:
                self.sent.add((id(namespace), name))
                self.fresh.append((space, name, namespace[name]))

    def module(self, module):
        return import_module, (module.__name__,)

    def code(self, code):
        return marshal.loads, (marshal.dumps(code),)

    def cell(self, cell):
        # Empty: the functions that share it fill it, when they are there.
        return _new_cell, ()


_REDUCERS = {
    FunctionType: _Pickler.function,
    ModuleType: _Pickler.module,
    CodeType: _Pickler.code,
    CellType: _Pickler.cell,
}


def _encode(obj, message):
    """Return the pickle of obj, followed by one for each name of a fresh space."""
    file = BytesIO()
    pickler = _Pickler(file, message)
    try:
        pickler.dump(obj)
        while pickler.fresh:
            pickler.dump(pickler.fresh.pop())
    except (NotShareableError, MemoryError):
        raise
    except Exception as exc:
        raise _not_shareable(obj, pickler.last, exc) from exc
    return file.getvalue()


def _is_importable(func):
    name = func.__module__
    if name is None or name == MAIN or name == MP_MAIN:
        return False
    module = sys.modules.get(name)
    if getattr(module, '__spec__', None) is None and name != SCRIPT:
        return False
    try:
        return _resolve(module, func.__qualname__) is func
    except AttributeError:
        return False


def _resolve(obj, qualname):
    for name in qualname.split('.'):
        obj = getattr(obj, name)
    return obj


_EMPTY = ()     # the only tuple of length 0: a cell's content is wrapped in 1


def _content(cell):
    try:
        return (cell.cell_contents,)
    except ValueError:
        return _EMPTY


def _plain_annotations(func):
    # Annotations must neither keep a function from being sent nor make the
    # receiver load a script: what is not plain goes as a forward reference.
    return {name: _plain_annotation(value)
            for name, value in func.__annotations__.items()}


def _plain_annotation(value):
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, type) and value.__module__ == 'builtins':
        return value
    message = _Message()
    try:
        if message.is_plain(_encode(value, message)):
            return value
    except NotShareableError:
        pass
    return getattr(value, '__qualname__', None) or repr(value)


# What a code object needs

_NAME_OPS = {opmap['LOAD_NAME'], opmap['LOAD_FROM_DICT_OR_GLOBALS']}
_LOAD_GLOBAL = opmap['LOAD_GLOBAL']
_EXTENDED_ARG = opmap['EXTENDED_ARG']

_CACHED_CODES = 512
_analysed = {}          # (code, file name): result of _analyse()
_unmarshalled = {}      # bytes: code, so that a hot function stays specialised


def _analyse(code):
    """Return (marshalled code, names of its globals, all its other names)."""
    key = code, code.co_filename
    result = _analysed.get(key)
    if result is None:
        names = set()
        attributes = set()
        _collect_names(code, names, attributes)
        names -= {'__name__', '__builtins__'}
        if len(_analysed) >= _CACHED_CODES:
            _analysed.clear()
        result = _analysed[key] = marshal.dumps(code), names, attributes
    return result


def _collect_names(code, names, attributes):
    attributes.update(code.co_names)
    text = code.co_code
    high = 0
    for at in range(0, len(text), 2):
        op = text[at]
        arg = high | text[at + 1]
        high = arg << 8 if op == _EXTENDED_ARG else 0
        if op == _LOAD_GLOBAL:
            names.add(code.co_names[arg >> 1])
        elif op in _NAME_OPS:
            names.add(code.co_names[arg])
    for const in code.co_consts:
        if type(const) is CodeType:
            _collect_names(const, names, attributes)


def _submodules(namespace, names, attributes):
    """Return the submodules that code reaches through a package, like os.path.

    A package imported by its name alone does not have them in the receiver.
    """
    packages = tuple(
        value.__name__ + '.' for name in names
        if type(value := namespace.get(name)) is ModuleType
        and hasattr(value, '__path__'))
    if not packages:
        return ()
    return tuple(name for name in list(sys.modules)
                 if name.startswith(packages)
                 and attributes.issuperset(name.split('.')[1:]))


# What went wrong

_SEARCHED_OBJECTS = 100_000


def _not_shareable(root, culprit, exc):
    """Return the error that says what can't be sent, and where it is."""
    if culprit is None:
        culprit = root
    where = ''
    if culprit is not root:
        path = _path_to(culprit, root)
        where = f' (at {path})' if path else f' (inside {_describe(root)})'
    return NotShareableError(f'{_describe(culprit)}{where} cannot be sent to '
                             f'another interpreter: {exc}')


def _describe(obj):
    kind = type(obj)
    name = kind.__qualname__
    if kind.__module__ != 'builtins':
        name = f'{kind.__module__}.{name}'
    try:
        text = repr(obj)
    except Exception:
        return f'an object of type {name}'
    if len(text) > 80:
        text = text[:77] + '...'
    return f'{text} of type {name}'


def _path_to(culprit, root):
    """Return where in root's graph culprit is, like obj['jobs'][3].lock, or None."""
    seen = {id(root)}
    layer = [(root, 'obj')]
    while layer and len(seen) < _SEARCHED_OBJECTS:
        following = []
        for obj, path in layer:
            for child, step in _children(obj):
                if child is culprit:
                    return path + step
                if id(child) not in seen:
                    seen.add(id(child))
                    following.append((child, path + step))
        layer = following
    return None


def _children(obj):
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield value, f'[{key!r:.40}]'
            yield key, f'.key({key!r:.40})'
    elif isinstance(obj, (list, tuple)):
        for index, value in enumerate(obj):
            yield value, f'[{index}]'
    elif isinstance(obj, (set, frozenset)):
        for value in obj:
            yield value, f'.item({value!r:.40})'
    elif isinstance(obj, FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or ()):
            for value in _content(cell):
                yield value, f'.<closure>.{name}'
        yield obj.__defaults__, '.__defaults__'
    attributes = getattr(obj, '__dict__', None)
    if isinstance(attributes, dict):
        for name, value in list(attributes.items()):
            yield value, f'.{name}'


# Receiving

_loads_plain = _pickle.loads
_spaces = {}            # origin: the globals of functions from its __main__
_values = {}            # (origin, name): hash of the value that was last received


def loads(data, /) -> object:
    """Return the object that dumps() made data from.

    Raises whatever importing the modules and calling the constructors that
    data names raises, and NotShareableError if data needs something of the
    sender's __main__ that can't be had here.
    """
    return _loads_plain(data)


class _Unpickler(_pickle.Unpickler):

    def find_class(self, module, name):
        if module in _MAINS:
            return _main_attribute(name)
        return super().find_class(module, name)


def _decode(data):
    file = BytesIO(data)
    unpickler = _Unpickler(file)
    root = unpickler.load()
    while file.tell() < len(data):
        space, name, value = unpickler.load()
        space[name] = value
    return root


def _open_message(script, origin, values, missing, data):
    if script is not None:
        _remember_script(script)
    if origin is not None and origin != _HOME:
        _update_space(origin, values, missing)
    return _decode(data)


def _open_space(module, origin):
    if origin is not None:
        return _space_from(origin)
    if module is not None:
        return vars(import_module(module))
    return {'__name__': SCRIPT, '__builtins__': builtins}


def _space_from(origin):
    if origin == _HOME:
        return vars(sys.modules[MAIN])
    space = _spaces.get(origin)
    if space is None:
        _forget_closed_origins()
        space = _spaces.setdefault(
            origin, {'__name__': SCRIPT, '__builtins__': builtins})
    return space


def _forget_closed_origins():
    # Functions that are still there keep their globals themselves.
    alive = {id for id, _ in _interpreters.list_all()}
    for origin in _spaces.keys() - alive:
        _spaces.pop(origin, None)
    for key in [key for key in _values if key[0] not in alive]:
        _values.pop(key, None)


def _origin_of(namespace):
    if (namespace is vars(sys.modules[MAIN])
            or namespace.get('__name__') == MP_MAIN):
        return _HOME
    for origin, space in list(_spaces.items()):
        if space is namespace:
            return origin
    return None


def _update_space(origin, values, missing):
    space = _space_from(origin)
    for name, data in values.items():
        if data is None:
            if name not in space:
                space[name] = _script_global(name)
            continue
        digest = hash(data)
        last = _values.setdefault((origin, name), digest)
        if name not in space or last != digest:
            space[name] = _decode(data)
            _values[origin, name] = digest
    own = vars(sys.modules[MAIN])
    for name in missing:
        if name in own:
            space[name] = own[name]


def _make_function(code, space, name, cells, submodules):
    for module in submodules:
        import_module(module)
    real = _unmarshalled.get(code)
    if real is None:
        if len(_unmarshalled) >= _CACHED_CODES:
            _unmarshalled.clear()
        real = _unmarshalled[code] = marshal.loads(code)
    return FunctionType(real, space, name, None, cells)


def _fill_function(func, state):
    for cell, content in zip(func.__closure__ or (), state.pop('contents')):
        if content:
            cell.cell_contents, = content
    func.__dict__.update(state.pop('__dict__'))
    for name, value in state.items():
        setattr(func, name, value)


def _new_cell():
    return CellType()


# The main script

_received_script = None     # what main_script() said in the sender
_loading = None             # the thread that is running the script, or None
_script_lock = RLock()


def main_script():
    """Return ('module', name) or ('path', path) of the main script, or None.

    A subinterpreter has none of its own and answers what it was told by those
    that it got messages from.
    """
    main = sys.modules.get(MAIN)
    spec = getattr(main, '__spec__', None)
    if spec is not None and spec.name != MAIN:
        return 'module', spec.name
    path = getattr(main, '__file__', None)
    if isinstance(path, str) and not path.startswith('<'):
        return 'path', path
    return _received_script


def is_loading_script() -> bool:
    """Return whether the calling thread is in the top level of the main script,
    loaded here because a message needed something from it."""
    return _loading == get_ident()


def _remember_script(script):
    global _received_script
    if _received_script is None:
        _received_script = script


def _main_attribute(name):
    for module in (MAIN, SCRIPT):
        try:
            return _resolve(sys.modules[module], name)
        except (KeyError, AttributeError):
            pass
    try:
        return _resolve(_load_script(), name)
    except AttributeError as exc:
        raise NotShareableError(
            f'the main script of the sender has no {name!r}') from exc


def _script_global(name):
    try:
        return getattr(_load_script(), name)
    except AttributeError as exc:
        raise NotShareableError(
            f'the global {name!r} of the sender can be neither pickled nor '
            f'found in its main script, as that is when loaded here') from exc


def _load_script():
    """Return the sender's main script as a module, run on the first call."""
    global _loading
    with _script_lock:
        module = sys.modules.get(SCRIPT)
        if module is not None:
            return module
        if main_script() is None:
            raise NotShareableError(
                f'the message needs something from the __main__ of its '
                f'sender, which is no script that could be loaded here')
        _loading = get_ident()
        try:
            return _run_script(*main_script())
        except BaseException:
            sys.modules.pop(SCRIPT, None)
            raise
        finally:
            _loading = None


def _run_script(kind, name):
    module = ModuleType(SCRIPT)
    if kind == 'module':
        from importlib.util import find_spec
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f'no module named {name!r}', name=name)
        module.__spec__ = spec
        module.__package__ = spec.parent
        module.__file__ = spec.origin
        code = spec.loader.get_code(name)
    else:
        module.__file__ = name
        with open_code(name) as file:
            code = compile(file.read(), name, 'exec')
    sys.modules[SCRIPT] = module
    exec(code, vars(module))
    return module


register_codec(dumps, loads, Interpreter)
