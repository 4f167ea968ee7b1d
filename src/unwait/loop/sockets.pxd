# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from unwait.loop.core cimport Core
from unwait.loop.handles cimport Handle
from unwait.loop.kernel cimport Channel

cdef uint32_t ASK_READ, ASK_WRITE, CAN_READ, CAN_WRITE


cdef class Watcher(Channel):
    cdef SocketCalls loop
    cdef object owner
    cdef Handle reader
    cdef Handle writer
    cdef list read_waiters
    cdef list write_waiters
    cdef bint drained

    cdef int on_events(self, uint32_t events) except -1
    cdef object readable(self)
    cdef object writable(self)
    cdef object wait_readable(self)
    cdef object wait_writable(self)
    cdef object watch(self, uint32_t event)
    cpdef object forget(self)
    cdef object settle(self)
    cdef bint belongs_to(self, int fd) except -1
    cdef object check_open(self, object sock)


cdef class SocketCalls(Core):
    cdef dict watchers

    @cython.locals(watcher=Watcher)
    cdef Watcher socket_watcher(self, object sock)
    @cython.locals(watcher=Watcher)
    cdef Watcher number_watcher(self, int fd, object owner)
    cdef object check_no_transport(self, int fileno, object fd)
    @cython.locals(watcher=Watcher)
    cdef int _last_fileno(self, object fd) except? -1
    @cython.locals(watcher=Watcher, handle=Handle, previous=Handle, fileno=int)
    cdef Handle _watch(self, object fd, bint writing, object callback, tuple args)
    @cython.locals(watcher=Watcher, previous=Handle)
    cdef bint _unwatch(self, object fd, bint writing) except -1
