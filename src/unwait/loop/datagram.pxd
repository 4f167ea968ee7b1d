# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from unwait.loop.transport cimport FlowControlled

cdef uint32_t ASK_READ, ASK_WRITE, CAN_READ, CAN_WRITE


cdef class DatagramTransport(FlowControlled):
    cdef object address
    cdef object backlog
    cdef object datagram_received

    cdef object serve_events(self, uint32_t events)
    cdef object drop_backlog(self)
    @cython.locals(_turn=int)
    cdef object read_ready(self)
    cdef object write_ready(self)
    cdef bint transmit_one(self, object data, object addr) except -1
