/* Throw good, mutated and random bytes at the pump over socket pairs, with card functions that make up their answers.
 *
 *     gcc -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all pump_fuzz.c ../../keyd/pump/{pump,seen}.c -o pump_fuzz
 *     ./pump_fuzz ITERATIONS [SEED]        0 iterations: for ever
 *
 * Beside what the sanitizers see, it insists on the one law that needs no cryptography: every byte that was sent is
 * either part of a request that was answered or is handed up, and what is handed up stands in the order of the stream.
 */
#define _GNU_SOURCE
#include "../../keyd/pump/pump.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINES 96
#define ROLES 0xABCD
#define MAX_SENT (PUMP_READ_BYTES + 4096)

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "pump_fuzz: %s\n", what);
    abort();
}

/* --- Card functions that read all that they may read, and write all that they may write */

static volatile uint8_t sink;

static void read_all(card_bytes bytes) {
    for (size_t i = 0; i < bytes.length; i++) sink ^= bytes.at[i];
}

static void measure(card_task *task) {
    task->out_length = CARD_CRYPTOGRAM_BYTES;
    task->result = CARD_DONE;
}

/* A card is forged if the first byte of what it presents is odd; a key is gone if its handle is. */
static void compute(card_task *tasks, size_t n) {
    require(n <= PUMP_MAX_TASKS, "more tasks than there is room for");
    for (size_t i = 0; i < n; i++) {
        card_task *task = &tasks[i];
        if (task->result != CARD_DONE) continue;
        require(task->diversifier.length == 8 && task->session_factor.length == 8 && task->data.length == 8,
                "a task of another length");
        read_all(task->diversifier);
        read_all(task->session_factor);
        read_all(task->data);
        memset(task->out, 0x5A, task->out_length);
        if (task->presented) {
            require(task->presented->length == 8, "a cryptogram of another length");
            read_all(*task->presented);
            if (task->presented->at[0] & 1) task->result = CARD_NOT_AUTHENTIC;
        }
        if (task->city & 1) task->result = CARD_KEY_GONE;
    }
}

/* --- Requests */

static const char *const names[] = {"card.internal_authenticate", "card.internal_cryptogram",
                                    "card.external_authenticate"};

static uint8_t *put_bin(uint8_t *at, const void *bytes, uint8_t length) {
    *at++ = 0xC4;
    *at++ = length;
    memcpy(at, bytes, length);
    return at + length;
}

/* One request of a hot shape, in one of its forms: at most 119 bytes. */
static size_t make_request(uint8_t *out) {
    uint8_t *at = out, id[16], historical[17] = {0x3B, 0x6D, 0, 0}, block[8];
    uint32_t kind = draw(3), form = draw(4), optional = draw(4), region = draw(4);
    int is_atr = draw(2), has_address = kind == 2 || draw(2);
    memset(id, 0, sizeof id);
    id[0] = 0x51;
    id[1] = (uint8_t)region;
    memcpy(id + 3, "\xD1\x56\x00\x00\x05\x12\x34\x56\x78", 9);
    memcpy(historical + 4 + 7, id, 2);
    memcpy(historical + 4 + 9, id + 8, 4);
    if (draw(4) == 0) historical[4 + 7] ^= 0x10;
    *at++ = 0x94;
    *at++ = 0x00;
    if (form == 0) *at++ = (uint8_t)draw(128);
    if (form == 1) *at++ = 0xCC, *at++ = (uint8_t)draw(256);
    if (form == 2) *at++ = 0xCD, *at++ = (uint8_t)draw(256), *at++ = (uint8_t)draw(256);
    if (form == 3) *at++ = 0xCE, memset(at, (int)draw(256), 4), at += 4;
    *at++ = (uint8_t)(0xA0 | strlen(names[kind]));
    memcpy(at, names[kind], strlen(names[kind]));
    at += strlen(names[kind]);
    *at++ = (uint8_t)(0x90 + (kind == 2 ? 4 : 3 + (kind == 0) + has_address));
    *at++ = (uint8_t)(0x92 + optional);
    at = put_bin(at, id, 16);
    at = is_atr ? put_bin(at, historical, 17) : put_bin(at, historical + 4, 13);
    if (optional > 0) *at++ = 3;
    if (optional > 1) *at++ = 3;
    if (optional > 2) *at++ = 0;
    if (kind == 2) *at++ = 0x4C;
    for (int i = 0; i < 8; i++) block[i] = (uint8_t)draw(256);
    at = put_bin(at, block, 8);
    at = put_bin(at, block, 8);
    block[0] = (uint8_t)(block[0] & ~1u) | (draw(8) == 0);
    if (kind == 0) at = put_bin(at, block, 8);
    if (kind != 2 && has_address) *at++ = 0xCD, *at++ = 0x01, *at++ = 0x70;
    return (size_t)(at - out);
}

