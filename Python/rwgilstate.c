// PyGILState_Ensure() with several interpreters.
// The contract is in pycore_rwgilstate.h.
//
// The base has one thread-specific value for the whole process, the *latest*
// thread state: the one with which the thread was attached last, or NULL.  Ensure
// uses it.  When the code's owner is another interpreter than the latest state's,
// the thread goes *away*: it detaches, takes a state that it has in the owner or a
// new one, and a record remembers where it was.  Records are a stack per thread:
// a callback of A can lead to one of B, and that to one of A.
//
// Guarantees
//
//   GS-1  While a thread is attached its latest state is the current one.
//   GS-2  Ensure that went away is undone by the Release that pairs with it, even
//         if the state that it used is to stay: the thread is attached again if
//         it was, and its latest state is what it was.
//   GS-3  An interpreter to which a thread of another one has gone away is not
//         closed meanwhile ("interpreter running"), as with a call into it; if it has
//         come after that was found out, it is waited for (GS-4).  One
//         that only threads made by C are in can be closed; they leave when they
//         next want its lock (_PyInterp_ExitThread()).
//   GS-4  Before an interpreter's finalizing flag is set, who is waiting to get in is let
//         in, once, and calls that have begun are finished: for as long as PATIENCE_* say.
//   GS-5  A thread state is added only to an interpreter that is not finalizing,
//         and such an interpreter stays in memory until that is done.
//
// Obligations
//
//   Ensure and Release nest, in each thread.
//
// Which Release pairs?
//
//   gilstate_counter does not tell.  cffi increments it to keep a state, and has a
//   shortcut that increments it instead of calling Ensure.  What has to be found
//   is the Release that detaches for the Ensure that attached, so only those that
//   attach are counted, in the record (`depth`).  The shortcut can't attach unseen
//   by that count, since PyGILState_GetThisThreadState() hides a detached state
//   from code that is away.
//
// States that stay
//
//   If somebody has incremented the counter of a state, it is still there after
//   the Release that pairs.  The next Ensure for that owner must find it, or each
//   would leave another one.  A few are remembered per thread, by address and
//   id; whether it lives is looked up among the interpreter's states.
//
// Races
//
//   G1  The owner ends while its id is looked up: ending sets the finalizing flag,
//       then passes through HEAD_LOCK, then waits for `entering` to be zero.  Who
//       enters looks at the flag and increments `entering` under HEAD_LOCK.
//       At exit main's states are freed, after the same wait: whoever has entered finds
//       the runtime's flag, which is set before, and does not look at its state.  (Code
//       without an owner makes a state as on the base, uncounted.)
//   G2  The owner ends when the state exists: the end gives it up or waits for
//       it like any other thread's (Python/interp_lifecycle.c); take_gil() makes
//       the thread leave.
//   G3  Where the thread came from ends while it's away: the same, when it wants
//       to go back.

#include "Python.h"
#include "pycore_ceval.h"         // _PyEval_ThreadsInitialized()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_interp_lifecycle.h"  // _PyInterp_ExitThread()
#include "pycore_pystate.h"       // HEAD_LOCK()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwextcopy.h"     // _PyRWExt_InterpreterOfAddress()
#include "pycore_rwgilstate.h"

#ifdef HAVE_SCHED_H
#  include <sched.h>              // sched_yield()
#endif

typedef struct away_record {
    struct away_record *below;
    PyThreadState *tstate;      // in use since
    PyThreadState *from;        // the latest state before
    int from_attached;
    int is_froms;               // tstate is some record's `from`
    int depth;                  // attaching Ensures not yet released, this one too
} away_record;

typedef struct {
    PyThreadState *tstate;      // may be dangling, or another one by now
    uint64_t id;                // unique in its interpreter
    int64_t interp;             // unique in the process
} kept_state;

#define MAX_KEPT 8              // interpreters that a thread calls back by turns

/* For how long a closing interpreter waits, beside the time that it takes to get its lock
   back: for threads of C in a call or at the door; for those that may be in a call, or
   have a state and keep it for later; and for threads of other interpreters. */
