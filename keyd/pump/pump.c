#define _GNU_SOURCE
#include "pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

/* Twice the 4,096 city keys that a ring keeps, for each of the kinds that may use one; a power of two. */
#define ROUTES (1u << 14)
#define MAX_ROUTES (ROUTES / 2)

#define HISTORICAL_BYTES 13
#define ATR_PREFIX_BYTES 4
#define MAX_REQUEST 128

#define IRK 0x0170
#define SM4_CARD 3
#define THIRD_GENERATION 3

static const uint8_t atr_prefix[ATR_PREFIX_BYTES] = {0x3B, 0x6D, 0x00, 0x00};
static const uint8_t rid[5] = {0xD1, 0x56, 0x00, 0x00, 0x05};
static const char region_mismatch[] = "REGION_MISMATCH";

static const char *const methods[PUMP_KINDS] = {
    "card.internal_authenticate",
    "card.internal_cryptogram",
    "card.external_authenticate",
};

typedef struct {
    uint64_t place; /* 0 is no place: a kind with address 0 and no region does not exist. */
    pump_route route;
} route_cell;

typedef struct {
    const uint8_t *request;
    size_t length;
    uint32_t msgid;
    uint8_t kind;
    uint8_t key_id;
    uint8_t region_differs;
    uint32_t key_number;
    const uint8_t *card_id;
    card_bytes challenge;
    card_bytes cryptogram;
    uint8_t out[CARD_CRYPTOGRAM_BYTES];
} request;

typedef struct {
    int fd;
    size_t first;
    size_t count;
    uint8_t *buffer; /* All that was read. */
    size_t length;
    uint8_t *rest;
    size_t rest_length;
    int is_reset;
    int is_at_end;
} turn;

typedef struct {
    uint64_t served_at;
    pump_asker asker;
    int is_admitted;
} line;

struct pump {
    int epoll_fd;
    pump_cards cards;
    line *lines; /* By file descriptor. */
    size_t fds;
    int records;
    uint16_t methods[PUMP_KINDS];
    size_t card_id_bytes;
    seen *cards_seen;
    uint32_t window_seconds;
    route_cell *routes;
    size_t routes_used;
    struct epoll_event events[PUMP_MAX_EVENTS];
    int polled;
    int at;
    uint64_t now;
    uint64_t counts[PUMP_KINDS];
    uint64_t compute_nanoseconds;
    turn turns[PUMP_MAX_PEERS];
    size_t turn_count;
    size_t handed; /* Rests of this part so far. */
    request requests[PUMP_MAX_TASKS];
    card_task tasks[PUMP_MAX_TASKS];
    uint8_t uses[PUMP_MAX_TASKS * PUMP_USE_BYTES];
    pump_rest rests[PUMP_MAX_EVENTS + PUMP_MAX_PEERS];
    /* Each turn reads into a region of its own, with room before it for requests that are handed up after all. */
    uint8_t *read_buffer;
    uint8_t *answers; /* Each turn's answers that did not leave stay here until the next part. */
    uint8_t last[MAX_REQUEST];
    size_t last_length;
    int last_fd;
};

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Every bit has its place: 2 of kind, generation and algorithm each, 16 of roles and address each, 24 of the region. */
static uint64_t packed(pump_place place) {
    return (uint64_t)(place.kind + 1) << 62 | (uint64_t)place.generation << 60 | (uint64_t)place.algorithm << 58 |
           (uint64_t)place.roles << 40 | (uint64_t)place.address << 24 | (uint64_t)place.region[0] << 16 |
           (uint64_t)place.region[1] << 8 | (uint64_t)place.region[2];
}

static route_cell *find(const pump *p, uint64_t place) {
    uint64_t at = place * 0x9E3779B97F4A7C15u >> 50;
    while (p->routes[at].place != 0 && p->routes[at].place != place) at = (at + 1) & (ROUTES - 1);
    return &p->routes[at];
}

