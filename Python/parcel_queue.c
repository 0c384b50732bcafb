// Queues of parcels between interpreters, and how threads wait on them.
// See pycore_parcel.h.
//
// Guarantees
//
//   Q-1  Parcels leave in the order in which they were put.  Each is handed to
//        one receiver or is discarded with its queue.
//   Q-2  put and get either do all of it or leave the queue as it was.
//   Q-3  Nobody polls.  A thread that must wait spins for some microseconds
//        where there is more than one core and where it has helped before,
//        and then sleeps until somebody wakes it, its time is up or a signal
//        arrives.  It is also woken a little before the end of packing that
//        takes long, and then spins: see _PyParcel_QueueExpect().
//   Q-4  While threads sleep on a side, at least as many are awake and about to
//        retry as there are items (or places) to be had.  So no wake-up is lost,
//        whatever becomes of the one who was woken.
//   Q-5  A thread that was woken twice in vain, because others were faster, has
//        the next item (place) reserved for it: nobody starves.
//   Q-6  A queue's id is never used again.
//   Q-7  A place that is reserved is nobody else's.  What is moved when it is
//        packed can't be given back, so it is packed when it has its place.
//
// Why threads detach before they spin
//
//   Detaching and attaching cost some 200 ns together, a tenth of a round trip.
//   A thread that spins attached keeps all other threads of its interpreter
//   from running, perhaps the one it waits for, and lets a writer that asks for
//   its heap wait.  It can't know: a request to give way comes only when the
//   switch interval (5 ms) is over.  So it gives way first.
//
// Whether they spin
//
//   Spinning saves the time that sleeping and waking take (2 to 30 us) when what
//   one waits for comes soon.  It costs that time, and more, when nothing comes,
//   or when the thread that is to bring it waits for this very processor.  From
//   inside, the latter looks as if the other side were slow, so how long a wait
//   was says little by itself.  Each side of a queue therefore keeps two
//   averages, of how long a wait lasts with a spin and without, and does what has
//   been faster.  Waits that are much longer than that count little: a queue can
//   have both, an answer that comes at once and a result that does not, and it
//   matters for the short ones only.  Now and then it tries the other, the rarer
//   the more often that was in vain.  Two who wait for each other gain by spinning
//   only if both do: if both sleep they share a processor, and one that begins to
//   spin drives the other away.  So a trial is for a time, and for all queues of
//   the process.
//
//   On a machine with nothing else to do a round trip is four to ten times faster
//   by spinning, on one with many times more threads than processors ten times
//   slower.
//
//   There are never more spinners in the process than processors.
//
// States of a waiter (field `state`, guarded by the queue's mutex)
//
//      IDLE --enqueue--> QUEUED --pick--> WOKEN --retry, forfeit--> IDLE
//                          |  \--_PyParcel_EndWaits--> ENDED --> IDLE
//                          |   \--_PyParcel_QueueExpect--> ROUSED --> IDLE
//                          +--timeout, signal--> IDLE
//
//   WOKEN, ENDED and ROUSED are followed by exactly one post of the semaphore,
//   outside the mutex; the waiter must take that before its memory goes.  A WOKEN
//   waiter is counted in `woken` of its side until it has retried.  Setting
//   `signalled` is followed by one post too.  Who is ROUSED has no claim to
//   anything: it is as a newcomer that spins, and sleeps again if that was in vain.
//
// Waiters without a thread
//
//   A _PyParcel_Wait is a waiter for an event loop.  In place of a semaphore it has a
//   bell, a pipe that the loop watches; one bell serves all waits of a loop.  From
//   WOKEN or ENDED to the ringing, whoever rings counts as one of its owners.
//
// Races
//
//   - Timeout against wake-up: the waiter looks at its state under the mutex.
//   - A woken thread's interpreter closes, and attaching, or waiting for a write
//     section, ends the thread: a cleanup handler passes the wake-up on.
//   - EndWaits against a new wait: `closing` is set before the queues are walked
//     and read under the mutex of the queue before a waiter is enqueued, again
//     after it was roused.
//   - Drop against look-up: the last reference goes under the registry's mutex.
//   - A signal just before the main thread goes to sleep would not interrupt
//     anything.  So that thread shows its waiter in main_waiter, looks for signals,
//     and only then begins to wait; from then on the C handler posts the semaphore.
//     The handler can run in another thread: it counts itself in `reporters`, and
//     the waiter does not go before that is zero.
//
// Locks, in this order: write section, registry.mutex, queue->mutex.  Both
// mutexes are held for a bounded number of instructions: no allocation, no
// detaching, no object is touched, and no system call but the one that wakes a
// thread which waits for the mutex.  That is why the queue's may be taken in a
// write section.
//
// Fork: both are taken before and left as new in the child, where no thread waits.

#include "Python.h"
#include "pycore_fileutils.h"     // _Py_set_blocking()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_memheap.h"       // _PyMemHeap_Remains
#include "pycore_parcel_graph.h"
#include "pycore_parking_lot.h"   // Py_PARK_OK
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_rwgil.h"         // _PyRWGIL_WriteOwn()
#include "pycore_semaphore.h"     // _PySemaphore
#include "pycore_time.h"          // _PyDeadline_Init()

#ifdef HAVE_PTHREAD_H
#  include <pthread.h>
#endif
#ifdef HAVE_UNISTD_H
#  include <unistd.h>             // sysconf()
#endif
#ifdef HAVE_SCHED_H
#  include <sched.h>              // sched_getaffinity()
#endif


/* --- Structures ---------------------------------------------------------- */

typedef enum {
    WAITER_IDLE,
    WAITER_QUEUED,
    WAITER_WOKEN,
    WAITER_ENDED,
    WAITER_ROUSED,
} waiter_state;

/* On the C stack of the thread that waits, or the head of a _PyParcel_Wait. */
typedef struct waiter {
    struct waiter *next;            // in its side's list, or in a chain of
    struct waiter *prev;            // those who are about to be posted
    waiter_state state;
    int token;                      // counted in `woken`
    int starved;                    // counted in `starved`
    int losses;                     // how often it was woken in vain
    int signalled;                  // atomic: a signal's handler has posted
    _PyParcel_Home *home;
    struct side *side;
    _PyParcel_Queue *queue;
    _PyParcel_Bell *bell;           // NULL: a thread sleeps on the semaphore
    _PySemaphore sema;
} waiter;

struct _PyParcel_Bell {
    Py_ssize_t refs;                // atomic
    int fds[2];                     // of a pipe: to watch, and to ring
};

