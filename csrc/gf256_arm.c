/* gf256_arm.c: what the words of gf256_kernel.h mean on 64-bit Arm. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#include "crc32c.h"
#include "gf256.h"

#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif

/* ---- NEON: tables by TBL, 16 bytes ---- */

struct pair {
    uint8x16_t low, high; /* tables by the low and the high four bits; or those bits */
};

#define NAME(f) neon_##f
#define TARGET
#define VECTOR uint8x16_t
#define VECTOR_BYTES 16
#define STRIP_VECTORS 4
#define LOAD(p) vld1q_u8(p)
#define STORE(p, v) vst1q_u8(p, v)
#define ZERO() vdupq_n_u8(0)
#define XOR(a, b) veorq_u8(a, b)
#define TABLE struct pair
#define TABLE_OF(c) neon_table(c)
#define SPLIT struct pair
#define SPLIT_OF(v) neon_split(v)
#define MULTIPLY_ADD(sum, t, s)                                                                    \
    XOR(sum, XOR(vqtbl1q_u8((t).low, (s).low), vqtbl1q_u8((t).high, (s).high)))

static inline struct pair neon_table(uint8_t c)
{
    return (struct pair){vld1q_u8(rf_tables.nibble[c]), vld1q_u8(rf_tables.nibble[c] + 16)};
}

static inline struct pair neon_split(uint8x16_t v)
{
    return (struct pair){vandq_u8(v, vdupq_n_u8(0x0f)), vshrq_n_u8(v, 4)};
}

#include "gf256_kernel.h"

/* NEON is part of every 64-bit Arm; the checksum's instruction is not, quite. */
static bool neon_is_supported(void)
{
    return getauxval(AT_HWCAP) & HWCAP_CRC32;
}

const struct rf_kernel rf_kernel_neon = {
    "neon",
    neon_is_supported,
    {neon_multiply, NULL, rf_crc32c_threefold, neon_read_all},
};
#else
typedef int no_arm_here; /* ISO C wants a declaration in every file */
#endif
