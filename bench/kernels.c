/* What the kernels suite times: keyd's kernels, and other libraries at the same work.
 *
 * Compiled together with keyd/crypto/native, each file with the flags that the package gives it. The libraries are
 * opened when they are asked for, so that nothing but a C compiler is needed, and one that is missing is only missing.
 * Every contestant of one task computes the same answers, and says so with a fingerprint of them. Time is this
 * thread's CPU time: a stranger on the CPU is not counted.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "arena.h"
#include "card.h"
#include "sm4.h"

#define KEYS 1024          /* Keys and blocks, another key for each: 32 KiB, which stay in the cache. */
#define BULK (64 * 1024)   /* Bytes under one key. */
#define BULK_BLOCKS (BULK / SM4_BLOCK)
#define REQUESTS 64
#define CARDS 4096         /* Cards diversified at a time. */

/* For one key. The process has an arena already, the package's, and may lock 8 MiB in all. */
#define ARENA_BYTES ((size_t)512 << 10)

#define EXPORT __attribute__((visibility("default")))

static uint8_t keys[KEYS * SM4_BLOCK], blocks[KEYS * SM4_BLOCK], answers[KEYS * SM4_BLOCK];
static uint8_t bulk_in[BULK], bulk_out[BULK];
static uint8_t card_in[CARDS * SM4_BLOCK], card_keys[CARDS * SM4_BLOCK];
static uint8_t diversifiers[REQUESTS][8], factors[REQUESTS][8], challenges[REQUESTS][8];
static uint8_t cryptograms[REQUESTS][CARD_CRYPTOGRAM_BYTES];
static arena_handle city;

static const uint8_t *const one_key = keys;

static uint64_t state = 1;

static void fill(void *at, size_t bytes)
{
    uint8_t *out = at;
    for (size_t i = 0; i < bytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out[i] = (uint8_t)(state >> 56);
    }
}

static uint64_t fingerprint(const void *at, size_t bytes)
{
    const uint8_t *data = at;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ data[i]) * 1099511628211u;
    return hash;
}

/* f || ~f, which under a city's key is the card's. */
static void card_block(const uint8_t *f, uint8_t *block)
{
    for (int i = 0; i < 8; i++) {
        block[i] = f[i];
        block[8 + i] = (uint8_t)~f[i];
    }
}

/* --- keyd */

static int each_keyd(void)
{
    sm4_current()->encrypt_each(keys, blocks, answers, KEYS);
    return 0;
}

static int bulk_keyd(void)
{
    sm4_schedule schedule;
    sm4_current()->expand(one_key, &schedule, 1);
    sm4_current()->encrypt_ecb((const sm4_schedule *)&schedule, bulk_in, bulk_out, BULK_BLOCKS);
    return 0;
}

static int requests_keyd(void)
{
    card_task tasks[REQUESTS];
    memset(tasks, 0, sizeof tasks);
    for (int i = 0; i < REQUESTS; i++) {
        tasks[i].city = city;
        tasks[i].algorithm = ARENA_SM4;
        tasks[i].kind = CARD_CRYPTOGRAM;
        tasks[i].diversifier = (card_bytes){diversifiers[i], 8};
        tasks[i].session_factor = (card_bytes){factors[i], 8};
        tasks[i].data = (card_bytes){challenges[i], CARD_CHALLENGE_BYTES};
        tasks[i].out = cryptograms[i];
        card_measure(&tasks[i]);
    }
    card_compute(tasks, REQUESTS);
    for (int i = 0; i < REQUESTS; i++)
        if (tasks[i].result != CARD_DONE)
            return -1;
    return 0;
}

/* The next cards of one city, numbered as factories number them. */
static int cards_keyd(void)
{
    static uint64_t serial;
    static sm4_schedule schedule;
    if (serial == 0)
        sm4_current()->expand(one_key, &schedule, 1);
    for (int i = 0; i < CARDS; i++) {
        /* Bytes 6 to 13 of the historical ones end with the serial number, big-endian. */
        uint64_t f[2];
        f[0] = __builtin_bswap64(++serial);
        f[1] = ~f[0];
        memcpy(card_in + i * SM4_BLOCK, f, SM4_BLOCK);
    }
    sm4_current()->encrypt_ecb((const sm4_schedule *)&schedule, card_in, card_keys, CARDS);
    return 0;
}

