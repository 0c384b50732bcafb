// The _parcels module: Queue, Parcel and the lock's statistics as Python
// objects, and run(), which calls into another interpreter.
//
// The package `interpreters` is what people import; it re-exports most of
// this.  Messages and queues are implemented in Python/parcel_*.c; this file
// gives them Python types and checks arguments.
//
// Guarantees
//
//   M-1  At any time there is one Queue instance per queue and interpreter.
//   M-2  A handle outlives its module: it keeps the home.  After the module has
//        been cleared (the interpreter is being finalised), methods that need
//        something of the module raise RuntimeError.
//   M-3  While run() is in an interpreter, nobody closes it, and the other way
//        round (see pycore_rwinterp.h).

#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include "pycore_crossinterp.h"   // PyExc_InterpreterError
#include "pycore_interp.h"        // _PyInterpreterState_LookUpIDObject()
#include "pycore_interp_lifecycle.h"  // _PyInterp_CheckOpen()
#include "pycore_parcel.h"
#include "pycore_parcel_moved.h"  // _PyParcel_MovedInit()
#include "pycore_parcel_reduce.h" // _PyParcel_Make()
#include "pycore_pyerrors.h"      // _PyErr_ChainExceptions1()
#include "pycore_pystate.h"       // _PyInterpreterState_SetRunningMain()
#include "pycore_rwgil.h"         // _PyRWGIL_WritePair()
#include "pycore_rwinterp.h"      // _PyRWInterp_Enter()

typedef struct {
    _PyParcel_Home *home;
    PyTypeObject *queue_type;
    PyTypeObject *parcel_type;
    PyTypeObject *lent_type;
    PyTypeObject *unbound_type;
    PyTypeObject *move_type;
    PyTypeObject *moved_types[2];
    PyObject *moved_weak_types;
    PyTypeObject *stats_type;
    PyTypeObject *bell_type;
    PyTypeObject *wait_type;
    PyObject *sentinels[_PyParcel_NSENTINELS];
    PyObject *interpreter_type;
    PyObject *NotShareableError;
    PyObject *QueueError;
    PyObject *QueueNotFoundError;
    PyObject *QueueEmpty;
    PyObject *QueueFull;
    PyObject *ItemInterpreterDestroyed;
    PyObject *MovedError;
    PyObject *TransferError;
} module_state;

static module_state *
get_state(PyObject *module)
{
    return (module_state *)PyModule_GetState(module);
}

/* NULL with an exception when the module has been cleared (M-2). */
static module_state *
state_of_type(PyTypeObject *type)
{
    module_state *state = PyType_GetModuleState(type);
    if (state == NULL || state->queue_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is closing");
        return NULL;
    }
    return state;
}


/* --- Arguments ----------------------------------------------------------- */

/* The base's parsers for keywords switch to the main interpreter when they
   are first used, and these calls are to be fast. */
typedef struct {
    const char *function;
    int required;                   // so many must be given
    int positional;                 // so many may be positional
    int total;
    const char *names[4];           // NULL: positional only
} signature;

/* Stores borrowed references, NULL for what is not given. */
static int
parse_args(const signature *sig, PyObject *const *args, Py_ssize_t nargs,
           PyObject *kwnames, PyObject **values)
{
    if (nargs > sig->positional) {
        PyErr_Format(PyExc_TypeError,
                     "%s() takes at most %d positional arguments (%zd given)",
                     sig->function, sig->positional, nargs);
        return -1;
    }
    for (int i = 0; i < sig->total; i++) {
        values[i] = i < nargs ? args[i] : NULL;
    }
    Py_ssize_t nkw = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t k = 0; k < nkw; k++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, k);
        int i = 0;
        while (i < sig->total
               && !(sig->names[i] != NULL
                    && PyUnicode_EqualToUTF8(name, sig->names[i])))
        {
            i++;
        }
        if (i == sig->total) {
            PyErr_Format(PyExc_TypeError,
                         "%s() got an unexpected keyword argument '%U'",
                         sig->function, name);
            return -1;
        }
        if (values[i] != NULL) {
            PyErr_Format(PyExc_TypeError,
                         "%s() got multiple values for argument '%U'",
                         sig->function, name);
            return -1;
        }
        values[i] = args[nargs + k];
    }
    for (int i = 0; i < sig->required; i++) {
        if (values[i] == NULL) {
            PyErr_Format(PyExc_TypeError,
                         "%s() missing required argument %d",
                         sig->function, i + 1);
            return -1;
        }
    }
    return 0;
}

/* Where the first argument is: the first, or the keyword argument that it is. */
static PyObject *const *
argument(PyObject *const *args, Py_ssize_t nargs, PyObject *value)
{
    if (nargs == 0) {
        while (*args != value) {
            args++;
        }
    }
    return args;
}

/* What the queue's functions take: ns, 0 not to wait, -1 for ever. */
static int
parse_timeout(PyObject *block, PyObject *timeout, PyTime_t *result)
{
    if (block != NULL) {
        int truth = PyObject_IsTrue(block);
        if (truth <= 0) {
            *result = 0;
            return truth;
        }
    }
    *result = -1;
    if (timeout == NULL || timeout == Py_None) {
        return 0;
    }
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError,
                         "timeout must be a number or None, not %T", timeout);
        }
        return -1;
    }
    if (!(seconds >= 0.0)) {
        PyErr_SetString(PyExc_ValueError, "timeout must be non-negative");
        return -1;
    }
    // Three hundred years are as good as for ever.
    if (seconds < 9e9) {
        PyTime_t ns = (PyTime_t)(seconds * 1e9);
        *result = (ns == 0 && seconds > 0.0) ? 1 : ns;
    }
    return 0;
}

/* An UNBOUND constant, or None for the default; 0 with an exception. */
static int
parse_unbound(module_state *state, PyObject *arg, int dflt)
{
    if (arg == NULL || arg == Py_None) {
        return dflt;
    }
    for (int i = 0; i < _PyParcel_NSENTINELS; i++) {
        if (arg == state->sentinels[i]) {
            return i + 1;
        }
    }
    PyErr_Format(PyExc_NotImplementedError,
                 "unbounditems must be UNBOUND, UNBOUND_ERROR or "
                 "UNBOUND_REMOVE, not %R", arg);
    return 0;
}


/* --- UNBOUND and its like ------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    int which;                      // _PyParcel_Unbound
} UnboundObject;

static const char *const unbound_names[] = {
    NULL,
    [_PyParcel_UNBOUND_REMOVE] = "UNBOUND_REMOVE",
    [_PyParcel_UNBOUND_ERROR] = "UNBOUND_ERROR",
    [_PyParcel_UNBOUND_REPLACE] = "UNBOUND",
};

static int
type_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void
unbound_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
unbound_repr(PyObject *self)
{
    return PyUnicode_FromFormat("interpreters.%s",
                                unbound_names[((UnboundObject *)self)->which]);
}

/* Its name in the package, so a pickle gives the receiver's own. */
static PyObject *
unbound_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyUnicode_FromString(unbound_names[((UnboundObject *)self)->which]);
}

static PyMethodDef unbound_methods[] = {
    {"__reduce__", unbound_reduce, METH_NOARGS, NULL},
    {NULL, NULL}
};

PyDoc_STRVAR(unbound_doc,
"What is to become of a queue's item when the interpreter that put it is closed.\n"
"\n"
"interpreters.UNBOUND, UNBOUND_ERROR and UNBOUND_REMOVE are the only instances.");

static PyType_Slot unbound_slots[] = {
    {Py_tp_doc, (void *)unbound_doc},
    {Py_tp_dealloc, unbound_dealloc},
    {Py_tp_traverse, type_traverse},
    {Py_tp_repr, unbound_repr},
    {Py_tp_methods, unbound_methods},
    {0, NULL},
};

static PyType_Spec unbound_spec = {
    .name = "interpreters.UnboundItem",
    .basicsize = sizeof(UnboundObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION),
    .slots = unbound_slots,
};

static PyObject *
unbound_new(module_state *state, int which)
{
    PyObject *self = state->unbound_type->tp_alloc(state->unbound_type, 0);
    if (self != NULL) {
        ((UnboundObject *)self)->which = which;
    }
    return self;
}


/* --- Handles ------------------------------------------------------------- */

static PyObject *
handle_new(PyTypeObject *type, _PyParcel_Home *home, void *what)
{
    if (type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is closing");
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL) {
        _PyParcel_HandleObject *handle = (_PyParcel_HandleObject *)self;
        _Py_atomic_add_ssize(&home->refs, 1);
        handle->home = home;
        handle->what = what;
    }
    return self;
}

static void
handle_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    _PyParcel_DropHome(((_PyParcel_HandleObject *)self)->home);
    type->tp_free(self);
    Py_DECREF(type);
}


/* --- Lent buffers -------------------------------------------------------- */

static PyObject *
lent_new(_PyParcel_Home *home, _PyParcel_Lent *lent)
{
    return handle_new(home->lent_type, home, lent);
}

static void
lent_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    _PyParcel_LentDrop(((_PyParcel_HandleObject *)self)->what);
    handle_free(self);
}

