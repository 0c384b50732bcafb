// Parcels: messages between interpreters.  See pycore_parcel.h.
//
// What is in a parcel
//
//   content     one tag per object, followed by what that tag needs; a tuple
//               is its length and then its items.  Numbers are in the machine's
//               own form and not aligned.  No pointer stands in it.
//   resources   what the content refers to by index and what is counted or owed:
//               queues, other parcels, lent buffers, cross-interpreter data of
//               types that other modules register
//
// Both lie in RAW memory, which belongs to the process.  For each tag there is
// one taker (in take_object) and one giver (in give_object); they mirror each
// other.  Tuples are walked with a stack of our own: a deep one must not
// overflow the C stack.
//
// Guarantees
//
//   P-1  A parcel is written by the thread that packs it only, and not changed
//        once it is packed.  So any number of threads may open it at once.
//   P-2  A failed pack leaves no reference, no memory and no lent buffer behind.
//   P-3  What must be released in its own interpreter is released there, or,
//        if that is gone, never: then its memory stays valid.
//
// Lent buffers
//
//   A memoryview is lent: the receivers see the same bytes.  The sender's buffer
//   is exported once per parcel and counted by everyone who may look at it.  The
//   last one gives it back.  In another interpreter it can't be released at
//   once; it goes on the list of its home and a pending call is asked for.

#include "Python.h"
#include "pycore_ceval.h"         // _PyEval_AddPendingCall()
#include "pycore_crossinterp.h"   // _PyCrossInterpreterData_Lookup()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_long.h"          // _PyLong_SetSignAndDigitCount()
#include "pycore_parcel.h"
#include "pycore_pyerrors.h"      // _PyErr_FormatFromCause()
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_rwinterp.h"      // _PyRWInterp_Enter()


/* --- Resources ----------------------------------------------------------- */

typedef enum {
    RESOURCE_QUEUE,
    RESOURCE_PARCEL,
    RESOURCE_LENT,
    RESOURCE_XIDATA,
    RESOURCE_INTERPRETER,           // counted; `what` is its id
} resource_kind;

typedef struct _PyParcel_resource {
    resource_kind kind;
    void *what;
} resource;

struct _PyParcel_Lent {
    Py_ssize_t refs;                // atomic
    _PyParcel_Home *home;           // counted: the lender's
    _PyParcel_Lent *next;           // guarded by the home: its list
    Py_buffer view;
};

static _PyParcel_Lent *
lend(_PyParcel_Home *home, PyObject *obj)
{
    _PyParcel_Lent *lent = PyMem_RawMalloc(sizeof(*lent));
    if (lent == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (PyObject_GetBuffer(obj, &lent->view, PyBUF_FULL_RO) < 0) {
        PyMem_RawFree(lent);
        return NULL;
    }
    lent->refs = 1;
    lent->next = NULL;
    lent->home = home;
    _Py_atomic_add_ssize(&home->refs, 1);
    return lent;
}

const Py_buffer *
_PyParcel_LentBuffer(_PyParcel_Lent *lent)
{
    return &lent->view;
}

static void
release_lent(_PyParcel_Lent *lent)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyBuffer_Release(&lent->view);
    PyErr_SetRaisedException(exc);
    _PyParcel_Home *home = lent->home;
    PyMem_RawFree(lent);
    _PyParcel_DropHome(home);
}

void
_PyParcel_ReleaseReturned(_PyParcel_Home *home)
{
    PyMutex_Lock(&home->mutex);
    _PyParcel_Lent *lent = home->returned;
    home->returned = NULL;
    PyMutex_Unlock(&home->mutex);
    while (lent != NULL) {
        _PyParcel_Lent *next = lent->next;
        release_lent(lent);
        lent = next;
    }
}

static int
release_returned_later(void *arg)
{
    _PyParcel_Home *home = arg;
    _PyParcel_ReleaseReturned(home);
    _PyParcel_DropHome(home);
    return 0;
}

