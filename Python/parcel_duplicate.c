// A copy of a parcel, which is a walk over it.  See pycore_parcel_pack.h.
//
// Instances of families become records.  They are made before everything else and filled
// at the end: nothing that is made in between runs code that looks into them, or they
// would have been records from the beginning.

#include "Python.h"
#include "pycore_parcel_pack.h"


static int
index_holes(packer *p, const _PyParcel_Graph *g)
{
    size_t size = 8;
    while (size < 2 * (size_t)g->nholes) {
        size *= 2;
    }
    p->dup_holes = PyMem_RawCalloc(size, sizeof(known));
    if (p->dup_holes == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    p->dup_mask = size - 1;
    for (Py_ssize_t i = 0; i < g->nholes; i++) {
        known *k = probe(p->dup_holes, p->dup_mask, g->holes[i].slot);
        k->obj = (PyObject *)g->holes[i].slot;
        k->to = RECORD_WORD(g->holes[i].record);
    }
    return 0;
}

_PyParcel_Word
_PyPacker_HoleAt(packer *p, PyObject **slot)
{
    if (p->dup_holes == NULL) {
        return 0;
    }
    known *k = probe(p->dup_holes, p->dup_mask, slot);
    return k->obj != NULL ? k->to : 0;
}

static int
has_names(packer *p, const _PyParcel_Shape *shape, const _PyParcel_Word *names,
          const uint8_t *order)
{
    const _PyParcel_Word *mine = &p->parcel->graph.words[shape->names];
    for (int i = 0; i < shape->nattributes; i++) {
        // The names of a shape of the parcel may not have been copied yet.
        if (mine[i] == 0
            || !_PyUnicode_Equal(WORD_OBJECT(mine[i]), WORD_OBJECT(names[order[i]])))
        {
            return 0;
        }
    }
    return 1;
}

static Py_ssize_t
add_shape_of_family(packer *p, const _PyParcel_Family *family,
                    const uint8_t *order, int n)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    const _PyParcel_Word *names = &p->dup->graph.words[family->names];
    Py_ssize_t owner = _PyPacker_AddRecord(p, RECORD_NAMED, n);
    if (owner < 0 || GROW_GRAPH(p, shapes, nshapes) < 0) {
        return -1;
    }
    Py_ssize_t at = g->records[owner].first;
    for (int i = 0; i < n; i++) {
        PyObject *name = _PyParcel_CopyName(WORD_OBJECT(names[order[i]]));
        if (name == NULL) {
            return -1;
        }
        g->words[at + i] = (_PyParcel_Word)name;
    }
    g->shapes[g->nshapes] = (_PyParcel_Shape){family->type, at, n, 0};
    return g->nshapes++;
}

static Py_ssize_t
get_shape_of_family(packer *p, const _PyParcel_Family *family,
                    const uint8_t *order, int n)
{
    const _PyParcel_Graph *g = &p->parcel->graph;
    const _PyParcel_Word *names = &p->dup->graph.words[family->names];
    Py_ssize_t oldest = Py_MAX(0, g->nshapes - 16);
    for (Py_ssize_t i = g->nshapes; --i >= oldest; ) {
        const _PyParcel_Shape *shape = &g->shapes[i];
        if (shape->type == family->type && shape->nslots == 0
            && shape->nattributes == n && has_names(p, shape, names, order))
        {
            return i;
        }
    }
    return add_shape_of_family(p, family, order, n);
}

int
_PyPacker_TakeApart(packer *p, PyObject *obj, _PyParcel_Word *word)
{
    PyDictValues *values = _PyObject_InlineValues(obj);
    Py_ssize_t n = values->size;
    Py_ssize_t shape = get_shape_of_family(p, _PyParcel_FamilyOf(obj),
                                           get_insertion_order_array(values),
                                           (int)n);
    if (shape < 0) {
        return -1;
    }
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_INSTANCE, n);
    if (record < 0
        || (Py_REFCNT(obj) > 1 && remember(p, obj, RECORD_WORD(record)) < 0))
    {
        return -1;
    }
    p->parcel->graph.records[record].arg = shape;
    frame *f = push_frame(p, FRAME_APART, NOT_OWNED, n);
    if (f == NULL) {
        return -1;
    }
    f->to.object = obj;
    f->record = record;
    *word = RECORD_WORD(record);
    return 1;
}

