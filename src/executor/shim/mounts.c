#define _GNU_SOURCE
#include "mounts.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define DATA_BYTES_MAX (192 << 10) /* before it is made shorter; the kernel takes a page */
#define PAGE_BYTES 4096
#define MOUNTS_MAX 16 /* one over the other at one place */

static const struct {
    const char *name;
    bool clear;
    unsigned long flag;
} options[] = {
    {"async", true, MS_SYNCHRONOUS},
    {"atime", true, MS_NOATIME},
    {"bind", false, MS_BIND},
    {"defaults", false, 0},
    {"dev", true, MS_NODEV},
    {"diratime", true, MS_NODIRATIME},
    {"dirsync", false, MS_DIRSYNC},
    {"exec", true, MS_NOEXEC},
    {"noatime", false, MS_NOATIME},
    {"nodev", false, MS_NODEV},
    {"nodiratime", false, MS_NODIRATIME},
    {"noexec", false, MS_NOEXEC},
    {"norelatime", true, MS_RELATIME},
    {"nostrictatime", true, MS_STRICTATIME},
    {"nosuid", false, MS_NOSUID},
    {"rbind", false, MS_BIND | MS_REC},
    {"relatime", false, MS_RELATIME},
    {"ro", false, MS_RDONLY},
    {"rw", true, MS_RDONLY},
    {"strictatime", false, MS_STRICTATIME},
    {"suid", true, MS_NOSUID},
    {"sync", false, MS_SYNCHRONOUS},
};

static bool is_flag(const char *option, unsigned long *flags)
{
    for (size_t index = 0; index < sizeof options / sizeof *options; index++) {
        if (strcmp(option, options[index].name) != 0)
            continue;
        if (options[index].clear)
            *flags &= ~options[index].flag;
        else
            *flags |= options[index].flag;
        return true;
    }
    return false;
}

/* An image of many layers names more directories than fit on a page. They lie side by side: `data`
 * is rewritten to name them from the directory above, which `above` tells. */
static bool shorten(char *data, char above[PATH_MAX])
{
    char *list = strstr(data, "lowerdir=");
    if (list == NULL || (list != data && list[-1] != ','))
        return false;
    list += strlen("lowerdir=");
    size_t end = strcspn(list, ","), common = 0;
    if (list[0] != '/' || end >= DATA_BYTES_MAX)
        return false;
    for (size_t at = 0; at < end; at += strcspn(list + at, ":,") + 1) {
        size_t same = 0, length = strcspn(list + at, ":,");
        while (same < length && list[same] == list[at + same])
            same++;
        if (at == 0 || same < common)
            common = same;
    }
    while (common && list[common - 1] != '/')
        common--;
    if (common <= 1 || common >= PATH_MAX)
        return false;
    memcpy(above, list, common);
    above[common] = '\0';
    char *into = list, *from = list;
    while (from < list + end) { /* each path begins with what is common to all */
        size_t length = strcspn(from, ":,");
        memmove(into, from + common, length - common);
        into += length - common;
        from += length;
        if (from < list + end)
            *into++ = *from++;
    }
    memmove(into, from, strlen(from) + 1);
    return true;
}

bool mount_one(struct bytes message, const char *target, const char *home, char trouble[256])
{
    char type[64] = "", source[PATH_MAX] = "", option[PATH_MAX];
    static char data[DATA_BYTES_MAX];
    size_t length = 0;
    unsigned long flags = 0;
    struct field field;
    data[0] = '\0';
    while (wire_next(&message, &field)) {
        bool whole = true;
        if (field.number == 1)
            whole = wire_text(field.bytes, type, sizeof type);
        else if (field.number == 2)
            whole = wire_text(field.bytes, source, sizeof source);
        else if (field.number == 3)
            whole = field.bytes.length == 0; /* "under rootfs": containerd 1.6 sends none */
        else if (field.number == 4) {
            if (wire_text(field.bytes, option, sizeof option) && is_flag(option, &flags))
                continue;
            whole = field.bytes.length + 2 < sizeof data - length &&
                    wire_text(field.bytes, data + length + (length > 0), sizeof data - length - 1);
            if (whole && length)
                data[length++] = ',';
            length += whole ? field.bytes.length : 0;
        }
        if (!whole) {
            snprintf(trouble, 256, "field %u of a mount is too long or has no meaning", field.number);
            return false;
        }
    }
    if (message.length || strstr(data, "X-containerd.") || strcmp(data, "loop") == 0) {
        snprintf(trouble, 256, "a mount that this shim cannot make: %.100s", data);
        return false;
    }
    char above[PATH_MAX], whole_target[PATH_MAX * 2];
    bool moved = length >= PAGE_BYTES && shorten(data, above) && chdir(above) == 0;
    snprintf(whole_target, sizeof whole_target, "%s/%s", home, target);
    int result = strlen(data) >= PAGE_BYTES ? (errno = E2BIG, -1)
                                            : mount(source, whole_target, type, flags, data);
    /* The kernel does not look at the other flags when it binds. */
    if (result == 0 && flags & MS_BIND && flags & ~(unsigned long)(MS_BIND | MS_REC))
        result = mount(source, whole_target, type, flags | MS_REMOUNT, data);
    int error = errno;
    if (moved && chdir(home) < 0)
        abort(); /* all that follows would happen somewhere else */
    if (result < 0)
        snprintf(trouble, 256, "failed to mount %.40s from %.60s: %s", type, source,
                 strerror(error));
    return result == 0;
}

void unmount_all(const char *target)
{
    for (int count = 0; count < MOUNTS_MAX; count++)
        if (umount2(target, UMOUNT_NOFOLLOW) < 0 && (errno != EBUSY ||
            umount2(target, UMOUNT_NOFOLLOW | MNT_DETACH) < 0))
            return;
}
