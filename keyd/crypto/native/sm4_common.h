/* What the SM4 paths share: the standard's constants, the list of the paths, and wiping.
 *
 * Everything here is static: each translation unit is compiled for its own instruction set, and an inline function
 * with external linkage could be taken from the wrong one and then run on a machine that lacks the instructions.
 */
#ifndef KEYD_SM4_COMMON_H
#define KEYD_SM4_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sm4.h"

#define SM4_INLINE static inline __attribute__((always_inline))
#define SM4_NOINLINE __attribute__((noinline))

/* Loops over a handful of vectors must be unrolled before the compiler decides what lives in registers. */
#if defined(__clang__)
#define SM4_UNROLL _Pragma("unroll")
#else
#define SM4_UNROLL _Pragma("GCC unroll 16")
#endif

/* The system parameter of the key schedule (GB/T 32907, 7.3). */
static const uint32_t SM4_FK[4] = {0xa3b1bac6, 0x56aa3350, 0x677d9197, 0xb27022dc};

/* The fixed parameter (ibid.): byte j of CK[i] is 7 (4i + j) mod 256, and byte 0 is the most significant. */
#define SM4_CK_BYTE(i, j) ((uint32_t)((4 * (i) + (j)) * 7 % 256))
#define SM4_CK_WORD(i) (SM4_CK_BYTE(i, 0) << 24 | SM4_CK_BYTE(i, 1) << 16 | SM4_CK_BYTE(i, 2) << 8 | SM4_CK_BYTE(i, 3))
#define SM4_CK_FOUR(i) SM4_CK_WORD(i), SM4_CK_WORD((i) + 1), SM4_CK_WORD((i) + 2), SM4_CK_WORD((i) + 3)
static const uint32_t SM4_CK[SM4_ROUNDS] = {
    SM4_CK_FOUR(0),  SM4_CK_FOUR(4),  SM4_CK_FOUR(8),  SM4_CK_FOUR(12),
    SM4_CK_FOUR(16), SM4_CK_FOUR(20), SM4_CK_FOUR(24), SM4_CK_FOUR(28),
};

/* The paths, each defined in the file of its name. A file that was compiled without its instruction set still
 * defines its path, as one that is never supported. */
extern const sm4_path sm4_portable;
#if defined(__x86_64__)
extern const sm4_path sm4_gfni512;
extern const sm4_path sm4_gfni256;
extern const sm4_path sm4_aesni;
#elif defined(__aarch64__)
extern const sm4_path sm4_armv8;
#endif

/* Whether processor and operating system offer what a path needs. These live in sm4_paths.c, which is compiled
 * without ISA flags: the question must be answerable on a machine where the answer is no. */
int sm4_has_gfni512(void);
int sm4_has_gfni256(void);
int sm4_has_aesni(void);
int sm4_has_armv8(void);
int sm4_has_none(void);

/* The compiler may not skip this memset: the asm statement claims to read the memory. */
SM4_INLINE void sm4_wipe(void *memory, size_t size)
{
    memset(memory, 0, size);
    __asm__ volatile("" : : "r"(memory) : "memory");
}

/* The workers of each path keep key material in local variables, and the compiler spills what does not fit into
 * registers into the worker's stack frame, where no wipe in C can name it. So each worker is a function of its own, and
 * when it has returned, sm4_burn() overwrites the stack that it stood on. SM4_FRAME bounds the frames of a worker and
 * what it calls at -O3, as the package is built; a test asks gcc for the sizes. Vector registers are not cleared: the
 * next thing that computes overwrites them. */
#define SM4_FRAME 3072

static SM4_NOINLINE __attribute__((unused)) void sm4_burn(void)
{
    uint8_t frame[SM4_FRAME];
    sm4_wipe(frame, sizeof frame);
}

#endif
