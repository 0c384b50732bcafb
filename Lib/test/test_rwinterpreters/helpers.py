"""Functions and classes that the tests send to other interpreters, by name."""


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __eq__(self, other):
        return (self.x, self.y) == (other.x, other.y)

    def moved(self, dx, dy=0):
        return Point(self.x + dx, self.y + dy)

    @classmethod
    def origin(cls):
        return cls(0, 0)


class Callable:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


class Unpicklable:
    def __reduce__(self):
        raise OSError('no, it does not want to')


class OpensNowhere:
    """Can be sent, but not opened."""

    def __reduce__(self):
        return not_here, ()


class CustomError(Exception):
    def __init__(self, code, *, detail=None):
        super().__init__(code)
        self.code = code
        self.detail = detail


class PickyError(Exception):
    """Pickles, but can't be re-created: its arguments are not its args."""

    def __init__(self, one, two):
        super().__init__('just one')


def not_here():
    raise LookupError('it is not here')


def current_id():
    import interpreters
    return interpreters.get_current().id


def echo(*args, **kwargs):
    return args, kwargs


def identity(value):
    return value


def put_moved(queue, n):
    from interpreters import move
    for i in range(n):
        queue.put(move([i]))


def raise_custom():
    raise CustomError(7, detail='seven')


def raise_picky():
    raise PickyError(1, 2)


def raise_chain():
    try:
        try:
            raise KeyError('inner')
        except KeyError as exc:
            raise ValueError('middle') from exc
    except ValueError:
        error = RuntimeError('outer')
        error.add_note('a note')
        raise error


def raise_unpicklable():
    raise ValueError(lambda: None, Unpicklable())


def raise_bad_str():
    class BadStr(Exception):
        def __str__(self):
            raise ZeroDivisionError
    raise BadStr


def interrupt():
    raise KeyboardInterrupt('from afar')


def take_and_answer(requests, answers):
    """Put each request + 1 into answers, until there is None."""
    while (request := requests.get()) is not None:
        answers.put(request + 1)


def take_and_answer_async(requests, answers):
    import asyncio
    async def main():
        while (request := await requests.get_async()) is not None:
            await answers.put_async(request + 1)
    asyncio.run(main())


def signal_and_wait(started, go_on):
    started.put('started')
    return go_on.get()


state = None


def set_state(value):
    global state
    state = value


def get_state(*_):
    return state


def fail_for(bad, value):
    if value == bad:
        raise CustomError(value)
    return value
