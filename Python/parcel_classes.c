// Classes: can their instances be taken and made by hand, and how?
// See pycore_parcel_graph.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


#define MAX_CLASSES 1024            // then all are forgotten

typedef struct {
    _PyParcel_Class *entries;       // open addressing, by type
    size_t mask;
    size_t used;
} class_table;

static int
inherits(PyTypeObject *type, const char *name, PyTypeObject *base, int *yes)
{
    // The cache for types keeps what is looked up.
    PyObject *str = PyUnicode_InternFromString(name);
    if (str == NULL) {
        return -1;
    }
    *yes = (_PyType_Lookup(type, str) == _PyType_Lookup(base, str));
    Py_DECREF(str);
    return 0;
}

/* Does pickling an instance mean no more than its attributes? */
static int
has_own_protocol(PyTypeObject *type)
{
    static const char *const names[] = {
        "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__",
        "__getnewargs_ex__", "__getnewargs__", "__class__", NULL
    };
    for (const char *const *name = names; *name != NULL; name++) {
        int same;
        if (inherits(type, *name, &PyBaseObject_Type, &same) < 0) {
            return -1;
        }
        if (!same) {
            return 1;
        }
    }
    return 0;
}

/* Classes made by Python code, down to object. */
static int
has_simple_layout(PyTypeObject *type, int *nslots)
{
    if (type->tp_itemsize != 0 || type->tp_new != PyBaseObject_Type.tp_new
        || type->tp_alloc != PyType_GenericAlloc || type->tp_del != NULL
        || type->tp_getattro != PyObject_GenericGetAttr
        || (!_PyType_IS_GC(type) && type->tp_finalize != NULL))
    {
        return 0;
    }
    *nslots = 0;
    for (PyTypeObject *t = type; t != &PyBaseObject_Type; t = t->tp_base) {
        if (t == NULL || !(t->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
            return 0;
        }
        PyObject *slots = ((PyHeapTypeObject *)t)->ht_slots;
        *nslots += slots != NULL ? (int)PyTuple_GET_SIZE(slots) : 0;
    }
    if ((type->tp_dictoffset != 0 || type->tp_weaklistoffset > 0)
        && !(type->tp_flags & Py_TPFLAGS_MANAGED_DICT)
        && type->tp_dictoffset != 0)
    {
        return 0;
    }
    if (type->tp_weaklistoffset > 0) {
        return 0;
    }
    if (*nslots > 0 && type->tp_setattro != PyObject_GenericSetAttr) {
        return 0;
    }
    return (type->tp_basicsize
            == (Py_ssize_t)(sizeof(PyObject) + *nslots * sizeof(PyObject *)));
}

static int
collect_slots(_PyParcel_Class *cls, PyTypeObject *type)
{
    cls->slot_names = PyMem_RawCalloc(cls->nslots + 1, sizeof(PyObject *));
    cls->slot_offsets = PyMem_RawCalloc(cls->nslots + 1, sizeof(Py_ssize_t));
    if (cls->slot_names == NULL || cls->slot_offsets == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int n = 0;
    for (PyTypeObject *t = type; t != &PyBaseObject_Type; t = t->tp_base) {
        PyObject *slots = ((PyHeapTypeObject *)t)->ht_slots;
        for (Py_ssize_t i = 0; slots != NULL && i < PyTuple_GET_SIZE(slots); i++) {
            cls->slot_names[n] = PyTuple_GET_ITEM(slots, i);
            cls->slot_offsets[n++] = t->tp_members[i].offset;
        }
    }
    return 0;
}

static int
describe_class(_PyParcel_Class *cls, PyTypeObject *type)
{
    memset(cls, 0, sizeof(*cls));
    cls->type = type;
    if (!has_simple_layout(type, &cls->nslots)) {
        cls->nslots = 0;
        return 0;
    }
    int own = has_own_protocol(type);
    if (own != 0) {
        cls->nslots = 0;
        return own < 0 ? -1 : 0;
    }
    cls->has_dict = (type->tp_flags & Py_TPFLAGS_MANAGED_DICT) != 0;
    cls->simple = 1;
    cls->whole = ((type->tp_flags & Py_TPFLAGS_INLINE_VALUES) != 0
                  && type->tp_basicsize == sizeof(PyObject)
                  && _PyType_IS_GC(type));
    return cls->nslots > 0 ? collect_slots(cls, type) : 0;
}

static void
free_entries(class_table *table)
{
    for (size_t i = 0; i <= table->mask; i++) {
        PyMem_RawFree(table->entries[i].slot_names);
        PyMem_RawFree(table->entries[i].slot_offsets);
    }
    PyMem_RawFree(table->entries);
}

void
_PyParcel_FreeClasses(_PyParcel_Home *home)
{
    if (home->classes != NULL) {
        free_entries(home->classes);
        PyMem_RawFree(home->classes);
        home->classes = NULL;
    }
}

static class_table *
get_class_table(_PyParcel_Home *home)
{
    class_table *table = home->classes;
    if (table != NULL) {
        return table;
    }
    table = PyMem_RawCalloc(1, sizeof(*table));
    if (table != NULL) {
        table->mask = 2 * MAX_CLASSES - 1;
        table->entries = PyMem_RawCalloc(table->mask + 1,
                                         sizeof(_PyParcel_Class));
        if (table->entries != NULL) {
            home->classes = table;
            return table;
        }
        PyMem_RawFree(table);
    }
    PyErr_NoMemory();
    return NULL;
}

const _PyParcel_Class *
_PyParcel_GetClass(_PyParcel_Home *home, PyTypeObject *type)
{
    class_table *table = get_class_table(home);
    if (table == NULL) {
        return NULL;
    }
    size_t i = hash_pointer(type) & table->mask;
    while (table->entries[i].type != NULL && table->entries[i].type != type) {
        i = (i + 1) & table->mask;
    }
    _PyParcel_Class *cls = &table->entries[i];
    if (cls->type != NULL && cls->version != 0
        && cls->version == type->tp_version_tag)
    {
        return cls;
    }
    if (cls->type == NULL) {
        if (table->used == MAX_CLASSES) {
            _PyParcel_FreeClasses(home);
            return _PyParcel_GetClass(home, type);
        }
        table->used++;
    }
    PyMem_RawFree(cls->slot_names);
    PyMem_RawFree(cls->slot_offsets);
    cls->slot_names = NULL;
    cls->slot_offsets = NULL;
    if (describe_class(cls, type) < 0) {
        cls->version = 0;
        cls->simple = cls->whole = 0;
        return NULL;
    }
    PyUnstable_Type_AssignVersionTag(type);
    cls->version = type->tp_version_tag;
    return cls;
}