struct _PyParcel_Wait {
    waiter waiter;                  // first: see wait_of()
    Py_ssize_t refs;                // atomic: the owner, and who is to ring
    int forks;                      // registry.forks, when it was used last
};

/* One side of a queue: those who get, or those who put. */
typedef struct side {
    waiter *first;
    waiter *last;
    Py_ssize_t woken;
    Py_ssize_t starved;             // atomic: read without the mutex
    // Whether to spin.  Atomic, written by any waiter; a lost update is no harm.
    int spin_cost;                  // average ns of a wait
    int park_cost;
    int until_trial;                // waits
    int trial_interval;             // waits
} side;

struct _PyParcel_Queue {
    // Read-only.
    int64_t id;
    Py_ssize_t maxsize;             // as it was asked for
    Py_ssize_t capacity;            // PY_SSIZE_T_MAX: unbounded
    _PyParcel_Unbound unbound;
    // Atomic.  The last reference is dropped under the registry's mutex.
    Py_ssize_t refs;
    // Guarded by the registry.
    _PyParcel_Queue *next;
    _PyParcel_Queue *prev;
    // Guarded by the mutex, all that follows.  On a cache line of their own.
    char padding[64];
    PyMutex mutex;
    Py_ssize_t count;               // atomic: read without the mutex
    Py_ssize_t reserved;            // places; atomic likewise
    _PyParcel *first;
    _PyParcel *last;
    side gets;
    side puts;
};

static struct {
    PyMutex mutex;
    int64_t last_id;                // guarded by the mutex, as what follows
    _PyParcel_Queue *first;         // in ascending order of their ids
    _PyParcel_Queue *last;
    _PyParcel_Home *homes;
    // Atomic.
    int spinners;
    waiter *main_waiter;            // written by the main thread
    int reporters;                  // that are in _PyParcel_SignalReceived()
    int trial_spins;                // what is tried
    int roused;                     // waiters, so far
    int64_t trial_end;              // monotonic ns
    // Counted in each child process.
    int forks;
    // Set once.
    int processors;
    _PyOnceFlag once;
} registry;

#define SPIN_NS 30000               // about what sleeping and waking cost
#define ROUSED_NS 250000            // what was to come soon is late
#define COST_MAX 200000             // ns: longer waits tell nothing more
#define COST_LONG 60000             // ns: more than spinning or sleeping takes
#define COST_TYPICAL 15000          // ns: of a wait that sleeps, until known
#define COST_GOOD 4000              // ns: sleeping can't be faster than that
#define TRIAL_NS 300000             // enough for an average
#define TRIAL_INTERVAL_MIN 64       // waits between two trials
#define TRIAL_INTERVAL_MAX 4096


/* --- Mutexes ------------------------------------------------------------- */

static inline void
relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/* What it guards takes less time than parking, so it is worth a short spin.
   Never detaches. */
static void
lock(PyMutex *mutex)
{
    for (int i = 0; i < 200; i++) {
        if (PyMutex_LockFast(&mutex->_bits)) {
            return;
        }
        for (int k = 0; k < 4; k++) {
            relax();
        }
        if (registry.processors == 1) {
            break;
        }
    }
    PyMutex_LockFlags(mutex, _Py_LOCK_DONT_DETACH);
}

static inline void
unlock(PyMutex *mutex)
{
    PyMutex_Unlock(mutex);
}


/* --- Waking (the queue's mutex is held, but for post_all) ---------------- */

static inline Py_ssize_t
load_count(_PyParcel_Queue *q)
{
    return _Py_atomic_load_ssize_relaxed(&q->count);
}

/* Items for those who get, places for those who put. */
static inline Py_ssize_t
side_stock(_PyParcel_Queue *q, side *s)
{
    Py_ssize_t count = load_count(q);
    if (s == &q->gets) {
        return count;
    }
    return (q->capacity - count
            - _Py_atomic_load_ssize_relaxed(&q->reserved));
}

/* Is there something for this one (NULL: for a newcomer)? */
static inline int
side_available(_PyParcel_Queue *q, side *s, waiter *w)
{
    Py_ssize_t reserved = _Py_atomic_load_ssize_relaxed(&s->starved);
    if (w != NULL && w->starved) {
        reserved = 0;
    }
    return side_stock(q, s) > reserved;
}

/* Of what is available, how much may this one take? */
static inline Py_ssize_t
side_share(_PyParcel_Queue *q, side *s, waiter *w)
{
    Py_ssize_t others = s->starved - (w != NULL && w->starved);
    return Py_MAX(1, side_stock(q, s) - others);
}

static void
side_enqueue(side *s, waiter *w)
{
    w->state = WAITER_QUEUED;
    if (w->losses > 0) {            // it has waited before the others
        w->prev = NULL;
        w->next = s->first;
        if (s->first != NULL) {
            s->first->prev = w;
        }
        else {
            s->last = w;
        }
        s->first = w;
    }
    else {
        w->next = NULL;
        w->prev = s->last;
        if (s->last != NULL) {
            s->last->next = w;
        }
        else {
            s->first = w;
        }
        s->last = w;
    }
}

static void
side_unlink(side *s, waiter *w)
{
    if (w->prev != NULL) {
        w->prev->next = w->next;
    }
    else {
        s->first = w->next;
    }
    if (w->next != NULL) {
        w->next->prev = w->prev;
    }
    else {
        s->last = w->prev;
    }
}

static inline _PyParcel_Wait *
wait_of(waiter *w)
{
    return (_PyParcel_Wait *)w;
}

/* It is about to be posted. */
static waiter *
chain_add(waiter *chain, waiter *w)
{
    if (w->bell != NULL) {
        _Py_atomic_add_ssize(&wait_of(w)->refs, 1);
    }
    w->next = chain;
    return w;
}

static waiter *
side_pick(_PyParcel_Queue *q, side *s, waiter *chain)
{
    while (s->first != NULL && s->woken < side_stock(q, s)) {
        waiter *w = s->first;
        side_unlink(s, w);
        w->state = WAITER_WOKEN;
        w->token = 1;
        s->woken++;
        chain = chain_add(chain, w);
    }
    return chain;
}

/* Restore Q-4.  Every critical section that changes the stock or takes a token
   back ends with it; post_all() the result when the mutex is free. */
static waiter *
pick(_PyParcel_Queue *q)
{
    return side_pick(q, &q->puts, side_pick(q, &q->gets, NULL));
}

static void wait_ring(_PyParcel_Wait *);

