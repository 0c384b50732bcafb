// Parcels and the queues that carry them from one interpreter to another.
//
// A parcel is a message that belongs to no interpreter: pack takes an object
// out of one, open makes an equal object in another (or the same).  Between
// the two it is inert: no Python code runs for it, no collector sees it, and
// nothing in it dies with an interpreter.
//
// A queue is process-wide and holds parcels in the order of their arrival.
//
// Terms
//
//   home        what one interpreter's `_parcels` module keeps for packing and
//               opening: its types for handles, its codec, its sentinels
//   handle      an object that stands for something process-wide: a Queue, a
//               Parcel, an Interpreter, a lent buffer
//   lent        a buffer of the sender that receivers look at in place
//   unbound     an item whose sender's interpreter has been destroyed
//
// Unless a function says otherwise, its caller is attached to the interpreter
// whose home it passes, and holds no mutex.
//
// Python/parcel_pack.c and parcel_open.c have the messages, Python/parcel_queue.c
// the queues and how threads wait on them.

#ifndef Py_INTERNAL_PARCEL_H
#define Py_INTERNAL_PARCEL_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_lock.h"          // PyMutex

typedef struct _PyParcel _PyParcel;
typedef struct _PyParcel_Queue _PyParcel_Queue;
typedef struct _PyParcel_Home _PyParcel_Home;
typedef struct _PyParcel_Lent _PyParcel_Lent;
struct _PyMemHeap_Remains;


/* --- Homes --------------------------------------------------------------- */

/* What get() does with an item whose sender's interpreter is gone. */
typedef enum {
    _PyParcel_UNBOUND_REMOVE = 1,   // as if it had never been put
    _PyParcel_UNBOUND_ERROR = 2,    // raise ItemInterpreterDestroyed
    _PyParcel_UNBOUND_REPLACE = 3,  // return the sentinel UNBOUND
} _PyParcel_Unbound;

#define _PyParcel_NSENTINELS 3

struct _PyParcel_Home {
    /* Read-only once set by _PyParcel_NewHome(). */
    int64_t interpid;

    /* Guarded by the list of all homes. */
    _PyParcel_Home *next;

    /* Atomic.  One for the module, one for each handle object and one for
       each buffer that is lent.  The memory outlives the interpreter. */
    Py_ssize_t refs;

    /* Atomic.  Set when the interpreter begins to close: waits end. */
    int closing;

    /* Guarded by the mutex: NULL once the interpreter no longer takes calls,
       and the buffers that have come back to be released by it. */
    PyMutex mutex;
    PyInterpreterState *interp;
    _PyParcel_Lent *returned;
    _PyParcel_Lent *lent;           // all, whoever has them

    /* The fields below belong to the interpreter: only a thread that is
       attached to it touches them.  The module that fills them in clears
       them again (NULL) when it is cleared; they are borrowed from it. */
    PyTypeObject *queue_type;
    PyTypeObject *parcel_type;
    PyTypeObject *lent_type;
    PyTypeObject *move_type;        // _PyParcel_MoveObject
    PyTypeObject *moved_types[2];   // MovedObject: without and with a GC header
    PyObject *moved_weak_types;     // list of those for weakly referenced objects
    PyObject *transfer_error;
    PyObject *moved_error;
    PyObject *sentinels[_PyParcel_NSENTINELS];
    PyObject *not_shareable_error;
    PyTypeObject *interpreter_type; // called with an id; or NULL
    void *moved;                    // parcel_moved.c: what MovedObjects were
    void *names;                    // parcel_reduce.c: what names have been found
    void *classes;                  // parcel_pack.c: how instances are taken
    struct _PyParcel_QueueObject *queues;   // all instances, not counted

    /* Givers of the handles that the module implements.  new_queue counts the
       queue by itself; the others take their reference over on success. */
    PyObject *(*new_queue)(_PyParcel_Home *, _PyParcel_Queue *);
    PyObject *(*new_parcel)(_PyParcel_Home *, _PyParcel *);
    PyObject *(*new_lent)(_PyParcel_Home *, _PyParcel_Lent *);
};

/* A home for the current interpreter.  It registers with the interpreter's
   exit functions, so that items become unbound and waits end when it closes. */
extern _PyParcel_Home *_PyParcel_NewHome(void);
extern void _PyParcel_DropHome(_PyParcel_Home *);

/* Cross-interpreter data of the base has been made of the object. */
extern void _PyParcel_NoteXIData(PyObject *obj);

/* The interpreter has ended: keep what it has lent of its memory. */
extern void _PyParcel_KeepAllLent(int64_t interpid,
                                  struct _PyMemHeap_Remains *remains);

