// MovedObject, the marker move(), and the errors of moving.  See
// pycore_parcel_moved.h.
//
// How an object becomes a MovedObject
//
//   Its ob_type is replaced, and nothing else in its memory.  A table of the
//   home notes what its type was.  There are two types, one for objects with a
//   header of the collector before them and one for those without, because
//   that is what the base asks the type about.  It also asks where an object has
//   its list of weak references, when one of these ends or the collector clears
//   them: for each such place there is a type like those two, made when the first
//   object needs it.  All else that depends on the type of an object happens
//   under its own, which is given back for that time:
//
//     tp_traverse   for one call, so that it finds slots, __dict__ and inline
//                   values, and visits the type that the object has a
//                   reference to
//     tp_clear      the same
//     tp_dealloc    for good.  What comes before the header, how much memory is
//                   freed and which list of free objects it goes to is decided
//                   by that.
//
// Guarantees
//
//   MO-1  A MovedObject has a reference to its MovedObject type, so the type
//         outlives it, and keeps the one that it has to its own type.
//   MO-2  The table outlives the MovedObjects.  It is found through their type,
//         also when module and home have been cleared.
//   MO-3  __del__ is not called for what is left: it moved with the content.
//   MO-4  Neither type has the flags of a builtin (PyList_Check() and such are
//         false) nor a version that code has been specialised for.  So no code
//         that looks at the type takes a shortcut into the object.
//
// C code that has looked at the type before, an iterator or a bound method say,
// goes on with what is left: hence the obligation of the mover to leave a proper,
// empty object.  (Assertions of a debug build can trip over such an iterator.)
//
// Only threads that are attached to the interpreter use its table and its
// MovedObjects, so there are no races.

#include "Python.h"
#include "pycore_gc.h"            // _PyGC_SET_FINALIZED()
#include "pycore_hashtable.h"     // _Py_hashtable_t
#include "pycore_object.h"        // _PyType_IS_GC()
#include "pycore_parcel_moved.h"


/* --- The table ----------------------------------------------------------- */

typedef struct {
    _Py_hashtable_t *types;         // object -> type that it had
    _PyParcel_Home *home;           // counted
    Py_ssize_t markers;             // instances of move
    int detached;                   // the module has gone: free it when empty
} moved_table;

static moved_table *
table_new(_PyParcel_Home *home)
{
    moved_table *table = PyMem_RawCalloc(1, sizeof(*table));
    if (table == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    _Py_hashtable_allocator_t raw = {PyMem_RawMalloc, PyMem_RawFree};
    table->types = _Py_hashtable_new_full(
        _Py_hashtable_hash_ptr, _Py_hashtable_compare_direct, NULL, NULL, &raw);
    if (table->types == NULL) {
        PyMem_RawFree(table);
        PyErr_NoMemory();
        return NULL;
    }
    _Py_atomic_add_ssize(&home->refs, 1);
    table->home = home;
    return table;
}

static void
table_free_if_unused(moved_table *table)
{
    if (table->detached && table->markers == 0
        && _Py_hashtable_len(table->types) == 0)
    {
        _PyParcel_Home *home = table->home;
        _Py_hashtable_destroy(table->types);
        PyMem_RawFree(table);
        _PyParcel_DropHome(home);
    }
}


/* --- The metatype: a type with a pointer to the table (MO-2) ------------- */

static int
meta_traverse(PyObject *type, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(type));
    return PyType_Type.tp_traverse(type, visit, arg);
}

static int
meta_clear(PyObject *type)
{
    return PyType_Type.tp_clear(type);
}

static PyType_Slot meta_slots[] = {
    {Py_tp_traverse, meta_traverse},
    {Py_tp_clear, meta_clear},
    {0, NULL},
};

static PyType_Spec meta_spec = {
    .name = "interpreters.MoveType",
    .basicsize = -(int)sizeof(moved_table *),
    // It must be callable as type is: the base counts on it, even to refuse.
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_ITEMS_AT_END
              | Py_TPFLAGS_IMMUTABLETYPE),
    .slots = meta_slots,
};

