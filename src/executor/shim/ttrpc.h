/* ttrpc, the server's side: connections, frames, and which answer goes where. */
#ifndef TTRPC_H
#define TTRPC_H
#include <poll.h>

#include "wire.h"

#define CONNECTIONS_MAX 8 /* containerd has one; a restarted one, and who looks, another */

/* The codes of gRPC that a shim gives. */
enum code {
    OK = 0,
    UNKNOWN = 2,
    INVALID_ARGUMENT = 3,
    DEADLINE_EXCEEDED = 4,
    NOT_FOUND = 5,
    ALREADY_EXISTS = 6,
    RESOURCE_EXHAUSTED = 8,
    FAILED_PRECONDITION = 9,
    UNIMPLEMENTED = 12,
    UNAVAILABLE = 14,
};

/* One call. It can be kept and answered later; an answer to a connection that is gone is dropped. */
struct call {
    uint32_t connection, generation, stream;
    uint64_t timeout_ns; /* 0: none */
};

/* What the server serves. `payload` is gone when it returns. */
typedef void handler(const struct call *call, const char *method, struct bytes payload);

void ttrpc_answer(const struct call *call, const struct writer *message);
/* `text` as printf has it. */
__attribute__((format(printf, 3, 4))) void ttrpc_refuse(const struct call *call, enum code code,
                                                        const char *text, ...);

/* The connections for poll, each at its own place; those that are not there have -1. */
void ttrpc_waited(struct pollfd waited[CONNECTIONS_MAX]);
void ttrpc_accept(int listener);
void ttrpc_read(uint32_t connection, const char *service, handler *handle);
int ttrpc_connections(void);

#endif
