/* The recorder: writes one sandbox's output to files, and outlives the executor.
 *
 * containerd's shim starts it (a binary:// output) with the pipes of the sandbox's standard output
 * and error as descriptors 3 and 4, and waits until it closes 5. It reads both pipes to their end,
 * so that no sandbox ever blocks on its output, and keeps of each stream the first half of
 * `bytes_max` and the last half.
 *   recorder DIRECTORY BYTES_MAX  ->  DIRECTORY/output/stdout, /stderr, and at the end /end
 * `output` leads to a directory that stays when DIRECTORY goes, and is on a disk, where each file is
 * dear: that of a stream comes with its first byte.
 * A stream is in parts, only ever appended to: `stdout` has its beginning, `stdout.N` what follows
 * from byte N on. Of these the oldest go when younger ones hold the last half: what is missing
 * between two parts was dropped. So a reader that holds an offset is never told a wrong byte.
 * Beside each part, `stdout.times` and `stdout.N.times` say when it was read: pairs of 8 bytes each,
 * little-endian: from this byte of the stream on, this instant (nanoseconds since 1970). A pair comes
 * before its bytes do.
 * `end` holds the bytes written to each stream, kept or not, and how many of the last are meant to
 * be kept: "stdout stderr last\n". It appears whole. Where the gate has written the command's wait
 * status to the FIFO DIRECTORY/io/status, that follows: "stdout stderr last status\n".
 * The shim holds the pipes' other ends until the sandbox is deleted. So that nobody has to wait for
 * that, there is the FIFO DIRECTORY/ended: when a byte comes through it, every process of the sandbox
 * is dead, and the output ends with what the pipes hold.
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
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES 65536 /* a pipe's default size: one read empties it */
#define PART_BYTES_MIN 65536 /* so that a flood under a small limit makes few files */
#define PARTS_MAX 8 /* of the last half, at one time; four and a half are needed */
#define HEAD UINT64_MAX /* in place of a start: the beginning, which has no number in its name */
#define TIMES_MAX 8192 /* of a part, a millisecond or more apart; later ones are a second apart */
#define MILLISECOND 1000000u
#define SECOND 1000000000u
#define NICENESS "10"

static char chunk[CHUNK_BYTES];
static uint64_t last_bytes; /* how much of the end is kept */

struct stream {
    const char *name;
    int source, target;
    uint64_t seen_bytes;  /* written by the sandbox, kept or not */
    uint64_t room_bytes;  /* in the part that is open */
    uint64_t starts[PARTS_MAX]; /* of the last half's parts, oldest first */
    int parts;
    uint64_t part_start; /* of the part that is open; HEAD */
    int times;           /* the file of its times; -1: none yet */
    uint64_t timed_ns;   /* the last of them */
    unsigned times_count;
};

static char *decimal(char *end, uint64_t value)
{
    do
        *--end = '0' + value % 10;
    while (value /= 10);
    return end;
}

static char *before(char *end, const char *text)
{
    return memcpy(end - strlen(text), text, strlen(text));
}

/* "stdout.N" and a suffix */
static char *part_name(char text[64], const char *name, uint64_t start, const char *suffix)
{
    text[63] = '\0';
    char *first = before(text + 63, suffix);
    if (start != HEAD)
        first = before(decimal(first, start), ".");
    return before(first, name);
}

static int append_to(const char *path)
{
    return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * SECOND + now.tv_nsec;
}

/* What is written next was read at `read_ns`. */
static void note_time(struct stream *stream, uint64_t read_ns)
{
    char text[64];
    uint64_t apart = stream->times_count < TIMES_MAX ? MILLISECOND : SECOND;
    if (stream->times_count && read_ns - stream->timed_ns < apart)
        return;
    if (stream->times < 0)
        stream->times = append_to(part_name(text, stream->name, stream->part_start, ".times"));
    uint64_t pair[2] = {stream->seen_bytes, read_ns};
    if (write(stream->times, pair, sizeof pair) == sizeof pair) {
        stream->timed_ns = read_ns;
        stream->times_count++;
    }
}

static void drop_oldest(struct stream *stream)
{
    char text[64];
    unlink(part_name(text, stream->name, stream->starts[0], ""));
    unlink(part_name(text, stream->name, stream->starts[0], ".times"));
    memmove(stream->starts, stream->starts + 1, --stream->parts * sizeof *stream->starts);
}

