// The RW-GIL: a read/write lock over all interpreters' heaps.
//
// Running Python is reading, moving objects between interpreters is writing.
// This header is the whole contract; Python/rwgil.c has the protocol, its
// states and its races.
//
// Terms
//
//   heap of X   all objects that interpreter X owns
//   slot        a record per lock that serialises an interpreter, that is per
//               _gil_runtime_state.  Legacy subinterpreters that share a lock
//               share its slot.
//   safepoint   a point where a thread that runs Python gives up its slot,
//               because a writer asked, and takes it back when that is done
//
// Invariants (code, asserts and tests cite the numbers)
//
//   RW-1  A thread that runs Python holds its interpreter's lock and, through
//         it, its slot for reading.
//   RW-2  The owner of an object changes only in a write section that covers
//         every heap it touches.
//   RW-3  A write section names its heaps: own, a pair, or all.  Readers of
//         other heaps run on.
//   RW-4  In a write section there is no Python code, no destructor, no
//         import, no collection, no blocking call, and no taking of a lock
//         that a reader may hold.  It is short and bounded.
//   RW-5  A waiter for the write side is not a reader: it gives up its own
//         slot while it waits, so that two writers can't wait for each other.
//   RW-6  Nothing waits without bound: Ctrl-C and finalisation reach every
//         wait that Python code entered.
//
// Lock order: import lock, write section, HEAD_LOCK, slot->gate, gil->mutex,
// slot->mutex.  Take a write section before, never while holding, any of those
// to its right.

#ifndef Py_INTERNAL_RWGIL_H
#define Py_INTERNAL_RWGIL_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_gil.h"           // struct _gil_runtime_state

#include <stdint.h>

/* Modes: what a write section over "own" or "a pair" covers. */
typedef enum {
    _PyRWGIL_MODE_PAIR = 0,     // just the heaps that it names (the default)
    _PyRWGIL_MODE_GLOBAL = 1,   // all heaps (-X rwgil=global), to measure against
} _PyRWGIL_Mode;

#define _PyRWGIL_SPAN_ALL (-1)

/* A write section: lives on the C stack of the thread that holds it.
   The fields belong to rwgil.c. */
typedef struct {
    int32_t slots[2];           // slot indexes in ascending order, -1: none
    int32_t span;               // slots in use, or _PyRWGIL_SPAN_ALL
    int32_t own;                // the writer's own slot
    int64_t begun;              // monotonic ns at which the section was entered
} _PyRWGIL_Section;

/* Enter a write section over the heap of the current interpreter, that heap
   and another's, or all heaps.  The caller is attached, holds no mutex, and
   leaves its objects in a state that another writer may look at, since one can
   get in while this one waits.

   Returns 0; then everything up to _PyRWGIL_WriteEnd() is under RW-4.
   Returns -1 with an exception set when a signal handler raised during the
   wait (KeyboardInterrupt), or when the other interpreter ends or has ended
   (InterpreterNotFoundError).  The own form can only fail in global mode.

   In WritePair() `other` may be NULL or the current interpreter (then it's
   own), and the caller keeps it alive, for example by a thread state of its own
   in it.  WritePairID() needs no such thing: when it succeeds, *other lives
   and does not begin to finalise before WriteEnd(). */
PyAPI_FUNC(int) _PyRWGIL_WriteOwn(_PyRWGIL_Section *);
PyAPI_FUNC(int) _PyRWGIL_WritePair(_PyRWGIL_Section *, PyInterpreterState *other);
PyAPI_FUNC(int) _PyRWGIL_WritePairID(_PyRWGIL_Section *, int64_t id,
                                     PyInterpreterState **other);
PyAPI_FUNC(int) _PyRWGIL_WriteAll(_PyRWGIL_Section *);

/* Leave it.  Returns as a reader again.  Never fails, keeps errno. */
PyAPI_FUNC(void) _PyRWGIL_WriteEnd(_PyRWGIL_Section *);