pump *pump_new(int epoll_fd, pump_cards cards) {
    pump *p = calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->epoll_fd = epoll_fd;
    p->cards = cards;
    p->routes = calloc(ROUTES, sizeof *p->routes);
    p->read_buffer = malloc((size_t)PUMP_MAX_PEERS * PUMP_READ_BYTES);
    p->answers = malloc((size_t)PUMP_MAX_TASKS * PUMP_MAX_ANSWER);
    if (p->routes == NULL || p->read_buffer == NULL || p->answers == NULL) {
        pump_free(p);
        return NULL;
    }
    return p;
}

void pump_free(pump *p) {
    if (p == NULL) return;
    free(p->lines);
    free(p->routes);
    free(p->read_buffer);
    free(p->answers);
    free(p);
}

void pump_record(pump *p, const uint16_t kinds[PUMP_KINDS], size_t card_id_bytes) {
    p->records = 1;
    memcpy(p->methods, kinds, sizeof p->methods);
    p->card_id_bytes = card_id_bytes < PUMP_CARD_ID_BYTES ? card_id_bytes : PUMP_CARD_ID_BYTES;
}

void pump_watch(pump *p, seen *cards, uint32_t window_seconds) {
    p->cards_seen = cards;
    p->window_seconds = window_seconds;
}

int pump_admit(pump *p, int fd, pump_asker asker) {
    if (fd < 0) return -1;
    if ((size_t)fd >= p->fds) {
        size_t wanted = ((size_t)fd + 1) * 2;
        line *lines = realloc(p->lines, wanted * sizeof *lines);
        if (lines == NULL) return -1;
        memset(lines + p->fds, 0, (wanted - p->fds) * sizeof *lines);
        p->lines = lines;
        p->fds = wanted;
    }
    p->lines[fd].is_admitted = 1;
    p->lines[fd].asker = asker;
    return 0;
}

uint32_t pump_dismiss(pump *p, int fd) {
    if (fd < 0 || (size_t)fd >= p->fds || !p->lines[fd].is_admitted) return 0;
    p->lines[fd].is_admitted = 0;
    return p->lines[fd].asker.allowance;
}

int pump_learn(pump *p, pump_place place, pump_route route) {
    route_cell *cell = find(p, packed(place));
    int had_room = cell->place != 0 || p->routes_used < MAX_ROUTES;
    if (!had_room) {
        pump_forget(p);
        cell = find(p, packed(place));
    }
    if (cell->place == 0) p->routes_used++;
    cell->place = packed(place);
    cell->route = route;
    return had_room ? 0 : -1;
}

void pump_forget(pump *p) {
    memset(p->routes, 0, ROUTES * sizeof *p->routes);
    p->routes_used = 0;
    p->last_length = 0;
}

/* Decoding ----------------------------------------------------------------------------------------------------------
 *
 * A cursor over bytes of the peer. Each step says 0 for anything but the one form that is ours, and never looks beyond
 * the end; what it skips Python will read.
 */

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} cursor;

static int take_byte(cursor *c, uint8_t *byte) {
    if (c->at >= c->end) return 0;
    *byte = *c->at++;
    return 1;
}

static int expect_byte(cursor *c, uint8_t wanted) {
    uint8_t byte;
    return take_byte(c, &byte) && byte == wanted;
}

static int take_bytes(cursor *c, size_t length, const uint8_t **bytes) {
    if ((size_t)(c->end - c->at) < length) return 0;
    *bytes = c->at;
    c->at += length;
    return 1;
}

/* An unsigned integer of up to 32 bits in any of its forms, as Python takes them. */
static int take_uint(cursor *c, uint32_t *value) {
    uint8_t form;
    const uint8_t *bytes;
    if (!take_byte(c, &form)) return 0;
    if (form < 0x80) {
        *value = form;
        return 1;
    }
    if (form < 0xCC || form > 0xCE) return 0;
    size_t length = (size_t)1 << (form - 0xCC);
    if (!take_bytes(c, length, &bytes)) return 0;
    *value = 0;
    for (size_t i = 0; i < length; i++) *value = *value << 8 | bytes[i];
    return 1;
}