static moved_table **
table_slot(PyTypeObject *type)
{
    return PyObject_GetTypeData((PyObject *)type, Py_TYPE(type));
}

static inline moved_table *
table_of(PyTypeObject *type)
{
    return *table_slot(type);
}


/* --- Uses of a MovedObject ----------------------------------------------- */

static PyTypeObject *
former_type(PyObject *obj)
{
    PyTypeObject *type = _Py_hashtable_get(table_of(Py_TYPE(obj))->types, obj);
    assert(type != NULL);
    return type;
}

static void
raise_moved(_PyParcel_Home *home, PyTypeObject *type)
{
    PyObject *error = home->moved_error;
    PyErr_Format(error != NULL ? error : PyExc_RuntimeError,
                 "this '%N' object has been moved to another interpreter: "
                 "it can't be used here any more", type);
}

static PyObject *
use(PyObject *obj)
{
    raise_moved(table_of(Py_TYPE(obj))->home, former_type(obj));
    return NULL;
}

static void moved_dealloc(PyObject *);

static inline int
is_moved(PyObject *obj)
{
    return Py_TYPE(obj)->tp_dealloc == moved_dealloc;
}

static PyObject *
use_either(PyObject *left, PyObject *right)
{
    return use(is_moved(left) ? left : right);
}

static PyObject *
use_any(PyObject *a, PyObject *b, PyObject *c)
{
    return use(is_moved(a) ? a : is_moved(b) ? b : c);
}

static PyObject *
use_call(PyObject *obj, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return use(obj);
}

static PyObject *
use_compare(PyObject *obj, PyObject *Py_UNUSED(other), int Py_UNUSED(op))
{
    return use(obj);
}

static int
use_truth(PyObject *obj)
{
    use(obj);
    return -1;
}

static Py_ssize_t
use_length(PyObject *obj)
{
    use(obj);
    return -1;
}

static PyObject *
use_item(PyObject *obj, Py_ssize_t Py_UNUSED(index))
{
    return use(obj);
}

static int
use_set_item(PyObject *obj, Py_ssize_t Py_UNUSED(index),
             PyObject *Py_UNUSED(value))
{
    return use_truth(obj);
}

static int
use_contains(PyObject *obj, PyObject *Py_UNUSED(value))
{
    return use_truth(obj);
}

static int
use_set(PyObject *obj, PyObject *Py_UNUSED(key), PyObject *Py_UNUSED(value))
{
    return use_truth(obj);
}

static int
use_buffer(PyObject *obj, Py_buffer *view, int Py_UNUSED(flags))
{
    view->obj = NULL;
    return use_truth(obj);
}

/* Who lent its memory before it was moved gives it back to what it was. */
static void
release_buffer(PyObject *obj, Py_buffer *view)
{
    PyTypeObject *moved = Py_TYPE(obj);
    PyTypeObject *type = former_type(obj);
    if (type->tp_as_buffer != NULL
        && type->tp_as_buffer->bf_releasebuffer != NULL)
    {
        Py_SET_TYPE(obj, type);
        type->tp_as_buffer->bf_releasebuffer(obj, view);
        Py_SET_TYPE(obj, moved);
    }
}

/* isinstance() asks for __class__. */
static PyObject *
moved_getattro(PyObject *obj, PyObject *name)
{
    if (PyUnicode_Check(name) && PyUnicode_EqualToUTF8(name, "__class__")) {
        return Py_NewRef(Py_TYPE(obj));
    }
    return use(obj);
}

static PyObject *
moved_repr(PyObject *obj)
{
    return PyUnicode_FromFormat("<interpreters.MovedObject, was a '%N' at %p>",
                                former_type(obj), obj);
}


/* --- Life of a MovedObject ----------------------------------------------- */

static int
moved_traverse(PyObject *obj, visitproc visit, void *arg)
{
    PyTypeObject *moved = Py_TYPE(obj);
    Py_VISIT(moved);
    PyTypeObject *type = former_type(obj);
    Py_SET_TYPE(obj, type);
    int res = type->tp_traverse(obj, visit, arg);
    Py_SET_TYPE(obj, moved);
    return res;
}