#define PATIENCE_NS (500LL * 1000 * 1000)
#define PATIENCE_FOR_KEPT_NS (20LL * 1000 * 1000)
#define PATIENCE_FOR_PYTHON_NS (5LL * 1000 * 1000 * 1000)
#define PATIENCE_SLICE_NS (500 * 1000)

static _Py_thread_local away_record *away;
static _Py_thread_local kept_state kept[MAX_KEPT];
static _Py_thread_local unsigned int next_kept;

static int entering;            // incremented under HEAD_LOCK, else atomic


static PyThreadState *
latest(void)
{
    return (PyThreadState *)PyThread_tss_get(&_PyRuntime.autoTSSkey);
}

static void
set_latest(PyThreadState *tstate)
{
    PyThreadState *old = latest();
    if (old != NULL) {
        old->_status.bound_gilstate = 0;
    }
    if (PyThread_tss_set(&_PyRuntime.autoTSSkey, tstate) != 0) {
        Py_FatalError("no memory for thread-specific data");
    }
    tstate->_status.bound_gilstate = 1;
}


/* --- Going away ---------------------------------------------------------- */

/* A state of this thread in the owner that is suspended below on the C stack. */
static PyThreadState *
find_suspended(int64_t owner)
{
    for (away_record *r = away; r != NULL; r = r->below) {
        if (r->from->interp->id == owner) {
            return r->from;
        }
    }
    return NULL;
}

/* The interpreter, or NULL if it is ending or has ended.  HEAD_LOCK is held. */
static PyInterpreterState *
find_open(int64_t id)
{
    PyInterpreterState *interp = _PyRuntime.interpreters.head;
    while (interp != NULL && interp->id != id) {
        interp = interp->next;
    }
    if (interp != NULL && _PyInterpreterState_GetFinalizing(interp) != NULL) {
        interp = NULL;
    }
    return interp;
}

/* HEAD_LOCK is held. */
static PyThreadState *
find_kept(PyInterpreterState *interp)
{
    for (int i = 0; i < MAX_KEPT; i++) {
        if (kept[i].tstate == NULL || kept[i].interp != interp->id) {
            continue;
        }
        for (PyThreadState *p = interp->threads.head; p; p = p->next) {
            if (p == kept[i].tstate && p->id == kept[i].id) {
                return p;
            }
        }
        kept[i].tstate = NULL;
    }
    return NULL;
}

static void
keep(PyThreadState *tstate)
{
    int unused = -1;
    for (int i = 0; i < MAX_KEPT; i++) {
        if (kept[i].interp == tstate->interp->id && kept[i].tstate == tstate) {
            unused = i;
            break;
        }
        if (kept[i].tstate == NULL) {
            unused = i;
        }
    }
    if (unused < 0) {
        unused = next_kept++ % MAX_KEPT;
    }
    kept[unused] = (kept_state){tstate, tstate->id, tstate->interp->id};
}

/* A state of this thread in the owner, or NULL if the owner is ending or has
   ended.  A new one has no Ensure counted yet.  Unless it is NULL, the caller says
   has_entered() when it will no longer look at the state without the lock. */
static PyThreadState *
state_in(int64_t owner, int whence)
{
    PyThreadState *tstate = NULL;
    HEAD_LOCK(&_PyRuntime);
    PyInterpreterState *interp = find_open(owner);
    if (interp != NULL) {
        _Py_atomic_add_int(&entering, 1);       // G1
        tstate = find_kept(interp);
        if (tstate != NULL) {
            tstate->_whence = whence;
        }
    }
    HEAD_UNLOCK(&_PyRuntime);
    if (interp == NULL || tstate != NULL) {
        return tstate;
    }
    // The hook of tracemalloc would wait for main's lock, and main for `entering`.
    int paused = _PyInterp_PauseTracing();
    tstate = _PyThreadState_NewBound(interp, whence);
    _PyInterp_ResumeTracing(paused);
    if (tstate == NULL) {
        Py_FatalError("Couldn't create thread-state for new thread");
    }
    _Py_atomic_store_int_relaxed(&tstate->gilstate_counter, 0);     // at the door
    return tstate;
}

