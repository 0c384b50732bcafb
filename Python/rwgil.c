/* The RW-GIL: a read/write lock over all interpreters' heaps.

   The contract and the invariants RW-1 to RW-6 are in pycore_rwgil.h.

   Purpose.  Interpreters with a lock of their own run in parallel, each in its
   own heap.  Now and then an object has to change heaps, or all heaps have to
   stand still (fork).  A reader/writer lock does that, if reading is free: who
   holds an interpreter's lock reads, and tells nobody.  Writers pay for it:
   they go from interpreter to interpreter, and look under the mutex of its lock
   who holds it.  What they have to say to each other and to readers that wait
   is in a *slot* of each interpreter's lock, which outlives it.

   Guarantees
     - While a section over a set of heaps is held, no thread runs Python in
       any of them, and no other section over any of them is held.
     - A thread that waits for a section does not keep anyone else from writing
       to its heap, and after PATIENCE_NS lets go of its interpreter's lock too.
     - Neither side starves: a reader that waited gets a turn between two
       sections, and a writer that had to let go is waited for by the next
       reader that comes to a safepoint, for at most GRACE_NS.

   Not guaranteed: an order among writers; a bound on the wait for a reader
   that is in C code and comes to no safepoint (it stays interruptible).

   Obligations of callers: RW-4 in a section; sections don't nest.

   The attention word

       bit 31     WANTED  a writer has backed off and waits for the reader to
                          come to a safepoint
       bit 30     TURN    a section has ended, a reader that waited is next
       bits 0-29  TICKET  who has claimed the slot for writing: the writer's
                          own slot + 1, or ANONYMOUS; zero: nobody

   Reading

     As long as no writer comes, an interpreter's lock is unwatched: its holder
     reads, and the slot's `reading` is 1, whether somebody has the lock or not.
     The first writer that comes makes it WATCHED, with gil->mutex held, and sets
     `reading` to what is the case at that moment.  From then on the holder writes
     `reading`, until it takes the lock and finds that nobody wants anything: then
     it takes the mark off again, with gil->mutex held.  Locks are taken and
     dropped under that mutex as well, so their holders see the mark as soon as a
     writer relies on it.
     `reading` of 0 is always true.

   The states of a slot, from `reading`, as a writer sees it once the lock is
   watched, and TICKET:

       reading TICKET   name       who may use the heap
          0      0      idle       nobody
          1      0      read       the holder of the interpreter's lock
          1      t      asked      the same, until its next safepoint
          0      t      written    writer t

       idle    -> read      _PyRWGIL_ReadAcquire()
       read    -> idle      _PyRWGIL_ReadRelease()
       idle    -> written   claim() and ask()
       read    -> asked     claim()
       asked   -> written   _PyRWGIL_ReadRelease() or _PyRWGIL_Safepoint()
       asked   -> read      unclaim(): the writer backs off
       written -> idle      unclaim()
       written, a reader comes: it stores reading = 1, sees the ticket, stores
                            0 again and waits (_PyRWGIL_ReadAcquireSlow)

   A section over one's own heap needs no claim: its thread is the reader, and
   as long as it reads, every writer waits in "asked".  It costs a few stores.

   Barriers, once the lock is watched
     B1  reader: store reading, then load attention     (sequentially
     B2  writer: store TICKET, then load reading         consistent both)
         One of the two sees the other.
     B3  waiter: add to `parked`, then test its condition
     B4  waker:  change the condition, then load `parked`
         One of the two sees the other: no wake-up is lost.

   Races, each with a test in test_rwgil
     R1  reader leaves while a writer claims           B1/B2
     R2  reader comes while a writer claims            B1/B2, reader backs off
     R3  a thread state dies while a writer asks it to stop: ask() holds
         gil->mutex, under which the lock is dropped before its holder's thread
         state can go away, and asks only if the lock is held
     R4  two writers want the same pair               claims in ascending order
     R5  a writer wants the heap of a waiting writer   RW-5
     R6  a slot is born while all are written          it is born claimed
     R7  a slot dies while it is claimed               the claim is kept, the
         slot not reused before it is gone; `gate` keeps the lock that a writer
         looks at from going away under its hands
     R8  a stream of writers against one reader        TURN
     R9  a reader in long C calls against a writer     WANTED, grace

   Fork: see _PyRWGIL_AfterFork_Child().  Finalisation: sections are short, so
   readers' waits are; a writer's wait ends with its back-off, where attaching
   again makes the threads exit that have to.
*/

#include "Python.h"
#include "pycore_ceval.h"         // _PY_EVAL_PLEASE_STOP_BIT
#include "pycore_initconfig.h"    // _Py_GetEnv()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwgil.h"
#include "pycore_rwsignal.h"      // _PyRWSignal_Attached()

