"""The system calls under the event loop; the only module that talks to libc.

What epoll promises, and how it is used here:

* **Level-triggered, it repeats itself.** A descriptor is reported for as long as it is ready, so one `recv` per report is
  enough: what it leaves behind is reported again. That is how all but TCP connections are watched.
* **Edge-triggered (EPOLLET), it speaks once** per arrival, and is then the cheaper of the two: nothing is looked at a
  second time. Who asks for it has to know when a socket is empty, or full. TCP connections are watched so; see
  `transport`.
* **A registration belongs to the open file, not to the number.** The kernel forgets it only when the last duplicate of
  the file is closed, so an event can arrive for a number that has been closed and given to another file meanwhile. Each
  registration therefore carries a generation beside the number, and an event whose generation is not the current one
  is dropped. If such an event cannot be silenced (the number is no longer ours to remove), the epoll set is rebuilt.
* **It says nothing of regular files.** They are always ready; `EPERM` is what registering one answers.
* **Hang-up and error need no subscription**, and are reported in both directions, so that a reader and a writer both
  find out by trying.

Every descriptor made here is close-on-exec, and every socket call says MSG_DONTWAIT: the GIL is released around
`epoll_wait` alone, the only call that may wait.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.ref cimport Py_DECREF, Py_XDECREF, PyObject
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, EBADF, EEXIST, EINTR, ENOENT, EPERM, errno
from libc.math cimport ceil
from libc.string cimport memset
from posix.unistd cimport close, read, write


cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize_ "PyBytes_FromStringAndSize"(const char *start, Py_ssize_t length) except NULL
    char *PyBytes_AS_STRING_ "PyBytes_AS_STRING"(PyObject *data)
    int _PyBytes_Resize(PyObject **data, Py_ssize_t length) except -1


cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

    ssize_t writev(int fd, const iovec *vector, int count)


cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen

    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t send(int fd, const void *buffer, size_t length, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL


cdef extern from "<sys/epoll.h>" nogil:
    cdef union epoll_data:
        uint64_t u64

    cdef struct epoll_event:
        uint32_t events
        epoll_data data

    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int capacity, int timeout)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    uint32_t EPOLLIN
    uint32_t EPOLLPRI
    uint32_t EPOLLOUT
    uint32_t EPOLLRDHUP
    uint32_t EPOLLERR
    uint32_t EPOLLHUP
    uint32_t EPOLLET


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    int EFD_CLOEXEC
    int EFD_NONBLOCK


cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec

    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC


cdef enum:
    EVENT_BATCH = 1024       # events taken from the kernel at a time
    BUFFER_SIZE = 262144     # bytes; the most one read delivers, as in asyncio
    LARGE_READ = 16384       # bytes; a read of this size and more lets the next one be direct
    DIRECT_SIZE = 122880     # bytes; below M_MMAP_THRESHOLD's default of 128 KiB
    VECTOR_LIMIT = 1024      # Linux's IOV_MAX
    STALE_LIMIT = 100        # events for closed files, before the set is made anew
    LONGEST_WAIT = 86400000  # ms; one day, so that no timeout overflows


# What to ask for, and what a report means: an error and a hang-up concern both directions.
ASK_READ = EPOLLIN
ASK_WRITE = EPOLLOUT
ASK_EDGES = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET
CAN_READ = EPOLLIN | EPOLLERR | EPOLLHUP
CAN_WRITE = EPOLLOUT | EPOLLERR | EPOLLHUP
BROKEN = EPOLLERR | EPOLLHUP


cdef long channels_alive = 0


def live_channels() -> int:
    """How many channels (transports, watchers) are alive in this process."""
    return channels_alive


cdef class Poller:
    """One epoll set, the eventfd that wakes it, and the channels registered with it, by descriptor."""

    def __cinit__(self):
        self.epoll_fd = self.wake_fd = -1
        self.channels = []
        self.events = PyMem_Malloc(EVENT_BATCH * sizeof(epoll_event))
        self.buffer = <char *>PyMem_Malloc(BUFFER_SIZE)
        self.vectors = PyMem_Malloc(VECTOR_LIMIT * sizeof(iovec))
        if self.events == NULL or self.buffer == NULL or self.vectors == NULL:
            raise MemoryError()
        self.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.wake_fd < 0:
            PyErr_SetFromErrno(OSError)
        self.open()

    def __dealloc__(self):
        self.close()
        PyMem_Free(self.events)
        PyMem_Free(self.buffer)
        PyMem_Free(self.vectors)

    def open(self):
        """Create the epoll set, with the eventfd in it; registrations are the caller's."""
        cdef epoll_event event
        self.stale = 0
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            PyErr_SetFromErrno(OSError)
        event.events = EPOLLIN
        event.data.u64 = <uint64_t><uint32_t>self.wake_fd  # generation 0 is the eventfd's alone
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.wake_fd, &event) < 0:
            PyErr_SetFromErrno(OSError)

    def close(self):
        """Close both descriptors and forget every channel; may be called again."""
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
            self.epoll_fd = -1
        if self.wake_fd >= 0:
            close(self.wake_fd)
            self.wake_fd = -1
        self.count = self.next = 0
        self.channels = []

    def disown(self):
        """In a forked child: close the descriptors shared with the parent and refuse to wait from now on."""
        self.close()
        self.forked = True

    def registered(self) -> list:
        """The channels registered now."""
        return [channel for channel in self.channels if channel is not None]

    def holder(self, Py_ssize_t fd):
        """The channel registered under this number, or None."""
        return self.channels[fd] if fd < len(self.channels) else None

    def filenos(self) -> tuple:
        """The poller's own two descriptors: `(epoll, eventfd)`."""
        return self.epoll_fd, self.wake_fd

    cdef double now(self) noexcept:
        """Seconds of the monotonic clock, the one `time.monotonic()` reads."""
        cdef timespec moment
        clock_gettime(CLOCK_MONOTONIC, &moment)
        return <double>moment.tv_sec + <double>moment.tv_nsec * 1e-9

    cdef int check_signals(self) except -1:
        """Run the Python signal handlers that are due."""
        return PyErr_CheckSignals()

    cdef int wait(self, double timeout) except -1:
        """Fetch ready events: at most `timeout` seconds (rounded up to a millisecond), for ever if it is negative.

        Events of an earlier, interrupted dispatch come first. Raises what a Python signal handler raises.
        """
        cdef int count, milliseconds = 0
        self.active = None
        if self.next < self.count:
            return 0
        if self.forked:
            raise RuntimeError("this event loop belongs to the parent process; make a new one after os.fork()")
        if timeout == 0:
            count = epoll_wait(self.epoll_fd, <epoll_event *>self.events, EVENT_BATCH, 0)
        else:
            if timeout < 0:
                milliseconds = -1
            elif timeout * 1e3 >= LONGEST_WAIT:
                milliseconds = LONGEST_WAIT
            else:
                milliseconds = <int>ceil(timeout * 1e3)
            self.waiting = True
            with nogil:
                count = epoll_wait(self.epoll_fd, <epoll_event *>self.events, EVENT_BATCH, milliseconds)
            self.waiting = False
        self.next = self.count = 0
        if count > 0:
            self.count = count
        elif count < 0 and errno != EINTR:
            PyErr_SetFromErrno(OSError)
        return 0

    cdef int dispatch(self) except -1:
        """Hand each fetched event to its channel; what is left after an exception is handed out next time."""
        cdef epoll_event *event
        cdef Channel channel
        cdef uint32_t fd, generation
        cdef uint64_t value
        while self.next < self.count:
            event = <epoll_event *>self.events + self.next
            self.next += 1
            fd = <uint32_t>event.data.u64
            generation = <uint32_t>(event.data.u64 >> 32)
            if generation == 0:
                self.woken = False
                read(self.wake_fd, &value, sizeof(value))
                continue
            channel = None
            if fd < <uint32_t>len(self.channels):
                channel = <Channel>self.channels[fd]
            if channel is not None and channel.generation == generation:
                self.stale = 0
                self.active = channel  # whom to blame if an exception comes out of it
                channel.on_events(event.events)
            else:
                # Usual once, for a channel closed by an event before this one; without end, where a duplicate
                # keeps a closed file alive in the set.
                self.stale += 1
                if self.stale == STALE_LIMIT:
                    self.active = None
                    self.rebuild()
        self.active = None
        return 0

    cdef int wake(self) except -1:
        """End a wait that is under way in another thread, or that a signal handler has interrupted."""
        cdef uint64_t one = 1
        if self.waiting and not self.woken:
            self.woken = True
            write(self.wake_fd, &one, sizeof(one))
        return 0

    cdef int control(self, Channel channel, int operation, uint32_t interest) except -1:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = interest
        if self.epoll_fd < 0:
            if operation == EPOLL_CTL_DEL:
                return 0
            raise RuntimeError("Event loop is closed")
        event.data.u64 = (<uint64_t>channel.generation << 32) | <uint32_t>channel.fd
        if epoll_ctl(self.epoll_fd, operation, channel.fd, &event) == 0:
            return 0
        if operation == EPOLL_CTL_DEL and (errno == ENOENT or errno == EBADF or errno == EPERM):
            return 0  # closed by its owner: the kernel has forgotten it already
        if operation == EPOLL_CTL_ADD and errno == EEXIST:
            operation = EPOLL_CTL_MOD
        elif operation == EPOLL_CTL_MOD and errno == ENOENT:
            operation = EPOLL_CTL_ADD
        else:
            PyErr_SetFromErrno(OSError)
        if epoll_ctl(self.epoll_fd, operation, channel.fd, &event) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    cdef int rebuild(self) except -1:
        """Start a new epoll set with the current channels, rid of registrations that outlived their numbers."""
        cdef Channel channel
        close(self.epoll_fd)
        self.open()
        self.count = self.next = 0  # a new registration reports anew what is ready
        for channel in self.registered():
            try:
                self.control(channel, EPOLL_CTL_ADD, channel.interest)
            except OSError:  # closed by its owner without a word
                channel.interest = 0
                self.channels[channel.fd] = None
        return 0


