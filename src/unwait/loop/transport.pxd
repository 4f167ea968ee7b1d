# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from unwait.loop.core cimport Core
from unwait.loop.kernel cimport Channel

cdef uint32_t ASK_READ, ASK_WRITE, ASK_EDGES, CAN_READ, CAN_WRITE, PLAIN_EVENTS
cdef Py_ssize_t READ_SIZE


cdef class FlowControlled(Channel):
    # What every packet touches stands first, for the caches' sake.
    cdef Core loop
    cdef object context
    cdef object protocol
    cdef bint closing
    cdef bint paused
    cdef bint protocol_paused
    cdef bint released
    cdef Py_ssize_t backlog_size
    cdef Py_ssize_t lost
    cdef Py_ssize_t high_water
    cdef Py_ssize_t low_water
    cdef object resource
    cdef dict extra
    cdef object server
    cdef object sockname
    cdef object peername

    @cython.locals(started=double)
    cdef int on_events(self, uint32_t events) except -1
    cdef object serve_events(self, uint32_t events)
    cdef object drop_backlog(self)
    cdef object note_sockname(self)
    cdef object note_peername(self)
    cdef object close_resource(self)
    cdef object detach_server(self)
    cdef object maybe_pause_protocol(self)
    cdef object maybe_resume_protocol(self)
    cdef object notify_protocol(self, str method)
    cdef object fail(self, object exc, str message)
    cdef bint refuses_write(self, object data) except -1


cdef class StreamTransport(FlowControlled):
    cdef object data_received
    cdef object empty_waiter
    cdef bint buffered
    cdef bint eof_written
    cdef bint eof_read
    cdef bint edge
    cdef bint drained
    cdef bint sure
    cdef bint read_queued
    cdef object get_buffer
    cdef object buffer_updated
    cdef list backlog
    cdef Py_ssize_t backlog_start

    cdef object serve_events(self, uint32_t events)
    cdef object drop_backlog(self)
    cdef object read_ready(self)
    @cython.locals(count=Py_ssize_t)
    cdef object read_ready_into(self)
    cdef object read_eof(self)
    cdef object write_ready(self)
    @cython.locals(count=Py_ssize_t, size=Py_ssize_t)
    cpdef object write(self, object data)
    cdef object keep(self, object data, Py_ssize_t sent)
    @cython.locals(count=Py_ssize_t)
    cdef bint write_some(self) except -1
    @cython.locals(taken=Py_ssize_t, size=Py_ssize_t, first=bytes)
    cdef object consume(self, Py_ssize_t count)
    cdef object flushed(self)
    cdef object watch_writing(self)
    cdef object read_some(self)
    cdef object queue_read(self)
    cdef object note_read(self)
