# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from unwait.loop.core cimport Core
from unwait.loop.kernel cimport Channel


cdef class FlowControlled(Channel):
    cdef Core loop
    cdef object protocol
    cdef object context
    cdef object resource
    cdef dict extra
    cdef bint closing
    cdef bint paused
    cdef bint protocol_paused
    cdef Py_ssize_t lost
    cdef Py_ssize_t backlog_size
    cdef Py_ssize_t high_water
    cdef Py_ssize_t low_water

    cdef void maybe_pause_protocol(self) except *
    cdef void maybe_resume_protocol(self) except *
    cdef void notify_protocol(self, str method) except *
    cdef void fail(self, object exc, str message) except *
    cdef bint refuses_write(self, object data) except -1


cdef class StreamTransport(FlowControlled):
    cdef object data_received
    cdef object get_buffer
    cdef object buffer_updated
    cdef object server
    cdef object empty_waiter
    cdef bint buffered
    cdef bint eof_written
    cdef list backlog
    cdef Py_ssize_t backlog_start

    @cython.locals(started=double)
    cdef int on_events(self, uint32_t events) except -1
    cdef void serve_events(self, uint32_t events) except *
    cdef void read_ready(self) except *
    @cython.locals(count=Py_ssize_t)
    cdef void read_ready_into(self) except *
    cdef void read_eof(self) except *
    cdef void write_ready(self) except *
    @cython.locals(count=Py_ssize_t, size=Py_ssize_t)
    cpdef void write(self, object data) except *
    cdef void keep(self, object data, Py_ssize_t sent) except *
    @cython.locals(count=Py_ssize_t)
    cdef bint write_some(self) except -1
    @cython.locals(taken=Py_ssize_t, size=Py_ssize_t, first=bytes)
    cdef void consume(self, Py_ssize_t count) except *
    cdef void drained(self) except *
