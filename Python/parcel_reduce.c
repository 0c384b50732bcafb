// Parcels: what goes by name, and what goes as a call.  See
// pycore_parcel_reduce.h.
//
// Two ways lead to a reduction.  The quick one looks into dicts and calls C
// code of types that it knows, so it can be gone while somebody counts on
// nothing changing.  The other one does what pickle does, in pickle's order,
// and runs whatever code the object brings along.
//
// Guarantees
//
//   R-1  Quick functions run no Python code: no attribute of a class that might
//        compute it, no import, no hash and no comparison but those of strings.
//   R-2  No answer is kept beyond what it depends on.  What a type is, is kept
//        by the type's version; names are looked up each time, which takes two
//        dicts; the main script is kept by what told it.
//   R-3  A name is given only if it leads to the very object, here and now.
//
// Python code that belongs here is in Lib/interpreters/_codec.py: functions that
// go by code, exceptions, and whatever is about the sender's __main__.
//
// Main scripts
//
//   Each interpreter has a __main__ of its own.  What a class of a script is
//   called goes with the script's own name, from which the receiver can load it.

#include "Python.h"
#include "marshal.h"              // PyMarshal_WriteObjectToString()
#include "pycore_dict.h"          // PyDictObject
#include "pycore_function.h"      // PyFunctionObject
#include "pycore_import.h"        // _PyImport_GetModuleAttrString()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_long.h"          // _PyLong_SMALL_INTS
#include "pycore_moduleobject.h"  // PyModuleObject
#include "pycore_object.h"        // _PyObject_GetDictPtr()
#include "pycore_parcel_reduce.h"
#include "pycore_pyerrors.h"      // _PyErr_FormatFromCause()
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _Py_ID()
#include "pycore_tuple.h"         // _PyTuple_FromArray()


/* Pickle's protocol. */
#define PROTOCOL ((PyObject *)&_PyLong_SMALL_INTS[_PY_NSMALLNEGINTS + 5])


/* --- What a home keeps --------------------------------------------------- */

/* How the instances of a type are reduced without Python code. */
typedef enum {
    QUICK_NOT = 0,
    QUICK_OWN,          // by its __reduce__(), which is in C
    QUICK_OWN_EX,       // by its __reduce_ex__(), which is in C
    QUICK_TIMEZONE,
    QUICK_DEQUE,
    QUICK_DEFAULTDICT,
    QUICK_ORDEREDDICT,
    QUICK_COUNTER,
    QUICK_ARRAY,
    QUICK_SLOTS,        // all there is are some slots
    QUICK_ENUM,
    QUICK_NAMEDTUPLE,
    QUICK_DICT,         // subclasses that change nothing that matters here
    QUICK_LIST,
    QUICK_EXCEPTION,    // builtin ones that nothing came before
} quick_kind;

/* Types of the standard library.  All of them are exact: a subclass can change
   anything. */
static const struct known_type {
    const char *module;             // where it is, which need not be what it says
    const char *name;
    quick_kind kind;
    const char *slots[2];
    const char *usual;              // in the module: what the last one mostly is
} known_types[] = {
    {"_datetime", "date", QUICK_OWN},
    {"_datetime", "time", QUICK_OWN_EX},
    {"_datetime", "datetime", QUICK_OWN_EX},
    {"_datetime", "timedelta", QUICK_OWN},
    {"_datetime", "timezone", QUICK_TIMEZONE},
    {"_decimal", "Decimal", QUICK_OWN},
    {"_functools", "partial", QUICK_OWN},
    {"_collections", "deque", QUICK_DEQUE},
    {"_collections", "defaultdict", QUICK_DEFAULTDICT},
    {"_collections", "OrderedDict", QUICK_ORDEREDDICT},
    {"collections", "Counter", QUICK_COUNTER},
    {"array", "array", QUICK_ARRAY},
    {"fractions", "Fraction", QUICK_SLOTS, {"_numerator", "_denominator"}},
    {"uuid", "UUID", QUICK_SLOTS, {"int", "is_safe"},
     "SafeUUID.unknown"},
    {"pathlib", "PosixPath", QUICK_SLOTS, {"_raw_paths"}},
    {"pathlib", "WindowsPath", QUICK_SLOTS, {"_raw_paths"}},
    {"pathlib", "PurePosixPath", QUICK_SLOTS, {"_raw_paths"}},
    {"pathlib", "PureWindowsPath", QUICK_SLOTS, {"_raw_paths"}},
};

typedef struct {
    PyTypeObject *type;             // not counted: compared only
    unsigned int version;           // no two types ever have the same
    uint8_t kind;
    uint8_t known;                  // index in known_types, if it is one
} type_entry;

// A program has few types that this is asked about; a power of two.
#define TYPE_ENTRIES 64

/* Objects that are found by name and then kept. */
typedef enum {
    KEPT_DISPATCH_TABLE,
    KEPT_NEWOBJ,
    KEPT_NEWOBJ_EX,
    KEPT_MAKE,
    NKEPT,
} kept_index;

static const struct {
    const char *module;
    const char *name;
} kept_where[NKEPT] = {
    [KEPT_DISPATCH_TABLE] = {"copyreg", "dispatch_table"},
    [KEPT_NEWOBJ] = {"copyreg", "__newobj__"},
    [KEPT_NEWOBJ_EX] = {"copyreg", "__newobj_ex__"},
    [KEPT_MAKE] = {"_parcels", "make"},
};

/* The __new__ of builtin types, which reductions call. */
typedef enum {
    NEW_DICT,
    NEW_LIST,
    NMAKERS,
} maker_index;

static const struct {
    PyTypeObject *type;
    const char *name;
} maker_types[NMAKERS] = {
    [NEW_DICT] = {&PyDict_Type, "dict.__new__"},
    [NEW_LIST] = {&PyList_Type, "list.__new__"},
};

#define NSCRIPT_KEYS 4

typedef struct {
    PyObject *kept[NKEPT];
    PyObject *makers[NMAKERS];
    PyObject *codec;                // the dict of interpreters._codec
    PyObject *script_keys[NSCRIPT_KEYS];    // what told the script
    PyObject *script;               // a tuple, or None if there is none
    type_entry types[TYPE_ENTRIES];
} names;

