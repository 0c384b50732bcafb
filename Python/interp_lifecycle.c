/* How interpreters end when others still live.  The contract is in
   pycore_interp_lifecycle.h.

   A thread that is in an interpreter when it ends can be anywhere: waiting for
   the interpreter's lock, blocked outside it, or (at exit only) deep in C code
   with the lock held.  Sooner or later it takes the lock or comes to a
   safepoint, where _PyThreadState_MustExit() sends it away.  Until then it
   must be able to read its thread state, the finalizing flag and the lock.
   So neither is freed: the thread states are cleared and moved to a list of
   their own, and the interpreter state becomes a *zombie*: everything in it is
   finalised, but its memory, its lock and its RW-GIL slot stay.  This costs
   about 200 KB each time that an interpreter is closed on top of running
   threads, and nothing else does.

   Every interpreter is ended by one thread only: the one that sets `finalizing`
   to ENDING under HEAD_LOCK (_PyInterp_BeginEnd).  Until then an interpreter may
   go away whenever HEAD_LOCK is free, so the exit names it by its id.

   Races
     L1  the thread runs again between the flag and the pruning: it can't, the
         caller holds the interpreter's lock
     L2  two threads end the same interpreter: the second one gets an error; at
         exit it waits for the first, for a bounded time, and then leaves the
         interpreter behind; should the first get on with it after all, it stops
         where it would prune or delete
     L3  an interpreter is created while all are being ended: it is ended as
         well, once it is whole.  Its maker holds no lock, before it is listed
         either: so makers are counted.  After a while no more may begin, or the
         exit would never catch up; when there are neither, creation is closed,
         before HEAD_LOCK is dropped
     L4  a destructor that runs while threads are pruned ends another
         interpreter: what became of an interpreter is noted in itself
     L5  a thread comes to its last safepoint just before it is left behind: it
         is asked again when the flag is set
     L6  a thread that has left an interpreter for good still has to delete its
         thread state there: it's in a list, if not in the interpreter's
     L7  a thread enters an interpreter that another one is about to end: who
         has a thread state to run code with keeps it from ending, who comes
         later does not find it
     L8  a thread has unlinked its thread state and holds the interpreter's lock no
         longer, but has still to free the state, which says in which interpreter
         it was, or is part of it: it's counted, and whoever frees the interpreter
         waits
     L9  a thread that has just been started binds its thread state, without any
         lock, while that is being given up: it's counted, and binds it only if
         the flag is not set yet; whoever has set the flag waits
     L10 a thread waits, detached, for a mutex that others want as well, gets it,
         and exits when it attaches again: it passes the mutex on
         (Python/interp_exit_thread.c)
*/

#include "Python.h"
#include "pycore_fileutils.h"     // _Py_write_noraise()
#include "pycore_initconfig.h"    // _PyStatus_ERR()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_interp_lifecycle.h"
#include "pycore_memheap.h"       // _PyMemHeap_Close()
#include "pycore_pystate.h"       // _PyThreadState_Attach()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwgil.h"         // _PyRWGIL_WaitQuiet()
#include "pycore_rwgilstate.h"    // _PyRWGILState_IsAway()

#ifdef HAVE_SCHED_H
#  include <sched.h>              // sched_yield()
#endif

/* How long one look at a busy interpreter takes; Ctrl-C works in between. */
#define SLICE_NS (50 * 1000 * 1000)

/* Values of PyInterpreterState.finalizing; the base knows zero and others. */
#define ENDING 1
#define ZOMBIE 2                // ending, has given up threads
#define LEFT_BEHIND 3           // by the exit, and no longer listed
/* Main's only. */
#define CLOSING 4               // the exit has had enough of new interpreters
#define CLOSED 5                // it has ended all

/* Value of PyInterpreterState._ready; the base knows zero and others, and sets 1
   as soon as the structure exists. */
#define WHOLE 2

/* Set while the runtime's finalisation ends interpreters; atomic. */
static int exiting;

/* Threads that are making interpreters; guarded by HEAD_LOCK. */
static int making;

/* Threads that are binding their first thread state; atomic. */
static int starting;