static int take_bin(cursor *c, uint8_t *length, const uint8_t **bytes) {
    return expect_byte(c, 0xC4) && take_byte(c, length) && take_bytes(c, *length, bytes);
}

static int take_block(cursor *c, card_bytes *block) {
    uint8_t length;
    if (!take_bin(c, &length, &block->at) || length != 8) return 0;
    block->length = 8;
    return 1;
}

static int take_method(cursor *c, uint8_t *kind) {
    uint8_t form;
    const uint8_t *text;
    if (!take_byte(c, &form) || (form & 0xE0) != 0xA0) return 0;
    size_t length = form & 0x1F;
    if (!take_bytes(c, length, &text)) return 0;
    for (int k = 0; k < PUMP_KINDS; k++) {
        if (strlen(methods[k]) == length && memcmp(methods[k], text, length) == 0) {
            *kind = (uint8_t)k;
            return 1;
        }
    }
    return 0;
}

/* The card [card_id, historical, algorithm?, generation?, key_version?]; checks what identity.py checks. keyd's own
   client names them all. A card of another than the current version, 0, is Python's. */
static int take_card(cursor *c, pump_place *place, card_bytes *diversifier, request *r) {
    uint8_t form, length;
    const uint8_t *id, *historical;
    uint32_t algorithm = SM4_CARD, generation = THIRD_GENERATION, version = 0;
    if (!take_byte(c, &form) || form < 0x92 || form > 0x95) return 0;
    if (!take_bin(c, &length, &id) || length != 16) return 0;
    if (!take_bin(c, &length, &historical)) return 0;
    if (length == ATR_PREFIX_BYTES + HISTORICAL_BYTES && memcmp(historical, atr_prefix, ATR_PREFIX_BYTES) == 0) {
        historical += ATR_PREFIX_BYTES;
    } else if (length != HISTORICAL_BYTES) {
        return 0;
    }
    if (form > 0x92 && !take_uint(c, &algorithm)) return 0;
    if (form > 0x93 && !take_uint(c, &generation)) return 0;
    if (form > 0x94 && !take_uint(c, &version)) return 0;
    if (algorithm > 3 || generation > 3 || version != 0) return 0;
    if (memcmp(id + 3, rid, sizeof rid) != 0 || memcmp(id + 8, historical + 9, 4) != 0) return 0;
    place->algorithm = (uint8_t)algorithm;
    place->generation = (uint8_t)generation;
    memcpy(place->region, id, 3);
    diversifier->at = historical + 5;
    diversifier->length = CARD_DIVERSIFIER_BYTES;
    r->region_differs = memcmp(id, historical + 7, 2) != 0;
    r->card_id = id;
    return 1;
}

/* Whether a card is where it was minutes ago, if anybody watches; then that it is here is noted. */
static int is_where_it_was(pump *p, const line *l, const uint8_t *diversifier) {
    uint64_t card;
    uint32_t region, at, now = (uint32_t)(p->now / 1000000000u);
    if (p->cards_seen == NULL || l->asker.region == 0) return 1;
    memcpy(&card, diversifier, sizeof card);
    if (seen_find(p->cards_seen, card, &region, &at) && region != l->asker.region &&
        (int32_t)(now - at) < (int32_t)p->window_seconds) {
        return 0;
    }
    seen_put(p->cards_seen, card, l->asker.region, now, p->window_seconds);
    return 1;
}

