/* The one task of a shim: its container from create to delete, and the calls about it. */
#ifndef TASK_H
#define TASK_H
#include <sys/types.h>
#include <time.h>

#include "ttrpc.h"

#define TASK_SERVICE "containerd.task.v2.Task"

/* In the container's bundle. False when that cannot be found. */
bool task_begin(const char *id, const char *namespace);
handler task_handle;

/* Children may have ended. */
void task_reap(void);

/* How long to wait at most for something to happen, in ms, -1: for ever; and what to do then. */
int task_patience_ms(void);
void task_hurry(void);

/* Whether there is nothing to keep: no container, and nobody who wants one. */
bool task_over(void);

/* Whether a shutdown was asked for, and nothing is in its way. */
bool task_shut_down(void);

/* A containerd.task.v2.DeleteResponse. */
void task_put_deleted(struct writer *writer, pid_t pid, uint32_t status, struct timespec exited);

#endif
