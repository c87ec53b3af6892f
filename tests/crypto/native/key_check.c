/* What C does with keys, with known answers; and, under valgrind, with every secret marked undefined: memcheck then
 * complains of any branch and any address that depends on one.
 *
 *   key_check answers   keys, data, shares and random bytes are undefined; verdict.c's verdicts are not
 *   key_check tag       the same with the tag's verdict left undefined: memcheck must complain
 *   key_check weak      the same with the verdict on weak keys left undefined: memcheck must complain
 *   key_check index     a lookup in a table by a byte of a key: memcheck must complain
 *
 * Linked with --wrap for getrandom, bytes_differ and key_is_weak.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "arena.h"
#include "gcm.h"
#include "key.h"
#include "shamir.h"
#include "verdict.h"

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#endif
#endif
#ifndef VALGRIND_MAKE_MEM_UNDEFINED
#define VALGRIND_MAKE_MEM_UNDEFINED(memory, size) ((void)(memory), (void)(size))
#define VALGRIND_MAKE_MEM_DEFINED(memory, size) ((void)(memory), (void)(size))
#endif

ssize_t __real_getrandom(void *memory, size_t size, unsigned flags);
ssize_t __wrap_getrandom(void *memory, size_t size, unsigned flags);
int __real_bytes_differ(const uint8_t *a, const uint8_t *b, size_t n);
int __wrap_bytes_differ(const uint8_t *a, const uint8_t *b, size_t n);
int __real_key_is_weak(arena_algorithm algorithm, const uint8_t *key);
int __wrap_key_is_weak(arena_algorithm algorithm, const uint8_t *key);

static int random_is_secret, tag_is_secret, weakness_is_secret, short_reads, weak_draws;

static void hide(void *memory, size_t size)
{
    VALGRIND_MAKE_MEM_UNDEFINED(memory, size);
}

static void show(void *memory, size_t size)
{
    VALGRIND_MAKE_MEM_DEFINED(memory, size);
}

ssize_t __wrap_getrandom(void *memory, size_t size, unsigned flags)
{
    /* The kernel may give less than it was asked for. */
    if (short_reads && size > 5)
        size = 5;
    ssize_t got = __real_getrandom(memory, size, flags);
    if (weak_draws > 0) {
        weak_draws--;
        memset(memory, 0, size);
    }
    if (random_is_secret)
        hide(memory, size);
    return got;
}

int __wrap_bytes_differ(const uint8_t *a, const uint8_t *b, size_t n)
{
    int differ = __real_bytes_differ(a, b, n);

    if (!tag_is_secret)
        show(&differ, sizeof differ);
    return differ;
}

int __wrap_key_is_weak(arena_algorithm algorithm, const uint8_t *key)
{
    int is_weak = __real_key_is_weak(algorithm, key);

    if (!weakness_is_secret)
        show(&is_weak, sizeof is_weak);
    return is_weak;
}

