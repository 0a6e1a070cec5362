/* mount.c: flags of the mount, translated; nothing else is decided here. */
#undef NDEBUG
#define _GNU_SOURCE
#include "mount.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mount.h>

static const struct {
    uint32_t ours;
    unsigned long theirs;
} FLAGS[] = {
    {RF_MOUNT_READ_ONLY, MS_RDONLY},        {RF_MOUNT_NO_SETUID, MS_NOSUID},
    {RF_MOUNT_NO_DEVICES, MS_NODEV},        {RF_MOUNT_NO_PROGRAMS, MS_NOEXEC},
    {RF_MOUNT_SYNCHRONOUS, MS_SYNCHRONOUS}, {RF_MOUNT_SYNCHRONOUS_NAMES, MS_DIRSYNC},
    {RF_MOUNT_NO_ATIME, MS_NOATIME},        {RF_MOUNT_NO_DIRECTORY_ATIME, MS_NODIRATIME},
};

int rf_mount(const char *source, const char *target, const char *type, uint32_t flags,
             const char *data)
{
    unsigned long translated = 0;

    for (size_t i = 0; i < sizeof FLAGS / sizeof *FLAGS; i++)
        if (flags & FLAGS[i].ours)
            translated |= FLAGS[i].theirs;
    return mount(source, target, type, translated, data) ? -errno : 0;
}

int rf_unmount(const char *target)
{
    return umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW) ? -errno : 0;
}
