// What Python code, or a name, says about an object that a parcel can't take
// as it is.
//
// The sender asks for a reduction: how to make an equal object elsewhere.  It
// is what pickle's protocol 5 would write for the object, but as objects and
// not as bytes.  The receiver makes the object of it.
//
//   NAMED   an import and attributes: classes, functions, builtins, modules,
//           enum members, whatever reduces to a str
//   CALL    a call, followed by what fills the new object
//
// Exported for the '_testreduce' shared extension.  All functions are called by a thread that is attached to the home's
// interpreter, with no mutex and no write section held.  A function that fails
// leaves nothing behind.

#ifndef Py_INTERNAL_PARCEL_REDUCE_H
#define Py_INTERNAL_PARCEL_REDUCE_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_parcel.h"        // _PyParcel_Home


/* --- In the sender ------------------------------------------------------- */

typedef enum {
    _PyParcel_NAMED = 1,
    _PyParcel_CALL = 2,
} _PyParcel_ReductionKind;

/* Strong references, NULL where there is nothing. */
typedef struct {
    _PyParcel_ReductionKind kind;
    int innocent;           // CALL: making and filling the object runs no Python
                            // code in the receiver
    int mirrors;            // CALL: `list` and `items` are new, and have what the
                            // object itself refers to; 2: and to keys twice
    PyObject *where;        // NAMED: a tuple for _PyParcel_FindNamed(), of str,
                            // None and such tuples, all exact
    PyObject *callable;     // CALL
    PyObject *args;         // CALL: an exact tuple
    PyObject *state;        // CALL, or NULL
    PyObject *list;         // CALL: an exact list of items to append, or NULL
    PyObject *items;        // CALL: an exact list [key, value, key, ...], or NULL
    PyObject *setter;       // CALL: called with the object and the state, or NULL
} _PyParcel_Reduction;

PyAPI_FUNC(void) _PyParcel_ReductionClear(_PyParcel_Reduction *);

/* The reduction of an object that is not plain data.  Runs Python code.

   `message` belongs to one call of pack: the first reduction makes *message,
   which is NULL before, and the caller drops it when the parcel is done.  What
   several reductions of a message have in common (the globals of functions,
   say) is the same object in each.  It can still grow while reductions are
   being made: look into reductions for good when all have been made.

   -1: NotShareableError that says why, or what the object's own code raised. */
PyAPI_FUNC(int) _PyParcel_Reduce(_PyParcel_Home *, PyObject **message,
                                 PyObject *obj, _PyParcel_Reduction *);

/* The same for types that are common and well known, without Python code:
   1: done; 0: not one of these, no exception; -1: MemoryError or the like. */
PyAPI_FUNC(int) _PyParcel_QuickReduce(_PyParcel_Home *, PyObject *obj,
                                      _PyParcel_Reduction *);

/* Where a receiver finds this class, function, builtin or module; looked up in
   dicts only, without Python code.  A new tuple of objects that others may
   refer to as well.  NULL without an exception: ask _PyParcel_Reduce();  NULL
   with one: MemoryError. */
PyAPI_FUNC(PyObject *) _PyParcel_QuickName(_PyParcel_Home *, PyObject *obj);


/* --- In the receiver ----------------------------------------------------- */

/* What has this name here.  Imports modules; raises what that raises, and
   AttributeError if the module is there and the name is not. */
PyAPI_FUNC(PyObject *) _PyParcel_FindNamed(_PyParcel_Home *, PyObject *where);

/* The same if looking into dicts is enough, without Python code: nobody keeps `where`
   or what is in it.  NULL without an exception: ask _PyParcel_FindNamed(). */
extern PyObject *_PyParcel_QuickFind(_PyParcel_Home *, PyObject *where);

/* callable(*args), made shorter for what makes most objects. */
PyAPI_FUNC(PyObject *) _PyParcel_Construct(_PyParcel_Home *,
                                           PyObject *callable, PyObject *args);

/* Fill a new object: append `list`, set `items`, then set the state.  Any of
   them can be NULL.  Strings that are attribute names in a state can become
   interned here. */
PyAPI_FUNC(int) _PyParcel_Build(_PyParcel_Home *, PyObject *obj, PyObject *state,
                                PyObject *list, PyObject *items,
                                PyObject *setter);

/* Whether a call of this runs C code of the standard library only, which
   neither lets anybody else see its arguments nor calls Python code. */
PyAPI_FUNC(int) _PyParcel_IsInnocent(_PyParcel_Home *, PyObject *callable);

/* copyreg.dispatch_table, borrowed; NULL without an exception if nobody has imported
   it: then there is nothing in it. */
extern PyObject *_PyParcel_DispatchTable(_PyParcel_Home *);

/* Is it the type array.array?  Runs no Python code. */
extern int _PyParcel_IsArrayType(_PyParcel_Home *, PyTypeObject *);

/* make(type, *values) of _parcels: what quick reductions call. */
extern PyObject *_PyParcel_Make(_PyParcel_Home *, PyObject *const *args,
                                Py_ssize_t nargs);


/* --- Life of home->names ------------------------------------------------- */

extern int _PyParcel_VisitNames(_PyParcel_Home *, visitproc visit, void *arg);
extern void _PyParcel_ClearNames(_PyParcel_Home *);

#endif   // !Py_INTERNAL_PARCEL_REDUCE_H