static int
moved_clear(PyObject *obj)
{
    PyTypeObject *moved = Py_TYPE(obj);
    PyTypeObject *type = former_type(obj);
    int res = 0;
    if (type->tp_clear != NULL) {
        // The collector keeps the object for that time.
        Py_SET_TYPE(obj, type);
        res = type->tp_clear(obj);
        Py_SET_TYPE(obj, moved);
    }
    return res;
}

/* MO-3 */
static void
dealloc_unfinalized(PyObject *obj, PyTypeObject *type)
{
    if (_PyType_IS_GC(type)) {
        _PyGC_SET_FINALIZED(obj);
        type->tp_dealloc(obj);
        return;
    }
    // Without a header nothing can note that it has been finalized.  Freeing it
    // runs no code that could see this.
    destructor finalize = type->tp_finalize;
    Py_INCREF(type);
    type->tp_finalize = NULL;
    type->tp_dealloc(obj);
    type->tp_finalize = finalize;
    Py_DECREF(type);
}

static void
moved_dealloc(PyObject *obj)
{
    PyTypeObject *moved = Py_TYPE(obj);
    moved_table *table = table_of(moved);
    PyTypeObject *type = _Py_hashtable_steal(table->types, obj);
    assert(type != NULL);
    Py_SET_TYPE(obj, type);
    if (type->tp_finalize != NULL) {
        dealloc_unfinalized(obj, type);
    }
    else {
        type->tp_dealloc(obj);
    }
    table_free_if_unused(table);
    Py_DECREF(moved);
}

PyDoc_STRVAR(moved_doc,
"What an object has become that was moved to another interpreter.\n"
"\n"
"Every use raises MovedError.  repr(), type(), isinstance() and `is` work.");

// In-place operators fall back to these.
static PyType_Slot moved_slots[] = {
    {Py_tp_doc, (void *)moved_doc},
    {Py_tp_dealloc, moved_dealloc},
    {Py_tp_repr, moved_repr},
    {Py_tp_getattro, moved_getattro},
    {Py_tp_setattro, use_set},
    {Py_tp_call, use_call},
    {Py_tp_hash, use_length},
    {Py_tp_richcompare, use_compare},
    {Py_tp_iter, use},
    {Py_tp_iternext, use},
    {Py_am_await, use},
    {Py_am_aiter, use},
    {Py_am_anext, use},
    {Py_bf_getbuffer, use_buffer},
    {Py_bf_releasebuffer, release_buffer},
    {Py_sq_length, use_length},
    {Py_sq_item, use_item},
    {Py_sq_ass_item, use_set_item},
    {Py_sq_contains, use_contains},
    {Py_mp_length, use_length},
    {Py_mp_subscript, use_either},
    {Py_mp_ass_subscript, use_set},
    {Py_nb_bool, use_truth},
    {Py_nb_index, use},
    {Py_nb_int, use},
    {Py_nb_float, use},
    {Py_nb_negative, use},
    {Py_nb_positive, use},
    {Py_nb_absolute, use},
    {Py_nb_invert, use},
    {Py_nb_add, use_either},
    {Py_nb_subtract, use_either},
    {Py_nb_multiply, use_either},
    {Py_nb_matrix_multiply, use_either},
    {Py_nb_true_divide, use_either},
    {Py_nb_floor_divide, use_either},
    {Py_nb_remainder, use_either},
    {Py_nb_divmod, use_either},
    {Py_nb_power, use_any},
    {Py_nb_lshift, use_either},
    {Py_nb_rshift, use_either},
    {Py_nb_and, use_either},
    {Py_nb_or, use_either},
    {Py_nb_xor, use_either},
    {0, NULL},
};

static PyType_Spec moved_spec = {
    .name = "interpreters.MovedObject",
    .basicsize = sizeof(PyObject),
    .flags = (Py_TPFLAGS_DEFAULT
              | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION),
    .slots = moved_slots,
};