static names *
get_names(_PyParcel_Home *home)
{
    names *n = home->names;
    if (n != NULL) {
        return n;
    }
    n = PyMem_RawCalloc(1, sizeof(names));
    if (n == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (int i = 0; i < NMAKERS; i++) {
        PyObject *dict = _PyType_GetDict(maker_types[i].type);
        n->makers[i] = Py_XNewRef(PyDict_GetItemWithError(dict,
                                                          &_Py_ID(__new__)));
        if (n->makers[i] == NULL) {
            home->names = n;
            _PyParcel_ClearNames(home);
            PyErr_SetString(PyExc_SystemError, "a builtin type has no __new__");
            return NULL;
        }
    }
    home->names = n;
    return n;
}

int
_PyParcel_VisitNames(_PyParcel_Home *home, visitproc visit, void *arg)
{
    names *n = home->names;
    if (n == NULL) {
        return 0;
    }
    for (int i = 0; i < NKEPT; i++) {
        Py_VISIT(n->kept[i]);
    }
    for (int i = 0; i < NMAKERS; i++) {
        Py_VISIT(n->makers[i]);
    }
    for (int i = 0; i < NSCRIPT_KEYS; i++) {
        Py_VISIT(n->script_keys[i]);
    }
    Py_VISIT(n->codec);
    Py_VISIT(n->script);
    return 0;
}

void
_PyParcel_ClearNames(_PyParcel_Home *home)
{
    names *n = home->names;
    if (n == NULL) {
        return;
    }
    // First out of sight: destructors can come here.
    home->names = NULL;
    for (int i = 0; i < NKEPT; i++) {
        Py_XDECREF(n->kept[i]);
    }
    for (int i = 0; i < NMAKERS; i++) {
        Py_XDECREF(n->makers[i]);
    }
    for (int i = 0; i < NSCRIPT_KEYS; i++) {
        Py_XDECREF(n->script_keys[i]);
    }
    Py_XDECREF(n->codec);
    Py_XDECREF(n->script);
    PyMem_RawFree(n);
}


/* --- Looking into dicts (R-1) -------------------------------------------- */

/* The dict of a module that is there, or NULL.  Borrowed.  No exception. */
static PyObject *
module_dict(PyObject *name)
{
    PyObject *modules = _PyInterpreterState_GET()->imports.modules;
    if (modules == NULL || !PyDict_CheckExact(modules)) {
        return NULL;
    }
    PyObject *module = PyDict_GetItemWithError(modules, name);
    if (module == NULL || !PyModule_Check(module)
        || Py_TYPE(module)->tp_getattro != PyModule_Type.tp_getattro)
    {
        PyErr_Clear();
        return NULL;
    }
    return ((PyModuleObject *)module)->md_dict;
}

/* As above, by C strings: the object of that name. */
static PyObject *
module_item(const char *module, const char *name)
{
    PyObject *res = NULL;
    PyObject *module_name = PyUnicode_FromString(module);
    PyObject *dict = module_name != NULL ? module_dict(module_name) : NULL;
    if (dict != NULL) {
        res = PyDict_GetItemString(dict, name);
    }
    Py_XDECREF(module_name);
    PyErr_Clear();
    return res;
}

/* Borrowed, or NULL if it is not there yet. */
static PyObject *
kept(names *n, kept_index index)
{
    if (n->kept[index] == NULL) {
        n->kept[index] = Py_XNewRef(module_item(kept_where[index].module,
                                                kept_where[index].name));
    }
    return n->kept[index];
}

PyObject *
_PyParcel_DispatchTable(_PyParcel_Home *home)
{
    names *n = get_names(home);
    return n == NULL ? NULL : kept(n, KEPT_DISPATCH_TABLE);
}

typedef enum {
    MISSING = 0,
    FOUND = 1,
    UNCERTAIN = 2,                  // Python code has a say in it
} lookup_result;

/* What getattr(cls, name) would give, if that is in a dict.  Borrowed. */
static lookup_result
class_lookup(PyObject *cls, PyObject *name, PyObject **result)
{
    if (!PyType_Check(cls)
        || Py_TYPE(cls)->tp_getattro != PyType_Type.tp_getattro)
    {
        return UNCERTAIN;
    }
    PyObject *meta = _PyType_Lookup(Py_TYPE(cls), name);
    if (meta != NULL && Py_TYPE(meta)->tp_descr_set != NULL) {
        return UNCERTAIN;
    }
    PyObject *value = _PyType_Lookup((PyTypeObject *)cls, name);
    if (value == NULL) {
        return meta == NULL ? MISSING : UNCERTAIN;
    }
    if (Py_TYPE(value)->tp_descr_get != NULL && !PyFunction_Check(value)) {
        return UNCERTAIN;
    }
    *result = value;
    return FOUND;
}

/* What `qualname`, with dots or without, leads to from a module's dict.
   Borrowed.  No exception: without memory it is uncertain. */
static lookup_result
path_lookup(PyObject *dict, PyObject *qualname, PyObject **result)
{
    Py_ssize_t length = PyUnicode_GET_LENGTH(qualname);
    Py_ssize_t end = PyUnicode_FindChar(qualname, '.', 0, length, 1);
    PyObject *first = qualname;
    if (end >= 0) {
        first = PyUnicode_Substring(qualname, 0, end);
    }
    PyObject *obj = first ? PyDict_GetItemWithError(dict, first) : NULL;
    if (end >= 0) {
        Py_XDECREF(first);
    }
    if (obj == NULL) {
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return UNCERTAIN;
        }
        return MISSING;
    }
    while (end >= 0) {
        Py_ssize_t start = end + 1;
        end = PyUnicode_FindChar(qualname, '.', start, length, 1);
        PyObject *name = PyUnicode_Substring(qualname, start,
                                             end < 0 ? length : end);
        if (name == NULL) {
            PyErr_Clear();
            return UNCERTAIN;
        }
        // The cache of methods goes by address.
        PyUnicode_InternInPlace(&name);
        lookup_result res = class_lookup(obj, name, &obj);
        Py_DECREF(name);
        if (res != FOUND) {
            return res;
        }
    }
    *result = obj;
    return FOUND;
}

static int
is_main(PyObject *module_name)
{
    // One comparison for most: the names of mains begin with two underscores.
    return (PyUnicode_GET_LENGTH(module_name) >= 8
            && PyUnicode_READ_CHAR(module_name, 0) == '_'
            && (_PyUnicode_Equal(module_name, &_Py_ID(__main__))
                || PyUnicode_EqualToUTF8(module_name, "__interp_main__")
                || PyUnicode_EqualToUTF8(module_name, "__mp_main__")));
}


/* --- The codec ----------------------------------------------------------- */

/* The dict of interpreters._codec, imported if need be.  Borrowed from n. */
static PyObject *
find_codec(names *n)
{
    PyObject *name = PyUnicode_FromString("interpreters._codec");
    if (name == NULL) {
        return NULL;
    }
    PyObject *dict = module_dict(name);
    if (dict == NULL) {
        PyObject *module = PyImport_Import(name);
        // It stays in sys.modules.
        dict = module != NULL ? PyModule_GetDict(module) : NULL;
        Py_XDECREF(module);
    }
    Py_DECREF(name);
    if (dict != NULL && dict != n->codec) {
        Py_XSETREF(n->codec, Py_NewRef(dict));
    }
    return dict;
}

/* interpreters._codec.name.  New reference. */
static PyObject *
codec_item(names *n, const char *name)
{
    PyObject *dict = find_codec(n);
    PyObject *item;
    if (dict == NULL) {
        return NULL;
    }
    if (PyDict_GetItemStringRef(dict, name, &item) == 0) {
        PyErr_Format(PyExc_RuntimeError, "interpreters._codec has no %s", name);
    }
    return item;
}

/* interpreters._codec.name(*args).  Up to three arguments, then NULLs. */
static PyObject *
call_codec(names *n, const char *name, PyObject *a, PyObject *b, PyObject *c)
{
    PyObject *func = codec_item(n, name);
    if (func == NULL) {
        return NULL;
    }
    PyObject *args[] = {a, b, c};
    size_t nargs = 0;
    while (nargs < 3 && args[nargs] != NULL) {
        nargs++;
    }
    PyObject *res = PyObject_Vectorcall(func, args, nargs, NULL);
    Py_DECREF(func);
    return res;
}


/* --- The main script ----------------------------------------------------- */

/* What the answer depends on: the main module, what it says about itself, and
   the script that this interpreter has been told of.  Borrowed. */
static void
script_keys(names *n, PyObject *keys[NSCRIPT_KEYS])
{
    memset(keys, 0, NSCRIPT_KEYS * sizeof(keys[0]));
    PyObject *dict = module_dict(&_Py_ID(__main__));
    keys[0] = dict;
    if (dict != NULL) {
        keys[1] = PyDict_GetItemWithError(dict, &_Py_ID(__spec__));
        keys[2] = PyDict_GetItemWithError(dict, &_Py_ID(__file__));
    }
    if (n->codec != NULL) {
        keys[3] = PyDict_GetItemString(n->codec, "_received_script");
    }
    PyErr_Clear();
}

/* Borrowed: a tuple or None; NULL without an exception if it is not known. */
static PyObject *
known_script(names *n)
{
    PyObject *keys[NSCRIPT_KEYS];
    if (n->script == NULL) {
        return NULL;
    }
    script_keys(n, keys);
    return memcmp(keys, n->script_keys, sizeof(keys)) == 0 ? n->script : NULL;
}

/* The same, asked for if need be.  New reference. */
static PyObject *
find_script(names *n)
{
    PyObject *script = known_script(n);
    if (script != NULL) {
        return Py_NewRef(script);
    }
    script = call_codec(n, "main_script", NULL, NULL, NULL);
    if (script == NULL) {
        return NULL;
    }
    PyObject *keys[NSCRIPT_KEYS];
    script_keys(n, keys);
    for (int i = 0; i < NSCRIPT_KEYS; i++) {
        Py_XSETREF(n->script_keys[i], Py_XNewRef(keys[i]));
    }
    Py_XSETREF(n->script, Py_NewRef(script));
    return script;
}


/* --- Names, in the sender ------------------------------------------------ */

/* For _PyParcel_FindNamed(): (module, name), or (module, name, script) if it is
   a main module.  Steals nothing. */
static PyObject *
make_where(PyObject *module, PyObject *name, PyObject *script)
{
    return script == NULL ? PyTuple_Pack(2, module, name)
                          : PyTuple_Pack(3, module, name, script);
}

static PyObject *
quick_name(names *n, PyObject *obj, PyObject *module, PyObject *qualname)
{
    PyObject *script = NULL;
    PyObject *found;
    if (!PyUnicode_CheckExact(module) || !PyUnicode_CheckExact(qualname)) {
        return NULL;
    }
    PyObject *dict = module_dict(module);
    if (dict == NULL || path_lookup(dict, qualname, &found) != FOUND
        || found != obj)                                        // R-3
    {
        return NULL;
    }
    if (is_main(module)) {
        script = known_script(n);
        if (script == NULL) {
            return NULL;
        }
    }
    return make_where(module, qualname, script);
}

