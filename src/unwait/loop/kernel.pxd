# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t


cdef class Poller:
    cdef int epoll_fd
    cdef int wake_fd
    cdef bint forked
    cdef int stale
    cdef bint waiting
    cdef bint woken
    cdef uint32_t generation
    cdef int count
    cdef int next
    cdef void *events
    cdef char *buffer
    cdef void *vectors
    cdef list channels
    cdef Channel active

    cdef double now(self) noexcept
    cdef int wait(self, double timeout) except -1
    cdef int dispatch(self) except -1
    cdef int wake(self) except -1
    cdef int control(self, Channel channel, int operation, uint32_t interest) except -1
    cdef int rebuild(self) except -1
    cdef int check_signals(self) except -1


cdef class Channel:
    cdef readonly int fd
    cdef bint is_socket
    cdef bint large
    cdef bint full
    cdef uint32_t generation
    cdef uint32_t interest
    cdef Poller poller
    cdef object __weakref__

    cdef int on_events(self, uint32_t events) except -1
    cdef int arm(self, uint32_t interest) except -1
    cdef int rearm(self, uint32_t interest) except -1
    cdef bint attached(self) noexcept
    cdef object receive(self, Py_ssize_t limit)
    cdef Py_ssize_t receive_into(self, object buffer) except -2
    cdef Py_ssize_t send(self, object data) except -2
    cdef Py_ssize_t send_from(self, bytes data, Py_ssize_t start) except -2
    cdef Py_ssize_t send_many(self, list buffers, Py_ssize_t first, Py_ssize_t start) except -2
    cdef Py_ssize_t transmit(self, const char *start, Py_ssize_t length) except -2
