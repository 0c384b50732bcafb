// Packing: which of the objects that more than one reference leads to are the
// graph's alone?  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


typedef struct {
    packer *packer;
    PyObject **stack;
    Py_ssize_t depth, room;
    int from_given;                 // counting what is to be moved
    int in_reductions;
    int opaque;                     // in what an object has, but does not send
    int flooding;                   // marking what others can reach
    int foreign;                    // those with no part in the graph
    int variable;                   // in a cell or a marker
    PyObject *own_dict;             // of the value that is traversed
    PyObject *mutable;              // found while flooding
    int failed;
} arithmetic;

static int
push_object(arithmetic *a, PyObject *obj)
{
    if (GROW(a->stack, a->depth, a->room) < 0) {
        a->failed = 1;
        return -1;
    }
    a->stack[a->depth++] = (PyObject *)((uintptr_t)obj | (a->opaque != 0));
    return 0;
}

/* Does it stay, and go as a copy or in parts?  Then it can keep what it refers to
   alive for longer than the walk lasts, as garbage in a cycle, say. */
static int
is_opaque(packer *p, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyList_Type || type == &PyTuple_Type || type == &PySlice_Type) {
        return 0;
    }
    if (type == &PyDict_Type || type == &PySet_Type
        || type == &PyFrozenSet_Type)
    {
        return !_PyPacker_CanMove(obj);
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (_PyPacker_CheckSimple(p, obj, &cls, &a, &simple) < 0) {
        PyErr_Clear();
        return 1;
    }
    return !simple;
}

static int
visit_count(PyObject *obj, void *arg)
{
    arithmetic *a = arg;
    packer *p = a->packer;
    if (_Py_IsImmortal(obj) || is_named(obj) || _PyPacker_IsEnumMember(obj)) {
        return 0;
    }
    int atom = is_atom_type(Py_TYPE(obj));
    // A buffer is asked about later, whoever has it.
    if (Py_REFCNT(obj) == 1 && !PyPickleBuffer_Check(obj)) {
        return atom ? 0 : push_object(a, obj);
    }
    if (atom && !is_large(obj)) {
        return 0;
    }
    known *k = get_known(p, obj);
    if (k == NULL) {
        a->failed = 1;
        return -1;
    }
    if (k->given != 0) {
        k->inside += !a->variable;
        return 0;
    }
    if (is_reduced_to_name(p, k)) {
        return 0;
    }
    if (a->opaque) {
        k->opaque++;
    }
    else {
        k->inside++;
    }
    int reached = (a->from_given && !a->opaque);
    if (k->counted && k->reached >= reached) {
        return 0;
    }
    if (k->counted) {
        // It has been visited, but not as something that has to be moved.
        k->reached = 1;
        return 0;
    }
    k->counted = 1;
    k->reached = (uint8_t)reached;
    // What a reduction refers to dies with it only if nothing else does.
    a->opaque |= a->in_reductions;
    return atom ? 0 : push_object(a, obj);
}

/* Is it found by its name, or made from nothing but atoms and never changed?  As far
   as can be told without code. */
static int
reduces_to_value(packer *p, PyObject *obj)
{
    if (_PyParcel_IsArray(p->home, obj)) {
        return 0;
    }
    Py_ssize_t index = _PyPacker_GetReduction(p, obj);
    p->needs_code = NULL;
    if (index < 0) {
        PyErr_Clear();
        return 0;
    }
    _PyParcel_Reduction *r = &p->reductions[index].reduction;
    if (r->kind == _PyParcel_NAMED) {
        return 1;
    }
    return (Py_TYPE(obj)->tp_hash != PyObject_HashNotImplemented
            && r->state == NULL && r->list == NULL && r->items == NULL
            && _PyPacker_IsValue(r->args));
}

static int
visit_flood(PyObject *obj, void *arg)
{
    arithmetic *a = arg;
    if (_Py_IsImmortal(obj) || is_named(obj) || _PyPacker_IsEnumMember(obj)) {
        return 0;
    }
    int atom = is_atom_type(Py_TYPE(obj));
    known *k = (Py_REFCNT(obj) > 1 || PyPickleBuffer_Check(obj)
                ? find_known(a->packer, obj) : NULL);
    if (k != NULL) {
        k->foreign |= (uint8_t)a->foreign;
        if (k->given != 0 || k->flooded || is_reduced_to_name(a->packer, k)) {
            return 0;
        }
        k->outside = 1;
        k->flooded = 1;
    }
    if (!_PyPacker_IsValueType(a->packer, obj) && obj != a->own_dict) {
        if (is_opaque(a->packer, obj) && reduces_to_value(a->packer, obj)) {
            return 0;
        }
        a->mutable = obj;
    }
    return atom ? 0 : push_object(a, obj);
}

