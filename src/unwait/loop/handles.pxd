# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from unwait.loop.kernel cimport Census

cdef Census census


cdef class Handle:
    cdef object __weakref__
    cdef public object _callback
    cdef public object _args
    cdef public object _context
    cdef public object _loop
    cdef public bint _cancelled
    cdef public object _source_traceback
    cdef object description
    cdef Handle next

    cdef void fill(self, object callback, tuple args, object loop, object context) except *
    @cython.locals(args=tuple)
    cdef void run(self) except *
    cdef void trace(self) except *
    cdef str source(self)
    cdef void report(self, object exc) except *
    cdef void release(self) except *


cdef class TimerHandle(Handle):
    cdef double deadline
    cdef uint64_t sequence
    cdef TimerHeap heap

    cdef bint before(self, TimerHandle other) noexcept


cdef class ReadyQueue:
    cdef Handle head
    cdef Handle tail
    cdef readonly Py_ssize_t length

    cdef void push(self, Handle handle) except *
    @cython.locals(handle=Handle)
    cdef Handle pop(self)


cdef class TimerHeap:
    cdef list items
    cdef readonly Py_ssize_t cancelled
    cdef uint64_t sequence

    cdef void push(self, TimerHandle timer) except *
    @cython.locals(top=TimerHandle)
    cdef TimerHandle pop(self)
    cdef TimerHandle first(self)
    @cython.locals(timer=TimerHandle, above=TimerHandle, parent=Py_ssize_t)
    cdef void rise(self, Py_ssize_t place) except *
    @cython.locals(timer=TimerHandle, below=TimerHandle, child=Py_ssize_t, size=Py_ssize_t)
    cdef void sink(self, Py_ssize_t place) except *
    @cython.locals(timer=TimerHandle, kept=list, place=Py_ssize_t)
    cdef void note_cancelled(self) except *
