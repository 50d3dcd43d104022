/* The container's standard input, output and error, as a create names them. */
#ifndef STREAMS_H
#define STREAMS_H
#include <limits.h>

#include "wire.h"

#define STREAM_URI_MAX PATH_MAX

struct streams {
    char names[3][STREAM_URI_MAX]; /* "", the path of a FIFO, file:// or binary:// */
    int passed[3];                 /* what the container gets; -1: /dev/null */
    int held[3];                   /* our own end of a FIFO; -1: none */
};

/* Opens what is named, and starts who records it. `trouble` says why not. */
bool streams_open(struct streams *streams, const char *id, const char *namespace,
                  char trouble[256]);

/* Lets go of what the container has by now. */
void streams_passed(struct streams *streams);

/* Lets go of one held end, or of all: its reader, or the container, sees the end. */
void streams_release(struct streams *streams, int number);
void streams_close(struct streams *streams);

#endif