/* The __dict__ of an instance, if there is such an object. */
static PyObject *
dict_of(PyObject *obj)
{
    if (Py_TYPE(obj)->tp_flags & Py_TPFLAGS_MANAGED_DICT) {
        return (PyObject *)_PyObject_GetManagedDict(obj);
    }
    PyObject **dict = _PyObject_ComputedDictPointer(obj);
    return dict != NULL ? *dict : NULL;
}

/* From what is on the stack on. */
static int
traverse_all(arithmetic *a)
{
    visitproc visit = a->flooding ? visit_flood : visit_count;
    while (a->depth > 0) {
        PyObject *obj = a->stack[--a->depth];
        // The lowest bit: see push_object().
        a->opaque = (int)((uintptr_t)obj & 1);
        obj = (PyObject *)((uintptr_t)obj & ~(uintptr_t)1);
        a->opaque |= is_opaque(a->packer, obj);
        a->variable = (PyCell_Check(obj)
                       || _PyParcel_IsMove(a->packer->home, obj));
        traverseproc traverse = Py_TYPE(obj)->tp_traverse;
        a->own_dict = a->flooding && _PyPacker_IsValueType(a->packer, obj)
            ? dict_of(obj) : NULL;
        if (traverse != NULL && _PyObject_IS_GC(obj)
            && traverse(obj, visit, a) != 0)
        {
            return -1;
        }
        PyObject *base = a->opaque ? _PyPacker_HiddenBase(a->packer, obj) : NULL;
        if (base != NULL && visit(base, a) != 0) {
            return -1;
        }
    }
    return a->failed ? -1 : 0;
}

static int
visit_reductions(arithmetic *a)
{
    packer *p = a->packer;
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        reduced *r = &p->reductions[i];
        PyObject *parts[] = {
            r->obj, r->reduction.callable, r->reduction.args,
            r->reduction.state, r->reduction.list, r->reduction.items,
            r->reduction.setter,
        };
        for (size_t j = 0; j < Py_ARRAY_LENGTH(parts); j++) {
            a->opaque = a->variable = 0;
            if (parts[j] != NULL && visit_count(parts[j], a) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

/* From what others refer to; or also from what only opaque objects do. */
static int
flood_from(arithmetic *a, int foreign)
{
    packer *p = a->packer;
    a->foreign = foreign;
    for (size_t i = 0; i <= p->table_mask; i++) {
        known k = p->table[i];
        if (k.obj == NULL || !k.counted || !k.outside || k.flooded
            || (foreign && k.elsewhere <= 0))
        {
            continue;
        }
        a->mutable = NULL;
        a->own_dict = NULL;
        size_t mask = p->table_mask;
        if (visit_flood(k.obj, a) < 0 || traverse_all(a) < 0) {
            return -1;
        }
        if (k.reached && k.elsewhere > 0 && a->mutable != NULL) {
            return _PyPacker_NotIsolated(p, k.obj, k.elsewhere);
        }
        if (p->table_mask != mask) {
            // A reduction has made the table grow.
            i = (size_t)-1;
        }
    }
    return 0;
}

/* Mark what others can reach.  If it must not be so, say what. */
static int
flood(arithmetic *a)
{
    packer *p = a->packer;
    // Before reductions are made, which add references of their own.
    for (size_t i = 0; i <= p->table_mask; i++) {
        known *k = &p->table[i];
        if (k->obj != NULL && k->counted) {
            k->elsewhere = Py_REFCNT(k->obj) - k->inside - k->opaque;
            k->outside = (k->elsewhere > 0 || k->opaque > 0);
        }
    }
    a->flooding = 1;
    return flood_from(a, 1) < 0 ? -1 : flood_from(a, 0);
}

/* Find out which of the objects that more than one reference leads to are the
   graph's alone. */
int
_PyPacker_Isolate(packer *p)
{
    arithmetic a = {.packer = p};
    int res = -1;
    // First what has to be moved, then what can be moved.
    for (int owned = MUST_MOVE; owned >= MAY_MOVE; owned--) {
        a.from_given = (owned == MUST_MOVE);
        for (Py_ssize_t i = 0; i < p->ngivens; i++) {
            a.opaque = 0;
            if (p->givens[i].owned == owned
                && push_object(&a, p->givens[i].obj) < 0)
            {
                goto exit;
            }
        }
        if (traverse_all(&a) < 0) {
            goto exit;
        }
    }
    // References of the reductions go with them.
    a.from_given = a.opaque = 0;
    a.in_reductions = 1;
    if (visit_reductions(&a) < 0 || traverse_all(&a) < 0 || flood(&a) < 0) {
        goto exit;
    }
    p->isolated = 1;
    res = 0;

exit:
    PyMem_RawFree(a.stack);
    return res;
}