static void
post_all(waiter *chain)
{
    while (chain != NULL) {
        waiter *next = chain->next;
        // After this it may be gone.
        if (chain->bell != NULL) {
            wait_ring(wait_of(chain));
        }
        else {
            _PySemaphore_Wakeup(&chain->sema);
        }
        chain = next;
    }
}

static void
return_token(waiter *w, int lost)
{
    side *s = w->side;
    if (w->token) {
        w->token = 0;
        s->woken--;
    }
    if (lost) {
        w->losses++;
        if (w->losses >= 2 && !w->starved) {
            w->starved = 1;
            _Py_atomic_store_ssize_relaxed(&s->starved, s->starved + 1);
        }
    }
    else if (w->starved) {
        w->starved = 0;
        _Py_atomic_store_ssize_relaxed(&s->starved, s->starved - 1);
    }
}

/* The waiter goes away without having got anything.  Needs no thread state. */
static void
forfeit(void *arg)
{
    waiter *w = arg;
    if (!w->token && !w->starved) {
        return;
    }
    _PyParcel_Queue *q = w->queue;
    lock(&q->mutex);
    return_token(w, 0);
    waiter *chain = pick(q);
    unlock(&q->mutex);
    post_all(chain);
}


/* --- Whether to spin ----------------------------------------------------- */

static void
side_init(side *s)
{
    s->spin_cost = 0;
    s->park_cost = COST_TYPICAL;
    s->until_trial = s->trial_interval = TRIAL_INTERVAL_MIN;
}

static int
spin_is_faster(side *s)
{
    // By a quarter, so that a tie is for sleeping.
    int park_cost = _Py_atomic_load_int_relaxed(&s->park_cost);
    return _Py_atomic_load_int_relaxed(&s->spin_cost)
           < park_cost - park_cost / 4;
}

/* Called once for each wait, when it begins. */
static int
spin_wanted(side *s, PyTime_t now)
{
    if (registry.processors < 2) {
        return 0;
    }
    if (now < _Py_atomic_load_int64_relaxed(&registry.trial_end)) {
        return _Py_atomic_load_int_relaxed(&registry.trial_spins);
    }
    int faster = spin_is_faster(s);
    if (faster && _Py_atomic_load_int_relaxed(&s->spin_cost) < COST_GOOD) {
        return 1;
    }
    int until = _Py_atomic_load_int_relaxed(&s->until_trial);
    if (until > 0) {
        _Py_atomic_store_int_relaxed(&s->until_trial, until - 1);
        return faster;
    }
    int interval = _Py_atomic_load_int_relaxed(&s->trial_interval);
    interval = Py_MIN(2 * interval, TRIAL_INTERVAL_MAX);
    _Py_atomic_store_int_relaxed(&s->trial_interval, interval);
    _Py_atomic_store_int_relaxed(&s->until_trial, interval);
    _Py_atomic_store_int_relaxed(&registry.trial_spins, !faster);
    _Py_atomic_store_int64_relaxed(&registry.trial_end, now + TRIAL_NS);
    return !faster;
}

/* A wait of that kind has ended with something to be had. */
static void
spin_learn(side *s, int with_spin, PyTime_t took)
{
    int before = spin_is_faster(s);
    int *cost = with_spin ? &s->spin_cost : &s->park_cost;
    int ns = (int)Py_MAX(0, Py_MIN(took, COST_MAX));
    int average = _Py_atomic_load_int_relaxed(cost);
    int share = ns > COST_LONG ? 32 : 4;
    _Py_atomic_store_int_relaxed(cost, average + (ns - average) / share);
    if (spin_is_faster(s) != before) {
        // Things have changed: look again soon.
        _Py_atomic_store_int_relaxed(&s->trial_interval, TRIAL_INTERVAL_MIN);
        _Py_atomic_store_int_relaxed(&s->until_trial, TRIAL_INTERVAL_MIN);
    }
}

/* Detached.  True if there is something now. */
static int
spin(waiter *w, PyTime_t start, PyTime_t deadline, PyTime_t ns)
{
    PyTime_t end = start + ns;
    if (deadline >= 0 && deadline < end) {
        end = deadline;
    }
    int available = 0;
    if (_Py_atomic_add_int(&registry.spinners, 1) < registry.processors) {
        PyTime_t now = start;
        while (!(available = side_available(w->queue, w->side, w))
               && now < end)
        {
            for (int i = 0; i < 16; i++) {
                relax();
            }
            (void)PyTime_MonotonicRaw(&now);
        }
    }
    _Py_atomic_add_int(&registry.spinners, -1);
    return available;
}


/* --- Waiting ------------------------------------------------------------- */

typedef enum {
    TURN_RETRY,                     // there may be something
    TURN_TIMEOUT,                   // the time is up
    TURN_SIGNAL,                    // a signal's handler may have to run
    TURN_CLOSING,
    TURN_ROUSED,                    // there will be something soon
} turn;

void
_PyParcel_SignalReceived(void)
{
#ifdef _Py_USE_SEMAPHORES           // else posting is not async-signal-safe
    _Py_atomic_add_int(&registry.reporters, 1);
    waiter *w = _Py_atomic_load_ptr(&registry.main_waiter);
    if (w != NULL && _Py_atomic_exchange_int(&w->signalled, 1) == 0) {
        _PySemaphore_Wakeup(&w->sema);
    }
    _Py_atomic_add_int(&registry.reporters, -1);
#endif
}

/* Returns what was shown before: the handler of a signal can wait too. */
static waiter *
show_main_waiter(waiter *w)
{
    waiter *before = _Py_atomic_exchange_ptr(&registry.main_waiter, w);
    while (_Py_atomic_load_int(&registry.reporters) != 0) {
        relax();
    }
    return before;
}