#include "condvar.h"

#if defined(__i386__) || defined(__x86_64__)
#  define cpu_relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#  define cpu_relax() __asm__ volatile("yield")
#else
#  define cpu_relax() ((void)0)
#endif

/* Times in ns.
   SPIN: two running threads answer each other in well under 1 us, a futex wake
   takes 10 to 30 us: spin for about as long as parking would cost.
   PATIENCE: how long a waiting writer keeps its interpreter's lock.
   PAUSE: how long it then sleeps at most before it tries again.
   GRACE: how long a reader waits at a safepoint for a writer that sleeps. */
#define SPIN_NS     (20 * 1000)
#define PATIENCE_NS (1000 * 1000)
#define PAUSE_NS    (5 * 1000 * 1000)
#define GRACE_NS    (2 * 1000 * 1000)
#define FOREVER     INT64_MAX

int64_t _PyRWGIL_grace_ns = GRACE_NS;

#define WANTED      (1U << 31)
#define TURN        (1U << 30)
#define TICKET      (TURN - 1)
#define ANONYMOUS   TICKET

typedef struct _gil_runtime_state gil_state;

/* A slot. */
typedef struct {
    // Written by the thread that holds the interpreter's lock; `reading` also by
    // the writer that makes it watched.
    uint32_t reading;           // atomic; see above
    uint32_t read_waiting;      // atomic; 1: it waits to read again
    uint32_t grace_from;        // `claims` when its grace began
    // Written by writers.
    uint32_t attention;         // atomic; see above
    uint32_t claims;            // atomic; how many there were
    PyMUTEX_T gate;             // before gil->mutex
    gil_state *gil;             // guarded by gate; NULL: gone, or not yet there
    PyMUTEX_T mutex;            // last in the lock order; nothing is done under
                                // it but what is listed here
    PyCOND_T cond;              // with mutex; broadcast by wake()
    uint32_t parked;            // atomic; threads that wait on cond
    uint32_t wanted;            // guarded by mutex; writers behind WANTED
    int live;                   // guarded by registry.mutex
    _PyRWGIL_Stats stats;       // written by the holder of the interpreter's
                                // lock, `safepoints` under mutex
} record;

// Chunks are allocated once and never freed; the first one is static.
#define CHUNK_BITS 4
#define CHUNK_SIZE (1 << CHUNK_BITS)
#define MAX_CHUNKS 4096

static record first_chunk[CHUNK_SIZE];
static record *chunks[MAX_CHUNKS] = {first_chunk};

static struct {
    PyMUTEX_T mutex;            // before any slot's mutex
    int created;                // set once, by the first SlotNew()
    _PyRWGIL_Mode mode;         // set while there is one thread
    int spin;                   // likewise: more than one processor
    int32_t top;                // atomic; slots ever used; grows under mutex
    uint32_t all;               // guarded by mutex; ticket of a section over all
    _PyRWGIL_Stats gone;        // guarded by mutex; sums of dead slots
    _PyRWGIL_Section fork;      // fork only
} registry;

static _Py_thread_local int in_write;
_Py_thread_local int _PyRWGIL_hurry;


/* --- Small parts --------------------------------------------------------- */

static inline record *
get_record(int32_t index)
{
    return &chunks[index >> CHUNK_BITS][index & (CHUNK_SIZE - 1)];
}

static inline int32_t
interp_slot(PyInterpreterState *interp)
{
    return (int32_t)_PyRWGIL_SlotIndex(interp->ceval.gil);
}

static int64_t
now_ns(void)
{
    PyTime_t t;
    (void)PyTime_MonotonicRaw(&t);
    return t;
}

static void
lock(PyMUTEX_T *mutex)
{
    if (PyMUTEX_LOCK(mutex)) {
        Py_FatalError("RW-GIL: locking a mutex failed");
    }
}

static void
unlock(PyMUTEX_T *mutex)
{
    if (PyMUTEX_UNLOCK(mutex)) {
        Py_FatalError("RW-GIL: unlocking a mutex failed");
    }
}

static void
init_record(record *r)
{
    if (PyMUTEX_INIT(&r->gate) || PyMUTEX_INIT(&r->mutex)
        || PyCOND_INIT(&r->cond))
    {
        Py_FatalError("RW-GIL: can't make a slot");
    }
}

static inline uint32_t
attention(record *r)
{
    return _Py_atomic_load_uint32(&r->attention);
}

/* Counters have one writer at a time, and readers that don't mind. */
static inline void
count(uint64_t *counter, uint64_t n)
{
    _Py_atomic_store_uint64_relaxed(
        counter, _Py_atomic_load_uint64_relaxed(counter) + n);
}

