#define _GNU_SOURCE
#include "streams.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BINARY "binary://"
#define FILE_URI "file://"
#define LOGGER_READY_MS_MAX 10000
#define LOGGER_ARGUMENTS_MAX 32
#define ABOVE 10 /* descriptors that no duplicate of ours takes the place of */

static int digit(char letter)
{
    if (letter >= '0' && letter <= '9')
        return letter - '0';
    letter |= 0x20;
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

/* Undoes a URI's escapes, in place. */
static void unescape(char *text)
{
    char *into = text;
    for (; *text; text++) {
        if (*text == '%' && digit(text[1]) >= 0 && digit(text[2]) >= 0) {
            *into++ = digit(text[1]) << 4 | digit(text[2]);
            text += 2;
        } else {
            *into++ = *text == '+' ? ' ' : *text;
        }
    }
    *into = '\0';
}

/* binary:///path?name=value&name: the program, and each name and value as a word of its own. */
static void logger_words(char *uri, char *words[LOGGER_ARGUMENTS_MAX])
{
    char *query = strchr(uri, '?'), *rest = NULL;
    int count = 0;
    if (query)
        *query++ = '\0';
    words[count++] = uri + strlen(BINARY);
    char *pair = query ? strtok_r(query, "&", &rest) : NULL;
    for (; pair && count < LOGGER_ARGUMENTS_MAX - 2; pair = strtok_r(NULL, "&", &rest)) {
        char *value = strchr(pair, '=');
        if (value)
            *value++ = '\0';
        words[count++] = pair;
        if (value && *value)
            words[count++] = value;
    }
    words[count] = NULL;
    for (int index = 0; index < count; index++)
        unescape(words[index]);
}

/* The logger has both outputs as 3 and 4, and closes 5 when it is ready to read them. */
static bool start_logger(struct streams *streams, const char *id, const char *namespace,
                         char trouble[256])
{
    int out[2] = {-1, -1}, error[2] = {-1, -1}, ready[2] = {-1, -1};
    bool made = pipe2(out, O_CLOEXEC) == 0 && pipe2(error, O_CLOEXEC) == 0 &&
                pipe2(ready, O_CLOEXEC) == 0;
    pid_t pid = made ? fork() : -1;
    if (pid == 0) {
        char uri[STREAM_URI_MAX], *words[LOGGER_ARGUMENTS_MAX];
        int given[3] = {fcntl(out[0], F_DUPFD_CLOEXEC, ABOVE),
                        fcntl(error[0], F_DUPFD_CLOEXEC, ABOVE),
                        fcntl(ready[1], F_DUPFD_CLOEXEC, ABOVE)};
        strcpy(uri, streams->names[1]);
        logger_words(uri, words);
        for (int index = 0; index < 3; index++)
            if (dup2(given[index], 3 + index) < 0)
                _exit(127);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (setenv("CONTAINER_ID", id, 1) == 0 && setenv("CONTAINER_NAMESPACE", namespace, 1) == 0)
            execv(words[0], words);
        int number = errno;
        ssize_t ignored = write(5, &number, sizeof number);
        (void)ignored;
        _exit(127);
    }
    int failed = pid < 0 ? errno : 0;
    int ours[] = {out[0], error[0], ready[1]};
    for (int index = 0; index < 3; index++)
        if (ours[index] >= 0)
            close(ours[index]);
    streams->passed[1] = out[1];
    streams->passed[2] = error[1];
    if (!failed) {
        struct pollfd waited = {ready[0], POLLIN, 0};
        int number = 0;
        if (poll(&waited, 1, LOGGER_READY_MS_MAX) != 1)
            failed = ETIMEDOUT;
        else if (read(ready[0], &number, sizeof number) > 0)
            failed = number;
    }
    if (ready[0] >= 0)
        close(ready[0]);
    if (failed)
        snprintf(trouble, 256, "%.150s cannot be started: %s", streams->names[1], strerror(failed));
    return !failed;
}

/* A FIFO is given to the container itself. Our own end, both ways, is there so that opening waits
 * for nobody, and that neither side takes the other's absence for an end. */
static bool open_one(struct streams *streams, int number, char trouble[256])
{
    char *name = streams->names[number], path[STREAM_URI_MAX];
    struct stat state;
    if (!*name)
        return true;
    bool file = number > 0 && strncmp(name, FILE_URI, strlen(FILE_URI)) == 0;
    strcpy(path, file ? name + strlen(FILE_URI) : name);
    int flags = file          ? O_WRONLY | O_CREAT | O_APPEND
                : number == 0 ? O_RDONLY | O_NONBLOCK
                              : O_WRONLY | O_NONBLOCK;
    if (file)
        unescape(path);
    else if (path[0] != '/' || stat(path, &state) < 0 || !S_ISFIFO(state.st_mode))
        errno = ENOTSUP;
    else
        streams->held[number] = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (file || streams->held[number] >= 0)
        streams->passed[number] = open(path, flags | O_CLOEXEC, 0644);
    if (streams->passed[number] >= 0) {
        fcntl(streams->passed[number], F_SETFL, flags & O_APPEND);
        return true;
    }
    snprintf(trouble, 256, "%.150s cannot be a standard stream: %s", name, strerror(errno));
    return false;
}

bool streams_open(struct streams *streams, const char *id, const char *namespace,
                  char trouble[256])
{
    for (int number = 0; number < 3; number++)
        streams->passed[number] = streams->held[number] = -1;
    if (!open_one(streams, 0, trouble))
        return false;
    if (strncmp(streams->names[1], BINARY, strlen(BINARY)) == 0)
        return start_logger(streams, id, namespace, trouble);
    return open_one(streams, 1, trouble) && open_one(streams, 2, trouble);
}

void streams_passed(struct streams *streams)
{
    for (int number = 0; number < 3; number++) {
        if (streams->passed[number] >= 0)
            close(streams->passed[number]);
        streams->passed[number] = -1;
    }
}

void streams_release(struct streams *streams, int number)
{
    if (streams->held[number] >= 0)
        close(streams->held[number]);
    streams->held[number] = -1;
}

void streams_close(struct streams *streams)
{
    streams_passed(streams);
    for (int number = 0; number < 3; number++)
        streams_release(streams, number);
}