/* Begins the next part, and drops those that the last half does not reach back to. */
static void next_part(struct stream *stream)
{
    char text[64];
    close(stream->target);
    close(stream->times);
    while (stream->parts > 1 && stream->starts[1] + last_bytes <= stream->seen_bytes)
        drop_oldest(stream);
    if (stream->parts == PARTS_MAX)
        drop_oldest(stream);
    stream->part_start = stream->seen_bytes;
    stream->target = append_to(part_name(text, stream->name, stream->part_start, ""));
    stream->times = -1;
    stream->times_count = 0;
    stream->room_bytes = last_bytes / 4 < PART_BYTES_MIN ? PART_BYTES_MIN : last_bytes / 4;
    stream->starts[stream->parts++] = stream->seen_bytes;
}

/* A full disk costs the output, never the sandbox: the pipe is drained anyway. */
static void keep(struct stream *stream, size_t length)
{
    size_t offset = 0;
    uint64_t read_ns = now_ns();
    while (offset < length) {
        if (stream->room_bytes == 0)
            next_part(stream);
        else if (stream->target < 0)
            stream->target = append_to(stream->name);
        note_time(stream, read_ns);
        size_t wanted = length - offset;
        if (wanted > stream->room_bytes)
            wanted = stream->room_bytes;
        ssize_t count = write(stream->target, chunk + offset, wanted);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) { /* what comes after the loss goes to a part of its own */
            stream->room_bytes = 0;
            stream->seen_bytes += length - offset;
            return;
        }
        offset += count;
        stream->seen_bytes += count;
        stream->room_bytes -= count;
    }
}

static void finish(const struct stream *streams, int status, int directory)
{
    char text[96], *end = text + sizeof text, *start = end;
    uint32_t told;
    *--start = '\n';
    if (read(status, &told, sizeof told) == sizeof told) {
        start = decimal(start, told);
        *--start = ' ';
    }
    start = decimal(start, last_bytes);
    *--start = ' ';
    start = decimal(start, streams[1].seen_bytes);
    *--start = ' ';
    start = decimal(start, streams[0].seen_bytes);
    int file = open("end.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t length = text + sizeof text - start;
    unlinkat(directory, "ended", 0); /* before `end` appears: who sees neither waits for nothing */
    if (file < 0 || write(file, start, length) != length || rename("end.new", "end") < 0)
        _exit(1);
}

/* What is read is in the pipe meanwhile: whatever is due now starts first. In a session of its own,
 * as the kernel may schedule sessions as groups (sched(7), autogroup): then niceness counts within
 * one alone. Both are wishes. */
static void yield(void)
{
    setpriority(PRIO_PROCESS, 0, atoi(NICENESS));
    int group = setsid() < 0 ? -1 : open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    ssize_t ignored = write(group, NICENESS, sizeof NICENESS - 1);
    (void)ignored;
    close(group);
}

int main(int count, char **values)
{
    if (count != 3 || chdir(values[1]) < 0)
        return 2;
    uint64_t bytes_max = strtoull(values[2], NULL, 10);
    last_bytes = bytes_max / 2;
    signal(SIGTERM, SIG_IGN); /* the shim says so when the sandbox ended; its output may not have */
    signal(SIGINT, SIG_IGN);
    yield();
    struct stream streams[2] = {
        {.name = "stdout", .source = 3}, {.name = "stderr", .source = 4}};
    for (int index = 0; index < 2; index++) {
        streams[index].target = -1;
        streams[index].room_bytes = bytes_max - last_bytes;
        streams[index].part_start = HEAD;
        streams[index].times = -1;
    }
    int directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ended = open("ended", O_RDWR | O_CLOEXEC); /* both ways: no end-of-file between writers */
    int status = open("io/status", O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* there before the gate is */
    if (directory < 0 || ended < 0 || chdir("output") < 0)
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
                keep(&streams[index], length);
            } else if (length == 0 || errno != EINTR) {
                close(streams[index].source);
                streams[index].source = -1; /* poll passes over a negative descriptor */
                open_streams--;
            }
        }
    }
    finish(streams, status, directory);
    return 0;
}
