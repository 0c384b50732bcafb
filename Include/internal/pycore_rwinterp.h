// Who is using an interpreter, so that nobody closes it meanwhile.
//
// The base looks an interpreter up by its id and then works with a pointer that
// nothing keeps valid: a thread of another interpreter can close it any time,
// and a thread of the same one as soon as the lock is given up, which entering
// the interpreter does.  Uses are registered by id, and ids are never reused, so
// there is no moment at which a registration could mean another interpreter.
//
// An interpreter needs no registration to be sure of itself: the thread that
// runs in it keeps it alive.

#ifndef Py_INTERNAL_RWINTERP_H
#define Py_INTERNAL_RWINTERP_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

/* A glance looks at an interpreter's fields without detaching: closing waits for
   it.  A visit runs code in the interpreter: closing is refused meanwhile. */
typedef enum {
    _PyRWInterp_GLANCE = 0,
    _PyRWInterp_VISIT = 1,
} _PyRWInterp_Use;

/* Register a use.  Whether there is such an interpreter is for the caller to look
   up, afterwards; what is found then stays until _PyRWInterp_Leave().
   Returns -1 with InterpreterNotFoundError set if it is being closed. */
PyAPI_FUNC(int) _PyRWInterp_Enter(int64_t id, _PyRWInterp_Use);
PyAPI_FUNC(void) _PyRWInterp_Leave(int64_t id, _PyRWInterp_Use);

/* Claim the right to close an interpreter.  From then on nobody else gets to use
   it; waits for glances.  Returns -1 with InterpreterError set if someone visits
   it, with InterpreterNotFoundError if someone else closes it. */
PyAPI_FUNC(int) _PyRWInterp_BeginClose(int64_t id);

/* The same without an exception; everything but CLAIMED means that it failed. */
typedef enum {
    _PyRWInterp_CLAIMED = 0,
    _PyRWInterp_CLOSING,
    _PyRWInterp_VISITED,
    _PyRWInterp_NO_MEMORY,
} _PyRWInterp_Claim;

PyAPI_FUNC(_PyRWInterp_Claim) _PyRWInterp_TryClose(int64_t id);

/* It is gone, or it stays after all. */
PyAPI_FUNC(void) _PyRWInterp_EndClose(int64_t id);

/* Call a function of the _interpreters module whose first argument is the id of
   an interpreter, in such a bracket.  closing: the function closes it. */
PyAPI_FUNC(PyObject *) _PyRWInterp_Call(PyCFunctionWithKeywords func,
                                        PyObject *self,
                                        PyObject *args, PyObject *kwargs,
                                        _PyRWInterp_Use use, int closing);

/* A function of the _thread module: is the calling thread one of another
   interpreter, for the time of a call into this one?  The threads that it starts
   here are not daemon threads, unlike those of a thread that C code has made. */
PyAPI_FUNC(PyObject *) _PyRWInterp_IsCall(PyObject *, PyObject *);

/* Define FUNC_guarded, which is FUNC called that way. */
#define _PyRWInterp_GUARD(FUNC, USE, CLOSING)                               \
    static PyObject *                                                       \
    FUNC ## _guarded(PyObject *self, PyObject *args, PyObject *kwargs)      \
    {                                                                       \
        return _PyRWInterp_Call(FUNC, self, args, kwargs, USE, CLOSING);    \
    }

#endif   // !Py_INTERNAL_RWINTERP_H