static PyType_Slot moved_gc_slots[] = {
    {Py_tp_doc, (void *)moved_doc},
    {Py_tp_dealloc, moved_dealloc},
    {Py_tp_traverse, moved_traverse},
    {Py_tp_clear, moved_clear},
    {0, NULL},
};

static PyType_Slot moved_plain_slots[] = {
    {Py_tp_doc, (void *)moved_doc},
    {Py_tp_dealloc, moved_dealloc},
    {0, NULL},
};

static PyType_Spec moved_plain_spec = {
    .name = "interpreters.MovedObject",
    .basicsize = sizeof(PyObject),
    .flags = (Py_TPFLAGS_DEFAULT
              | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION),
    .slots = moved_plain_slots,
};

static PyType_Spec moved_gc_spec = {
    .name = "interpreters.MovedObject",
    .basicsize = sizeof(PyObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION),
    .slots = moved_gc_slots,
};


/* --- Becoming one -------------------------------------------------------- */

static PyTypeObject *
new_type(PyObject *module, PyObject *meta, PyType_Spec *spec, void *base,
         moved_table *table)
{
    PyObject *type = PyType_FromMetaclass((PyTypeObject *)meta, module, spec,
                                          base);
    if (type != NULL) {
        *table_slot((PyTypeObject *)type) = table;
    }
    else if (!PyErr_Occurred()) {
        PyErr_NoMemory();       // which the base does not always say
    }
    return (PyTypeObject *)type;
}

/* All but the first MovedObject type are derived from it, and nothing else is. */
static PyTypeObject *
derived_type(PyTypeObject *base, PyType_Spec *spec)
{
    base->tp_flags |= Py_TPFLAGS_BASETYPE;
    PyTypeObject *type = new_type(PyType_GetModule(base), (PyObject *)Py_TYPE(base),
                                  spec, base, table_of(base));
    base->tp_flags &= ~Py_TPFLAGS_BASETYPE;
    return type;
}

/* What an object of this type becomes: borrowed, or NULL without an exception
   if there is no such type yet. */
static PyTypeObject *
find_moved_type(_PyParcel_Home *home, PyTypeObject *type)
{
    int gc = _PyType_IS_GC(type);
    if (type->tp_weaklistoffset == 0) {
        return home->moved_types[gc];
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(home->moved_weak_types); i++) {
        PyTypeObject *t = (PyTypeObject *)PyList_GET_ITEM(home->moved_weak_types, i);
        if (t->tp_weaklistoffset == type->tp_weaklistoffset
            && _PyType_IS_GC(t) == gc)
        {
            return t;
        }
    }
    return NULL;
}

static int
ensure_moved_type(_PyParcel_Home *home, PyTypeObject *type)
{
    if (find_moved_type(home, type) != NULL) {
        return 0;
    }
    PyTypeObject *base = home->moved_types[0];
    PyTypeObject *moved = derived_type(base, _PyType_IS_GC(type) ? &moved_gc_spec
                                                              : &moved_plain_spec);
    if (moved == NULL) {
        return -1;
    }
    moved->tp_weaklistoffset = type->tp_weaklistoffset;
    int res = PyList_Append(home->moved_weak_types, (PyObject *)moved);
    Py_DECREF(moved);
    return res;
}