static int
lent_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const Py_buffer *lent =
        _PyParcel_LentBuffer(((_PyParcel_HandleObject *)self)->what);
    if ((flags & PyBUF_FULL_RO) == PyBUF_FULL_RO) {
        if ((flags & PyBUF_WRITABLE) && lent->readonly) {
            view->obj = NULL;
            PyErr_SetString(PyExc_BufferError, "the buffer is read-only");
            return -1;
        }
        *view = *lent;
        view->obj = Py_NewRef(self);
        view->internal = NULL;
        return 0;
    }
    if (!PyBuffer_IsContiguous(lent, 'C')) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "the buffer is not contiguous");
        return -1;
    }
    return PyBuffer_FillInfo(view, self, lent->buf, lent->len,
                             lent->readonly, flags);
}

PyDoc_STRVAR(lent_doc, "A buffer of another interpreter.");

static PyType_Slot lent_slots[] = {
    {Py_tp_doc, (void *)lent_doc},
    {Py_tp_dealloc, lent_dealloc},
    {Py_tp_traverse, type_traverse},
    {Py_bf_getbuffer, lent_getbuffer},
    {0, NULL},
};

static PyType_Spec lent_spec = {
    .name = "interpreters.LentBuffer",
    .basicsize = sizeof(_PyParcel_HandleObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION),
    .slots = lent_slots,
};


/* --- Parcel -------------------------------------------------------------- */

static _PyParcel *
parcel_of(PyObject *self)
{
    return ((_PyParcel_HandleObject *)self)->what;
}

static PyObject *
parcel_new(_PyParcel_Home *home, _PyParcel *parcel)
{
    return handle_new(home->parcel_type, home, parcel);
}

static void
parcel_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    if (parcel_of(self) != NULL) {
        _PyParcel_Discard(parcel_of(self));
    }
    handle_free(self);
}

static PyObject *
parcel_repr(PyObject *self)
{
    return PyUnicode_FromFormat(
        "<interpreters.Parcel of %zu bytes from interpreter %lld>",
        _PyParcel_Size(parcel_of(self)),
        (long long)_PyParcel_Interp(parcel_of(self)));
}

static const char cant_open[] = "the object can't be made in this interpreter";

/* Is the exception about the parcel, and not a TransferError already? */
static int
is_unopenable(_PyParcel_Home *home)
{
    return (PyErr_ExceptionMatches(PyExc_Exception)
            && !PyErr_ExceptionMatches(PyExc_MemoryError)
            && home->transfer_error != NULL
            && !PyErr_ExceptionMatches(home->transfer_error));
}

PyDoc_STRVAR(parcel_open_doc,
"open($self, /)\n"
"--\n"
"\n"
"Make the object in the current interpreter; that can be done once.\n"
"\n"
"TransferError, from what went wrong, if the object can't be made here: the\n"
"parcel stays as it is then, and can be opened elsewhere.");

static PyObject *
parcel_open(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    _PyParcel_Home *home = ((_PyParcel_HandleObject *)self)->home;
    PyObject *obj = _PyParcel_Open(home, parcel_of(self));
    if (obj == NULL && is_unopenable(home)) {
        _PyParcel_RaiseTransfer(home, cant_open, self);
    }
    return obj;
}

static PyObject *
parcel_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyErr_SetString(PyExc_TypeError,
                    "a parcel can be sent, but not pickled");
    return NULL;
}

static PyObject *
parcel_get_nbytes(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(_PyParcel_Size(parcel_of(self)));
}

static PyObject *
parcel_get_stats(PyObject *self, void *Py_UNUSED(closure))
{
    module_state *state = state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    _PyParcel_Stats stats;
    _PyParcel_GetStats(parcel_of(self), &stats);
    const Py_ssize_t numbers[] = {
        stats.shared, stats.moved, stats.copied, stats.rebuilt, stats.reduced,
    };
    PyObject *res = PyStructSequence_New(state->stats_type);
    for (size_t i = 0; res != NULL && i < Py_ARRAY_LENGTH(numbers); i++) {
        PyObject *n = PyLong_FromSsize_t(numbers[i]);
        if (n == NULL) {
            Py_CLEAR(res);
        }
        else {
            PyStructSequence_SetItem(res, i, n);
        }
    }
    return res;
}

static PyStructSequence_Field stats_fields[] = {
    {"shared", "belong to the whole process: None, small ints, ..."},
    {"moved", "went as they are"},
    {"copied", "were still referred to in the sender"},
    {"rebuilt", "are made in the receiver: instances"},
    {"reduced", "went by their own pickling protocol, or by name"},
    {NULL}
};

static PyStructSequence_Desc stats_desc = {
    .name = "interpreters.ParcelStats",
    .doc = "How many objects of a parcel went in which way.",
    .fields = stats_fields,
    .n_in_sequence = Py_ARRAY_LENGTH(stats_fields) - 1,
};

static PyMethodDef parcel_methods[] = {
    {"open", parcel_open, METH_NOARGS, parcel_open_doc},
    {"__reduce__", parcel_reduce, METH_NOARGS, NULL},
    {NULL, NULL}
};

static PyGetSetDef parcel_getset[] = {
    {"nbytes", parcel_get_nbytes, NULL,
     PyDoc_STR("How many bytes the parcel has for describing its objects.  The\n"
               "objects themselves, copied or moved, are not counted yet.")},
    {"stats", parcel_get_stats, NULL,
     PyDoc_STR("How many objects in it went in which way: a tuple with the fields\n"
               "shared, moved, copied, rebuilt and reduced.")},
    {NULL}
};

PyDoc_STRVAR(parcel_doc,
"An object that has been packed: it belongs to no interpreter.\n"
"\n"
"Made by interpreters.pack().  It can be sent, and be opened once.");

static PyType_Slot parcel_slots[] = {
    {Py_tp_doc, (void *)parcel_doc},
    {Py_tp_dealloc, parcel_dealloc},
    {Py_tp_traverse, type_traverse},
    {Py_tp_repr, parcel_repr},
    {Py_tp_methods, parcel_methods},
    {Py_tp_getset, parcel_getset},
    {0, NULL},
};

static PyType_Spec parcel_spec = {
    .name = "interpreters.Parcel",
    .basicsize = sizeof(_PyParcel_HandleObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_MANAGED_WEAKREF
              | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION),
    .slots = parcel_slots,
};


/* --- Queue: life --------------------------------------------------------- */

static _PyParcel_Queue *
queue_of(PyObject *self)
{
    return ((_PyParcel_HandleObject *)self)->what;
}

/* The instance for a queue: the one that exists, or a new one (M-1). */
static PyObject *
queue_instance(_PyParcel_Home *home, _PyParcel_Queue *queue)
{
    _PyParcel_QueueObject *obj = home->queues;
    while (obj != NULL && obj->handle.what != queue) {
        obj = obj->next;
    }
    if (obj != NULL) {
        return Py_NewRef(obj);
    }
    PyObject *self = handle_new(home->queue_type, home, queue);
    if (self == NULL) {
        return NULL;
    }
    // An allocation never runs Python code, so there still is no other.
    _PyParcel_QueueShare(queue);
    obj = (_PyParcel_QueueObject *)self;
    obj->prev = NULL;
    obj->next = home->queues;
    if (home->queues != NULL) {
        home->queues->prev = obj;
    }
    home->queues = obj;
    return self;
}

static void
queue_dealloc(PyObject *self)
{
    _PyParcel_QueueObject *obj = (_PyParcel_QueueObject *)self;
    PyObject_GC_UnTrack(self);
    // First, so that what runs now does not find it.
    if (obj->prev != NULL) {
        obj->prev->next = obj->next;
    }
    else {
        obj->handle.home->queues = obj->next;
    }
    if (obj->next != NULL) {
        obj->next->prev = obj->prev;
    }
    PyObject_ClearWeakRefs(self);
    _PyParcel_QueueDrop(queue_of(self));
    handle_free(self);
}

static PyObject *
queue_from_id(module_state *state, PyObject *idobj)
{
    if (!PyLong_Check(idobj)) {
        return PyErr_Format(PyExc_TypeError,
                            "a queue's id must be an int, not %T", idobj);
    }
    int overflow;
    int64_t id = PyLong_AsLongLongAndOverflow(idobj, &overflow);
    if (id == -1 && PyErr_Occurred()) {
        return NULL;
    }
    _PyParcel_Queue *queue = overflow ? NULL : _PyParcel_QueueLookUp(id);
    if (queue == NULL) {
        return PyErr_Format(state->QueueNotFoundError,
                            "queue %S not found", idobj);
    }
    PyObject *self = queue_instance(state->home, queue);
    _PyParcel_QueueDrop(queue);
    return self;
}

static PyObject *
queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    module_state *state = state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(args) != 1
        || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0))
    {
        PyErr_SetString(PyExc_TypeError,
                        "Queue() takes exactly one positional argument, the id");
        return NULL;
    }
    return queue_from_id(state, PyTuple_GET_ITEM(args, 0));
}

