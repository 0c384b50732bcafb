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
// Python/parcel_message.c has the messages, Python/parcel_queue.c the queues
// and how threads wait on them.

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

    /* The fields below belong to the interpreter: only a thread that is
       attached to it touches them.  The module that fills them in clears
       them again (NULL) when it is cleared; they are borrowed from it. */
    PyTypeObject *queue_type;
    PyTypeObject *parcel_type;
    PyTypeObject *lent_type;
    PyObject *sentinels[_PyParcel_NSENTINELS];
    PyObject *not_shareable_error;
    PyObject *dumps;                // callable(obj) -> bytes-like
    PyObject *loads;                // callable(bytes) -> obj
    PyTypeObject *interpreter_type; // called with an id; or NULL
    struct _PyParcel_coding *codings;   // calls of dumps() under way
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

/* Take `obj` out of the current interpreter.  What is not native goes through
   the home's codec.  NULL with an exception: NotShareableError, with what went
   wrong as its cause, or MemoryError, KeyboardInterrupt, ...; then nothing has
   happened to the object. */
extern _PyParcel *_PyParcel_Pack(_PyParcel_Home *, PyObject *obj);

/* Make the object in the current interpreter.  The parcel stays whole, also
   on failure, and can be opened any number of times. */
extern PyObject *_PyParcel_Open(_PyParcel_Home *, _PyParcel *);

extern _PyParcel *_PyParcel_Share(_PyParcel *);
/* The last one frees.  No exception is touched.  A thread state is needed only
   for a parcel that refers to buffers, to interpreters or to other
   cross-interpreter data; the last handle of an interpreter closes it. */
extern void _PyParcel_Discard(_PyParcel *);

/* True when pack needs no codec for it. */
extern int _PyParcel_IsNative(_PyParcel_Home *, PyObject *);

extern int64_t _PyParcel_Interp(_PyParcel *);       // id of the sender
extern size_t _PyParcel_Size(_PyParcel *);          // bytes of memory

/* A pack call that is under way in this thread keeps `queue` alive until its
   parcel is discarded.  For Queue.__reduce__: a queue inside a pickle is only
   an id there.  0, or -1 with MemoryError. */
extern int _PyParcel_Mention(_PyParcel_Home *, _PyParcel_Queue *queue);

extern const Py_buffer *_PyParcel_LentBuffer(_PyParcel_Lent *);
/* The last one gives the buffer back to the interpreter that lent it, or
   leaves it be if that is gone: then its memory stays valid for ever. */
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

/* timeout in ns; 0: do not wait; < 0: as long as it takes.

   put takes the parcel over, on _PyParcel_OK only.  get hands it to the
   caller, who discards it; *gone is 0, or what is to be done with the parcel
   of a destroyed interpreter.  The caller keeps the queue alive. */
extern _PyParcel_Status _PyParcel_QueuePut(_PyParcel_Home *, _PyParcel_Queue *,
                                           _PyParcel *, int unbound,
                                           PyTime_t timeout);
extern _PyParcel_Status _PyParcel_QueueGet(_PyParcel_Home *, _PyParcel_Queue *,
                                           _PyParcel **, int *gone,
                                           PyTime_t timeout);

/* A signal has been noted: should the main thread wait, it looks at it.  Called
   by the C handler in any thread; async-signal-safe. */
extern void _PyParcel_SignalReceived(void);

/* The interpreter begins to close: its threads' waits end with
   _PyParcel_CLOSING, now and from now on.  Needs no thread state. */
extern void _PyParcel_EndWaits(int64_t interpid);
/* The items that came from this interpreter become unbound. */
extern void _PyParcel_Unbind(int64_t interpid);


/* --- Used by the two files only ------------------------------------------ */

struct _PyParcel_resource;

struct _PyParcel {
    _PyParcel *next;                // guarded by the queue that holds it
    Py_ssize_t refs;                // atomic
    int64_t interpid;               // read-only
    uint8_t unbound;                // written before it is put: what to do if
                                    // the sender goes
    uint8_t gone;                   // guarded by the queue: that has happened
    struct _PyParcel_resource *resources;   // what is counted or owed
    Py_ssize_t nresources;
    size_t size;                    // bytes of content
    char content[];
};

extern void _PyParcel_ReleaseResources(struct _PyParcel_resource *, Py_ssize_t);

#endif   // !Py_INTERNAL_PARCEL_H
