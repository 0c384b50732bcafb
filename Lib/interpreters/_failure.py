"""Exceptions on their way from the interpreter that raised them to the caller.

record() makes one into plain data: always its text, and the exception itself
where it can be pickled.  restore() gives the caller both back.
"""

from types import SimpleNamespace

import _interpreters

from interpreters import _codec

# Causes and contexts of an exception that cross with it.
_MAX_CHAIN = 32


def record(exc: BaseException, /) -> tuple:
    """Return exc as a tuple of str, bytes, bool, None and tuples of such.

    The frames of this package are left out of the traceback text.
    """
    exc.__traceback__ = _without_own_frames(exc.__traceback__)
    kind = type(exc)
    names = kind.__name__, kind.__qualname__, kind.__module__
    return names, *_texts(exc), _flatten(exc, set())


def restore(data: tuple, /) -> tuple[SimpleNamespace, BaseException | None]:
    """Return (excinfo, exception) from what record() made.

    excinfo has type (with __name__, __qualname__ and __module__), msg,
    formatted and errdisplay, all str, as in 3.14.  The exception is None if it
    can't be re-created here.
    """
    (name, qualname, module), msg, formatted, errdisplay, chain = data
    excinfo = SimpleNamespace(
        type=SimpleNamespace(
            __name__=name, __qualname__=qualname, __module__=module),
        msg=msg, formatted=formatted, errdisplay=errdisplay)
    return excinfo, _rebuild(chain)


def _without_own_frames(tb):
    while tb is not None and tb.tb_frame.f_globals.get('__name__') in _OWN:
        tb = tb.tb_next
    return tb


_OWN = {'interpreters._entry', 'interpreters._codec', __name__}


def _texts(exc):
    try:
        info = _interpreters.capture_exception(exc)
        return info.msg, info.formatted, info.errdisplay
    except Exception:
        # A broken __str__, say.
        name = type(exc).__name__
        return None, name, name


def _flatten(exc, seen):
    if exc is None or id(exc) in seen or len(seen) >= _MAX_CHAIN:
        return None
    seen.add(id(exc))
    try:
        data = _codec.dumps(exc)
    except Exception:
        data = None
    return (data, _flatten(exc.__cause__, seen),
            _flatten(exc.__context__, seen), exc.__suppress_context__)


def _rebuild(chain):
    if chain is None:
        return None
    data, cause, context, suppress = chain
    if data is None:
        return None
    try:
        exc = _codec.loads(data)
    except Exception:
        return None
    if not isinstance(exc, BaseException):
        return None
    exc.__cause__ = _rebuild(cause)
    exc.__context__ = _rebuild(context)
    exc.__suppress_context__ = suppress
    return exc
