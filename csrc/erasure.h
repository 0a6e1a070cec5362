/* erasure.h: erasure codes and checksums over plain buffers.
 *
 * Words: a *kernel* is one implementation of everything here for one instruction set; the
 * *reference* is the kernel "scalar", byte at a time and obvious. A *matrix* is rows of
 * coefficients in GF(2^8), polynomial 0x11d (theory at the head of gf256.c); each row makes one
 * *output* from all *sources*.
 *
 *  1. Every kernel gives the same bytes as the reference, for any length and any alignment.
 *  2. Nothing outside of the buffers is read or written, not even beside their ends.
 *  3. No function allocates, blocks or keeps state between calls; all may run in parallel.
 * Outputs must overlap neither sources nor each other.
 */
#ifndef RAIDFS_ERASURE_H
#define RAIDFS_ERASURE_H

#include <stddef.h>
#include <stdint.h>

/* The kernels that this CPU can run, slowest first; index 0 is the reference. */
int rf_kernel_count(void);
const char *rf_kernel_name(int index);

/* Which kernel calls take: an index, or -1 for "the next one at every call" (for tests).
 * Process-wide. */
int rf_kernel_selected(void);
void rf_kernel_select(int index);

/* Compares a kernel with the reference in a few milliseconds. NULL: all equal; else what differs.
 * `flaw` tests the test: 1 to 4 put one fault into what is compared, which must be noticed. */
const char *rf_self_test(int index, int flaw);

/* CRC-32C (Castagnoli, RFC 3720), continued from `value`; 0 starts one. */
uint32_t rf_crc32c(uint32_t value, const void *data, size_t nbytes);

/* crcs[i] of `count` cells that lie one after the other. */
void rf_crc32c_cells(const void *cells, size_t count, size_t cell_bytes, uint32_t *crcs);

/* outputs = coefficients x sources, where coefficients is outputs_count rows of sources_count
 * (0..16 and 0..32). A NULL source stands for zeros. Encodes (rows of parity) and decodes (rows of
 * an inverse). */
void rf_multiply(const uint8_t *coefficients, size_t outputs_count, size_t sources_count,
                 const uint8_t *const *sources, uint8_t *const *outputs, size_t nbytes);

/* Parity and checksums of a burst. matrix: [parities][columns]; data: [columns][rows], the
 * addresses of data cells, 0 = absent (zeros); parity: [parities][rows][cell_bytes], filled; crcs:
 * [columns + parities][rows], filled with the CRC-32C of every cell, absent ones as zeros.
 * cell_bytes is a multiple of 4096; columns 1..32, parities 0..16. */
void rf_encode(const uint8_t *matrix, size_t parities, size_t columns, const uint64_t *data,
               uint8_t *parity, size_t rows, size_t cell_bytes, uint32_t *crcs);

/* XOR of all bytes, by the widest loads of the kernel: what the benchmark calls read bandwidth. */
uint8_t rf_read_all(const void *data, size_t nbytes);

#endif