/* Detached.  Sleeps until there is something or there is no more point. */
static turn
park(waiter *w, PyTime_t deadline)
{
    _PyParcel_Queue *q = w->queue;
    side *s = w->side;
    lock(&q->mutex);
    if (side_available(q, s, w)) {
        unlock(&q->mutex);
        return TURN_RETRY;
    }
    if (_Py_atomic_load_int(&w->home->closing)) {
        unlock(&q->mutex);
        return TURN_CLOSING;
    }
    side_enqueue(s, w);
    unlock(&q->mutex);

    PyTime_t left = -1;
    if (deadline >= 0) {
        left = Py_MAX(0, _PyDeadline_Get(deadline));
    }
    int res = _PySemaphore_Wait(&w->sema, left, 0);

    lock(&q->mutex);
    waiter_state state = w->state;
    if (state == WAITER_QUEUED) {
        side_unlink(s, w);
    }
    w->state = WAITER_IDLE;
    unlock(&q->mutex);

    // Take the posts that are there or on their way.
    int signalled = _Py_atomic_exchange_int(&w->signalled, 0);
    int posts = signalled + (state != WAITER_QUEUED) - (res == Py_PARK_OK);
    while (posts > 0) {
        posts -= (_PySemaphore_Wait(&w->sema, -1, 0) == Py_PARK_OK);
    }
    if (state == WAITER_ENDED) {
        return TURN_CLOSING;
    }
    if (signalled || res == Py_PARK_INTR) {
        return TURN_SIGNAL;
    }
    return (state == WAITER_WOKEN ? TURN_RETRY
            : state == WAITER_ROUSED ? TURN_ROUSED : TURN_TIMEOUT);
}

/* The same, for somebody who can be roused. */
static turn
park_and_spin(waiter *w, PyTime_t deadline)
{
    turn res;
    while ((res = park(w, deadline)) == TURN_ROUSED) {
        PyTime_t now;
        (void)PyTime_MonotonicRaw(&now);
        if (spin(w, now, deadline, ROUSED_NS)) {
            return TURN_RETRY;
        }
        if (deadline >= 0 && _PyDeadline_Get(deadline) <= 0) {
            return TURN_TIMEOUT;
        }
    }
    return res;
}

int
_PyParcel_QueueExpect(_PyParcel_Queue *q)
{
    if (registry.processors < 2) {
        return 0;
    }
    side *s = &q->gets;
    lock(&q->mutex);
    waiter *w = s->first;
    // If several wait, one of the others would be woken in vain.
    int roused = (w != NULL && w == s->last && w->bell == NULL);
    if (roused) {
        side_unlink(s, w);
        w->state = WAITER_ROUSED;
    }
    unlock(&q->mutex);
    if (roused) {
        _Py_atomic_add_int(&registry.roused, 1);
        // After this it may be gone.
        _PySemaphore_Wakeup(&w->sema);
    }
    return roused;
}

int
_PyParcel_CountRoused(void)
{
    return _Py_atomic_load_int(&registry.roused);
}

/* If the interpreter is being finalised the thread can end in one of these two:
   then its wake-up goes to someone else.  They are functions of their own, as
   pushing a cleanup handler can be a setjmp(). */
#ifdef HAVE_PTHREAD_H
#  define BEGIN_FORFEIT(w) pthread_cleanup_push(forfeit, (w))
#  define END_FORFEIT pthread_cleanup_pop(0)
#else
#  define BEGIN_FORFEIT(w) {
#  define END_FORFEIT }
#endif

static Py_NO_INLINE void
attach(PyThreadState *tstate, waiter *w)
{
    BEGIN_FORFEIT(w);
    PyEval_RestoreThread(tstate);
    END_FORFEIT;
}

static Py_NO_INLINE int
enter_section_slow(_PyRWGIL_Section *section, waiter *w)
{
    int res;
    BEGIN_FORFEIT(w);
    res = _PyRWGIL_WriteOwn(section);
    END_FORFEIT;
    return res;
}

static inline int
enter_section(_PyRWGIL_Section *section, waiter *w)
{
    return w != NULL ? enter_section_slow(section, w)
                     : _PyRWGIL_WriteOwn(section);
}

/* Attached before and after, detached between. */
static turn
wait_turn(waiter *w, PyTime_t deadline)
{
    turn res;
    PyThreadState *tstate = PyEval_SaveThread();
    PyTime_t start, end;
    (void)PyTime_MonotonicRaw(&start);
    int with_spin = (w->losses == 0 && spin_wanted(w->side, start));
    if (with_spin && spin(w, start, deadline, SPIN_NS)) {
        res = TURN_RETRY;
    }
    else {
        res = park_and_spin(w, deadline);
    }
    if (res == TURN_RETRY && w->losses == 0) {
        (void)PyTime_MonotonicRaw(&end);
        spin_learn(w->side, with_spin, end - start);
    }
    attach(tstate, w);
    return res;
}

/* What an attempt is to do.  The critical section is the hand-over: between the
   interpreter's heap and no heap. */
typedef struct {
    enum { JOB_GET, JOB_PUT, JOB_RESERVE } what;
    Py_ssize_t n;                   // get, reserve: how many at most, and then
                                    // how many it were
    _PyParcel *parcel;              // get: a chain of what was taken
} job;

static inline void
store_count(_PyParcel_Queue *q, Py_ssize_t count)
{
    _Py_atomic_store_ssize_relaxed(&q->count, count);
}

/* The queue's mutex is held. */
static void
link_parcels(_PyParcel_Queue *q, _PyParcel *first, _PyParcel *last,
             Py_ssize_t n)
{
    last->next = NULL;
    if (q->last != NULL) {
        q->last->next = first;
    }
    else {
        q->first = first;
    }
    q->last = last;
    store_count(q, q->count + n);
}

/* The queue's mutex is held. */
static void
take_parcels(_PyParcel_Queue *q, job *j, Py_ssize_t share)
{
    j->n = Py_MIN(j->n, share);
    _PyParcel *last = j->parcel = q->first;
    for (Py_ssize_t i = 1; i < j->n; i++) {
        last = last->next;
    }
    q->first = last->next;
    if (q->first == NULL) {
        q->last = NULL;
    }
    last->next = NULL;
    store_count(q, q->count - j->n);
}

/* The queue's mutex is held, and there is something. */
static inline void
do_job(_PyParcel_Queue *q, job *j, Py_ssize_t share)
{
    switch (j->what) {
    case JOB_GET:
        take_parcels(q, j, share);
        break;
    case JOB_PUT:
        link_parcels(q, j->parcel, j->parcel, 1);
        break;
    case JOB_RESERVE:
        j->n = Py_MIN(j->n, share);
        _Py_atomic_store_ssize_relaxed(&q->reserved, q->reserved + j->n);
        break;
    }
}