/* Threads that are leaving interpreters, by the interpreter's id; atomic. */
#define LEAVING 64
static int leaving[LEAVING];

/* The head of the list of thread states that were given up, guarded by
   HEAD_LOCK.  Only its `next` means anything; it is there to be the `prev` of
   the first one, so that whoever deletes that does not take it for the first
   of its interpreter. */
static PyThreadState given_up;


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
    if (_PyRWGILState_IsAway()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "fork is not supported in a callback that another "
                        "interpreter waits for");
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
    for (PyInterpreterState *interp = interpreters->head;
         interp != NULL && _PyRWGIL_ForkedQuietly(); interp = interp->next)
    {
        // All but main's.  A heap that was being changed is of no use.
        _PyMemHeap_Close(interp);
    }
    interpreters->head = main_interp;
    main_interp->next = NULL;
    making = 0;                                 // such threads don't exist here
    HEAD_UNLOCK(&_PyRuntime);
    _PyRWGILState_AfterFork();
    memset(leaving, 0, sizeof(leaving));        // nor do these
    starting = 0;                               // nor these
    if (!alone) {
        recount_static_types(main_interp);
    }
}


/* --- Making -------------------------------------------------------------- */

int
_PyInterp_BeginMaking(long whence, PyStatus *status)
{
    // What the finalising thread makes, finalize_subinterpreters() ends.
    int mine = _PyRuntimeState_GetFinalizingID(&_PyRuntime)
               == PyThread_get_thread_ident();
    HEAD_LOCK(&_PyRuntime);
    // Without main, nothing is left of the runtime.
    PyInterpreterState *main_interp = _PyRuntime.interpreters.main;
    int stage = main_interp != NULL ? main_interp->finalizing : CLOSED;
    int refused = !mine && (stage == CLOSING || stage == CLOSED);
    making += !refused;
    HEAD_UNLOCK(&_PyRuntime);
    if (!refused) {
        return 0;
    }
    if (stage == CLOSED) {
        _PyInterp_ExitThread();     // as if it had wanted a lock
    }
    *status = whence == _PyInterpreterState_WHENCE_LEGACY_CAPI
              ? _PyStatus_OK()      // Py_NewInterpreter(), which returns NULL
              : _PyStatus_ERR("no interpreter can be created at exit");
    return -1;
}

void
_PyInterp_EndMaking(PyInterpreterState *interp)
{
    HEAD_LOCK(&_PyRuntime);
    making--;
    if (interp != NULL) {
        interp->_ready = WHOLE;
    }
    HEAD_UNLOCK(&_PyRuntime);
}


/* --- Closing ------------------------------------------------------------- */

/* HEAD_LOCK is held. */
static PyInterpreterState *
find(int64_t id)
{
    PyInterpreterState *interp = _PyRuntime.interpreters.head;
    while (interp != NULL && interp->id != id) {
        interp = interp->next;
    }
    return interp;
}

static int
not_found(int64_t id)
{
    PyErr_Format(PyExc_InterpreterNotFoundError,
                 "interpreter %lld does not exist or is being closed",
                 (long long)id);
    return -1;
}

int
_PyInterp_CheckOpen(PyInterpreterState *interp)
{
    if (interp == _PyInterpreterState_GET() || _Py_IsMainInterpreter(interp)) {
        return 0;
    }
    HEAD_LOCK(&_PyRuntime);
    int ending = interp->finalizing;
    HEAD_UNLOCK(&_PyRuntime);
    return ending ? not_found(interp->id) : 0;
}

PyInterpreterState *
_PyInterp_TakeOver(int64_t id)
{
    HEAD_LOCK(&_PyRuntime);
    PyInterpreterState *interp = find(id);
    if (interp != NULL) {
        if (interp->finalizing) {
            interp = NULL;
        }
        else {
            interp->finalizing = ENDING;
        }
    }
    HEAD_UNLOCK(&_PyRuntime);
    return interp;
}