/* --- OpenSSL, through EVP: one context, given another key each time */

static struct {
    void *(*fetch)(void *, const char *, const char *);
    void *(*new)(void);
    int (*init)(void *, const void *, const uint8_t *, const uint8_t *, const void *);
    int (*update)(void *, uint8_t *, int *, const uint8_t *, int);
    int (*set_padding)(void *, int);
    const char *(*version)(int);
    void *context, *city_context, *bulk_context;
} evp;

static void *evp_context(const void *cipher, const uint8_t *key)
{
    void *context = evp.new();
    return context && evp.init(context, cipher, key, NULL, NULL) && evp.set_padding(context, 0) ? context : NULL;
}

static int evp_open(void)
{
    void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return -1;
    *(void **)&evp.fetch = dlsym(library, "EVP_CIPHER_fetch");
    *(void **)&evp.new = dlsym(library, "EVP_CIPHER_CTX_new");
    *(void **)&evp.init = dlsym(library, "EVP_EncryptInit_ex2");
    *(void **)&evp.update = dlsym(library, "EVP_EncryptUpdate");
    *(void **)&evp.set_padding = dlsym(library, "EVP_CIPHER_CTX_set_padding");
    *(void **)&evp.version = dlsym(library, "OpenSSL_version");
    if (!evp.fetch || !evp.new || !evp.init || !evp.update || !evp.set_padding || !evp.version)
        return -1;
    void *cipher = evp.fetch(NULL, "SM4-ECB", NULL);
    if (!cipher)
        return -1;
    evp.context = evp_context(cipher, one_key);
    evp.city_context = evp_context(cipher, one_key);
    evp.bulk_context = evp_context(cipher, one_key);
    return evp.context && evp.city_context && evp.bulk_context ? 0 : -1;
}

/* One block under a key that comes for this one block. */
static int evp_block(const uint8_t *key, const uint8_t *in, uint8_t *out)
{
    int length;
    return evp.init(evp.context, NULL, key, NULL, NULL) && evp.update(evp.context, out, &length, in, SM4_BLOCK);
}

static int each_evp(void)
{
    for (int i = 0; i < KEYS; i++)
        if (!evp_block(keys + i * SM4_BLOCK, blocks + i * SM4_BLOCK, answers + i * SM4_BLOCK))
            return -1;
    return 0;
}

static int bulk_evp(void)
{
    int length;
    return evp.update(evp.bulk_context, bulk_out, &length, bulk_in, BULK) ? 0 : -1;
}

static void padded(const uint8_t *half, uint8_t *block)
{
    memcpy(block, half, 8);
    memset(block + 8, 0, 8);
}

static void folded(const uint8_t *block, uint8_t *cryptogram)
{
    for (int i = 0; i < CARD_CRYPTOGRAM_BYTES; i++)
        cryptogram[i] = block[i] ^ block[8 + i];
}

static int requests_evp(void)
{
    uint8_t block[SM4_BLOCK], card[SM4_BLOCK], session[SM4_BLOCK];
    int length;
    for (int i = 0; i < REQUESTS; i++) {
        card_block(diversifiers[i], block);
        if (!evp.update(evp.city_context, card, &length, block, SM4_BLOCK))
            return -1;
        padded(factors[i], block);
        if (!evp_block(card, block, session))
            return -1;
        padded(challenges[i], block);
        if (!evp_block(session, block, block))
            return -1;
        folded(block, cryptograms[i]);
    }
    return 0;
}

/* --- OpenSSL, the functions beneath EVP. The shared library hides them; the static one has them. */

#ifdef BENCH_STATIC_OPENSSL
int ossl_sm4_set_key(const uint8_t *key, sm4_schedule *schedule);
void ossl_sm4_encrypt(const uint8_t *in, uint8_t *out, const sm4_schedule *schedule);