/* Before that: and keep private copies whose statics it has lent from being used
   again, until those come back. */
extern void _PyParcel_HoldAllLent(int64_t interpid);

/* The handles that the module implements. */
typedef struct {
    PyObject_HEAD
    _PyParcel_Home *home;           // counted
    void *what;                     // counted: queue, parcel or lent buffer
} _PyParcel_HandleObject;

typedef struct _PyParcel_QueueObject {
    _PyParcel_HandleObject handle;
    struct _PyParcel_QueueObject *next;     // in home->queues
    struct _PyParcel_QueueObject *prev;
} _PyParcel_QueueObject;


/* --- Messages ------------------------------------------------------------ */

/* Take `obj` out of the current interpreter: a copy, and what is in a move() as it
   is.  NULL with an exception: NotShareableError, with what went wrong as its
   cause, TransferError, MovedError, MemoryError, KeyboardInterrupt, ...; then
   nothing has happened to the object. */
extern _PyParcel *_PyParcel_Pack(_PyParcel_Home *, PyObject *obj);

/* The same for an argument of a C function: `arg` is its place in the argument
   vector.  When that lies on the evaluation stack of the calling frame and has
   the only reference, nobody can see the object afterwards: it is moved.  The
   parcel is meant for `queue`, if that is not NULL: when much has to be packed,
   whoever waits there is told in time (see _PyParcel_QueueExpect()). */
extern _PyParcel *_PyParcel_PackArg(_PyParcel_Home *, PyObject *const *arg,
                                    _PyParcel_Queue *queue);

/* The same for a reference that only the caller knows of.  When the object is
   moved, None is left in its place. */
extern _PyParcel *_PyParcel_PackSlot(_PyParcel_Home *, PyObject **slot);

/* Make the object in the current interpreter.  On failure the parcel stays whole;
   once it has been opened there is nothing left in it, and it is a TransferError
   to open it again. */
extern PyObject *_PyParcel_Open(_PyParcel_Home *, _PyParcel *);

extern _PyParcel *_PyParcel_Share(_PyParcel *);
/* The last one frees.  No exception is touched.  A thread state is needed only
   for a parcel that refers to buffers, to interpreters or to other
   cross-interpreter data; the last handle of an interpreter closes it. */
extern void _PyParcel_Discard(_PyParcel *);

/* True when pack runs no code for it. */
extern int _PyParcel_IsNative(_PyParcel_Home *, PyObject *);

/* How many objects went in which way. */
typedef struct {
    Py_ssize_t shared;
    Py_ssize_t moved;
    Py_ssize_t copied;
    Py_ssize_t rebuilt;
    Py_ssize_t reduced;
} _PyParcel_Stats;

extern void _PyParcel_GetStats(_PyParcel *, _PyParcel_Stats *);
extern int _PyParcel_Opened(_PyParcel *);           // has it been opened?

extern int64_t _PyParcel_Interp(_PyParcel *);       // id of the sender
extern size_t _PyParcel_Size(_PyParcel *);          // bytes of memory

extern const Py_buffer *_PyParcel_LentBuffer(_PyParcel_Lent *);
/* The last one gives the buffer back to the interpreter that lent it.  If that is gone,
   the memory is freed if it is known how, else it stays valid for ever.  Needs a thread
   state. */
extern void _PyParcel_LentDrop(_PyParcel_Lent *);

/* Release what came back to this interpreter. */
extern void _PyParcel_ReleaseReturned(_PyParcel_Home *);


/* --- Queues -------------------------------------------------------------- */

/* maxsize <= 0: unbounded.  The queue is counted; NULL is MemoryError. */
extern _PyParcel_Queue *_PyParcel_QueueNew(Py_ssize_t maxsize,
                                           _PyParcel_Unbound unbound);
/* NULL (no exception) if there is none. */
extern _PyParcel_Queue *_PyParcel_QueueLookUp(int64_t id);
extern _PyParcel_Queue *_PyParcel_QueueShare(_PyParcel_Queue *);
extern void _PyParcel_QueueDrop(_PyParcel_Queue *);
/* Ids of all queues, in ascending order; *ids is RAW memory. -1: no memory. */
extern Py_ssize_t _PyParcel_QueueList(int64_t **ids);

extern int64_t _PyParcel_QueueId(_PyParcel_Queue *);
/* As it was asked for: may be negative. */
extern Py_ssize_t _PyParcel_QueueMaxSize(_PyParcel_Queue *);
extern _PyParcel_Unbound _PyParcel_QueueUnbound(_PyParcel_Queue *);
extern Py_ssize_t _PyParcel_QueueSize(_PyParcel_Queue *);   // just now

