# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

cdef object CANCELLED


cdef class Origin:
    cdef readonly object loop


cdef class Handle:
    cdef object __weakref__
    cdef public object _callback
    cdef object args
    cdef public object _context
    cdef Origin origin
    cdef object notes
    cdef Handle next

    cdef object fill(self, object callback, tuple args, Origin origin, object context)
    @cython.locals(args=tuple)
    cdef object run(self)
    cpdef object _run(self)
    cdef object trace(self)
    cdef str source(self)
    cdef object report(self, object exc)
    cdef object release(self)


cdef class TimerHandle(Handle):
    cdef double deadline
    cdef uint64_t sequence
    cdef TimerHeap heap

    cdef bint before(self, TimerHandle other) noexcept


cdef class TimerHeap:
    cdef list items
    cdef readonly Py_ssize_t cancelled
    cdef uint64_t sequence

    cdef object push(self, TimerHandle timer)
    @cython.locals(top=TimerHandle)
    cdef TimerHandle pop(self)
    cdef TimerHandle first(self)
    @cython.locals(timer=TimerHandle, above=TimerHandle, parent=Py_ssize_t)
    cdef object rise(self, Py_ssize_t place)
    @cython.locals(timer=TimerHandle, below=TimerHandle, child=Py_ssize_t, size=Py_ssize_t)
    cdef object sink(self, Py_ssize_t place)
    @cython.locals(timer=TimerHandle, kept=list, place=Py_ssize_t)
    cdef object note_cancelled(self)