static PyObject *
queue_repr(PyObject *self)
{
    return PyUnicode_FromFormat("Queue(%lld)",
                                (long long)_PyParcel_QueueId(queue_of(self)));
}

static Py_hash_t
queue_hash(PyObject *self)
{
    // As the id's; it is small and never -1.
    return (Py_hash_t)_PyParcel_QueueId(queue_of(self));
}

static PyObject *
queue_richcompare(PyObject *self, PyObject *other, int op)
{
    if ((op != Py_EQ && op != Py_NE) || Py_TYPE(self) != Py_TYPE(other)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    int equal = (queue_of(self) == queue_of(other));
    return PyBool_FromLong(op == Py_EQ ? equal : !equal);
}

static PyObject *
queue_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("O(L)", Py_TYPE(self),
                         (long long)_PyParcel_QueueId(queue_of(self)));
}


/* --- Queue: put and get -------------------------------------------------- */

static PyObject *
put_failed(module_state *state, _PyParcel_Queue *queue, _PyParcel_Status status)
{
    if (status == _PyParcel_FULL) {
        PyErr_Format(state->QueueFull, "queue %lld is full",
                     (long long)_PyParcel_QueueId(queue));
    }
    else if (status == _PyParcel_CLOSING) {
        PyErr_SetString(PyExc_InterpreterError,
                        "the interpreter is closing: waiting for a place in "
                        "the queue has ended");
    }
    return NULL;
}

typedef struct {
    _PyParcel_Home *home;
    PyObject *const *args;
    _PyParcel_Queue *queue;         // or NULL
} to_pack;

static _PyParcel *
pack_one(void *arg, Py_ssize_t i)
{
    to_pack *p = arg;
    return _PyParcel_PackArg(p->home, &p->args[i], p->queue);
}

/* `arg` is where the object is in the argument vector. */
static PyObject *
do_put(PyObject *self, PyObject *const *arg, PyObject *unbounditems,
       PyTime_t timeout)
{
    module_state *state = state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    _PyParcel_Queue *queue = queue_of(self);
    int unbound = parse_unbound(state, unbounditems,
                                _PyParcel_QueueUnbound(queue));
    if (unbound == 0) {
        return NULL;
    }
    if (timeout == 0 && _PyParcel_QueueIsFull(queue)) {
        return put_failed(state, queue, _PyParcel_FULL);
    }
    _PyParcel_Status status;
    if (_PyParcel_CountMoves(state->home) > 0) {
        // What is moved can't be given back when there is no place.
        to_pack p = {state->home, arg, queue};
        Py_ssize_t done;
        status = _PyParcel_QueuePutMany(state->home, queue, pack_one, &p, 1,
                                        unbound, timeout, &done);
    }
    else {
        _PyParcel *parcel = _PyParcel_PackArg(state->home, arg, queue);
        if (parcel == NULL) {
            return NULL;
        }
        status = _PyParcel_QueuePut(state->home, queue, parcel, unbound,
                                    timeout);
        if (status != _PyParcel_OK) {
            _PyParcel_Discard(parcel);
        }
    }
    if (status != _PyParcel_OK) {
        return put_failed(state, queue, status);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(queue_put_doc,
"put($self, obj, /, block=True, timeout=None, *, unbounditems=None)\n"
"--\n"
"\n"
"Send an object: whoever gets it gets an equal one of its own, or with\n"
"move(obj) this one.\n"
"\n"
"While the queue is full, wait for at most timeout seconds (None: as long\n"
"as it takes), or not at all if block is false; then raise QueueFull.\n"
"What can't be sent raises NotShareableError, what can't be moved\n"
"TransferError.  Then nothing has happened to the object.\n"
"\n"
"unbounditems says what becomes of the item if this interpreter is closed\n"
"before somebody gets it; None means the queue's own default.");

static const signature put_signature = {
    "put", 1, 3, 4, {"obj", "block", "timeout", "unbounditems"}
};

static PyObject *
queue_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames)
{
    PyObject *values[4];
    PyTime_t timeout;
    if (parse_args(&put_signature, args, nargs, kwnames, values) < 0
        || parse_timeout(values[1], values[2], &timeout) < 0)
    {
        return NULL;
    }
    return do_put(self, argument(args, nargs, values[0]), values[3], timeout);
}

PyDoc_STRVAR(queue_put_nowait_doc,
"put_nowait($self, obj, /, *, unbounditems=None)\n"
"--\n"
"\n"
"The same as put(obj, block=False).");

static const signature put_nowait_signature = {
    "put_nowait", 1, 1, 2, {"obj", "unbounditems"}
};

static PyObject *
queue_put_nowait(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
    PyObject *values[2];
    if (parse_args(&put_nowait_signature, args, nargs, kwnames, values) < 0) {
        return NULL;
    }
    return do_put(self, argument(args, nargs, values[0]), values[1], 0);
}

/* It is one of our own list. */
static _PyParcel *
pack_item(void *arg, Py_ssize_t i)
{
    to_pack *p = arg;
    return _PyParcel_PackSlot(p->home, (PyObject **)&p->args[i]);
}

PyDoc_STRVAR(queue_put_many_doc,
"put_many($self, iterable, /, block=True, timeout=None, *, unbounditems=None)\n"
"--\n"
"\n"
"Put each item of an iterable, as put() does, but faster.\n"
"\n"
"Return how many were put.  That is all of them, unless the queue was full\n"
"and the time was up; QueueFull if it were none.  If one can't be sent, those\n"
"before it have been put.");

static const signature put_many_signature = {
    "put_many", 1, 3, 4, {NULL, "block", "timeout", "unbounditems"}
};

static PyObject *
queue_put_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
               PyObject *kwnames)
{
    module_state *state = state_of_type(Py_TYPE(self));
    PyObject *values[4];
    PyTime_t timeout;
    if (state == NULL
        || parse_args(&put_many_signature, args, nargs, kwnames, values) < 0
        || parse_timeout(values[1], values[2], &timeout) < 0)
    {
        return NULL;
    }
    _PyParcel_Queue *queue = queue_of(self);
    int unbound = parse_unbound(state, values[3],
                                _PyParcel_QueueUnbound(queue));
    if (unbound == 0) {
        return NULL;
    }
    // Our own: packing can run code that would change it, and what only we refer
    // to, like the items of a generator, is moved.
    PyObject *items = PySequence_List(values[0]);
    if (items == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(items);
    to_pack p = {state->home, ((PyListObject *)items)->ob_item};
    Py_ssize_t done;
    _PyParcel_Status status = _PyParcel_QueuePutMany(
        state->home, queue, pack_item, &p, PyList_GET_SIZE(items), unbound,
        timeout, &done);
    Py_DECREF(items);
    if (status == _PyParcel_OK || (status == _PyParcel_FULL && done > 0)) {
        return PyLong_FromSsize_t(done);
    }
    return put_failed(state, queue, status);
}

/* What an item of a queue is; the parcel stays the caller's. */
static PyObject *
open_item(module_state *state, _PyParcel *parcel)
{
    if (_PyParcel_Gone(parcel) == _PyParcel_UNBOUND_ERROR) {
        PyErr_SetString(state->ItemInterpreterDestroyed,
                        "the interpreter that put the item has been closed");
        return NULL;
    }
    if (_PyParcel_Gone(parcel)) {
        return Py_NewRef(state->sentinels[_PyParcel_UNBOUND_REPLACE - 1]);
    }
    return _PyParcel_Open(state->home, parcel);
}

/* Takes over a parcel that could not be opened: it goes with the exception, or
   back into the queue when the exception is not about it. */
static void
item_failed(module_state *state, _PyParcel_Queue *queue, _PyParcel *parcel)
{
    if (_PyParcel_Gone(parcel)) {
        _PyParcel_Discard(parcel);
        return;
    }
    PyObject *handle = NULL;
    if (PyErr_ExceptionMatches(PyExc_Exception)
        && !PyErr_ExceptionMatches(PyExc_MemoryError))
    {
        PyObject *exc = PyErr_GetRaisedException();
        handle = parcel_new(state->home, parcel);
        PyErr_SetRaisedException(exc);
    }
    if (handle == NULL) {
        _PyParcel_QueueUnget(queue, parcel);
        return;
    }
    _PyParcel_RaiseTransfer(state->home, cant_open, handle);
    Py_DECREF(handle);
}

/* Takes over a parcel that was got from the queue. */
static PyObject *
finish_get(module_state *state, _PyParcel_Queue *queue, _PyParcel *parcel)
{
    PyObject *obj = open_item(state, parcel);
    if (obj != NULL) {
        _PyParcel_Discard(parcel);
    }
    else {
        item_failed(state, queue, parcel);
    }
    return obj;
}

static PyObject *
get_failed(module_state *state, _PyParcel_Queue *queue, _PyParcel_Status status)
{
    if (status == _PyParcel_EMPTY) {
        PyErr_Format(state->QueueEmpty, "queue %lld is empty",
                     (long long)_PyParcel_QueueId(queue));
    }
    else if (status == _PyParcel_CLOSING) {
        PyErr_SetString(PyExc_InterpreterError,
                        "the interpreter is closing: waiting for an item "
                        "has ended");
    }
    return NULL;
}

static PyObject *
do_get(PyObject *self, PyTime_t timeout)
{
    module_state *state = state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    _PyParcel_Queue *queue = queue_of(self);
    _PyParcel *parcel;
    _PyParcel_Status status = _PyParcel_QueueGet(state->home, queue, 1,
                                                 &parcel, timeout);
    return status == _PyParcel_OK ? finish_get(state, queue, parcel)
                                  : get_failed(state, queue, status);
}

/* Append what is in a chain of parcels, which are taken over, and return 1.  If
   one can't be opened it goes back, with those after it, and is the first next
   time: 0; or if it is the first now, -1. */
static int
open_items(module_state *state, _PyParcel_Queue *queue, _PyParcel *chain,
           PyObject *list)
{
    while (chain != NULL) {
        _PyParcel *rest = _PyParcel_Unchain(chain);
        PyObject *obj = open_item(state, chain);
        int opened = (obj != NULL);
        int res = opened ? PyList_Append(list, obj) : -1;
        Py_XDECREF(obj);
        if (res < 0) {
            if (rest != NULL) {
                _PyParcel_QueueUnget(queue, rest);
            }
            if (opened) {
                _PyParcel_Discard(chain);
                return -1;
            }
            if (PyList_GET_SIZE(list) > 0
                && PyErr_ExceptionMatches(PyExc_Exception))
            {
                PyErr_Clear();
                _PyParcel_QueueUnget(queue, chain);
                return 0;
            }
            item_failed(state, queue, chain);
            return -1;
        }
        _PyParcel_Discard(chain);
        chain = rest;
    }
    return 1;
}

static PyObject *
do_get_many(PyObject *self, Py_ssize_t max, PyTime_t timeout)
{
    module_state *state = state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    _PyParcel_Queue *queue = queue_of(self);
    _PyParcel_Status status;
    int res = 1;
    do {
        _PyParcel *chain;
        status = _PyParcel_QueueGet(state->home, queue,
                                    max - PyList_GET_SIZE(list), &chain,
                                    timeout);
        if (status == _PyParcel_OK) {
            res = open_items(state, queue, chain, list);
        }
        timeout = 0;
    } while (status == _PyParcel_OK && res > 0 && PyList_GET_SIZE(list) < max);
    if (res < 0 || status == _PyParcel_ERROR || PyList_GET_SIZE(list) == 0) {
        Py_DECREF(list);
        return res < 0 ? NULL : get_failed(state, queue, status);
    }
    return list;
}

PyDoc_STRVAR(queue_get_doc,
"get($self, /, block=True, timeout=None)\n"
"--\n"
"\n"
"Take the next object out of the queue and return it.\n"
"\n"
"While the queue is empty, wait for at most timeout seconds (None: as long\n"
"as it takes), or not at all if block is false; then raise QueueEmpty.\n"
"\n"
"If the object can't be made here, say because its module can't be\n"
"imported, the exception has it as a Parcel in its attribute 'parcel'.");

static const signature get_signature = {
    "get", 0, 2, 2, {"block", "timeout"}
};

static PyObject *
queue_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames)
{
    PyObject *values[2];
    PyTime_t timeout;
    if (parse_args(&get_signature, args, nargs, kwnames, values) < 0
        || parse_timeout(values[0], values[1], &timeout) < 0)
    {
        return NULL;
    }
    return do_get(self, timeout);
}