static PyObject *
quick_class_name(names *n, PyTypeObject *type)
{
    if (type->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        PyObject *dict = _PyType_GetDict(type);
        PyObject *module = PyDict_GetItemWithError(dict, &_Py_ID(__module__));
        if (module == NULL) {
            PyErr_Clear();
            return NULL;
        }
        return quick_name(n, (PyObject *)type, module,
                          ((PyHeapTypeObject *)type)->ht_qualname);
    }
    const char *dot = strrchr(type->tp_name, '.');
    PyObject *module = dot == NULL
        ? Py_NewRef(&_Py_ID(builtins))
        : PyUnicode_FromStringAndSize(type->tp_name, dot - type->tp_name);
    PyObject *name = PyUnicode_FromString(dot ? dot + 1 : type->tp_name);
    PyObject *where = NULL;
    if (module != NULL && name != NULL) {
        where = quick_name(n, (PyObject *)type, module, name);
    }
    Py_XDECREF(module);
    Py_XDECREF(name);
    return where;
}

/* Functions of a module that a receiver can import.  Those of __main__ go by
   code: a receiver's __main__ is another one. */
static PyObject *
quick_function_name(names *n, PyFunctionObject *func)
{
    PyObject *module = func->func_module;
    if (module == NULL || !PyUnicode_CheckExact(module)) {
        return NULL;
    }
    if (is_main(module)) {
        if (!PyUnicode_EqualToUTF8(module, "__interp_main__")) {
            return NULL;
        }
    }
    else {
        PyObject *dict = module_dict(module);
        PyObject *spec = dict == NULL
            ? NULL : PyDict_GetItemWithError(dict, &_Py_ID(__spec__));
        if (spec == NULL || spec == Py_None) {
            PyErr_Clear();
            return NULL;
        }
    }
    return quick_name(n, (PyObject *)func, module, func->func_qualname);
}

static PyObject *
quick_builtin_name(names *n, PyCFunctionObject *func)
{
    for (int i = 0; i < NMAKERS; i++) {
        if (n->makers[i] == (PyObject *)func) {
            return Py_BuildValue("(Os)", &_Py_ID(builtins),
                                 maker_types[i].name);
        }
    }
    if (kept(n, KEPT_MAKE) == (PyObject *)func) {
        return Py_BuildValue("(ss)", kept_where[KEPT_MAKE].module,
                             kept_where[KEPT_MAKE].name);
    }
    PyObject *self = func->m_self;
    if (func->m_module == NULL
        || (self != NULL && !PyModule_Check(self)))
    {
        return NULL;
    }
    PyObject *name = PyUnicode_FromString(func->m_ml->ml_name);
    if (name == NULL) {
        return NULL;
    }
    PyObject *where = quick_name(n, (PyObject *)func, func->m_module, name);
    Py_DECREF(name);
    return where;
}

static PyObject *
quick_module_name(PyObject *module)
{
    if (Py_TYPE(module)->tp_getattro != PyModule_Type.tp_getattro) {
        return NULL;
    }
    PyObject *dict = ((PyModuleObject *)module)->md_dict;
    PyObject *name = dict == NULL
        ? NULL : PyDict_GetItemWithError(dict, &_Py_ID(__name__));
    if (name == NULL || !PyUnicode_CheckExact(name)) {
        PyErr_Clear();
        return NULL;
    }
    return make_where(name, Py_None, NULL);
}

PyObject *
_PyParcel_QuickName(_PyParcel_Home *home, PyObject *obj)
{
    names *n = get_names(home);
    if (n == NULL) {
        return NULL;
    }
    if (PyType_Check(obj)) {
        // A metaclass can have its own reduction.
        PyObject *table = kept(n, KEPT_DISPATCH_TABLE);
        if (Py_TYPE(obj) != &PyType_Type && table != NULL
            && _PyDict_GetItem_KnownHash(table, (PyObject *)Py_TYPE(obj),
                                         _Py_HashPointer(Py_TYPE(obj))) != NULL)
        {
            return NULL;
        }
        return quick_class_name(n, (PyTypeObject *)obj);
    }
    if (PyFunction_Check(obj)) {
        return quick_function_name(n, (PyFunctionObject *)obj);
    }
    if (PyCFunction_CheckExact(obj)) {
        return quick_builtin_name(n, (PyCFunctionObject *)obj);
    }
    if (PyModule_CheckExact(obj)) {
        return quick_module_name(obj);
    }
    return NULL;
}


/* --- Reductions ---------------------------------------------------------- */

void
_PyParcel_ReductionClear(_PyParcel_Reduction *r)
{
    Py_CLEAR(r->where);
    Py_CLEAR(r->callable);
    Py_CLEAR(r->args);
    Py_CLEAR(r->state);
    Py_CLEAR(r->list);
    Py_CLEAR(r->items);
    Py_CLEAR(r->setter);
}

/* Steals a reference to `where`, which can be NULL. */
static int
set_named(_PyParcel_Reduction *r, PyObject *where)
{
    r->kind = _PyParcel_NAMED;
    r->where = where;
    return where == NULL ? -1 : 0;
}

/* Steals a reference to `args`, which can be NULL. */
static int
set_call(_PyParcel_Reduction *r, PyObject *callable, PyObject *args)
{
    r->kind = _PyParcel_CALL;
    r->callable = Py_NewRef(callable);
    r->args = args;
    return args == NULL ? -1 : 0;
}

static void
not_shareable(_PyParcel_Home *home, const char *format, ...)
{
    va_list vargs;
    va_start(vargs, format);
    PyErr_FormatV(home->not_shareable_error != NULL
                  ? home->not_shareable_error : PyExc_TypeError,
                  format, vargs);
    va_end(vargs);
}


/* --- Quick reductions (R-1) ---------------------------------------------- */

/* The keys of a dict whose order and values we take without hashing. */
static int
has_plain_keys(PyObject *dict)
{
    Py_ssize_t pos = 0;
    PyObject *key;
    while (PyDict_Next(dict, &pos, &key, NULL)) {
        if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) {
            return 0;
        }
    }
    return 1;
}

/* [key, value, key, ...] in the order of the table. */
static PyObject *
flat_items(PyObject *dict)
{
    PyObject *list = PyList_New(2 * PyDict_GET_SIZE(dict));
    if (list == NULL) {
        return NULL;
    }
    Py_ssize_t pos = 0;
    Py_ssize_t i = 0;
    PyObject *key, *value;
    while (PyDict_Next(dict, &pos, &key, &value)) {
        PyList_SET_ITEM(list, i++, Py_NewRef(key));
        PyList_SET_ITEM(list, i++, Py_NewRef(value));
    }
    assert(i == PyList_GET_SIZE(list));
    return list;
}

/* The same in the order of the OrderedDict, which has plain keys. */
static PyObject *
ordered_items(PyObject *dict)
{
    PyObject *keys = PySequence_List(dict);
    if (keys == NULL) {
        return NULL;
    }
    Py_ssize_t n = PyList_GET_SIZE(keys);
    PyObject *list = PyList_New(2 * n);
    for (Py_ssize_t i = 0; list != NULL && i < n; i++) {
        PyObject *key = PyList_GET_ITEM(keys, i);
        PyObject *value = PyDict_GetItemWithError(dict, key);
        if (value == NULL) {
            if (!PyErr_Occurred()) {
                _PyErr_SetKeyError(key);
            }
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, 2 * i, Py_NewRef(key));
        PyList_SET_ITEM(list, 2 * i + 1, Py_NewRef(value));
    }
    Py_DECREF(keys);
    return list;
}

/* An attribute that is implemented in C. */
static PyObject *
own_attribute(PyObject *obj, const char *name)
{
    PyObject *key = PyUnicode_InternFromString(name);
    if (key == NULL) {
        return NULL;
    }
    PyObject *value = PyObject_GenericGetAttr(obj, key);
    Py_DECREF(key);
    return value;
}

/* `ex`: by __reduce_ex__(5) */
static int
reduce_own(PyObject *obj, int ex, _PyParcel_Reduction *r)
{
    PyObject *method = PyObject_GenericGetAttr(
        obj, ex ? &_Py_ID(__reduce_ex__) : &_Py_ID(__reduce__));
    if (method == NULL) {
        return -1;
    }
    PyObject *reduced = ex
        ? PyObject_CallOneArg(method, PROTOCOL)
        : PyObject_CallNoArgs(method);
    Py_DECREF(method);
    if (reduced == NULL) {
        return -1;
    }
    assert(PyTuple_CheckExact(reduced) && PyTuple_GET_SIZE(reduced) <= 3);
    int res = set_call(r, PyTuple_GET_ITEM(reduced, 0),
                       Py_NewRef(PyTuple_GET_ITEM(reduced, 1)));
    if (PyTuple_GET_SIZE(reduced) > 2
        && PyTuple_GET_ITEM(reduced, 2) != Py_None)
    {
        r->state = Py_NewRef(PyTuple_GET_ITEM(reduced, 2));
    }
    Py_DECREF(reduced);
    return res;
}

static int
reduce_timezone(PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *args = own_attribute(obj, "__getinitargs__");
    if (args != NULL) {
        Py_SETREF(args, PyObject_CallNoArgs(args));
    }
    return set_call(r, (PyObject *)Py_TYPE(obj), args);
}