int
_PyParcel_MovedPrepare(_PyParcel_Home *home, PyObject *obj)
{
    moved_table *table = home->moved;
    if (table == NULL || home->moved_types[0] == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is closing");
        return -1;
    }
    if (is_moved(obj)) {
        use(obj);
        return -1;
    }
    if (Py_TYPE(obj)->tp_is_gc != NULL || _Py_IsImmortal(obj)) {
        PyErr_Format(PyExc_TypeError, "a '%T' object can't be moved away", obj);
        return -1;
    }
    if (ensure_moved_type(home, Py_TYPE(obj)) < 0) {
        return -1;
    }
    assert(_Py_hashtable_get(table->types, obj) == NULL);
    if (_Py_hashtable_set(table->types, obj, Py_TYPE(obj)) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

void
_PyParcel_MovedCancel(_PyParcel_Home *home, PyObject *obj)
{
    moved_table *table = home->moved;
    assert(_Py_hashtable_get(table->types, obj) == Py_TYPE(obj));
    (void)_Py_hashtable_steal(table->types, obj);
}

void
_PyParcel_MovedCommit(_PyParcel_Home *home, PyObject *obj)
{
    PyTypeObject *moved = find_moved_type(home, Py_TYPE(obj));
    Py_SET_TYPE(obj, (PyTypeObject *)Py_NewRef(moved));
    assert(former_type(obj)->tp_dealloc != moved_dealloc);
}


/* --- The marker ---------------------------------------------------------- */

static PyObject *
move_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) != 1
        || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0))
    {
        PyErr_SetString(PyExc_TypeError,
                        "move() takes exactly one positional argument");
        return NULL;
    }
    PyObject *obj = PyTuple_GET_ITEM(args, 0);
    if (Py_IS_TYPE(obj, type)) {
        return Py_NewRef(obj);
    }
    if (is_moved(obj)) {
        return use(obj);
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL) {
        ((_PyParcel_MoveObject *)self)->obj = Py_NewRef(obj);
        table_of(type)->markers++;
    }
    return self;
}

static int
move_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((_PyParcel_MoveObject *)self)->obj);
    return 0;
}

static int
move_clear(PyObject *self)
{
    Py_CLEAR(((_PyParcel_MoveObject *)self)->obj);
    return 0;
}

static void
move_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    moved_table *table = table_of(type);
    PyObject_GC_UnTrack(self);
    (void)move_clear(self);
    type->tp_free(self);
    table->markers--;
    table_free_if_unused(table);
    Py_DECREF(type);
}

static PyObject *
move_repr(PyObject *self)
{
    PyObject *obj = ((_PyParcel_MoveObject *)self)->obj;
    return PyUnicode_FromFormat("<interpreters.move of a '%T' at %p>", obj, obj);
}

static PyObject *
move_reduce(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    PyErr_SetString(PyExc_TypeError,
                    "move() is for sending: it can't be pickled or copied");
    return NULL;
}

static PyMemberDef move_members[] = {
    {"obj", Py_T_OBJECT_EX, offsetof(_PyParcel_MoveObject, obj), Py_READONLY,
     PyDoc_STR("What is to be moved.")},
    {NULL}
};

static PyMethodDef move_methods[] = {
    {"__reduce__", move_reduce, METH_NOARGS, NULL},
    {NULL, NULL}
};

PyDoc_STRVAR(move_doc,
"move(obj, /)\n"
"--\n"
"\n"
"Say that an object is to be moved when it is sent, not copied.\n"
"\n"
"Wherever an object is sent to another interpreter, move(obj) can be sent.  The\n"
"receiver gets obj; here it becomes a MovedObject, whose every use raises\n"
"MovedError.  If something mutable in it is referred to from elsewhere, sending\n"
"raises TransferError, and obj is as it was.");

static PyType_Slot move_slots[] = {
    {Py_tp_doc, (void *)move_doc},
    {Py_tp_new, move_new},
    {Py_tp_dealloc, move_dealloc},
    {Py_tp_traverse, move_traverse},
    {Py_tp_clear, move_clear},
    {Py_tp_repr, move_repr},
    {Py_tp_methods, move_methods},
    {Py_tp_members, move_members},
    {0, NULL},
};

static PyType_Spec move_spec = {
    .name = "interpreters.move",
    .basicsize = sizeof(_PyParcel_MoveObject),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE),
    .slots = move_slots,
};

Py_ssize_t
_PyParcel_CountMoves(_PyParcel_Home *home)
{
    moved_table *table = home->moved;
    return table != NULL ? table->markers : 0;
}


/* --- Errors -------------------------------------------------------------- */

void
_PyParcel_RaiseMoved(PyObject *moved)
{
    use(moved);
}

static PyObject *
or_runtime_error(PyObject *error)
{
    return error != NULL ? error : PyExc_RuntimeError;
}

