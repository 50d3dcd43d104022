/* The recorder: writes one sandbox's output to files, and outlives the executor.
 *
 * containerd's shim starts it (a binary:// output) with the pipes of the sandbox's standard output
 * and error as descriptors 3 and 4, and waits until it closes 5. It reads both pipes to their end,
 * so that no sandbox ever blocks on its output, and keeps the first `bytes_max` of each.
 *   recorder DIRECTORY BYTES_MAX  ->  DIRECTORY/stdout, /stderr, and at the end /end
 * `end` holds the bytes written to each stream, kept or not: "stdout stderr\n". It appears whole.
 * The shim holds the pipes' other ends until the sandbox is deleted. So that nobody has to wait for
 * that, there is the FIFO `ended`: when a byte comes through it, every process of the sandbox is
 * dead, and the output ends with what the pipes hold.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES 65536 /* a pipe's default size: one read empties it */

static char chunk[CHUNK_BYTES];

struct stream {
    int source, target;
    uint64_t seen_bytes, kept_bytes;
};

/* Keeps what fits. A full disk costs the output, never the sandbox: the pipe is drained anyway. */
static void keep(struct stream *stream, size_t length, uint64_t bytes_max)
{
    uint64_t room = stream->kept_bytes < bytes_max ? bytes_max - stream->kept_bytes : 0;
    size_t offset = 0, wanted = length < room ? length : room;
    while (offset < wanted) {
        ssize_t count = write(stream->target, chunk + offset, wanted - offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            break;
        offset += count;
    }
    stream->seen_bytes += length;
    stream->kept_bytes += offset;
}

static char *decimal(char *end, uint64_t value)
{
    do
        *--end = '0' + value % 10;
    while (value /= 10);
    return end;
}

static void finish(const struct stream *streams)
{
    char text[64], *end = text + sizeof text, *start;
    *--end = '\n';
    start = decimal(end, streams[1].seen_bytes);
    *--start = ' ';
    start = decimal(start, streams[0].seen_bytes);
    int file = open("end.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t length = text + sizeof text - start;
    if (file < 0 || write(file, start, length) != length || rename("end.new", "end") < 0)
        _exit(1);
    unlink("ended");
}

int main(int count, char **values)
{
    if (count != 3 || chdir(values[1]) < 0)
        return 2;
    uint64_t bytes_max = strtoull(values[2], NULL, 10);
    signal(SIGTERM, SIG_IGN); /* the shim says so when the sandbox ended; its output may not have */
    signal(SIGINT, SIG_IGN);
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    struct stream streams[2] = {
        {3, open("stdout", flags, 0600), 0, 0},
        {4, open("stderr", flags, 0600), 0, 0},
    };
    if (streams[0].target < 0 || streams[1].target < 0 || mkfifo("ended", 0600) < 0)
        return 1;
    int ended = open("ended", O_RDWR | O_CLOEXEC); /* both ways: no end-of-file between writers */
    if (ended < 0)
        return 1;
    close(5);
    int open_streams = 2;
    while (open_streams > 0) {
        struct pollfd waited[3] = {
            {streams[0].source, POLLIN, 0}, {streams[1].source, POLLIN, 0}, {ended, POLLIN, 0}};
        if (poll(waited, 3, -1) < 0)
            continue;
        if (waited[2].revents) { /* from now on an empty pipe is a finished one */
            fcntl(3, F_SETFL, O_NONBLOCK);
            fcntl(4, F_SETFL, O_NONBLOCK);
            waited[0].revents = waited[1].revents = POLLIN;
        }
        for (int index = 0; index < 2; index++) {
            if (!waited[index].revents || streams[index].source < 0)
                continue;
            ssize_t length = read(streams[index].source, chunk, sizeof chunk);
            if (length > 0) {
                keep(&streams[index], length, bytes_max);
            } else if (length == 0 || errno != EINTR) {
                close(streams[index].source);
                streams[index].source = -1; /* poll passes over a negative descriptor */
                open_streams--;
            }
        }
    }
    finish(streams);
    return 0;
}