static void learn_all(pump *p) {
    for (uint8_t kind = 0; kind < 3; kind++) {
        for (uint8_t region = 0; region < 4; region++) {
            pump_place place = {ROLES, kind, 3, kind == 2 ? 0x4C : 0x170, 3, {0x51, region, 0}};
            /* One region's key is gone. */
            pump_route route = {region == 3 ? 3 : 2, ARENA_SM4, 0x0A, 0xA1A2A3A4};
            pump_learn(p, place, route);
        }
    }
}

/* --- Lines */

typedef struct {
    int theirs;
    int ours;
    uint8_t *sent; /* Exactly as long as what was sent, so that a look beyond it is seen. */
    size_t length;
    size_t handed;
    size_t at; /* How far into what was sent the handed bytes reach. */
    int is_python_s; /* It was dismissed, or hung up, and is not to be read. */
} line;

static void open_line(line *l, pump *p, int epoll) {
    int pair[2], size = 1 << 20;
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "no socket pair");
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (draw(8) == 0) size = 1;
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = pair[1]};
    require(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[1], &event) == 0, "epoll");
    *l = (line){.theirs = pair[0], .ours = pair[1]};
    pump_asker asker = {
        .connection = 0xC1C2C300u | (uint32_t)pair[1],
        .terminal = 0x01020304,
        .roles = ROLES,
        .region = draw(2) ? 0 : 5101 + draw(2),
        .allowance = draw(4) ? UINT32_MAX : draw(40),
    };
    require(pump_admit(p, pair[1], asker) == 0, "admit");
}

static void close_line(line *l, pump *p) {
    pump_dismiss(p, l->ours);
    if (l->theirs >= 0) close(l->theirs);
    close(l->ours);
    free(l->sent);
    l->ours = -1;
}

static void fill(line *l) {
    static uint8_t stream[MAX_SENT];
    size_t length = 0, wanted = draw(16) == 0 ? MAX_SENT - 256 : draw(2000);
    uint32_t kind = draw(8);
    while (length < wanted) {
        if (kind == 0) {
            stream[length++] = (uint8_t)draw(256);
            continue;
        }
        size_t made = make_request(stream + length);
        if (kind > 4 && draw(4) == 0) stream[length + draw((uint32_t)made)] ^= (uint8_t)(1u << draw(8));
        if (kind == 7 && draw(8) == 0) made = 1 + draw((uint32_t)made);
        length += made;
    }
    if (length && draw(4) == 0) length -= draw((uint32_t)(length < 120 ? length : 120));
    l->sent = malloc(length + 1);
    memcpy(l->sent, stream, length);
    ssize_t sent = length ? send(l->theirs, l->sent, length, MSG_NOSIGNAL) : 0;
    l->length = sent > 0 ? (size_t)sent : 0;
    l->handed = l->at = 0;
}

/* Handed bytes are a subsequence of the stream, taken greedily from where the last ended. */
static void take_rest(line *l, const pump_rest *rest) {
    for (size_t i = 0; i < rest->length; i++) {
        while (l->at < l->length && l->sent[l->at] != rest->data[i]) l->at++;
        require(l->at < l->length, "what was handed up is not what was sent, or in another order");
        l->at++;
    }
    l->handed += rest->length;
    for (size_t i = 0; i < rest->unsent_length; i++) sink ^= rest->unsent[i];
}

static uint64_t answers_of(const pump *p) {
    uint64_t answers = 0;
    for (int kind = 0; kind < PUMP_KINDS; kind++) answers += pump_counts(p)[kind];
    return answers;
}

static void require_use(const uint8_t *use) {
    require(use[0] == 0xD1 && use[1] < PUMP_KINDS && use[2] == 0 && use[3] == 0, "a use of another method");
    require(memcmp(use + 4, "\xC1\xC2\xC3", 3) == 0, "a use on another connection");
    require(memcmp(use + 8, "\x01\x02\x03\x04\xA1\xA2\xA3\xA4\x51", 9) == 0, "a use of another key");
    require(memcmp(use + 18, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 14) == 0, "more of a card than two bytes");
}

