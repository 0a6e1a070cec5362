/* crc32c.h: the checksums behind the kernels; private to csrc. Each continues from `value`. */
#ifndef RAIDFS_CRC32C_H
#define RAIDFS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#include "gf256.h"

uint32_t rf_crc32c_reference(uint32_t value, const uint8_t *data, size_t nbytes); /* table */
uint32_t rf_crc32c_threefold(uint32_t value, const uint8_t *data, size_t nbytes); /* instruction */
uint32_t rf_crc32c_folded(uint32_t value, const uint8_t *data, size_t nbytes);    /* VPCLMULQDQ */

/* Filled once at load. */
struct rf_crc_constants {
    uint32_t table[256];
    uint64_t fold_512[2];  /* moves 512 bits on by 512 bits: x^(512 + 32), x^(512 - 32) */
    uint64_t fold_2048[2]; /* the same by 2048 bits */
    uint8_t fold_start[RF_FOLD_BYTES]; /* 64 bytes that bring the register from 0 to all ones */
};
extern struct rf_crc_constants rf_crc;

#endif