static int each_beneath(void)
{
    sm4_schedule schedule;
    for (int i = 0; i < KEYS; i++) {
        ossl_sm4_set_key(keys + i * SM4_BLOCK, &schedule);
        ossl_sm4_encrypt(blocks + i * SM4_BLOCK, answers + i * SM4_BLOCK, (const sm4_schedule *)&schedule);
    }
    return 0;
}

static int requests_beneath(void)
{
    static sm4_schedule city_schedule;
    static int is_ready;
    sm4_schedule schedule;
    const sm4_schedule *made = (const sm4_schedule *)&schedule;
    uint8_t block[SM4_BLOCK], card[SM4_BLOCK], session[SM4_BLOCK];
    if (!is_ready) {
        ossl_sm4_set_key(one_key, &city_schedule);
        is_ready = 1;
    }
    for (int i = 0; i < REQUESTS; i++) {
        card_block(diversifiers[i], block);
        ossl_sm4_encrypt(block, card, (const sm4_schedule *)&city_schedule);
        ossl_sm4_set_key(card, &schedule);
        padded(factors[i], block);
        ossl_sm4_encrypt(block, session, made);
        ossl_sm4_set_key(session, &schedule);
        padded(challenges[i], block);
        ossl_sm4_encrypt(block, block, made);
        folded(block, cryptograms[i]);
    }
    return 0;
}
#endif

/* --- libgcrypt and Botan, one key, ECB */

#define GCRY_CIPHER_SM4 318
#define GCRY_CIPHER_MODE_ECB 1
#define GCRYCTL_DISABLE_SECMEM 37
#define GCRYCTL_INITIALIZATION_FINISHED 38

static struct {
    const char *(*version)(const char *);
    unsigned (*encrypt)(void *, void *, size_t, const void *, size_t);
    void *handle;
} gcrypt;