static void insist(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static const uint8_t material[2][16] = {
    {0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF, 0xFE, 0xDC, 0xBA, 0x98, 0x76, 0x54, 0x32, 0x10},
    {0xF1, 0xE2, 0xD3, 0xC4, 0xB5, 0xA6, 0x97, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00}};

static arena_handle load(arena_algorithm algorithm, const uint8_t *bytes)
{
    uint8_t secret[16];
    arena_handle handle;

    memcpy(secret, bytes, sizeof secret);
    hide(secret, sizeof secret);
    insist(arena_take(algorithm, secret, &handle) == ARENA_OK, "a key is loaded");
    return handle;
}

static const arena_cell *pin(arena_handle handle)
{
    const arena_cell *cell;

    insist(arena_pin(handle, &cell) == ARENA_OK, "a key is pinned");
    return cell;
}

static void insist_key(arena_handle handle, const uint8_t *bytes, const char *what)
{
    const arena_cell *cell = pin(handle);
    uint8_t key[16];
    size_t length = arena_key_bytes((arena_algorithm)cell->algorithm);

    memcpy(key, cell->key, length);
    show(key, sizeof key);
    insist(!memcmp(key, bytes, length), what);
    arena_unpin(cell);
    insist(arena_free(handle) == ARENA_OK, "a key is freed");
}

static const arena_algorithm algorithms[] = {ARENA_SM4, ARENA_TDES, ARENA_DES};

static void check_generate(void)
{
    for (int i = 0; i < 3; i++) {
        arena_handle first, second;
        uint8_t key[2][16] = {{0}};
        size_t length = arena_key_bytes(algorithms[i]);
        weak_draws = short_reads ? 0 : 2;
        insist(key_generate(algorithms[i], &first) == ARENA_OK, "a key is made");
        insist(weak_draws == 0, "weak draws are drawn again");
        insist(key_generate(algorithms[i], &second) == ARENA_OK, "another key is made");
        const arena_cell *cells[2] = {pin(first), pin(second)};
        for (int j = 0; j < 2; j++) {
            memcpy(key[j], cells[j]->key, length);
            arena_unpin(cells[j]);
        }
        show(key, sizeof key);
        insist(memcmp(key[0], key[1], length) != 0, "two random keys are different");
        for (size_t j = 0; algorithms[i] != ARENA_SM4 && j < length; j++)
            insist(__builtin_parity(key[0][j]), "parity is odd");
    }
}

static void check_xor(void)
{
    uint8_t expected[16];

    for (int i = 0; i < 16; i++)
        expected[i] = material[0][i] ^ material[1][i];
    for (int i = 0; i < 3; i++) {
        const arena_cell *left = pin(load(algorithms[i], material[0]));
        const arena_cell *right = pin(load(algorithms[i], material[1]));
        arena_handle made;
        int is_weak;
        insist(key_xor(left, right, &made, &is_weak) == ARENA_OK && !is_weak, "two keys are added");
        insist_key(made, expected, "the sum of two keys");
        insist(key_xor(left, left, &made, &is_weak) == ARENA_OK && is_weak && !made, "equal keys cancel");
        arena_unpin(left);
        arena_unpin(right);
    }
}

/* RFC 8998, A.1 */
static const uint8_t nonce[12] = {0, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0xAB, 0xCD};
static const uint8_t header[20] = {0xFE, 0xED, 0xFA, 0xCE, 0xDE, 0xAD, 0xBE, 0xEF, 0xFE, 0xED,
                                   0xFA, 0xCE, 0xDE, 0xAD, 0xBE, 0xEF, 0xAB, 0xAD, 0xDA, 0xD2};
static const uint8_t fill[8] = {0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF, 0xEE, 0xAA};
static const uint8_t sealed[80] = {
    0x17, 0xF3, 0x99, 0xF0, 0x8C, 0x67, 0xD5, 0xEE, 0x19, 0xD0, 0xDC, 0x99, 0x69, 0xC4, 0xBB, 0x7D,
    0x5F, 0xD4, 0x6F, 0xD3, 0x75, 0x64, 0x89, 0x06, 0x91, 0x57, 0xB2, 0x82, 0xBB, 0x20, 0x07, 0x35,
    0xD8, 0x27, 0x10, 0xCA, 0x5C, 0x22, 0xF0, 0xCC, 0xFA, 0x7C, 0xBF, 0x93, 0xD4, 0x96, 0xAC, 0x15,
    0xA5, 0x68, 0x34, 0xCB, 0xCF, 0x98, 0xC3, 0x97, 0xB4, 0x02, 0x4A, 0x26, 0x91, 0x23, 0x3B, 0x8D,
    0x83, 0xDE, 0x35, 0x41, 0xE4, 0xC2, 0xB5, 0x81, 0x77, 0xE0, 0x65, 0xA9, 0xBF, 0x7B, 0x62, 0xEC};

static void check_gcm(void)
{
    const arena_cell *kek = pin(load(ARENA_SM4, material[0]));
    uint8_t data[2000], out[2000 + GCM_TAG_BYTES], opened[2000];
    gcm_verdict verdict;
    arena_handle made;

    for (int i = 0; i < 64; i++)
        data[i] = fill[i / 8];
    hide(data, sizeof data);
    insist(gcm_seal(kek, nonce, header, sizeof header, data, 64, out) == ARENA_OK, "data are sealed");
    show(out, 80);
    insist(!memcmp(out, sealed, 80), "the RFC's data under their tag");

    static const size_t lengths[] = {0, 1, 15, 16, 17, 64, 100, 1023, 1024, 1025, 2000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t length = lengths[i];
        for (size_t j = 0; j < length; j++)
            data[j] = (uint8_t)(j * 7 + i);
        hide(data, length);
        insist(gcm_seal(kek, nonce, header, i, data, length, out) == ARENA_OK, "data are sealed");
        insist(gcm_open(kek, nonce, header, i, out, length, opened, &verdict) == ARENA_OK, "they open");
        insist(verdict == GCM_AUTHENTIC, "they are authentic");
        show(opened, length);
        show(data, length);
        insist(!memcmp(opened, data, length), "they are the same");
        out[length] ^= 1;
        insist(gcm_open(kek, nonce, header, i, out, length, opened, &verdict) == ARENA_OK, "it is tried");
        insist(verdict == GCM_NOT_AUTHENTIC, "another tag is not authentic");
    }
    for (int i = 0; i < 3; i++) {
        const arena_cell *key = pin(load(algorithms[i], material[1]));
        insist(gcm_wrap(kek, nonce, header, sizeof header, key, out) == ARENA_OK, "a key is wrapped");
        insist(gcm_unwrap(kek, nonce, header, sizeof header, out, algorithms[i], &made, &verdict) == ARENA_OK,
               "it unwraps");
        insist(verdict == GCM_AUTHENTIC, "it is authentic");
        insist_key(made, material[1], "the unwrapped key");
        arena_unpin(key);
    }
    arena_unpin(kek);
}

static void check_transport(void)
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 2; j++) {
            const arena_cell *transport = pin(load(algorithms[j], material[0]));
            const arena_cell *key = pin(load(algorithms[i], material[1]));
            uint8_t encrypted[16];
            arena_handle made;
            if (arena_key_bytes(algorithms[i]) % key_block_bytes(algorithms[j]) == 0) {
                key_encrypt_key(transport, key, encrypted);
                insist(key_decrypt_to_key(transport, encrypted, algorithms[i], &made) == ARENA_OK,
                       "a key is decrypted");
                insist_key(made, material[1], "the decrypted key");
            }
            arena_unpin(transport);
            arena_unpin(key);
        }
}