static void
observe(_PyRWGIL_Histogram *h, int64_t ns)
{
    uint64_t v = ns > 0 ? (uint64_t)ns : 0;
    int bucket = 0;
    for (uint64_t rest = v; rest && bucket < _PyRWGIL_BUCKETS - 1; rest >>= 1) {
        bucket++;
    }
    count(&h->count, 1);
    count(&h->total_ns, v);
    count(&h->buckets[bucket], 1);
    if (v > _Py_atomic_load_uint64_relaxed(&h->max_ns)) {
        _Py_atomic_store_uint64_relaxed(&h->max_ns, v);
    }
}


/* --- Waiting ------------------------------------------------------------- */

static int
no_writer(record *r)
{
    return (attention(r) & TICKET) == 0;
}

/* What a reader in its grace waits for.  unclaim() wakes it, so "is claimed"
   would not do. */
static int
claimed_since(record *r)
{
    return _Py_atomic_load_uint32(&r->claims) != r->grace_from;
}

static int
claimable(record *r)
{
    return (attention(r) & (TICKET | TURN)) == 0;
}

static int
no_reader(record *r)
{
    return _Py_atomic_load_uint32(&r->reading) == 0;
}

static void
wake(record *r)
{
    if (_Py_atomic_load_uint32(&r->parked)) {   // B4
        lock(&r->mutex);
        PyCOND_BROADCAST(&r->cond);
        unlock(&r->mutex);
    }
}

/* Wait for a condition that is followed by a wake(); spin first if `spin`.
   Returns whether it holds; false only after the deadline. */
static int
wait_until(record *r, int (*holds)(record *), int64_t deadline, int spin)
{
    if (spin && registry.spin) {
        int64_t until = now_ns() + SPIN_NS;
        do {
            for (int i = 0; i < 32; i++) {
                if (holds(r)) {
                    return 1;
                }
                cpu_relax();
            }
        } while (now_ns() < until);
    }

    lock(&r->mutex);
    _Py_atomic_add_uint32(&r->parked, 1);       // B3
    int result;
    while (!(result = holds(r))) {
        if (deadline == FOREVER) {
            PyCOND_WAIT(&r->cond, &r->mutex);
            continue;
        }
        int64_t left = deadline - now_ns();
        if (left <= 0) {
            break;
        }
        PyCOND_TIMEDWAIT(&r->cond, &r->mutex, left / 1000 + 1);
    }
    _Py_atomic_add_uint32(&r->parked, (uint32_t)-1);
    unlock(&r->mutex);
    return result;
}


/* --- Reading ------------------------------------------------------------- */

/* gil->mutex is held. */
static void
set_watched(gil_state *gil, int watched)
{
    uint32_t word = gil->slot & ~_PyRWGIL_WATCHED;
    _Py_atomic_store_uint32_relaxed(&gil->slot,
                                    watched ? word | _PyRWGIL_WATCHED : word);
}

static inline int
is_watched(gil_state *gil)
{
    return (_Py_atomic_load_uint32_relaxed(&gil->slot) & _PyRWGIL_WATCHED) != 0;
}

/* The caller holds the interpreter's lock, and keeps it. */
static void
stop_reading(PyThreadState *tstate)
{
    gil_state *gil = tstate->interp->ceval.gil;
    record *r = get_record(interp_slot(tstate->interp));
    if (!is_watched(gil)) {
        // Nobody but this thread could take the mark off again.
        lock(&gil->mutex);
        set_watched(gil, 1);
        unlock(&gil->mutex);
    }
    _Py_atomic_store_uint32(&r->reading, 0);    // B1
    wake(r);
}

/* The same, and the lock is watched. */
static void
start_reading(PyThreadState *tstate)
{
    assert(!in_write);
    record *r = get_record(interp_slot(tstate->interp));
    int64_t begun = 0;
    _Py_atomic_store_uint32(&r->reading, 1);            // B1
    while (!no_writer(r)) {
        if (!begun) {
            begun = now_ns();
        }
        _Py_atomic_store_uint32(&r->read_waiting, 1);
        _Py_atomic_store_uint32(&r->reading, 0);
        wake(r);
        wait_until(r, no_writer, FOREVER, 1);
        _Py_atomic_store_uint32(&r->reading, 1);        // B1
    }
    _Py_atomic_store_uint32(&r->read_waiting, 0);
    if (attention(r) & TURN) {
        _Py_atomic_and_uint32(&r->attention, ~TURN);
        wake(r);
    }
    if (begun) {
        observe(&r->stats.read_wait, now_ns() - begun);
    }
}

