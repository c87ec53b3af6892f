#include "key.h"

#include <string.h>

#include "verdict.h"

size_t key_block_bytes(arena_algorithm algorithm)
{
    return algorithm == ARENA_SM4 ? SM4_BLOCK : DES_BLOCK;
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

/* Decrypt; an SM4 schedule is turned around in a place of the caller's. */
static void decrypt(const arena_cell *cell, sm4_schedule *reversed, const uint8_t *in, uint8_t *out, size_t length)
{
    if (cell->algorithm == ARENA_TDES) {
        tdes_decrypt(cell->schedule.des, in, out, length / DES_BLOCK);
    } else if (cell->algorithm == ARENA_DES) {
        des_decrypt(cell->schedule.des[0], in, out, length / DES_BLOCK);
    } else {
        for (int i = 0; i < SM4_ROUNDS; i++)
            (*reversed)[i] = cell->schedule.sm4[SM4_ROUNDS - 1 - i];
        sm4_current()->encrypt_ecb((const sm4_schedule *)reversed, in, out, length / SM4_BLOCK);
    }
}

arena_status key_decrypt(const arena_cell *cell, const uint8_t *in, uint8_t *out, size_t length)
{
    if (cell->algorithm != ARENA_SM4) {
        decrypt(cell, NULL, in, out, length);
        return ARENA_OK;
    }
    sm4_schedule *reversed = arena_scratch_take();
    if (!reversed)
        return ARENA_GONE;
    decrypt(cell, reversed, in, out, length);
    arena_scratch_give(reversed, sizeof *reversed);
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

arena_status key_decrypt_to_key(const arena_cell *cell, const uint8_t *in, arena_algorithm algorithm,
                                arena_handle *made)
{
    struct {
        sm4_schedule reversed;
        uint8_t key[ARENA_KEY_BYTES];
    } *scratch = arena_scratch_take();

    *made = 0;
    if (!scratch)
        return ARENA_GONE;
    decrypt(cell, &scratch->reversed, in, scratch->key, arena_key_bytes(algorithm));
    arena_status status = arena_take(algorithm, scratch->key, made);
    arena_scratch_give(scratch, sizeof *scratch);
    return status;
}

arena_status key_left_half(const arena_cell *cell, arena_handle *made)
{
    return arena_take(ARENA_DES, cell->key, made);
}

arena_status key_decrypt_key_within(const arena_cell *cell, const uint8_t *in, size_t length, size_t offset,
                                    arena_algorithm algorithm, uint8_t *around, arena_handle *made)
{
    struct {
        sm4_schedule reversed;
        uint8_t plain[KEY_MAX_AROUND];
    } *scratch = arena_scratch_take();

    *made = 0;
    if (!scratch)
        return ARENA_GONE;
    decrypt(cell, &scratch->reversed, in, scratch->plain, length);
    arena_status status = arena_take(algorithm, scratch->plain + offset, made);
    memset(scratch->plain + offset, 0, arena_key_bytes(algorithm));
    memcpy(around, scratch->plain, length);
    arena_scratch_give(scratch, sizeof *scratch);
    return status;
}

void key_encrypt_key(const arena_cell *cell, const arena_cell *key, uint8_t *out)
{
    key_encrypt(cell, key->key, out, arena_key_bytes((arena_algorithm)key->algorithm));
}

/* --- new keys */

arena_status key_generate(arena_algorithm algorithm, arena_handle *made)
{
    uint8_t *key = NULL;
    arena_status status = arena_open_if_closed();

    *made = 0;
    if (status == ARENA_OK && !(key = arena_scratch_take()))
        status = ARENA_GONE;
    if (status != ARENA_OK)
        return status;
    /* Whether a draw was weak shows in the time, and only of a key that nobody gets. */
    do {
        status = arena_random(key, arena_key_bytes(algorithm));
        if (status == ARENA_OK && algorithm != ARENA_SM4)
            des_set_parity(key, arena_key_bytes(algorithm));
    } while (status == ARENA_OK && key_is_weak(algorithm, key));
    if (status == ARENA_OK)
        status = arena_take(algorithm, key, made);
    arena_scratch_give(key, ARENA_KEY_BYTES);
    return status;
}

arena_status key_xor(const arena_cell *cell, const arena_cell *other, arena_handle *made, int *is_weak)
{
    size_t length = arena_key_bytes((arena_algorithm)cell->algorithm);
    arena_status status = ARENA_OK;
    uint8_t *key = arena_scratch_take();

    *made = 0;
    *is_weak = 0;
    if (!key)
        return ARENA_GONE;
    for (size_t i = 0; i < length; i++)
        key[i] = cell->key[i] ^ other->key[i];
    *is_weak = key_is_weak((arena_algorithm)cell->algorithm, key);
    if (!*is_weak)
        status = arena_take((arena_algorithm)cell->algorithm, key, made);
    arena_scratch_give(key, ARENA_KEY_BYTES);
    return status;
}