static int gcrypt_open(void)
{
    unsigned (*control)(int, ...), (*open)(void **, int, int, unsigned), (*set_key)(void *, const void *, size_t);
    void *library = dlopen("libgcrypt.so.20", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return -1;
    *(void **)&gcrypt.version = dlsym(library, "gcry_check_version");
    *(void **)&gcrypt.encrypt = dlsym(library, "gcry_cipher_encrypt");
    *(void **)&control = dlsym(library, "gcry_control");
    *(void **)&open = dlsym(library, "gcry_cipher_open");
    *(void **)&set_key = dlsym(library, "gcry_cipher_setkey");
    if (!gcrypt.version || !gcrypt.encrypt || !control || !open || !set_key || !gcrypt.version(NULL))
        return -1;
    control(GCRYCTL_DISABLE_SECMEM, 0);
    control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    if (open(&gcrypt.handle, GCRY_CIPHER_SM4, GCRY_CIPHER_MODE_ECB, 0))
        return -1;
    return set_key(gcrypt.handle, one_key, SM4_BLOCK) ? -1 : 0;
}

static int bulk_gcrypt(void)
{
    return gcrypt.encrypt(gcrypt.handle, bulk_out, BULK, bulk_in, BULK) ? -1 : 0;
}

static struct {
    const char *(*version)(void);
    int (*encrypt)(void *, const uint8_t *, uint8_t *, size_t);
    void *cipher;
} botan;

static int botan_open(void)
{
    int (*init)(void **, const char *), (*set_key)(void *, const uint8_t *, size_t);
    void *library = dlopen("libbotan-2.so.19", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return -1;
    *(void **)&botan.version = dlsym(library, "botan_version_string");
    *(void **)&botan.encrypt = dlsym(library, "botan_block_cipher_encrypt_blocks");
    *(void **)&init = dlsym(library, "botan_block_cipher_init");
    *(void **)&set_key = dlsym(library, "botan_block_cipher_set_key");
    if (!botan.version || !botan.encrypt || !init || !set_key || init(&botan.cipher, "SM4"))
        return -1;
    return set_key(botan.cipher, one_key, SM4_BLOCK) ? -1 : 0;
}

static int bulk_botan(void)
{
    return botan.encrypt(botan.cipher, bulk_in, bulk_out, BULK_BLOCKS) ? -1 : 0;
}

/* --- what Python sees */

enum task { EACH, BULK_ECB, WHOLE, CARDS_OF_A_CITY };

static const struct {
    uint8_t *answers;
    size_t bytes, units;
} tasks[] = {
    [EACH] = {answers, sizeof answers, KEYS},
    [BULK_ECB] = {bulk_out, BULK, BULK_BLOCKS},
    [WHOLE] = {cryptograms[0], sizeof cryptograms, REQUESTS},
    [CARDS_OF_A_CITY] = {card_keys, sizeof card_keys, CARDS},
};

static const struct {
    const char *name;
    enum task task;
    int (*run)(void);
} contestants[] = {
    {"each keyd", EACH, each_keyd},
    {"each EVP", EACH, each_evp},
    {"bulk keyd", BULK_ECB, bulk_keyd},
    {"bulk EVP", BULK_ECB, bulk_evp},
    {"bulk libgcrypt", BULK_ECB, bulk_gcrypt},
    {"bulk Botan", BULK_ECB, bulk_botan},
    {"request keyd", WHOLE, requests_keyd},
    {"request EVP", WHOLE, requests_evp},
    {"cards keyd", CARDS_OF_A_CITY, cards_keyd},
#ifdef BENCH_STATIC_OPENSSL
    {"each beneath EVP", EACH, each_beneath},
    {"request beneath EVP", WHOLE, requests_beneath},
#endif
};

/* Make keys and blocks, always the same. 0 if keyd and OpenSSL are ready. */
EXPORT int bench_open(void)
{
    state = 1;
    fill(keys, sizeof keys);
    fill(blocks, sizeof blocks);
    fill(bulk_in, sizeof bulk_in);
    fill(diversifiers, sizeof diversifiers);
    fill(factors, sizeof factors);
    fill(challenges, sizeof challenges);
    if (arena_open(ARENA_BYTES) != ARENA_OK || arena_take(ARENA_SM4, one_key, &city) != ARENA_OK)
        return 1;
    return evp_open() ? 2 : 0;
}

/* The version of a library, NULL if it is not there. */
EXPORT const char *bench_version(const char *library)
{
    if (strcmp(library, "EVP") == 0)
        return evp.version(0);
    if (strcmp(library, "libgcrypt") == 0)
        return gcrypt.handle || gcrypt_open() == 0 ? gcrypt.version(NULL) : NULL;
    if (strcmp(library, "Botan") == 0)
        return botan.cipher || botan_open() == 0 ? botan.version() : NULL;
    return NULL;
}

/* The name of path i, NULL after the last one. */
EXPORT const char *bench_path(int i)
{
    return sm4_paths[i] ? sm4_paths[i]->name : NULL;
}

EXPORT int bench_select(const char *path)
{
    return sm4_select(path);
}

/* How many units a contestant computes in a round; 0 if there is no such contestant. */
EXPORT uint64_t bench_units(const char *name)
{
    for (size_t i = 0; i < sizeof contestants / sizeof *contestants; i++)
        if (strcmp(contestants[i].name, name) == 0)
            return tasks[contestants[i].task].units;
    return 0;
}

/* Run a contestant so many rounds. Returns the CPU time in nanoseconds, or -1 if it failed; `seen` is the fingerprint
 * of its last answers. */
EXPORT int64_t bench_run(const char *name, uint64_t rounds, uint64_t *seen)
{
    for (size_t i = 0; i < sizeof contestants / sizeof *contestants; i++) {
        if (strcmp(contestants[i].name, name) != 0)
            continue;
        struct timespec before, after;
        memset(tasks[contestants[i].task].answers, 0, tasks[contestants[i].task].bytes);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
        for (uint64_t round = 0; round < rounds; round++)
            if (contestants[i].run() != 0)
                return -1;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
        *seen = fingerprint(tasks[contestants[i].task].answers, tasks[contestants[i].task].bytes);
        return (after.tv_sec - before.tv_sec) * INT64_C(1000000000) + after.tv_nsec - before.tv_nsec;
    }
    return -1;
}
