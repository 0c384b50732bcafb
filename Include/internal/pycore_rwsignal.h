// Ctrl-C for subinterpreters that the main thread runs.
//
// Python's signal handlers are objects of the main interpreter and run there.
// While the main thread is in a subinterpreter they wait until it is back, with
// one exception: if SIGINT has the handler that Python installs by itself,
// signal.default_int_handler, KeyboardInterrupt is raised at once in the code
// that the main thread runs, whatever interpreter that belongs to.  The
// algorithm and its races are in Python/rwsignal.c.

#ifndef Py_INTERNAL_RWSIGNAL_H
#define Py_INTERNAL_RWSIGNAL_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_runtime.h"       // _PyRuntime

/* A signal has been noted in the runtime's tables: let the subinterpreter that
   the main thread runs, if it runs one, look at its eval breaker.
   Async-signal-safe; may be called in any thread. */
extern void _PyRWSignal_Received(void);

/* Called where tstate wants to handle signals but can't, since it isn't the main
   thread or not in the main interpreter.  Returns -1 with KeyboardInterrupt set
   if it is the main thread in a subinterpreter and SIGINT with its default
   handler is pending, which it then no longer is.  Returns 0 otherwise. */
extern int _PyRWSignal_Check(PyThreadState *tstate);

/* In Modules/signalmodule.c: withdraw a pending SIGINT if its handler is
   default_int_handler.  Returns whether there was one.  Never in another thread than
   the main one, which alone changes handlers: so none goes away meanwhile. */
extern int _PySignal_TakeInterrupt(void);

/* In a forked child, attached, when the runtime knows its new main thread. */
extern void _PyRWSignal_AfterFork(PyThreadState *tstate);

extern void _PyRWSignal_AttachedSlow(PyThreadState *tstate);
extern void _PyRWSignal_DetachSlow(PyThreadState *tstate);

/* Called by _PyRWGIL_ReadAcquire() and _PyRWGIL_ReadRelease() if subinterpreters
   use the lock.  tstate has become the calling thread's, it is attached. */
static inline void
_PyRWSignal_Attached(PyThreadState *tstate)
{
    if (tstate->interp != _PyRuntime.interpreters.main) {
        _PyRWSignal_AttachedSlow(tstate);
    }
}

/* tstate is about to be detached; it must not be freed before this. */
static inline void
_PyRWSignal_Detach(PyThreadState *tstate)
{
    if (tstate != NULL && tstate->interp != _PyRuntime.interpreters.main) {
        _PyRWSignal_DetachSlow(tstate);
    }
}

#endif   // !Py_INTERNAL_RWSIGNAL_H
