/* A frame: u32 length of its message, u32 stream, u8 type, u8 flags, big-endian; then the message.
 *
 * A peer that breaks a rule of the framing loses its connection, for there is no telling where its
 * next frame begins; one whose frame is whole and whose message is not is answered.
 */
#define _GNU_SOURCE
#include "ttrpc.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define HEADER_BYTES 10
#define MESSAGE_BYTES_MAX (256 << 10) /* a create with hundreds of layers has 50 KiB */
#define ANSWER_BYTES_MAX (64 << 10)
#define SEND_DEADLINE_S 5 /* for a peer that does not read what it asked for */
enum { TYPE_REQUEST = 1, TYPE_RESPONSE = 2 };

struct connection {
    int socket; /* 0: none */
    uint32_t generation;
    size_t filled;
    uint8_t frame[HEADER_BYTES + MESSAGE_BYTES_MAX]; /* pages that were never touched cost nothing */
};

static struct connection connections[CONNECTIONS_MAX];

static uint32_t number_at(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
}

static void put_number_at(uint8_t *at, uint32_t value)
{
    at[0] = value >> 24, at[1] = value >> 16, at[2] = value >> 8, at[3] = value;
}

static void drop(struct connection *connection)
{
    close(connection->socket);
    connection->socket = 0;
    connection->generation++; /* calls of it that are still open find nobody */
    connection->filled = 0;
}

static void send_response(const struct call *call, const struct writer *response)
{
    struct connection *connection = &connections[call->connection];
    if (!connection->socket || connection->generation != call->generation)
        return;
    static uint8_t frame[HEADER_BYTES + ANSWER_BYTES_MAX];
    put_number_at(frame, response->length);
    put_number_at(frame + 4, call->stream);
    frame[8] = TYPE_RESPONSE;
    memcpy(frame + HEADER_BYTES, response->data, response->length);
    size_t length = HEADER_BYTES + response->length, sent = 0;
    while (sent < length) {
        ssize_t count = send(connection->socket, frame + sent, length - sent, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            drop(connection);
            return;
        }
        sent += count;
    }
}

void ttrpc_answer(const struct call *call, const struct writer *message)
{
    uint8_t room[ANSWER_BYTES_MAX];
    struct writer response = {.data = room, .room = sizeof room};
    wire_put_bytes(&response, 2, message->data, message->length);
    if (message->full || response.full)
        ttrpc_refuse(call, RESOURCE_EXHAUSTED, "the answer is too long");
    else
        send_response(call, &response);
}

void ttrpc_refuse(const struct call *call, enum code code, const char *format, ...)
{
    char text[2048];
    uint8_t rooms[2][4096];
    struct writer status = {.data = rooms[0], .room = sizeof rooms[0]};
    struct writer response = {.data = rooms[1], .room = sizeof rooms[1]};
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    wire_put_number(&status, 1, code);
    wire_put_text(&status, 2, text);
    wire_put_bytes(&response, 1, status.data, status.length);
    send_response(call, &response);
}

void ttrpc_waited(struct pollfd waited[CONNECTIONS_MAX])
{
    for (int index = 0; index < CONNECTIONS_MAX; index++)
        waited[index] = (struct pollfd){
            connections[index].socket ? connections[index].socket : -1, POLLIN, 0};
}

int ttrpc_connections(void)
{
    int count = 0;
    for (int index = 0; index < CONNECTIONS_MAX; index++)
        count += connections[index].socket != 0;
    return count;
}

void ttrpc_accept(int listener)
{
    int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (accepted < 0)
        return;
    struct timeval deadline = {.tv_sec = SEND_DEADLINE_S};
    setsockopt(accepted, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof deadline);
    for (int index = 0; index < CONNECTIONS_MAX; index++) {
        if (!connections[index].socket) {
            connections[index].socket = accepted;
            return;
        }
    }
    close(accepted); /* the peer sees its connection end: there are too many */
}

static void serve(struct call *call, struct bytes request, const char *service, handler *handle)
{
    struct bytes called = {0}, method = {0}, payload = {0};
    struct field field;
    while (wire_next(&request, &field)) {
        if (field.number == 1)
            called = field.bytes;
        else if (field.number == 2)
            method = field.bytes;
        else if (field.number == 3)
            payload = field.bytes;
        else if (field.number == 4)
            call->timeout_ns = field.value;
    }
    char name[64];
    if (request.length || !wire_text(method, name, sizeof name))
        ttrpc_refuse(call, INVALID_ARGUMENT, "the request cannot be read");
    else if (!wire_equals(called, service))
        ttrpc_refuse(call, UNIMPLEMENTED, "only %s is served", service);
    else
        handle(call, name, payload);
}

void ttrpc_read(uint32_t index, const char *service, handler *handle)
{
    struct connection *connection = &connections[index];
    uint32_t generation = connection->generation;
    ssize_t count = recv(connection->socket, connection->frame + connection->filled,
                         sizeof connection->frame - connection->filled, MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (count <= 0) {
        drop(connection);
        return;
    }
    connection->filled += count;
    size_t begin = 0;
    while (connection->filled - begin >= HEADER_BYTES) {
        const uint8_t *frame = connection->frame + begin;
        uint32_t length = number_at(frame), stream = number_at(frame + 4);
        /* A client's streams are odd. It has nothing to send but requests. */
        if (length > MESSAGE_BYTES_MAX || stream % 2 == 0 || frame[8] != TYPE_REQUEST) {
            drop(connection);
            return;
        }
        if (connection->filled - begin - HEADER_BYTES < length)
            break;
        struct call call = {index, generation, stream, 0};
        serve(&call, (struct bytes){frame + HEADER_BYTES, length}, service, handle);
        if (connection->generation != generation)
            return; /* it was dropped while it was answered */
        begin += HEADER_BYTES + length;
    }
    memmove(connection->frame, connection->frame + begin, connection->filled - begin);
    connection->filled -= begin;
}
