/* The OCI runtime: a program with runc's command line, started for each step of a container. */
#ifndef RUNTIME_H
#define RUNTIME_H
#include <limits.h>
#include <sys/types.h>

#include "wire.h"

#define RUNTIME_ARGUMENTS_MAX 12

struct runtime {
    char binary[PATH_MAX]; /* looked for on the PATH, unless it has a slash */
    char root[PATH_MAX];   /* where it keeps what it knows */
    bool systemd_cgroup, no_pivot_root, no_new_keyring;
    bool run_at_create; /* the first process is one that waits by itself: creating also starts it */
    bool plain; /* no hooks, no systemd: a dead container is its cgroups and its state, both files */
};

/* Reads the options of a create: a google.protobuf.Any with containerd's options of runc, or nothing.
 * `trouble` says what this shim cannot do of them. */
bool runtime_options(struct runtime *runtime, struct bytes any, const char *namespace,
                     char trouble[256]);

/* Notes in the bundle (the working directory) that the runtime may know of the container, so that
 * who cleans up after a shim that was killed has something to ask; and that it no longer does.
 * runtime_note is false with errno where nothing can be written. */
bool runtime_note(const struct runtime *runtime);
bool runtime_noted(struct runtime *runtime);
void runtime_forget(void);

/* Starts it with a command's words, NULL at the end. `stdio` are descriptors, -1 for /dev/null.
 * Answers its pid, or -1. */
pid_t runtime_start(const struct runtime *runtime, const int stdio[3], const char *const *words);

/* Removes a dead container that is `plain` without the runtime, which would do no more than that:
 * `cgroup` is its path in every hierarchy. False when something could not be removed. */
bool runtime_remove(const struct runtime *runtime, const char *id, const char *cgroup);

/* What it said last when it failed: out of its log, or how it ended. */
void runtime_error(int status, char *text, size_t room);

/* Whether that means that it does not know the container, or never knew. */
bool runtime_knows_nothing(const char *text);

#endif