/* One attempt; w is NULL for the first. */
static _PyParcel_Status
attempt(_PyParcel_Queue *q, job *j, waiter *w)
{
    side *s = j->what == JOB_GET ? &q->gets : &q->puts;
    _PyParcel_Status nothing = j->what == JOB_GET ? _PyParcel_EMPTY
                                                  : _PyParcel_FULL;
    if ((w == NULL || !w->token) && !side_available(q, s, w)) {
        return nothing;
    }
    _PyRWGIL_Section section;
    if (j->what != JOB_RESERVE && enter_section(&section, w) < 0) {
        return _PyParcel_ERROR;
    }
    lock(&q->mutex);
    int available = side_available(q, s, w);
    if (available) {
        do_job(q, j, side_share(q, s, w));
    }
    if (w != NULL) {
        return_token(w, !available);
    }
    waiter *chain = pick(q);
    unlock(&q->mutex);
    if (j->what != JOB_RESERVE) {
        _PyRWGIL_WriteEnd(&section);
    }
    post_all(chain);
    return available ? _PyParcel_OK : nothing;
}

static _PyParcel_Status
attempt_waiting(_PyParcel_Home *home, _PyParcel_Queue *q, job *j,
                PyTime_t timeout)
{
    side *s = j->what == JOB_GET ? &q->gets : &q->puts;
    waiter w = {.home = home, .queue = q, .side = s};
    PyTime_t deadline = timeout < 0 ? -1 : _PyDeadline_Init(timeout);
    _PySemaphore_Init(&w.sema);
    int is_main = _Py_IsMainThread();
    waiter *before = is_main ? show_main_waiter(&w) : NULL;
    turn res = TURN_SIGNAL;
    _PyParcel_Status status;
    for (;;) {
        if (res == TURN_SIGNAL) {
            // Python code may run, and fork: nothing may be reserved for us.
            forfeit(&w);
            if (PyErr_CheckSignals() < 0) {
                status = _PyParcel_ERROR;
                break;
            }
        }
        res = wait_turn(&w, deadline);
        status = attempt(q, j, &w);
        if (status != _PyParcel_EMPTY && status != _PyParcel_FULL) {
            break;
        }
        if (res == TURN_CLOSING) {
            status = _PyParcel_CLOSING;
            break;
        }
        if (res == TURN_TIMEOUT
            || (deadline >= 0 && _PyDeadline_Get(deadline) <= 0))
        {
            break;
        }
    }
    forfeit(&w);
    if (is_main) {
        (void)show_main_waiter(before);
    }
    _PySemaphore_Destroy(&w.sema);
    return status;
}

static inline _PyParcel_Status
attempt_or_wait(_PyParcel_Home *home, _PyParcel_Queue *q, job *j,
                PyTime_t timeout)
{
    _PyParcel_Status status = attempt(q, j, NULL);
    if (timeout != 0
        && (status == _PyParcel_EMPTY || status == _PyParcel_FULL))
    {
        status = attempt_waiting(home, q, j, timeout);
    }
    return status;
}

_PyParcel_Status
_PyParcel_QueuePut(_PyParcel_Home *home, _PyParcel_Queue *q, _PyParcel *parcel,
                   int unbound, PyTime_t timeout)
{
    parcel->unbound = (uint8_t)unbound;
    job j = {JOB_PUT, 1, parcel};
    return attempt_or_wait(home, q, &j, timeout);
}

_PyParcel_Status
_PyParcel_QueueGet(_PyParcel_Home *home, _PyParcel_Queue *q, Py_ssize_t max,
                   _PyParcel **parcels, PyTime_t timeout)
{
    job j = {JOB_GET, Py_MIN(max, _PyParcel_MANY)};
    _PyParcel_Status status = attempt_or_wait(home, q, &j, timeout);
    if (status == _PyParcel_OK) {
        *parcels = j.parcel;
    }
    return status;
}

_PyParcel *
_PyParcel_Unchain(_PyParcel *parcel)
{
    _PyParcel *rest = parcel->next;
    parcel->next = NULL;
    return rest;
}

int
_PyParcel_Gone(_PyParcel *parcel)
{
    return parcel->gone;
}

void
_PyParcel_QueueUnget(_PyParcel_Queue *q, _PyParcel *parcels)
{
    Py_ssize_t n = 1;
    _PyParcel *last = parcels;
    while (last->next != NULL) {
        last = last->next;
        n++;
    }
    lock(&q->mutex);
    last->next = q->first;
    q->first = parcels;
    if (q->last == NULL) {
        q->last = last;
    }
    store_count(q, q->count + n);
    waiter *chain = pick(q);
    unlock(&q->mutex);
    post_all(chain);
}


/* --- Putting what is packed when it has its place (Q-7) ------------------ */

typedef struct {
    _PyParcel_Queue *queue;
    Py_ssize_t places;
    _PyParcel_Packer pack;
    void *arg;
    int unbound;
} reservation;

static void
give_back_places(void *arg)
{
    reservation *r = arg;
    _PyParcel_Queue *q = r->queue;
    lock(&q->mutex);
    _Py_atomic_store_ssize_relaxed(&q->reserved, q->reserved - r->places);
    waiter *chain = pick(q);
    unlock(&q->mutex);
    post_all(chain);
}

/* Pack for all places, or until one fails.  Returns a chain and its length. */
static _PyParcel *
pack_all(reservation *r, Py_ssize_t begin, _PyParcel **last, Py_ssize_t *n)
{
    _PyParcel *first = NULL;
    *last = NULL;
    for (*n = 0; *n < r->places; ++*n) {
        _PyParcel *parcel = r->pack(r->arg, begin + *n);
        if (parcel == NULL) {
            break;
        }
        parcel->unbound = (uint8_t)r->unbound;
        parcel->next = NULL;
        if (*last != NULL) {
            (*last)->next = parcel;
        }
        else {
            first = parcel;
        }
        *last = parcel;
    }
    return first;
}

/* What has been moved must go, so this happens even after a Ctrl-C, which is
   raised again afterwards. */
static void
enter_section_anyhow(_PyRWGIL_Section *section)
{
    PyObject *exc = PyErr_GetRaisedException();
    while (_PyRWGIL_WriteOwn(section) < 0) {
        Py_XSETREF(exc, PyErr_GetRaisedException());
    }
    PyErr_SetRaisedException(exc);
}

/* Returns how many were put; fewer than there are places: an exception. */
static Py_ssize_t
fill_places(reservation *r, Py_ssize_t begin)
{
    _PyParcel_Queue *q = r->queue;
    _PyParcel *last;
    Py_ssize_t n;
    _PyParcel *first = pack_all(r, begin, &last, &n);
    if (first == NULL) {
        give_back_places(r);
        return 0;
    }
    _PyRWGIL_Section section;
    enter_section_anyhow(&section);
    lock(&q->mutex);
    _Py_atomic_store_ssize_relaxed(&q->reserved, q->reserved - r->places);
    link_parcels(q, first, last, n);
    waiter *chain = pick(q);
    unlock(&q->mutex);
    _PyRWGIL_WriteEnd(&section);
    post_all(chain);
    return n;
}