void
_PyParcel_LentDrop(_PyParcel_Lent *lent)
{
    if (_Py_atomic_add_ssize(&lent->refs, -1) != 1) {
        return;
    }
    _PyParcel_Home *home = lent->home;
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate != NULL && tstate->interp->id == home->interpid) {
        release_lent(lent);
        return;
    }
    // The home's mutex is the one of this file that is waited for detached:
    // asking for a pending call takes a mutex of the base that does so too.
    PyMutex_Lock(&home->mutex);
    if (home->interp == NULL) {
        // P-3: the exporter stays referenced, so its memory is never reused.
        PyMutex_Unlock(&home->mutex);
        PyMem_RawFree(lent);
        _PyParcel_DropHome(home);
        return;
    }
    int first = (home->returned == NULL);
    lent->next = home->returned;
    home->returned = lent;
    if (first) {
        // When there is no room for the call, the list waits for the next
        // buffer that comes back, or for the interpreter's end.
        _Py_atomic_add_ssize(&home->refs, 1);
        if (_PyEval_AddPendingCall(home->interp, release_returned_later,
                                   home, 0) != _Py_ADD_PENDING_SUCCESS)
        {
            _Py_atomic_add_ssize(&home->refs, -1);
        }
    }
    PyMutex_Unlock(&home->mutex);
}

/* One more handle for an interpreter, so that it isn't closed for want of any
   while the parcel is under way.  0 if it is gone: sending its id is no error. */
static int
count_interpreter(int64_t id)
{
    int counted = 0;
    if (_PyRWInterp_Enter(id, _PyRWInterp_GLANCE) == 0) {
        PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
        counted = (interp != NULL && _PyInterpreterState_IDIncref(interp) == 0);
        _PyRWInterp_Leave(id, _PyRWInterp_GLANCE);
    }
    PyErr_Clear();
    return counted;
}

/* As a handle does that goes away; that can close the interpreter. */
static void
uncount_interpreter(int64_t id)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
    if (interp != NULL) {
        _PyInterpreterState_IDDecref(interp);
    }
    PyErr_SetRaisedException(exc);
}

void
_PyParcel_ReleaseResources(resource *resources, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        void *what = resources[i].what;
        switch (resources[i].kind) {
        case RESOURCE_QUEUE:
            _PyParcel_QueueDrop(what);
            break;
        case RESOURCE_PARCEL:
            _PyParcel_Discard(what);
            break;
        case RESOURCE_LENT:
            _PyParcel_LentDrop(what);
            break;
        case RESOURCE_XIDATA: {
            PyObject *exc = PyErr_GetRaisedException();
            (void)_PyCrossInterpreterData_ReleaseAndRawFree(what);
            PyErr_SetRaisedException(exc);
            break;
        }
        case RESOURCE_INTERPRETER:
            uncount_interpreter((intptr_t)what);
            break;
        }
    }
    PyMem_RawFree(resources);
}


/* --- Lifetime ------------------------------------------------------------ */

_PyParcel *
_PyParcel_Share(_PyParcel *parcel)
{
    _Py_atomic_add_ssize(&parcel->refs, 1);
    return parcel;
}

/* Parcels that this thread is about to free: one can refer to another, by
   itself or by a queue, to any depth. */
static _Py_thread_local _PyParcel *doomed;
static _Py_thread_local int freeing;

void
_PyParcel_Discard(_PyParcel *parcel)
{
    if (_Py_atomic_add_ssize(&parcel->refs, -1) != 1) {
        return;
    }
    if (parcel->nresources == 0) {
        PyMem_RawFree(parcel);
        return;
    }
    parcel->next = doomed;
    doomed = parcel;
    if (freeing) {
        return;
    }
    freeing = 1;
    while (doomed != NULL) {
        parcel = doomed;
        doomed = parcel->next;
        _PyParcel_ReleaseResources(parcel->resources, parcel->nresources);
        PyMem_RawFree(parcel);
    }
    freeing = 0;
}

int64_t
_PyParcel_Interp(_PyParcel *parcel)
{
    return parcel->interpid;
}

size_t
_PyParcel_Size(_PyParcel *parcel)
{
    return (sizeof(_PyParcel) + parcel->size
            + parcel->nresources * sizeof(resource));
}


/* --- Tags ---------------------------------------------------------------- */

