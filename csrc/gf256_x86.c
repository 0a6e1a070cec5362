/* gf256_x86.c: what the words of gf256_kernel.h mean on x86-64.
 *
 * Each kernel asks for all features its products and its checksums use, so that "supported" is one
 * question; the CPUs that have, say, SSSE3 but not SSE4.2 (2006 to 2008) take the reference.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#include "crc32c.h"
#include "gf256.h"

#define CPU(feature) __builtin_cpu_supports(feature)

/* ---- SSSE3: tables by PSHUFB, 16 bytes ---- */

struct pair_128 {
    __m128i low, high; /* tables by the low and the high four bits; or those bits */
};

#define NAME(f) ssse3_##f
#define TARGET __attribute__((target("ssse3,sse4.2,pclmul")))
#define VECTOR __m128i
#define VECTOR_BYTES 16
#define STRIP_VECTORS 2
#define LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define ZERO() _mm_setzero_si128()
#define XOR(a, b) _mm_xor_si128(a, b)
#define TABLE struct pair_128
#define TABLE_OF(c) ssse3_table(c)
#define SPLIT struct pair_128
#define SPLIT_OF(v) ssse3_split(v)
#define MULTIPLY_ADD(sum, t, s)                                                                    \
    XOR(sum, XOR(_mm_shuffle_epi8((t).low, (s).low), _mm_shuffle_epi8((t).high, (s).high)))

TARGET static inline struct pair_128 ssse3_table(uint8_t c)
{
    return (struct pair_128){LOAD(rf_tables.nibble[c]), LOAD(rf_tables.nibble[c] + 16)};
}

TARGET static inline struct pair_128 ssse3_split(__m128i v)
{
    const __m128i mask = _mm_set1_epi8(0x0f);
    return (struct pair_128){_mm_and_si128(v, mask), _mm_and_si128(_mm_srli_epi64(v, 4), mask)};
}

#include "gf256_kernel.h"

static bool ssse3_is_supported(void)
{
    __builtin_cpu_init();
    return CPU("ssse3") && CPU("sse4.2") && CPU("pclmul");
}

const struct rf_kernel rf_kernel_ssse3 = {
    "ssse3",
    ssse3_is_supported,
    {ssse3_multiply, NULL, rf_crc32c_threefold, ssse3_read_all},
};

/* ---- AVX2: the same tables, 32 bytes ---- */

struct pair_256 {
    __m256i low, high;
};

#define NAME(f) avx2_##f
#define TARGET __attribute__((target("avx2,sse4.2,pclmul")))
#define VECTOR __m256i
#define VECTOR_BYTES 32
#define STRIP_VECTORS 2
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define ZERO() _mm256_setzero_si256()
#define XOR(a, b) _mm256_xor_si256(a, b)
#define TABLE struct pair_256
#define TABLE_OF(c) avx2_table(c)
#define SPLIT struct pair_256
#define SPLIT_OF(v) avx2_split(v)
#define MULTIPLY_ADD(sum, t, s)                                                                    \
    XOR(sum, XOR(_mm256_shuffle_epi8((t).low, (s).low), _mm256_shuffle_epi8((t).high, (s).high)))

TARGET static inline struct pair_256 avx2_table(uint8_t c)
{
    const __m128i *nibble = (const __m128i *)rf_tables.nibble[c];
    return (struct pair_256){_mm256_broadcastsi128_si256(_mm_load_si128(nibble)),
                             _mm256_broadcastsi128_si256(_mm_load_si128(nibble + 1))};
}

TARGET static inline struct pair_256 avx2_split(__m256i v)
{
    const __m256i mask = _mm256_set1_epi8(0x0f);
    return (struct pair_256){_mm256_and_si256(v, mask),
                             _mm256_and_si256(_mm256_srli_epi64(v, 4), mask)};
}

#include "gf256_kernel.h"