/* Returns how many requests were answered. */
static uint64_t round_of(pump *p, int epoll, line *lines) {
    size_t count = 1 + draw(LINES), sent = 0, handed = 0;
    uint64_t answered;
    for (size_t i = 0; i < count; i++) {
        open_line(&lines[i], p, epoll);
        fill(&lines[i]);
        line *l = &lines[i];
        int is_deaf = draw(32) == 0, is_mute = draw(16) == 0;
        if (is_deaf) shutdown(l->ours, SHUT_WR);
        if (is_mute) shutdown(l->theirs, SHUT_WR);
        l->is_python_s = is_deaf && is_mute;
        if (draw(32) == 0) close(l->theirs), l->theirs = -1, l->is_python_s = 1;
        if (draw(32) == 0) pump_dismiss(p, l->ours), l->is_python_s = 1;
    }
    int is_done = pump_poll(p) == 0;
    while (!is_done) {
        const pump_rest *rests;
        const uint8_t *uses;
        int hands_up = draw(32) == 0;
        size_t used = pump_part(p, hands_up, &uses), held = 0;
        uint64_t before = answers_of(p);
        pump_verdict verdict = (pump_verdict)(draw(4) == 0 ? draw(3) : PUMP_SEND);
        require(!hands_up || used == 0, "a key was used for what is handed up");
        for (size_t i = 0; i < used; i++) require_use(uses + i * PUMP_USE_BYTES);
        size_t n = pump_finish(p, verdict, &rests, &is_done);
        require(answers_of(p) - before == (verdict == PUMP_REFUSE ? 0 : used), "answers and records differ");
        for (size_t i = 0; i < n; i++) held += rests[i].held;
        require(held == (verdict == PUMP_HOLD ? used : 0), "held answers and records differ");
        for (size_t i = 0; i < n; i++) {
            line *l = lines;
            while (l < lines + count && l->ours != rests[i].fd) l++;
            require(l < lines + count, "a rest of nobody");
            take_rest(l, &rests[i]);
            handed += rests[i].length;
        }
    }
    answered = answers_of(p);
    for (size_t i = 0; i < count; i++) {
        size_t length = lines[i].length;
        if (lines[i].is_python_s)
            require(lines[i].handed == 0, "a line was read that was Python's");
        else
            sent += length < PUMP_READ_BYTES ? length : PUMP_READ_BYTES;
    }
    /* The shortest request has 80 bytes and the longest 119. */
    require(handed <= sent, "more was handed up than was sent");
    require(sent - handed >= answered * 80 && sent - handed <= answered * 119, "bytes were lost");
    size_t length;
    int fd;
    const uint8_t *last = pump_last_request(p, &length, &fd);
    for (size_t i = 0; i < length; i++) sink ^= last[i];
    for (size_t i = 0; i < count; i++) {
        sink ^= (uint8_t)pump_served_at(p, lines[i].ours);
        close_line(&lines[i], p);
    }
    require(pump_poll(p) == 0, "an event of a closed line");
    return answered;
}

int main(int argc, char **argv) {
    static line lines[LINES];
    uint64_t iterations = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, answered = 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    state = seed * 0x9E3779B97F4A7C15u | 1;
    pump *p = pump_new(epoll, (pump_cards){measure, compute});
    seen *cards = seen_new(seed);
    require(cards != NULL, "no table");
    if (seed % 2) pump_watch(p, cards, 600);
    require(p != NULL, "no memory");
    const uint16_t methods[PUMP_KINDS] = {0xD100, 0xD101, 0xD102};
    pump_record(p, methods, 2);
    learn_all(p);
    for (uint64_t i = 0; iterations == 0 || i < iterations; i++) {
        answered += round_of(p, epoll, lines);
        if (draw(64) == 0) {
            pump_forget(p);
            learn_all(p);
        }
        if (draw(256) == 0) {
            /* Fill the table, which then begins anew. */
            for (uint32_t place = 0; place < 9000; place++)
                pump_learn(p, (pump_place){ROLES, 1, 3, (uint16_t)place, 3, {1, 2, (uint8_t)(place >> 8)}},
                           (pump_route){2, ARENA_SM4, 0, 0});
            learn_all(p);
        }
    }
    pump_free(p);
    close(epoll);
    seen_free(cards);
    printf("%llu answered\n", (unsigned long long)answered);
    return answered == 0;
}
