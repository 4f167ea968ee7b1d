# cython: language_level=3
cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF


cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT

    ctypedef PySendResult (*sendfunc)(PyObject *, PyObject *, PyObject **) except PYGEN_ERROR
    ctypedef PyObject *(*iternextfunc)(PyObject *) except? NULL

    ctypedef struct PyAsyncMethods:
        sendfunc am_send

    ctypedef struct TypeSlots "PyTypeObject":
        PyAsyncMethods *tp_as_async
        iternextfunc tp_iternext

    void PyErr_SetObject(object kind, object value)


cdef int NEW
cdef int SUSPENDED
cdef int DONE
cdef Py_ssize_t EVERYTHING
cdef Py_ssize_t WORTH_KEEPING

cdef Py_ssize_t as_size(object number) except? -2
cdef Py_ssize_t as_count(object number) except? -2


cdef class Operation:
    cdef int state
    cdef object waiter

    # What the subclasses need stands here too: only a subclass of the same size shares the freelist.
    cdef int stage
    cdef StreamReader reader
    cdef list separators
    cdef Py_ssize_t count
    cdef Py_ssize_t shortest
    cdef Py_ssize_t longest
    cdef object writer
    cdef object protocol

    cdef str name(self)
    cdef object attempt(self)
    cdef void leave(self) except *
    cdef object advance(self)
    cdef object suspend(self, object waiter)


cdef class Reading(Operation):
    @cython.locals(reader=StreamReader)
    cdef object wait(self, Py_ssize_t wanted)


cdef class Read(Reading):
    @cython.locals(reader=StreamReader)
    cdef object attempt(self)


cdef class ReadExactly(Reading):
    @cython.locals(reader=StreamReader)
    cdef object attempt(self)


cdef class ReadUntil(Reading):
    @cython.locals(separators=list)
    cdef void measure(self) except *
    @cython.locals(reader=StreamReader, size=Py_ssize_t, place=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t)
    cdef object attempt(self)
    cdef object overrun(self, str message, Py_ssize_t consumed, Py_ssize_t end)
    cdef object ended(self, bytes partial)


cdef class ReadLine(ReadUntil):
    pass


cdef class NextLine(ReadLine):
    pass


cdef class StreamReader:
    cdef object __weakref__
    cdef bytes held
    cdef bytearray buffer
    cdef list chunks
    cdef Py_ssize_t chunked
    cdef object limit_given
    cdef Py_ssize_t limit
    cdef Py_ssize_t high_water
    cdef Py_ssize_t wanted
    cdef public object _loop
    cdef public object _transport
    cdef public object _waiter
    cdef public object _exception
    cdef public bint _eof
    cdef public bint _paused
    cdef readonly object _source_traceback

    cdef Py_ssize_t available(self) except -1
    cdef void spill(self) except *
    @cython.locals(held=bytes, data=bytes)
    cdef bytes take(self, Py_ssize_t count)
    @cython.locals(taken=Py_ssize_t, chunk=bytes)
    cdef bytes take_chunks(self, Py_ssize_t count)
    @cython.locals(size=Py_ssize_t)
    cdef void feed(self, object data) except *
    cdef void wake(self) except *
    cdef void pause(self) except *
    cdef void maybe_resume(self) except *
    cdef Operation begin(self, Operation operation, Py_ssize_t count, list separators)
    cdef ReadLine begin_line(self, ReadLine operation)


# `await` reaches an operation through one of these slots, which of them depends on the version of Python. They are filled
# by hand because Cython does not know the first, and in the second would raise StopIteration with a traceback each time.

cdef inline PySendResult send_slot(PyObject *operation, PyObject *value, PyObject **outcome) except PYGEN_ERROR:
    result = (<Operation>operation).advance()
    Py_INCREF(result)
    outcome[0] = <PyObject *>result
    return PYGEN_RETURN if (<Operation>operation).state == DONE else PYGEN_NEXT


cdef inline PyObject *next_slot(PyObject *operation) except? NULL:
    result = (<Operation>operation).advance()
    if (<Operation>operation).state == DONE:
        if result is not None:
            PyErr_SetObject(StopIteration, result)
        return NULL  # without an exception: done, and the result is None
    Py_INCREF(result)
    return <PyObject *>result


cdef inline void set_slots(type kind):
    (<TypeSlots *>kind).tp_as_async.am_send = send_slot
    (<TypeSlots *>kind).tp_iternext = next_slot
