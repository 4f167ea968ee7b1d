# cython: language_level=3
cimport cython

from unwait.loop.handles cimport Handle, Origin, TimerHandle, TimerHeap
from unwait.loop.kernel cimport Poller

cdef Py_ssize_t CALLBACKS_PER_POLL
cdef double QUICK
cdef bint FACTORIES_TAKE_NAMES
cdef int POLL, RUN_READY, RUN_EVENTS, RUN_TIMERS
cdef object CANCELLED


cdef class ReadyQueue:
    cdef Handle head
    cdef Handle tail
    cdef readonly Py_ssize_t length

    cdef object push(self, Handle handle)
    @cython.locals(handle=Handle)
    cdef Handle pop(self)


cdef class Core:
    cdef readonly Poller poller
    cdef Origin origin
    cdef Py_ssize_t other_references
    cdef ReadyQueue ready
    cdef TimerHeap timers
    cdef ReadyQueue due
    cdef Py_ssize_t unpolled
    cdef Py_ssize_t remaining
    cdef Handle current
    cdef int phase
    cdef double now
    cdef double polled_at
    cdef Py_ssize_t poll_interval
    cdef bint other_clock
    cdef public bint _closed
    cdef public bint _stopping
    cdef public bint _debug
    cdef public object _thread_id
    cdef unsigned long thread
    cdef public object _task_factory
    cdef public object _current_handle
    cdef public double slow_callback_duration
    cdef bytearray datagram_buffer  # one a loop: loops in other threads must not share it

    @cython.locals(handle=Handle)
    cdef Handle enqueue(self, object callback, tuple args, object context)
    @cython.locals(handle=Handle)
    cdef Handle make_handle(self, object callback, tuple args, object context)
    cdef object run_handle(self, Handle handle)
    @cython.locals(timer=TimerHandle)
    cdef TimerHandle schedule(self, double deadline, object callback, tuple args, object context, str method)
    cdef object note_slow(self, object subject, double started)
    cdef object spin_until_failure(self)
    cdef double clock(self) except? -1
    @cython.locals(timeout=double, previous=double)
    cdef object poll(self)
    cdef object run_once(self)
    @cython.locals(handle=Handle)
    cdef object run_handles(self, ReadyQueue queue)
    @cython.locals(timer=TimerHandle, delay=double)
    cdef double longest_wait(self) except? -2
    @cython.locals(timer=TimerHandle)
    cdef object collect_timers(self)
