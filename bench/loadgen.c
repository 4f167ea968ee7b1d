/* Load generator: N connections in a closed loop (each sends, waits for the whole answer, sends again).
 *
 * One thread, level-triggered epoll. Before anything is timed one connection is served to EOF (send, receive the
 * answer, shut down the sending side, wait for the server's close); then all connections run through a warm-up in
 * which every byte of every answer is compared, then through the measured window in which byte counts are. The CPU
 * clock of the server process is read at both ends of the window, so that its CPU time and the count of messages
 * belong to the same moments. One JSON object goes to stdout; any failure is one line on stderr and exit code 1.
 *
 * TLS loads the libssl it is given with dlopen and declares the few calls it needs: no OpenSSL headers needed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER = 256 * 1024,
    EVENTS = 1024,
    PATIENCE_MS = 5000, /* no answer on any connection for so long is a failure */
    EOF_WAIT_MS = 300,  /* some loops never close a connection at EOF; they have read it by then all the same */
    SUB_BITS = 9,       /* the latency histogram has 512 buckets an octave: 0.2 % wide */
    OCTAVES = 40,
};

enum { SSL_ERROR_WANT_READ = 2, SSL_ERROR_WANT_WRITE = 3 };

static struct {
    void *(*TLS_client_method)(void);
    void *(*SSL_CTX_new)(void *);
    long (*SSL_CTX_ctrl)(void *, int, long, void *);
    void *(*SSL_new)(void *);
    int (*SSL_set_fd)(void *, int);
    int (*SSL_connect)(void *);
    int (*SSL_read)(void *, void *, int);
    int (*SSL_write)(void *, const void *, int);
    int (*SSL_get_error)(void *, int);
    int (*SSL_shutdown)(void *);
} tls;
static void *tls_context;

struct connection {
    int fd;
    void *ssl;
    size_t sent, received;
    uint64_t began;
    uint32_t watched;
};

static struct {
    int port, connections, server_pid;
    size_t size;
    double warmup, seconds;
    uint64_t messages;
    const char *http, *libssl;
    bool hold;
} options = {.connections = 1, .size = 1024, .warmup = 0.25, .seconds = 1.0};

static int poller;
static char *request, *answer, buffer[BUFFER];
static size_t request_size, answer_size;
static bool verifying = true, closed_at_eof;
static uint64_t done_messages;
static uint32_t histogram[OCTAVES << SUB_BITS];

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        fail("clock: %s", strerror(errno));
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t server_cpu(void)
{
    clockid_t clock;
    if (options.server_pid == 0)
        return 0;
    if (clock_getcpuclockid(options.server_pid, &clock) != 0)
        fail("no process %d", options.server_pid);
    return nanoseconds(clock);
}

static void record(uint64_t value)
{
    unsigned shift = 0;
    while (value >> shift >= 2u << SUB_BITS)
        shift++;
    histogram[((size_t)shift << SUB_BITS) + (value >> shift)]++;
}

static double percentile(double fraction)
{
    uint64_t seen = 0, wanted = (uint64_t)((double)done_messages * fraction);
    for (size_t index = 0; index < sizeof histogram / sizeof *histogram; index++) {
        seen += histogram[index];
        if (seen > wanted) {
            unsigned shift = index < 2u << SUB_BITS ? 0 : (unsigned)(index >> SUB_BITS) - 1;
            uint64_t low = (uint64_t)(index - ((size_t)shift << SUB_BITS)) << shift;
            return ((double)low + (double)(1ull << shift) / 2) / 1000;
        }
    }
    return 0;
}

/* -1 with errno EAGAIN when it would wait, 0 at EOF, else a count of bytes: for plain and TLS alike. */
static ssize_t receive(struct connection *peer, void *into, size_t size)
{
    if (peer->ssl == NULL)
        return recv(peer->fd, into, size, 0);
    int count = tls.SSL_read(peer->ssl, into, (int)size);
    if (count > 0)
        return count;
    int error = tls.SSL_get_error(peer->ssl, count);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
        errno = EAGAIN;
        return -1;
    }
    return 0;
}

static ssize_t transmit(struct connection *peer, const void *from, size_t size)
{
    if (peer->ssl == NULL)
        return send(peer->fd, from, size, MSG_NOSIGNAL);
    int count = tls.SSL_write(peer->ssl, from, (int)size);
    if (count > 0)
        return count;
    int error = tls.SSL_get_error(peer->ssl, count);
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
    return -1;
}

static void watch(struct connection *peer, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (peer->watched == events)
        return;
    if (epoll_ctl(poller, peer->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, peer->fd, &event) != 0)
        fail("epoll_ctl: %s", strerror(errno));
    peer->watched = events;
}

