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

    ctypedef struct PyAsyncMethods:
        sendfunc am_send

    ctypedef PyObject *(*iternextfunc)(PyObject *) except? NULL

    ctypedef struct TypeSlots "PyTypeObject":
        PyAsyncMethods *tp_as_async
        iternextfunc tp_iternext

    void PyErr_SetObject(object kind, object value)


cdef int NEW
cdef int SUSPENDED
cdef int DONE
cdef Py_ssize_t EVERYTHING


cdef class Operation:
    # Every field stands here: a subclass shares the freelist only if it is of the same size.
    cdef int state
    cdef int stage
    cdef object waiter
    cdef StreamReader reader
    cdef StreamWriter writer
    cdef StreamReaderProtocol protocol
    cdef list separators
    cdef Py_ssize_t count
    cdef Py_ssize_t shortest
    cdef Py_ssize_t longest

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
    @cython.locals(reader=StreamReader, size=Py_ssize_t, place=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t)
    cdef object attempt(self)
    cdef void measure(self) except *
    cdef object overrun(self, str message, Py_ssize_t consumed, Py_ssize_t end)
    cdef object ended(self, bytes partial)


cdef class ReadLine(ReadUntil):
    pass


cdef class NextLine(ReadLine):
    pass


cdef class Drain(Operation):
    @cython.locals(writer=StreamWriter, protocol=StreamReaderProtocol)
    cdef object attempt(self)


cdef class StreamReader:
    cdef object __weakref__
    cdef bytes held
    cdef bytearray buffer
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

    cdef Py_ssize_t available(self) noexcept
    cdef void spill(self) except *
    @cython.locals(size=Py_ssize_t)
    cdef void feed(self, object data) except *
    cdef void wake(self) except *
    cdef void pause(self) except *
    @cython.locals(held=bytes, data=bytes)
    cdef bytes take(self, Py_ssize_t count)
    cdef void maybe_resume(self) except *
    cdef Operation begin(self, Operation operation, Py_ssize_t count, list separators)


cdef class StreamReaderProtocol:
    cdef object __weakref__
    cdef StreamReader own_reader
    cdef public object _stream_reader
    cdef public object _client_connected_cb
    cdef public object _loop
    cdef public object _transport
    cdef public object _task
    cdef public bint _over_ssl
    cdef public bint _paused
    cdef public bint _connection_lost
    cdef list drain_waiters
    cdef object reason
    cdef object close_waiter

    cdef void settle(self, object waiter) except *
    @cython.locals(operation=Drain)
    cdef Drain begin_drain(self, StreamWriter writer)


cdef class StreamWriter:
    cdef object __weakref__
    cdef StreamReaderProtocol own_protocol
    cdef StreamReader own_reader
    cdef object current
    cdef object transport_write
    cdef public object _protocol
    cdef public object _reader
    cdef public object _loop


# `await` gets to an operation through one of these two slots, by the version of Python. Filled by hand, neither makes a
# traceback to say that the operation is done, and the first needs no exception at all; Cython has no name for it.

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
        return NULL  # with no exception set: done, with None
    Py_INCREF(result)
    return <PyObject *>result


cdef inline void set_slots(type kind):
    (<TypeSlots *>kind).tp_as_async.am_send = send_slot
    (<TypeSlots *>kind).tp_iternext = next_slot
