// A copy of a parcel, which is a walk over it.  See pycore_parcel_pack.h.

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
    assert(p.parcel->graph.nholes == g->nholes);
    _PyPacker_LeaveHeap(&p);
    parcel = p.parcel;
    _PyPacker_Free(&p);
    return parcel;

error:
    _PyPacker_Undo(&p);
    _PyPacker_Free(&p);
    return NULL;
}
