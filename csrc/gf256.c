/* gf256.c: erasure codes as matrix products, and the checksums that go with them.
 *
 * THE FIELD. A byte b7..b0 stands for the polynomial b7 z^7 + .. + b0 with coefficients in GF(2).
 * Two bytes are added by XOR and multiplied as polynomials modulo z^8 + z^4 + z^3 + z^2 + 1
 * (0x11d), which is irreducible, so every byte but 0 has an inverse: the 256 bytes are the field
 * GF(2^8). 0x11d is also primitive: the powers of z (the byte 2) run through all 255 of them. It is
 * the polynomial of Linux RAID-6, of ISA-L and of SnapRAID; the one of AES, 0x11b, is another, and
 * a code made with one can't be read with the other.
 *
 * ENCODING. A row of k data cells d_0..d_{k-1} gets m parity cells p_j = sum over i of a_ji d_i,
 * byte by byte: the product of an m x k matrix with the column of the data. With a_0i = 1 and a_1i
 * = z^i these are the P and Q of RAID-6 (Anvin). Losing any m of the k + m cells can be survived if
 * and only if every square submatrix of a is invertible. The choice of a is that of
 * raidfs/raid/code.py; here is only the product.
 *
 * DECODING is the same product. Of the identity over a, keep k rows of surviving cells, invert that
 * k x k matrix, and the rows of the inverse express the data by the survivors; a lost parity is its
 * row of a times those. So one function with other coefficients encodes, decodes and rebuilds.
 *
 * ROWS OF XOR. A coefficient of 1 costs one XOR and no multiplication, one of 0 nothing. Mirrors,
 * RAID 3 to 5, Hamming codes and P have only such rows, and so has the rebuild of one cell through
 * P; on them the loop is as fast as memory can be read, and it needs no tables and fewer registers.
 * A group of rows without any other coefficient takes a loop of its own; in a mixed group each
 * coefficient chooses.
 *
 * MULTIPLYING by a constant c is linear over GF(2): c x = c (x & 0x0f) + c (x & 0xf0).
 *   - Two tables of 16 bytes per c hold both halves, and a byte shuffle (PSHUFB, VTBL) looks up 16,
 * 32 or 64 bytes at once (Plank, Greenan, Miller). 8 KiB for all c.
 *   - As a linear map it is also a matrix of 8 x 8 bits; GF2P8AFFINEQB applies one to 64 bytes at
 * once. (GF2P8MULB would multiply directly, but is hard-wired to 0x11b.) 2 KiB for all c. Both are
 * computed at load, in less time than a file of tables takes to be paged in.
 *
 * SEVERAL OUTPUTS IN ONE PASS. A strip of a few registers is loaded from one source at a time and
 * added into up to four outputs, which stay in registers until all sources are through: so each
 * source byte is loaded once per four outputs, and no output byte is ever re-read. More outputs go
 * in groups of four, over pieces short enough that the second group finds the sources in the
 * nearest cache. The loops are written once, in gf256_kernel.h; a file per processor family says
 * what its words mean.
 *
 * CHECKSUMS ON THE WAY. CRC-32C is also linear over GF(2) but for a constant: with Z the checksum
 * of as many zeros, crc(a ^ b) = crc(a) ^ crc(b) ^ Z. So the checksum of a row of XOR follows from
 * those of its sources, without a look at the parity's bytes (and so it also covers the making of
 * the parity). Multiplication in GF(2^8) doesn't commute with it, so other rows need their own.
 * Where there is VPCLMULQDQ, checksums are folded from the registers that the product has loaded
 * anyway.
 *
 * References: H. P. Anvin, "The mathematics of RAID-6", 2004-2011. J. S. Plank, K. M. Greenan, E.
 * L. Miller, "Screaming Fast Galois Field Arithmetic Using Intel SIMD Instructions", FAST 2013. P.
 * Chen et al., "RAID: High-Performance, Reliable Secondary Storage", ACM Computing Surveys 26(2),
 * 1994. V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel
 * 2009; for iSCSI, 2011.
 */
#undef NDEBUG
#include "erasure.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "crc32c.h"
#include "gf256.h"

struct rf_tables rf_tables;

/* z times a. */
static uint8_t twice(uint8_t a)
{
    return (uint8_t)((a << 1) ^ (a & 0x80 ? 0x1d : 0));
}

/* The matrix of "times c" in the layout of GF2P8AFFINEQB: byte 7 - i has the bits that make up bit
 * i. */
static uint64_t affine_matrix(int c)
{
    uint64_t matrix = 0;
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 8; j++) {
            uint64_t bit = rf_tables.product[c][1 << j] >> i & 1;
            matrix |= bit << (8 * (7 - i) + j);
        }
    }
    return matrix;
}

static void fill_tables(void)
{
    for (int c = 0; c < 256; c++) {
        uint8_t *product = rf_tables.product[c];
        product[1] = (uint8_t)c;
        for (int x = 2; x < 256; x += 2) { /* c (2y) = z (c y); c (2y + 1) = c (2y) + c */
            product[x] = twice(product[x / 2]);
            product[x + 1] = product[x] ^ (uint8_t)c;
        }
        for (int x = 0; x < 16; x++) {
            rf_tables.nibble[c][x] = product[x];
            rf_tables.nibble[c][16 + x] = product[x << 4];
        }
        rf_tables.affine[c] = affine_matrix(c);
    }
}

void rf_multiply_reference(const struct rf_product *p, size_t at, size_t nbytes)
{
    for (size_t o = 0; o < p->outputs_count; o++) {
        uint8_t *output = p->outputs[o] + at;
        memset(output, 0, nbytes);
        for (size_t i = 0; i < p->sources_count; i++) {
            const uint8_t *product = rf_tables.product[p->coefficients[o * RF_SOURCES_MAX + i]];
            const uint8_t *source = p->sources[i] + at;
            for (size_t b = 0; b < nbytes; b++)
                output[b] ^= product[source[b]];
        }
    }
}