typedef enum {
    TAG_FOREIGN = 0,    // not native: for the codec
    TAG_NONE,
    TAG_FALSE,
    TAG_TRUE,
    TAG_ELLIPSIS,
    TAG_NOT_IMPLEMENTED,
    TAG_INT,            // int64_t
    TAG_BIGINT,         // char: is negative; Py_ssize_t: n; n digits
    TAG_FLOAT,          // double
    TAG_COMPLEX,        // Py_complex
    TAG_STR,            // char: kind, or 0 for ASCII; Py_ssize_t; characters
    TAG_BYTES,          // Py_ssize_t; bytes
    TAG_TUPLE,          // Py_ssize_t: n; n objects
    TAG_SENTINEL,       // char: which
    TAG_INTERPRETER,    // int64_t
    TAG_QUEUE,          // Py_ssize_t: resource
    TAG_PARCEL,         // Py_ssize_t: resource
    TAG_LENT,           // Py_ssize_t: resource
    TAG_XIDATA,         // Py_ssize_t: resource
    TAG_CODED,          // Py_ssize_t; what the codec made of it
} parcel_tag;

static int
sentinel_index(_PyParcel_Home *home, PyObject *obj)
{
    for (int i = 0; i < _PyParcel_NSENTINELS; i++) {
        if (home->sentinels[i] == obj) {
            return i;
        }
    }
    return -1;
}

static parcel_tag
find_tag(_PyParcel_Home *home, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyLong_Type) {
        return _PyLong_IsCompact((PyLongObject *)obj) ? TAG_INT : TAG_BIGINT;
    }
    if (type == &PyUnicode_Type) {
        return TAG_STR;
    }
    if (obj == Py_None) {
        return TAG_NONE;
    }
    if (type == &PyTuple_Type) {
        return TAG_TUPLE;
    }
    if (type == &PyBytes_Type) {
        return TAG_BYTES;
    }
    if (type == &PyFloat_Type) {
        return TAG_FLOAT;
    }
    if (type == &PyBool_Type) {
        return obj == Py_True ? TAG_TRUE : TAG_FALSE;
    }
    if (type == &PyComplex_Type) {
        return TAG_COMPLEX;
    }
    if (type == &PyMemoryView_Type) {
        return TAG_LENT;
    }
    if (type == home->queue_type) {
        return TAG_QUEUE;
    }
    if (type == home->parcel_type) {
        return TAG_PARCEL;
    }
    if (home->interpreter_type != NULL && type == home->interpreter_type) {
        return TAG_INTERPRETER;
    }
    if (obj == Py_Ellipsis) {
        return TAG_ELLIPSIS;
    }
    if (obj == Py_NotImplemented) {
        return TAG_NOT_IMPLEMENTED;
    }
    if (sentinel_index(home, obj) >= 0) {
        return TAG_SENTINEL;
    }
    if (_PyCrossInterpreterData_Lookup(obj) != NULL) {
        return TAG_XIDATA;
    }
    return TAG_FOREIGN;
}


/* --- A stack of tuples that are being walked ----------------------------- */

typedef struct {
    PyObject *tuple;
    Py_ssize_t next;                // index of the next item
} level;

typedef struct {
    level *levels;
    Py_ssize_t used;
    Py_ssize_t allocated;
    level inplace[8];
} stack;

static void
stack_init(stack *s)
{
    s->levels = s->inplace;
    s->used = 0;
    s->allocated = Py_ARRAY_LENGTH(s->inplace);
}

static void
stack_free(stack *s)
{
    if (s->levels != s->inplace) {
        PyMem_RawFree(s->levels);
    }
}

