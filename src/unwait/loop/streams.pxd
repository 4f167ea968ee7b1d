# cython: language_level=3
cimport cython

from unwait.loop.stream_reader cimport Operation, StreamReader, set_slots


cdef class Drain(Operation):
    @cython.locals(protocol=StreamReaderProtocol)
    cdef void leave(self) except *
    @cython.locals(writer=StreamWriter, protocol=StreamReaderProtocol)
    cdef object attempt(self)


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
