/* Protocol buffers, as much of them as the shim reads and writes: no message is known here. */
#ifndef WIRE_H
#define WIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What others sent: never ended by a NUL, and no longer there when the frame is not. */
struct bytes {
    const uint8_t *data;
    size_t length;
};

enum wire_kind { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

struct field {
    uint32_t number;
    enum wire_kind kind;
    uint64_t value;     /* of the kinds that are numbers */
    struct bytes bytes; /* of WIRE_BYTES */
};

/* Takes the next field off `rest`. False at its end, and for what is no message: `rest` is empty
 * after the one and not after the other. */
bool wire_next(struct bytes *rest, struct field *field);

/* As a string of C in `room` bytes. False when it is too long or has a NUL inside. */
bool wire_text(struct bytes bytes, char *into, size_t room);
bool wire_equals(struct bytes bytes, const char *text);

/* A message that is being made. Once it is `full` nothing more is added. */
struct writer {
    uint8_t *data;
    size_t length, room;
    bool full;
};

void wire_put_number(struct writer *writer, uint32_t number, uint64_t value);
void wire_put_bytes(struct writer *writer, uint32_t number, const void *data, size_t length);
void wire_put_text(struct writer *writer, uint32_t number, const char *text);

#endif