static int
reduce_deque(PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *maxlen = own_attribute(obj, "maxlen");
    if (maxlen == NULL) {
        return -1;
    }
    PyObject *args = maxlen == Py_None ? PyTuple_New(0)
                                       : Py_BuildValue("(()O)", maxlen);
    Py_DECREF(maxlen);
    if (set_call(r, (PyObject *)Py_TYPE(obj), args) < 0) {
        return -1;
    }
    r->mirrors = 1;
    r->list = PySequence_List(obj);
    return r->list == NULL ? -1 : 0;
}

static int
reduce_defaultdict(PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *factory = own_attribute(obj, "default_factory");
    if (factory == NULL) {
        return -1;
    }
    PyObject *args = factory == Py_None ? PyTuple_New(0)
                                        : PyTuple_Pack(1, factory);
    Py_DECREF(factory);
    if (set_call(r, (PyObject *)Py_TYPE(obj), args) < 0) {
        return -1;
    }
    r->mirrors = 1;
    r->items = flat_items(obj);
    return r->items == NULL ? -1 : 0;
}

/* 0: not this one. */
static int
reduce_ordereddict(PyObject *obj, _PyParcel_Reduction *r)
{
    if (!has_plain_keys(obj)) {
        return 0;
    }
    if (set_call(r, (PyObject *)Py_TYPE(obj), PyTuple_New(0)) < 0) {
        return -1;
    }
    r->mirrors = 2;
    r->items = ordered_items(obj);
    if (r->items == NULL) {
        return -1;
    }
    PyObject **dict = _PyObject_GetDictPtr(obj);
    if (dict != NULL && *dict != NULL && PyDict_GET_SIZE(*dict) > 0) {
        r->state = Py_NewRef(*dict);
    }
    return 1;
}

static int
reduce_counter(names *n, PyObject *obj, _PyParcel_Reduction *r)
{
    // Without its __init__, which counts again.
    if (set_call(r, n->makers[NEW_DICT], PyTuple_Pack(1, Py_TYPE(obj))) < 0) {
        return -1;
    }
    r->mirrors = 1;
    r->items = flat_items(obj);
    return r->items == NULL ? -1 : 0;
}

/* 0: not this one. */
static int
reduce_array(PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *typecode = own_attribute(obj, "typecode");
    if (typecode == NULL) {
        return -1;
    }
    if (PyUnicode_EqualToUTF8(typecode, "u")) {
        // Its constructor warns; what pickle calls does not.
        Py_DECREF(typecode);
        return 0;
    }
    PyObject *data = PyBytes_FromObject(obj);
    PyObject *args = data != NULL ? PyTuple_Pack(2, typecode, data) : NULL;
    Py_DECREF(typecode);
    Py_XDECREF(data);
    return set_call(r, (PyObject *)Py_TYPE(obj), args) < 0 ? -1 : 1;
}

/* What the last slot of such a type mostly is.  Borrowed; NULL if it is not found,
   without an exception. */
static PyObject *
usual_value(const struct known_type *known)
{
    PyObject *value = NULL;
    PyObject *module = PyUnicode_FromString(known->module);
    PyObject *path = known->usual ? PyUnicode_FromString(known->usual) : NULL;
    PyObject *dict = module != NULL ? module_dict(module) : NULL;
    if (dict == NULL || path == NULL
        || path_lookup(dict, path, &value) != FOUND)
    {
        value = NULL;
    }
    Py_XDECREF(module);
    Py_XDECREF(path);
    PyErr_Clear();
    return value;
}

/* make(type, value of the first slot, ...).  0: not this one. */
static int
reduce_slots(names *n, const struct known_type *known, PyObject *obj,
             _PyParcel_Reduction *r)
{
    PyObject *make = kept(n, KEPT_MAKE);
    if (make == NULL) {
        return 0;
    }
    PyObject *parts[3] = {(PyObject *)Py_TYPE(obj)};
    int count = 1;
    for (int i = 0; i < 2 && known->slots[i] != NULL; i++, count++) {
        parts[count] = own_attribute(obj, known->slots[i]);
        if (parts[count] == NULL) {
            // Its __init__ has not been run, or not to its end.
            int res = PyErr_ExceptionMatches(PyExc_AttributeError) ? 0 : -1;
            if (res == 0) {
                PyErr_Clear();
            }
            Py_XDECREF(parts[1]);
            return res;
        }
    }
    int given = count;
    if (known->usual != NULL && parts[count - 1] == usual_value(known)) {
        given--;
    }
    PyObject *args = _PyTuple_FromArray(parts, given);
    for (int i = 1; i < count; i++) {
        Py_DECREF(parts[i]);
    }
    return set_call(r, make, args) < 0 ? -1 : 1;
}

/* A member goes as an attribute of its class, like Color.RED.  0: no member, or
   none that is found so: made of flags, or of a class that is not found. */
