# cython: language_level=3
from libc.stdint cimport uint32_t

from unwait.loop.transport cimport StreamTransport


cdef class PipeTransport(StreamTransport):
    pass


cdef class ReadPipeTransport(PipeTransport):
    cdef void read_eof(self) except *


cdef class WritePipeTransport(PipeTransport):
    cdef uint32_t watched

    cdef void serve_events(self, uint32_t events) except *
    cdef void drained(self) except *
