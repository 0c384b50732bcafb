/* _rwextensions: private copies of extension modules, for the `interpreters`
   package.  What they are is said in pycore_rwextcopy.h. */

#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include "pycore_interp.h"        // _PyInterpreterState_LookUpIDObject()
#include "pycore_rwextcopy.h"     // _PyRWExt_List()

static PyStructSequence_Field copy_fields[] = {
    {"name", "name of the file, without folder and suffix"},
    {"file", "file that was copied"},
    {"interpreter", "id of the interpreter; None: waits to be used again"},
    {"nbytes", "memory that is this copy's alone"},
    {NULL}
};

static PyStructSequence_Desc copy_desc = {
    .name = "interpreters.ExtensionCopy",
    .doc = "An extension module's shared object that was copied.",
    .fields = copy_fields,
    .n_in_sequence = 4,
};

PyDoc_STRVAR(copies_doc,
"copies($module, /)\n"
"--\n"
"\n"
"Return an ExtensionCopy for each private copy in the process.");

static PyObject *
copies(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return _PyRWExt_List(*(PyTypeObject **)PyModule_GetState(module));
}

PyDoc_STRVAR(mode_doc,
"mode($module, /)\n"
"--\n"
"\n"
"Return the setting that -X extcopy or PYTHON_EXTCOPY made.");

static PyObject *
mode(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return _PyRWExt_GetMode();
}

PyDoc_STRVAR(enable_doc,
"enable($module, id, /)\n"
"--\n"
"\n"
"From now on the interpreter with this id gets private copies.");

static PyObject *
enable(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyInterpreterState *interp = _PyInterpreterState_LookUpIDObject(arg);
    if (interp == NULL) {
        return NULL;
    }
    _PyRWExt_Enable(interp);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(owner_doc,
"owner($module, address, /)\n"
"--\n"
"\n"
"Return the id of the interpreter in whose copy the address is, or -1.");

static PyObject *
owner(PyObject *Py_UNUSED(module), PyObject *arg)
{
    void *address = PyLong_AsVoidPtr(arg);
    if (address == NULL && PyErr_Occurred()) {
        return NULL;
    }
    return PyLong_FromLongLong(_PyRWExt_InterpreterOfAddress(address));
}

static PyMethodDef methods[] = {
    {"copies", copies, METH_NOARGS, copies_doc},
    {"enable", enable, METH_O, enable_doc},
    {"mode", mode, METH_NOARGS, mode_doc},
    {"owner", owner, METH_O, owner_doc},
    {NULL}
};

/* The module's state is a reference to the type ExtensionCopy. */

static int
module_exec(PyObject *module)
{
    PyTypeObject **type = PyModule_GetState(module);
    *type = PyStructSequence_NewType(&copy_desc);
    return *type == NULL ? -1 : PyModule_AddType(module, *type);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(*(PyTypeObject **)PyModule_GetState(module));
    return 0;
}

static int
module_clear(PyObject *module)
{
    Py_CLEAR(*(PyTypeObject **)PyModule_GetState(module));
    return 0;
}

/* The collector does not clear every module. */
static void
module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
    {0, NULL}
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_rwextensions",
    .m_doc = PyDoc_STR("Private copies of extension modules."),
    .m_size = sizeof(PyTypeObject *),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__rwextensions(void)
{
    return PyModuleDef_Init(&definition);
}