int
_PyInterp_BeginEnd(int64_t id)
{
    int running = 0;
    HEAD_LOCK(&_PyRuntime);
    PyInterpreterState *interp = find(id);
    if (interp != NULL && interp->finalizing) {
        interp = NULL;
    }
    if (interp != NULL) {
        for (PyThreadState *p = interp->threads.head; p; p = p->next) {
            running |= p->_whence == _PyThreadState_WHENCE_EXEC;    // L7
        }
        if (!running) {
            interp->finalizing = ENDING;
        }
    }
    HEAD_UNLOCK(&_PyRuntime);
    if (running) {
        PyErr_SetString(PyExc_InterpreterError, "interpreter running");
        return -1;
    }
    return interp == NULL ? not_found(id) : 0;
}


/* --- Threads that have just been started --------------------------------- */

int
_PyInterp_BindStarted(PyThreadState *tstate)
{
    _Py_atomic_add_int(&starting, 1);
    int exits = _PyThreadState_MustExit(tstate);
    if (!exits) {
        _PyThreadState_Bind(tstate);
    }
    _Py_atomic_add_int(&starting, -1);
    return exits ? -1 : 0;
}

void
_PyInterp_WaitStarting(void)
{
    _Py_atomic_fence_seq_cst();     // between the flag and the look: L9
    while (_Py_atomic_load_int(&starting) != 0) {
#ifdef HAVE_SCHED_H
        sched_yield();
#endif
    }
}


/* --- Threads that are left in an interpreter ----------------------------- */

int
_PyInterp_IsExiting(void)
{
    return _Py_atomic_load_int_relaxed(&exiting);
}

int
_PyInterp_MayPrune(PyInterpreterState *interp)
{
    return _PyInterp_IsExiting()
           || _PyInterpreterState_GetWhence(interp)
              == _PyInterpreterState_WHENCE_STDLIB;
}

/* In thread states of the calling thread nobody can be but that thread, which
   is here: they need not be kept. */
static void
delete_own(PyThreadState *tstate)
{
    PyThreadState *p = tstate->interp->threads.head;
    while (p != NULL) {
        PyThreadState *own = p;
        p = p->next;
        if (own != tstate && own->thread_id == tstate->thread_id) {
            PyThreadState_Clear(own);
            PyThreadState_Delete(own);
            p = tstate->interp->threads.head;   // destructors may start threads
        }
    }
}

/* Move all thread states but this one to the list of those that are given up.
   Returns whether there are any. */
static int
give_up_others(PyThreadState *tstate)
{
    PyThreadState *list = _PyThreadState_RemoveExcept(tstate);
    if (list == NULL) {
        return 0;
    }
    HEAD_LOCK(&_PyRuntime);
    PyThreadState *last = list;
    while (last->next != NULL) {
        last = last->next;
    }
    last->next = given_up.next;
    if (last->next != NULL) {
        last->next->prev = last;
    }
    given_up.next = list;
    list->prev = &given_up;
    if (tstate->interp->finalizing != LEFT_BEHIND) {
        tstate->interp->finalizing = ZOMBIE;
    }
    HEAD_UNLOCK(&_PyRuntime);
    return 1;
}

/* One that nobody has cleared, or NULL.  Its thread can't do it any more. */
static PyThreadState *
next_given_up(PyInterpreterState *interp)
{
    HEAD_LOCK(&_PyRuntime);
    PyThreadState *p = given_up.next;
    while (p != NULL && (p->interp != interp || p->_status.cleared)) {
        p = p->next;
    }
    HEAD_UNLOCK(&_PyRuntime);
    return p;
}

void
_PyInterp_PruneThreads(PyThreadState *tstate)
{
    PyInterpreterState *interp = tstate->interp;
    assert(_PyInterpreterState_GetFinalizing(interp) == tstate);
    if (_PyInterp_IsLeftBehind(interp)) {       // L2
        _PyThreadState_Detach(tstate);
        _PyInterp_ExitThread();
    }
    _PyRWGILState_WaitEntering();
    _PyInterp_WaitStarting();
    delete_own(tstate);
    _PyInterpreterState_ReinitRunningMain(tstate);
    if (give_up_others(tstate)) {
        PyThreadState *p;
        while ((p = next_given_up(interp)) != NULL) {
            PyThreadState_Clear(p);         // may run destructors
        }
    }
}

