/* Every SM4 path against a plain one, at the edges of memory; and, under valgrind, against the secrets it handles.
 *
 *   sm4_check compare          each path that this machine supports, each operation, 0 to 200 blocks, in buffers that
 *                              end, and others that begin, where memory is forbidden; prints the paths' names
 *   sm4_check secrets          each path with keys and blocks marked undefined: memcheck complains of any branch and
 *                              any address that depends on them
 *   sm4_check leak             the same with a lookup that does depend on them: memcheck must complain
 *
 * The plain SM4 here is the standard's text: an S-box in a table (computed, from its algebra), and words.
 */
#define _GNU_SOURCE

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sm4.h"

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#endif
#endif
#ifndef VALGRIND_MAKE_MEM_UNDEFINED
#define VALGRIND_MAKE_MEM_UNDEFINED(memory, size) ((void)(memory), (void)(size))
#define VALGRIND_MAKE_MEM_DEFINED(memory, size) ((void)(memory), (void)(size))
#endif

#define MOST 200
#define PAGE 4096
/* Room for MOST schedules, the largest thing in a buffer. */
#define ROOM (((MOST * sizeof(sm4_schedule)) / PAGE + 1) * PAGE)

/* For the Python test, which has no fast loop of its own. */
void sm4_chain(const sm4_path *path, const uint8_t *key, uint8_t *block, size_t rounds);

void sm4_chain(const sm4_path *path, const uint8_t *key, uint8_t *block, size_t rounds)
{
    sm4_schedule schedule;
    path->expand(key, &schedule, 1);
    while (rounds-- > 0)
        path->encrypt_ecb((const sm4_schedule *)&schedule, block, block, 1);
}

static uint8_t sbox[256];

static unsigned multiply(unsigned a, unsigned b)
{
    unsigned product = 0;
    for (; b; b >>= 1) {
        if (b & 1)
            product ^= a;
        a = a << 1 ^ (a & 0x80 ? 0x1f5 : 0);
    }
    return product;
}

static unsigned affine(unsigned x)
{
    unsigned y = 0xd3;
    for (unsigned i = 0; i < 8; i++)
        y ^= (unsigned)__builtin_parity(x & 0xff & (0xa7u << i | 0xa7u >> (8 - i))) << i;
    return y;
}

static void make_sbox(void)
{
    for (unsigned x = 0; x < 256; x++) {
        const unsigned y = affine(x);
        unsigned inverse = 0;
        for (unsigned z = 1; z < 256; z++)
            if (multiply(y, z) == 1)
                inverse = z;
        sbox[x] = (uint8_t)affine(inverse);
    }
}

static uint32_t turn(uint32_t w, int by)
{
    return w << by | w >> (32 - by);
}

static uint32_t substitute(uint32_t w)
{
    return (uint32_t)sbox[w >> 24] << 24 | (uint32_t)sbox[w >> 16 & 255] << 16 | (uint32_t)sbox[w >> 8 & 255] << 8 |
           sbox[w & 255];
}

static uint32_t load(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void plain_expand(const uint8_t *key, uint32_t *schedule)
{
    static const uint32_t fk[4] = {0xa3b1bac6, 0x56aa3350, 0x677d9197, 0xb27022dc};
    uint32_t k[SM4_ROUNDS + 4];
    for (int i = 0; i < 4; i++)
        k[i] = load(key + 4 * i) ^ fk[i];
    for (int i = 0; i < SM4_ROUNDS; i++) {
        uint32_t ck = 0;
        for (int j = 0; j < 4; j++)
            ck = ck << 8 | (uint32_t)((4 * i + j) * 7 % 256);
        const uint32_t b = substitute(k[i + 1] ^ k[i + 2] ^ k[i + 3] ^ ck);
        schedule[i] = k[i + 4] = k[i] ^ b ^ turn(b, 13) ^ turn(b, 23);
    }
}

static void plain_encrypt(const uint32_t *schedule, const uint8_t *in, uint8_t *out)
{
    uint32_t x[SM4_ROUNDS + 4];
    for (int i = 0; i < 4; i++)
        x[i] = load(in + 4 * i);
    for (int i = 0; i < SM4_ROUNDS; i++) {
        const uint32_t b = substitute(x[i + 1] ^ x[i + 2] ^ x[i + 3] ^ schedule[i]);
        x[i + 4] = x[i] ^ b ^ turn(b, 2) ^ turn(b, 10) ^ turn(b, 18) ^ turn(b, 24);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            out[4 * i + j] = (uint8_t)(x[SM4_ROUNDS + 3 - i] >> (24 - 8 * j));
}

/* A buffer between two forbidden pages: it ends at the second, or begins `offset` behind the first. */
typedef struct {
    uint8_t *pages;
} fenced;

static fenced fence(void)
{
    uint8_t *pages = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + PAGE, ROOM, PROT_READ | PROT_WRITE)) {
        perror("mmap");
        exit(2);
    }
    return (fenced){pages};
}

