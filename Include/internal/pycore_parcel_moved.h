// What is left in the sender of an object that has been moved away.
//
// interpreters.move(obj) is a marker: the object in it is to be moved.  Once
// that has happened, whoever still refers to obj refers to a MovedObject.  It
// is the same object, with the same address, that has got another type in
// place: every use raises MovedError; repr(), type(), isinstance(), `is` and
// id() work.
//
// Python/parcel_moved.c has the types and how they give the object back to its
// own type when it dies.

#ifndef Py_INTERNAL_PARCEL_MOVED_H
#define Py_INTERNAL_PARCEL_MOVED_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_parcel.h"

/* A marker; its type is home->move_type. */
typedef struct {
    PyObject_HEAD
    PyObject *obj;
} _PyParcel_MoveObject;

static inline int
_PyParcel_IsMove(_PyParcel_Home *home, PyObject *obj)
{
    return Py_IS_TYPE(obj, home->move_type);
}

static inline int
_PyParcel_IsMoved(_PyParcel_Home *home, PyObject *obj)
{
    return (Py_IS_TYPE(obj, home->moved_types[0])
            || Py_TYPE(obj)->tp_base == home->moved_types[0]);
}

/* How many markers there are in this interpreter: with none, nothing that is
   sent can have one in it. */
extern Py_ssize_t _PyParcel_CountMoves(_PyParcel_Home *);

/* Make an object a MovedObject, in three steps.

   Prepare may fail, with an exception: MemoryError; MovedError when it is one
   already; TypeError for what can't be one, types and immortal objects.
   Then either Commit, which can't fail, allocates nothing and may be called in
   a write section, or Cancel.

   Before Commit the caller takes out what goes away, and leaves an object that
   its own type's tp_traverse, tp_clear and tp_dealloc can live with, and also
   C code that is in the middle of using it: a list, dict, set or bytearray
   that is empty, a tuple of the same length with nothing but None in it.  What
   stays in it stays the sender's: it is traversed, and freed with the object.
   Its __del__ won't be called, its weak references stay and refer to the
   MovedObject. */
extern int _PyParcel_MovedPrepare(_PyParcel_Home *, PyObject *obj);
extern void _PyParcel_MovedCommit(_PyParcel_Home *, PyObject *obj);
extern void _PyParcel_MovedCancel(_PyParcel_Home *, PyObject *obj);

/* MovedError for a MovedObject. */
extern void _PyParcel_RaiseMoved(PyObject *moved);

/* TransferError with path, reason and parcel (None).  `culprit` is somewhere in
   root's graph and can't be moved, as `outside` references to it come from
   elsewhere.  Runs Python code. */
extern void _PyParcel_RaiseNotIsolated(_PyParcel_Home *, PyObject *root,
                                       PyObject *culprit, Py_ssize_t outside);

/* NotShareableError that names the object and where in root it is.  The current
   exception, if any, becomes its cause; MemoryError, MovedError and what is no
   Exception stay as they are, and so does a NotShareableError that has a path already. */
extern void _PyParcel_RaiseNotShareable(_PyParcel_Home *, PyObject *root,
                                        PyObject *culprit);

/* TransferError that says why; the current exception, if any, becomes its cause.
   `parcel` is a Parcel object for its attribute, or NULL: None. */
extern void _PyParcel_RaiseTransfer(_PyParcel_Home *, const char *reason,
                                    PyObject *parcel);

/* Make the types and exceptions, as part of the module _parcels, and set the
   home's fields.  The references, also on failure, are the module's. */
extern int _PyParcel_MovedInit(_PyParcel_Home *, PyObject *module);
/* The module goes; MovedObjects may stay. */
extern void _PyParcel_MovedFini(_PyParcel_Home *);

#endif   // !Py_INTERNAL_PARCEL_MOVED_H