static int
reduce_enum(names *n, PyObject *obj, _PyParcel_Reduction *r)
{
    int res = 0;
    PyObject *where = quick_class_name(n, Py_TYPE(obj));
    if (where == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    PyObject *name = own_attribute(obj, "_name_");
    PyObject *found;
    if (name == NULL) {
        PyErr_Clear();
    }
    else if (PyUnicode_CheckExact(name)
             && class_lookup((PyObject *)Py_TYPE(obj), name, &found) == FOUND
             && found == obj)
    {
        PyObject *path = PyUnicode_FromFormat(
            "%U.%U", PyTuple_GET_ITEM(where, 1), name);
        PyObject *script = PyTuple_GET_SIZE(where) > 2
            ? PyTuple_GET_ITEM(where, 2) : NULL;
        res = path == NULL ? -1 : 1;
        if (res > 0 && set_named(r, make_where(PyTuple_GET_ITEM(where, 0),
                                               path, script)) < 0)
        {
            res = -1;
        }
        Py_XDECREF(path);
    }
    Py_XDECREF(name);
    Py_DECREF(where);
    return res;
}

/* make(type, *fields).  0: not this one. */
static int
reduce_namedtuple(names *n, PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *make = kept(n, KEPT_MAKE);
    if (make == NULL) {
        return 0;
    }
    Py_ssize_t size = PyTuple_GET_SIZE(obj);
    PyObject *args = PyTuple_New(size + 1);
    if (args == NULL) {
        return -1;
    }
    PyTuple_SET_ITEM(args, 0, Py_NewRef(Py_TYPE(obj)));
    for (Py_ssize_t i = 0; i < size; i++) {
        PyTuple_SET_ITEM(args, i + 1, Py_NewRef(PyTuple_GET_ITEM(obj, i)));
    }
    return set_call(r, make, args) < 0 ? -1 : 1;
}

/* What pickle forgets. */
static int
has_past(PyBaseExceptionObject *exc)
{
    return (exc->cause != NULL || exc->context != NULL || exc->traceback != NULL
            || exc->suppress_context);
}

/* An instance of a subclass of dict or list, as object.__reduce_ex__() has it. */
static int
reduce_subclass(names *n, int is_dict, PyObject *obj, _PyParcel_Reduction *r)
{
    PyTypeObject *type = Py_TYPE(obj);
    r->innocent = (type->tp_getattro == PyObject_GenericGetAttr
                   && (!is_dict || has_plain_keys(obj)));
    if (set_call(r, n->makers[is_dict ? NEW_DICT : NEW_LIST],
                 PyTuple_Pack(1, type)) < 0)
    {
        return -1;
    }
    r->mirrors = 1;
    if (is_dict && PyDict_GET_SIZE(obj) > 0) {
        r->items = flat_items(obj);
        if (r->items == NULL) {
            return -1;
        }
    }
    if (!is_dict && PyList_GET_SIZE(obj) > 0) {
        r->list = PyList_GetSlice(obj, 0, PyList_GET_SIZE(obj));
        if (r->list == NULL) {
            return -1;
        }
    }
    if (!_PyObject_IsInstanceDictEmpty(obj)) {
        r->state = PyObject_GenericGetDict(obj, NULL);
        if (r->state == NULL) {
            return -1;
        }
    }
    return 1;
}

static int
is_inherited(PyTypeObject *type, PyObject *name, PyTypeObject *from)
{
    PyObject *theirs = PyDict_GetItemWithError(_PyType_GetDict(from), name);
    return theirs != NULL && _PyType_Lookup(type, name) == theirs;
}

static int
is_enum(PyTypeObject *type)
{
    PyObject *base = module_item("enum", "Enum");
    return (base != NULL && PyType_Check(base)
            && PyType_IsSubtype(type, (PyTypeObject *)base)
            && is_inherited(type, &_Py_ID(__reduce_ex__), (PyTypeObject *)base));
}

/* What object.__reduce_ex__() would ask is what object and base have. */
static int
is_plain_subclass(PyTypeObject *type, PyTypeObject *base)
{
    PyObject *const names[] = {
        &_Py_ID(__new__), &_Py_ID(__iter__), &_Py_ID(items),
        &_Py_ID(__setitem__), &_Py_ID(append), &_Py_ID(extend),
    };
    if (type == base || !PyType_IsSubtype(type, base)
        || type->tp_basicsize != base->tp_basicsize
        || !is_inherited(type, &_Py_ID(__reduce_ex__), &PyBaseObject_Type)
        || !is_inherited(type, &_Py_ID(__reduce__), &PyBaseObject_Type)
        || !is_inherited(type, &_Py_ID(__getstate__), &PyBaseObject_Type)
        || _PyType_Lookup(type, &_Py_ID(__getnewargs_ex__)) != NULL
        || _PyType_Lookup(type, &_Py_ID(__getnewargs__)) != NULL
        || _PyType_Lookup(type, &_Py_ID(__setstate__)) != NULL)
    {
        return 0;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        if (_PyType_Lookup(type, names[i]) != _PyType_Lookup(base, names[i])) {
            return 0;
        }
    }
    return 1;
}

/* Nothing that collections.namedtuple() made has been changed. */
static int
is_namedtuple(PyTypeObject *type)
{
    if (!PyType_IsSubtype(type, &PyTuple_Type) || type->tp_dictoffset != 0
        || (type->tp_flags & Py_TPFLAGS_MANAGED_DICT)
        || type->tp_basicsize != PyTuple_Type.tp_basicsize
        || !is_inherited(type, &_Py_ID(__reduce_ex__), &PyBaseObject_Type)
        || !is_inherited(type, &_Py_ID(__reduce__), &PyBaseObject_Type)
        || !is_inherited(type, &_Py_ID(__getstate__), &PyBaseObject_Type)
        || _PyType_Lookup(type, &_Py_ID(__getnewargs_ex__)) != NULL)
    {
        return 0;
    }
    PyObject *func = _PyType_Lookup(type, &_Py_ID(__getnewargs__));
    if (func == NULL || !PyFunction_Check(func)) {
        return 0;
    }
    PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(func);
    PyObject *own = PyUnicode_FromString("collections");
    PyObject *dict = own != NULL ? module_dict(own) : NULL;
    Py_XDECREF(own);
    if (dict == NULL || PyFunction_GET_GLOBALS(func) != dict
        || !PyUnicode_EqualToUTF8(code->co_qualname,
                                  "namedtuple.<locals>.__getnewargs__"))
    {
        return 0;
    }
    // Its __new__ has globals of its own.
    PyObject *maker = _PyType_Lookup(type, &_Py_ID(__new__));
    if (maker == NULL || !Py_IS_TYPE(maker, &PyStaticMethod_Type)) {
        return 0;
    }
    func = Py_TYPE(maker)->tp_descr_get(maker, NULL, (PyObject *)type);
    int res = (func != NULL && PyFunction_Check(func)
               && PyDict_GetItemString(PyFunction_GET_GLOBALS(func),
                                       "_tuple_new") != NULL);
    Py_XDECREF(func);
    return res;
}

static void
classify(PyTypeObject *type, type_entry *entry)
{
    const char *name = strrchr(type->tp_name, '.');
    name = name == NULL ? type->tp_name : name + 1;
    entry->kind = QUICK_NOT;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(known_types); i++) {
        const struct known_type *known = &known_types[i];
        if (strcmp(known->name, name) == 0
            && module_item(known->module, name) == (PyObject *)type)
        {
            entry->kind = known->kind;
            entry->known = (uint8_t)i;
            return;
        }
    }
    if (is_namedtuple(type)) {
        entry->kind = QUICK_NAMEDTUPLE;
    }
    else if (is_enum(type)) {
        entry->kind = QUICK_ENUM;
    }
    else if ((type->tp_flags & _Py_TPFLAGS_STATIC_BUILTIN)
             && PyExceptionClass_Check(type))
    {
        entry->kind = QUICK_EXCEPTION;
    }
    else if (is_plain_subclass(type, &PyDict_Type)) {
        entry->kind = QUICK_DICT;
    }
    else if (is_plain_subclass(type, &PyList_Type)) {
        entry->kind = QUICK_LIST;
    }
    PyErr_Clear();
}

/* What is known of a type; an entry is right as long as the type's version is
   the same (R-2). */
static const type_entry *
find_entry(names *n, PyTypeObject *type)
{
    type_entry *entry = &n->types[((uintptr_t)type >> 5) & (TYPE_ENTRIES - 1)];
    if (entry->type != type || entry->version != type->tp_version_tag
        || entry->version == 0)
    {
        // This gives it a version, unless there are no more.
        (void)_PyType_Lookup(type, &_Py_ID(__reduce_ex__));
        classify(type, entry);
        entry->type = type;
        entry->version = type->tp_version_tag;
    }
    return entry;
}

static int
quick_reduce(names *n, PyObject *obj, _PyParcel_Reduction *r)
{
    PyTypeObject *type = Py_TYPE(obj);
    type_entry entry = *find_entry(n, type);
    if (entry.kind == QUICK_NOT) {
        return 0;
    }
    PyObject *table = kept(n, KEPT_DISPATCH_TABLE);
    if (table != NULL
        && _PyDict_GetItem_KnownHash(table, (PyObject *)type,
                                     _Py_HashPointer(type)) != NULL)
    {
        return 0;
    }
    r->innocent = 1;
    switch ((quick_kind)entry.kind) {
    case QUICK_NOT:
        break;
    case QUICK_OWN:
    case QUICK_OWN_EX:
        return reduce_own(obj, entry.kind == QUICK_OWN_EX, r) < 0 ? -1 : 1;
    case QUICK_TIMEZONE:
        return reduce_timezone(obj, r) < 0 ? -1 : 1;
    case QUICK_DEQUE:
        return reduce_deque(obj, r) < 0 ? -1 : 1;
    case QUICK_DEFAULTDICT:
        r->innocent = has_plain_keys(obj);
        return reduce_defaultdict(obj, r) < 0 ? -1 : 1;
    case QUICK_ORDEREDDICT:
        return reduce_ordereddict(obj, r);
    case QUICK_COUNTER:
        r->innocent = has_plain_keys(obj);
        return reduce_counter(n, obj, r) < 0 ? -1 : 1;
    case QUICK_ARRAY:
        return reduce_array(obj, r);
    case QUICK_SLOTS:
        return reduce_slots(n, &known_types[entry.known], obj, r);
    case QUICK_ENUM:
        return reduce_enum(n, obj, r);
    case QUICK_NAMEDTUPLE:
        return reduce_namedtuple(n, obj, r);
    case QUICK_EXCEPTION:
        if (has_past((PyBaseExceptionObject *)obj)) {
            return 0;
        }
        return reduce_own(obj, 0, r) < 0 ? -1 : 1;
    case QUICK_DICT:
    case QUICK_LIST:
        return reduce_subclass(n, entry.kind == QUICK_DICT, obj, r);
    }
    Py_UNREACHABLE();
}

int
_PyParcel_QuickReduce(_PyParcel_Home *home, PyObject *obj, _PyParcel_Reduction *r)
{
    memset(r, 0, sizeof(*r));
    names *n = get_names(home);
    if (n == NULL) {
        return -1;
    }
    int res = quick_reduce(n, obj, r);
    if (res <= 0) {
        _PyParcel_ReductionClear(r);
        // Nothing that has been found out is true of another way.
        memset(r, 0, sizeof(*r));
    }
    return res;
}


/* --- By name, with Python code ------------------------------------------- */

/* getattr() along a qualified name. */
static PyObject *
get_path(PyObject *obj, PyObject *qualname)
{
    PyObject *parts = PyUnicode_Split(qualname, _Py_LATIN1_CHR('.'), -1);
    if (parts == NULL) {
        return NULL;
    }
    Py_INCREF(obj);
    for (Py_ssize_t i = 0; obj != NULL && i < PyList_GET_SIZE(parts); i++) {
        PyObject *name = Py_NewRef(PyList_GET_ITEM(parts, i));
        PyUnicode_InternInPlace(&name);
        Py_SETREF(obj, PyObject_GetAttr(obj, name));
        Py_DECREF(name);
    }
    Py_DECREF(parts);
    return obj;
}

/* The name of the module that has obj as `qualname`: it says so itself, or it
   is looked for.  An exact str. */
static PyObject *
module_of(PyObject *obj, PyObject *qualname)
{
    PyObject *name;
    if (PyObject_GetOptionalAttr(obj, &_Py_ID(__module__), &name) < 0) {
        return NULL;
    }
    if (name != NULL && name != Py_None) {
        Py_SETREF(name, PyUnicode_FromObject(name));
        return name;
    }
    Py_XDECREF(name);
    PyObject *modules = PyDict_Copy(PyImport_GetModuleDict());
    if (modules == NULL) {
        return NULL;
    }
    name = NULL;
    Py_ssize_t pos = 0;
    PyObject *key, *module;
    while (name == NULL && PyDict_Next(modules, &pos, &key, &module)) {
        if (!PyUnicode_Check(key) || module == Py_None || is_main(key)) {
            continue;
        }
        PyObject *found = get_path(module, qualname);
        if (found == NULL) {
            PyErr_Clear();
        }
        else if (found == obj) {
            name = PyUnicode_FromObject(key);
        }
        Py_XDECREF(found);
    }
    Py_DECREF(modules);
    return name != NULL ? name : Py_NewRef(&_Py_ID(__main__));
}