PyDoc_STRVAR(queue_get_many_doc,
"get_many($self, max, /, block=True, timeout=None)\n"
"--\n"
"\n"
"Take as many objects as there are, but at most max, and return a list.\n"
"\n"
"Wait as get() does while there is none.  If one can't be made here, and it is\n"
"not the first, it stays in the queue, with those after it.");

static const signature get_many_signature = {
    "get_many", 1, 3, 3, {NULL, "block", "timeout"}
};

static PyObject *
queue_get_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
               PyObject *kwnames)
{
    PyObject *values[3];
    PyTime_t timeout;
    if (parse_args(&get_many_signature, args, nargs, kwnames, values) < 0
        || parse_timeout(values[1], values[2], &timeout) < 0)
    {
        return NULL;
    }
    Py_ssize_t max = PyNumber_AsSsize_t(values[0], NULL);
    if (max == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (max < 1) {
        PyErr_SetString(PyExc_ValueError, "max must be at least 1");
        return NULL;
    }
    return do_get_many(self, max, timeout);
}

PyDoc_STRVAR(queue_get_nowait_doc,
"get_nowait($self, /)\n"
"--\n"
"\n"
"The same as get(block=False).");

static PyObject *
queue_get_nowait(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return do_get(self, 0);
}


/* --- Queue: asyncio ------------------------------------------------------ */

/* Call a function of interpreters._async, which gives a coroutine. */
static PyObject *
call_async(const char *name, PyObject *const *args, Py_ssize_t n)
{
    PyObject *module = PyImport_ImportModule("interpreters._async");
    if (module == NULL) {
        return NULL;
    }
    PyObject *function = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    if (function == NULL) {
        return NULL;
    }
    PyObject *res = PyObject_Vectorcall(function, args, n, NULL);
    Py_DECREF(function);
    return res;
}

PyDoc_STRVAR(queue_get_async_doc,
"get_async($self, /)\n"
"--\n"
"\n"
"await get_async(): take the next object out of the queue, or wait for one.\n"
"\n"
"If the task is cancelled it has not taken anything.");

static PyObject *
queue_get_async(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return call_async("get", &self, 1);
}

PyDoc_STRVAR(queue_put_async_doc,
"put_async($self, obj, /, *, unbounditems=None)\n"
"--\n"
"\n"
"await put_async(obj): send an object, as put() does, or wait for a place.\n"
"\n"
"If the task is cancelled the object has not been sent.");

static const signature put_async_signature = {
    "put_async", 1, 1, 2, {NULL, "unbounditems"}
};

static PyObject *
queue_put_async(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                PyObject *kwnames)
{
    PyObject *values[2];
    if (parse_args(&put_async_signature, args, nargs, kwnames, values) < 0) {
        return NULL;
    }
    PyObject *const all[] = {self, values[0], values[1] ? values[1] : Py_None};
    return call_async("put", all, 3);
}

/* Bell: what an event loop watches. */

static _PyParcel_Bell *
bell_of(PyObject *self)
{
    return ((_PyParcel_HandleObject *)self)->what;
}

static PyObject *
bell_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
         PyObject *Py_UNUSED(kwargs))
{
    module_state *state = state_of_type(type);
    _PyParcel_Bell *bell = state != NULL ? _PyParcel_BellNew() : NULL;
    if (bell == NULL) {
        return NULL;
    }
    PyObject *self = handle_new(type, state->home, bell);
    if (self == NULL) {
        _PyParcel_BellDrop(bell);
    }
    return self;
}

static void
bell_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    _PyParcel_BellDrop(bell_of(self));
    handle_free(self);
}

static PyObject *
bell_fileno(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(_PyParcel_BellFd(bell_of(self)));
}

static PyObject *
bell_silence(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    _PyParcel_BellSilence(bell_of(self));
    Py_RETURN_NONE;
}

static PyMethodDef bell_methods[] = {
    {"fileno", bell_fileno, METH_NOARGS, NULL},
    {"silence", bell_silence, METH_NOARGS, NULL},
    {NULL, NULL}
};

PyDoc_STRVAR(bell_doc,
"A file descriptor that becomes readable when a Wait may be over.");

static PyType_Slot bell_slots[] = {
    {Py_tp_doc, (void *)bell_doc},
    {Py_tp_new, bell_new},
    {Py_tp_dealloc, bell_dealloc},
    {Py_tp_traverse, type_traverse},
    {Py_tp_methods, bell_methods},
    {0, NULL},
};

static PyType_Spec bell_spec = {
    .name = "_parcels.Bell",
    .basicsize = sizeof(_PyParcel_HandleObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE),
    .slots = bell_slots,
};

/* Wait: somebody who waits for an item, or for a place. */

typedef struct {
    _PyParcel_HandleObject handle;  // what: NULL when closed
    PyObject *queue;
} WaitObject;

static _PyParcel_Queue *
queue_of_wait(PyObject *self)
{
    return queue_of(((WaitObject *)self)->queue);
}

static PyObject *
wait_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    module_state *state = state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    PyObject *queue, *bell;
    int to_put;
    if (!PyArg_ParseTuple(args, "O!O!p", state->queue_type, &queue,
                          state->bell_type, &bell, &to_put))
    {
        return NULL;
    }
    _PyParcel_Wait *wait = _PyParcel_WaitNew(state->home, queue_of(queue),
                                             to_put, bell_of(bell));
    if (wait == NULL) {
        return NULL;
    }
    PyObject *self = handle_new(type, state->home, wait);
    if (self == NULL) {
        _PyParcel_WaitFree(wait);
        return NULL;
    }
    ((WaitObject *)self)->queue = Py_NewRef(queue);
    return self;
}

