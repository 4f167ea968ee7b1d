/* A bare epoll echo server: what the kernel alone costs, the yardstick of the possible.
 *
 * One thread, level-triggered epoll, one read buffer. What the socket does not take at once is kept, and nothing more
 * is read from that connection until it is gone. Prints {"port": N} and serves 127.0.0.1 until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, EVENTS = 1024, BACKLOG = 4096 };

struct connection {
    int fd;
    char *pending;
    size_t offset, size;
};

static char buffer[BUFFER];
static int poller;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int operation, struct connection *peer, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(poller, operation, peer->fd, &event) != 0)
        fail("epoll_ctl");
}

static void close_connection(struct connection *peer)
{
    close(peer->fd);
    free(peer->pending);
    free(peer);
}

static void accept_all(int listener)
{
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *peer = calloc(1, sizeof *peer);
        if (peer == NULL)
            fail("calloc");
        peer->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        watch(EPOLL_CTL_ADD, peer, EPOLLIN);
    }
}

static void echo(struct connection *peer)
{
    ssize_t size = recv(peer->fd, buffer, sizeof buffer, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        close_connection(peer);
        return;
    }
    ssize_t sent = send(peer->fd, buffer, (size_t)size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN)
        sent = 0;
    if (sent < 0) {
        close_connection(peer);
    } else if (sent < size) {
        peer->size = (size_t)(size - sent);
        peer->offset = 0;
        peer->pending = malloc(peer->size);
        if (peer->pending == NULL)
            fail("malloc");
        memcpy(peer->pending, buffer + sent, peer->size);
        watch(EPOLL_CTL_MOD, peer, EPOLLOUT);
    }
}

static void flush(struct connection *peer)
{
    ssize_t sent = send(peer->fd, peer->pending + peer->offset, peer->size - peer->offset, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN)
        return;
    if (sent < 0) {
        close_connection(peer);
        return;
    }
    peer->offset += (size_t)sent;
    if (peer->offset == peer->size) {
        free(peer->pending);
        peer->pending = NULL;
        watch(EPOLL_CTL_MOD, peer, EPOLLIN);
    }
}

int main(void)
{
    static struct epoll_event events[EVENTS];
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    struct connection listener = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener.fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener.fd, BACKLOG) != 0)
        fail("listen");
    getsockname(listener.fd, (struct sockaddr *)&address, &length);
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(EPOLL_CTL_ADD, &listener, EPOLLIN);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int index = 0; index < count; index++) {
            struct connection *peer = events[index].data.ptr;
            if (peer == &listener)
                accept_all(listener.fd);
            else if (events[index].events & EPOLLOUT)
                flush(peer);
            else
                echo(peer);
        }
    }
}
