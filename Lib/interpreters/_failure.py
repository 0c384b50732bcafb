"""Exceptions on their way from the interpreter that raised them to the caller.

record() makes one into something to be sent: always its text, and the exception
itself in a Parcel where it can be packed.  restore() gives the caller both back.
"""

from types import SimpleNamespace

import _interpreters
from _parcels import Parcel, pack


def record(exc: BaseException, /) -> tuple:
    """Return exc as a tuple of its names, its texts, and a Parcel or None.

    The frames of this package are left out of the traceback text.
    """
    exc.__traceback__ = _without_own_frames(exc.__traceback__)
    kind = type(exc)
    names = kind.__name__, kind.__qualname__, kind.__module__
    return names, *_texts(exc), _packed(exc)


def restore(data: tuple, /) -> tuple[SimpleNamespace, BaseException | None]:
    """Return (excinfo, exception) from what record() made.

    excinfo has type (with __name__, __qualname__ and __module__), msg,
    formatted and errdisplay, all str, as in 3.14.  The exception is None if it
    can't be re-created here.
    """
    (name, qualname, module), msg, formatted, errdisplay, parcel = data
    excinfo = SimpleNamespace(
        type=SimpleNamespace(
            __name__=name, __qualname__=qualname, __module__=module),
        msg=msg, formatted=formatted, errdisplay=errdisplay)
    return excinfo, _opened(parcel)


def _without_own_frames(tb):
    while tb is not None and _is_own(tb.tb_frame):
        tb = tb.tb_next
    return tb


def _is_own(frame):
    return frame.f_globals.get('__name__', '').startswith('interpreters._')


def _texts(exc):
    try:
        info = _interpreters.capture_exception(exc)
        return info.msg, info.formatted, info.errdisplay
    except Exception:
        # A broken __str__, say.
        name = type(exc).__name__
        return None, name, name


def _packed(exc: BaseException) -> Parcel | None:
    try:
        return pack(exc)
    except Exception:
        return None


def _opened(parcel: Parcel | None) -> BaseException | None:
    if parcel is None:
        return None
    try:
        exc = parcel.open()
    except Exception:
        return None
    return exc if isinstance(exc, BaseException) else None