/* True while the calling thread is in a write section; for asserts. */
PyAPI_FUNC(int) _PyRWGIL_InWrite(void);


/* --- Reading: called by take_gil() and drop_gil() only ------------------- */

/* To read takes no step of its own: who holds the interpreter's lock reads.
   Only from the moment that a writer comes for a heap until the lock is next
   taken without one, the holder says in the slot what it does; the lock is
   WATCHED then.  The member `slot` of _gil_runtime_state has this mark and one
   for signals, so that take_gil() and drop_gil() have one look for both.
   Written under gil->mutex, atomic. */
#define _PyRWGIL_WATCHED    1U  // the slot says whether the lock's holder reads
#define _PyRWGIL_SUB        2U  // subinterpreters use the lock (pycore_rwsignal.h)
#define _PyRWGIL_MARKS      (_PyRWGIL_WATCHED | _PyRWGIL_SUB)
#define _PyRWGIL_MARK_BITS  2   // above them: the slot's index, which never changes

static inline uint32_t
_PyRWGIL_SlotIndex(const struct _gil_runtime_state *gil)
{
    return _Py_atomic_load_uint32_relaxed(&gil->slot) >> _PyRWGIL_MARK_BITS;
}

// Keeps the compiler from spending registers of take_gil() on its slow paths.
#if defined(__GNUC__)
#  define _PyRWGIL_COLD __attribute__((cold))
#else
#  define _PyRWGIL_COLD
#endif

extern _PyRWGIL_COLD int _PyRWGIL_ReadAcquireSlow(struct _gil_runtime_state *,
                                                  PyThreadState *);
extern _PyRWGIL_COLD void _PyRWGIL_ReadReleaseSlow(struct _gil_runtime_state *,
                                                   PyThreadState *);

/* The caller has just taken the interpreter's lock.  It holds gil->mutex, which
   is let go of for a while if there is a writer to wait for.  Returns 1 if
   finalisation has begun by then, and the thread has to drop the lock and exit. */
static inline int
_PyRWGIL_ReadAcquire(struct _gil_runtime_state *gil, PyThreadState *tstate)
{
    if (gil->slot & _PyRWGIL_MARKS) {
        return _PyRWGIL_ReadAcquireSlow(gil, tstate);
    }
    return 0;
}

/* The caller drops the interpreter's lock.  It holds gil->mutex.  tstate is NULL
   in a thread that exits before it reads. */
static inline void
_PyRWGIL_ReadRelease(struct _gil_runtime_state *gil, PyThreadState *tstate)
{
    if (gil->slot & _PyRWGIL_MARKS) {
        _PyRWGIL_ReadReleaseSlow(gil, tstate);
    }
}

/* The caller has taken the lock, only to drop it and exit: its thread state may
   be gone, so that no writer must ask it.  It holds gil->mutex. */
extern void _PyRWGIL_ReadNever(struct _gil_runtime_state *);

/* A subinterpreter is about to use this lock, its own or main's. */
extern void _PyRWGIL_ShareLock(struct _gil_runtime_state *);

/* What the eval loop and PyErr_CheckSignals() do when a writer asked
   (_PY_EVAL_PLEASE_STOP_BIT): give up the slot, wait, take it back.  Does not
   return in a thread that has to exit because of finalisation. */
PyAPI_FUNC(void) _PyRWGIL_Safepoint(PyThreadState *);

/* While it is set the calling thread takes interpreters' locks as soon as their
   holders come to a safepoint, and not after the switch interval.  For visits to
   an interpreter that are short and for which another one waits. */
extern _Py_thread_local int _PyRWGIL_hurry;

/* take_gil() has to wait, and holds gil->mutex: if the calling thread is in such a
   hurry, ask the holder to drop the lock, and return 1. */
extern _PyRWGIL_COLD int _PyRWGIL_AskAtOnce(struct _gil_runtime_state *);

/* --- Life of slots and of the process ------------------------------------ */

/* Read -X rwgil=pair|global and PYTHON_RWGIL.  A bad value is an error that
   names the good ones. */