static int
stack_push(stack *s, PyObject *tuple)
{
    if (s->used == s->allocated) {
        size_t size = s->allocated * sizeof(level);
        level *levels = PyMem_RawRealloc(
            s->levels == s->inplace ? NULL : s->levels, 2 * size);
        if (levels == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        if (s->levels == s->inplace) {
            memcpy(levels, s->inplace, size);
        }
        s->levels = levels;
        s->allocated *= 2;
    }
    s->levels[s->used++] = (level){tuple, 0};
    return 0;
}

/* The innermost tuple that has items left; NULL if there is none. */
static level *
stack_top(stack *s)
{
    while (s->used > 0) {
        level *top = &s->levels[s->used - 1];
        if (top->next < PyTuple_GET_SIZE(top->tuple)) {
            return top;
        }
        s->used--;
    }
    return NULL;
}


/* --- Taking -------------------------------------------------------------- */

typedef struct {
    _PyParcel *parcel;
    size_t allocated;               // bytes of content
    Py_ssize_t resources_allocated;
} packer;

/* A call of dumps() that is under way, in the home's list.  Not on the C stack:
   when the interpreter closes, a thread that is in dumps() can be ended, and its
   entry stays. */
typedef struct _PyParcel_coding {
    struct _PyParcel_coding *next;
    uint64_t thread;                // id of the thread state, never used again
    packer *packer;
} coding;

// Room that suits most messages: the allocator rounds up to about that anyway.
#define FIRST_CONTENT 32

static int
packer_init(packer *p, _PyParcel_Home *home)
{
    _PyParcel *parcel = PyMem_RawMalloc(sizeof(_PyParcel) + FIRST_CONTENT);
    if (parcel == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memset(parcel, 0, sizeof(*parcel));
    parcel->refs = 1;
    parcel->interpid = home->interpid;
    p->parcel = parcel;
    p->allocated = FIRST_CONTENT;
    p->resources_allocated = 0;
    return 0;
}

static char *
reserve(packer *p, size_t n)
{
    _PyParcel *parcel = p->parcel;
    size_t used = parcel->size;
    if (n > p->allocated - used) {
        if (n > (size_t)PY_SSIZE_T_MAX / 2 - used) {
            PyErr_NoMemory();
            return NULL;
        }
        size_t wanted = Py_MAX(used + n, 2 * p->allocated);
        parcel = PyMem_RawRealloc(parcel, sizeof(_PyParcel) + wanted);
        if (parcel == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        p->parcel = parcel;
        p->allocated = wanted;
    }
    parcel->size += n;
    return parcel->content + used;
}

/* A tag and a number of bytes that go with it. */
static int
write_tag(packer *p, parcel_tag tag, const void *data, size_t size)
{
    char *at = reserve(p, 1 + size);
    if (at == NULL) {
        return -1;
    }
    at[0] = (char)tag;
    if (size > 0) {
        memcpy(at + 1, data, size);
    }
    return 0;
}

/* A tag, a flag if it has one, a length, and that many units. */
static int
write_run(packer *p, parcel_tag tag, int flag, Py_ssize_t length,
          const void *data, size_t unit)
{
    int hasflag = (flag >= 0);
    size_t size = (size_t)length * unit;
    char *at = reserve(p, 1 + hasflag + sizeof(length) + size);
    if (at == NULL) {
        return -1;
    }
    *at++ = (char)tag;
    if (hasflag) {
        *at++ = (char)flag;
    }
    memcpy(at, &length, sizeof(length));
    memcpy(at + sizeof(length), data, size);
    return 0;
}

/* Takes `what` over on success only. */
static int
add_resource(packer *p, resource_kind kind, void *what)
{
    _PyParcel *parcel = p->parcel;
    if (parcel->nresources == p->resources_allocated) {
        Py_ssize_t wanted = Py_MAX(2, 2 * p->resources_allocated);
        resource *all = PyMem_RawRealloc(parcel->resources,
                                         wanted * sizeof(resource));
        if (all == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        parcel->resources = all;
        p->resources_allocated = wanted;
    }
    parcel->resources[parcel->nresources++] = (resource){kind, what};
    return 0;
}

static int
write_resource(packer *p, parcel_tag tag, resource_kind kind, void *what)
{
    Py_ssize_t index = p->parcel->nresources;
    if (write_tag(p, tag, &index, sizeof(index)) < 0) {
        return -1;
    }
    return add_resource(p, kind, what);
}

static int
take_queue(packer *p, PyObject *obj)
{
    _PyParcel_Queue *queue = ((_PyParcel_HandleObject *)obj)->what;
    _PyParcel_QueueShare(queue);
    if (write_resource(p, TAG_QUEUE, RESOURCE_QUEUE, queue) < 0) {
        _PyParcel_QueueDrop(queue);
        return -1;
    }
    return 0;
}

static int
take_parcel(packer *p, PyObject *obj)
{
    _PyParcel *parcel = ((_PyParcel_HandleObject *)obj)->what;
    _PyParcel_Share(parcel);
    if (write_resource(p, TAG_PARCEL, RESOURCE_PARCEL, parcel) < 0) {
        _PyParcel_Discard(parcel);
        return -1;
    }
    return 0;
}

static int
take_buffer(packer *p, _PyParcel_Home *home, PyObject *obj)
{
    _PyParcel_Lent *lent = lend(home, obj);
    if (lent == NULL) {
        return -1;
    }
    if (write_resource(p, TAG_LENT, RESOURCE_LENT, lent) < 0) {
        _PyParcel_LentDrop(lent);
        return -1;
    }
    return 0;
}

static int
take_xidata(packer *p, PyObject *obj)
{
    _PyCrossInterpreterData *data = PyMem_RawCalloc(1, sizeof(*data));
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (_PyObject_GetCrossInterpreterData(obj, data) < 0) {
        PyMem_RawFree(data);
        return -1;
    }
    if (write_resource(p, TAG_XIDATA, RESOURCE_XIDATA, data) < 0) {
        PyObject *exc = PyErr_GetRaisedException();
        (void)_PyCrossInterpreterData_ReleaseAndRawFree(data);
        PyErr_SetRaisedException(exc);
        return -1;
    }
    return 0;
}

static int
take_interpreter(packer *p, PyObject *obj)
{
    PyObject *idobj = PyObject_GetAttrString(obj, "id");
    if (idobj == NULL) {
        return -1;
    }
    int64_t id = PyLong_AsLongLong(idobj);
    Py_DECREF(idobj);
    if (id == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (write_tag(p, TAG_INTERPRETER, &id, sizeof(id)) < 0) {
        return -1;
    }
    if (count_interpreter(id)
        && add_resource(p, RESOURCE_INTERPRETER, (void *)(intptr_t)id) < 0)
    {
        uncount_interpreter(id);
        return -1;
    }
    return 0;
}

/* Everything but tuples, which the caller walks. */
static int
take_object(packer *p, _PyParcel_Home *home, parcel_tag tag, PyObject *obj)
{
    switch (tag) {
    case TAG_NONE:
    case TAG_FALSE:
    case TAG_TRUE:
    case TAG_ELLIPSIS:
    case TAG_NOT_IMPLEMENTED:
        return write_tag(p, tag, NULL, 0);
    case TAG_INT: {
        int64_t value = _PyLong_CompactValue((PyLongObject *)obj);
        return write_tag(p, tag, &value, sizeof(value));
    }
    case TAG_BIGINT: {
        PyLongObject *number = (PyLongObject *)obj;
        return write_run(p, tag, _PyLong_IsNegative(number),
                         _PyLong_DigitCount(number),
                         number->long_value.ob_digit, sizeof(digit));
    }
    case TAG_FLOAT: {
        double value = PyFloat_AS_DOUBLE(obj);
        return write_tag(p, tag, &value, sizeof(value));
    }
    case TAG_COMPLEX: {
        Py_complex value = ((PyComplexObject *)obj)->cval;
        return write_tag(p, tag, &value, sizeof(value));
    }
    case TAG_STR: {
        int kind = PyUnicode_KIND(obj);
        return write_run(p, tag, PyUnicode_IS_ASCII(obj) ? 0 : kind,
                         PyUnicode_GET_LENGTH(obj), PyUnicode_DATA(obj), kind);
    }
    case TAG_BYTES:
        return write_run(p, tag, -1, PyBytes_GET_SIZE(obj),
                         PyBytes_AS_STRING(obj), 1);
    case TAG_SENTINEL: {
        char index = (char)sentinel_index(home, obj);
        return write_tag(p, tag, &index, 1);
    }
    case TAG_INTERPRETER:
        return take_interpreter(p, obj);
    case TAG_QUEUE:
        return take_queue(p, obj);
    case TAG_PARCEL:
        return take_parcel(p, obj);
    case TAG_LENT:
        return take_buffer(p, home, obj);
    case TAG_XIDATA:
        return take_xidata(p, obj);
    default:
        Py_UNREACHABLE();
    }
}

static int
find_codec(_PyParcel_Home *home)
{
    if (home->dumps == NULL || home->loads == NULL) {
        // It registers itself.
        PyObject *mod = PyImport_ImportModule("interpreters._codec");
        if (mod == NULL) {
            return -1;
        }
        Py_DECREF(mod);
        if (home->dumps == NULL || home->loads == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "no codec is registered");
            return -1;
        }
    }
    return 0;
}

/* dumps(obj); the queues that it mentions are noted in the packer. */
static PyObject *
call_dumps(packer *p, _PyParcel_Home *home, PyObject *obj)
{
    coding *c = PyMem_RawMalloc(sizeof(*c));
    if (c == NULL) {
        return PyErr_NoMemory();
    }
    c->thread = _PyThreadState_GET()->id;
    c->packer = p;
    c->next = home->codings;
    home->codings = c;
    PyObject *dumps = Py_NewRef(home->dumps);
    PyObject *coded = PyObject_CallOneArg(dumps, obj);
    Py_DECREF(dumps);
    // Other threads of this interpreter may have come and gone meanwhile.
    coding **link = &home->codings;
    while (*link != c) {
        link = &(*link)->next;
    }
    *link = c->next;
    PyMem_RawFree(c);
    return coded;
}

static int
take_coded(packer *p, _PyParcel_Home *home, PyObject *obj)
{
    if (find_codec(home) < 0) {
        return -1;
    }
    PyObject *coded = call_dumps(p, home, obj);
    if (coded == NULL) {
        return -1;
    }
    int res = -1;
    Py_buffer view;
    if (PyObject_GetBuffer(coded, &view, PyBUF_SIMPLE) == 0) {
        res = write_run(p, TAG_CODED, -1, view.len, view.buf, 1);
        PyBuffer_Release(&view);
    }
    Py_DECREF(coded);
    return res;
}

int
_PyParcel_Mention(_PyParcel_Home *home, _PyParcel_Queue *queue)
{
    uint64_t thread = _PyThreadState_GET()->id;
    coding *c = home->codings;
    while (c != NULL && c->thread != thread) {
        c = c->next;
    }
    if (c == NULL) {
        return 0;
    }
    _PyParcel_QueueShare(queue);
    if (add_resource(c->packer, RESOURCE_QUEUE, queue) < 0) {
        _PyParcel_QueueDrop(queue);
        return -1;
    }
    return 0;
}

/* 1: taken; 0: there is something in it that is not native; -1: exception.
   With p NULL nothing is taken, only looked at.  With `code` what is not native
   goes through the codec, each object by itself. */
static int
take_walk(packer *p, _PyParcel_Home *home, PyObject *obj, int code)
{
    stack s;
    stack_init(&s);
    int res = -1;
    for (;;) {
        parcel_tag tag = find_tag(home, obj);
        if (tag == TAG_FOREIGN) {
            if (PyErr_Occurred()) {
                break;
            }
            if (!code) {
                res = 0;
                break;
            }
            if (take_coded(p, home, obj) < 0) {
                break;
            }
        }
        else if (tag == TAG_TUPLE) {
            Py_ssize_t length = PyTuple_GET_SIZE(obj);
            if (p != NULL
                && write_tag(p, TAG_TUPLE, &length, sizeof(length)) < 0)
            {
                break;
            }
            if (stack_push(&s, obj) < 0) {
                break;
            }
        }
        else if (p != NULL && take_object(p, home, tag, obj) < 0) {
            break;
        }

        level *top = stack_top(&s);
        if (top == NULL) {
            res = 1;
            break;
        }
        obj = PyTuple_GET_ITEM(top->tuple, top->next++);
    }
    stack_free(&s);
    return res;
}

/* Is this about the object, or about something else (no memory, Ctrl-C)? */
static int
is_refusal(void)
{
    return (PyErr_ExceptionMatches(PyExc_Exception)
            && !PyErr_ExceptionMatches(PyExc_MemoryError));
}

/* Say what could not be sent; what went wrong becomes the cause. */
static void
explain_failure(_PyParcel_Home *home, PyObject *obj)
{
    PyObject *error = home->not_shareable_error;
    if (error != NULL && is_refusal() && !PyErr_ExceptionMatches(error)) {
        _PyErr_FormatFromCause(error,
                               "a '%T' object can't be sent to another "
                               "interpreter", obj);
    }
}

/* Start again from nothing. */
static int
packer_reset(packer *p, _PyParcel_Home *home)
{
    PyObject *exc = PyErr_GetRaisedException();
    _PyParcel_Discard(p->parcel);
    p->parcel = NULL;
    int res = packer_init(p, home);
    if (res == 0) {
        PyErr_SetRaisedException(exc);
    }
    else {
        Py_XDECREF(exc);
    }
    return res;
}

/* What is not native: all of it by the codec, so that objects that occur twice
   stay one.  A tuple with parts that are native and can't be coded (buffers,
   parcels) goes in pieces. */
static int
take_foreign(packer *p, _PyParcel_Home *home, PyObject *obj)
{
    if (packer_reset(p, home) < 0) {
        return -1;
    }
    if (take_coded(p, home, obj) == 0) {
        return 0;
    }
    if (!PyTuple_CheckExact(obj) || !is_refusal()
        || packer_reset(p, home) < 0)
    {
        return -1;
    }
    PyObject *exc = PyErr_GetRaisedException();
    if (take_walk(p, home, obj, 1) > 0) {
        Py_DECREF(exc);
        return 0;
    }
    if (is_refusal()) {
        PyErr_SetRaisedException(exc);
    }
    else {
        Py_DECREF(exc);
    }
    return -1;
}

_PyParcel *
_PyParcel_Pack(_PyParcel_Home *home, PyObject *obj)
{
    packer p;
    if (packer_init(&p, home) < 0) {
        return NULL;
    }
    int taken = take_walk(&p, home, obj, 0);
    if (taken == 0) {
        taken = take_foreign(&p, home, obj) < 0 ? -1 : 1;
    }
    if (taken < 0) {
        explain_failure(home, obj);
        if (p.parcel != NULL) {
            _PyParcel_Discard(p.parcel);
        }
        return NULL;
    }
    return p.parcel;
}

int
_PyParcel_IsNative(_PyParcel_Home *home, PyObject *obj)
{
    return take_walk(NULL, home, obj, 0);
}


/* --- Giving -------------------------------------------------------------- */

typedef struct {
    _PyParcel *parcel;
    const char *at;
} reader;

static void
read_bytes(reader *r, void *data, size_t size)
{
    assert(size <= (size_t)(r->parcel->content + r->parcel->size - r->at));
    memcpy(data, r->at, size);
    r->at += size;
}

static char
read_char(reader *r)
{
    return *r->at++;
}

static Py_ssize_t
read_length(reader *r)
{
    Py_ssize_t length;
    read_bytes(r, &length, sizeof(length));
    return length;
}

static void *
read_resource(reader *r)
{
    Py_ssize_t index = read_length(r);
    assert(index >= 0 && index < r->parcel->nresources);
    return r->parcel->resources[index].what;
}

static PyObject *
give_bigint(reader *r)
{
    int negative = read_char(r);
    Py_ssize_t ndigits = read_length(r);
    PyLongObject *number = _PyLong_New(ndigits);
    if (number == NULL) {
        return NULL;
    }
    _PyLong_SetSignAndDigitCount(number, negative ? -1 : 1, ndigits);
    read_bytes(r, number->long_value.ob_digit, ndigits * sizeof(digit));
    return (PyObject *)number;
}

static PyObject *
give_str(reader *r)
{
    int kind = read_char(r);
    Py_ssize_t length = read_length(r);
    Py_UCS4 maxchar = 127;
    if (kind != 0) {
        maxchar = (kind == PyUnicode_1BYTE_KIND ? 0xff :
                   kind == PyUnicode_2BYTE_KIND ? 0xffff : 0x10ffff);
    }
    else {
        kind = PyUnicode_1BYTE_KIND;
    }
    if (length == 1 && kind == PyUnicode_1BYTE_KIND) {
        return PyUnicode_FromOrdinal((unsigned char)read_char(r));
    }
    PyObject *text = PyUnicode_New(length, maxchar);
    if (text != NULL && length > 0) {
        read_bytes(r, PyUnicode_DATA(text), (size_t)length * kind);
    }
    return text;
}

static PyObject *
give_run(reader *r)
{
    Py_ssize_t size = read_length(r);
    PyObject *bytes = PyBytes_FromStringAndSize(r->at, size);
    r->at += size;
    return bytes;
}

static PyObject *
give_lent(reader *r, _PyParcel_Home *home)
{
    _PyParcel_Lent *lent = read_resource(r);
    _Py_atomic_add_ssize(&lent->refs, 1);
    PyObject *exporter = home->new_lent(home, lent);
    if (exporter == NULL) {
        _PyParcel_LentDrop(lent);
        return NULL;
    }
    PyObject *view = PyMemoryView_FromObject(exporter);
    Py_DECREF(exporter);
    return view;
}

static PyObject *
give_queue(reader *r, _PyParcel_Home *home)
{
    _PyParcel_Queue *queue = read_resource(r);
    _PyParcel_QueueShare(queue);
    PyObject *obj = home->new_queue(home, queue);
    _PyParcel_QueueDrop(queue);
    return obj;
}

static PyObject *
give_parcel(reader *r, _PyParcel_Home *home)
{
    _PyParcel *parcel = read_resource(r);
    _PyParcel_Share(parcel);
    PyObject *obj = home->new_parcel(home, parcel);
    if (obj == NULL) {
        _PyParcel_Discard(parcel);
    }
    return obj;
}

static PyObject *
give_interpreter(reader *r, _PyParcel_Home *home)
{
    int64_t id;
    read_bytes(r, &id, sizeof(id));
    if (find_codec(home) < 0) {
        return NULL;
    }
    if (home->interpreter_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "no type for interpreters is registered");
        return NULL;
    }
    return PyObject_CallFunction((PyObject *)home->interpreter_type,
                                 "L", (long long)id);
}

static PyObject *
give_coded(reader *r, _PyParcel_Home *home)
{
    if (find_codec(home) < 0) {
        return NULL;
    }
    PyObject *coded = give_run(r);
    if (coded == NULL) {
        return NULL;
    }
    PyObject *loads = Py_NewRef(home->loads);
    PyObject *obj = PyObject_CallOneArg(loads, coded);
    Py_DECREF(loads);
    Py_DECREF(coded);
    return obj;
}

static PyObject *
give_object(reader *r, _PyParcel_Home *home, parcel_tag tag)
{
    switch (tag) {
    case TAG_NONE:
        return Py_None;
    case TAG_FALSE:
        return Py_False;
    case TAG_TRUE:
        return Py_True;
    case TAG_ELLIPSIS:
        return Py_Ellipsis;
    case TAG_NOT_IMPLEMENTED:
        return Py_NotImplemented;
    case TAG_INT: {
        int64_t value;
        read_bytes(r, &value, sizeof(value));
        return PyLong_FromLongLong(value);
    }
    case TAG_BIGINT:
        return give_bigint(r);
    case TAG_FLOAT: {
        double value;
        read_bytes(r, &value, sizeof(value));
        return PyFloat_FromDouble(value);
    }
    case TAG_COMPLEX: {
        Py_complex value;
        read_bytes(r, &value, sizeof(value));
        return PyComplex_FromCComplex(value);
    }
    case TAG_STR:
        return give_str(r);
    case TAG_BYTES:
        return give_run(r);
    case TAG_TUPLE:
        return PyTuple_New(read_length(r));
    case TAG_SENTINEL:
        return Py_NewRef(home->sentinels[(int)read_char(r)]);
    case TAG_INTERPRETER:
        return give_interpreter(r, home);
    case TAG_QUEUE:
        return give_queue(r, home);
    case TAG_PARCEL:
        return give_parcel(r, home);
    case TAG_LENT:
        return give_lent(r, home);
    case TAG_XIDATA:
        return _PyCrossInterpreterData_NewObject(read_resource(r));
    case TAG_CODED:
        return give_coded(r, home);
    default:
        Py_UNREACHABLE();
    }
}

PyObject *
_PyParcel_Open(_PyParcel_Home *home, _PyParcel *parcel)
{
    if (home->queue_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is closing");
        return NULL;
    }
    reader r = {parcel, parcel->content};
    stack s;
    stack_init(&s);
    PyObject *root = NULL;
    level *top = NULL;
    do {
        parcel_tag tag = (parcel_tag)read_char(&r);
        PyObject *obj = give_object(&r, home, tag);
        if (obj == NULL) {
            goto error;
        }
        if (top == NULL) {
            root = obj;
        }
        else {
            PyTuple_SET_ITEM(top->tuple, top->next++, obj);
        }
        if (tag == TAG_TUPLE && stack_push(&s, obj) < 0) {
            goto error;
        }
        top = stack_top(&s);
    } while (top != NULL);
    assert(r.at == parcel->content + parcel->size);
    stack_free(&s);
    return root;

error:
    stack_free(&s);
    Py_XDECREF(root);
    return NULL;
}
