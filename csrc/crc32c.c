/* crc32c.c: CRC-32C, the checksum of every cell and record.
 *
 * A message is a polynomial over GF(2), its first bit the highest power; the CRC is x^32 times it
 * modulo P = 0x11edc6f41 (Castagnoli), with all bits reflected, started from and ended by inverting
 * 32 bits. Three makes, equal in what they give: reference   one table of 256 words, a byte at a
 * time; threefold   the CPU's instruction takes 8 bytes, but waits three cycles for its own result:
 * so three registers run over three neighbouring thirds, and are then moved to where they belong
 *               (times x^n modulo P, where n is the number of bits that follow) and added;
 *   folded      64 bytes of running remainder are moved on by n bits as four polynomials of degree
 * 127: the high half times x^(n + 64) mod P plus the low half times x^n mod P, two carry-less
 *               products per 16 bytes (Gopal et al.); what is left at the end goes through the
 * instruction. The constants are computed at load from P alone.
 */
#undef NDEBUG
#include "crc32c.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#endif

enum { POLYNOMIAL = (int)0x82f63b78 }; /* 0x1edc6f41, reflected */

struct rf_crc_constants rf_crc;

/* x^bits mod P, reflected: the word 0x80000000 is x^0. */
static uint32_t power(unsigned bits)
{
    uint32_t word = 0x80000000u;
    while (bits-- > 0)
        word = (word >> 1) ^ (word & 1 ? (uint32_t)POLYNOMIAL : 0);
    return word;
}

uint32_t rf_crc32c_reference(uint32_t value, const uint8_t *data, size_t nbytes)
{
    uint32_t word = ~value;
    for (size_t b = 0; b < nbytes; b++)
        word = (word >> 8) ^ rf_crc.table[(word ^ data[b]) & 0xff];
    return ~word;
}

/* Spans of the threefold make: 3 * 1360 is just below a cell of 4096, 3 * 80 takes most of the
 * rest. */
enum { SPANS = 2 };
static const unsigned span_bytes[SPANS] = {1360, 80};

#if defined(__x86_64__)

#define TARGET __attribute__((target("sse4.2,pclmul")))
#define HAVE_THREEFOLD
/* The product of two reflected words is short of one power of x, and the instruction then
 * multiplies by x^32 and reduces: hence 33 less. [s][d]: on by d + 1 spans of kind s. */
static uint64_t shifts[SPANS][2];

static void fill_shifts(void)
{
    for (int s = 0; s < SPANS; s++) {
        for (unsigned d = 0; d < 2; d++)
            shifts[s][d] = power(8 * span_bytes[s] * (d + 1) - 33);
    }
}

TARGET static inline uint64_t add_word(uint64_t crc, uint64_t word)
{
    return _mm_crc32_u64(crc, word);
}

TARGET static inline uint64_t add_byte(uint64_t crc, uint8_t byte)
{
    return _mm_crc32_u8((uint32_t)crc, byte);
}

TARGET static inline __m128i clmul(uint64_t a, uint64_t b)
{
    return _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)a), _mm_cvtsi64_si128((long long)b),
                                0);
}

/* The registers of three neighbouring spans of kind s, as one. */
TARGET static inline uint64_t combine(int s, uint64_t a, uint64_t b, uint64_t c)
{
    __m128i moved = _mm_xor_si128(clmul(a, shifts[s][1]), clmul(b, shifts[s][0]));
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(moved)) ^ c;
}

#elif defined(__aarch64__)

#if defined(__clang__)
#define TARGET __attribute__((target("crc")))
#else
#define TARGET __attribute__((target("+crc")))
#endif
#define HAVE_THREEFOLD
/* Many Arm CPUs have the checksum's instruction and not the carry-less product, so a register is
 * moved by four lookups: [s][d][i][v] is byte i = v, on by d + 1 spans of kind s. */
static uint32_t shifts[SPANS][2][4][256];

/* a b mod P, all reflected. */
static uint32_t multiply_modulo(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        sum ^= a & bit ? b : 0;
        b = (b >> 1) ^ (b & 1 ? (uint32_t)POLYNOMIAL : 0);
    }
    return sum;
}

static void fill_shifts(void)
{
    for (int s = 0; s < SPANS; s++) {
        for (unsigned d = 0; d < 2; d++) {
            uint32_t by = power(8 * span_bytes[s] * (d + 1));
            for (int i = 0; i < 4; i++) {
                for (uint32_t v = 0; v < 256; v++)
                    shifts[s][d][i][v] = multiply_modulo(v << (8 * i), by);
            }
        }
    }
}

TARGET static inline uint64_t add_word(uint64_t crc, uint64_t word)
{
    return __crc32cd((uint32_t)crc, word);
}

TARGET static inline uint64_t add_byte(uint64_t crc, uint8_t byte)
{
    return __crc32cb((uint32_t)crc, byte);
}