extern PyStatus _PyRWGIL_ReadConfig(const PyConfig *);
PyAPI_FUNC(_PyRWGIL_Mode) _PyRWGIL_GetMode(void);

/* Give a slot to the lock of an interpreter that gets one of its own; it exists,
   and nobody else knows of it yet.  The main interpreter's slot is always 0.
   Never fails: no memory is fatal, as for the lock itself. */
extern void _PyRWGIL_SlotNew(PyInterpreterState *, struct _gil_runtime_state *);

/* The interpreter is gone, its lock will never be taken again and can be freed
   after this. */
extern void _PyRWGIL_SlotFree(PyInterpreterState *);

/* Fork: stop all interpreters before, and let them run on in the parent; in
   the child only the forking thread and the main interpreter's slot exist.
   BeforeFork comes after the import lock and before HEAD_LOCK.  It waits at
   most _PyRWGIL_FORK_WAIT_NS for interpreters that are busy in C code: what
   they are at belongs to their heaps, which the child drops. */
#define _PyRWGIL_FORK_WAIT_NS (1000 * 1000 * 1000)
extern void _PyRWGIL_BeforeFork(void);
extern void _PyRWGIL_AfterFork_Parent(void);
extern void _PyRWGIL_AfterFork_Child(void);

/* In the child: were all other interpreters stopped at the fork?  If not, what
   they own may have been copied while it was being changed. */
PyAPI_FUNC(int) _PyRWGIL_ForkedQuietly(void);

/* Finalisation: ask the reader of this slot to come to a safepoint.  True once
   no thread runs Python under its lock, false when one still does after
   timeout_ns.  Takes a slot, not an interpreter, which may be gone by then.  The
   caller does not read, and no other thread may be in here for the same slot. */
extern int _PyRWGIL_WaitQuiet(uint32_t slot, int64_t timeout_ns);

/* --- Statistics ---------------------------------------------------------- */

/* Histograms over durations: bucket i counts those of at least 2**(i-1) and
   less than 2**i nanoseconds, bucket 0 those of 0 ns; the last one is open. */
#define _PyRWGIL_BUCKETS 36

typedef struct {
    uint64_t count;
    uint64_t total_ns;
    uint64_t max_ns;
    uint64_t buckets[_PyRWGIL_BUCKETS];
} _PyRWGIL_Histogram;

typedef struct {
    int64_t interp;                 // id of the interpreter that owns the lock
    uint64_t sections[3];           // write sections begun: own, pair, all
    uint64_t safepoints;            // times that a writer stopped this heap's reader
    uint64_t backoffs;              // times that a writer withdrew to let go of its lock
    _PyRWGIL_Histogram read_wait;   // waits to (re)enter as a reader
    _PyRWGIL_Histogram write_wait;  // waits to enter a write section
    _PyRWGIL_Histogram write_hold;  // times spent in write sections
    uint64_t blame_ns;              // the longest single wait of a writer here,
    int64_t blame_interp;           // and whose reader or writer it was for; -1: none
} _PyRWGIL_Stats;

/* Copy the statistics of slot `index`.  Returns 1 if a live interpreter has
   it, 0 if it is free, -1 past the last slot.  Index -2 gives the sum over
   interpreters that are gone.  Numbers are read while others may count: each
   is right, together they are approximate. */
PyAPI_FUNC(int) _PyRWGIL_GetStats(int32_t index, _PyRWGIL_Stats *);

/* --- For tests ----------------------------------------------------------- */

/* How long a reader waits at a safepoint for a writer that has backed off. */
PyAPI_DATA(int64_t) _PyRWGIL_grace_ns;

/* What a slot is in at this moment. */
typedef struct {
    int reading;
    int read_waiting;               // its reader waits to read again
    int wanted;
    int turn;
    uint32_t ticket;
} _PyRWGIL_View;

PyAPI_FUNC(void) _PyRWGIL_GetView(int32_t index, _PyRWGIL_View *);

#endif   /* !Py_INTERNAL_RWGIL_H */
