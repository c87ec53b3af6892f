#include "seen.h"

#include <stdlib.h>

#define WAYS 4
#define SETS (SEEN_CARDS / WAYS)

typedef struct {
    uint64_t card;
    uint32_t region;
    uint32_t at;
} cell;

struct seen {
    uint64_t secret;
    uint64_t forgotten;
    uint8_t used[SETS];
    cell cells[SETS][WAYS];
};

seen *seen_new(uint64_t secret) {
    seen *s = calloc(1, sizeof *s);
    if (s != NULL) s->secret = secret;
    return s;
}

void seen_free(seen *s) { free(s); }

/* Two rounds of a multiplication that folds both halves (as wyhash): the secret decides who shares a set. */
static uint32_t set_of(const seen *s, uint64_t card) {
    unsigned __int128 product = (unsigned __int128)(card ^ s->secret) * (s->secret | 1);
    uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);
    product = (unsigned __int128)(folded ^ 0x9E3779B97F4A7C15u) * (s->secret ^ 0xE7037ED1A0B428DBu);
    return (uint32_t)((uint64_t)product ^ (uint64_t)(product >> 64)) & (SETS - 1);
}

int seen_find(const seen *s, uint64_t card, uint32_t *region, uint32_t *at) {
    uint32_t set = set_of(s, card);
    for (int i = 0; i < s->used[set]; i++) {
        const cell *c = &s->cells[set][i];
        if (c->card != card) continue;
        *region = c->region;
        *at = c->at;
        return 1;
    }
    return 0;
}

void seen_put(seen *s, uint64_t card, uint32_t region, uint32_t at, uint32_t window) {
    uint32_t set = set_of(s, card);
    cell *oldest = &s->cells[set][0];
    for (int i = 0; i < s->used[set]; i++) {
        cell *c = &s->cells[set][i];
        if (c->card == card) {
            c->region = region;
            c->at = at;
            return;
        }
        if (c->at < oldest->at) oldest = c;
    }
    if (s->used[set] < WAYS) {
        oldest = &s->cells[set][s->used[set]++];
    } else if ((int32_t)(at - oldest->at) < (int32_t)window) {
        s->forgotten++;
    }
    *oldest = (cell){card, region, at};
}

uint64_t seen_forgotten(const seen *s) { return s->forgotten; }