#ifndef NDEBUG
static int
reads(PyThreadState *tstate)
{
    gil_state *gil = tstate->interp->ceval.gil;
    return !is_watched(gil) || !no_reader(get_record(interp_slot(tstate->interp)));
}
#endif

int
_PyRWGIL_ReadAcquireSlow(gil_state *gil, PyThreadState *tstate)
{
    if (is_watched(gil)) {
        unlock(&gil->mutex);
        start_reading(tstate);
        lock(&gil->mutex);
        if (attention(get_record(interp_slot(tstate->interp))) == 0) {
            set_watched(gil, 0);
        }
        if (_PyThreadState_MustExit(tstate)) {
            return 1;
        }
    }
    _PyRWSignal_Attached(tstate);
    return 0;
}

void
_PyRWGIL_ReadReleaseSlow(gil_state *gil, PyThreadState *tstate)
{
    _PyRWSignal_Detach(tstate);
    if (is_watched(gil)) {
        record *r = get_record((int32_t)_PyRWGIL_SlotIndex(gil));
        _Py_atomic_store_uint32(&r->reading, 0);        // B1
        wake(r);
    }
}

int
_PyRWGIL_AskAtOnce(gil_state *gil)
{
    if (!_PyRWGIL_hurry) {
        return 0;
    }
    PyThreadState *holder = _Py_atomic_load_ptr_relaxed(&gil->last_holder);
    _Py_set_eval_breaker_bit(holder, _PY_GIL_DROP_REQUEST_BIT);
    return 1;
}

void
_PyRWGIL_ReadNever(gil_state *gil)
{
    record *r = get_record((int32_t)_PyRWGIL_SlotIndex(gil));
    set_watched(gil, 1);
    _Py_atomic_store_uint32(&r->reading, 0);
}

void
_PyRWGIL_ShareLock(gil_state *gil)
{
    lock(&gil->mutex);
    _Py_atomic_store_uint32_relaxed(&gil->slot, gil->slot | _PyRWGIL_SUB);
    unlock(&gil->mutex);
}

void
_PyRWGIL_Safepoint(PyThreadState *tstate)
{
    assert(!in_write);
    assert(tstate == _PyThreadState_GET());
    int err = errno;
    _Py_unset_eval_breaker_bit(tstate, _PY_EVAL_PLEASE_STOP_BIT);
    record *r = get_record(interp_slot(tstate->interp));
    r->grace_from = _Py_atomic_load_uint32(&r->claims);
    uint32_t seen = attention(r);
    if (seen) {
        stop_reading(tstate);
        if ((seen & WANTED) && !(seen & TICKET)) {
            wait_until(r, claimed_since, now_ns() + _PyRWGIL_grace_ns, 0);
        }
        start_reading(tstate);
    }
    if (_PyThreadState_MustExit(tstate)) {
        // Attaching does not return in such a thread.
        _PyThreadState_Detach(tstate);
        _PyThreadState_Attach(tstate);
    }
    errno = err;
}


/* --- Writing: one slot --------------------------------------------------- */

/* Get the claim on a slot; 0 at the deadline. */
static int
claim(record *r, uint32_t ticket, int64_t deadline)
{
    for (;;) {
        uint32_t seen = attention(r);
        if ((seen & TICKET) == ticket) {
            return 1;           // R6
        }
        int late = 0;
        if (seen & (TICKET | TURN)) {
            late = !wait_until(r, claimable, deadline, 1);
            seen = attention(r);
            if (seen & TICKET) {
                if (late) {
                    return 0;
                }
                continue;
            }
            if ((seen & TURN) && !late) {
                continue;
            }
        }
        // A reader that does not take its turn in all that time is not there.
        if (_Py_atomic_compare_exchange_uint32(     // B2
                &r->attention, &seen, (seen & WANTED) | ticket)) {
            _Py_atomic_add_uint32(&r->claims, 1);
            return 1;
        }
        if (late) {
            return 0;
        }
    }
}

static void
unclaim(record *r)
{
    uint32_t seen = attention(r);
    uint32_t next;
    do {
        next = seen & WANTED;
        if (_Py_atomic_load_uint32(&r->read_waiting)) {
            next |= TURN;
        }
    } while (!_Py_atomic_compare_exchange_uint32(
                &r->attention, &seen, next));
    wake(r);
}

/* Make the reader, if there is one, come to a safepoint at once.  From here on
   `reading` tells whether there is. */