static void check_sharing(void)
{
    static uint8_t shares[SHAMIR_MAX_SHARES][SHAMIR_SHARE_BYTES];
    uint8_t *places[SHAMIR_MAX_SHARES];
    const arena_cell *cell = pin(load(ARENA_SM4, material[0]));

    for (size_t i = 0; i < SHAMIR_MAX_SHARES; i++)
        places[i] = shares[i];
    static const size_t schemes[][2] = {{1, 1}, {1, 3}, {2, 2}, {2, 3}, {3, 5}, {7, 7}, {20, 255}};
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        size_t threshold = schemes[i][0], count = schemes[i][1];
        uint8_t numbers[SHAMIR_MAX_SHARES];
        const uint8_t *presented[SHAMIR_MAX_SHARES];
        arena_handle made;
        insist(shamir_split(cell, threshold, count, places) == ARENA_OK, "a key is split");
        /* The last ones, backwards. */
        for (size_t j = 0; j < threshold; j++) {
            numbers[j] = (uint8_t)(count - j);
            presented[j] = shares[count - j - 1];
        }
        insist(shamir_combine(ARENA_SM4, numbers, presented, threshold, &made) == ARENA_OK, "it is combined");
        insist_key(made, material[0], "the combined key");
    }
    arena_unpin(cell);
}

int main(int count, char **arguments)
{
    insist(arena_open((size_t)1 << 20) == ARENA_OK, "the arena opens");
    random_is_secret = 1;
    if (count == 2 && !strcmp(arguments[1], "index")) {
        static const uint8_t table[256] = {1};
        const arena_cell *cell = pin(load(ARENA_SM4, material[0]));
        volatile uint8_t looked_up = table[cell->key[0]];
        return looked_up;
    }
    if (count != 2) {
        fprintf(stderr, "usage: key_check answers | tag | weak | index\n");
        return 2;
    }
    tag_is_secret = !strcmp(arguments[1], "tag");
    weakness_is_secret = !strcmp(arguments[1], "weak");
    for (short_reads = 0; short_reads < 2; short_reads++) {
        check_generate();
        check_xor();
        check_gcm();
        check_transport();
        check_sharing();
    }
    puts(sm4_current()->name);
    arena_wipe_all();
    return 0;
}
