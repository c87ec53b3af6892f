/* The load generator: a closed or an open loop over many connections, in one thread.
 *
 * In the closed loop each connection keeps `depth` requests outstanding. In the open loop requests are sent when they
 * are due, answered or not, in turn over the connections; a latency then counts from the moment when the request was
 * due, so that neither a late generator nor a stalled server makes the waiting look shorter. Requests and answers come prepared from Python as two
 * tables of fixed-length entries, and every connection goes round the tables from a place of its own, so that
 * this file knows no protocol: it sends bytes, compares every byte that comes back with the one that must,
 * and keeps the time. The tables repeat their first `depth` entries at the end, so that whatever is
 * outstanding is one run of bytes.
 *
 * Also here: a server that echoes, to measure the generator itself against.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Log-linear: 128 steps to every doubling, so that a bucket is at most 0.8 % wide. */
#define STEP_BITS 7
#define STEPS (1u << STEP_BITS)

#define MAX_EVENTS 256
#define ECHO_BYTES (256 * 1024)

/* A server that is silent for so long is broken, and the run with it. */
#define PATIENCE_MS 5000

enum outcome { DONE = 0, WRONG_ANSWER = 1, HUNG_UP = 2, SILENT = 3, SYSTEM_ERROR = 4 };

struct plan {
    const int32_t *fds;
    const uint8_t *requests;
    const uint8_t *answers;
    uint64_t *histogram;
    uint64_t request_bytes, answer_bytes, pool, connections, depth, duration_ns, buckets;
    /* The open loop only: when each request is due, from the beginning, ascending; and how late they were sent. */
    const uint64_t *due_ns;
    uint64_t *lateness;
    uint64_t due;
};

struct result {
    uint64_t answered_in_time; /* within the duration; these are in the histogram */
    uint64_t answered;         /* with those still outstanding at its end */
    uint64_t elapsed_ns;       /* until the last answer */
    uint64_t cpu_ns;           /* of this thread */
    int64_t error_number;
};

struct connection {
    int fd;
    uint64_t next_request; /* place in the table of requests */
    uint64_t received;     /* place in the table of answers, in bytes */
    uint64_t outstanding;
    uint64_t oldest; /* place of the oldest outstanding request in `sent_at` */
    uint64_t *sent_at;
};

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t bucket_of(uint64_t value)
{
    if (value < STEPS)
        return value;
    unsigned doublings = 63u - (unsigned)__builtin_clzll(value) - STEP_BITS;
    return ((uint64_t)(doublings + 1) << STEP_BITS) + (value >> doublings) - STEPS;
}

static enum outcome send_all(int fd, const uint8_t *data, uint64_t count)
{
    while (count) {
        ssize_t sent = send(fd, data, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            data += sent;
            count -= (uint64_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            if (poll(&writable, 1, PATIENCE_MS) == 0)
                return SILENT;
        } else if (errno != EINTR) {
            return errno == EPIPE || errno == ECONNRESET ? HUNG_UP : SYSTEM_ERROR;
        }
    }
    return DONE;
}

static void count_in(const struct plan *plan, uint64_t *histogram, uint64_t value)
{
    uint64_t bucket = bucket_of(value);
    histogram[bucket < plan->buckets ? bucket : plan->buckets - 1]++;
}

static enum outcome ask(const struct plan *plan, struct connection *c, uint64_t count, uint64_t when)
{
    uint64_t first = c->next_request;
    for (uint64_t i = 0; i < count; i++)
        c->sent_at[(c->oldest + c->outstanding + i) % plan->depth] = when;
    c->outstanding += count;
    c->next_request = (first + count) % plan->pool;
    return send_all(c->fd, plan->requests + first * plan->request_bytes, count * plan->request_bytes);
}

static enum outcome hear(const struct plan *plan, struct connection *c, struct result *result,
                         uint8_t *buffer, uint64_t end)
{
    uint64_t partial = c->received % plan->answer_bytes;
    uint64_t expected = c->outstanding * plan->answer_bytes - partial;
    /* One byte more than may come, so that a server which says too much is found out. */
    ssize_t count = recv(c->fd, buffer, expected + 1, MSG_DONTWAIT);
    if (count < 0)
        return errno == EAGAIN || errno == EINTR ? DONE : errno == ECONNRESET ? HUNG_UP : SYSTEM_ERROR;
    if (count == 0)
        return HUNG_UP;
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    if ((uint64_t)count > expected || memcmp(buffer, plan->answers + c->received, (size_t)count) != 0)
        return WRONG_ANSWER;
    uint64_t whole = (partial + (uint64_t)count) / plan->answer_bytes;
    c->received = (c->received + (uint64_t)count) % (plan->pool * plan->answer_bytes);
    for (uint64_t i = 0; i < whole; i++) {
        if (now <= end)
            count_in(plan, plan->histogram, now - c->sent_at[c->oldest]);
        c->oldest = c->oldest + 1 == plan->depth ? 0 : c->oldest + 1;
    }
    c->outstanding -= whole;
    result->answered += whole;
    if (now > end)
        return DONE;
    result->answered_in_time += whole;
    return whole && !plan->due ? ask(plan, c, whole, now_ns(CLOCK_MONOTONIC)) : DONE;
}

static enum outcome hear_ready(const struct plan *plan, const struct epoll_event *events, int ready,
                               struct result *result, uint8_t *buffer, uint64_t end, uint64_t *outstanding)
{
    for (int i = 0; i < ready; i++) {
        struct connection *c = events[i].data.ptr;
        uint64_t before = c->outstanding;
        enum outcome outcome = hear(plan, c, result, buffer, end);
        if (outcome != DONE)
            return outcome;
        *outstanding = *outstanding + c->outstanding - before;
    }
    return DONE;
}

static enum outcome watch(const struct plan *plan, struct connection *connections, int epoll)
{
    for (uint64_t i = 0; i < plan->connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event) < 0)
            return SYSTEM_ERROR;
    }
    return DONE;
}