/* One hot request whose key is known: fill in its task and return its length, or 0. */
static size_t decode(pump *p, const line *l, const uint8_t *bytes, size_t length, request *r, card_task *task) {
    cursor c = {bytes, bytes + length};
    uint8_t form;
    uint32_t address = IRK;
    pump_place place = {0};
    card_bytes diversifier, factor;
    if (!expect_byte(&c, 0x94) || !expect_byte(&c, 0x00)) return 0;
    if (!take_uint(&c, &r->msgid) || !take_method(&c, &r->kind)) return 0;
    uint8_t fields = r->kind == PUMP_INTERNAL_CRYPTOGRAM ? 3 : 4;
    if (!take_byte(&c, &form)) return 0;
    /* The address of an internal authentication comes last and may be left out. */
    int has_address = form == (0x90 | (fields + 1)) && r->kind != PUMP_EXTERNAL_AUTHENTICATE;
    if (!has_address && form != (0x90 | fields)) return 0;
    if (!take_card(&c, &place, &diversifier, r)) return 0;
    if (r->kind == PUMP_EXTERNAL_AUTHENTICATE && !take_uint(&c, &address)) return 0;
    if (!take_block(&c, &factor) || !take_block(&c, &r->challenge)) return 0;
    if (r->kind == PUMP_INTERNAL_AUTHENTICATE && !take_block(&c, &r->cryptogram)) return 0;
    if (has_address && !take_uint(&c, &address)) return 0;
    if (address > 0xFFFF) return 0;
    place.kind = r->kind;
    place.roles = l->asker.roles;
    place.address = (uint16_t)address;
    const route_cell *known = find(p, packed(place));
    if (known->place == 0) return 0;
    r->request = bytes;
    r->length = (size_t)(c.at - bytes);
    r->key_id = known->route.key_id;
    r->key_number = known->route.key_number;
    *task = (card_task){
        .city = known->route.city,
        .algorithm = known->route.algorithm,
        .kind = CARD_CRYPTOGRAM,
        .diversifier = diversifier,
        .session_factor = factor,
        .data = r->challenge,
        .out = r->out,
        .presented = r->kind == PUMP_INTERNAL_AUTHENTICATE ? &r->cryptogram : NULL,
    };
    p->cards.measure(task);
    if (task->result != CARD_DONE || task->out_length != CARD_CRYPTOGRAM_BYTES) return 0;
    return is_where_it_was(p, l, diversifier.at) ? r->length : 0;
}

/* Encoding --------------------------------------------------------------------------------------------------------- */

static uint8_t *put(uint8_t *out, const void *bytes, size_t length) {
    memcpy(out, bytes, length);
    return out + length;
}

static uint8_t *put_msgid(uint8_t *out, uint32_t msgid) {
    /* The shortest form, as Python's encoder has it. */
    if (msgid < 0x80) {
        *out++ = (uint8_t)msgid;
    } else if (msgid <= 0xFF) {
        *out++ = 0xCC;
        *out++ = (uint8_t)msgid;
    } else if (msgid <= 0xFFFF) {
        *out++ = 0xCD;
        *out++ = (uint8_t)(msgid >> 8);
        *out++ = (uint8_t)msgid;
    } else {
        *out++ = 0xCE;
        for (int shift = 24; shift >= 0; shift -= 8) *out++ = (uint8_t)(msgid >> shift);
    }
    return out;
}

static uint8_t *put_reply(uint8_t *out, const request *r) {
    *out++ = 0xC4;
    *out++ = 16;
    out = put(out, r->out, CARD_CRYPTOGRAM_BYTES);
    return put(out, r->challenge.at, CARD_CHALLENGE_BYTES);
}