typedef enum {
    _PyParcel_OK = 0,
    _PyParcel_EMPTY = 1,            // or the time was up
    _PyParcel_FULL = 2,             // or the time was up
    _PyParcel_CLOSING = 3,          // this interpreter closes: no more waits
    _PyParcel_ERROR = -1,           // an exception is set: a signal's handler
} _PyParcel_Status;

/* timeout in ns; 0: do not wait; < 0: as long as it takes.  The caller keeps the
   queue alive. */

/* Takes the parcel over, on _PyParcel_OK only. */
extern _PyParcel_Status _PyParcel_QueuePut(_PyParcel_Home *, _PyParcel_Queue *,
                                           _PyParcel *, int unbound,
                                           PyTime_t timeout);

/* Take at least one parcel and at most `max` or _PyParcel_MANY: a chain.  The
   caller discards each. */
#define _PyParcel_MANY 1024         // bounds how long a queue is held
extern _PyParcel_Status _PyParcel_QueueGet(_PyParcel_Home *, _PyParcel_Queue *,
                                           Py_ssize_t max, _PyParcel **,
                                           PyTime_t timeout);
/* Take the first off a chain; returns the rest, or NULL. */
extern _PyParcel *_PyParcel_Unchain(_PyParcel *);
/* 0, or what is to be done with the parcel of a destroyed interpreter. */
extern int _PyParcel_Gone(_PyParcel *);
/* Put a chain back as if it had not been taken. */
extern void _PyParcel_QueueUnget(_PyParcel_Queue *, _PyParcel *);

/* Pack something into each of n places.  A place is reserved before pack(arg, i)
   is called for it, so what has been packed is put in any case: for what can't be
   packed without being moved.  *done is how many were put.  If pack fails, those
   before it have been put: _PyParcel_ERROR. */
typedef _PyParcel *(*_PyParcel_Packer)(void *arg, Py_ssize_t i);
extern _PyParcel_Status _PyParcel_QueuePutMany(
    _PyParcel_Home *, _PyParcel_Queue *, _PyParcel_Packer pack, void *arg,
    Py_ssize_t n, int unbound, PyTime_t timeout, Py_ssize_t *done);

/* Something will be put within a tenth of a millisecond or so.  The thread that sleeps
   for it, if there is just one, is woken and spins: for a core that sleeps, too, waking
   takes about as long.  Nothing is promised: it may be late, or not come.  True if there
   was such a thread.  No thread state is needed. */
PyAPI_FUNC(int) _PyParcel_QueueExpect(_PyParcel_Queue *);
/* How often that was true, in this process. */
PyAPI_FUNC(int) _PyParcel_CountRoused(void);

/* Would put have to wait just now? */
extern int _PyParcel_QueueIsFull(_PyParcel_Queue *);

/* For an event loop: a bell is a file descriptor that becomes readable when one
   of its waits may be over, until it is silenced. */
typedef struct _PyParcel_Bell _PyParcel_Bell;
extern _PyParcel_Bell *_PyParcel_BellNew(void);
extern void _PyParcel_BellDrop(_PyParcel_Bell *);
extern int _PyParcel_BellFd(_PyParcel_Bell *);
extern void _PyParcel_BellSilence(_PyParcel_Bell *);

/* A wait to put or to get.  Get and Put try; on _PyParcel_EMPTY and
   _PyParcel_FULL the bell will ring, and Over be true, when they should be
   called again.  WaitFree() in between gives up: nothing is lost. */
typedef struct _PyParcel_Wait _PyParcel_Wait;
extern _PyParcel_Wait *_PyParcel_WaitNew(_PyParcel_Home *, _PyParcel_Queue *,
                                         int to_put, _PyParcel_Bell *);
extern void _PyParcel_WaitFree(_PyParcel_Wait *);
extern int _PyParcel_WaitOver(_PyParcel_Wait *);
extern _PyParcel_Status _PyParcel_WaitGet(_PyParcel_Wait *, _PyParcel **);
extern _PyParcel_Status _PyParcel_WaitPut(_PyParcel_Wait *, _PyParcel_Packer,
                                          void *arg, int unbound);

/* A signal has been noted: should the main thread wait, it looks at it.  Called
   by the C handler in any thread; async-signal-safe. */
extern void _PyParcel_SignalReceived(void);

/* The interpreter begins to close: its threads' waits end with
   _PyParcel_CLOSING, now and from now on.  Needs no thread state. */
extern void _PyParcel_EndWaits(int64_t interpid);
/* The items that came from this interpreter become unbound. */
extern void _PyParcel_Unbind(int64_t interpid);


#endif   // !Py_INTERNAL_PARCEL_H
