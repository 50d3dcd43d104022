/* What is written to the bundle (the working directory). */
#ifndef FILES_H
#define FILES_H
#include <stdbool.h>

/* Makes a file of text, as printf has it, in the place of an earlier one. False with errno when it
 * cannot: then there is no such file. */
__attribute__((format(printf, 2, 3))) bool file_write(const char *path, const char *text, ...);

/* Why others may have been unable to write here, to be put after what they failed at; or "". */
const char *files_trouble(void);

#endif
