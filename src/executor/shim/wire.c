#include "wire.h"

#include <string.h>

#define VARINT_BYTES_MAX 10

static bool take_varint(struct bytes *rest, uint64_t *value)
{
    *value = 0;
    for (size_t index = 0; index < VARINT_BYTES_MAX && index < rest->length; index++) {
        uint8_t byte = rest->data[index];
        *value |= (uint64_t)(byte & 0x7f) << (7 * index);
        if (!(byte & 0x80)) {
            rest->data += index + 1;
            rest->length -= index + 1;
            return true;
        }
    }
    return false;
}

static bool take_bytes(struct bytes *rest, uint64_t length, struct bytes *taken)
{
    if (length > rest->length)
        return false;
    *taken = (struct bytes){rest->data, length};
    rest->data += length;
    rest->length -= length;
    return true;
}

bool wire_next(struct bytes *rest, struct field *field)
{
    struct bytes left = *rest; /* so that nothing is taken off what is no message */
    uint64_t tag;
    *field = (struct field){0};
    if (left.length == 0 || !take_varint(&left, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX)
        return false;
    field->number = tag >> 3;
    field->kind = tag & 7;
    bool whole = false;
    switch (field->kind) {
    case WIRE_VARINT:
        whole = take_varint(&left, &field->value);
        break;
    case WIRE_BYTES:
        whole = take_varint(&left, &field->value) && take_bytes(&left, field->value, &field->bytes);
        break;
    case WIRE_FIXED64:
    case WIRE_FIXED32: /* in none of our messages: passed over */
        whole = take_bytes(&left, field->kind == WIRE_FIXED64 ? 8 : 4, &field->bytes);
        break;
    }
    if (whole)
        *rest = left;
    return whole;
}

bool wire_text(struct bytes bytes, char *into, size_t room)
{
    if (bytes.length >= room || (bytes.length && memchr(bytes.data, '\0', bytes.length)))
        return false;
    if (bytes.length)
        memcpy(into, bytes.data, bytes.length);
    into[bytes.length] = '\0';
    return true;
}

bool wire_equals(struct bytes bytes, const char *text)
{
    return bytes.length == strlen(text) && memcmp(bytes.data, text, bytes.length) == 0;
}

static void put_varint(struct writer *writer, uint64_t value)
{
    uint8_t encoded[VARINT_BYTES_MAX];
    size_t length = 0;
    do {
        encoded[length] = (value & 0x7f) | (value > 0x7f ? 0x80 : 0);
        length++;
        value >>= 7;
    } while (value);
    if (length > writer->room - writer->length)
        writer->full = true;
    if (writer->full)
        return;
    memcpy(writer->data + writer->length, encoded, length);
    writer->length += length;
}

void wire_put_number(struct writer *writer, uint32_t number, uint64_t value)
{
    if (value == 0)
        return; /* as proto3 has it */
    put_varint(writer, (uint64_t)number << 3 | WIRE_VARINT);
    put_varint(writer, value);
}

void wire_put_bytes(struct writer *writer, uint32_t number, const void *data, size_t length)
{
    put_varint(writer, (uint64_t)number << 3 | WIRE_BYTES);
    put_varint(writer, length);
    if (length > writer->room - writer->length)
        writer->full = true;
    if (writer->full || length == 0)
        return;
    memcpy(writer->data + writer->length, data, length);
    writer->length += length;
}

void wire_put_text(struct writer *writer, uint32_t number, const char *text)
{
    if (*text)
        wire_put_bytes(writer, number, text, strlen(text));
}
