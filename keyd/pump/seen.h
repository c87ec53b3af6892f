/* Where each card was seen last: a table of fixed size, of which the pump and Python have one together, because a card
 * that is served here and there in turn has to be found strange wherever it is served.
 *
 * Cards are a peer's to make up. The table forgets the oldest of a set of four when a fifth comes, and counts what it
 * forgot too soon; the sets are drawn with a secret, so that nobody can choose cards that push another out.
 */
#ifndef KEYD_SEEN_H
#define KEYD_SEEN_H

#include <stdint.h>

/* 16 bytes each: 1 MiB. At a thousand new cards a second it remembers a minute. */
#define SEEN_CARDS (1u << 16)

typedef struct seen seen;

/* Returns NULL without memory. */
seen *seen_new(uint64_t secret);
void seen_free(seen *s);

/* Where and when (seconds) a card was seen last. Returns whether it is known. `card` is its level-3 diversifier. */
int seen_find(const seen *s, uint64_t card, uint32_t *region, uint32_t *at);

/* Note where and when a card was seen. Who was seen more than a window ago may be forgotten for nothing. */
void seen_put(seen *s, uint64_t card, uint32_t region, uint32_t at, uint32_t window);

/* Cards that were forgotten within their window. */
uint64_t seen_forgotten(const seen *s);

#endif