static void send_more(struct connection *peer)
{
    while (peer->sent < request_size) {
        ssize_t count = transmit(peer, request + peer->sent, request_size - peer->sent);
        if (count < 0) {
            if (errno != EAGAIN)
                fail("send: %s", strerror(errno));
            break;
        }
        peer->sent += (size_t)count;
    }
    watch(peer, peer->sent < request_size ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void start_message(struct connection *peer, uint64_t now)
{
    peer->sent = peer->received = 0;
    peer->began = now;
    send_more(peer);
}

static void check(struct connection *peer, size_t count)
{
    if (peer->received + count > answer_size)
        fail("the server sent %zu bytes more than were due", peer->received + count - answer_size);
    if (options.http != NULL) {
        if (peer->received == 0 && (count < 12 || memcmp(buffer, "HTTP/1.1 200", 12) != 0))
            fail("an answer does not begin with HTTP/1.1 200");
    } else if (verifying && memcmp(buffer, answer + peer->received, count) != 0) {
        fail("an echo differs from what was sent");
    }
}

/* TLS may hold decrypted bytes that epoll cannot see: it is read until it would wait. */
static void receive_some(struct connection *peer, bool again)
{
    do {
        ssize_t count = receive(peer, buffer, sizeof buffer);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count <= 0)
            fail("the server closed a connection (%s)", count < 0 ? strerror(errno) : "EOF");
        check(peer, (size_t)count);
        peer->received += (size_t)count;
        if (peer->received == answer_size) {
            uint64_t now = nanoseconds(CLOCK_MONOTONIC);
            done_messages++;
            record(now - peer->began);
            if (!again)
                return;
            start_message(peer, now);
            if (peer->ssl == NULL)
                return;
        }
    } while (peer->ssl != NULL);
}

static void receive_timeout(int fd, int milliseconds)
{
    struct timeval timeout = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

static void open_connection(struct connection *peer)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    int yes = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(peer, 0, sizeof *peer);
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect: %s", strerror(errno));
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    receive_timeout(peer->fd, PATIENCE_MS);
    if (tls_context == NULL)
        return;
    peer->ssl = tls.SSL_new(tls_context);
    if (peer->ssl == NULL || !tls.SSL_set_fd(peer->ssl, peer->fd) || tls.SSL_connect(peer->ssl) != 1)
        fail("TLS handshake failed");
}

static void make_nonblocking(int fd)
{
    receive_timeout(fd, 0);
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0)
        fail("non-blocking: %s", strerror(errno));
}

static void learn_answer_size(size_t have)
{
    static const char length[] = "\r\ncontent-length:";
    buffer[have] = 0;
    char *body = strstr(buffer, "\r\n\r\n"), *header = strcasestr(buffer, length);
    if (body == NULL || header == NULL || header > body)
        fail("the first HTTP answer has no Content-Length");
    answer_size = (size_t)(body + 4 - buffer) + strtoul(header + sizeof length - 1, NULL, 10);
}

/* One connection on a blocking socket: a message, its answer, our EOF, and (where the loop does close then) the server's. */
static void serve_one_to_eof(void)
{
    struct connection peer;
    size_t have = 0;
    ssize_t count;
    open_connection(&peer);
    for (size_t sent = 0; sent < request_size; sent += (size_t)count) {
        /* In pieces, so that neither side's socket buffers fill while nobody reads. */
        size_t piece = request_size - sent > 16384 ? 16384 : request_size - sent;
        count = transmit(&peer, request + sent, piece);
        if (count <= 0)
            fail("send: %s", strerror(errno));
        while (options.http == NULL && have < sent + (size_t)count) {
            ssize_t got = receive(&peer, buffer, sizeof buffer);
            if (got <= 0)
                fail("the first connection got no answer");
            have += (size_t)got;
        }
    }
    while (options.http != NULL && (answer_size == 0 || have < answer_size)) {
        count = receive(&peer, buffer + have, sizeof buffer - 1 - have);
        if (count <= 0)
            fail("the first connection got no answer");
        have += (size_t)count;
        learn_answer_size(have);
    }
    if (have != answer_size)
        fail("the first answer has %zu bytes, not %zu", have, answer_size);
    if (peer.ssl != NULL)
        tls.SSL_shutdown(peer.ssl);
    shutdown(peer.fd, SHUT_WR);
    receive_timeout(peer.fd, EOF_WAIT_MS);
    while ((count = recv(peer.fd, buffer, sizeof buffer, 0)) > 0)
        ;
    closed_at_eof = count == 0;
    close(peer.fd);
}

static void load_tls(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == NULL)
        fail("%s", dlerror());