static bool avx2_is_supported(void)
{
    __builtin_cpu_init();
    return CPU("avx2") && CPU("sse4.2") && CPU("pclmul");
}

const struct rf_kernel rf_kernel_avx2 = {
    "avx2",
    avx2_is_supported,
    {avx2_multiply, NULL, rf_crc32c_threefold, avx2_read_all},
};

/* ---- AVX-512: the same tables, 64 bytes; VPTERNLOGQ adds three at once ---- */

struct pair_512 {
    __m512i low, high;
};

#define NAME(f) avx512_##f
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,sse4.2,pclmul")))
#define VECTOR __m512i
#define VECTOR_BYTES 64
#define STRIP_VECTORS 4
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ZERO() _mm512_setzero_si512()
#define XOR(a, b) _mm512_xor_si512(a, b)
#define XOR_3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define TABLE struct pair_512
#define TABLE_OF(c) avx512_table(c)
#define SPLIT struct pair_512
#define SPLIT_OF(v) avx512_split(v)
#define MULTIPLY_ADD(sum, t, s)                                                                    \
    XOR_3(sum, _mm512_shuffle_epi8((t).low, (s).low), _mm512_shuffle_epi8((t).high, (s).high))

TARGET static inline struct pair_512 avx512_table(uint8_t c)
{
    const __m128i *nibble = (const __m128i *)rf_tables.nibble[c];
    return (struct pair_512){_mm512_broadcast_i32x4(_mm_load_si128(nibble)),
                             _mm512_broadcast_i32x4(_mm_load_si128(nibble + 1))};
}

TARGET static inline struct pair_512 avx512_split(__m512i v)
{
    const __m512i mask = _mm512_set1_epi8(0x0f);
    return (struct pair_512){_mm512_and_si512(v, mask),
                             _mm512_and_si512(_mm512_srli_epi64(v, 4), mask)};
}

#include "gf256_kernel.h"

static bool avx512_is_supported(void)
{
    __builtin_cpu_init();
    return CPU("avx512f") && CPU("avx512bw") && CPU("avx512vl") && CPU("avx512dq") &&
           CPU("sse4.2") && CPU("pclmul");
}

const struct rf_kernel rf_kernel_avx512 = {
    "avx512",
    avx512_is_supported,
    {avx512_multiply, NULL, rf_crc32c_threefold, avx512_read_all},
};

/* ---- GFNI: the affine instruction, 64 bytes, and checksums folded in the same pass ---- */

#define NAME(f) gfni_##f
#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,gfni,vpclmulqdq,sse4.2,pclmul")))
#define VECTOR __m512i
#define VECTOR_BYTES 64
#define STRIP_VECTORS 4
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ZERO() _mm512_setzero_si512()
#define XOR(a, b) _mm512_xor_si512(a, b)
#define TABLE __m512i
#define TABLE_OF(c) _mm512_set1_epi64((long long)rf_tables.affine[c])
#define SPLIT __m512i
#define SPLIT_OF(v) (v)
#define MULTIPLY_ADD(sum, t, s) XOR(sum, _mm512_gf2p8affine_epi64_epi8(s, t, 0))
#define FOLD_ON(fold, v) gfni_fold_on(fold, v)

TARGET static inline __m512i gfni_fold_on(__m512i fold, __m512i v)
{
    const __m512i by = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)rf_crc.fold_512));
    return XOR_3(_mm512_clmulepi64_epi128(fold, by, 0x00), _mm512_clmulepi64_epi128(fold, by, 0x11),
                 v);
}

#include "gf256_kernel.h"

static bool gfni_is_supported(void)
{
    return avx512_is_supported() && CPU("gfni") && CPU("vpclmulqdq");
}

const struct rf_kernel rf_kernel_gfni = {
    "gfni",
    gfni_is_supported,
    {gfni_multiply, gfni_multiply_crc, rf_crc32c_folded, gfni_read_all},
};
#else
typedef int no_x86_here; /* ISO C wants a declaration in every file */
#endif