int *
_PyInterp_BeginLeaving(PyInterpreterState *interp)
{
    int *counter = &leaving[interp->id % LEAVING];
    _Py_atomic_add_int(counter, 1);
    return counter;
}

void
_PyInterp_EndLeaving(int *counter)
{
    _Py_atomic_add_int(counter, -1);
}

void
_PyInterp_WaitLeaving(PyInterpreterState *interp)
{
    while (_Py_atomic_load_int(&leaving[interp->id % LEAVING]) != 0) {      // L8
#ifdef HAVE_SCHED_H
        sched_yield();
#endif
    }
}

int
_PyInterp_IsZombie(PyInterpreterState *interp)
{
    return interp->finalizing == ZOMBIE;
}

int
_PyInterp_IsLeftBehind(PyInterpreterState *interp)
{
    return interp->finalizing == LEFT_BEHIND;
}


/* --- Exit ---------------------------------------------------------------- */

/* HEAD_LOCK is held. */
static void
close_making(int stage)
{
    _PyRuntime.interpreters.main->finalizing = stage;
}

/* The next interpreter after those that have been dealt with.  0: there is none
   yet, but one is being made, and `patient`.  -1: there is none and will be none, as
   creation is closed now.  `late`: nobody else may begin to make one. */
static int64_t
next_interpreter(int64_t last, int late, int patient)
{
    int64_t next = -1;
    HEAD_LOCK(&_PyRuntime);
    for (PyInterpreterState *interp = _PyRuntime.interpreters.head;
         interp != NULL; interp = interp->next)
    {
        if (!_Py_IsMainInterpreter(interp) && interp->id > last
            && (next < 0 || interp->id < next))
        {
            next = interp->id;
        }
    }
    if (next < 0 && making > 0 && patient) {
        next = 0;
    }
    if (next < 0) {
        close_making(CLOSED);                   // L3
    }
    else if (late) {
        close_making(CLOSING);
    }
    HEAD_UNLOCK(&_PyRuntime);
    return next;
}

typedef struct {
    int ready;                  // listed, and perhaps somebody makes it
    int whole;                  // nobody makes it or ends it
    uint32_t slot;              // of its lock if it is whole
} view;

static view
look_at(int64_t id)
{
    view v = {0};
    HEAD_LOCK(&_PyRuntime);
    PyInterpreterState *interp = find(id);
    if (interp != NULL && (interp->_ready || making > 0)) {
        v.ready = 1;
        if (interp->_ready == WHOLE && !interp->finalizing) {
            v.whole = 1;
            v.slot = _PyRWGIL_SlotIndex(interp->ceval.gil);
        }
    }
    HEAD_UNLOCK(&_PyRuntime);
    return v;
}

static int
interrupted(void)
{
    if (PyErr_CheckSignals() < 0) {
        PyErr_Clear();
        return 1;
    }
    return 0;
}

static PyTime_t
get_time(void)
{
    PyTime_t now = 0;
    (void)PyTime_MonotonicRaw(&now);
    return now;
}

/* One slice, without the main interpreter's lock. */
static void
pause_for_others(PyThreadState *main_tstate)
{
    struct timespec slice = {0, SLICE_NS};
    _PyThreadState_Detach(main_tstate);
    (void)nanosleep(&slice, NULL);
    _PyThreadState_Attach(main_tstate);
}

/* Wait, without the main interpreter's lock, until nobody else makes or ends
   this interpreter and nobody runs in it.  Returns 0 after
   _PyInterp_EXIT_WAIT_NS or Ctrl-C, else 1 and the interpreter, which is now
   this thread's to end, or NULL if it is gone or an empty shell. */