static void
ask(record *r)
{
    if (no_reader(r)) {
        return;
    }
    lock(&r->gate);
    gil_state *gil = r->gil;
    if (gil != NULL) {
        lock(&gil->mutex);
        int held = _Py_atomic_load_int_relaxed(&gil->locked) > 0;
        if (!is_watched(gil)) {
            set_watched(gil, 1);
            if (!held) {
                _Py_atomic_store_uint32(&r->reading, 0);
            }
        }
        if (held && !no_reader(r)) {
            PyThreadState *holder = _Py_atomic_load_ptr_relaxed(&gil->last_holder);
            _Py_set_eval_breaker_bit(holder, _PY_EVAL_PLEASE_STOP_BIT);
            count(&r->stats.safepoints, 1);
        }
        unlock(&gil->mutex);
    }
    unlock(&r->gate);
}


/* --- Writing: sections --------------------------------------------------- */

static void
release_slots(_PyRWGIL_Section *section)
{
    uint32_t ticket = (uint32_t)section->own + 1;
    if (section->span != _PyRWGIL_SPAN_ALL) {
        for (int i = 0; i < section->span; i++) {
            record *r = get_record(section->slots[i]);
            if ((attention(r) & TICKET) == ticket) {
                unclaim(r);
            }
        }
        return;
    }
    lock(&registry.mutex);
    if (registry.all == ticket) {       // else it has not got to slot 0
        registry.all = 0;
    }
    int32_t top = registry.top;
    unlock(&registry.mutex);
    // From the end: another section over all begins with slot 0.
    for (int32_t i = top - 1; i >= 0; i--) {
        record *r = get_record(i);
        if ((attention(r) & TICKET) == ticket) {
            unclaim(r);
        }
    }
}

static int32_t
first_slots(_PyRWGIL_Section *section)
{
    return section->span == _PyRWGIL_SPAN_ALL
           ? _Py_atomic_load_int32(&registry.top) : section->span;
}

static inline record *
nth_record(_PyRWGIL_Section *section, int32_t i)
{
    return get_record(section->span == _PyRWGIL_SPAN_ALL
                      ? i : section->slots[i]);
}

/* One attempt at a section.  Returns NULL, or after the deadline, with nothing
   claimed, the slot that was in the way. */
static record *
try_enter(_PyRWGIL_Section *section, int64_t deadline)
{
    uint32_t ticket = (uint32_t)section->own + 1;
    record *r = NULL;
    int32_t n = first_slots(section);
    for (int32_t i = 0; i < n; i++) {
        r = nth_record(section, i);
        if (!claim(r, ticket, deadline)) {
            goto late;
        }
        if (i == 0 && section->span == _PyRWGIL_SPAN_ALL) {
            lock(&registry.mutex);
            registry.all = ticket;      // R6: later slots are born claimed
            n = registry.top;
            unlock(&registry.mutex);
        }
    }
    for (int32_t i = 0; i < n; i++) {
        ask(nth_record(section, i));
    }
    for (int32_t i = 0; i < n; i++) {
        r = nth_record(section, i);
        if (!no_reader(r) && !wait_until(r, no_reader, deadline, 1)) {
            goto late;
        }
    }
    return NULL;

late:
    release_slots(section);
    return r;
}

/* The slot in the way is busy: let go of the interpreter's lock, and sleep
   until it isn't, or for a while.  Returns -1 with an exception set if a signal
   handler raised. */
static int
back_off(PyThreadState *tstate, _PyRWGIL_Section *section, record *blocker)
{
    count(&get_record(section->own)->stats.backoffs, 1);
    lock(&blocker->mutex);
    if (blocker->wanted++ == 0) {
        _Py_atomic_or_uint32(&blocker->attention, WANTED);
    }
    unlock(&blocker->mutex);
    ask(blocker);

    start_reading(tstate);
    _PyThreadState_Detach(tstate);
    wait_until(blocker, no_reader, now_ns() + PAUSE_NS, 0);
    // Before attaching, which does not return in a thread that must exit.
    lock(&blocker->mutex);
    if (--blocker->wanted == 0) {
        _Py_atomic_and_uint32(&blocker->attention, ~WANTED);
    }
    unlock(&blocker->mutex);
    _PyThreadState_Attach(tstate);

    int err = PyErr_CheckSignals();
    stop_reading(tstate);
    return err;
}

static void
note_wait(record *own, record *blocker, int64_t ns)
{
    observe(&own->stats.write_wait, ns);
    if (blocker != NULL
        && (uint64_t)ns > _Py_atomic_load_uint64_relaxed(&own->stats.blame_ns))
    {
        _Py_atomic_store_uint64_relaxed(&own->stats.blame_ns, (uint64_t)ns);
        _Py_atomic_store_int64_relaxed(
            &own->stats.blame_interp,
            _Py_atomic_load_int64_relaxed(&blocker->stats.interp));
    }
}

static void
begin(_PyRWGIL_Section *section, int64_t now)
{
    section->begun = now;
    in_write = 1;
}