/* A thread can end in here (see attach()). */
static Py_NO_INLINE Py_ssize_t
fill_places_slow(reservation *r, Py_ssize_t begin)
{
    Py_ssize_t n;
#ifdef HAVE_PTHREAD_H
    pthread_cleanup_push(give_back_places, r);
#endif
    n = fill_places(r, begin);
#ifdef HAVE_PTHREAD_H
    pthread_cleanup_pop(0);
#endif
    return n;
}

_PyParcel_Status
_PyParcel_QueuePutMany(_PyParcel_Home *home, _PyParcel_Queue *q,
                       _PyParcel_Packer pack, void *arg, Py_ssize_t n,
                       int unbound, PyTime_t timeout, Py_ssize_t *done)
{
    PyTime_t deadline = timeout > 0 ? _PyDeadline_Init(timeout) : 0;
    *done = 0;
    while (*done < n) {
        job j = {JOB_RESERVE, Py_MIN(n - *done, _PyParcel_MANY)};
        _PyParcel_Status status = attempt_or_wait(home, q, &j, timeout);
        if (status != _PyParcel_OK) {
            return status;
        }
        reservation r = {q, j.n, pack, arg, unbound};
        *done += fill_places_slow(&r, *done);
        if (PyErr_Occurred()) {
            return _PyParcel_ERROR;
        }
        if (timeout > 0) {
            timeout = Py_MAX(0, _PyDeadline_Get(deadline));
        }
    }
    return _PyParcel_OK;
}


/* --- Waiting without a thread -------------------------------------------- */

