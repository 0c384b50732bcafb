"""What runs in the target interpreter for a method of Interpreter.

_parcels.run() calls one of these there, by name, with the Parcel that the
caller packed.  Each returns (outcome, value), where value is what outcome says;
no exception leaves them.
"""

import sys

from _parcels import Parcel, TransferError, move, pack

from interpreters import _codec, _failure

# Outcomes; the value beside each
DONE = 0            # Parcel of the result
RAISED = 1          # record of what the code raised
NOT_OPENED = 2      # record of why the message couldn't be opened here
NOT_PACKED = 3      # record of why the result couldn't be sent back
NO_SUCH_NAME = 4    # str that says so


def _not_opened(exc):
    # What the caller is told is what a TransferError was caused by.
    if isinstance(exc, TransferError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return NOT_OPENED, _failure.record(exc)


def call(message: Parcel) -> tuple:
    """Call a function.

    message holds the names of the keyword arguments, and a tuple of the
    function (or its name, see _codec.name_of()) and all arguments, in order.
    """
    try:
        names, (func, *args) = message.open()
        if type(func) is str:
            func = _codec.find(func)
    except BaseException as exc:
        return _not_opened(exc)
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
    except Exception as exc:
        return NOT_PACKED, _failure.record(exc)


def exec_(message: Parcel) -> tuple:
    """Run source code or a code object in __main__."""
    try:
        code = message.open()
    except BaseException as exc:
        return _not_opened(exc)
    try:
        exec(code, vars(sys.modules['__main__']))
    except BaseException as exc:
        return RAISED, _failure.record(exc)
    return DONE, pack(None)


def set_vars(message: Parcel) -> tuple:
    """Bind names in __main__.  message holds a tuple of them, and the values."""
    try:
        names, values = message.open()
    except BaseException as exc:
        return _not_opened(exc)
    vars(sys.modules['__main__']).update(zip(names, values))
    return DONE, pack(None)


def take(message: Parcel) -> tuple:
    """Move the object of a name out of __main__.  message holds the name."""
    name = message.open()
    namespace = vars(sys.modules['__main__'])
    if name not in namespace:
        return NO_SUCH_NAME, f'name {name!r} is not defined in that __main__'
    value = namespace.pop(name)
    try:
        return DONE, pack(move(value))
    except BaseException as exc:
        namespace[name] = value
        return NOT_PACKED, _failure.record(exc)


def call_each(func, rows: list[tuple]) -> list:
    """Return [func(*row) for row in rows]: a chunk of an executor's map()."""
    return [func(*row) for row in rows]
