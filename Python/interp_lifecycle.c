/* How interpreters end when others still live.  The contract is in
   pycore_interp_lifecycle.h.

   A thread that is in an interpreter when it ends can be anywhere: waiting for
   the interpreter's lock, blocked outside it, or (at exit only) deep in C code
   with the lock held.  Sooner or later it takes the lock or comes to a
   safepoint, where _PyThreadState_MustExit() sends it away.  Until then it
   must be able to read its thread state, the finalizing flag and the lock.
   So neither is freed: the thread states are cleared and unlinked, and the
   interpreter state becomes a *zombie*: everything in it is finalised, but its
   memory, its lock and its RW-GIL slot stay.  This costs about 200 KB each time that
   an interpreter is closed on top of running threads, and nothing else does.

   Races
     L1  the thread runs again between the flag and the pruning: it can't, the
         caller holds the interpreter's lock
     L2  two threads end the same interpreter: at exit, one that is already
         finalizing is left to whoever does it, for a bounded time
     L3  an interpreter is created while all are being ended: it is ended as
         well; creation stops when the runtime counts as finalizing
*/

#include "Python.h"
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_interp_lifecycle.h"
#include "pycore_pylifecycle.h"   // _Py_IsInterpreterFinalizing()
#include "pycore_pystate.h"       // _PyThreadState_Attach()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwgil.h"         // _PyRWGIL_WaitQuiet()

/* How long one look at a busy interpreter takes; Ctrl-C works in between. */
#define SLICE_NS (50 * 1000 * 1000)

/* Set once, by the thread that finalises the runtime; it alone reads it. */
static int exiting;

/* The interpreter that this thread is ending, if it has given threads up. */
static _Py_thread_local PyInterpreterState *zombie;


/* --- Fork ---------------------------------------------------------------- */

int
_PyInterp_CheckFork(void)
{
    if (!_Py_IsMainInterpreter(_PyInterpreterState_GET())) {
        PyErr_SetString(PyExc_RuntimeError,
                        "fork is not supported in a subinterpreter: "
                        "use subprocess, or fork in the main interpreter");
        return -1;
    }
    return 0;
}

/* Static types count the interpreters that use them; only main is left. */
static void
recount_static_types(PyInterpreterState *main_interp)
{
    for (size_t i = 0; i < _Py_MAX_MANAGED_STATIC_BUILTIN_TYPES; i++) {
        if (main_interp->types.builtins.initialized[i].type != NULL) {
            _PyRuntime.types.managed_static.types[i].interp_count = 1;
        }
    }
    for (size_t i = 0; i < _Py_MAX_MANAGED_STATIC_EXT_TYPES; i++) {
        if (main_interp->types.for_extensions.initialized[i].type != NULL) {
            size_t full = i + _Py_MAX_MANAGED_STATIC_BUILTIN_TYPES;
            _PyRuntime.types.managed_static.types[full].interp_count = 1;
        }
    }
}

void
_PyInterp_ForgetOthers(void)
{
    struct pyinterpreters *interpreters = &_PyRuntime.interpreters;
    PyInterpreterState *main_interp = interpreters->main;
    HEAD_LOCK(&_PyRuntime);
    int alone = interpreters->head == main_interp && main_interp->next == NULL;
    interpreters->head = main_interp;
    main_interp->next = NULL;
    HEAD_UNLOCK(&_PyRuntime);
    if (!alone) {
        recount_static_types(main_interp);
    }
}


/* --- Threads that are left in an interpreter ----------------------------- */

int
_PyInterp_MayPrune(PyInterpreterState *interp)
{
    return exiting
           || _PyInterpreterState_GetWhence(interp)
              == _PyInterpreterState_WHENCE_STDLIB;
}

void
_PyInterp_PruneThreads(PyThreadState *tstate)
{
    assert(_PyInterpreterState_GetFinalizing(tstate->interp) == tstate);
    PyThreadState *list = _PyThreadState_RemoveExcept(tstate);
    _PyInterpreterState_ReinitRunningMain(tstate);
    for (PyThreadState *p = list; p != NULL; p = p->next) {
        zombie = tstate->interp;
        // May run destructors; the thread itself can't run any more.
        PyThreadState_Clear(p);
    }
}

int
_PyInterp_IsZombie(PyInterpreterState *interp)
{
    if (zombie != interp) {
        return 0;
    }
    zombie = NULL;
    return 1;
}


