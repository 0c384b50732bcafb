// The RW-GIL: a read/write lock over all interpreters' heaps.
//
// Running Python is reading, moving objects between interpreters is writing.
// This header is the whole contract; Python/rwgil.c has the protocol, its
// states and its races.
//
// Terms
//
//   heap of X   all objects that interpreter X owns
//   slot        one cache-line sized record per lock that serialises an
//               interpreter, that is per _gil_runtime_state.  Legacy
//               subinterpreters that share a lock share its slot.
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
// Lock order: import lock, write section, HEAD_LOCK, gil->mutex, slot->mutex.
// Take a write section before, never while holding, any of those to its right.

#ifndef Py_INTERNAL_RWGIL_H
#define Py_INTERNAL_RWGIL_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

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

/* The part of a slot that readers touch has a cache line of its own; nothing
   else writes it but a writer that has come for this heap. */
typedef struct _PyRWGIL_Slot _PyRWGIL_Slot;
struct _PyRWGIL_Slot {
    // Written by the thread that holds the interpreter's lock.
    uint32_t reading;           // atomic; 1: that thread reads
    uint32_t read_waiting;      // atomic; 1: it waits to read again
    PyThreadState *holder;      // atomic; valid while `reading`
    // Written by writers.
    uint32_t attention;         // atomic; see rwgil.c, zero: nobody wants anything
};

#define _PyRWGIL_CHUNK_BITS 4
#define _PyRWGIL_CHUNK_SIZE (1 << _PyRWGIL_CHUNK_BITS)
#define _PyRWGIL_MAX_CHUNKS 4096
#define _PyRWGIL_SLOT_BYTES 2048

// Chunks are allocated once and never freed; the first one is static.
PyAPI_DATA(char *) _PyRWGIL_chunks[_PyRWGIL_MAX_CHUNKS];

static inline _PyRWGIL_Slot *
_PyRWGIL_GetSlot(uint32_t index)
{
    char *chunk = _PyRWGIL_chunks[index >> _PyRWGIL_CHUNK_BITS];
    return (_PyRWGIL_Slot *)(
        chunk + (index & (_PyRWGIL_CHUNK_SIZE - 1)) * _PyRWGIL_SLOT_BYTES);
}

extern void _PyRWGIL_ReadAcquireSlow(_PyRWGIL_Slot *, PyThreadState *);
extern void _PyRWGIL_ReadReleaseSlow(_PyRWGIL_Slot *);

/* The caller has just taken the interpreter's lock.  Returns 1 if it had to
   wait, in which time finalisation may have begun, else 0. */
static inline int
_PyRWGIL_ReadAcquire(uint32_t index, PyThreadState *tstate)
{
    _PyRWGIL_Slot *slot = _PyRWGIL_GetSlot(index);
    _Py_atomic_store_ptr_relaxed(&slot->holder, tstate);
    // Barrier B1: this store, then that load; pairs with B2 in rwgil.c.
    _Py_atomic_store_uint32(&slot->reading, 1);
    if (_Py_atomic_load_uint32(&slot->attention) == 0) {
        return 0;
    }
    _PyRWGIL_ReadAcquireSlow(slot, tstate);
    return 1;
}

/* The caller is about to drop the interpreter's lock.  Does nothing if it does
   not read (a thread that exits in take_gil() never took the slot). */
static inline void
_PyRWGIL_ReadRelease(uint32_t index)
{
    _PyRWGIL_Slot *slot = _PyRWGIL_GetSlot(index);
    if (_Py_atomic_load_uint32_relaxed(&slot->reading)) {
        // B1 again
        _Py_atomic_store_uint32(&slot->reading, 0);
        if (_Py_atomic_load_uint32(&slot->attention) != 0) {
            _PyRWGIL_ReadReleaseSlow(slot);
        }
    }
}

/* What the eval loop and PyErr_CheckSignals() do when a writer asked
   (_PY_EVAL_PLEASE_STOP_BIT): give up the slot, wait, take it back.  Does not
   return in a thread that has to exit because of finalisation. */
PyAPI_FUNC(void) _PyRWGIL_Safepoint(PyThreadState *);

/* --- Life of slots and of the process ------------------------------------ */

/* Read -X rwgil=pair|global and PYTHON_RWGIL.  A bad value is an error that
   names the good ones. */
extern PyStatus _PyRWGIL_ReadConfig(const PyConfig *);
PyAPI_FUNC(_PyRWGIL_Mode) _PyRWGIL_GetMode(void);

/* A slot for an interpreter that gets a lock of its own.  The main
   interpreter's is always 0.  Never fails: no memory is fatal, as for the
   lock itself. */
extern uint32_t _PyRWGIL_SlotNew(PyInterpreterState *);

/* The interpreter is gone, its lock will never be taken again. */
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
extern int _PyRWGIL_ForkedQuietly(void);

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

#endif   /* !Py_INTERNAL_RWGIL_H */