static int
wait_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((WaitObject *)self)->queue);
    return 0;
}

static PyObject *
wait_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    _PyParcel_HandleObject *handle = (_PyParcel_HandleObject *)self;
    if (handle->what != NULL) {
        _PyParcel_WaitFree(handle->what);
        handle->what = NULL;
    }
    Py_RETURN_NONE;
}

static void
wait_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    (void)wait_close(self, NULL);
    Py_XDECREF(((WaitObject *)self)->queue);
    handle_free(self);
}

static module_state *
state_of_wait(PyObject *self)
{
    if (((_PyParcel_HandleObject *)self)->what == NULL) {
        PyErr_SetString(PyExc_ValueError, "the wait has been closed");
        return NULL;
    }
    return state_of_type(Py_TYPE(self));
}

static PyObject *
wait_get(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    module_state *state = state_of_wait(self);
    if (state == NULL) {
        return NULL;
    }
    _PyParcel_Queue *queue = queue_of_wait(self);
    _PyParcel *parcel;
    _PyParcel_Status status = _PyParcel_WaitGet(
        ((_PyParcel_HandleObject *)self)->what, &parcel);
    return status == _PyParcel_OK ? finish_get(state, queue, parcel)
                                  : get_failed(state, queue, status);
}

static PyObject *
wait_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    module_state *state = state_of_wait(self);
    if (state == NULL) {
        return NULL;
    }
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError,
                            "put() takes 2 arguments (%zd given)", nargs);
    }
    _PyParcel_Queue *queue = queue_of_wait(self);
    int unbound = parse_unbound(state, args[1], _PyParcel_QueueUnbound(queue));
    if (unbound == 0) {
        return NULL;
    }
    to_pack p = {state->home, args};
    _PyParcel_Status status = _PyParcel_WaitPut(
        ((_PyParcel_HandleObject *)self)->what, pack_one, &p, unbound);
    if (status != _PyParcel_OK) {
        return put_failed(state, queue, status);
    }
    Py_RETURN_NONE;
}

static PyObject *
wait_get_over(PyObject *self, void *Py_UNUSED(closure))
{
    _PyParcel_Wait *wait = ((_PyParcel_HandleObject *)self)->what;
    return PyBool_FromLong(wait == NULL || _PyParcel_WaitOver(wait));
}

static PyMethodDef wait_methods[] = {
    {"get", wait_get, METH_NOARGS, NULL},
    {"put", _PyCFunction_CAST(wait_put), METH_FASTCALL, NULL},
    {"close", wait_close, METH_NOARGS, NULL},
    {NULL, NULL}
};

static PyGetSetDef wait_getset[] = {
    {"over", wait_get_over, NULL, PyDoc_STR("Whether to try again.")},
    {NULL}
};

PyDoc_STRVAR(wait_doc,
"Wait(queue, bell, to_put, /)\n"
"--\n"
"\n"
"get() and put(obj, unbounditems) raise QueueEmpty and QueueFull where they\n"
"would have to wait; the bell rings when they are to be tried again.  close()\n"
"gives up.");

static PyType_Slot wait_slots[] = {
    {Py_tp_doc, (void *)wait_doc},
    {Py_tp_new, wait_new},
    {Py_tp_dealloc, wait_dealloc},
    {Py_tp_traverse, wait_traverse},
    {Py_tp_methods, wait_methods},
    {Py_tp_getset, wait_getset},
    {0, NULL},
};

static PyType_Spec wait_spec = {
    .name = "_parcels.Wait",
    .basicsize = sizeof(WaitObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE),
    .slots = wait_slots,
};


/* --- Queue: the rest ----------------------------------------------------- */

PyDoc_STRVAR(queue_qsize_doc,
"qsize($self, /)\n"
"--\n"
"\n"
"How many items are in the queue just now.");

static PyObject *
queue_qsize(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSsize_t(_PyParcel_QueueSize(queue_of(self)));
}

PyDoc_STRVAR(queue_empty_doc,
"empty($self, /)\n"
"--\n"
"\n"
"Whether there is no item in the queue just now.");

static PyObject *
queue_empty(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(_PyParcel_QueueSize(queue_of(self)) == 0);
}

PyDoc_STRVAR(queue_full_doc,
"full($self, /)\n"
"--\n"
"\n"
"Whether put() would have to wait just now.");

static PyObject *
queue_full(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_ssize_t maxsize = _PyParcel_QueueMaxSize(queue_of(self));
    return PyBool_FromLong(maxsize > 0
                           && _PyParcel_QueueSize(queue_of(self)) >= maxsize);
}

static PyObject *
queue_get_id(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(_PyParcel_QueueId(queue_of(self)));
}

static PyObject *
queue_get_maxsize(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(_PyParcel_QueueMaxSize(queue_of(self)));
}

static PyObject *
queue_get_unbounditems(PyObject *self, void *Py_UNUSED(closure))
{
    module_state *state = state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    return Py_NewRef(
        state->sentinels[_PyParcel_QueueUnbound(queue_of(self)) - 1]);
}

static PyMethodDef queue_methods[] = {
    {"put", _PyCFunction_CAST(queue_put), METH_FASTCALL | METH_KEYWORDS,
     queue_put_doc},
    {"put_nowait", _PyCFunction_CAST(queue_put_nowait),
     METH_FASTCALL | METH_KEYWORDS, queue_put_nowait_doc},
    {"get", _PyCFunction_CAST(queue_get), METH_FASTCALL | METH_KEYWORDS,
     queue_get_doc},
    {"get_nowait", queue_get_nowait, METH_NOARGS, queue_get_nowait_doc},
    {"put_many", _PyCFunction_CAST(queue_put_many),
     METH_FASTCALL | METH_KEYWORDS, queue_put_many_doc},
    {"get_many", _PyCFunction_CAST(queue_get_many),
     METH_FASTCALL | METH_KEYWORDS, queue_get_many_doc},
    {"put_async", _PyCFunction_CAST(queue_put_async),
     METH_FASTCALL | METH_KEYWORDS, queue_put_async_doc},
    {"get_async", queue_get_async, METH_NOARGS, queue_get_async_doc},
    {"qsize", queue_qsize, METH_NOARGS, queue_qsize_doc},
    {"empty", queue_empty, METH_NOARGS, queue_empty_doc},
    {"full", queue_full, METH_NOARGS, queue_full_doc},
    {"__reduce__", queue_reduce, METH_NOARGS, NULL},
    {NULL, NULL}
};

static PyGetSetDef queue_getset[] = {
    {"id", queue_get_id, NULL,
     PyDoc_STR("The queue's number; no other queue of the process ever has it.")},
    {"maxsize", queue_get_maxsize, NULL,
     PyDoc_STR("How many items there can be in the queue; 0: any number.")},
    {"unbounditems", queue_get_unbounditems, NULL,
     PyDoc_STR("What put() assumes when it is not told.")},
    {NULL}
};

PyDoc_STRVAR(queue_doc,
"Queue(id, /)\n"
"--\n"
"\n"
"A queue that carries objects between interpreters.\n"
"\n"
"create_queue() makes one.  Queue(id) gives the one with that id, or raises\n"
"QueueNotFoundError.  A queue can itself be sent: the receiver gets its own\n"
"handle for the same queue.  It exists as long as somebody has a handle.");

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, (void *)queue_doc},
    {Py_tp_new, queue_new},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_traverse, type_traverse},
    {Py_tp_repr, queue_repr},
    {Py_tp_hash, queue_hash},
    {Py_tp_richcompare, queue_richcompare},
    {Py_tp_methods, queue_methods},
    {Py_tp_getset, queue_getset},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "interpreters.Queue",
    .basicsize = sizeof(_PyParcel_QueueObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_MANAGED_WEAKREF | Py_TPFLAGS_IMMUTABLETYPE),
    .slots = queue_slots,
};


/* --- Calling into another interpreter ------------------------------------ */

/* An exception on its way back, without anything of its interpreter. */
typedef enum {
    FAILED_OTHERWISE,
    FAILED_NOT_SHAREABLE,
    FAILED_NO_MEMORY,
    FAILED_INTERRUPT,
    FAILED_INTERPRETER,
} failure_kind;

typedef struct {
    failure_kind kind;
    char text[400];
} failure;

/* What an exception says, with its type if that does not go along, and with
   its cause. */
static PyObject *
describe_exception(PyObject *exc, int with_type)
{
    PyObject *text = with_type ? PyUnicode_FromFormat("%T: %S", exc, exc)
                               : PyObject_Str(exc);
    PyObject *cause = PyException_GetCause(exc);
    if (text != NULL && cause != NULL) {
        Py_SETREF(text, PyUnicode_FromFormat("%U (%T: %S)", text, cause, cause));
    }
    Py_XDECREF(cause);
    return text;
}

