# cython: language_level=3
from libc.stdint cimport uint32_t

from unwait.loop.transport cimport StreamTransport

cdef uint32_t ASK_READ, BROKEN


cdef class PipeTransport(StreamTransport):
    cdef dict __dict__  # as on asyncio's transports, callers may set attributes of their own


cdef class ReadPipeTransport(PipeTransport):
    cdef object read_eof(self)


cdef class WritePipeTransport(PipeTransport):
    cdef uint32_t watched

    cdef object serve_events(self, uint32_t events)
    cdef object flushed(self)