/* The slot of an interpreter that is neither gone nor going, or -1.  The
   pointer can be used as long as that can't change: in a section over it,
   since the first step of finalisation is taken by a reader. */
static int32_t
find_interp(int64_t id, PyInterpreterState **p_interp)
{
    int32_t index = -1;
    HEAD_LOCK(&_PyRuntime);
    PyInterpreterState *interp = _PyRuntime.interpreters.head;
    while (interp != NULL && interp->id != id) {
        interp = interp->next;
    }
    if (interp != NULL && interp->ceval.gil != NULL && !interp->finalizing) {
        index = interp_slot(interp);
        *p_interp = interp;
    }
    HEAD_UNLOCK(&_PyRuntime);
    return index;
}

static int
interp_gone(int64_t id)
{
    PyErr_Format(PyExc_InterpreterNotFoundError,
                 "interpreter %lld does not exist or is being closed",
                 (long long)id);
    return -1;
}

/* `id` is the other interpreter's, or -1. */
static int
enter(PyThreadState *tstate, _PyRWGIL_Section *section, int64_t id)
{
    int64_t begun = now_ns();
    record *own = get_record(section->own);
    record *blocker = NULL;
    stop_reading(tstate);       // RW-5
    for (;;) {
        record *late = try_enter(section, now_ns() + PATIENCE_NS);
        if (late == NULL) {
            break;
        }
        blocker = late;
        int err = back_off(tstate, section, late);
        PyInterpreterState *other;
        if (!err && id >= 0 && find_interp(id, &other) < 0) {
            err = interp_gone(id);
        }
        if (err) {
            start_reading(tstate);
            return -1;
        }
    }
    int64_t now = now_ns();
    if (blocker == NULL && section->span == 2) {
        blocker = get_record(section->slots[section->slots[0] == section->own]);
    }
    note_wait(own, blocker, now - begun);
    begin(section, now);
    return 0;
}

static int
enter_slots(PyThreadState *tstate, _PyRWGIL_Section *section,
            int32_t other, int64_t id)
{
    int32_t own = interp_slot(tstate->interp);
    _PyRWGIL_Stats *stats = &get_record(own)->stats;
    section->own = own;
    section->span = own == other ? 1 : 2;
    section->slots[0] = Py_MIN(own, other);
    section->slots[1] = Py_MAX(own, other);
    count(&stats->sections[section->span - 1], 1);
    if (section->span == 1) {
        // As long as this thread reads, no other writer gets in.
        observe(&stats->write_wait, 0);
        begin(section, now_ns());
        return 0;
    }
    return enter(tstate, section, id);
}

int
_PyRWGIL_WriteOwn(_PyRWGIL_Section *section)
{
    return _PyRWGIL_WritePair(section, NULL);
}

int
_PyRWGIL_WritePair(_PyRWGIL_Section *section, PyInterpreterState *other)
{
    assert(!in_write);
    PyThreadState *tstate = _PyThreadState_GET();
    int32_t own = interp_slot(tstate->interp);
    assert(reads(tstate));      // RW-1
    if (registry.mode == _PyRWGIL_MODE_GLOBAL) {
        return _PyRWGIL_WriteAll(section);
    }
    if (other == NULL) {
        return enter_slots(tstate, section, own, -1);
    }
    return enter_slots(tstate, section, interp_slot(other),
                       PyInterpreterState_GetID(other));
}

int
_PyRWGIL_WritePairID(_PyRWGIL_Section *section, int64_t id,
                     PyInterpreterState **other)
{
    assert(!in_write);
    int32_t index = find_interp(id, other);
    if (index < 0) {
        return interp_gone(id);
    }
    PyThreadState *tstate = _PyThreadState_GET();
    int err = registry.mode == _PyRWGIL_MODE_GLOBAL
              ? _PyRWGIL_WriteAll(section)
              : enter_slots(tstate, section, index, id);
    if (!err && find_interp(id, other) != index) {
        _PyRWGIL_WriteEnd(section);
        err = interp_gone(id);
    }
    return err;
}

int
_PyRWGIL_WriteAll(_PyRWGIL_Section *section)
{
    assert(!in_write);
    PyThreadState *tstate = _PyThreadState_GET();
    section->own = interp_slot(tstate->interp);
    section->span = _PyRWGIL_SPAN_ALL;
    section->slots[0] = section->slots[1] = -1;
    count(&get_record(section->own)->stats.sections[2], 1);
    return enter(tstate, section, -1);
}

