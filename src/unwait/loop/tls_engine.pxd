# cython: language_level=3
cimport cython


cdef Py_ssize_t RECORD_SIZE
cdef Py_ssize_t BATCH_SIZE


@cython.final
cdef class TLSEngine:
    cdef object incoming
    cdef object outgoing
    cdef object sslobj
    cdef object incoming_write
    cdef object outgoing_read
    cdef object ssl_read
    cdef object ssl_write
    cdef readonly bint peer_closed
    cdef readonly bint waits_for_peer
    cdef bint partial_record
    cdef Py_ssize_t batched

    cpdef feed(self, data)
    cpdef Py_ssize_t received(self) except -1
    cpdef bint readable(self) except -1
    cpdef Py_ssize_t unsent(self) except -1
    cpdef bint full(self) except -1
    cpdef take(self)
    cpdef bint handshake(self) except -1
    @cython.locals(size=Py_ssize_t, count=Py_ssize_t, pieces=list)
    cpdef decrypt(self, Py_ssize_t expected)
    @cython.locals(filled=Py_ssize_t, count=Py_ssize_t)
    cpdef Py_ssize_t decrypt_into(self, buffer, Py_ssize_t size) except -1
    cpdef discard(self)
    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t encrypt(self, data, Py_ssize_t start, Py_ssize_t size) except -1
    cpdef bint shutdown(self) except -1
