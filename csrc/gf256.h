/* gf256.h: what the files of the kernels share; private to csrc. */
#ifndef RAIDFS_GF256_H
#define RAIDFS_GF256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RF_SOURCES_MAX = 32,
    RF_OUTPUTS_MAX = 16,
    RF_GROUP_MAX = 4, /* outputs made in one pass over the sources */
    RF_PIECE_BYTES =
        4096,           /* sources are re-read, if at all, within pieces that stay in the cache */
    RF_FOLD_BYTES = 64, /* size of a running checksum that is folded beside the product */
};

/* Filled once at load. product is the reference; the others say the same in the shape that the
 * instructions want: nibble[c] = products of c with 0x00..0x0f, then with 0x00, 0x10, .., 0xf0. */
struct rf_tables {
    uint8_t product[256][256];
    uint8_t nibble[256][32] __attribute__((aligned(32)));
    uint64_t affine[256];
};
extern struct rf_tables rf_tables;

/* One pass: 1..RF_GROUP_MAX outputs from all sources. */
struct rf_product {
    size_t sources_count, outputs_count;
    const uint8_t *const *sources;
    uint8_t *const *outputs;
    const uint8_t *coefficients; /* row o starts at o * RF_SOURCES_MAX */
    bool xor_only;               /* all coefficients are 0 or 1 */
    /* What is going to be read soon, to be fetched into the cache meanwhile; NULL: nothing known.
     */
    const uint8_t *const *next_sources;
    /* Running checksums, for multiply_crc: of all sources (or NULL), of each output (or NULL). */
    uint8_t (*source_folds)[RF_FOLD_BYTES];
    uint8_t *output_folds[RF_GROUP_MAX];
};

struct rf_ops {
    /* The bytes [at, at + nbytes) of all outputs. */
    void (*multiply)(const struct rf_product *product, size_t at, size_t nbytes);
    /* The same and the checksums in the same pass; nbytes % 256 == 0. NULL where it isn't faster.
     */
    void (*multiply_crc)(const struct rf_product *product, size_t at, size_t nbytes);
    uint32_t (*crc32c)(uint32_t value, const uint8_t *data, size_t nbytes);
    uint8_t (*read_all)(const uint8_t *data, size_t nbytes);
};

struct rf_kernel {
    const char *name;
    bool (*is_supported)(void);
    struct rf_ops ops;
};

extern const struct rf_kernel rf_kernel_scalar; /* the reference */
extern const struct rf_kernel rf_kernel_ssse3, rf_kernel_avx2, rf_kernel_avx512, rf_kernel_gfni;
extern const struct rf_kernel rf_kernel_neon;

/* The reference, also used for what is shorter than a vector. */
void rf_multiply_reference(const struct rf_product *product, size_t at, size_t nbytes);

/* A whole product: the present sources, their coefficients, and its groups of outputs. */
struct rf_plan {
    size_t sources_count, groups_count;
    const uint8_t *sources[RF_SOURCES_MAX];
    uint8_t coefficients[RF_OUTPUTS_MAX][RF_SOURCES_MAX]; /* of the present sources */
    bool xor_only[RF_OUTPUTS_MAX];
    struct rf_product groups[RF_OUTPUTS_MAX / RF_GROUP_MAX];
};

/* Takes the columns `present[0..count)` of a matrix of `width` columns. The caller sets the
 * sources, and the outputs of each group. */
void rf_plan_make(struct rf_plan *plan, const uint8_t *matrix, size_t outputs_count, size_t width,
                  const uint8_t *present, size_t count);

const struct rf_kernel *rf_kernel_at(int index);
const struct rf_kernel *rf_kernel_for_call(void);

/* rf_multiply and rf_encode by a given kernel. */
void rf_multiply_by(const struct rf_kernel *kernel, const uint8_t *coefficients,
                    size_t outputs_count, size_t sources_count, const uint8_t *const *sources,
                    uint8_t *const *outputs, size_t nbytes);
void rf_encode_by(const struct rf_kernel *kernel, const uint8_t *matrix, size_t parities,
                  size_t columns, const uint64_t *data, uint8_t *parity, size_t rows,
                  size_t cell_bytes, uint32_t *crcs);

#endif
