/* mount.h: mount(2) and umount2(2) for a FUSE filesystem, as the one call each that root needs. */
#ifndef RAIDFS_MOUNT_H
#define RAIDFS_MOUNT_H

#include <stdint.h>

/* What is true of the whole mount, apart from what FUSE itself is told in `data`. */
enum {
    RF_MOUNT_READ_ONLY = 1,
    RF_MOUNT_NO_SETUID = 2,
    RF_MOUNT_NO_DEVICES = 4,
    RF_MOUNT_NO_PROGRAMS = 8,
    RF_MOUNT_SYNCHRONOUS = 16,
    RF_MOUNT_SYNCHRONOUS_NAMES = 32,
    RF_MOUNT_NO_ATIME = 64,
    RF_MOUNT_NO_DIRECTORY_ATIME = 128,
};

/* Mounts `type` ("fuse.NAME") at `target`, with `source` as what mountinfo shows; `flags` of those
 * above. `data` holds fd=, rootmode= and so on, as fs/fuse/inode.c of Linux reads them. 0 or
 * -errno. */
int rf_mount(const char *source, const char *target, const char *type, uint32_t flags,
             const char *data);

/* Takes the topmost mount away from `target`, at once for everybody who comes by its path; it lives
 * on for those who have files open in it. Follows no link at the end. 0 or -errno. */
int rf_unmount(const char *target);

#endif