static void
has_entered(void)
{
    _Py_atomic_add_int(&entering, -1);
}

/* The owner has gone. */
static void _Py_NO_RETURN
give_up(PyThreadState *tcur)
{
    PyThreadState *first = tcur;
    for (away_record *r = away; r != NULL; r = r->below) {
        first = r->from;
    }
    if (first != NULL && first->_whence != _PyThreadState_WHENCE_GILSTATE) {
        _Py_FatalErrorFunc("PyGILState_Ensure",
                           "called by code of an interpreter that has ended");
    }
    if (tcur != NULL && tcur == _PyThreadState_GET()) {
        (void)PyEval_SaveThread();
    }
    _PyInterp_ExitThread();
}

/* Nothing that can call Ensure again (hooks of the allocator can) is called once
   the thread has begun to change its state. */
static PyThreadState *
go_away(int64_t owner, PyThreadState *tcur)
{
    away_record *r = PyMem_RawCalloc(1, sizeof(away_record));
    if (r == NULL) {
        Py_FatalError("no memory to change interpreters");
    }
    r->tstate = find_suspended(owner);
    r->is_froms = r->tstate != NULL;
    if (!r->is_froms) {
        r->tstate = state_in(owner, _PyThreadState_WHENCE_EXEC);    // GS-3
    }
    if (r->tstate == NULL) {
        PyMem_RawFree(r);
        give_up(tcur);
    }
    r->from = tcur;
    r->from_attached = tcur == _PyThreadState_GET();
    r->depth = 1;
    if (r->from_attached) {
        (void)PyEval_SaveThread();
    }
    set_latest(r->tstate);
    if (!r->is_froms) {
        has_entered();
    }
    r->below = away;
    away = r;
    return r->tstate;
}

void
_PyRWGILState_BeforeEnsure(void)
{
    if (_PyRuntimeState_GetFinalizing(&_PyRuntime) != NULL
        && _PyThreadState_GET() == NULL
        && _PyRuntimeState_GetFinalizingID(&_PyRuntime) != PyThread_get_thread_ident())
    {
        _PyInterp_ExitThread();
    }
}

PyThreadState *
_PyRWGILState_Enter(int64_t owner, PyThreadState *tcur)
{
    if (owner >= 0 && tcur != NULL && tcur->interp->id != owner) {
        return go_away(owner, tcur);
    }
    int will_attach = tcur == NULL || tcur != _PyThreadState_GET();
    if (away != NULL && will_attach) {
        away->depth++;
    }
    if (owner >= 0 && tcur == NULL) {
        tcur = state_in(owner, _PyThreadState_WHENCE_GILSTATE);
        if (tcur == NULL) {
            give_up(NULL);
        }
        if (latest() == NULL) {
            set_latest(tcur);           // it was kept
        }
        has_entered();
    }
    return tcur;
}


/* --- Coming back --------------------------------------------------------- */

static void
come_back(away_record *r)
{
    PyThreadState *left = latest();
    if (left == r->tstate && !r->is_froms) {
        // Release would have deleted it, but somebody wants it to stay.
        left->gilstate_counter = 1;
        HEAD_LOCK(&_PyRuntime);
        left->_whence = _PyThreadState_WHENCE_GILSTATE;
        HEAD_UNLOCK(&_PyRuntime);
        keep(left);
    }
    if (r->from_attached) {
        PyEval_RestoreThread(r->from);
    }
    else if (r->from != left) {
        set_latest(r->from);
    }
}

void
_PyRWGILState_Leave(void)
{
    away_record *r = away;
    if (r == NULL || --r->depth > 0) {
        return;
    }
    away = r->below;
    come_back(r);
    PyMem_RawFree(r);
}


/* --- The rest ------------------------------------------------------------ */

PyGILState_STATE
PyGILState_Ensure(void)
{
    const void *pc = _PyRWGILState_CALLER();
    return _PyRWGILState_EnsureIn(_PyRWExt_InterpreterOfAddress(pc));
}

