#include "gcm.h"

#include <string.h>

#include "gf128.h"
#include "key.h"
#include "verdict.h"

/* Enough for the widest path of SM4 to run at its full speed, and soon wiped. */
#define STREAM_BLOCKS 64

typedef struct {
    gf128 hash_key; /* H */
    gf128 hash;
    uint8_t mask[SM4_BLOCK]; /* E(first counter block): hides the tag. */
    uint8_t block[SM4_BLOCK];
    uint8_t tag[GCM_TAG_BYTES];
    uint8_t nonce[GCM_NONCE_BYTES];
    uint8_t key[ARENA_KEY_BYTES];
    uint8_t stream[STREAM_BLOCKS * SM4_BLOCK];
} gcm_state;

_Static_assert(sizeof(gcm_state) <= ARENA_SCRATCH_BYTES, "it is computed in a scratch region");

static void store_32(uint8_t *bytes, uint32_t number)
{
    for (int i = 3; i >= 0; i--, number >>= 8)
        bytes[i] = (uint8_t)number;
}

static void store_64(uint8_t *bytes, uint64_t number)
{
    store_32(bytes, (uint32_t)(number >> 32));
    store_32(bytes + 4, (uint32_t)number);
}

static void ghash_block(gcm_state *gcm, const uint8_t *block)
{
    gf128 element = gf128_load_reflected(block);

    gcm->hash.high ^= element.high;
    gcm->hash.low ^= element.low;
    gf128_multiply(&gcm->hash, &gcm->hash_key);
}

static void ghash(gcm_state *gcm, const uint8_t *bytes, size_t length)
{
    for (; length >= SM4_BLOCK; bytes += SM4_BLOCK, length -= SM4_BLOCK)
        ghash_block(gcm, bytes);
    if (length) {
        memset(gcm->block, 0, SM4_BLOCK);
        memcpy(gcm->block, bytes, length);
        ghash_block(gcm, gcm->block);
    }
}

static gcm_state *begin(const arena_cell *kek, const uint8_t *nonce)
{
    /* Fresh scratch is all zero: so is the first block. */
    gcm_state *gcm = arena_scratch_take();

    if (!gcm)
        return NULL;
    key_encrypt(kek, gcm->block, gcm->mask, SM4_BLOCK);
    gcm->hash_key = gf128_load_reflected(gcm->mask);
    memcpy(gcm->nonce, nonce, GCM_NONCE_BYTES);
    memcpy(gcm->block, nonce, GCM_NONCE_BYTES);
    store_32(gcm->block + GCM_NONCE_BYTES, 1);
    key_encrypt(kek, gcm->block, gcm->mask, SM4_BLOCK);
    return gcm;
}

static void end(gcm_state *gcm)
{
    arena_scratch_give(gcm, sizeof *gcm);
    gf128_burn();
}

static void crypt(gcm_state *gcm, const arena_cell *kek, const uint8_t *in, uint8_t *out, size_t length)
{
    /* 1 was the mask's. With GCM_MAX_BYTES it stays far below 2^32, where it would begin anew. */
    uint32_t counter = 2;

    while (length) {
        size_t part = length < sizeof gcm->stream ? length : sizeof gcm->stream;
        size_t blocks = (part + SM4_BLOCK - 1) / SM4_BLOCK;
        for (size_t i = 0; i < blocks; i++) {
            memcpy(gcm->stream + i * SM4_BLOCK, gcm->nonce, GCM_NONCE_BYTES);
            store_32(gcm->stream + i * SM4_BLOCK + GCM_NONCE_BYTES, counter++);
        }
        key_encrypt(kek, gcm->stream, gcm->stream, blocks * SM4_BLOCK);
        for (size_t i = 0; i < part; i++)
            out[i] = in[i] ^ gcm->stream[i];
        in += part;
        out += part;
        length -= part;
    }
}

static void make_tag(gcm_state *gcm, const uint8_t *header, size_t header_length, const uint8_t *ciphertext,
                     size_t length)
{
    ghash(gcm, header, header_length);
    ghash(gcm, ciphertext, length);
    store_64(gcm->block, (uint64_t)header_length * 8);
    store_64(gcm->block + 8, (uint64_t)length * 8);
    ghash_block(gcm, gcm->block);
    gf128_store_reflected(gcm->tag, &gcm->hash);
    for (int i = 0; i < GCM_TAG_BYTES; i++)
        gcm->tag[i] ^= gcm->mask[i];
}

arena_status gcm_seal(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const uint8_t *in, size_t length, uint8_t *out)
{
    gcm_state *gcm = begin(kek, nonce);

    if (!gcm)
        return ARENA_GONE;
    crypt(gcm, kek, in, out, length);
    make_tag(gcm, header, header_length, out, length);
    memcpy(out + length, gcm->tag, GCM_TAG_BYTES);
    end(gcm);
    return ARENA_OK;
}

arena_status gcm_open(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const uint8_t *sealed, size_t length, uint8_t *out, gcm_verdict *verdict)
{
    gcm_state *gcm = begin(kek, nonce);

    *verdict = GCM_NOT_AUTHENTIC;
    if (!gcm)
        return ARENA_GONE;
    make_tag(gcm, header, header_length, sealed, length);
    if (!bytes_differ(gcm->tag, sealed + length, GCM_TAG_BYTES)) {
        *verdict = GCM_AUTHENTIC;
        crypt(gcm, kek, sealed, out, length);
    }
    end(gcm);
    return ARENA_OK;
}

arena_status gcm_wrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const arena_cell *key, uint8_t *out)
{
    return gcm_seal(kek, nonce, header, header_length, key->key, arena_key_bytes((arena_algorithm)key->algorithm),
                    out);
}

arena_status gcm_unwrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                        const uint8_t *wrapped, arena_algorithm algorithm, arena_handle *made, gcm_verdict *verdict)
{
    size_t length = arena_key_bytes(algorithm);
    arena_status status = ARENA_OK;
    gcm_state *gcm = begin(kek, nonce);

    *made = 0;
    *verdict = GCM_NOT_AUTHENTIC;
    if (!gcm)
        return ARENA_GONE;
    make_tag(gcm, header, header_length, wrapped, length);
    if (!bytes_differ(gcm->tag, wrapped + length, GCM_TAG_BYTES)) {
        *verdict = GCM_AUTHENTIC;
        /* Not gcm_open() into a region of its own: whoever waits for a second one while holding the first may wait for
         * ever. */
        crypt(gcm, kek, wrapped, gcm->key, length);
        status = arena_take(algorithm, gcm->key, made);
    }
    end(gcm);
    return status;
}