static int
wait_for(PyThreadState *main_tstate, int64_t id, PyInterpreterState **interp)
{
    uint32_t own_slot = _PyRWGIL_SlotIndex(main_tstate->interp->ceval.gil);
    int64_t waited = 0;
    for (;;) {
        view v = look_at(id);
        if (!v.ready) {
            *interp = NULL;
            return 1;
        }
        // With a shared lock it's quiet: this thread has the lock.
        int quiet = v.whole && v.slot == own_slot;
        if (!v.whole) {
            pause_for_others(main_tstate);
        }
        else if (!quiet) {
            _PyThreadState_Detach(main_tstate);
            quiet = _PyRWGIL_WaitQuiet(v.slot, SLICE_NS);
            _PyThreadState_Attach(main_tstate);
        }
        if (quiet && (*interp = _PyInterp_TakeOver(id)) != NULL) {
            return 1;
        }
        waited += SLICE_NS;
        if (interrupted() || waited > _PyInterp_EXIT_WAIT_NS) {
            return 0;
        }
    }
}

/* Its threads will exit at their next safepoint, if they ever get there.
   Returns 0 if the interpreter has gone in the meantime. */
static int
leave_behind(PyThreadState *main_tstate, int64_t id)
{
    uint32_t slot = _PyRWGIL_SlotIndex(main_tstate->interp->ceval.gil);
    uint32_t own_slot = slot;
    int left = 0;
    HEAD_LOCK(&_PyRuntime);
    for (PyInterpreterState **p = &_PyRuntime.interpreters.head; *p != NULL;
         p = &(*p)->next)
    {
        PyInterpreterState *interp = *p;
        if (interp->id == id) {
            left = 1;
            interp->finalizing = LEFT_BEHIND;
            _PyInterpreterState_SetFinalizing(interp, main_tstate);
            // Its thread may allocate when what PyGILState_Check() looks at has
            // gone; debug builds ask that for each allocation.
            _Py_atomic_store_int_relaxed(&_PyRuntime.gilstate.check_enabled, 0);
            if (interp->ceval.gil != NULL) {
                slot = _PyRWGIL_SlotIndex(interp->ceval.gil);
            }
            *p = interp->next;
            break;
        }
    }
    HEAD_UNLOCK(&_PyRuntime);
    if (slot != own_slot) {
        (void)_PyRWGIL_WaitQuiet(slot, 0);      // L5
    }
    if (left) {
        // Not by sys.stderr, whose write() another Ctrl-C would cut short.
        char message[100];
        int n = PyOS_snprintf(
            message, sizeof(message),
            "interpreter %lld is still busy in C code at exit: left behind\n",
            (long long)id);
        (void)_Py_write_noraise(fileno(stderr), message, (size_t)n);
    }
    return left;
}

void
_PyInterp_EndAll(PyThreadState *main_tstate)
{
    _Py_atomic_store_int_relaxed(&exiting, 1);
    int left_behind = 0, late = 0, patient = 1;
    PyTime_t began = get_time();
    int64_t last = 0, waited = 0, id;
    while ((id = next_interpreter(last, late, patient)) >= 0) {
        late = get_time() - began > _PyInterp_EXIT_MAKING_NS;
        if (id == 0) {
            pause_for_others(main_tstate);
            waited += SLICE_NS;
            patient = !interrupted() && waited <= _PyInterp_EXIT_WAIT_NS;
            continue;
        }
        last = id;
        PyInterpreterState *interp;
        if (!wait_for(main_tstate, id, &interp)) {
            left_behind |= leave_behind(main_tstate, id);
            continue;
        }
        if (interp == NULL) {
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
    _Py_atomic_store_int_relaxed(&exiting, 0);
}


/* --- Memory that is allocated under HEAD_LOCK ------------------------------- */

int
_PyInterp_PauseTracing(void)
{
    Py_tss_t *key = &_PyRuntime.tracemalloc.reentrant_key;
    if (!_PyRuntime.tracemalloc.config.tracing || !PyThread_tss_is_created(key)
        || PyThread_tss_get(key) != NULL)
    {
        return 0;
    }
    // What tracemalloc itself sets while it allocates.
    return PyThread_tss_set(key, Py_True) == 0;
}

void
_PyInterp_ResumeTracing(int paused)
{
    if (paused) {
        (void)PyThread_tss_set(&_PyRuntime.tracemalloc.reentrant_key, NULL);
    }
}