PyThreadState *
_PyRWGILState_Visible(PyThreadState *tcur, const void *pc)
{
    if (tcur == NULL) {
        return NULL;
    }
    if (away != NULL && tcur != _PyThreadState_GET()) {
        return NULL;
    }
    int64_t owner = _PyRWExt_InterpreterOfAddress(pc);
    return owner < 0 || owner == tcur->interp->id ? tcur : NULL;
}

int
_PyRWGILState_MayEnsure(const void *pc)
{
    int64_t owner = _PyRWExt_InterpreterOfAddress(pc);
    PyThreadState *tstate = _PyThreadState_GET();
    if (owner < 0 || (tstate != NULL && tstate->interp->id == owner)) {
        return 1;
    }
    HEAD_LOCK(&_PyRuntime);
    int may = find_open(owner) != NULL;
    HEAD_UNLOCK(&_PyRuntime);
    return may;
}

int
_PyRWGILState_IsAway(void)
{
    return away != NULL;
}

void
_PyRWGILState_WaitEntering(void)
{
    HEAD_LOCK(&_PyRuntime);             // G1
    HEAD_UNLOCK(&_PyRuntime);
    while (_Py_atomic_load_int(&entering) != 0) {
#ifdef HAVE_SCHED_H
        sched_yield();
#endif
    }
}

/* For how long a closing interpreter has to wait, from the beginning: 0 if nobody else
   is there who should be let in or let finish.  Who is at the door counts if the id of
   its state is at most `last`.  HEAD_LOCK and the interpreter's lock are held. */
static PyTime_t
get_patience(const PyThreadState *closing, uint64_t last)
{
    PyTime_t patience = 0;
    for (PyThreadState *p = closing->interp->threads.head; p != NULL; p = p->next) {
        PyTime_t ns = 0;
        int counted = _Py_atomic_load_int_relaxed(&p->gilstate_counter);
        if (p->thread_id == closing->thread_id) {
            continue;
        }
        if (p->_whence == _PyThreadState_WHENCE_EXEC) {
            // It came by a callback, after _PyInterp_BeginEnd(): GS-3.
            ns = _PyInterp_IsExiting() ? 0 : PATIENCE_FOR_PYTHON_NS;
        }
        else if (p->_whence != _PyThreadState_WHENCE_GILSTATE) {
            continue;
        }
        else if (p->current_frame != NULL || (counted == 0 && p->id <= last)) {
            ns = PATIENCE_NS;
        }
        else if (counted != 0) {
            ns = PATIENCE_FOR_KEPT_NS;      // in C code, or nowhere
        }
        patience = ns > patience ? ns : patience;
    }
    return patience;
}

void
_PyRWGILState_LastCall(PyThreadState *tstate)
{
    PyInterpreterState *interp = tstate->interp;
    struct timespec slice = {0, PATIENCE_SLICE_NS};
    PyTime_t began = 0, now = 0;
    uint64_t last = UINT64_MAX;
    (void)PyTime_MonotonicRaw(&began);
    for (;;) {
        _PyRWGILState_WaitEntering();
        (void)PyTime_MonotonicRaw(&now);
        HEAD_LOCK(&_PyRuntime);
        if (last == UINT64_MAX) {
            last = interp->threads.next_unique_id;
        }
        PyTime_t patience = get_patience(tstate, last);
        int over = now - began >= patience;
        if (patience == 0 && now - began < PATIENCE_NS
            && _Py_atomic_load_int(&entering) != 0)
        {
            over = 0;                       // it may be here
        }
        if (over) {
            // From now on nobody gets in.
            _PyInterpreterState_SetFinalizing(interp, tstate);
        }
        HEAD_UNLOCK(&_PyRuntime);
        if (over) {
            return;
        }
        if (patience > 0) {
            _PyThreadState_Detach(tstate);
            (void)nanosleep(&slice, NULL);
            _PyThreadState_Attach(tstate);
        }
    }
}

void
_PyRWGILState_AfterFork(void)
{
    _Py_atomic_store_int(&entering, 0);
}
