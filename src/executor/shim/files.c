#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <unistd.h>

bool file_write(const char *path, const char *text, ...)
{
    va_list values;
    va_start(values, text);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool whole = file >= 0 && vdprintf(file, text, values) >= 0;
    va_end(values);
    int error = errno;
    if (file >= 0 && close(file) < 0 && whole) {
        whole = false;
        error = errno;
    }
    if (!whole)
        unlink(path);
    errno = error;
    return whole;
}

const char *files_trouble(void)
{
    struct statvfs here;
    if (statvfs(".", &here) < 0 || (here.f_bavail && (here.f_favail || !here.f_files)))
        return "";
    return " (no space is left where its bundle is)";
}