#define LOAD(name)                                                  \
    if ((*(void **)&tls.name = dlsym(library, #name)) == NULL)      \
        fail("%s has no %s", path, #name);
    LOAD(TLS_client_method)
    LOAD(SSL_CTX_new)
    LOAD(SSL_CTX_ctrl)
    LOAD(SSL_new)
    LOAD(SSL_set_fd)
    LOAD(SSL_connect)
    LOAD(SSL_read)
    LOAD(SSL_write)
    LOAD(SSL_get_error)
    LOAD(SSL_shutdown)
    enum { MODE = 33, SET_READ_AHEAD = 41, PARTIAL_AND_MOVING = 1 | 2 };
    tls_context = tls.SSL_CTX_new(tls.TLS_client_method());
    if (tls_context == NULL)
        fail("no TLS context");
    tls.SSL_CTX_ctrl(tls_context, MODE, PARTIAL_AND_MOVING, NULL);
    tls.SSL_CTX_ctrl(tls_context, SET_READ_AHEAD, 1, NULL);
}

static void run_until(uint64_t deadline, uint64_t messages, bool again)
{
    static struct epoll_event events[EVENTS];
    while (done_messages < messages && nanoseconds(CLOCK_MONOTONIC) < deadline) {
        int count = epoll_wait(poller, events, EVENTS, PATIENCE_MS);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        if (count == 0)
            fail("no answer for %d ms after %llu messages", PATIENCE_MS, (unsigned long long)done_messages);
        for (int index = 0; index < count; index++) {
            struct connection *peer = events[index].data.ptr;
            if (events[index].events & EPOLLOUT)
                send_more(peer);
            if (events[index].events & ~(uint32_t)EPOLLOUT)
                receive_some(peer, again);
        }
    }
}

static void hold(void)
{
    char byte;
    run_until(UINT64_MAX, (uint64_t)options.connections, false);
    printf("{\"connections\": %d}\n", options.connections);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
}

static void measure(void)
{
    run_until(nanoseconds(CLOCK_MONOTONIC) + (uint64_t)(options.warmup * 1e9), UINT64_MAX, true);
    verifying = false;
    done_messages = 0;
    memset(histogram, 0, sizeof histogram);
    uint64_t began = nanoseconds(CLOCK_MONOTONIC), own = nanoseconds(CLOCK_PROCESS_CPUTIME_ID), server = server_cpu();
    uint64_t deadline = options.messages ? UINT64_MAX : began + (uint64_t)(options.seconds * 1e9);
    run_until(deadline, options.messages ? options.messages : UINT64_MAX, true);
    server = server_cpu() - server;
    own = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - own;
    double wall = (double)(nanoseconds(CLOCK_MONOTONIC) - began) / 1e9;
    printf("{\"messages\": %llu, \"wall_s\": %.6f, \"per_second\": %.1f, \"p50_us\": %.3f, \"p99_us\": %.3f, "
           "\"client_cpu_s\": %.6f, \"server_cpu_s\": %.6f, \"answer_bytes\": %zu, \"closed_at_eof\": %s}\n",
           (unsigned long long)done_messages, wall, (double)done_messages / wall, percentile(0.50), percentile(0.99),
           (double)own / 1e9, (double)server / 1e9, answer_size,
           closed_at_eof ? "true" : "false");
}

static void prepare_messages(void)
{
    if (options.http != NULL) {
        if (asprintf(&request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\n\r\n", options.http,
                     options.port) < 0)
            fail("no memory");
        request_size = strlen(request);
        return;
    }
    request_size = answer_size = options.size;
    request = answer = malloc(options.size);
    if (request == NULL)
        fail("no memory");
    for (size_t index = 0; index < options.size; index++)
        request[index] = (char)('!' + (index * 31 + index / 251) % 94);
}

static void usage(void)
{
    fputs("usage: loadgen --port P [--connections N] [--size BYTES | --http PATH] [--tls LIBSSL.SO]\n"
          "               [--warmup S] [--seconds S | --messages M] [--server-pid PID] [--hold]\n"
          "--hold: one message on each connection, then keep them open and idle until stdin ends\n",
          stderr);
    exit(2);
}

static void parse(int count, char **words)
{
    for (int index = 1; index < count; index++) {
        const char *name = words[index];
        if (strcmp(name, "--hold") == 0) {
            options.hold = true;
            continue;
        }
        const char *value = index + 1 < count ? words[++index] : NULL;
        if (value == NULL)
            usage();
        if (strcmp(name, "--port") == 0)
            options.port = atoi(value);
        else if (strcmp(name, "--connections") == 0)
            options.connections = atoi(value);
        else if (strcmp(name, "--size") == 0)
            options.size = strtoul(value, NULL, 10);
        else if (strcmp(name, "--http") == 0)
            options.http = value;
        else if (strcmp(name, "--tls") == 0)
            options.libssl = value;
        else if (strcmp(name, "--warmup") == 0)
            options.warmup = atof(value);
        else if (strcmp(name, "--seconds") == 0)
            options.seconds = atof(value);
        else if (strcmp(name, "--messages") == 0)
            options.messages = strtoull(value, NULL, 10);
        else if (strcmp(name, "--server-pid") == 0)
            options.server_pid = atoi(value);
        else
            usage();
    }
    if (options.port <= 0 || options.connections <= 0 || options.size == 0)
        usage();
}

int main(int count, char **words)
{
    parse(count, words);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (options.libssl != NULL)
        load_tls(options.libssl);
    prepare_messages();
    serve_one_to_eof();
    struct connection *peers = calloc((size_t)options.connections, sizeof *peers);
    if (peers == NULL)
        fail("no memory");
    for (int index = 0; index < options.connections; index++) {
        open_connection(&peers[index]);
        make_nonblocking(peers[index].fd);
    }
    for (int index = 0; index < options.connections; index++)
        start_message(&peers[index], nanoseconds(CLOCK_MONOTONIC));
    if (options.hold)
        hold();
    else
        measure();
    return 0;
}