/* Where culprit is in root, like obj['jobs'][3]; NULL without an exception if
   that can't be said. */
static PyObject *
find_path(PyObject *root, PyObject *culprit)
{
    if (root == culprit) {
        return PyUnicode_FromString("obj");
    }
    PyObject *path = NULL;
    PyObject *codec = PyImport_ImportModule("interpreters._codec");
    if (codec != NULL) {
        path = PyObject_CallMethod(codec, "path_to", "OO", culprit, root);
        Py_DECREF(codec);
    }
    if (path != NULL && !PyUnicode_Check(path)) {
        Py_CLEAR(path);
    }
    PyErr_Clear();
    return path;
}

/* Raise error(text) with the attributes; if memory runs out without some. */
static void
raise_with(PyObject *error, PyObject *text, PyObject *path, PyObject *reason,
           PyObject *parcel)
{
    if (text == NULL) {
        return;
    }
    PyErr_SetObject(or_runtime_error(error), text);
    PyObject *exc = PyErr_GetRaisedException();
    if (PyObject_SetAttrString(exc, "path", path ? path : Py_None) < 0
        || PyObject_SetAttrString(exc, "reason", reason) < 0
        || (parcel != NULL
            && PyObject_SetAttrString(exc, "parcel", parcel) < 0))
    {
        PyErr_Clear();
    }
    PyErr_SetRaisedException(exc);
}

/* Of the current exception; takes the cause over. */
static void
set_cause(PyObject *cause)
{
    if (cause != NULL) {
        PyObject *exc = PyErr_GetRaisedException();
        PyException_SetContext(exc, Py_NewRef(cause));
        PyException_SetCause(exc, cause);
        PyErr_SetRaisedException(exc);
    }
}

void
_PyParcel_RaiseNotIsolated(_PyParcel_Home *home, PyObject *root,
                           PyObject *culprit, Py_ssize_t outside)
{
    PyObject *reason = PyUnicode_FromFormat(
        outside == 1 ? "there is %zd reference to it from elsewhere"
                     : "there are %zd references to it from elsewhere", outside);
    if (reason == NULL) {
        return;
    }
    PyObject *path = find_path(root, culprit);
    PyObject *text = path != NULL
        ? PyUnicode_FromFormat("%U, a '%T' object, can't be moved: %U",
                               path, culprit, reason)
        : PyUnicode_FromFormat("a '%T' object can't be moved: %U",
                               culprit, reason);
    raise_with(home->transfer_error, text, path, reason, NULL);
    Py_XDECREF(text);
    Py_XDECREF(path);
    Py_DECREF(reason);
}

/* What to do with an exception that is about an object which can't go. */
typedef enum {
    PASS_ON,                        // something else, or all is said
    NAME_PLACE,                     // it says what, but not where
    EXPLAIN,                        // what the object's own code raised
} refusal;

static refusal
judge(_PyParcel_Home *home, PyObject *exc)
{
    PyObject *not_shareable_error = home->not_shareable_error;
    if (!PyErr_GivenExceptionMatches(exc, PyExc_Exception)
        || PyErr_GivenExceptionMatches(exc, PyExc_MemoryError)
        || (home->moved_error != NULL
            && PyErr_GivenExceptionMatches(exc, home->moved_error)))
    {
        return PASS_ON;
    }
    if (not_shareable_error == NULL
        || !PyErr_GivenExceptionMatches(exc, not_shareable_error))
    {
        return EXPLAIN;
    }
    int known = PyObject_HasAttrStringWithError(exc, "path");
    PyErr_Clear();
    return known ? PASS_ON : NAME_PLACE;
}