int
_PyPacker_StepApart(packer *p, frame *f)
{
    PyDictValues *values = _PyObject_InlineValues(f->to.object);
    const uint8_t *order = get_insertion_order_array(values);
    Py_ssize_t first = p->parcel->graph.records[f->record].first;
    for (Py_ssize_t i = f->i; i < f->n; i++) {
        PyObject **from = &values->values[order[i]];
        f->i = i + 1;
        _PyParcel_Word word;
        int entered = TAKE_CHILD(p, from, NOT_OWNED, word);
        if (entered < 0) {
            return -1;
        }
        p->parcel->graph.words[first + i] = word;
        if (entered) {
            return 1;
        }
    }
    return _PyPacker_AddStep(p, OP_BUILD, f->record);
}

/* The records from `first` on that are instances are made before all others. */
static int
create_first(packer *p, Py_ssize_t first)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    Py_ssize_t before = g->nsteps;
    for (Py_ssize_t i = first; i < g->nrecords; i++) {
        if (g->records[i].kind == RECORD_INSTANCE
            && _PyPacker_AddStep(p, OP_CREATE, i) < 0)
        {
            return -1;
        }
    }
    Py_ssize_t n = g->nsteps - before;
    size_t size = n * sizeof(*g->program);
    if (n > 0) {
        _PyParcel_Step *steps = PyMem_RawMalloc(size);
        if (steps == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(steps, g->program + before, size);
        memmove(g->program + n, g->program, before * sizeof(*g->program));
        memcpy(g->program, steps, size);
        PyMem_RawFree(steps);
    }
    return 0;
}

static void *
copy_array(const void *array, Py_ssize_t n, size_t size)
{
    void *copy = PyMem_RawMalloc(n * size + 1);
    if (copy == NULL) {
        PyErr_NoMemory();
    }
    else if (n > 0) {
        memcpy(copy, array, n * size);
    }
    return copy;
}

#define COPY_ARRAY(TO, FROM, ARRAY, N) \
    ((TO)->ARRAY = copy_array((FROM)->ARRAY, (FROM)->N, \
                              sizeof(*(FROM)->ARRAY)))

/* All but words, holes and resources. */
static int
copy_records(packer *p, const _PyParcel_Graph *from)
{
    _PyParcel_Graph *to = &p->parcel->graph;
    if (COPY_ARRAY(to, from, records, nrecords) == NULL
        || COPY_ARRAY(to, from, shapes, nshapes) == NULL
        || COPY_ARRAY(to, from, program, nsteps) == NULL
        || COPY_ARRAY(to, from, resources, nresources) == NULL)
    {
        return -1;
    }
    to->words = PyMem_RawCalloc(from->nwords + 1, sizeof(*to->words));
    if (to->words == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    to->nrecords = p->records_room = from->nrecords;
    to->nshapes = p->shapes_room = from->nshapes;
    to->nsteps = p->program_room = from->nsteps;
    to->nwords = p->words_room = from->nwords;
    to->runs_code = from->runs_code;
    for (Py_ssize_t i = 0; i < to->nrecords; i++) {
        to->records[i].holes = -1;
    }
    p->resources_room = from->nresources;
    for (; to->nresources < from->nresources; to->nresources++) {
        if (_PyParcel_ShareResource(&to->resources[to->nresources]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
copy_word(packer *p, _PyParcel_Word from, _PyParcel_Word *to)
{
    if (from == 0 || WORD_IS_RECORD(from)) {
        *to = from;
        return 0;
    }
    int entered = _PyPacker_Take(p, WORD_OBJECT(from), 0, to);
    return entered > 0 ? _PyPacker_Walk(p) : entered;
}

_PyParcel *
_PyParcel_Duplicate(_PyParcel_Home *home, _PyParcel *parcel)
{
    const _PyParcel_Graph *g = &parcel->graph;
    packer p;
    _PyPacker_Init(&p, home, NULL);
    p.dup = parcel;
    if (_PyPacker_BeginWalk(&p) < 0 || copy_records(&p, g) < 0
        || index_holes(&p, g) < 0
        || copy_word(&p, parcel->root, &p.parcel->root) < 0)
    {
        goto error;
    }
    for (Py_ssize_t i = 0; i < g->nwords; i++) {
        if (copy_word(&p, g->words[i], &p.parcel->graph.words[i]) < 0) {
            goto error;
        }
    }
    if (create_first(&p, g->nrecords) < 0) {
        goto error;
    }
    assert(g->families != NULL || p.parcel->graph.nholes == g->nholes);
    _PyPacker_LeaveHeap(&p);
    parcel = p.parcel;
    _PyPacker_Free(&p);
    return parcel;

error:
    _PyPacker_Undo(&p);
    _PyPacker_Free(&p);
    return NULL;
}
