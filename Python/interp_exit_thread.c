/* Threads that must not run Python code any more, and how they leave.  The contract
   is in pycore_interp_lifecycle.h.

   The base ends such a thread by pthread_exit(), which unwinds its stack.  That is
   good where there is nothing but C: the stack is freed, and whoever joins the thread
   learns that it has ended.  It is bad where a frame has something to do when it is
   unwound.  Of C++, destructors run without the interpreter's lock, and a function
   that is noexcept, as every destructor is, calls std::terminate(): the process
   aborts.  It does with Apache Arrow, whose pool threads let go of Python files when
   the call that they worked for is over, and the interpreter perhaps as well.  So when
   an interpreter is closed, a thread with such a frame waits for ever instead, as in
   CPython 3.14 every one does.  It needs its stack; and a pool lacks a thread.  When the
   runtime ends it is as in 3.13, for better or worse: a thread of std::thread has such a
   frame, too, and a program that joins it at exit must not hang.

   A frame has something to do if its function has a language-specific data area.
   Compilers write one for clean-ups, handlers and noexcept, and none for C.

   pthread_exit() gets its unwinder from libgcc_s.so.1, with dlopen(), and so is it
   done here: nothing is linked, or loaded, until a thread has to leave. */

#include "Python.h"
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_interp_lifecycle.h"
#include "pycore_lock.h"          // _PyMutex_LockTimed()
#include "pycore_parking_lot.h"   // _PyParkingLot_Park()
#include "pycore_pystate.h"       // _PyRuntimeState_GetFinalizing()
#include "pycore_runtime.h"       // _PyRuntime

#if defined(__GLIBC__) && defined(HAVE_DLOPEN)
#  include <dlfcn.h>              // dlopen()
#  include <unwind.h>             // _Unwind_Context
#  define PTHREAD_EXIT_UNWINDS
#endif
#ifdef HAVE_UNISTD_H
#  include <unistd.h>             // pause()
#endif

typedef struct {
    PyMutex *mutex;
    const int *handed_off;
} mutex_waiter;

/* What this thread has waited for, if it is attaching after that. */
static _Py_thread_local mutex_waiter *waiting;


/* --- Mutexes ------------------------------------------------------------- */

int
_PyInterp_ParkForMutex(PyMutex *m, const uint8_t *expected, PyTime_t timeout,
                       void *entry, const int *handed_off, int detach)
{
    // Parked without a thread state: what is in the parking lot's lists is on this
    // stack, and is not taken out if the thread leaves when it attaches in there.
    PyThreadState *tstate = detach ? _PyThreadState_GET() : NULL;
    if (tstate != NULL) {
        _PyThreadState_Detach(tstate);
    }
    int res = _PyParkingLot_Park(&m->_bits, expected, sizeof(*expected), timeout, entry,
                                 0);
    if (tstate != NULL) {
        mutex_waiter w = {m, handed_off};
        waiting = &w;
        _PyThreadState_Attach(tstate);
        waiting = NULL;
    }
    return res;
}

/* The thread has been given the mutex, or woken to try to get it: then others may
   sleep until somebody unlocks it. */
static void
pass_on(mutex_waiter *w)
{
    if (*w->handed_off
        || _PyMutex_LockTimed(w->mutex, 0, _Py_LOCK_DONT_DETACH) == PY_LOCK_ACQUIRED)
    {
        PyMutex_Unlock(w->mutex);
    }
}


/* --- Leaving ------------------------------------------------------------- */

#ifdef PTHREAD_EXIT_UNWINDS

typedef _Unwind_Reason_Code (*backtrace_func)(_Unwind_Trace_Fn, void *);
typedef void *(*data_area_func)(struct _Unwind_Context *);

typedef struct {
    data_area_func data_area;
    int found;
} search;

static _Unwind_Reason_Code
look_at_frame(struct _Unwind_Context *frame, void *arg)
{
    search *s = arg;
    if (s->data_area(frame) == NULL) {
        return _URC_NO_REASON;
    }
    s->found = 1;
    return _URC_NORMAL_STOP;
}

/* Has any function on the stack something to do when it is unwound? */
static int
unwinding_runs_code(void)
{
    void *library = dlopen("libgcc_s.so.1", RTLD_NOW);
    if (library == NULL) {
        return 1;                           // pthread_exit() would abort
    }
    backtrace_func backtrace = (backtrace_func)dlsym(library, "_Unwind_Backtrace");
    search s = {
        (data_area_func)dlsym(library, "_Unwind_GetLanguageSpecificData")
    };
    if (backtrace == NULL || s.data_area == NULL) {
        return 1;
    }
    (void)backtrace(look_at_frame, &s);
    return s.found;
}

#endif

void
_PyInterp_ExitThread(void)
{
    if (waiting != NULL) {
        pass_on(waiting);
        waiting = NULL;
    }
#ifdef PTHREAD_EXIT_UNWINDS
    // At the process's end it is as on the base: what joins its threads may rely on that.
    if (_PyRuntimeState_GetFinalizing(&_PyRuntime) == NULL && unwinding_runs_code()) {
        for (;;) {
            (void)pause();                  // signals are handled
        }
    }
#endif
    PyThread_exit_thread();
}