static void *place(fenced buffer, size_t size, int at_end, size_t offset)
{
    return at_end ? buffer.pages + PAGE + ROOM - size : buffer.pages + PAGE + offset;
}

static uint8_t keys[MOST * SM4_BLOCK], blocks[MOST * SM4_BLOCK];
static uint8_t under_own[MOST * SM4_BLOCK], under_one[MOST * SM4_BLOCK];
static sm4_schedule schedules[MOST];

static void prepare(void)
{
    uint32_t state = 20261123;
    make_sbox();
    for (size_t i = 0; i < sizeof keys; i++) {
        state = state * 1664525 + 1013904223;
        keys[i] = (uint8_t)(state >> 24);
        blocks[i] = (uint8_t)(state >> 16);
    }
    for (size_t i = 0; i < MOST; i++) {
        plain_expand(keys + SM4_BLOCK * i, schedules[i]);
        plain_encrypt(schedules[i], blocks + SM4_BLOCK * i, under_own + SM4_BLOCK * i);
        plain_encrypt(schedules[0], blocks + SM4_BLOCK * i, under_one + SM4_BLOCK * i);
    }
}

static void insist(int holds, const sm4_path *path, const char *what, size_t n)
{
    if (!holds) {
        fprintf(stderr, "%s: %s of %zu blocks is wrong\n", path->name, what, n);
        exit(1);
    }
}

static void compare(const sm4_path *path, const fenced f[4], size_t n, int at_end, size_t offset)
{
    const size_t size = n * SM4_BLOCK;
    uint8_t *key = place(f[0], size, at_end, offset), *in = place(f[1], size, at_end, offset);
    uint8_t *out = place(f[2], size, at_end, offset);
    /* Round keys are numbers, and the compiler may count on their alignment. */
    sm4_schedule *schedule = place(f[3], n * sizeof(sm4_schedule), at_end, 4 * offset);
    const sm4_schedule *pointers[MOST];

    memcpy(key, keys, size);
    memcpy(in, blocks, size);
    memset(out, 0, size);
    path->encrypt_each(key, in, out, n);
    insist(!memcmp(out, under_own, size), path, "encrypt_each", n);
    insist(!memcmp(key, keys, size) && !memcmp(in, blocks, size), path, "encrypt_each, its input afterwards,", n);
    path->encrypt_each(key, in, in, n);
    insist(!memcmp(in, under_own, size), path, "encrypt_each in place", n);

    memcpy(in, blocks, size);
    memset(schedule, 0, n * sizeof(sm4_schedule));
    path->expand(key, schedule, n);
    insist(!memcmp(schedule, schedules, n * sizeof(sm4_schedule)), path, "expand", n);

    for (size_t i = 0; i < n; i++)
        pointers[i] = (const sm4_schedule *)&schedule[n - 1 - i];
    memset(out, 0, size);
    for (size_t i = 0; i < n; i++)
        memcpy(in + SM4_BLOCK * i, blocks + SM4_BLOCK * (n - 1 - i), SM4_BLOCK);
    path->encrypt_scheduled(pointers, in, out, n);
    for (size_t i = 0; i < n; i++)
        insist(!memcmp(out + SM4_BLOCK * i, under_own + SM4_BLOCK * (n - 1 - i), SM4_BLOCK), path,
               "encrypt_scheduled", n);

    for (size_t i = 0; i < n; i++)
        pointers[i] = (const sm4_schedule *)&schedule[0];
    memcpy(in, blocks, size);
    path->encrypt_scheduled(pointers, in, in, n);
    insist(!memcmp(in, under_one, size), path, "encrypt_scheduled in place, under one schedule,", n);

    if (n > 0) {
        memcpy(in, blocks, size);
        memset(out, 0, size);
        path->encrypt_ecb((const sm4_schedule *)schedule, in, out, n);
        insist(!memcmp(out, under_one, size), path, "encrypt_ecb", n);
        path->encrypt_ecb((const sm4_schedule *)schedule, in, in, n);
        insist(!memcmp(in, under_one, size), path, "encrypt_ecb in place", n);
    }
}