static inline uint64_t shift(uint32_t (*table)[256], uint64_t crc)
{
    return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
           table[3][crc >> 24 & 0xff];
}

TARGET static inline uint64_t combine(int s, uint64_t a, uint64_t b, uint64_t c)
{
    return shift(shifts[s][1], a) ^ shift(shifts[s][0], b) ^ c;
}

#endif

#ifdef HAVE_THREEFOLD
static inline uint64_t word_at(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, 8);
    return word;
}

TARGET uint32_t rf_crc32c_threefold(uint32_t value, const uint8_t *data, size_t nbytes)
{
    uint64_t a = (uint32_t)~value;
    for (int s = 0; s < SPANS; s++) {
        const size_t span = span_bytes[s];
        for (; nbytes >= 3 * span; nbytes -= 3 * span) {
            uint64_t b = 0, c = 0;
            for (const uint8_t *end = data + span; data < end; data += 8) {
                a = add_word(a, word_at(data));
                b = add_word(b, word_at(data + span));
                c = add_word(c, word_at(data + 2 * span));
            }
            a = combine(s, a, b, c);
            data += 2 * span;
        }
    }
    for (; nbytes >= 8; nbytes -= 8, data += 8)
        a = add_word(a, word_at(data));
    for (; nbytes > 0; nbytes--, data++)
        a = add_byte(a, *data);
    return ~(uint32_t)a;
}
#endif

#if defined(__x86_64__)
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,vpclmulqdq,pclmul,sse4.2")))

WIDE static inline __m512i constants(const uint64_t *pair)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)pair));
}

/* Moves `fold` on by what the constants say and adds the data there. */
WIDE static inline __m512i fold_on(__m512i fold, __m512i constants, __m512i data)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(fold, constants, 0x00),
                                     _mm512_clmulepi64_epi128(fold, constants, 0x11), data, 0x96);
}

/* Four folds, 256 bytes a round, since one would wait for its own result. */
WIDE uint32_t rf_crc32c_folded(uint32_t value, const uint8_t *data, size_t nbytes)
{
    if (nbytes < 512)
        return rf_crc32c_threefold(value, data, nbytes);
    __m512i folds[4];
    for (int i = 0; i < 4; i++)
        folds[i] = _mm512_loadu_si512(data + 64 * i);
    folds[0] = _mm512_xor_si512(folds[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~value)));
    data += 256;
    nbytes -= 256;
    const __m512i far = constants(rf_crc.fold_2048), near = constants(rf_crc.fold_512);
    for (; nbytes >= 256; nbytes -= 256, data += 256) {
        for (int i = 0; i < 4; i++)
            folds[i] = fold_on(folds[i], far, _mm512_loadu_si512(data + 64 * i));
    }
    for (int i = 1; i < 4; i++)
        folds[0] = fold_on(folds[0], near, folds[i]);
    for (; nbytes >= 64; nbytes -= 64, data += 64)
        folds[0] = fold_on(folds[0], near, _mm512_loadu_si512(data));
    uint8_t rest[64];
    _mm512_storeu_si512(rest, folds[0]);
    uint32_t crc = rf_crc32c_threefold(0xffffffff, rest, 64); /* register starts at 0 */
    return rf_crc32c_threefold(crc, data, nbytes);
}
#endif

/* The word that brings the register from 0 to all ones, found by running the register backwards;
 * folds start with it where others XOR the first four bytes. */
static uint32_t start_word(void)
{
    uint32_t word = 0xffffffff;
    for (int i = 0; i < 32; i++)
        word = word & 0x80000000u ? (word ^ (uint32_t)POLYNOMIAL) << 1 | 1 : word << 1;
    return word;
}

__attribute__((constructor)) static void load(void)
{
    for (uint32_t v = 0; v < 256; v++) {
        uint32_t word = v;
        for (int i = 0; i < 8; i++)
            word = (word >> 1) ^ (word & 1 ? (uint32_t)POLYNOMIAL : 0);
        rf_crc.table[v] = word;
    }
    /* One power less for the reflected product, as above: hence << 1. */
    rf_crc.fold_512[0] = (uint64_t)power(512 + 32) << 1;
    rf_crc.fold_512[1] = (uint64_t)power(512 - 32) << 1;
    rf_crc.fold_2048[0] = (uint64_t)power(2048 + 32) << 1;
    rf_crc.fold_2048[1] = (uint64_t)power(2048 - 32) << 1;
    uint32_t word = start_word();
    for (int i = 0; i < 4; i++) /* least significant byte first on any machine */
        rf_crc.fold_start[RF_FOLD_BYTES - 4 + i] = (uint8_t)(word >> (8 * i));
#ifdef HAVE_THREEFOLD
    fill_shifts();
#endif
}
