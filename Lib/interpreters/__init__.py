"""Interpreters that run Python in parallel, and queues between them.

    import interpreters

    interp = interpreters.create()
    interp.call(pow, 2, 10)         # 1024, computed over there

Each interpreter has its own modules, its own __main__ and its own lock.  They
share no objects: what goes from one to another, through call() and its kin or
through a Queue, arrives as a copy, or is moved:

    interp.call(work, interpreters.move(data))

Names that Python 3.14 has in concurrent.interpreters mean here what they mean
there; that module exists here, too, with the same objects.
"""

from __future__ import annotations

import _interpreters
import _parcels
import _rwextensions
from _interpreters import InterpreterError, InterpreterNotFoundError
from _parcels import (
    UNBOUND, UNBOUND_ERROR, UNBOUND_REMOVE,
    ItemInterpreterDestroyed, MovedError, MovedObject, NotShareableError,
    Parcel, Queue, QueueEmpty, QueueError, QueueFull, QueueNotFoundError,
    TransferError,
    create_queue, is_shareable, lock_stats, move, pack,
)
from weakref import WeakValueDictionary

__all__ = [
    'create', 'list_all', 'get_current', 'get_main', 'is_shareable',
    'create_queue', 'extension_copies', 'lock_stats', 'move', 'pack',
    'Interpreter', 'Queue', 'Parcel', 'MovedObject',
    'UNBOUND', 'UNBOUND_ERROR', 'UNBOUND_REMOVE',
    'InterpreterError', 'InterpreterNotFoundError', 'ExecutionFailed',
    'NotShareableError', 'TransferError', 'MovedError',
    'QueueError', 'QueueNotFoundError', 'QueueEmpty', 'QueueFull',
    'ItemInterpreterDestroyed',
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Thread
    from types import CodeType, FunctionType, SimpleNamespace


class ExecutionFailed(InterpreterError):
    """Code that was run in another interpreter raised an exception.

    The exception itself is the __cause__, with its notes, cause and context,
    if it can be sent; else the __cause__ is None.  The traceback over there is
    part of the text, so that both tracebacks are seen.

    Attributes (as in 3.14):

    excinfo
        What is known of the exception in any case, all str: type.__name__,
        type.__qualname__, type.__module__, msg, formatted ('ValueError: no')
        and errdisplay, the traceback.
    """

    def __init__(self, excinfo: SimpleNamespace, /):
        super().__init__(excinfo.formatted or excinfo.type.__name__)
        self.excinfo = excinfo

    def __str__(self):
        text = super().__str__()
        if self.excinfo.errdisplay:
            text += f'\n\nUncaught in the interpreter:\n\n{self.excinfo.errdisplay}'
        return text

    def __reduce__(self):
        return type(self), (self.excinfo,)


def create() -> Interpreter:
    """Make a new interpreter, idle, with a lock of its own.

    It imports from where its creator does: it starts with a copy of the
    creator's sys.path.  It is closed by close(), or when the last Interpreter
    object for it, in any interpreter, is gone.

    Raises InterpreterError if that is not possible: memory has run out, say,
    or the main script is just being loaded in a subinterpreter that needs
    something from it.
    """
    if _codec.is_loading_script():
        raise InterpreterError(
            "cannot create an interpreter while the main script is loaded in "
            "a subinterpreter: put what the script does behind "
            "\"if __name__ == '__main__':\"")
    config = _interpreters.new_config('isolated', allow_daemon_threads=True)
    id = _interpreters.create(config, reqrefs=True)
    _rwextensions.enable(id)
    interp = Interpreter(id, _whence=_interpreters.WHENCE_STDLIB)
    import sys
    path = [entry for entry in sys.path if type(entry) is str]
    _interpreters.run_string(id, f'__import__("sys").path[:] = {path!r}')
    return interp


def extension_copies() -> list[tuple]:
    """Return what was loaded from private copies in the whole process.

    Each is a named tuple: name (of the file, without folder and suffix), file
    (that was copied), interpreter (an id, or None if the copy waits to be used
    again) and nbytes, the memory that is this copy's alone.

    An extension module that doesn't declare support for a lock per interpreter
    is loaded from a copy in every interpreter but the main one, with statics and
    types of its own.  The option -X extcopy chooses: "auto", "off", or "all" to
    copy those that declare it, too; "auto,-spam,+eggs" makes exceptions by name.
    """
    return _rwextensions.copies()


def list_all() -> list[Interpreter]:
    """Return all interpreters of the process, in the order of their ids."""
    return [Interpreter(id, _whence=whence) for id, whence
            in sorted(_interpreters.list_all(require_ready=True))]


def get_current() -> Interpreter:
    """Return the interpreter that runs the caller."""
    id, whence = _interpreters.get_current()
    return Interpreter(id, _whence=whence)


def get_main() -> Interpreter:
    """Return the interpreter that the process began with."""
    id, whence = _interpreters.get_main()
    return Interpreter(id, _whence=whence)


_known: WeakValueDictionary[int, Interpreter] = WeakValueDictionary()

_WHENCE = {
    _interpreters.WHENCE_STDLIB: '_interpreters module',
    _interpreters.WHENCE_XI: 'cross-interpreter C-API',
    _interpreters.WHENCE_CAPI: 'C-API',
    _interpreters.WHENCE_LEGACY_CAPI: 'legacy C-API',
    _interpreters.WHENCE_RUNTIME: 'runtime init',
    _interpreters.WHENCE_UNKNOWN: 'unknown',
}


class Interpreter:
    """A handle to an interpreter, which is named by its id.

    There is one instance for each id in each interpreter; sent elsewhere, it
    becomes the instance there.  Raises TypeError if id is no int,
    InterpreterNotFoundError if there is no such interpreter.

    All methods raise InterpreterNotFoundError when the interpreter has been
    closed, and those that run something in it or close it InterpreterError
    when it was not made by create().

    exec() and call() run in the calling thread, one at a time in each
    interpreter: InterpreterError if it is running already.  prepare_main() and
    take() work on one that is running, too.

    What they send they send as a copy, or move it where it is in a move():
    NotShareableError or TransferError if that can't be.  If it has been sent
    and can't be used, the exception has it as a Parcel in its attribute
    'parcel'.
    """

    __slots__ = ('_id', '_whence', '_owns', '__weakref__')

    def __new__(cls, id: int, /, *, _whence: int | None = None):
        if not isinstance(id, int):
            raise TypeError(f'id must be an int, not {type(id).__name__}')
        self = _known.get(int(id))
        if self is not None:
            return self
        self = super().__new__(cls)
        self._owns = False
        self._id = int(id)
        self._whence = _interpreters.whence(id) if _whence is None else _whence
        if self._whence == _interpreters.WHENCE_STDLIB:
            _interpreters.incref(id)
            self._owns = True
        return _known.setdefault(self._id, self)

    def __del__(self, _decref=_interpreters.decref,
                _gone=InterpreterNotFoundError):
        if self._owns:
            self._owns = False
            try:
                _decref(self._id)
            except _gone:
                pass

    def __repr__(self):
        return f'{type(self).__name__}({self._id})'

    def __hash__(self):
        return hash(self._id)

    def __reduce__(self):
        return type(self), (self._id,)

    @property
    def id(self) -> int:
        """The number that names the interpreter; no other ever gets it."""
        return self._id

    @property
    def whence(self) -> str:
        """How the interpreter came about: '_interpreters module' if create()
        made it, else 'runtime init' (the main one), 'legacy C-API', 'C-API',
        'cross-interpreter C-API' or 'unknown'."""
        return _WHENCE[self._whence]

    def is_running(self) -> bool:
        """Return whether the interpreter runs code of its __main__: now in
        exec() or call(), in any thread.  The main interpreter always does."""
        return _interpreters.is_running(self._id)

    def close(self) -> None:
        """End the interpreter and free what it has.

        Raises InterpreterError if it is running, or is the main or the current
        one.  Waits for threads that were started in it.
        """
        if self._id == _interpreters.get_main()[0]:
            raise InterpreterError('cannot close the main interpreter')
        self._check_made_here('close')
        if self._id == _interpreters.get_current()[0]:
            raise InterpreterError('cannot close the current interpreter')
        if self.is_running():
            raise InterpreterError(
                f'cannot close interpreter {self._id}: it is running')
        _parcels.close(self._id)

    def prepare_main(self, ns: Mapping[str, object] | None = None, /,
                     **kwargs: object) -> None:
        """Bind copies of the values to the names in the __main__ over there.

        If code is running there, it is stopped for as long as that takes, as
        soon as it comes to a point where it can be.
        """
        values = dict(ns, **kwargs) if ns is not None else kwargs
        if not values:
            raise ValueError('there is nothing to bind')    # as in 3.14
        for name in values:
            if not isinstance(name, str):
                raise TypeError(f'names must be str, not {type(name).__name__}')
        self._check_made_here('prepare')
        self._run('set_vars', _pack(tuple(values), tuple(values.values())),
                  direct=True)

    def take(self, name: str, /) -> object:
        """Remove a name from the __main__ over there, and return its object.

        The object is moved: whoever else has it over there has a MovedObject.
        Code that is running there is stopped as by prepare_main().

        Raises NameError if there is no such name, and TransferError or
        NotShareableError if the object can't be moved; then it stays there.
        """
        if not isinstance(name, str):
            raise TypeError(f'the name must be a str, not {type(name).__name__}')
        self._check_made_here('take from')
        return self._run('take', _parcels.pack(name), direct=True)

    def exec(self, code: str | CodeType | FunctionType, /) -> None:
        """Run code in the __main__ over there, as the builtin exec() does.

        A function stands for its code: it must take no arguments and have no
        closure, and its globals are those of that __main__.

        Raises ExecutionFailed, from the exception, if the code raises one or
        can't be compiled; KeyboardInterrupt comes as itself.
        """
        kind = type(code).__name__
        if kind == 'function':
            code = _code_of(code)
        elif not isinstance(code, str) and kind != 'code':
            raise TypeError(
                f'code must be a str, code object or function, not {kind}')
        self._check_made_here('exec in')
        self._run('exec_', _parcels.pack(code))

    def call(self, callable: Callable, /, *args: object, **kwargs: object):
        """Call callable(*args, **kwargs) over there, return what it returns.

        Callable and arguments are sent there, the result is sent back.
        Functions go by name where the other side can import them, else by
        code, defaults, closure values, and the globals that they name; then
        what they change stays on the other side.

        Raises ExecutionFailed, from the exception, if the callable raises
        one; KeyboardInterrupt comes as itself.
        """
        self._check_made_here('call in')
        return self._run('call', _pack_call(callable, args, kwargs))

    async def call_async(self, callable: Callable, /, *args: object,
                         **kwargs: object):
        """Do what call() does in a new thread, and await what it returns.

        If the task is cancelled the call goes on; its result is dropped.
        """
        self._check_made_here('call in')
        message = _pack_call(callable, args, kwargs)
        from . import _async
        reply = await _async.in_thread(self._send, 'call', message)
        return self._receive(message, *reply)

    def call_in_thread(self, callable: Callable, /, *args: object,
                       **kwargs: object) -> Thread:
        """Do what call() does in a new thread, and return that, started.

        What is sent is taken at once.  The result is dropped.  Exceptions of
        the call go to threading.excepthook().
        """
        self._check_made_here('call in')
        message = _pack_call(callable, args, kwargs)
        from threading import Thread
        thread = Thread(target=self._run, args=('call', message))
        thread.start()
        return thread

    def _check_made_here(self, what):
        if self._whence != _interpreters.WHENCE_STDLIB:
            raise InterpreterError(
                f'cannot {what} unrecognized interpreter {self._id}: it was '
                f'not made by create()')

    def _run(self, entry, message, *, direct=False):
        return self._receive(message, *self._send(entry, message, direct))

    def _send(self, entry, message, direct=False):
        # message is a Parcel, so the entry opens it and deals with errors.
        try:
            return _parcels.run(self._id, (entry, message), direct)
        except InterpreterError as exc:
            exc.parcel = message
            raise

    def _receive(self, message, outcome, value):
        from . import _entry
        if outcome == _entry.DONE:
            return value.open()
        if outcome == _entry.NO_SUCH_NAME:
            raise NameError(value)
        from . import _failure
        excinfo, exc = _failure.restore(value)
        if outcome == _entry.NOT_OPENED:
            kind = (NotShareableError if isinstance(exc, NotShareableError)
                    else TransferError)
            error = kind(
                f'interpreter {self._id} could not open the message: '
                f'{excinfo.formatted}')
            error.reason = excinfo.formatted
            error.parcel = message
            raise error from exc
        if outcome == _entry.NOT_PACKED:
            kind = (TransferError if isinstance(exc, TransferError)
                    else NotShareableError)
            error = kind(
                f'interpreter {self._id} could not send the result: '
                f'{excinfo.msg}')
            error.path = getattr(exc, 'path', None)
            error.reason = getattr(exc, 'reason', None)
            raise error from exc
        failed = ExecutionFailed(excinfo)
        if isinstance(exc, KeyboardInterrupt):
            raise KeyboardInterrupt(*exc.args) from failed
        raise failed from exc


def _pack_call(func, args, kwargs):
    if not callable(func):
        raise TypeError(f'{type(func).__name__!r} object is not callable')
    values = _codec.name_of(func) or func, *args, *kwargs.values()
    return _pack(tuple(kwargs), values)


def _pack(names, values):
    try:
        return _parcels.pack((names, values))
    except (NotShareableError, TransferError) as exc:
        _shorten_path(exc)
        raise


def _shorten_path(exc):
    # obj[1][2].lock is what the caller knows as the lock of the third value.
    path = getattr(exc, 'path', None)
    if path and path.startswith('obj[1]['):
        short = exc.path = 'obj' + path.partition(']')[2].partition(']')[2]
        old, new = (path, short) if short != 'obj' else (f'{path}: ', '')
        exc.args = (exc.args[0].replace(old, new, 1),)


def _code_of(func):
    code = func.__code__
    if func.__closure__:
        raise ValueError('a function with a closure cannot be run by exec()')
    if code.co_argcount or code.co_kwonlyargcount or code.co_flags & 0x0C:
        raise ValueError('a function with parameters cannot be run by exec()')
    return code


# It registers itself with _parcels, and needs Interpreter for that.
from . import _codec