static void compare_all(void)
{
    const fenced f[4] = {fence(), fence(), fence(), fence()};
    for (const sm4_path *const *path = sm4_paths; *path != NULL; path++) {
        if (!(*path)->is_supported())
            continue;
        for (size_t n = 0; n <= MOST; n++) {
            compare(*path, f, n, 1, 0);
            compare(*path, f, n, 0, n % SM4_BLOCK);
        }
        puts((*path)->name);
    }
}

static void hide(void *memory, size_t size)
{
    VALGRIND_MAKE_MEM_UNDEFINED(memory, size);
}

static void show(void *memory, size_t size)
{
    VALGRIND_MAKE_MEM_DEFINED(memory, size);
}

static void run_with_secrets(const sm4_path *path, size_t n)
{
    static uint8_t key[MOST * SM4_BLOCK], in[MOST * SM4_BLOCK], out[MOST * SM4_BLOCK];
    static sm4_schedule schedule[MOST];
    const sm4_schedule *pointers[MOST];
    const size_t size = n * SM4_BLOCK;

    memcpy(key, keys, size);
    memcpy(in, blocks, size);
    hide(key, size);
    hide(in, size);

    path->encrypt_each(key, in, out, n);
    show(out, size);
    insist(!memcmp(out, under_own, size), path, "encrypt_each", n);

    /* The schedules stay undefined: they were computed from keys that are. */
    path->expand(key, schedule, n);
    for (size_t i = 0; i < n; i++)
        pointers[i] = (const sm4_schedule *)&schedule[i];
    path->encrypt_scheduled(pointers, in, out, n);
    show(out, size);
    insist(!memcmp(out, under_own, size), path, "encrypt_scheduled", n);

    path->encrypt_ecb((const sm4_schedule *)schedule, in, out, n);
    show(out, size);
    insist(!memcmp(out, under_one, size), path, "encrypt_ecb", n);
}

int main(int count, char **arguments)
{
    prepare();
    if (count == 2 && !strcmp(arguments[1], "compare")) {
        compare_all();
        return 0;
    }
    if (count == 2 && !strcmp(arguments[1], "secrets")) {
        for (const sm4_path *const *path = sm4_paths; *path != NULL; path++) {
            if (!(*path)->is_supported())
                continue;
            static const size_t sizes[] = {1, 3, 4, 7, 9, 16, 21, 32, 33, 64, 77};
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                run_with_secrets(*path, sizes[i]);
            puts((*path)->name);
        }
        return 0;
    }
    if (count == 2 && !strcmp(arguments[1], "leak")) {
        uint8_t out[SM4_BLOCK];
        hide(schedules[0], sizeof schedules[0]);
        plain_encrypt(schedules[0], blocks, out);
        show(out, sizeof out);
        return out[0] == under_own[0] ? 0 : 1;
    }
    fprintf(stderr, "usage: sm4_check compare | secrets | leak\n");
    return 2;
}
