# cython: language_level=3
cimport cython

from unwait.loop.tls cimport TLSProtocol


@cython.final
cdef class TLSTransport:
    cdef readonly object _loop
    cdef readonly TLSProtocol _ssl_protocol
    cdef public bint _closed
    cdef object __weakref__

    cpdef write(self, data)
    cpdef writelines(self, list_of_data)