/* --- Exit ---------------------------------------------------------------- */

/* The next interpreter after those that are left to others, or NULL. */
static PyInterpreterState *
next_interpreter(const int64_t *skip)
{
    PyInterpreterState *found = NULL;
    HEAD_LOCK(&_PyRuntime);
    for (PyInterpreterState *interp = _PyRuntime.interpreters.head;
         interp != NULL; interp = interp->next)
    {
        if (!_Py_IsMainInterpreter(interp) && interp->id > *skip
            && (found == NULL || interp->id < found->id))
        {
            found = interp;
        }
    }
    HEAD_UNLOCK(&_PyRuntime);
    return found;
}

static int
is_listed(int64_t id)
{
    int listed = 0;
    HEAD_LOCK(&_PyRuntime);
    for (PyInterpreterState *interp = _PyRuntime.interpreters.head;
         interp != NULL; interp = interp->next)
    {
        listed |= interp->id == id;
    }
    HEAD_UNLOCK(&_PyRuntime);
    return listed;
}

/* Some other thread is ending this one: give it time (L2). */
static void
wait_until_gone(PyThreadState *main_tstate, int64_t id)
{
    for (int64_t waited = 0; waited < _PyInterp_EXIT_WAIT_NS;
         waited += SLICE_NS)
    {
        if (!is_listed(id) || PyErr_CheckSignals() < 0) {
            break;
        }
        _PyThreadState_Detach(main_tstate);
        struct timespec pause = {0, SLICE_NS};
        (void)nanosleep(&pause, NULL);
        _PyThreadState_Attach(main_tstate);
    }
    if (PyErr_Occurred()) {
        PyErr_FormatUnraisable("Exception ignored while interpreter %lld "
                               "was ending", (long long)id);
    }
}

/* Called and returns with main_tstate attached. */
static int
wait_until_quiet(PyThreadState *main_tstate, PyInterpreterState *interp)
{
    int quiet = 0;
    for (int64_t waited = 0; !quiet && waited < _PyInterp_EXIT_WAIT_NS;
         waited += SLICE_NS)
    {
        _PyThreadState_Detach(main_tstate);
        quiet = _PyRWGIL_WaitQuiet(interp, SLICE_NS);
        _PyThreadState_Attach(main_tstate);
        if (!quiet && PyErr_CheckSignals() < 0) {
            PyErr_Clear();
            break;
        }
    }
    return quiet;
}

/* Its thread will exit at its next safepoint, if it ever gets there. */
static void
leave_behind(PyThreadState *main_tstate, PyInterpreterState *interp)
{
    PySys_FormatStderr(
        "interpreter %lld is still busy in C code at exit: left behind\n",
        (long long)interp->id);
    _PyInterpreterState_SetFinalizing(interp, main_tstate);
    HEAD_LOCK(&_PyRuntime);
    PyInterpreterState **p = &_PyRuntime.interpreters.head;
    while (*p != NULL && *p != interp) {
        p = &(*p)->next;
    }
    if (*p == interp) {
        *p = interp->next;
    }
    HEAD_UNLOCK(&_PyRuntime);
}

void
_PyInterp_EndAll(PyThreadState *main_tstate)
{
    exiting = 1;
    int left_behind = 0;
    int64_t skip = 0;
    PyInterpreterState *interp;
    while ((interp = next_interpreter(&skip)) != NULL) {
        skip = interp->id;
        if (interp->finalizing) {
            wait_until_gone(main_tstate, skip);
            continue;
        }
        if (interp->ceval.gil == NULL) {
            continue;           // never initialised
        }
        if (!wait_until_quiet(main_tstate, interp)) {
            leave_behind(main_tstate, interp);
            left_behind = 1;
            continue;
        }
        PyThreadState *tstate =
            _PyThreadState_NewBound(interp, _PyThreadState_WHENCE_FINI);
        if (tstate == NULL) {
            continue;           // no memory: finalize_subinterpreters() tries
        }
        _PyThreadState_Detach(main_tstate);
        _PyThreadState_Attach(tstate);
        Py_EndInterpreter(tstate);
        _PyThreadState_Attach(main_tstate);
    }
    if (left_behind) {
        recount_static_types(main_tstate->interp);
    }
    exiting = 0;
}
