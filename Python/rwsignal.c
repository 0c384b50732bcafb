// Ctrl-C for subinterpreters that the main thread runs.
// The contract is in pycore_rwsignal.h.
//
// The base sets the eval breaker of the main interpreter's first thread state
// when a signal arrives.  Nobody looks at that while the main thread is attached
// with a thread state of a subinterpreter, so that one has to be told too.
//
// Guarantees
//
//   SIG-1  running_sub is the thread state of a subinterpreter with which the
//          main thread is attached, or NULL.  Only the main thread writes it.
//   SIG-2  The thread state that _PyRWSignal_Received() marks is not freed
//          before it has done so.
//   SIG-3  A signal is neither lost nor handled twice: what is pending is the
//          `tripped` flag of a signal, which whoever handles it takes back
//          first; eval breaker bits only say "go and look".
//
// Races
//
//   Signal while the main thread attaches.  trip_signal() stores `tripped` and
//   then loads running_sub; attaching stores running_sub and then loads
//   `tripped`.  All four are sequentially consistent, so one side at least sees
//   the other's store, and the bit is set.
//
//   Signal handler in another thread while the main thread detaches, and maybe
//   frees its thread state.  The handler adds to `reporters`, then loads
//   running_sub; detaching stores NULL in running_sub, then waits until
//   `reporters` is zero.  Either the handler finds NULL or it is waited for.  A
//   handler that interrupts the main thread itself is over before that goes on.
//
//   Signal when the subinterpreter runs no more bytecode.  `tripped` stays set,
//   and the main interpreter's bit, which the base has set, leads to it as soon
//   as the main thread is back there.

#include "Python.h"
#include "pycore_ceval.h"         // _Py_set_eval_breaker_bit()
#include "pycore_interp.h"        // PyInterpreterState.ceval
#include "pycore_pystate.h"       // _Py_IsMainThread()
#include "pycore_rwsignal.h"

#include <signal.h>               // SIGINT
#ifdef HAVE_SCHED_H
#  include <sched.h>              // sched_yield()
#endif

// Written by the main thread, read by whoever reports a signal.
static PyThreadState *running_sub;
// How many are in _PyRWSignal_Received().
static int reporters;

void
_PyRWSignal_Received(void)
{
    _Py_atomic_add_int(&reporters, 1);
    PyThreadState *tstate = _Py_atomic_load_ptr(&running_sub);
    if (tstate != NULL) {
        _Py_set_eval_breaker_bit(tstate, _PY_SIGNALS_PENDING_BIT);
    }
    _Py_atomic_add_int(&reporters, -1);
}

void
_PyRWSignal_AttachedSlow(PyThreadState *tstate)
{
    if (!_Py_IsMainThread()) {
        return;
    }
    _Py_atomic_store_ptr(&running_sub, tstate);
    if (_Py_atomic_load_int(&_PyRuntime.signals.handlers[SIGINT].tripped)) {
        _Py_set_eval_breaker_bit(tstate, _PY_SIGNALS_PENDING_BIT);
    }
}

void
_PyRWSignal_DetachSlow(PyThreadState *tstate)
{
    // Only the main thread can find its own thread state here.
    if (_Py_atomic_load_ptr_relaxed(&running_sub) != tstate) {
        return;
    }
    _Py_atomic_store_ptr(&running_sub, NULL);
    while (_Py_atomic_load_int(&reporters) != 0) {
#ifdef HAVE_SCHED_H
        sched_yield();
#endif
    }
}

int
_PyRWSignal_Check(PyThreadState *tstate)
{
    // It is called often: most str() and repr() look for signals.
    if (_Py_IsMainInterpreter(tstate->interp) || !_PySignal_TakeInterrupt()) {
        return 0;
    }
    PyErr_SetNone(PyExc_KeyboardInterrupt);
    return -1;
}

void
_PyRWSignal_AfterFork(PyThreadState *tstate)
{
    // The threads that counted themselves don't exist here.
    _Py_atomic_store_int(&reporters, 0);
    _Py_atomic_store_ptr(&running_sub, NULL);
    _PyRWSignal_Attached(tstate);
}
