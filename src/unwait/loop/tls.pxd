# cython: language_level=3
cimport cython

from unwait.loop.tls_engine cimport TLSEngine


cdef int UNWRAPPED
cdef int DO_HANDSHAKE
cdef int WRAPPED
cdef int FLUSHING
cdef int SHUTDOWN
cdef int APP_INIT
cdef int APP_CONNECTED
cdef int APP_EOF
cdef int APP_LOST
cdef Py_ssize_t NOISY_WRITES
cdef Py_ssize_t ANY_SIZE


@cython.final
cdef class TLSProtocol:
    cdef readonly object app_transport
    cdef readonly object app_protocol
    cdef object _loop
    cdef object _sslcontext
    cdef object _waiter
    cdef object _transport
    cdef object _raw_write
    cdef object _timer
    cdef object _handshake_timeout
    cdef object _shutdown_timeout
    cdef double _handshake_started

    cdef int _state
    cdef int _app_state
    cdef bint _established
    cdef bint _eof_received
    cdef bint _in_app
    cdef bint _app_buffered
    cdef bint _app_reading_paused
    cdef bint _app_writing_paused
    cdef bint _raw_reading_paused
    cdef bint _raw_writing_paused
    cdef Py_ssize_t _writes_after_close

    cdef TLSEngine _engine
    cdef object _peercert
    cdef object _cipher
    cdef object _compression

    cdef object _backlog
    cdef Py_ssize_t _backlog_size
    cdef Py_ssize_t _read_high
    cdef Py_ssize_t _read_low
    cdef Py_ssize_t _write_high
    cdef Py_ssize_t _write_low
    cdef object __weakref__

    @cython.locals(state=int)
    cpdef data_received(self, data)
    cpdef pause_writing(self)
    cpdef resume_writing(self)

    cdef _set_state(self, int new_state)
    cdef set_app_protocol(self, protocol)
    cdef get_extra_info(self, name, default)

    cdef _do_handshake(self)
    cdef _on_handshake_complete(self, exc)
    cdef _wake_waiter(self, exc)
    cdef _cancel_timer(self)

    cdef _read(self, Py_ssize_t expected)
    @cython.locals(engine=TLSEngine, size=Py_ssize_t, filled=Py_ssize_t)
    cdef _fill_buffers(self)
    cdef _on_peer_closed(self)
    cdef _call_eof_received(self)
    cdef pause_app_reading(self)
    cdef resume_app_reading(self)
    cdef Py_ssize_t read_buffer_size(self) except -1
    cdef set_read_limits(self, high, low)
    @cython.locals(size=Py_ssize_t)
    cdef _control_raw_reading(self)

    @cython.locals(state=int, size=Py_ssize_t, done=Py_ssize_t)
    cdef write(self, data)
    cdef append_backlog(self, data)
    @cython.locals(engine=TLSEngine, done=Py_ssize_t)
    cdef Py_ssize_t _encrypt(self, data, Py_ssize_t size) except -1
    @cython.locals(size=Py_ssize_t, done=Py_ssize_t)
    cdef _encrypt_backlog(self)
    cdef _send(self)
    cdef _flush(self)
    @cython.locals(size=Py_ssize_t)
    cdef Py_ssize_t write_buffer_size(self) except -1
    cdef set_write_limits(self, high, low)
    @cython.locals(size=Py_ssize_t)
    cdef _control_app_writing(self)

    cdef start_shutdown(self)
    cdef _do_flush(self)
    cdef _do_shutdown(self)
    cdef abort(self, exc)
    cdef _force_close_raw(self, exc)
    cdef _fatal_error(self, exc, message)