void
_PyRWGIL_WriteEnd(_PyRWGIL_Section *section)
{
    assert(in_write);
    int err = errno;
    in_write = 0;
    record *own = get_record(section->own);
    observe(&own->stats.write_hold, now_ns() - section->begun);
    if (section->span != 1) {
        release_slots(section);
        start_reading(_PyThreadState_GET());
    }
    errno = err;
}

int
_PyRWGIL_InWrite(void)
{
    return in_write;
}

int
_PyRWGIL_WaitQuiet(uint32_t slot, int64_t timeout_ns)
{
    record *r = get_record((int32_t)slot);
    int64_t deadline = now_ns() + timeout_ns;
    if (!claim(r, ANONYMOUS, deadline)) {
        return 0;
    }
    ask(r);
    int quiet = wait_until(r, no_reader, deadline, 1);
    unclaim(r);
    return quiet;
}


/* --- Life of slots and of the process ------------------------------------ */

PyStatus
_PyRWGIL_ReadConfig(const PyConfig *config)
{
    static const char bad[] =
        "bad value for -X rwgil or PYTHON_RWGIL: use \"pair\" or \"global\"";
    const char *env = _Py_GetEnv(config->use_environment, "PYTHON_RWGIL");
    const wchar_t *option = _Py_get_xoption(&config->xoptions, L"rwgil");
    const wchar_t *value = option ? wcschr(option, L'=') : NULL;
    if (option != NULL) {
        if (value != NULL && wcscmp(value, L"=pair") == 0) {
            registry.mode = _PyRWGIL_MODE_PAIR;
        }
        else if (value != NULL && wcscmp(value, L"=global") == 0) {
            registry.mode = _PyRWGIL_MODE_GLOBAL;
        }
        else {
            return PyStatus_Error(bad);
        }
    }
    else if (env == NULL) {
        registry.mode = _PyRWGIL_MODE_PAIR;     // may not be the first time
    }
    else {
        if (strcmp(env, "pair") == 0) {
            registry.mode = _PyRWGIL_MODE_PAIR;
        }
        else if (strcmp(env, "global") == 0) {
            registry.mode = _PyRWGIL_MODE_GLOBAL;
        }
        else {
            return PyStatus_Error(bad);
        }
    }
    return PyStatus_Ok();
}

_PyRWGIL_Mode
_PyRWGIL_GetMode(void)
{
    return registry.mode;
}

static void
create_registry(void)
{
    if (PyMUTEX_INIT(&registry.mutex)) {
        Py_FatalError("RW-GIL: can't make the registry");
    }
#ifdef _SC_NPROCESSORS_ONLN
    registry.spin = sysconf(_SC_NPROCESSORS_ONLN) > 1;
#endif
    registry.created = 1;
}

/* The registry's mutex is held. */
static int32_t
new_index(void)
{
    int32_t top = registry.top;
    for (int32_t i = 1; i < top; i++) {
        record *r = get_record(i);
        if (!r->live && attention(r) == 0) {        // R7
            return i;
        }
    }
    int32_t chunk = top >> CHUNK_BITS;
    if (chunk >= MAX_CHUNKS) {
        Py_FatalError("RW-GIL: too many interpreters");
    }
    if (chunks[chunk] == NULL) {
        chunks[chunk] = PyMem_RawCalloc(CHUNK_SIZE, sizeof(record));
        if (chunks[chunk] == NULL) {
            Py_FatalError("RW-GIL: no memory for a slot");
        }
    }
    init_record(get_record(top));
    _Py_atomic_store_int32(&registry.top, top + 1);
    return top;
}

void
_PyRWGIL_SlotNew(PyInterpreterState *interp, gil_state *gil)
{
    if (!registry.created) {
        create_registry();
        init_record(get_record(0));
        registry.top = 1;
        registry.gone.blame_interp = -1;
    }
    lock(&registry.mutex);
    int32_t index = _Py_IsMainInterpreter(interp) ? 0 : new_index();
    record *r = get_record(index);
    r->live = 1;
    memset(&r->stats, 0, sizeof(r->stats));
    r->stats.interp = PyInterpreterState_GetID(interp);
    r->stats.blame_interp = -1;
    r->reading = r->read_waiting = 0;
    if (registry.all) {
        _Py_atomic_or_uint32(&r->attention, registry.all);      // R6
    }
    // Born watched: the first one to take this lock looks at `attention`.
    gil->slot = ((uint32_t)index << _PyRWGIL_MARK_BITS) | _PyRWGIL_WATCHED
                | (_Py_IsMainInterpreter(interp) ? 0 : _PyRWGIL_SUB);
    lock(&r->gate);
    r->gil = gil;
    unlock(&r->gate);
    unlock(&registry.mutex);
}