static void
capture_failure(failure *f, module_state *state)
{
    PyObject *exc = PyErr_GetRaisedException();
    f->kind = FAILED_OTHERWISE;
    if (PyErr_GivenExceptionMatches(exc, PyExc_MemoryError)) {
        f->kind = FAILED_NO_MEMORY;
    }
    else if (PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt)) {
        f->kind = FAILED_INTERRUPT;
    }
    else if (PyErr_GivenExceptionMatches(exc, PyExc_InterpreterError)) {
        f->kind = FAILED_INTERPRETER;
    }
    else if (state != NULL && state->NotShareableError != NULL
             && PyErr_GivenExceptionMatches(exc, state->NotShareableError))
    {
        f->kind = FAILED_NOT_SHAREABLE;
    }
    PyObject *text = describe_exception(exc, f->kind == FAILED_OTHERWISE);
    const char *utf8 = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    PyOS_snprintf(f->text, sizeof(f->text), "%s",
                  utf8 != NULL ? utf8 : Py_TYPE(exc)->tp_name);
    PyErr_Clear();
    Py_XDECREF(text);
    Py_DECREF(exc);
}

static void
raise_failure(failure *f, module_state *state)
{
    PyObject *type = PyExc_InterpreterError;
    if (f->kind == FAILED_NO_MEMORY) {
        PyErr_NoMemory();
        return;
    }
    if (f->kind == FAILED_INTERRUPT) {
        PyErr_SetNone(PyExc_KeyboardInterrupt);
        return;
    }
    if (f->kind == FAILED_NOT_SHAREABLE) {
        type = state->NotShareableError;
    }
    // The text may have been cut in the middle of a character.
    PyObject *text = PyUnicode_DecodeUTF8(f->text, strlen(f->text), "replace");
    if (text != NULL) {
        PyErr_SetObject(type, text);
        Py_DECREF(text);
    }
}

/* The state of the module in the current interpreter. */
static module_state *
current_state(PyObject **module)
{
    *module = PyImport_ImportModule("_parcels");
    if (*module == NULL) {
        return NULL;
    }
    return get_state(*module);
}

/* In the target: open the arguments, call the entry, pack what it returns. */
static _PyParcel *
call_entry(module_state *state, _PyParcel *args)
{
    _PyParcel *result = NULL;
    PyObject *entries = NULL;
    PyObject *entry = NULL;
    PyObject *res = NULL;
    PyObject *call = _PyParcel_Open(state->home, args);
    if (call == NULL) {
        goto exit;
    }
    if (!PyTuple_CheckExact(call) || PyTuple_GET_SIZE(call) != 2
        || !PyUnicode_CheckExact(PyTuple_GET_ITEM(call, 0)))
    {
        PyErr_SetString(PyExc_TypeError,
                        "run() needs a tuple of an entry's name and its argument");
        goto exit;
    }
    entries = PyImport_ImportModule("interpreters._entry");
    if (entries == NULL) {
        goto exit;
    }
    entry = PyObject_GetAttr(entries, PyTuple_GET_ITEM(call, 0));
    if (entry == NULL) {
        goto exit;
    }
    res = PyObject_CallOneArg(entry, PyTuple_GET_ITEM(call, 1));
    if (res == NULL) {
        goto exit;
    }
    result = _PyParcel_Pack(state->home, res);

exit:
    Py_XDECREF(res);
    Py_XDECREF(entry);
    Py_XDECREF(entries);
    Py_XDECREF(call);
    return result;
}

/* Attached to the target, whose main this thread runs, or which is running
   anything: a direct transfer. */
static _PyParcel *
run_inside(PyInterpreterState *interp, _PyParcel *args, int direct, failure *f)
{
    PyObject *module = NULL;
    module_state *state = NULL;
    _PyParcel *result = NULL;
    int running = !direct && (_PyInterpreterState_SetRunningMain(interp) == 0);
    if (running || direct) {
        state = current_state(&module);
        if (state != NULL) {
            result = call_entry(state, args);
        }
    }
    if (result == NULL) {
        capture_failure(f, state);
    }
    Py_XDECREF(module);
    if (running) {
        _PyInterpreterState_SetNotRunningMain(interp);
    }
    return result;
}

/* The hand-over between two heaps.  There is nothing to do in it as long as a
   parcel is a copy; it waits until the other interpreter is at a safepoint. */
static int
hand_over(PyInterpreterState *other)
{
    _PyRWGIL_Section section;
    if (_PyRWGIL_WritePair(&section, other) < 0) {
        return -1;
    }
    _PyRWGIL_WriteEnd(&section);
    return 0;
}

/* A direct transfer doesn't wait for a switch interval, neither there nor for the
   way back, and has no section over both heaps: it is attached to the one whose
   objects it touches. */
