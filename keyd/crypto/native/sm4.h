/* SM4 (GB/T 32907) for many keys at once.
 *
 * One path per instruction set; each does the same four things, in constant time: no table lookup and no branch
 * depends on a key or a block. The path is chosen once, when the process starts, and can be set by name so that
 * every path can be tested on one machine. Blocks and keys have 16 bytes; a schedule is 32 round keys, as numbers
 * in the machine's own byte order.
 */
#ifndef KEYD_SM4_H
#define KEYD_SM4_H

#include <stddef.h>
#include <stdint.h>

#define SM4_BLOCK 16
#define SM4_ROUNDS 32

typedef uint32_t sm4_schedule[SM4_ROUNDS];

typedef struct {
    const char *name;
    /* How many blocks are computed side by side. */
    int lanes;
    int (*is_supported)(void);
    /* n pairs of a key and a block: out[i] = E(keys[i], in[i]). The key schedules are made on the way and not kept. */
    void (*encrypt_each)(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n);
    /* n keys to n schedules. */
    void (*expand)(const uint8_t *keys, sm4_schedule *schedules, size_t n);
    /* n blocks, each under its own schedule: out[i] = E(*schedules[i], in[i]). Pointers may repeat. */
    void (*encrypt_scheduled)(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out, size_t n);
    /* n blocks under one schedule (ECB). For decryption, hand over the schedule reversed. */
    void (*encrypt_ecb)(const sm4_schedule *schedule, const uint8_t *in, uint8_t *out, size_t n);
} sm4_path;

/* All paths that were compiled in, best first, ended by NULL. The last one is "portable" and always supported. */
extern const sm4_path *const sm4_paths[];

/* The path in use: the first supported one, or what sm4_select() chose. */
const sm4_path *sm4_current(void);

/* Choose a path by name. Returns 0, or -1 if there is no such path or this machine does not support it. */
int sm4_select(const char *name);

#endif