static uint8_t *put_answer(uint8_t *out, const request *r) {
    *out++ = 0x94;
    *out++ = 0x01;
    out = put_msgid(out, r->msgid);
    *out++ = 0xC0;
    if (r->kind == PUMP_INTERNAL_AUTHENTICATE) {
        *out++ = 0x91;
    } else if (r->kind == PUMP_INTERNAL_CRYPTOGRAM) {
        *out++ = 0x92;
        out = put_reply(out, r);
    } else {
        const uint8_t head[] = {0xC4, 21, 0x00, 0x82, 0x00, r->key_id, 0x10};
        *out++ = 0x93;
        out = put_reply(out, r);
        out = put(out, head, sizeof head);
        out = put(out, r->out, CARD_CRYPTOGRAM_BYTES);
        out = put(out, r->challenge.at, CARD_CHALLENGE_BYTES);
    }
    if (r->region_differs) {
        *out++ = 0x91;
        *out++ = 0xA0 | (sizeof region_mismatch - 1);
        return put(out, region_mismatch, sizeof region_mismatch - 1);
    }
    *out++ = 0x90;
    return out;
}

/* The tick --------------------------------------------------------------------------------------------------------- */

int pump_poll(pump *p) {
    int polled = epoll_wait(p->epoll_fd, p->events, PUMP_MAX_EVENTS, 0);
    p->polled = polled > 0 ? polled : 0;
    p->at = 0;
    p->now = nanoseconds();
    memset(p->counts, 0, sizeof p->counts);
    p->compute_nanoseconds = 0;
    return p->polled;
}

static void read_turn(pump *p, turn *t, int hands_up, size_t *tasks) {
    ssize_t got = recv(t->fd, t->buffer, PUMP_READ_BYTES, MSG_DONTWAIT);
    if (got <= 0) {
        t->is_at_end = got == 0;
        t->is_reset = got < 0 && errno != EAGAIN && errno != EINTR;
        return;
    }
    line *l = &p->lines[t->fd];
    uint8_t *at = t->buffer;
    size_t left = t->length = (size_t)got;
    while (!hands_up && left > 0 && t->count < PUMP_READ_REQUESTS && l->asker.allowance > 0) {
        size_t length = decode(p, l, at, left, &p->requests[*tasks], &p->tasks[*tasks]);
        if (length == 0) break;
        l->asker.allowance--;
        at += length;
        left -= length;
        (*tasks)++;
        t->count++;
    }
    t->rest = at;
    t->rest_length = left;
}

static void put_big_endian(uint8_t *out, uint32_t value, int bytes) {
    for (int i = bytes; i-- > 0; value >>= 8) out[i] = (uint8_t)value;
}

/* What the journal is to know of the good answers, in their order. Returns how many. */
static size_t collect_uses(pump *p) {
    uint8_t *out = p->uses;
    for (const turn *t = p->turns; t < p->turns + p->turn_count; t++) {
        const line *l = &p->lines[t->fd];
        for (size_t n = t->first; n < t->first + t->count; n++) {
            if (p->tasks[n].result != CARD_DONE) continue;
            const request *r = &p->requests[n];
            put_big_endian(out, p->methods[r->kind], 2);
            put_big_endian(out + 2, 0, 2); /* The status of good answers. */
            put_big_endian(out + 4, l->asker.connection, 4);
            put_big_endian(out + 8, l->asker.terminal, 4);
            put_big_endian(out + 12, r->key_number, 4);
            memset(out + 16, 0, PUMP_CARD_ID_BYTES);
            memcpy(out + 16, r->card_id, p->card_id_bytes);
            out += PUMP_USE_BYTES;
        }
    }
    return (size_t)(out - p->uses) / PUMP_USE_BYTES;
}

size_t pump_part(pump *p, int hands_up, const uint8_t **uses) {
    size_t turns = 0, tasks = 0;
    p->handed = 0;
    for (; p->at < p->polled && turns < PUMP_MAX_PEERS && tasks <= PUMP_MAX_TASKS - PUMP_READ_REQUESTS; p->at++) {
        int fd = p->events[p->at].data.fd;
        uint32_t mask = p->events[p->at].events;
        if (mask != EPOLLIN || (size_t)fd >= p->fds || !p->lines[fd].is_admitted) {
            p->rests[p->handed++] = (pump_rest){.fd = fd, .mask = mask};
            continue;
        }
        turn *t = &p->turns[turns];
        *t = (turn){.fd = fd, .first = tasks, .buffer = p->read_buffer + turns * PUMP_READ_BYTES};
        read_turn(p, t, hands_up, &tasks);
        turns++;
    }
    p->turn_count = turns;
    if (tasks > 0) {
        uint64_t started = nanoseconds();
        p->cards.compute(p->tasks, tasks);
        p->compute_nanoseconds += nanoseconds() - started;
    }
    *uses = p->uses;
    return p->records ? collect_uses(p) : 0;
}