static void
add_histogram(_PyRWGIL_Histogram *sum, const _PyRWGIL_Histogram *part)
{
    sum->count += part->count;
    sum->total_ns += part->total_ns;
    sum->max_ns = Py_MAX(sum->max_ns, part->max_ns);
    for (int i = 0; i < _PyRWGIL_BUCKETS; i++) {
        sum->buckets[i] += part->buckets[i];
    }
}

void
_PyRWGIL_SlotFree(PyInterpreterState *interp)
{
    if (!interp->ceval.own_gil) {
        return;
    }
    lock(&registry.mutex);
    record *r = get_record(interp_slot(interp));
    _PyRWGIL_Stats *sum = &registry.gone;
    for (int i = 0; i < 3; i++) {
        sum->sections[i] += r->stats.sections[i];
    }
    sum->safepoints += r->stats.safepoints;
    sum->backoffs += r->stats.backoffs;
    add_histogram(&sum->read_wait, &r->stats.read_wait);
    add_histogram(&sum->write_wait, &r->stats.write_wait);
    add_histogram(&sum->write_hold, &r->stats.write_hold);
    if (r->stats.blame_ns > sum->blame_ns) {
        sum->blame_ns = r->stats.blame_ns;
        sum->blame_interp = r->stats.blame_interp;
    }
    r->live = 0;
    lock(&r->gate);
    r->gil = NULL;
    _Py_atomic_store_uint32(&r->reading, 0);
    unlock(&r->gate);
    unlock(&registry.mutex);
}

void
_PyRWGIL_BeforeFork(void)
{
    PyThreadState *tstate = _PyThreadState_GET();
    _PyRWGIL_Section *section = &registry.fork;
    int32_t own = interp_slot(tstate->interp);
    *section = (_PyRWGIL_Section){
        .slots = {-1, -1}, .span = _PyRWGIL_SPAN_ALL, .own = own};
    stop_reading(tstate);
    if (try_enter(section, now_ns() + _PyRWGIL_FORK_WAIT_NS) != NULL) {
        start_reading(tstate);
        section->span = 0;
        return;
    }
    count(&get_record(own)->stats.sections[2], 1);
    begin(section, now_ns());
}

void
_PyRWGIL_AfterFork_Parent(void)
{
    if (registry.fork.span != 0) {
        _PyRWGIL_WriteEnd(&registry.fork);
    }
}

/* Only this thread is left, and nothing that others held means anything: all
   locks are made anew, all slots but the main interpreter's are free. */
void
_PyRWGIL_AfterFork_Child(void)
{
    in_write = 0;
    create_registry();
    registry.all = 0;
    for (int32_t i = 0; i < registry.top; i++) {
        record *r = get_record(i);
        init_record(r);
        r->parked = r->wanted = 0;
        r->attention = r->reading = r->read_waiting = 0;
        r->live = i == 0;
        if (!r->live) {
            r->gil = NULL;
        }
    }
    // The base takes the main interpreter's lock anew soon after this.
    set_watched(get_record(0)->gil, 1);
}

int
_PyRWGIL_ForkedQuietly(void)
{
    return registry.fork.span != 0;
}


/* --- Statistics ---------------------------------------------------------- */

static void
copy_counters(uint64_t *to, const uint64_t *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = _Py_atomic_load_uint64_relaxed(&from[i]);
    }
}

int
_PyRWGIL_GetStats(int32_t index, _PyRWGIL_Stats *stats)
{
    // All members are 64 bits wide.
    size_t n = sizeof(*stats) / sizeof(uint64_t);
    if (index == -2) {
        lock(&registry.mutex);
        *stats = registry.gone;
        stats->interp = -1;
        unlock(&registry.mutex);
        return 1;
    }
    if (index < 0 || index >= _Py_atomic_load_int32(&registry.top)) {
        return -1;
    }
    lock(&registry.mutex);
    record *r = get_record(index);
    int live = r->live;
    copy_counters((uint64_t *)stats, (const uint64_t *)&r->stats, n);
    unlock(&registry.mutex);
    return live;
}

void
_PyRWGIL_GetView(int32_t index, _PyRWGIL_View *view)
{
    record *r = get_record(index);
    lock(&r->gate);
    int reading = !no_reader(r);
    if (reading && r->gil != NULL && !is_watched(r->gil)) {
        reading = _Py_atomic_load_int_relaxed(&r->gil->locked) > 0;
    }
    unlock(&r->gate);
    uint32_t seen = attention(r);
    *view = (_PyRWGIL_View){
        .reading = reading,
        .read_waiting = (int)_Py_atomic_load_uint32(&r->read_waiting),
        .wanted = (seen & WANTED) != 0,
        .turn = (seen & TURN) != 0,
        .ticket = seen & TICKET,
    };
}