static _PyParcel *
run_in(module_state *state, PyInterpreterState *interp, _PyParcel *args,
       int direct)
{
    if (!direct && hand_over(interp) < 0) {
        return NULL;
    }
    PyThreadState *tstate =
        _PyThreadState_NewBound(interp, _PyThreadState_WHENCE_EXEC);
    if (tstate == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    int hurry = _PyRWGIL_hurry;
    _PyRWGIL_hurry = hurry || direct;
    PyThreadState *save = PyThreadState_Swap(tstate);
    failure f;
    _PyParcel *result = run_inside(interp, args, direct, &f);
    PyThreadState_Clear(tstate);
    PyThreadState_Swap(save);
    PyThreadState_Delete(tstate);
    _PyRWGIL_hurry = hurry;
    if (result == NULL) {
        raise_failure(&f, state);
    }
    else if (!direct && hand_over(interp) < 0) {
        _PyParcel_Discard(result);
        result = NULL;
    }
    return result;
}

/* The caller has registered the visit. */
static PyObject *
run_visiting(module_state *state, int64_t id, _PyParcel *args, int direct)
{
    PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
    if (interp == NULL || _PyInterp_CheckOpen(interp) < 0) {
        return NULL;
    }
    if (!_PyInterpreterState_IsReady(interp)) {
        PyErr_Format(PyExc_InterpreterError,
                     "interpreter %lld is not ready", (long long)id);
        return NULL;
    }
    _PyParcel *result = run_in(state, interp, args, direct);
    if (result == NULL) {
        return NULL;
    }
    PyObject *obj = _PyParcel_Open(state->home, result);
    _PyParcel_Discard(result);
    return obj;
}

static PyObject *
run_current(module_state *state, _PyParcel *args)
{
    _PyParcel *result = call_entry(state, args);
    if (result == NULL) {
        return NULL;
    }
    PyObject *obj = _PyParcel_Open(state->home, result);
    _PyParcel_Discard(result);
    return obj;
}

PyDoc_STRVAR(module_run_doc,
"run($module, interpreter_id, call, direct=False, /)\n"
"--\n"
"\n"
"Call interpreters._entry.<name>(argument) in that interpreter, in this thread.\n"
"\n"
"call is a tuple (name, argument), or a parcel of one.  What the function\n"
"returns is sent back and returned.  The functions of that module are not to\n"
"raise anything; if one does all the same, InterpreterError has the text.\n"
"\n"
"The interpreter must not be running anything.  If direct is true it may: then\n"
"its threads give way as soon as they come to a safepoint, and not after the\n"
"switch interval.");

static PyObject *
module_run(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    module_state *state = get_state(module);
    if (nargs < 2 || nargs > 3) {
        return PyErr_Format(PyExc_TypeError,
                            "run() takes 2 or 3 arguments (%zd given)", nargs);
    }
    int direct = nargs == 3 ? PyObject_IsTrue(args[2]) : 0;
    if (direct < 0) {
        return NULL;
    }
    int64_t id = _PyInterpreterState_ObjectToID(args[0]);
    if (id < 0) {
        return NULL;
    }
    _PyParcel *call;
    if (Py_IS_TYPE(args[1], state->parcel_type)) {
        call = _PyParcel_Share(parcel_of(args[1]));
    }
    else {
        call = _PyParcel_PackArg(state->home, &args[1], NULL);
        if (call == NULL) {
            return NULL;
        }
    }

    PyObject *res = NULL;
    if (id == state->home->interpid) {
        res = run_current(state, call);
    }
    else if (_PyRWInterp_Enter(id, _PyRWInterp_VISIT) == 0) {
        res = run_visiting(state, id, call, direct);
        _PyRWInterp_Leave(id, _PyRWInterp_VISIT);
    }
    _PyParcel_Discard(call);
    return res;
}

PyDoc_STRVAR(module_close_doc,
"close($module, interpreter_id, /)\n"
"--\n"
"\n"
"Destroy an interpreter that nobody is in.");

static PyObject *
module_close(PyObject *module, PyObject *id)
{
    PyObject *base = PyImport_ImportModule("_interpreters");
    if (base == NULL) {
        return NULL;
    }
    PyObject *res = PyObject_CallMethod(base, "destroy", "O", id);
    Py_DECREF(base);
    return res;
}


/* --- Module functions ---------------------------------------------------- */

PyDoc_STRVAR(module_create_queue_doc,
"create_queue($module, /, maxsize=0, *, unbounditems=UNBOUND)\n"
"--\n"
"\n"
"Make a queue that carries objects between interpreters.\n"
"\n"
"maxsize is the number of items that it holds at most; 0 or less: any number.\n"
"unbounditems says what becomes of an item if the interpreter that put it is\n"
"closed: UNBOUND takes its place, or get() raises ItemInterpreterDestroyed\n"
"(UNBOUND_ERROR), or it vanishes (UNBOUND_REMOVE).");

static const signature create_queue_signature = {
    "create_queue", 0, 1, 2, {"maxsize", "unbounditems"}
};

static PyObject *
module_create_queue(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                    PyObject *kwnames)
{
    module_state *state = get_state(module);
    PyObject *values[2];
    if (parse_args(&create_queue_signature, args, nargs, kwnames, values) < 0) {
        return NULL;
    }
    Py_ssize_t maxsize = 0;
    if (values[0] != NULL) {
        maxsize = PyNumber_AsSsize_t(values[0], PyExc_OverflowError);
        if (maxsize == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    int unbound = parse_unbound(state, values[1], _PyParcel_UNBOUND_REPLACE);
    if (unbound == 0) {
        return NULL;
    }
    _PyParcel_Queue *queue = _PyParcel_QueueNew(maxsize, unbound);
    if (queue == NULL) {
        return NULL;
    }
    PyObject *self = queue_instance(state->home, queue);
    _PyParcel_QueueDrop(queue);
    return self;
}

PyDoc_STRVAR(module_list_queues_doc,
"list_queues($module, /)\n"
"--\n"
"\n"
"The ids of all queues of the process, in the order of their creation.");

static PyObject *
module_list_queues(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    int64_t *ids;
    Py_ssize_t n = _PyParcel_QueueList(&ids);
    if (n < 0) {
        return NULL;
    }
    PyObject *list = PyList_New(n);
    for (Py_ssize_t i = 0; list != NULL && i < n; i++) {
        PyObject *id = PyLong_FromLongLong(ids[i]);
        if (id == NULL) {
            Py_CLEAR(list);
        }
        else {
            PyList_SET_ITEM(list, i, id);
        }
    }
    PyMem_RawFree(ids);
    return list;
}

PyDoc_STRVAR(module_pack_doc,
"pack($module, obj, /)\n"
"--\n"
"\n"
"Take a copy of an object, or with move(obj) the object, out of this\n"
"interpreter and return it as a Parcel.");

static PyObject *
module_pack(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    module_state *state = get_state(module);
    if (nargs != 1) {
        return PyErr_Format(PyExc_TypeError,
                            "pack() takes 1 argument (%zd given)", nargs);
    }
    // Once the object has been moved nothing may fail.
    PyObject *self = parcel_new(state->home, NULL);
    if (self == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(self);
    _PyParcel *parcel = _PyParcel_PackArg(state->home, args, NULL);
    ((_PyParcel_HandleObject *)self)->what = parcel;
    PyObject_GC_Track(self);
    if (parcel == NULL) {
        Py_CLEAR(self);
    }
    return self;
}

PyDoc_STRVAR(module_is_shareable_doc,
"is_shareable($module, obj, /)\n"
"--\n"
"\n"
"Whether an object goes to another interpreter as it is, without help of its\n"
"class.");

static PyObject *
module_is_shareable(PyObject *module, PyObject *obj)
{
    int res = _PyParcel_IsNative(get_state(module)->home, obj);
    return res < 0 ? NULL : PyBool_FromLong(res);
}

PyDoc_STRVAR(module_register_interpreter_type_doc,
"register_interpreter_type($module, type, /)\n"
"--\n"
"\n"
"Instances of this type are sent as their id, and made by calling it with one.\n"
"They have it in a slot, _id: no Python code may run to get it.");

static PyObject *
module_register_interpreter_type(PyObject *module, PyObject *type)
{
    module_state *state = get_state(module);
    if (!PyType_Check(type)) {
        PyErr_SetString(PyExc_TypeError, "a type is wanted");
        return NULL;
    }
    Py_XSETREF(state->interpreter_type, Py_NewRef(type));
    state->home->interpreter_type = (PyTypeObject *)type;
    Py_RETURN_NONE;
}

static PyObject *
histogram_as_dict(const _PyRWGIL_Histogram *h)
{
    PyObject *buckets = PyTuple_New(_PyRWGIL_BUCKETS);
    if (buckets == NULL) {
        return NULL;
    }
    for (int i = 0; i < _PyRWGIL_BUCKETS; i++) {
        PyObject *n = PyLong_FromUnsignedLongLong(h->buckets[i]);
        if (n == NULL) {
            Py_DECREF(buckets);
            return NULL;
        }
        PyTuple_SET_ITEM(buckets, i, n);
    }
    return Py_BuildValue("{sKsKsKsN}",
                         "count", (unsigned long long)h->count,
                         "total_ns", (unsigned long long)h->total_ns,
                         "max_ns", (unsigned long long)h->max_ns,
                         "buckets", buckets);
}

static PyObject *
stats_as_dict(const _PyRWGIL_Stats *stats)
{
    PyObject *blamed = stats->blame_interp < 0
        ? Py_NewRef(Py_None) : PyLong_FromLongLong(stats->blame_interp);
    return Py_BuildValue(
        "{s{sKsKsK}sKsKsNsNsNs(KN)}",
        "sections",
            "own", (unsigned long long)stats->sections[0],
            "pair", (unsigned long long)stats->sections[1],
            "all", (unsigned long long)stats->sections[2],
        "safepoints", (unsigned long long)stats->safepoints,
        "backoffs", (unsigned long long)stats->backoffs,
        "read_wait", histogram_as_dict(&stats->read_wait),
        "write_wait", histogram_as_dict(&stats->write_wait),
        "write_hold", histogram_as_dict(&stats->write_hold),
        "longest_wait", (unsigned long long)stats->blame_ns, blamed);
}

static int
add_stats(PyObject *dict, PyObject *key, const _PyRWGIL_Stats *stats)
{
    PyObject *value = key != NULL ? stats_as_dict(stats) : NULL;
    int res = value != NULL ? PyDict_SetItem(dict, key, value) : -1;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return res;
}

PyDoc_STRVAR(module_lock_stats_doc,
"lock_stats($module, /)\n"
"--\n"
"\n"
"What the read/write lock over all interpreters has counted.\n"
"\n"
"A dict.  'mode' is 'pair' or 'global' (see -X rwgil).  'interpreters' maps\n"
"the id of each interpreter that has a lock of its own to a dict; 'gone' is\n"
"such a dict for all that have been closed.  In these:\n"
"\n"
"  sections      write sections begun, over 'own', 'pair' and 'all' heaps\n"
"  safepoints    times that a writer stopped this interpreter\n"
"  backoffs      times that a writer of this interpreter gave way\n"
"  read_wait, write_wait, write_hold\n"
"                dicts of count, total_ns, max_ns and buckets, where\n"
"                buckets[i] counts times from 2**(i-1) to 2**i ns\n"
"  longest_wait  (ns, id): the longest time that a writer here waited, and\n"
"                the interpreter that it waited for, or None");

static PyObject *
module_lock_stats(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    _PyRWGIL_Stats stats;
    PyObject *all = PyDict_New();
    PyObject *interpreters = PyDict_New();
    if (all == NULL || interpreters == NULL) {
        goto error;
    }
    PyObject *mode = PyUnicode_FromString(
        _PyRWGIL_GetMode() == _PyRWGIL_MODE_GLOBAL ? "global" : "pair");
    if (mode == NULL) {
        goto error;
    }
    int res = PyDict_SetItemString(all, "mode", mode);
    Py_DECREF(mode);
    if (res < 0 || PyDict_SetItemString(all, "interpreters", interpreters) < 0) {
        goto error;
    }
    for (int32_t i = 0; (res = _PyRWGIL_GetStats(i, &stats)) >= 0; i++) {
        if (res == 1
            && add_stats(interpreters, PyLong_FromLongLong(stats.interp),
                         &stats) < 0)
        {
            goto error;
        }
    }
    _PyRWGIL_GetStats(-2, &stats);
    if (add_stats(all, PyUnicode_FromString("gone"), &stats) < 0) {
        goto error;
    }
    Py_DECREF(interpreters);
    return all;

error:
    Py_XDECREF(all);
    Py_XDECREF(interpreters);
    return NULL;
}

/* Called by the name that parcels have for it. */
static PyObject *
module_make(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    return _PyParcel_Make(get_state(module)->home, args, nargs);
}

static PyMethodDef module_methods[] = {
    {"create_queue", _PyCFunction_CAST(module_create_queue),
     METH_FASTCALL | METH_KEYWORDS, module_create_queue_doc},
    {"list_queues", module_list_queues, METH_NOARGS, module_list_queues_doc},
    {"pack", _PyCFunction_CAST(module_pack), METH_FASTCALL, module_pack_doc},
    {"is_shareable", module_is_shareable, METH_O, module_is_shareable_doc},
    {"register_interpreter_type", module_register_interpreter_type, METH_O,
     module_register_interpreter_type_doc},
    {"run", _PyCFunction_CAST(module_run), METH_FASTCALL, module_run_doc},
    {"close", module_close, METH_O, module_close_doc},
    {"lock_stats", module_lock_stats, METH_NOARGS, module_lock_stats_doc},
    {"make", _PyCFunction_CAST(module_make), METH_FASTCALL, NULL},
    {NULL, NULL}
};


/* --- Module life --------------------------------------------------------- */

static int
add_exception(PyObject *module, PyObject **result, const char *name,
              const char *doc, PyObject *base, PyObject *other)
{
    PyObject *bases = other != NULL ? PyTuple_Pack(2, base, other)
                                    : PyTuple_Pack(1, base);
    if (bases == NULL) {
        return -1;
    }
    *result = PyErr_NewExceptionWithDoc(name, doc, bases, NULL);
    Py_DECREF(bases);
    if (*result == NULL) {
        return -1;
    }
    return PyModule_AddObjectRef(module, strchr(name, '.') + 1, *result);
}

static int
add_exceptions(PyObject *module, module_state *state)
{
    int res = -1;
    PyObject *empty = NULL;
    PyObject *full = NULL;
    PyObject *queue = PyImport_ImportModule("queue");
    if (queue == NULL
        || (empty = PyObject_GetAttrString(queue, "Empty")) == NULL
        || (full = PyObject_GetAttrString(queue, "Full")) == NULL)
    {
        goto exit;
    }
    if (add_exception(module, &state->NotShareableError,
                      "interpreters.NotShareableError",
                      "An object that can't be sent to another interpreter.",
                      PyExc_TypeError, NULL) < 0
        || add_exception(module, &state->QueueError, "interpreters.QueueError",
                         "What is wrong with a queue between interpreters.",
                         PyExc_Exception, NULL) < 0
        || add_exception(module, &state->QueueNotFoundError,
                         "interpreters.QueueNotFoundError",
                         "There is no such queue, or no more.",
                         state->QueueError, NULL) < 0
        || add_exception(module, &state->QueueEmpty, "interpreters.QueueEmpty",
                         "get() found no item in time.",
                         state->QueueError, empty) < 0
        || add_exception(module, &state->QueueFull, "interpreters.QueueFull",
                         "put() found no place in time.",
                         state->QueueError, full) < 0
        || add_exception(module, &state->ItemInterpreterDestroyed,
                         "interpreters.ItemInterpreterDestroyed",
                         "The interpreter that put the item has been closed.",
                         state->QueueError, NULL) < 0)
    {
        goto exit;
    }
    res = 0;

exit:
    Py_XDECREF(queue);
    Py_XDECREF(empty);
    Py_XDECREF(full);
    return res;
}

static int
add_type(PyObject *module, PyTypeObject **result, PyType_Spec *spec)
{
    *result = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (*result == NULL) {
        return -1;
    }
    return PyModule_AddType(module, *result);
}

static int
add_stats_type(PyObject *module, module_state *state)
{
    state->stats_type = PyStructSequence_NewType(&stats_desc);
    if (state->stats_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->stats_type);
}

static int
add_sentinels(PyObject *module, module_state *state)
{
    for (int i = 0; i < _PyParcel_NSENTINELS; i++) {
        state->sentinels[i] = unbound_new(state, i + 1);
        if (state->sentinels[i] == NULL
            || PyModule_AddObjectRef(module, unbound_names[i + 1],
                                     state->sentinels[i]) < 0)
        {
            return -1;
        }
        state->home->sentinels[i] = state->sentinels[i];
    }
    return 0;
}

/* The module keeps what the home borrows. */
static int
add_moved(PyObject *module, module_state *state)
{
    _PyParcel_Home *home = state->home;
    int res = _PyParcel_MovedInit(home, module);
    state->move_type = home->move_type;
    state->moved_types[0] = home->moved_types[0];
    state->moved_types[1] = home->moved_types[1];
    state->moved_weak_types = home->moved_weak_types;
    state->MovedError = home->moved_error;
    state->TransferError = home->transfer_error;
    if (res < 0
        || PyModule_AddType(module, state->move_type) < 0
        || PyModule_AddType(module, state->moved_types[0]) < 0
        || PyModule_AddObjectRef(module, "MovedError", state->MovedError) < 0
        || PyModule_AddObjectRef(module, "TransferError",
                                 state->TransferError) < 0)
    {
        return -1;
    }
    return 0;
}

static int
module_exec(PyObject *module)
{
    module_state *state = get_state(module);
    _PyParcel_Home *home = state->home = _PyParcel_NewHome();
    if (home == NULL
        || add_exceptions(module, state) < 0
        || add_type(module, &state->queue_type, &queue_spec) < 0
        || add_type(module, &state->parcel_type, &parcel_spec) < 0
        || add_type(module, &state->lent_type, &lent_spec) < 0
        || add_type(module, &state->unbound_type, &unbound_spec) < 0
        || add_type(module, &state->bell_type, &bell_spec) < 0
        || add_type(module, &state->wait_type, &wait_spec) < 0
        || add_stats_type(module, state) < 0
        || add_sentinels(module, state) < 0
        || add_moved(module, state) < 0)
    {
        return -1;
    }
    home->queue_type = state->queue_type;
    home->parcel_type = state->parcel_type;
    home->lent_type = state->lent_type;
    home->not_shareable_error = state->NotShareableError;
    home->new_queue = queue_instance;
    home->new_parcel = parcel_new;
    home->new_lent = lent_new;
    return 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = get_state(module);
    Py_VISIT(state->queue_type);
    Py_VISIT(state->parcel_type);
    Py_VISIT(state->lent_type);
    Py_VISIT(state->unbound_type);
    Py_VISIT(state->move_type);
    Py_VISIT(state->moved_types[0]);
    Py_VISIT(state->moved_types[1]);
    Py_VISIT(state->moved_weak_types);
    Py_VISIT(state->stats_type);
    Py_VISIT(state->bell_type);
    Py_VISIT(state->wait_type);
    for (int i = 0; i < _PyParcel_NSENTINELS; i++) {
        Py_VISIT(state->sentinels[i]);
    }
    Py_VISIT(state->interpreter_type);
    Py_VISIT(state->NotShareableError);
    Py_VISIT(state->QueueError);
    Py_VISIT(state->QueueNotFoundError);
    Py_VISIT(state->QueueEmpty);
    Py_VISIT(state->QueueFull);
    Py_VISIT(state->ItemInterpreterDestroyed);
    Py_VISIT(state->MovedError);
    Py_VISIT(state->TransferError);
    if (state->home != NULL) {
        return _PyParcel_VisitNames(state->home, visit, arg);
    }
    return 0;
}

static int
module_clear(PyObject *module)
{
    module_state *state = get_state(module);
    _PyParcel_Home *home = state->home;
    if (home != NULL) {
        // What the home borrows (M-2).
        home->queue_type = NULL;
        home->parcel_type = NULL;
        home->lent_type = NULL;
        home->move_type = NULL;
        home->moved_types[0] = home->moved_types[1] = NULL;
        home->moved_weak_types = NULL;
        home->moved_error = NULL;
        home->transfer_error = NULL;
        home->interpreter_type = NULL;
        home->not_shareable_error = NULL;
        memset(home->sentinels, 0, sizeof(home->sentinels));
        _PyParcel_ClearNames(home);
    }
    Py_CLEAR(state->queue_type);
    Py_CLEAR(state->parcel_type);
    Py_CLEAR(state->lent_type);
    Py_CLEAR(state->unbound_type);
    Py_CLEAR(state->move_type);
    Py_CLEAR(state->moved_types[0]);
    Py_CLEAR(state->moved_types[1]);
    Py_CLEAR(state->moved_weak_types);
    Py_CLEAR(state->stats_type);
    Py_CLEAR(state->bell_type);
    Py_CLEAR(state->wait_type);
    for (int i = 0; i < _PyParcel_NSENTINELS; i++) {
        Py_CLEAR(state->sentinels[i]);
    }
    Py_CLEAR(state->interpreter_type);
    Py_CLEAR(state->NotShareableError);
    Py_CLEAR(state->QueueError);
    Py_CLEAR(state->QueueNotFoundError);
    Py_CLEAR(state->QueueEmpty);
    Py_CLEAR(state->QueueFull);
    Py_CLEAR(state->ItemInterpreterDestroyed);
    Py_CLEAR(state->MovedError);
    Py_CLEAR(state->TransferError);
    return 0;
}

static void
module_free(void *arg)
{
    PyObject *module = arg;
    (void)module_clear(module);
    module_state *state = get_state(module);
    if (state->home != NULL) {
        _PyParcel_MovedFini(state->home);
        _PyParcel_DropHome(state->home);
        state->home = NULL;
    }
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
    {0, NULL},
};

PyDoc_STRVAR(module_doc,
"What the package 'interpreters' is made of: queues, parcels, calls.");

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_parcels",
    .m_doc = module_doc,
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_size = sizeof(module_state),
    .m_free = module_free,
    .m_clear = module_clear,
    .m_traverse = module_traverse,
};

PyMODINIT_FUNC
PyInit__parcels(void)
{
    return PyModuleDef_Init(&module_def);
}
