# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from unwait.loop.transport cimport FlowControlled


cdef class DatagramTransport(FlowControlled):
    cdef object address
    cdef object backlog
    cdef object datagram_received

    @cython.locals(started=double)
    cdef int on_events(self, uint32_t events) except -1
    cdef void serve_events(self, uint32_t events) except *
    @cython.locals(turn=int)
    cdef void read_ready(self) except *
    cdef void write_ready(self) except *
    cdef bint transmit_one(self, object data, object addr) except -1