static uint8_t read_all_reference(const uint8_t *data, size_t nbytes)
{
    uint8_t sum = 0;
    for (size_t b = 0; b < nbytes; b++)
        sum ^= data[b];
    return sum;
}

/* ---- kernels ---- */

static bool always(void)
{
    return true;
}

const struct rf_kernel rf_kernel_scalar = {
    "scalar",
    always,
    {rf_multiply_reference, NULL, rf_crc32c_reference, read_all_reference},
};

static const struct rf_kernel *const kernels_built[] = {
    /* slowest first */
    &rf_kernel_scalar,
#if defined(__x86_64__)
    &rf_kernel_ssse3,  &rf_kernel_avx2, &rf_kernel_avx512, &rf_kernel_gfni,
#elif defined(__aarch64__)
    &rf_kernel_neon,
#endif
};
enum { BUILT = sizeof kernels_built / sizeof *kernels_built };

static const struct rf_kernel *kernels[BUILT]; /* those that this CPU can run */
static int kernels_count;
static atomic_int selected;
static atomic_uint calls; /* counts calls, to cycle through the kernels */

__attribute__((constructor)) static void load(void)
{
    fill_tables();
    for (int i = 0; i < BUILT; i++) {
        if (kernels_built[i]->is_supported())
            kernels[kernels_count++] = kernels_built[i];
    }
    atomic_store(&selected, kernels_count - 1);
}

int rf_kernel_count(void)
{
    return kernels_count;
}

const struct rf_kernel *rf_kernel_at(int index)
{
    assert(index >= 0 && index < kernels_count);
    return kernels[index];
}

const char *rf_kernel_name(int index)
{
    return rf_kernel_at(index)->name;
}

int rf_kernel_selected(void)
{
    return atomic_load(&selected);
}

void rf_kernel_select(int index)
{
    assert(index >= -1 && index < kernels_count);
    atomic_store(&selected, index);
}

const struct rf_kernel *rf_kernel_for_call(void)
{
    int index = atomic_load_explicit(&selected, memory_order_relaxed);
    if (index < 0)
        index = (int)(atomic_fetch_add(&calls, 1) % (unsigned)kernels_count);
    return kernels[index];
}

/* ---- products ---- */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

void rf_plan_make(struct rf_plan *plan, const uint8_t *matrix, size_t outputs_count, size_t width,
                  const uint8_t *present, size_t count)
{
    plan->sources_count = count;
    for (size_t o = 0; o < outputs_count; o++) {
        plan->xor_only[o] = true;
        for (size_t i = 0; i < count; i++) {
            uint8_t c = matrix[o * width + present[i]];
            plan->coefficients[o][i] = c;
            plan->xor_only[o] &= c <= 1;
        }
    }
    plan->groups_count = 0;
    for (size_t o = 0; o < outputs_count; o += RF_GROUP_MAX) {
        struct rf_product *group = &plan->groups[plan->groups_count++];
        *group = (struct rf_product){
            .sources_count = count,
            .outputs_count = smaller(RF_GROUP_MAX, outputs_count - o),
            .sources = plan->sources,
            .coefficients = plan->coefficients[o],
            .xor_only = true,
        };
        for (size_t j = 0; j < group->outputs_count; j++)
            group->xor_only &= plan->xor_only[o + j];
    }
}

void rf_multiply_by(const struct rf_kernel *kernel, const uint8_t *coefficients,
                    size_t outputs_count, size_t sources_count, const uint8_t *const *sources,
                    uint8_t *const *outputs, size_t nbytes)
{
    assert(sources_count <= RF_SOURCES_MAX && outputs_count <= RF_OUTPUTS_MAX);
    struct rf_plan plan;
    uint8_t present[RF_SOURCES_MAX];
    size_t count = 0;
    for (size_t i = 0; i < sources_count; i++) {
        if (sources[i] != NULL) {
            plan.sources[count] = sources[i];
            present[count++] = (uint8_t)i;
        }
    }
    rf_plan_make(&plan, coefficients, outputs_count, sources_count, present, count);
    for (size_t g = 0; g < plan.groups_count; g++)
        plan.groups[g].outputs = outputs + g * RF_GROUP_MAX;
    size_t piece_bytes = plan.groups_count > 1 ? RF_PIECE_BYTES : nbytes;
    for (size_t at = 0; at < nbytes; at += piece_bytes) {
        for (size_t g = 0; g < plan.groups_count; g++)
            kernel->ops.multiply(&plan.groups[g], at, smaller(piece_bytes, nbytes - at));
    }
}

void rf_multiply(const uint8_t *coefficients, size_t outputs_count, size_t sources_count,
                 const uint8_t *const *sources, uint8_t *const *outputs, size_t nbytes)
{
    rf_multiply_by(rf_kernel_for_call(), coefficients, outputs_count, sources_count, sources,
                   outputs, nbytes);
}

/* ---- checksums ---- */

uint32_t rf_crc32c(uint32_t value, const void *data, size_t nbytes)
{
    return rf_kernel_for_call()->ops.crc32c(value, data, nbytes);
}

void rf_crc32c_cells(const void *cells, size_t count, size_t cell_bytes, uint32_t *crcs)
{
    const struct rf_kernel *kernel = rf_kernel_for_call();
    for (size_t i = 0; i < count; i++)
        crcs[i] = kernel->ops.crc32c(0, (const uint8_t *)cells + i * cell_bytes, cell_bytes);
}

uint8_t rf_read_all(const void *data, size_t nbytes)
{
    return rf_kernel_for_call()->ops.read_all(data, nbytes);
}