cdef class Channel:
    """A descriptor registered with a poller; subclasses say what its events mean.

    It does not own the descriptor. Reads and writes return -1 where the call would have to wait.
    """

    def __cinit__(self, *args, **kwargs):
        global channels_alive
        self.fd = -1
        channels_alive += 1

    def __dealloc__(self):
        global channels_alive
        channels_alive -= 1

    cdef int on_events(self, uint32_t events) except -1:
        """Called with the epoll event mask. The loop reports what comes out of it."""
        raise NotImplementedError

    cdef bint attached(self) noexcept:
        """Whether the channel is the one registered under its number."""
        return (
            self.fd >= 0 and self.fd < len(self.poller.channels) and self.poller.channels[self.fd] is self
        )

    cdef int arm(self, uint32_t interest) except -1:
        """Ask for these events from now on; 0 takes the channel out of the set."""
        if interest == self.interest:
            return 0
        return self.rearm(interest)

    cdef int rearm(self, uint32_t interest) except -1:
        """`arm` for a descriptor that somebody else may have closed or registered since: always asks the kernel."""
        cdef Poller poller = self.poller
        cdef list channels = poller.channels
        cdef bint attached = self.attached()
        if interest == 0:
            self.interest = 0
            if attached:
                channels[self.fd] = None
                poller.control(self, EPOLL_CTL_DEL, 0)
        elif attached and self.interest:
            try:
                poller.control(self, EPOLL_CTL_MOD, interest)
            except OSError:
                if interest & ~self.interest:
                    raise
                interest = 0  # less was wanted of a descriptor that its owner has closed: it is not even there
                channels[self.fd] = None
            self.interest = interest
        else:
            poller.generation += 1
            if poller.generation == 0:
                poller.generation = 1
            self.generation = poller.generation
            poller.control(self, EPOLL_CTL_ADD, interest)
            while len(channels) <= self.fd:
                channels.append(None)
            channels[self.fd] = self
            self.interest = interest
        return 0

    cdef object receive(self, Py_ssize_t limit):
        """Read once, at most `limit` bytes: the bytes, empty at the end of the stream, or None.

        Small reads go through the poller's buffer and are copied out at their size. Where the last read was large the
        next one goes straight into the object that is returned, which is then cut to size; below the size from which
        glibc would map memory for each of them, for that costs more than the copy.
        """
        cdef Py_ssize_t count
        cdef char *target = self.poller.buffer
        cdef PyObject *data = NULL
        if limit > BUFFER_SIZE:
            limit = BUFFER_SIZE
        if self.large and limit > DIRECT_SIZE:
            limit = DIRECT_SIZE
            data = PyBytes_FromStringAndSize_(NULL, limit)
            target = PyBytes_AS_STRING_(data)
        while True:
            if self.is_socket:
                count = recv(self.fd, target, limit, MSG_DONTWAIT)
            else:
                count = read(self.fd, target, limit)
            if count >= 0 or errno != EINTR:
                break
            PyErr_CheckSignals()
        if count >= 0:
            self.large = count >= LARGE_READ
            self.full = count == limit
            if data == NULL:
                return PyBytes_FromStringAndSize(target, count)
            _PyBytes_Resize(&data, count)
            result = <object>data
            Py_DECREF(result)
            return result
        Py_XDECREF(data)
        if errno == EAGAIN:
            return None
        PyErr_SetFromErrno(OSError)

    cdef Py_ssize_t receive_into(self, object buffer) except -2:
        """Read once into a writable buffer: the count, 0 at the end of the stream (or for an empty buffer), or -1."""
        cdef Py_buffer view
        cdef Py_ssize_t count
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        except BufferError:
            raise TypeError(f"a read-write bytes-like object is required, not {type(buffer).__name__!r}") from None
        try:
            while True:
                count = recv(self.fd, view.buf, view.len, MSG_DONTWAIT)
                if count >= 0:
                    self.full = count == view.len
                    return count
                if errno == EAGAIN:
                    return -1
                if errno != EINTR:
                    PyErr_SetFromErrno(OSError)
                PyErr_CheckSignals()
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t send(self, object data) except -2:
        """Write once from any contiguous buffer: the count taken, or -1."""
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            return self.transmit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.transmit(<const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t send_from(self, bytes data, Py_ssize_t start) except -2:
        """Write once from `data[start:]`, without a copy: the count taken, or -1."""
        return self.transmit(PyBytes_AS_STRING(data) + start, PyBytes_GET_SIZE(data) - start)

    cdef Py_ssize_t transmit(self, const char *start, Py_ssize_t length) except -2:
        cdef Py_ssize_t count
        while True:
            if self.is_socket:
                count = send(self.fd, start, length, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                count = write(self.fd, start, length)
            if count >= 0:
                return count
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()

    cdef Py_ssize_t send_many(self, list buffers, Py_ssize_t first, Py_ssize_t start) except -2:
        """Write once from the `bytes` in `buffers[first:]`, the first of them from `start` on: the count, or -1."""
        cdef iovec *vectors = <iovec *>self.poller.vectors
        cdef msghdr message
        cdef Py_ssize_t count, index, total = len(buffers)
        cdef int used = 0
        for index in range(first, total):
            if used == VECTOR_LIMIT:
                break
            data = buffers[index]
            vectors[used].iov_base = PyBytes_AS_STRING(data) + start
            vectors[used].iov_len = PyBytes_GET_SIZE(data) - start
            start = 0
            used += 1
        memset(&message, 0, sizeof(message))
        message.msg_iov = vectors
        message.msg_iovlen = used
        while True:
            if self.is_socket:
                count = sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                count = writev(self.fd, vectors, used)
            if count >= 0:
                return count
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
