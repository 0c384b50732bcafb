// Finding the variables that refer to an object.
//
// The content of a bytes or str is a part of the object.  So it can only be moved
// if all references to it are known and can be given something else instead.
// Most often they are: the object is in a variable of the function that sends it,
// or of the module.
//
// Looked at are, for the current thread, the local variables of the frames that
// run, their cells, and the globals of their modules.  What is found and what is
// counted (Py_REFCNT) can be compared: if there are as many, there are no others.

#include "Python.h"
#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_parcel_graph.h"
#include "pycore_pystate.h"       // _PyThreadState_GET()

typedef struct {
    PyObject *obj;
    _PyParcel_Place *places;
    int n, max;
} search;

static void
note(search *s, PyObject **slot, PyObject *dict, PyObject *key)
{
    if (s->n < s->max) {
        s->places[s->n] = (_PyParcel_Place){slot, dict, key};
    }
    s->n++;
}

static void
look_at_slot(search *s, PyObject **slot)
{
    if (*slot == s->obj) {
        note(s, slot, NULL, NULL);
    }
    else if (*slot != NULL && PyCell_Check(*slot)) {
        PyObject **content = &((PyCellObject *)*slot)->ob_ref;
        // Several frames can have the same cell.
        for (int i = 0; i < Py_MIN(s->n, s->max); i++) {
            if (s->places[i].slot == content) {
                return;
            }
        }
        if (*content == s->obj) {
            note(s, content, NULL, NULL);
        }
    }
}

static void
look_at_globals(search *s, PyObject *globals)
{
    for (int i = 0; i < Py_MIN(s->n, s->max); i++) {
        if (s->places[i].dict == globals) {
            return;
        }
    }
    PyObject *key, *value;
    Py_ssize_t pos = 0;
    while (PyDict_Next(globals, &pos, &key, &value)) {
        if (value == s->obj && PyUnicode_CheckExact(key)) {
            note(s, NULL, globals, key);
        }
    }
}

int
_PyParcel_FindPlaces(PyObject *obj, _PyParcel_Place *places, int max)
{
    search s = {obj, places, 0, max};
    _PyInterpreterFrame *frame = _PyThreadState_GET()->current_frame;
    for (; frame != NULL; frame = frame->previous) {
        if (frame->owner == FRAME_OWNED_BY_CSTACK) {
            continue;
        }
        int n = _PyFrame_GetCode(frame)->co_nlocalsplus;
        for (int i = 0; i < n; i++) {
            look_at_slot(&s, &frame->localsplus[i]);
        }
        if (frame->f_globals != NULL && PyDict_CheckExact(frame->f_globals)) {
            look_at_globals(&s, frame->f_globals);
        }
    }
    return s.n;
}

void
_PyParcel_ReplacePlaces(_PyParcel_Place *places, int n, PyObject *with)
{
    for (int i = 0; i < n; i++) {
        if (places[i].slot != NULL) {
            Py_SETREF(*places[i].slot, Py_NewRef(with));
        }
        // There is an item of this key: no memory is needed.
        else if (PyDict_SetItem(places[i].dict, places[i].key, with) < 0) {
            PyErr_Clear();
        }
    }
}