_PyParcel_Bell *
_PyParcel_BellNew(void)
{
    _PyParcel_Bell *bell = PyMem_RawMalloc(sizeof(*bell));
    if (bell == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    bell->refs = 1;
    if (pipe(bell->fds) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        PyMem_RawFree(bell);
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        if (_Py_set_inheritable(bell->fds[i], 0, NULL) < 0
            || _Py_set_blocking(bell->fds[i], 0) < 0)
        {
            _PyParcel_BellDrop(bell);
            return NULL;
        }
    }
    return bell;
}

void
_PyParcel_BellDrop(_PyParcel_Bell *bell)
{
    if (_Py_atomic_add_ssize(&bell->refs, -1) == 1) {
        close(bell->fds[0]);
        close(bell->fds[1]);
        PyMem_RawFree(bell);
    }
}

int
_PyParcel_BellFd(_PyParcel_Bell *bell)
{
    return bell->fds[0];
}

void
_PyParcel_BellSilence(_PyParcel_Bell *bell)
{
    char buffer[64];
    while (read(bell->fds[0], buffer, sizeof(buffer)) == sizeof(buffer)) {
    }
}

static void
wait_drop(_PyParcel_Wait *wait)
{
    if (_Py_atomic_add_ssize(&wait->refs, -1) == 1) {
        _PyParcel_BellDrop(wait->waiter.bell);
        _PyParcel_QueueDrop(wait->waiter.queue);
        _PyParcel_DropHome(wait->waiter.home);
        PyMem_RawFree(wait);
    }
}

static void
wait_ring(_PyParcel_Wait *wait)
{
    int err = errno;
    // If the pipe is full it rings already.
    (void)!write(wait->waiter.bell->fds[1], "", 1);
    errno = err;
    wait_drop(wait);
}

_PyParcel_Wait *
_PyParcel_WaitNew(_PyParcel_Home *home, _PyParcel_Queue *q, int to_put,
                  _PyParcel_Bell *bell)
{
    _PyParcel_Wait *wait = PyMem_RawCalloc(1, sizeof(*wait));
    if (wait == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    wait->refs = 1;
    wait->forks = registry.forks;
    waiter *w = &wait->waiter;
    w->home = home;
    w->queue = _PyParcel_QueueShare(q);
    w->side = to_put ? &q->puts : &q->gets;
    w->bell = bell;
    _Py_atomic_add_ssize(&home->refs, 1);
    _Py_atomic_add_ssize(&bell->refs, 1);
    return wait;
}

/* In a child process the queue has forgotten it.  The mutex is held. */
static waiter *
wait_use(_PyParcel_Wait *wait)
{
    waiter *w = &wait->waiter;
    if (wait->forks != registry.forks) {
        wait->forks = registry.forks;
        w->state = WAITER_IDLE;
        w->token = w->starved = 0;
    }
    return w;
}

/* Back to IDLE.  True if it had been ended. */
static int
wait_stop(_PyParcel_Wait *wait)
{
    _PyParcel_Queue *q = wait->waiter.queue;
    lock(&q->mutex);
    waiter *w = wait_use(wait);
    int ended = (w->state == WAITER_ENDED);
    if (w->state == WAITER_QUEUED) {
        side_unlink(w->side, w);
    }
    w->state = WAITER_IDLE;
    unlock(&q->mutex);
    return ended;
}

void
_PyParcel_WaitFree(_PyParcel_Wait *wait)
{
    (void)wait_stop(wait);
    forfeit(&wait->waiter);
    wait_drop(wait);
}

int
_PyParcel_WaitOver(_PyParcel_Wait *wait)
{
    _PyParcel_Queue *q = wait->waiter.queue;
    lock(&q->mutex);
    int over = (wait_use(wait)->state != WAITER_QUEUED);
    unlock(&q->mutex);
    return over;
}

/* An attempt failed: wait for another. */
static _PyParcel_Status
wait_begin(_PyParcel_Wait *wait, _PyParcel_Status nothing)
{
    _PyParcel_Queue *q = wait->waiter.queue;
    lock(&q->mutex);
    waiter *w = wait_use(wait);
    _PyParcel_Status status = nothing;
    if (side_available(q, w->side, w)) {
        status = _PyParcel_OK;
    }
    else if (_Py_atomic_load_int(&w->home->closing)) {
        status = _PyParcel_CLOSING;
    }
    else {
        side_enqueue(w->side, w);
    }
    unlock(&q->mutex);
    return status;
}

static _PyParcel_Status
wait_attempt(_PyParcel_Wait *wait, job *j)
{
    _PyParcel_Status status;
    if (wait_stop(wait)) {
        return _PyParcel_CLOSING;
    }
    do {
        status = attempt(wait->waiter.queue, j, &wait->waiter);
        if (status != _PyParcel_EMPTY && status != _PyParcel_FULL) {
            return status;
        }
        _PyParcel_Status nothing = status;
        status = wait_begin(wait, nothing);
    } while (status == _PyParcel_OK);
    return status;
}

_PyParcel_Status
_PyParcel_WaitGet(_PyParcel_Wait *wait, _PyParcel **parcel)
{
    job j = {JOB_GET, 1};
    _PyParcel_Status status = wait_attempt(wait, &j);
    if (status == _PyParcel_OK) {
        *parcel = j.parcel;
    }
    return status;
}

_PyParcel_Status
_PyParcel_WaitPut(_PyParcel_Wait *wait, _PyParcel_Packer pack, void *arg,
                  int unbound)
{
    job j = {JOB_RESERVE, 1};
    _PyParcel_Status status = wait_attempt(wait, &j);
    if (status == _PyParcel_OK) {
        reservation r = {wait->waiter.queue, j.n, pack, arg, unbound};
        (void)fill_places_slow(&r, 0);
        if (PyErr_Occurred()) {
            status = _PyParcel_ERROR;
        }
    }
    return status;
}


/* --- Lifetime ------------------------------------------------------------ */

_PyParcel_Queue *
_PyParcel_QueueNew(Py_ssize_t maxsize, _PyParcel_Unbound unbound)
{
    _PyParcel_Queue *q = PyMem_RawCalloc(1, sizeof(*q));
    if (q == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    q->maxsize = maxsize;
    q->capacity = maxsize > 0 ? maxsize : PY_SSIZE_T_MAX;
    q->unbound = unbound;
    q->refs = 1;
    side_init(&q->gets);
    side_init(&q->puts);
    lock(&registry.mutex);
    q->id = ++registry.last_id;
    q->prev = registry.last;
    if (registry.last != NULL) {
        registry.last->next = q;
    }
    else {
        registry.first = q;
    }
    registry.last = q;
    unlock(&registry.mutex);
    return q;
}

_PyParcel_Queue *
_PyParcel_QueueLookUp(int64_t id)
{
    lock(&registry.mutex);
    _PyParcel_Queue *q = registry.first;
    while (q != NULL && q->id != id) {
        q = q->next;
    }
    if (q != NULL) {
        _Py_atomic_add_ssize(&q->refs, 1);
    }
    unlock(&registry.mutex);
    return q;
}

_PyParcel_Queue *
_PyParcel_QueueShare(_PyParcel_Queue *q)
{
    _Py_atomic_add_ssize(&q->refs, 1);
    return q;
}

void
_PyParcel_QueueDrop(_PyParcel_Queue *q)
{
    Py_ssize_t refs = _Py_atomic_load_ssize(&q->refs);
    while (refs > 1) {
        if (_Py_atomic_compare_exchange_ssize(&q->refs, &refs, refs - 1)) {
            return;
        }
    }
    lock(&registry.mutex);
    refs = _Py_atomic_add_ssize(&q->refs, -1) - 1;
    if (refs == 0) {
        if (q->prev != NULL) {
            q->prev->next = q->next;
        }
        else {
            registry.first = q->next;
        }
        if (q->next != NULL) {
            q->next->prev = q->prev;
        }
        else {
            registry.last = q->prev;
        }
    }
    unlock(&registry.mutex);
    if (refs > 0) {
        return;
    }
    assert(q->gets.first == NULL && q->puts.first == NULL);
    _PyParcel *parcel = q->first;
    while (parcel != NULL) {
        _PyParcel *next = parcel->next;
        _PyParcel_Discard(parcel);
        parcel = next;
    }
    PyMem_RawFree(q);
}

Py_ssize_t
_PyParcel_QueueList(int64_t **ids)
{
    Py_ssize_t room = 16;
    for (;;) {
        *ids = PyMem_RawMalloc(room * sizeof(int64_t));
        if (*ids == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        Py_ssize_t n = 0;
        lock(&registry.mutex);
        for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
            if (n < room) {
                (*ids)[n] = q->id;
            }
            n++;
        }
        unlock(&registry.mutex);
        if (n <= room) {
            return n;
        }
        PyMem_RawFree(*ids);
        room = n + n / 4;
    }
}

int
_PyParcel_QueueIsFull(_PyParcel_Queue *q)
{
    return !side_available(q, &q->puts, NULL);
}

int64_t
_PyParcel_QueueId(_PyParcel_Queue *q)
{
    return q->id;
}

Py_ssize_t
_PyParcel_QueueMaxSize(_PyParcel_Queue *q)
{
    return q->maxsize;
}

_PyParcel_Unbound
_PyParcel_QueueUnbound(_PyParcel_Queue *q)
{
    return q->unbound;
}

Py_ssize_t
_PyParcel_QueueSize(_PyParcel_Queue *q)
{
    return load_count(q);
}


/* --- An interpreter goes ------------------------------------------------- */

/* The queue's mutex is held. */
static waiter *
end_waits(side *s, int64_t interpid, waiter *chain)
{
    waiter *w = s->first;
    while (w != NULL) {
        waiter *next = w->next;
        if (w->home->interpid == interpid) {
            side_unlink(s, w);
            w->state = WAITER_ENDED;
            chain = chain_add(chain, w);
        }
        w = next;
    }
    return chain;
}

void
_PyParcel_EndWaits(int64_t interpid)
{
    waiter *chain = NULL;
    lock(&registry.mutex);
    for (_PyParcel_Home *h = registry.homes; h != NULL; h = h->next) {
        if (h->interpid == interpid) {
            _Py_atomic_store_int(&h->closing, 1);
        }
    }
    for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
        lock(&q->mutex);
        chain = end_waits(&q->gets, interpid, chain);
        chain = end_waits(&q->puts, interpid, chain);
        unlock(&q->mutex);
    }
    unlock(&registry.mutex);
    post_all(chain);
}

/* The queue's mutex is held.  What is to be discarded goes to `removed`. */
static void
unbind_items(_PyParcel_Queue *q, int64_t interpid, _PyParcel **removed)
{
    _PyParcel *last = NULL;
    _PyParcel **link = &q->first;
    while (*link != NULL) {
        _PyParcel *parcel = *link;
        if (parcel->interpid == interpid && !parcel->gone
            && parcel->unbound == _PyParcel_UNBOUND_REMOVE)
        {
            *link = parcel->next;
            parcel->next = *removed;
            *removed = parcel;
            _Py_atomic_store_ssize_relaxed(&q->count, q->count - 1);
            continue;
        }
        if (parcel->interpid == interpid) {
            parcel->gone = parcel->unbound;
        }
        last = parcel;
        link = &parcel->next;
    }
    q->last = last;
}

/* The resources of one unbound item: nobody will open it, and its buffers can
   be released now, but not later. */
static struct _PyParcel_resource *
steal_resources(int64_t interpid, Py_ssize_t *n)
{
    struct _PyParcel_resource *found = NULL;
    lock(&registry.mutex);
    for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
        lock(&q->mutex);
        _PyParcel *p = q->first;
        while (p != NULL && !(p->interpid == interpid && p->graph.nresources > 0)) {
            p = p->next;
        }
        if (p != NULL) {
            assert(p->gone);
            found = p->graph.resources;
            *n = p->graph.nresources;
            p->graph.resources = NULL;
            p->graph.nresources = 0;
        }
        unlock(&q->mutex);
        if (found != NULL) {
            break;
        }
    }
    unlock(&registry.mutex);
    return found;
}

void
_PyParcel_Unbind(int64_t interpid)
{
    _PyParcel *removed = NULL;
    waiter *chain = NULL;
    lock(&registry.mutex);
    for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
        lock(&q->mutex);
        unbind_items(q, interpid, &removed);
        waiter *woken = pick(q);
        unlock(&q->mutex);
        while (woken != NULL) {
            waiter *next = woken->next;
            woken->next = chain;
            chain = woken;
            woken = next;
        }
    }
    unlock(&registry.mutex);
    post_all(chain);
    while (removed != NULL) {
        _PyParcel *next = removed->next;
        _PyParcel_Discard(removed);
        removed = next;
    }
    struct _PyParcel_resource *resources;
    Py_ssize_t n;
    while ((resources = steal_resources(interpid, &n)) != NULL) {
        _PyParcel_ReleaseResources(resources, n);
    }
}