/* 0, or -1 if the name does not lead to obj; then an exception says why. */
static int
check_name(_PyParcel_Home *home, PyObject *obj, PyObject *module_name,
           PyObject *qualname)
{
    PyObject *module = PyImport_Import(module_name);
    if (module == NULL) {
        if (PyErr_ExceptionMatches(PyExc_Exception)
            && !PyErr_ExceptionMatches(PyExc_MemoryError)
            && home->not_shareable_error != NULL)
        {
            _PyErr_FormatFromCause(home->not_shareable_error,
                                   "%R says that it is from module %R, which "
                                   "can't be imported", obj, module_name);
        }
        return -1;
    }
    PyObject *found = get_path(module, qualname);
    Py_DECREF(module);
    if (found == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            not_shareable(home, "%R can't be sent by its name: there is no %U "
                          "in module %R", obj, qualname, module_name);
        }
        return -1;
    }
    Py_DECREF(found);
    if (found != obj) {
        not_shareable(home, "%R can't be sent by its name: %U.%U is another "
                      "object", obj, module_name, qualname);
        return -1;
    }
    return 0;
}

/* By the name that it has, or that it gave (if not NULL). */
static int
reduce_by_name(_PyParcel_Home *home, names *n, PyObject *obj, PyObject *given,
               _PyParcel_Reduction *r)
{
    int res = -1;
    PyObject *module = NULL;
    PyObject *script = NULL;
    PyObject *qualname = Py_XNewRef(given);
    if (qualname == NULL
        && PyObject_GetOptionalAttr(obj, &_Py_ID(__qualname__), &qualname) < 0)
    {
        return -1;
    }
    if (qualname == NULL
        && (qualname = PyObject_GetAttr(obj, &_Py_ID(__name__))) == NULL)
    {
        return -1;
    }
    if (!PyUnicode_Check(qualname)) {
        not_shareable(home, "the name of %R is not a str", obj);
        goto exit;
    }
    Py_SETREF(qualname, PyUnicode_FromObject(qualname));
    if (qualname == NULL || (module = module_of(obj, qualname)) == NULL
        || check_name(home, obj, module, qualname) < 0)
    {
        goto exit;
    }
    if (is_main(module) && (script = find_script(n)) == NULL) {
        goto exit;
    }
    res = set_named(r, make_where(module, qualname, script));

exit:
    Py_XDECREF(qualname);
    Py_XDECREF(module);
    Py_XDECREF(script);
    return res;
}

/* A builtin type that `builtins` does not have: those of functions and the
   like are in `types`.  1: done; 0: not such a type. */
static int
reduce_unnamed_type(PyObject *obj, _PyParcel_Reduction *r)
{
    if (((PyTypeObject *)obj)->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        return 0;
    }
    PyObject *module = PyImport_ImportModule("types");
    if (module == NULL) {
        return -1;
    }
    int res = 0;
    Py_ssize_t pos = 0;
    PyObject *name, *value;
    while (PyDict_Next(PyModule_GetDict(module), &pos, &name, &value)) {
        if (value == obj && PyUnicode_CheckExact(name)) {
            PyObject *where = Py_BuildValue("(sO)", "types", name);
            res = set_named(r, where) < 0 ? -1 : 1;
            break;
        }
    }
    Py_DECREF(module);
    return res;
}

static int
reduce_type(_PyParcel_Home *home, names *n, PyObject *obj,
            _PyParcel_Reduction *r)
{
    if (reduce_by_name(home, n, obj, NULL, r) == 0) {
        return 0;
    }
    PyObject *exc = PyErr_GetRaisedException();
    int res = reduce_unnamed_type(obj, r);
    if (res == 0) {
        PyErr_SetRaisedException(exc);
        return -1;
    }
    Py_XDECREF(exc);
    return res < 0 ? -1 : 0;
}


/* --- What __reduce_ex__() gives ------------------------------------------ */

/* All that an iterator gives, as a list. */
static PyObject *
drain(_PyParcel_Home *home, PyObject *obj, PyObject *iterator, const char *which)
{
    if (!PyIter_Check(iterator)) {
        not_shareable(home, "the %s item of what %R reduces to is not an "
                      "iterator but %R", which, obj, iterator);
        return NULL;
    }
    return PySequence_List(iterator);
}

/* [(key, value), ...] to [key, value, ...]. */
static PyObject *
flatten_pairs(_PyParcel_Home *home, PyObject *obj, PyObject *pairs)
{
    Py_ssize_t n = PyList_GET_SIZE(pairs);
    PyObject *items = PyList_New(2 * n);
    for (Py_ssize_t i = 0; items != NULL && i < n; i++) {
        PyObject *pair = PyList_GET_ITEM(pairs, i);
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            not_shareable(home, "the dict items that %R reduces to are not "
                          "pairs", obj);
            Py_CLEAR(items);
            break;
        }
        for (int j = 0; j < 2; j++) {
            PyList_SET_ITEM(items, 2 * i + j,
                            Py_NewRef(PyTuple_GET_ITEM(pair, j)));
        }
    }
    return items;
}

/* Pickle refuses to make an instance of another class so. */
static int
check_newobj(_PyParcel_Home *home, names *n, PyObject *obj, PyObject *args)
{
    if (PyTuple_GET_SIZE(args) < 1 || !PyType_Check(PyTuple_GET_ITEM(args, 0))) {
        not_shareable(home, "%R reduces to a call of __newobj__ without a "
                      "class", obj);
        return -1;
    }
    PyObject *cls = PyObject_GetAttr(obj, &_Py_ID(__class__));
    if (cls == NULL) {
        return -1;
    }
    Py_DECREF(cls);
    if (cls != PyTuple_GET_ITEM(args, 0)) {
        not_shareable(home, "%R reduces to a call of __newobj__ with another "
                      "class", obj);
        return -1;
    }
    return 0;
}

static int
unpack_reduced(_PyParcel_Home *home, names *n, PyObject *obj, PyObject *reduced,
               _PyParcel_Reduction *r)
{
    Py_ssize_t size = PyTuple_GET_SIZE(reduced);
    if (size < 2 || size > 6) {
        not_shareable(home, "%R reduces to a tuple of %zd items, where 2 to 6 "
                      "are wanted", obj, size);
        return -1;
    }
    PyObject *parts[6] = {NULL};
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *part = PyTuple_GET_ITEM(reduced, i);
        parts[i] = part == Py_None ? NULL : part;
    }
    if (parts[0] == NULL || !PyCallable_Check(parts[0])
        || (parts[5] != NULL && !PyCallable_Check(parts[5])))
    {
        not_shareable(home, "the %s item of what %R reduces to is not callable",
                      parts[0] == NULL || !PyCallable_Check(parts[0])
                      ? "first" : "sixth", obj);
        return -1;
    }
    if (parts[1] == NULL || !PyTuple_Check(parts[1])) {
        not_shareable(home, "the second item of what %R reduces to is not a "
                      "tuple", obj);
        return -1;
    }
    if (parts[0] == kept(n, KEPT_NEWOBJ)
        && check_newobj(home, n, obj, parts[1]) < 0)
    {
        return -1;
    }
    if (set_call(r, parts[0], PySequence_Tuple(parts[1])) < 0) {
        return -1;
    }
    r->state = Py_XNewRef(parts[2]);
    r->setter = Py_XNewRef(parts[5]);
    if (parts[3] != NULL
        && (r->list = drain(home, obj, parts[3], "fourth")) == NULL)
    {
        return -1;
    }
    if (parts[4] != NULL) {
        PyObject *pairs = drain(home, obj, parts[4], "fifth");
        if (pairs == NULL) {
            return -1;
        }
        r->items = flatten_pairs(home, obj, pairs);
        Py_DECREF(pairs);
        if (r->items == NULL) {
            return -1;
        }
    }
    return 0;
}

/* `reduced` is what a reducer gave: a str or a tuple. */
static int
take_reduced(_PyParcel_Home *home, names *n, PyObject *obj, PyObject *reduced,
             _PyParcel_Reduction *r)
{
    if (PyUnicode_Check(reduced)) {
        return reduce_by_name(home, n, obj, reduced, r);
    }
    if (!PyTuple_Check(reduced)) {
        not_shareable(home, "%R reduces to %R, where a str or a tuple is wanted",
                      obj, reduced);
        return -1;
    }
    return unpack_reduced(home, n, obj, reduced, r);
}

