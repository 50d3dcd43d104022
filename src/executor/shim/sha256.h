#ifndef SHA256_H
#define SHA256_H
#include <stddef.h>

/* The SHA-256 of `length` bytes, in lower-case hexadecimal digits. */
void sha256(const void *data, size_t length, char digits[65]);

#endif