/* --- Homes --------------------------------------------------------------- */

static int
count_processors(void)
{
#if defined(HAVE_SCHED_SETAFFINITY) && defined(CPU_COUNT)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
#ifdef _SC_NPROCESSORS_ONLN
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    if (n > 0) {
        return (int)n;
    }
#endif
    return 1;
}

#if defined(HAVE_FORK) && defined(HAVE_PTHREAD_H)
static void
before_fork(void)
{
    lock(&registry.mutex);
    for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
        lock(&q->mutex);
    }
}

static void
after_fork_parent(void)
{
    for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
        unlock(&q->mutex);
    }
    unlock(&registry.mutex);
}

static void
forget_waiters(side *s)
{
    s->first = s->last = NULL;
    s->woken = 0;
    s->starved = 0;
}

static void
after_fork_child(void)
{
    _PyMutex_at_fork_reinit(&registry.mutex);
    registry.spinners = 0;
    registry.reporters = 0;
    registry.forks++;
    if (!_Py_IsMainThread()) {
        registry.main_waiter = NULL;
    }
    for (_PyParcel_Queue *q = registry.first; q != NULL; q = q->next) {
        _PyMutex_at_fork_reinit(&q->mutex);
        forget_waiters(&q->gets);
        forget_waiters(&q->puts);
        q->reserved = 0;
    }
    // Other interpreters take no more calls.
    PyThreadState *tstate = _PyThreadState_GET();
    for (_PyParcel_Home *h = registry.homes; h != NULL; h = h->next) {
        _PyMutex_at_fork_reinit(&h->mutex);
        if (tstate == NULL || h->interp != tstate->interp) {
            h->interp = NULL;
        }
    }
}
#endif

static int
init_once(void *Py_UNUSED(arg))
{
    registry.processors = count_processors();
#if defined(HAVE_FORK) && defined(HAVE_PTHREAD_H)
    if (pthread_atfork(before_fork, after_fork_parent, after_fork_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
#endif
    return 0;
}

/* Called when the interpreter is cleared: its threads have been joined, its modules are
   gone, the last collection is still to come. */
static void
at_interpreter_exit(void *arg)
{
    _PyParcel_Home *home = arg;
    if (!_Py_IsMainInterpreter(home->interp)) {
        // In the main interpreter the process ends: threads that still wait
        // are daemon threads, which end when they try to attach.
        _PyParcel_EndWaits(home->interpid);
        _PyParcel_Unbind(home->interpid);
        _PyParcel_ReleaseReturned(home);
        _PyParcel_LeaveLent(home);
    }
    _PyParcel_ReleaseReturned(home);
    PyMutex_Lock(&home->mutex);
    home->interp = NULL;
    PyMutex_Unlock(&home->mutex);
    _PyParcel_ReleaseReturned(home);
    _PyParcel_DropHome(home);
}

_PyParcel_Home *
_PyParcel_NewHome(void)
{
    if (_PyOnceFlag_CallOnce(&registry.once, init_once, NULL) < 0) {
        return NULL;
    }
    _PyParcel_Home *home = PyMem_RawCalloc(1, sizeof(*home));
    if (home == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    home->interp = PyInterpreterState_Get();
    home->interpid = PyInterpreterState_GetID(home->interp);
    home->closing = home->interp->finalizing;
    home->refs = 2;                 // the caller and the exit function
    if (PyUnstable_AtExit(home->interp, at_interpreter_exit, home) < 0) {
        PyMem_RawFree(home);
        return NULL;
    }
    lock(&registry.mutex);
    home->next = registry.homes;
    registry.homes = home;
    unlock(&registry.mutex);
    return home;
}

void
_PyParcel_KeepAllLent(int64_t interpid, _PyMemHeap_Remains *remains)
{
    lock(&registry.mutex);
    for (_PyParcel_Home *home = registry.homes; home != NULL; home = home->next) {
        if (home->interpid == interpid) {
            _PyParcel_KeepLent(home, remains);
        }
    }
    unlock(&registry.mutex);
}

void
_PyParcel_HoldAllLent(int64_t interpid)
{
    lock(&registry.mutex);
    for (_PyParcel_Home *home = registry.homes; home != NULL; home = home->next) {
        if (home->interpid == interpid) {
            _PyParcel_HoldLent(home);
        }
    }
    unlock(&registry.mutex);
}

void
_PyParcel_DropHome(_PyParcel_Home *home)
{
    if (_Py_atomic_add_ssize(&home->refs, -1) != 1) {
        return;
    }
    lock(&registry.mutex);
    _PyParcel_Home **link = &registry.homes;
    while (*link != home) {
        link = &(*link)->next;
    }
    *link = home->next;
    unlock(&registry.mutex);
    _PyParcel_FreeClasses(home);
    PyMem_RawFree(home);
}