/* copyreg's table first, then the object itself. */
static PyObject *
ask_object(_PyParcel_Home *home, PyObject *obj, PyObject *reducer)
{
    if (reducer != NULL) {
        return PyObject_CallOneArg(reducer, obj);
    }
    PyObject *method;
    if (PyObject_GetOptionalAttr(obj, &_Py_ID(__reduce_ex__), &method) < 0) {
        return NULL;
    }
    if (method != NULL) {
        PyObject *res = PyObject_CallOneArg(method, PROTOCOL);
        Py_DECREF(method);
        return res;
    }
    if (PyObject_GetOptionalAttr(obj, &_Py_ID(__reduce__), &method) < 0) {
        return NULL;
    }
    if (method == NULL) {
        not_shareable(home, "%R has neither __reduce_ex__ nor __reduce__", obj);
        return NULL;
    }
    PyObject *res = PyObject_CallNoArgs(method);
    Py_DECREF(method);
    return res;
}

/* With what pickle forgets: cause, context, and the traceback as text. */
static int
reduce_exception(names *n, PyObject *obj, _PyParcel_Reduction *r)
{
    if (!has_past((PyBaseExceptionObject *)obj)) {
        return 0;
    }
    PyObject *pair = call_codec(n, "exception_state", obj,
                                r->state != NULL ? r->state : Py_None,
                                r->setter != NULL ? r->setter : Py_None);
    if (pair == NULL) {
        return -1;
    }
    PyObject *state, *setter;
    int res = PyArg_ParseTuple(pair, "OO", &state, &setter) ? 0 : -1;
    if (res == 0) {
        Py_XSETREF(r->state, Py_NewRef(state));
        Py_XSETREF(r->setter, Py_NewRef(setter));
    }
    Py_DECREF(pair);
    return res;
}

static int
reduce_code(PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *loads = _PyImport_GetModuleAttrString("marshal", "loads");
    if (loads == NULL) {
        return -1;
    }
    PyObject *args = NULL;
    PyObject *data = PyMarshal_WriteObjectToString(obj, Py_MARSHAL_VERSION);
    if (data != NULL) {
        args = PyTuple_Pack(1, data);
        Py_DECREF(data);
    }
    int res = set_call(r, loads, args);
    Py_DECREF(loads);
    return res;
}

static int
reduce_module(PyObject *obj, _PyParcel_Reduction *r)
{
    PyObject *name = PyModule_GetNameObject(obj);
    if (name == NULL) {
        return -1;
    }
    Py_SETREF(name, PyUnicode_FromObject(name));
    int res = name == NULL ? -1 : set_named(r, make_where(name, Py_None, NULL));
    Py_XDECREF(name);
    return res;
}

/* A function that has no name in the receiver goes by code. */
static int
reduce_function(_PyParcel_Home *home, names *n, PyObject **message,
                PyObject *obj, _PyParcel_Reduction *r)
{
    if (*message == NULL) {
        *message = call_codec(n, "Sending", NULL, NULL, NULL);
        if (*message == NULL) {
            return -1;
        }
    }
    PyObject *reduced = call_codec(n, "reduce_function", obj, *message, NULL);
    if (reduced == NULL) {
        return -1;
    }
    int res = take_reduced(home, n, obj, reduced, r);
    Py_DECREF(reduced);
    return res;
}

/* In pickle's order. */
static int
reduce(_PyParcel_Home *home, names *n, PyObject **message, PyObject *obj,
       _PyParcel_Reduction *r)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyFunction_Type) {
        return reduce_function(home, n, message, obj, r);
    }
    if (type == &PyModule_Type) {
        return reduce_module(obj, r);
    }
    if (type == &PyCode_Type) {
        return reduce_code(obj, r);
    }
    if (type == &PyCell_Type) {
        // Empty: the functions that share it fill it when they are there.
        return set_call(r, (PyObject *)type, PyTuple_New(0));
    }
    PyObject *reducer = NULL;
    if (type == &PyType_Type) {
        return reduce_type(home, n, obj, r);
    }
    PyObject *table = kept(n, KEPT_DISPATCH_TABLE);
    if (table == NULL) {
        // Nobody has had a reason to import copyreg: object.__reduce_ex__() has.
        PyObject *copyreg = PyImport_ImportModule("copyreg");
        if (copyreg == NULL) {
            return -1;
        }
        Py_DECREF(copyreg);
        table = kept(n, KEPT_DISPATCH_TABLE);
    }
    if (table != NULL && PyDict_Check(table)
        && PyDict_GetItemRef(table, (PyObject *)type, &reducer) < 0)
    {
        return -1;
    }
    if (reducer == NULL && PyType_Check(obj)) {
        return reduce_type(home, n, obj, r);
    }
    PyObject *reduced = ask_object(home, obj, reducer);
    Py_XDECREF(reducer);
    if (reduced == NULL) {
        return -1;
    }
    int res = take_reduced(home, n, obj, reduced, r);
    Py_DECREF(reduced);
    if (res == 0 && r->kind == _PyParcel_CALL && PyExceptionInstance_Check(obj)) {
        res = reduce_exception(n, obj, r);
    }
    return res;
}

int
_PyParcel_Reduce(_PyParcel_Home *home, PyObject **message, PyObject *obj,
                 _PyParcel_Reduction *r)
{
    int res = _PyParcel_QuickReduce(home, obj, r);
    if (res != 0) {
        return res < 0 ? -1 : 0;
    }
    PyObject *where = _PyParcel_QuickName(home, obj);
    if (where != NULL) {
        return set_named(r, where);
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    res = reduce(home, home->names, message, obj, r);
    if (res < 0) {
        _PyParcel_ReductionClear(r);
    }
    return res;
}


/* --- Names, in the receiver ---------------------------------------------- */

/* From the receiver's own __main__, or the sender's script.  NULL without an
   exception if code has to look for it. */
static PyObject *
quick_find_in_main(names *n, PyObject *qualname, PyObject *script)
{
    static const char *const mains[] = {"__main__", "__interp_main__"};
    // The codec is to know of a script before anything of it is looked for.
    PyObject *keys[NSCRIPT_KEYS];
    script_keys(n, keys);
    int told = script == Py_None || (keys[3] != NULL && keys[3] != Py_None);
    for (int i = 0; told && i < 2; i++) {
        PyObject *name = PyUnicode_FromString(mains[i]);
        if (name == NULL) {
            PyErr_Clear();
            return NULL;
        }
        PyObject *dict = module_dict(name);
        Py_DECREF(name);
        PyObject *found;
        if (dict == NULL) {
            continue;
        }
        lookup_result res = path_lookup(dict, qualname, &found);
        if (res == FOUND) {
            return Py_NewRef(found);
        }
        told = res == MISSING;
    }
    return NULL;
}

static PyObject *
quick_find(names *n, PyObject *where)
{
    PyObject *module_name = PyTuple_GET_ITEM(where, 0);
    PyObject *qualname = PyTuple_GET_ITEM(where, 1);
    if (PyTuple_GET_SIZE(where) > 2) {
        return quick_find_in_main(n, qualname, PyTuple_GET_ITEM(where, 2));
    }
    PyObject *dict = qualname != Py_None ? module_dict(module_name) : NULL;
    PyObject *found;
    if (dict != NULL && path_lookup(dict, qualname, &found) == FOUND) {
        return Py_NewRef(found);
    }
    return NULL;
}

PyObject *
_PyParcel_QuickFind(_PyParcel_Home *home, PyObject *where)
{
    names *n = get_names(home);
    if (n == NULL) {
        PyErr_Clear();
        return NULL;
    }
    return quick_find(n, where);
}

PyObject *
_PyParcel_FindNamed(_PyParcel_Home *home, PyObject *where)
{
    names *n = get_names(home);
    if (n == NULL) {
        return NULL;
    }
    assert(PyTuple_CheckExact(where) && PyTuple_GET_SIZE(where) >= 2);
    PyObject *module_name = PyTuple_GET_ITEM(where, 0);
    PyObject *qualname = PyTuple_GET_ITEM(where, 1);
    PyObject *found = quick_find(n, where);
    if (found != NULL) {
        return found;
    }
    if (PyTuple_GET_SIZE(where) > 2) {
        return call_codec(n, "find_main", qualname, PyTuple_GET_ITEM(where, 2),
                          NULL);
    }
    PyObject *module = PyImport_Import(module_name);
    if (module == NULL || qualname == Py_None) {
        return module;
    }
    PyObject *res = get_path(module, qualname);
    Py_DECREF(module);
    return res;
}


/* --- Objects, in the receiver -------------------------------------------- */

static PyObject *
construct_newobj(PyObject *args)
{
    PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(args, 0);
    if (type->tp_new == NULL) {
        return PyErr_Format(PyExc_TypeError, "%R has no __new__", type);
    }
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_GET_SIZE(args));
    if (rest == NULL) {
        return NULL;
    }
    PyObject *res = type->tp_new(type, rest, NULL);
    Py_DECREF(rest);
    return res;
}

