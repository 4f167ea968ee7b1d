# cython: language_level=3
cimport cython

from unwait.loop.handles cimport Handle, ReadyQueue, TimerHandle, TimerHeap
from unwait.loop.kernel cimport Poller


cdef class Core:
    cdef readonly Poller poller
    cdef ReadyQueue ready
    cdef TimerHeap timers
    cdef Py_ssize_t unpolled
    cdef public bint _closed
    cdef public bint _stopping
    cdef public bint _debug
    cdef public object _thread_id
    cdef public object _task_factory
    cdef public object _current_handle
    cdef public double slow_callback_duration
    cdef bytearray datagram_buffer  # one a loop: loops in other threads must not share it

    @cython.locals(handle=Handle)
    cdef Handle enqueue(self, object callback, tuple args, object context)
    @cython.locals(handle=Handle)
    cdef Handle make_handle(self, object callback, tuple args, object context)
    cdef void run_handle(self, Handle handle) except *
    @cython.locals(timer=TimerHandle)
    cdef TimerHandle schedule(self, double deadline, object callback, tuple args, object context, str method)
    cdef void note_slow(self, object subject, double started) except *
    @cython.locals(poller=Poller, ready=ReadyQueue, timers=TimerHeap, timer=TimerHandle, handle=Handle,
                   timeout=double, now=double, count=Py_ssize_t)
    cdef void run_once(self) except *
    @cython.locals(timer=TimerHandle, delay=double)
    cdef double longest_wait(self) except? -2