/* What is left for Python of what was read: the requests that are to be refused, and then the rest, in their order. */
static void hand_up(pump *p, const turn *t, pump_rest *rest) {
    uint8_t *first = t->rest;
    /* Backwards: each moves up to what is handed up already, over requests that have been answered. */
    for (size_t i = t->first + t->count; i-- > t->first;) {
        if (p->tasks[i].result == CARD_DONE) continue;
        first -= p->requests[i].length;
        memmove(first, p->requests[i].request, p->requests[i].length);
        p->lines[t->fd].asker.allowance++; /* It will be counted where it is answered. */
    }
    rest->data = first;
    rest->length = t->rest_length + (size_t)(t->rest - first);
}

/* Encode a connection's good answers. Returns where they end. */
static uint8_t *put_answers(pump *p, const turn *t, uint8_t *answers, pump_rest *rest) {
    for (size_t n = t->first; n < t->first + t->count; n++) {
        if (p->tasks[n].result != CARD_DONE) continue;
        const request *r = &p->requests[n];
        answers = put_answer(answers, r);
        p->counts[r->kind]++;
        rest->held++;
        if (r->length <= MAX_REQUEST) {
            p->last_length = r->length;
            memcpy(p->last, r->request, r->length);
            p->last_fd = t->fd;
        }
    }
    return answers;
}

size_t pump_finish(pump *p, pump_verdict verdict, const pump_rest **rests, int *is_done) {
    uint8_t *answers = p->answers;
    for (const turn *t = p->turns; t < p->turns + p->turn_count; t++) {
        pump_rest rest = {.fd = t->fd, .is_reset = t->is_reset};
        uint8_t *first = answers;
        if (verdict == PUMP_REFUSE) {
            rest.data = t->buffer;
            rest.length = t->length;
            p->lines[t->fd].asker.allowance += (uint32_t)t->count;
        } else {
            answers = put_answers(p, t, answers, &rest);
            hand_up(p, t, &rest);
        }
        if (answers > first) {
            ssize_t sent = 0;
            if (verdict == PUMP_SEND) {
                rest.held = 0;
                sent = send(t->fd, first, (size_t)(answers - first), MSG_DONTWAIT | MSG_NOSIGNAL);
                if (sent < 0 && errno != EAGAIN && errno != EINTR) rest.is_reset = 1;
                if (sent < 0) sent = 0;
            }
            rest.unsent = first + sent;
            rest.unsent_length = (size_t)(answers - first) - (size_t)sent;
            p->lines[t->fd].served_at = p->now;
        }
        if (t->is_at_end) rest.mask = EPOLLIN;
        if (rest.mask || rest.is_reset || rest.length || rest.unsent_length) p->rests[p->handed++] = rest;
    }
    p->turn_count = 0;
    *rests = p->rests;
    *is_done = p->at >= p->polled;
    return p->handed;
}

const uint64_t *pump_counts(const pump *p) { return p->counts; }

uint64_t pump_compute_nanoseconds(const pump *p) { return p->compute_nanoseconds; }

uint64_t pump_served_at(const pump *p, int fd) {
    return fd >= 0 && (size_t)fd < p->fds ? p->lines[fd].served_at : 0;
}

const uint8_t *pump_last_request(const pump *p, size_t *length, int *fd) {
    *fd = p->last_fd;
    *length = p->last_length;
    return p->last;
}
