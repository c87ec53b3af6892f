#include "key.h"

#include <string.h>

size_t key_block_bytes(arena_algorithm algorithm)
{
    return algorithm == ARENA_SM4 ? SM4_BLOCK : DES_BLOCK;
}

int bytes_differ(const uint8_t *a, const uint8_t *b, size_t n)
{
    /* volatile, so that no compiler finds out that it might stop early. */
    volatile uint8_t difference = 0;

    for (size_t i = 0; i < n; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return (int)((0u - difference) >> 31);
}

void key_encrypt(const arena_cell *cell, const uint8_t *in, uint8_t *out, size_t length)
{
    switch ((arena_algorithm)cell->algorithm) {
    case ARENA_SM4:
        sm4_current()->encrypt_ecb(&cell->schedule.sm4, in, out, length / SM4_BLOCK);
        break;
    case ARENA_TDES:
        tdes_encrypt(cell->schedule.des, in, out, length / DES_BLOCK);
        break;
    case ARENA_DES:
        des_encrypt(cell->schedule.des[0], in, out, length / DES_BLOCK);
        break;
    }
}

arena_status key_decrypt(const arena_cell *cell, const uint8_t *in, uint8_t *out, size_t length)
{
    if (cell->algorithm == ARENA_TDES) {
        tdes_decrypt(cell->schedule.des, in, out, length / DES_BLOCK);
    } else if (cell->algorithm == ARENA_DES) {
        des_decrypt(cell->schedule.des[0], in, out, length / DES_BLOCK);
    } else {
        sm4_schedule *reversed = arena_scratch_take();
        if (!reversed)
            return ARENA_GONE;
        for (int i = 0; i < SM4_ROUNDS; i++)
            (*reversed)[i] = cell->schedule.sm4[SM4_ROUNDS - 1 - i];
        sm4_current()->encrypt_ecb((const sm4_schedule *)reversed, in, out, length / SM4_BLOCK);
        arena_scratch_give(reversed, sizeof *reversed);
    }
    return ARENA_OK;
}

void key_cbc_mac(const arena_cell *cell, const uint8_t *iv, const uint8_t *in, size_t length, uint8_t *mac)
{
    size_t size = key_block_bytes((arena_algorithm)cell->algorithm);
    uint8_t block[KEY_MAX_BLOCK];

    memcpy(mac, iv, size);
    for (size_t at = 0; at < length; at += size) {
        for (size_t i = 0; i < size; i++)
            block[i] = mac[i] ^ in[at + i];
        key_encrypt(cell, block, mac, size);
    }
    arena_wipe(block, sizeof block);
}

arena_status key_encrypt_to_key(const arena_cell *cell, const uint8_t *in, arena_algorithm algorithm,
                                arena_handle *made)
{
    uint8_t *key = arena_scratch_take();

    *made = 0;
    if (!key)
        return ARENA_GONE;
    key_encrypt(cell, in, key, arena_key_bytes(algorithm));
    arena_status status = arena_take(algorithm, key, made);
    arena_scratch_give(key, ARENA_KEY_BYTES);
    return status;
}

arena_status key_xor_halves(const arena_cell *cell, arena_handle *made)
{
    uint8_t *key = arena_scratch_take();

    *made = 0;
    if (!key)
        return ARENA_GONE;
    for (int i = 0; i < 8; i++)
        key[i] = cell->key[i] ^ cell->key[i + 8];
    arena_status status = arena_take(ARENA_DES, key, made);
    arena_scratch_give(key, ARENA_KEY_BYTES);
    return status;
}

/* --- GCM (NIST SP 800-38D) with SM4, for messages as short as a key */

typedef struct {
    uint64_t hash_key[2]; /* H, the first eight bytes first. */
    uint64_t hash[2];
    uint8_t counter[SM4_BLOCK];
    uint8_t block[SM4_BLOCK];
    uint8_t mask[SM4_BLOCK]; /* E(first counter block): hides the tag. */
    uint8_t tag[GCM_TAG_BYTES];
    uint8_t key[ARENA_KEY_BYTES];
} gcm_state;

_Static_assert(sizeof(gcm_state) <= ARENA_SCRATCH_BYTES, "it is computed in a scratch region");

static uint64_t load_64(const uint8_t *bytes)
{
    uint64_t number = 0;

    for (int i = 0; i < 8; i++)
        number = number << 8 | bytes[i];
    return number;
}

static void store_64(uint8_t *bytes, uint64_t number)
{
    for (int i = 7; i >= 0; i--, number >>= 8)
        bytes[i] = (uint8_t)number;
}

/* hash = (hash ^ block) * H, bit by bit with masks: slow, short, and the same time for every key and block. */
static void ghash_block(gcm_state *gcm, const uint8_t *block)
{
    uint64_t x[2] = {gcm->hash[0] ^ load_64(block), gcm->hash[1] ^ load_64(block + 8)};
    uint64_t high = gcm->hash_key[0], low = gcm->hash_key[1];

    gcm->hash[0] = gcm->hash[1] = 0;
    for (int i = 0; i < 128; i++) {
        uint64_t is_set = -(x[i / 64] >> (63 - i % 64) & 1);
        gcm->hash[0] ^= high & is_set;
        gcm->hash[1] ^= low & is_set;
        uint64_t carry = -(low & 1);
        low = low >> 1 | high << 63;
        high = high >> 1 ^ (carry & UINT64_C(0xE100000000000000));
    }
    arena_wipe(x, sizeof x);
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

static void gcm_begin(gcm_state *gcm, const arena_cell *kek, const uint8_t *nonce)
{
    /* gcm is a fresh scratch region and all zero: so is the first block. */
    key_encrypt(kek, gcm->block, gcm->mask, SM4_BLOCK);
    gcm->hash_key[0] = load_64(gcm->mask);
    gcm->hash_key[1] = load_64(gcm->mask + 8);
    memcpy(gcm->counter, nonce, GCM_NONCE_BYTES);
    gcm->counter[SM4_BLOCK - 1] = 1;
    key_encrypt(kek, gcm->counter, gcm->mask, SM4_BLOCK);
}

/* A key is one block at most, so the counter counts to 2 and no further. */
static void gcm_crypt(gcm_state *gcm, const arena_cell *kek, const uint8_t *in, uint8_t *out, size_t length)
{
    gcm->counter[SM4_BLOCK - 1] = 2;
    key_encrypt(kek, gcm->counter, gcm->block, SM4_BLOCK);
    for (size_t i = 0; i < length; i++)
        out[i] = in[i] ^ gcm->block[i];
}

static void gcm_tag(gcm_state *gcm, const uint8_t *header, size_t header_length, const uint8_t *ciphertext,
                    size_t length)
{
    uint8_t lengths[SM4_BLOCK];

    ghash(gcm, header, header_length);
    ghash(gcm, ciphertext, length);
    store_64(lengths, (uint64_t)header_length * 8);
    store_64(lengths + 8, (uint64_t)length * 8);
    ghash_block(gcm, lengths);
    store_64(gcm->tag, gcm->hash[0] ^ load_64(gcm->mask));
    store_64(gcm->tag + 8, gcm->hash[1] ^ load_64(gcm->mask + 8));
}

arena_status key_wrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const arena_cell *key, uint8_t *out)
{
    size_t length = arena_key_bytes((arena_algorithm)key->algorithm);
    gcm_state *gcm = arena_scratch_take();

    if (!gcm)
        return ARENA_GONE;
    gcm_begin(gcm, kek, nonce);
    gcm_crypt(gcm, kek, key->key, out, length);
    gcm_tag(gcm, header, header_length, out, length);
    memcpy(out + length, gcm->tag, GCM_TAG_BYTES);
    arena_scratch_give(gcm, sizeof *gcm);
    return ARENA_OK;
}

arena_status key_unwrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                        const uint8_t *wrapped, arena_algorithm algorithm, arena_handle *made, key_verdict *verdict)
{
    size_t length = arena_key_bytes(algorithm);
    arena_status status = ARENA_OK;
    gcm_state *gcm = arena_scratch_take();

    *made = 0;
    *verdict = KEY_NOT_AUTHENTIC;
    if (!gcm)
        return ARENA_GONE;
    gcm_begin(gcm, kek, nonce);
    gcm_tag(gcm, header, header_length, wrapped, length);
    if (!bytes_differ(gcm->tag, wrapped + length, GCM_TAG_BYTES)) {
        *verdict = KEY_UNWRAPPED;
        gcm_crypt(gcm, kek, wrapped, gcm->key, length);
        status = arena_take(algorithm, gcm->key, made);
    }
    arena_scratch_give(gcm, sizeof *gcm);
    return status;
}