static enum outcome closed_loop(const struct plan *plan, struct connection *connections, struct result *result,
                                uint8_t *buffer, int epoll)
{
    struct epoll_event events[MAX_EVENTS];
    uint64_t end = now_ns(CLOCK_MONOTONIC) + plan->duration_ns;
    uint64_t outstanding = 0;
    enum outcome outcome;
    for (uint64_t i = 0; i < plan->connections; i++) {
        if ((outcome = ask(plan, &connections[i], plan->depth, now_ns(CLOCK_MONOTONIC))) != DONE)
            return outcome;
        outstanding += plan->depth;
    }
    while (outstanding) {
        int ready = epoll_wait(epoll, events, MAX_EVENTS, PATIENCE_MS);
        if (ready == 0)
            return SILENT;
        if (ready < 0 && errno != EINTR)
            return SYSTEM_ERROR;
        if ((outcome = hear_ready(plan, events, ready, result, buffer, end, &outstanding)) != DONE)
            return outcome;
    }
    return DONE;
}

static enum outcome open_loop(const struct plan *plan, struct connection *connections, struct result *result,
                              uint8_t *buffer, int epoll)
{
    struct epoll_event events[MAX_EVENTS];
    uint64_t start = now_ns(CLOCK_MONOTONIC), heard = start;
    uint64_t outstanding = 0, asked = 0;
    enum outcome outcome;
    prctl(PR_SET_TIMERSLACK, 1); /* Otherwise timers are 50 us late, to spare a laptop's battery. */
    while (asked < plan->due || outstanding) {
        uint64_t now = now_ns(CLOCK_MONOTONIC);
        for (; asked < plan->due && start + plan->due_ns[asked] <= now; now = now_ns(CLOCK_MONOTONIC)) {
            struct connection *c = &connections[asked % plan->connections];
            /* As far behind as that, the server is as good as silent. */
            if (c->outstanding == plan->depth)
                return SILENT;
            count_in(plan, plan->lateness, now - start - plan->due_ns[asked]);
            if ((outcome = ask(plan, c, 1, start + plan->due_ns[asked])) != DONE)
                return outcome;
            asked++;
            outstanding++;
        }
        /* It sleeps until something is due: who spins is punished by the scheduler, on a CPU that others use too. */
        uint64_t pause = (uint64_t)PATIENCE_MS * 1000000u;
        if (asked < plan->due)
            pause = start + plan->due_ns[asked] > now ? start + plan->due_ns[asked] - now : 0;
        struct timespec timeout = {(time_t)(pause / 1000000000u), (long)(pause % 1000000000u)};
        int ready = epoll_pwait2(epoll, events, MAX_EVENTS, &timeout, NULL);
        if (ready < 0 && errno != EINTR)
            return SYSTEM_ERROR;
        if (ready > 0 || !outstanding)
            heard = now;
        else if (now - heard > (uint64_t)PATIENCE_MS * 1000000u)
            return SILENT;
        /* Whatever was due counts, however late its answer comes. */
        if ((outcome = hear_ready(plan, events, ready, result, buffer, UINT64_MAX, &outstanding)) != DONE)
            return outcome;
    }
    return DONE;
}

int bench_run(const struct plan *plan, struct result *result)
{
    uint64_t started = now_ns(CLOCK_MONOTONIC);
    uint64_t cpu_started = now_ns(CLOCK_THREAD_CPUTIME_ID);
    enum outcome outcome = SYSTEM_ERROR;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *connections = calloc(plan->connections, sizeof *connections);
    uint64_t *sent_at = calloc(plan->connections * plan->depth, sizeof *sent_at);
    uint8_t *buffer = malloc(plan->depth * plan->answer_bytes + 1);
    memset(result, 0, sizeof *result);
    if (epoll >= 0 && connections && sent_at && buffer) {
        for (uint64_t i = 0; i < plan->connections; i++) {
            struct connection *c = &connections[i];
            c->fd = plan->fds[i];
            c->next_request = i * plan->pool / plan->connections;
            c->received = c->next_request * plan->answer_bytes;
            c->sent_at = sent_at + i * plan->depth;
        }
        outcome = watch(plan, connections, epoll);
        if (outcome == DONE && plan->due)
            outcome = open_loop(plan, connections, result, buffer, epoll);
        else if (outcome == DONE)
            outcome = closed_loop(plan, connections, result, buffer, epoll);
    }
    result->error_number = outcome == SYSTEM_ERROR ? errno : 0;
    result->elapsed_ns = now_ns(CLOCK_MONOTONIC) - started;
    result->cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_started;
    free(buffer);
    free(sent_at);
    free(connections);
    if (epoll >= 0)
        close(epoll);
    return outcome;
}

/* Send back what comes, for ever. Returns only with an error. */
int bench_echo(int listener)
{
    static uint8_t buffer[ECHO_BYTES];
    struct epoll_event events[MAX_EVENTS];
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        return errno;
    for (;;) {
        int ready = epoll_wait(epoll, events, MAX_EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            return errno;
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int on = 1;
                event.data.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                if (event.data.fd >= 0) {
                    setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
                }
                continue;
            }
            ssize_t count = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (count < 0 && (errno == EAGAIN || errno == EINTR))
                continue;
            if (count <= 0 || send_all(fd, buffer, (uint64_t)count) != DONE)
                close(fd);
        }
    }
}