void
_PyParcel_RaiseNotShareable(_PyParcel_Home *home, PyObject *root,
                            PyObject *culprit)
{
    PyObject *cause = PyErr_GetRaisedException();
    refusal kind = cause != NULL ? judge(home, cause)
                                 : EXPLAIN;
    if (kind == PASS_ON) {
        PyErr_SetRaisedException(cause);
        return;
    }
    PyObject *path = find_path(root, culprit);
    PyObject *reason = kind == NAME_PLACE
        ? PyObject_Str(cause)
        : PyUnicode_FromFormat(
            "a '%T' object can't be sent to another interpreter", culprit);
    PyObject *text =
        path != NULL && !PyUnicode_EqualToUTF8(path, "obj") && reason != NULL
        ? PyUnicode_FromFormat("%U: %U", path, reason) : Py_XNewRef(reason);
    if (kind == NAME_PLACE) {
        // The new one says the same, and more.
        Py_SETREF(cause, PyException_GetCause(cause));
    }
    raise_with(home->not_shareable_error, text, path, reason, NULL);
    set_cause(cause);
    Py_XDECREF(text);
    Py_XDECREF(reason);
    Py_XDECREF(path);
}

void
_PyParcel_RaiseTransfer(_PyParcel_Home *home, const char *text, PyObject *parcel)
{
    PyObject *cause = PyErr_GetRaisedException();
    PyObject *reason = cause == NULL
        ? PyUnicode_FromString(text)
        : PyUnicode_FromFormat("%s: %T: %S", text, cause, cause);
    if (reason == NULL && cause != NULL) {
        // Its __str__() does not work.
        PyErr_Clear();
        reason = PyUnicode_FromFormat("%s: %T", text, cause);
    }
    if (reason != NULL) {
        raise_with(home->transfer_error, reason, NULL, reason, parcel);
        Py_DECREF(reason);
    }
    set_cause(cause);
}


/* --- Types and exceptions ------------------------------------------------ */

PyDoc_STRVAR(moved_error_doc,
"An object was used that has been moved to another interpreter.");

PyDoc_STRVAR(transfer_error_doc,
"An object can't be moved, or a parcel can't be opened.\n"
"\n"
"path is where in what was sent the trouble is, like obj['jobs'][3], reason\n"
"what it is, and parcel what could not be opened: it is whole, and can be\n"
"opened elsewhere or sent back.  Each is None if it does not apply.");

static PyObject *
new_exception(const char *name, const char *doc, int with_attributes)
{
    PyObject *dict = with_attributes
        ? Py_BuildValue("{sOsOsO}", "path", Py_None, "reason", Py_None,
                        "parcel", Py_None)
        : PyDict_New();
    if (dict == NULL) {
        return NULL;
    }
    PyObject *error = PyErr_NewExceptionWithDoc(name, doc, NULL, dict);
    Py_DECREF(dict);
    return error;
}

int
_PyParcel_MovedInit(_PyParcel_Home *home, PyObject *module)
{
    moved_table *table = table_new(home);
    if (table == NULL) {
        return -1;
    }
    home->moved = table;
    PyObject *meta = PyType_FromModuleAndSpec(module, &meta_spec,
                                              (PyObject *)&PyType_Type);
    if (meta == NULL) {
        return -1;
    }
    int res = -1;
    home->move_type = new_type(module, meta, &move_spec, NULL, table);
    home->moved_types[0] = new_type(module, meta, &moved_spec, NULL, table);
    if (home->move_type == NULL || home->moved_types[0] == NULL) {
        goto exit;
    }
    home->moved_types[1] = derived_type(home->moved_types[0], &moved_gc_spec);
    home->moved_weak_types = PyList_New(0);
    if (home->moved_types[1] == NULL || home->moved_weak_types == NULL) {
        goto exit;
    }
    home->moved_error = new_exception("interpreters.MovedError",
                                      moved_error_doc, 0);
    home->transfer_error = new_exception("interpreters.TransferError",
                                         transfer_error_doc, 1);
    if (home->moved_error == NULL || home->transfer_error == NULL) {
        goto exit;
    }
    res = 0;

exit:
    Py_DECREF(meta);
    return res;
}

void
_PyParcel_MovedFini(_PyParcel_Home *home)
{
    moved_table *table = home->moved;
    home->moved = NULL;
    if (table != NULL) {
        table->detached = 1;
        table_free_if_unused(table);
    }
}
