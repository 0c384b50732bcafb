// _testreduce: the functions of pycore_parcel_reduce.h, for test_rwparcels_reduce.
//
// The first argument of each is a Queue, by which the home is found.

#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include "pycore_parcel_reduce.h"

static _PyParcel_Home *
home_of(PyObject *queue)
{
    // It is a Queue: the tests are trusted.
    return ((_PyParcel_HandleObject *)queue)->home;
}

static PyObject *
none_for_null(PyObject *obj)
{
    return obj != NULL ? obj : Py_None;
}

/* (kind, innocent, where, callable, args, state, list, items, setter) */
static PyObject *
as_tuple(_PyParcel_Reduction *r)
{
    PyObject *res = Py_BuildValue(
        "(iiOOOOOOO)", (int)r->kind, r->innocent, none_for_null(r->where),
        none_for_null(r->callable), none_for_null(r->args),
        none_for_null(r->state), none_for_null(r->list),
        none_for_null(r->items), none_for_null(r->setter));
    _PyParcel_ReductionClear(r);
    return res;
}

/* reduce(queue, obj, message) -> (reduction, message); message is None at first */
static PyObject *
test_reduce(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *obj, *message;
    if (!PyArg_ParseTuple(args, "OOO", &queue, &obj, &message)) {
        return NULL;
    }
    message = message == Py_None ? NULL : Py_NewRef(message);
    _PyParcel_Reduction r;
    PyObject *res = NULL;
    if (_PyParcel_Reduce(home_of(queue), &message, obj, &r) == 0) {
        PyObject *tuple = as_tuple(&r);
        if (tuple != NULL) {
            res = Py_BuildValue("(NO)", tuple, none_for_null(message));
        }
    }
    Py_XDECREF(message);
    return res;
}

/* quick_reduce(queue, obj) -> reduction or None */
static PyObject *
test_quick_reduce(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *obj;
    if (!PyArg_ParseTuple(args, "OO", &queue, &obj)) {
        return NULL;
    }
    _PyParcel_Reduction r;
    int res = _PyParcel_QuickReduce(home_of(queue), obj, &r);
    if (res > 0) {
        return as_tuple(&r);
    }
    return res == 0 ? Py_NewRef(Py_None) : NULL;
}

/* quick_name(queue, obj) -> where or None */
static PyObject *
test_quick_name(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *obj;
    if (!PyArg_ParseTuple(args, "OO", &queue, &obj)) {
        return NULL;
    }
    PyObject *where = _PyParcel_QuickName(home_of(queue), obj);
    if (where == NULL && !PyErr_Occurred()) {
        return Py_NewRef(Py_None);
    }
    return where;
}

static PyObject *
test_find(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *where;
    if (!PyArg_ParseTuple(args, "OO!", &queue, &PyTuple_Type, &where)) {
        return NULL;
    }
    return _PyParcel_FindNamed(home_of(queue), where);
}

static PyObject *
test_construct(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *callable, *arguments;
    if (!PyArg_ParseTuple(args, "OOO!", &queue, &callable,
                          &PyTuple_Type, &arguments))
    {
        return NULL;
    }
    return _PyParcel_Construct(home_of(queue), callable, arguments);
}

static PyObject *
null_for_none(PyObject *obj)
{
    return obj != Py_None ? obj : NULL;
}

static PyObject *
test_build(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *obj, *state, *list, *items, *setter;
    if (!PyArg_ParseTuple(args, "OOOOOO", &queue, &obj, &state, &list, &items,
                          &setter))
    {
        return NULL;
    }
    if (_PyParcel_Build(home_of(queue), obj, null_for_none(state),
                        null_for_none(list), null_for_none(items),
                        null_for_none(setter)) < 0)
    {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
test_is_innocent(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *queue, *callable;
    if (!PyArg_ParseTuple(args, "OO", &queue, &callable)) {
        return NULL;
    }
    return PyBool_FromLong(_PyParcel_IsInnocent(home_of(queue), callable));
}

static PyMethodDef methods[] = {
    {"reduce", test_reduce, METH_VARARGS},
    {"quick_reduce", test_quick_reduce, METH_VARARGS},
    {"quick_name", test_quick_name, METH_VARARGS},
    {"find", test_find, METH_VARARGS},
    {"construct", test_construct, METH_VARARGS},
    {"build", test_build, METH_VARARGS},
    {"is_innocent", test_is_innocent, METH_VARARGS},
    {NULL, NULL}
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0, NULL}
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_testreduce",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__testreduce(void)
{
    return PyModuleDef_Init(&module_def);
}
