"""What runs in the target interpreter for a method of Interpreter.

_parcels.run() calls one of these there, by name, with the Parcel that the
caller packed.  Each returns (outcome, value), where value is what outcome says;
no exception leaves them.
"""

import sys

from _parcels import NotShareableError, Parcel, pack

from interpreters import _codec, _failure

# Outcomes; the value beside each
DONE = 0            # Parcel of the result
RAISED = 1          # record of what the code raised
NOT_OPENED = 2      # record of why the message couldn't be opened here
NOT_PACKED = 3      # record of why the result couldn't be sent back


def pack_values(names: tuple[str, ...], values: tuple) -> Parcel:
    """Pack values, the last of which have names; the caller's side."""
    try:
        return pack((names, values, False))
    except NotShareableError:
        # The codec takes the whole tuple or nothing, while something in it may
        # go natively only, like a memoryview: each by itself, then.
        return pack((names, tuple(map(pack, values)), True))


def _unpack_values(message):
    names, values, each = message.open()
    if each:
        values = tuple(value.open() for value in values)
    return names, values


def call(message: Parcel) -> tuple:
    """Call a function.  The values: it or its name, args, keyword args."""
    try:
        names, (func, *args) = _unpack_values(message)
        if type(func) is str:
            func = _codec.find(func)
    except BaseException as exc:
        return NOT_OPENED, _failure.record(exc)
    kwargs = {}
    if names:
        kwargs = dict(zip(names, args[-len(names):]))
        del args[-len(names):]
    try:
        result = func(*args, **kwargs)
    except BaseException as exc:
        return RAISED, _failure.record(exc)
    try:
        return DONE, pack(result)
    except NotShareableError as exc:
        return NOT_PACKED, _failure.record(exc)


def exec_(message: Parcel) -> tuple:
    """Run source code or a code object in __main__."""
    try:
        code = message.open()
    except BaseException as exc:
        return NOT_OPENED, _failure.record(exc)
    try:
        exec(code, vars(sys.modules['__main__']))
    except BaseException as exc:
        return RAISED, _failure.record(exc)
    return DONE, pack(None)


def set_vars(message: Parcel) -> tuple:
    """Bind the values to their names in __main__."""
    try:
        names, values = _unpack_values(message)
    except BaseException as exc:
        return NOT_OPENED, _failure.record(exc)
    vars(sys.modules['__main__']).update(zip(names, values))
    return DONE, pack(None)


def call_each(func, rows: list[tuple]) -> list:
    """Return [func(*row) for row in rows]: a chunk of an executor's map()."""
    return [func(*row) for row in rows]
