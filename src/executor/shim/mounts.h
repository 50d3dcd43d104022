/* Mounts a container's root file system as containerd's snapshotters describe it. */
#ifndef MOUNTS_H
#define MOUNTS_H
#include "wire.h"

/* Mounts one containerd.types.Mount at `target`; `trouble` says why not. Relative paths are of the
 * working directory, which is `home` before and after. */
bool mount_one(struct bytes message, const char *target, const char *home, char trouble[256]);

/* Unmounts all that is mounted at `target`; what is in use goes when it no longer is. */
void unmount_all(const char *target);

#endif