static PyObject *
make_slots(const struct known_type *known, PyTypeObject *type,
           PyObject *const *values, Py_ssize_t n)
{
    PyObject *obj = type->tp_alloc(type, 0);
    for (int i = 0; obj != NULL && i < 2 && known->slots[i] != NULL; i++) {
        PyObject *value = i < n ? values[i] : usual_value(known);
        PyObject *name = PyUnicode_InternFromString(known->slots[i]);
        if (name == NULL || value == NULL
            || PyObject_GenericSetAttr(obj, name, value) < 0)
        {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_TypeError, "there is no %s for a '%s' object",
                             known->slots[i], known->name);
            }
            Py_CLEAR(obj);
        }
        Py_XDECREF(name);
    }
    return obj;
}

static PyObject *
make_tuple(PyTypeObject *type, PyObject *const *values, Py_ssize_t n)
{
    PyObject *obj = type->tp_alloc(type, n);
    for (Py_ssize_t i = 0; obj != NULL && i < n; i++) {
        PyTuple_SET_ITEM(obj, i, Py_NewRef(values[i]));
    }
    return obj;
}

/* make(type, *values): the other half of reduce_slots() and
   reduce_namedtuple(). */
static PyObject *
make(names *n, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || !PyType_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "make() wants a type");
        return NULL;
    }
    PyTypeObject *type = (PyTypeObject *)args[0];
    const type_entry *entry = find_entry(n, type);
    if (entry->kind == QUICK_SLOTS) {
        return make_slots(&known_types[entry->known], type, args + 1, nargs - 1);
    }
    if (entry->kind == QUICK_NAMEDTUPLE) {
        return make_tuple(type, args + 1, nargs - 1);
    }
    // The receiver has another class by that name.
    return PyObject_Vectorcall((PyObject *)type, args + 1, nargs - 1, NULL);
}

PyObject *
_PyParcel_Construct(_PyParcel_Home *home, PyObject *callable, PyObject *args)
{
    names *n = get_names(home);
    if (n == NULL) {
        return NULL;
    }
    if (callable == kept(n, KEPT_NEWOBJ) && PyTuple_GET_SIZE(args) > 0
        && PyType_Check(PyTuple_GET_ITEM(args, 0)))
    {
        return construct_newobj(args);
    }
    if (callable == kept(n, KEPT_MAKE)) {
        return make(n, &PyTuple_GET_ITEM(args, 0), PyTuple_GET_SIZE(args));
    }
    return PyObject_Call(callable, args, NULL);
}

int
_PyParcel_IsArrayType(_PyParcel_Home *home, PyTypeObject *type)
{
    if (strcmp(type->tp_name, "array.array") != 0) {
        return 0;
    }
    names *n = get_names(home);
    if (n == NULL) {
        PyErr_Clear();
        return 0;
    }
    return (quick_kind)find_entry(n, type)->kind == QUICK_ARRAY;
}

int
_PyParcel_IsInnocent(_PyParcel_Home *home, PyObject *callable)
{
    names *n = get_names(home);
    if (n == NULL) {
        PyErr_Clear();
        return 0;
    }
    if (PyType_Check(callable)) {
        switch ((quick_kind)find_entry(n, (PyTypeObject *)callable)->kind) {
        case QUICK_OWN:
        case QUICK_OWN_EX:
        case QUICK_TIMEZONE:
        case QUICK_DEQUE:
        case QUICK_DEFAULTDICT:
        case QUICK_ORDEREDDICT:
        case QUICK_ARRAY:
            return 1;
        default:
            return callable == (PyObject *)&PyCell_Type;
        }
    }
    for (int i = 0; i < NMAKERS; i++) {
        if (n->makers[i] == callable) {
            return 1;
        }
    }
    return callable == kept(n, KEPT_MAKE);
}

static int
append_items(PyObject *obj, PyObject *list)
{
    if (PyList_CheckExact(obj)) {
        return PyList_SetSlice(obj, PY_SSIZE_T_MAX, PY_SSIZE_T_MAX, list);
    }
    PyObject *method;
    if (PyObject_GetOptionalAttr(obj, &_Py_ID(extend), &method) < 0) {
        return -1;
    }
    if (method != NULL) {
        PyObject *res = PyObject_CallOneArg(method, list);
        Py_DECREF(method);
        Py_XDECREF(res);
        return res == NULL ? -1 : 0;
    }
    method = PyObject_GetAttr(obj, &_Py_ID(append));
    if (method == NULL) {
        return -1;
    }
    int res = 0;
    for (Py_ssize_t i = 0; res == 0 && i < PyList_GET_SIZE(list); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(list, i));
        PyObject *none = PyObject_CallOneArg(method, item);
        Py_DECREF(item);
        Py_XDECREF(none);
        res = none == NULL ? -1 : 0;
    }
    Py_DECREF(method);
    return res;
}

static int
set_items(PyObject *obj, PyObject *items)
{
    for (Py_ssize_t i = 0; i + 1 < PyList_GET_SIZE(items); i += 2) {
        PyObject *key = Py_NewRef(PyList_GET_ITEM(items, i));
        PyObject *value = Py_NewRef(PyList_GET_ITEM(items, i + 1));
        int res = PyObject_SetItem(obj, key, value);
        Py_DECREF(key);
        Py_DECREF(value);
        if (res < 0) {
            return -1;
        }
    }
    return 0;
}

/* Into the instance's __dict__, which need not be a dict. */
static int
fill_dict(PyObject *obj, PyObject *state)
{
    if (!PyDict_Check(state)) {
        PyErr_Format(PyExc_TypeError, "the state of a '%T' object is a '%T' "
                     "object where a dict is wanted", obj, state);
        return -1;
    }
    PyObject *dict = PyObject_GetAttr(obj, &_Py_ID(__dict__));
    if (dict == NULL) {
        return -1;
    }
    int res = 0;
    Py_ssize_t pos = 0;
    PyObject *name, *value;
    while (res == 0 && PyDict_Next(state, &pos, &name, &value)) {
        Py_INCREF(name);
        Py_INCREF(value);
        if (PyUnicode_CheckExact(name)) {
            // So are the names of attributes in code.
            PyUnicode_InternInPlace(&name);
        }
        res = PyObject_SetItem(dict, name, value);
        Py_DECREF(name);
        Py_DECREF(value);
    }
    Py_DECREF(dict);
    return res;
}

static int
fill_slots(PyObject *obj, PyObject *state)
{
    if (!PyDict_Check(state)) {
        PyErr_Format(PyExc_TypeError, "the slots of a '%T' object are a '%T' "
                     "object where a dict is wanted", obj, state);
        return -1;
    }
    int res = 0;
    Py_ssize_t pos = 0;
    PyObject *name, *value;
    while (res == 0 && PyDict_Next(state, &pos, &name, &value)) {
        Py_INCREF(name);
        Py_INCREF(value);
        res = PyObject_SetAttr(obj, name, value);
        Py_DECREF(name);
        Py_DECREF(value);
    }
    return res;
}

static int
set_state(PyObject *obj, PyObject *state)
{
    PyObject *method;
    if (PyObject_GetOptionalAttr(obj, &_Py_ID(__setstate__), &method) < 0) {
        return -1;
    }
    if (method != NULL) {
        PyObject *res = PyObject_CallOneArg(method, state);
        Py_DECREF(method);
        Py_XDECREF(res);
        return res == NULL ? -1 : 0;
    }
    PyObject *slots = NULL;
    if (PyTuple_Check(state) && PyTuple_GET_SIZE(state) == 2) {
        slots = PyTuple_GET_ITEM(state, 1);
        state = PyTuple_GET_ITEM(state, 0);
    }
    if (state != Py_None && fill_dict(obj, state) < 0) {
        return -1;
    }
    if (slots != NULL && slots != Py_None
        && fill_slots(obj, slots) < 0)
    {
        return -1;
    }
    return 0;
}

int
_PyParcel_Build(_PyParcel_Home *Py_UNUSED(home), PyObject *obj, PyObject *state,
                PyObject *list, PyObject *items, PyObject *setter)
{
    if (list != NULL && append_items(obj, list) < 0) {
        return -1;
    }
    if (items != NULL && set_items(obj, items) < 0) {
        return -1;
    }
    if (state == NULL) {
        return 0;
    }
    if (setter == NULL) {
        return set_state(obj, state);
    }
    PyObject *args[] = {obj, state};
    PyObject *res = PyObject_Vectorcall(setter, args, 2, NULL);
    Py_XDECREF(res);
    return res == NULL ? -1 : 0;
}

PyObject *
_PyParcel_Make(_PyParcel_Home *home, PyObject *const *args, Py_ssize_t nargs)
{
    names *n = get_names(home);
    return n == NULL ? NULL : make(n, args, nargs);
}
