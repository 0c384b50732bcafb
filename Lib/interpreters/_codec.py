"""What a parcel can't take by itself: functions that go by code, the things of a
``__main__``, and what pickle forgets of an exception.

The C code of parcels calls this module for them (parcel_reduce.c).  A receiver
has a ``__main__`` of its own, so a reference by name does not lead anywhere there.

Functions
    By name, if the receiver can import them.  Else by code: the code object,
    defaults, closure cells, attributes, and the globals that the code names.

Spaces
    A function that went by code needs globals in the receiver.  Those of an
    importable module are that module's, imported.  Those of a ``__main__`` are
    a *space*: a dict that the receiver keeps for each interpreter it got
    functions from, so that what one function stores there with ``global`` the
    next one finds.  Any other globals are a fresh dict for each parcel.

    (S1) A value that is in a space is replaced only when the sender's value
         has changed since the last parcel; otherwise the receiver's stays.
    (S2) A function that comes home gets its own globals, untouched.
    (S3) A name that neither the sender's globals nor its builtins have is
         taken from the receiver's ``__main__``, if it is there.

Classes of ``__main__``, and globals that can't be pickled
    By name: the receiver's own ``__main__`` is asked first, then the sender's
    main script, which is loaded once per receiver as ``__interp_main__``,
    like multiprocessing's "spawn" does.  ``if __name__ == '__main__'`` keeps out.

The values in a space go as bytes (pickle, protocol 5, with functions, modules,
code and cells added), each by itself, because of (S1): a receiver can tell by them
what has changed.  Queues and interpreters go beside the bytes.  All else is a part
of the parcel's graph.
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
from _parcels import NotShareableError, Queue, move, register_interpreter_type

from interpreters import Interpreter

MAIN = '__main__'
SCRIPT = '__interp_main__'      # the sender's main script, loaded here
MP_MAIN = '__mp_main__'         # what multiprocessing calls that in a child
_MAINS = {MAIN, SCRIPT, MP_MAIN}

_PROTOCOL = 5
_HOME = _interpreters.get_current()[0]


# Sending

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


class Sending:
    """What the reductions of one parcel have in common."""

    def __init__(self):
        self.origin = None      # whose space the functions of a __main__ need
        self.globals = None     # that space in the sender
        self.wanted = []        # names in it that have to be encoded
        self.values = {}        # name: what _encode() made of the value, or None
                                # to take it from the script
        self.missing = set()    # names for (S3)
        self.spaces = {}        # id of globals: the _Space that stands for it

    def space_of(self, namespace):
        space = self.spaces.get(id(namespace))
        if space is None:
            space = self.spaces[id(namespace)] = self.new_space(namespace)
            space.contents = self.values, self.missing
        return space

    def new_space(self, namespace):
        origin = _origin_of(namespace)
        if origin is not None and (self.globals is None
                                   or self.globals is namespace):
            self.origin = origin
            self.globals = namespace
            return _Space(namespace, origin=origin)
        name = namespace.get('__name__')
        module = sys.modules.get(name)
        if (name not in _MAINS and getattr(module, '__spec__', None)
                and vars(module) is namespace):
            return _Space(namespace, module=name)
        return _Space(namespace)

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


class _Space:
    """Stands for the globals of functions while they are being sent."""

    def __init__(self, namespace, module=None, origin=None):
        self.namespace = namespace      # keeps its id
        self.module = module
        self.origin = origin
        self.contents = None            # in a parcel: what there is to go with
                                        # it, which grows until all is reduced

    def __reduce__(self):
        if self.origin is None or self.contents is None:
            return _open_space, (self.module, self.origin)
        return _open_main_space, (self.origin, main_script(), *self.contents)


class _Pickler(_pickle.Pickler):
    """Pickles one object, with the functions and modules in it."""

    def __init__(self, file, message):
        super().__init__(file, _PROTOCOL)
        self.message = message
        self.last = None        # what was being reduced last: the culprit
        self.spaces = {}        # id of globals: the _Space that stands for it
        self.fresh = []         # (space, name, value) still to be written
        self.sent = set()       # (id of globals, name) that need no more of it
        self.handles = []       # what goes beside the bytes

    def reducer_override(self, obj):
        self.last = obj
        reduce = _REDUCERS.get(type(obj))
        return NotImplemented if reduce is None else reduce(self, obj)

    def function(self, func):
        if _is_importable(func):
            return NotImplemented
        space = self.space_of(func.__globals__)
        names = _names_in(func)
        if space.origin is not None:
            for name in names:
                self.message.want(name)
        elif space.module is None:
            self.want_fresh(space, func.__globals__, names)
        return _by_code(func, space)

    def space_of(self, namespace):
        space = self.spaces.get(id(namespace))
        if space is None:
            space = self.message.new_space(namespace)
            self.spaces[id(namespace)] = space
        return space

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

    def handle(self, handle):
        self.handles.append(handle)
        return _handle, (len(self.handles) - 1,)


def _handle(index):
    """Stands for a handle in a pickle; _Unpickler puts another in its place."""
    raise NotShareableError('a handle can only be sent in a parcel')


_REDUCERS = {
    FunctionType: _Pickler.function,
    ModuleType: _Pickler.module,
    CodeType: _Pickler.code,
    CellType: _Pickler.cell,
    Queue: _Pickler.handle,
    Interpreter: _Pickler.handle,
}


def _encode(obj, message):
    """Return the pickle of obj, followed by one for each name of a fresh space,
    and a tuple of the handles in it."""
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
    return file.getvalue(), tuple(pickler.handles)


# Sending: for parcels, which have no bytes

def reduce_function(func: FunctionType, message: Sending, /) -> str | tuple:
    """Return how to make func in the receiver, as __reduce__() would."""
    if _is_importable(func):
        return func.__qualname__
    namespace = func.__globals__
    space = message.space_of(namespace)
    own = {}
    if space.origin is not None:
        for name in _names_in(func):
            message.want(name)
        message.add_globals()
    elif space.module is None:
        own = {name: namespace[name] for name in _names_in(func)
               if name in namespace}
    return _by_code(func, space, own)


def exception_state(exc: BaseException, state: object, setter: object, /) -> tuple:
    """Return (state, setter) with which exc keeps what pickle forgets.

    state and setter are those that it has already, or None.  The receiver's
    exception has the traceback as text, in the attribute _traceback_text.
    """
    chain = [link if _can_go(link) else None
             for link in (exc.__cause__, exc.__context__)]
    return (state, setter, *chain, exc.__suppress_context__,
            traceback_text(exc)), _fill_exception


def traceback_text(exc: BaseException, /) -> str:
    """Return where exc has been, line by line: here, and before it came here."""
    text = getattr(exc, '_traceback_text', '')
    tb = exc.__traceback__
    while tb is not None and _is_own_frame(tb.tb_frame):
        tb = tb.tb_next
    if tb is not None:
        from traceback import format_tb
        text = ''.join(format_tb(tb)) + text
    return text


def _is_own_frame(frame):
    return frame.f_globals.get('__name__', '').startswith('interpreters._')


def _can_go(exc):
    # A cause must not keep an exception from being sent.
    if exc is not None:
        try:
            _encode(exc, Sending())
        except NotShareableError:
            return False
    return True


def _by_code(func, space, own=()):
    """Reduce func to its parts.  own is what it needs in a space of its own."""
    code, names, others = _analyse(func.__code__)
    cells = func.__closure__ or ()
    attributes = {
        '__qualname__': func.__qualname__,
        '__doc__': func.__doc__,
        '__defaults__': func.__defaults__,
        '__kwdefaults__': func.__kwdefaults__,
        '__annotations__': _plain_annotations(func),
    }
    contents = tuple(_content(cell) for cell in cells)
    state = contents, own, func.__dict__, attributes
    args = (code, space, func.__name__, cells,
            _submodules(func.__globals__, names, others))
    return _make_function, args, state, None, None, _fill_function


def _names_in(func):
    return _analyse(func.__code__)[1]


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
    message = Sending()
    try:
        data, _ = _encode(value, message)
        if message.origin is None and b'main__' not in data:
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
        path = path_to(culprit, root)
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


def path_to(culprit: object, root: object, /) -> str | None:
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
    elif isinstance(obj, move):
        yield obj.obj, ''
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

_spaces = {}            # origin: the globals of functions from its __main__
_values = {}            # (origin, name): hash of the value that was last received


class _Unpickler(_pickle.Unpickler):

    def __init__(self, file, handles):
        super().__init__(file)
        self.handles = handles

    def find_class(self, module, name):
        if module in _MAINS:
            return _main_attribute(name)
        if name == '_handle' and module == __name__:
            return self.handles.__getitem__
        return super().find_class(module, name)


def _decode(data, handles):
    file = BytesIO(data)
    unpickler = _Unpickler(file, handles)
    root = unpickler.load()
    while file.tell() < len(data):
        space, name, value = unpickler.load()
        space[name] = value
    return root


def _open_main_space(origin, script, values, missing):
    if script is not None:
        _remember_script(script)
    if origin != _HOME:
        _update_space(origin, values, missing)
    return _space_from(origin)


def find_main(name: str, script: tuple | None, /) -> object:
    """Return what has this qualified name in a __main__: in this one's, or in
    the sender's script.  script is what main_script() returned there."""
    if script is not None:
        _remember_script(script)
    return _main_attribute(name)


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
    for name, value in values.items():
        if value is None:
            if name not in space:
                space[name] = _script_global(name)
            continue
        data, handles = value
        digest = hash((data, *(handle.id for handle in handles)))
        last = _values.setdefault((origin, name), digest)
        if name not in space or last != digest:
            space[name] = _decode(data, handles)
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
    contents, own, namespace, attributes = state
    for cell, content in zip(func.__closure__ or (), contents):
        if content:
            cell.cell_contents, = content
    if own:
        func.__globals__.update(own)
    func.__dict__.update(namespace)
    for name, value in attributes.items():
        setattr(func, name, value)


def _fill_exception(exc, filled):
    state, setter, cause, context, suppress, text = filled
    if setter is not None:
        setter(exc, state)
    elif state is not None:
        exc.__setstate__(state)
    exc.__cause__ = cause
    exc.__context__ = context
    exc.__suppress_context__ = suppress
    if text:
        exc._traceback_text = text


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


register_interpreter_type(Interpreter)
