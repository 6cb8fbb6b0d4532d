/* The process that sandboxes are forked from: it has what every run sees put together already.
 *
 * It is a program of its own, and a small one, as the price of a fork is that of the memory to be shared. Its mount
 * namespace holds four things and nothing of the host besides: /root, the file system that every run begins with,
 * read-only; /box, the folders of runs; /dev and /proc of the host. A sandbox is one clone(2) with all namespaces at
 * once. As the run's own user, mapped to 1000 and nobody else, it binds /root over itself, mounts what is the run's
 * alone, makes that its root, and waits for its command on a pipe. A pipe that ends too early, because the warden died,
 * ends it too: then nothing of the run was run.
 *
 * The sandbox's first process stays as the first of its process namespace: it starts the command, collects what is left
 * of others, holds open the pipes of what is said, and writes how it ended ("exit 0", "problem there is no …"). It is
 * not dumpable, so that the command can neither trace nor look into it.
 *
 * Asked over a socket of packets (descriptor 3): fields that end in a zero byte, as `spawn._wish` writes them, with
 * descriptors: its output, its errors, the file for its end, the pipe, lists of processes of the control groups that it
 * is to be in, and mounts of volumes. Answered with the number of the first process and a descriptor of it, or with "-"
 * and the number of an error. What is the same for all comes by standard input. A sandbox joins its groups itself: the
 * kernel may take a while over the first that does so after a pause.
 *
 * A mount of a volume is attached nowhere yet; the sandbox attaches it. The folder that it comes to be over is looked for
 * without following links, for a task chooses what lies in its working directory.
 *
 * Runs that reach only themselves are given network namespaces that are used again: to make and remove one is a fifth of
 * what a short run costs. They are the host's, so that no run has any power over them, and one is kept only while nothing
 * was ever sent in it: then nothing shows that anybody had it, as its sockets went with their processes.
 *
 * What is allowed where: user_namespaces(7), network_namespaces(7), mount_namespaces(7), pid_namespaces(7), capabilities(7).
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { INNER = 1000, LINE = 3, LEAST = 4, GIVEN = 28, KEPT = 100, MOST = 128 << 10, MOST_WORDS = 4 << 20 };
enum { PATHS = 4400, NAMES = 256 };
enum { OUT, ERR, STATUS, PIPE, GROUPS };
enum { HOST_NETWORK, OWN_NETWORK, KEPT_NETWORK }; /* as `spawn.NETWORKS` */
enum { NETWORKS = 160, ABOVE = 200 };
#define END 'x'
#define PLAIN (MS_NOSUID | MS_NODEV)
#define STILL (ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)

/* Of mount_setattr(2), which libraries name only since glibc 2.36. */
enum { ATTR_RDONLY = 1, ATTR_NOSUID = 2, ATTR_NODEV = 4, RECURSIVE = 0x8000, SYS_SETATTR = 442 };
/* Of move_mount(2), named since 2.36 as well: both places are descriptors. */
enum { FROM_EMPTY = 4, TO_EMPTY = 0x40, SYS_MOVE = 429 };
struct attributes { uint64_t set, clear, propagation, namespace; };

static struct {
    long open_files;
    uid_t uid;
    gid_t gid;
    struct sock_fprog filter;
    int null;
} site;

/* What one run is to have. Everything points into the request. */
struct wish {
    const char *handle;
    long uid; /* -1: our own */
    long network;
    long etc_count, device_count, extra_count, volume_count;
    const char **etc, **devices, **extra, **volumes;
};

/* --- words */

static int status = -1; /* in a sandbox: the file for its end */

static void say(const char *kind, const char *format, va_list more) {
    char text[2000];
    int size = snprintf(text, sizeof text, "%s ", kind);
    size += vsnprintf(text + size, sizeof text - size, format, more);
    if (size > (int)sizeof text - 1) size = sizeof text - 1;
    text[size] = '\n';
    if (write(status >= 0 ? status : 2, text, size + 1) < 0) _exit(2);
}

static void tell(const char *kind, const char *format, ...) {
    va_list more;
    va_start(more, format);
    say(kind, format, more);
    va_end(more);
}

/* End this process, saying why. */
static _Noreturn void fail(const char *format, ...) {
    va_list more;
    va_start(more, format);
    say("problem", format, more);
    va_end(more);
    _exit(1);
}

static void must(long result, const char *what) {
    if (result < 0) fail("%s: %s", what, strerror(errno));
}

struct fields { char *next, *end; };

static char *field(struct fields *from) {
    char *found = from->next, *zero = found < from->end ? memchr(found, 0, from->end - found) : NULL;
    if (zero == NULL) fail("a request was cut short");
    from->next = zero + 1;
    return found;
}

static long number(struct fields *from) { return strtol(field(from), NULL, 10); }

static const char **list(struct fields *from, long *count) {
    *count = number(from);
    if (*count < 0 || *count > MOST) fail("a request has too many words");
    const char **found = calloc(*count + 1, sizeof *found);
    if (found == NULL) fail("out of memory");
    for (long n = 0; n < *count; n++) found[n] = field(from);
    return found;
}

static char *read_all(int fd, size_t most, size_t *size) {
    size_t room = 1 << 16;
    char *data = malloc(room);
    *size = 0;
    for (;;) {
        if (data == NULL) fail("out of memory");
        ssize_t got = read(fd, data + *size, room - *size);
        if (got < 0 && errno == EINTR) continue;
        must(got, "read");
        if (got == 0) return data;
        *size += got;
        if (*size == room) {
            if ((room *= 2) > most) fail("it is told too much");
            data = realloc(data, room);
        }
    }
}

/* --- mounts */

static void join(char *path, const char *before, const char *after) {
    if (snprintf(path, PATHS, "%s%s", before, after) >= PATHS) fail("%.100s: the path is too long", after);
}

static void mounted(const char *source, const char *target, const char *kind, unsigned long flags, const char *data) {
    if (mount(source, target, kind, flags, data) < 0) fail("mount %s: %s", target, strerror(errno));
}

/* With all that is mounted below it, and `flags` on all of it. */
static void bind_all(const char *source, const char *target, unsigned flags) {
    mounted(source, target, NULL, MS_BIND | MS_REC, NULL);
    struct attributes wish = {.set = flags};
    if (flags && syscall(SYS_SETATTR, AT_FDCWD, target, RECURSIVE, &wish, sizeof wish) < 0)
        fail("attributes of %s: %s", target, strerror(errno));
}

/* The working directory becomes the root, and what was the root is gone. */
static void pivot(void) {
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount of the old root");
    must(chdir("/"), "chdir");
}

static void folder(const char *path) {
    if (mkdir(path, 0755) < 0 && errno != EEXIST) fail("mkdir %s: %s", path, strerror(errno));
}

/* All folders that lead to a path, below a root that is there. */
static void folders_to(char *path, size_t root) {
    for (char *slash = path + root + 1; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = 0;
        folder(path);
    }
}

/* Bind a file or folder to its place in a tree, which is made. What is not there is left out. */
static void put_at(const char *source, const char *root, const char *path, unsigned flags) {
    char target[PATHS];
    struct stat found;
    if (stat(source, &found) < 0) return;
    join(target, root, path);
    folders_to(target, strlen(root));
    if (S_ISDIR(found.st_mode)) {
        folder(target);
    } else {
        int fd = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        must(fd, target);
        close(fd);
    }
    bind_all(source, target, flags);
}

/* A link as a link, a folder bound, anything else left out. */
static void like(const char *source, const char *root, const char *path, unsigned flags) {
    char target[PATHS], there[PATHS];
    ssize_t size = readlink(source, there, sizeof there - 1);
    if (size >= 0) {
        there[size] = 0;
        join(target, root, path);
        must(symlink(there, target), target);
    } else {
        put_at(source, root, path, flags);
    }
}

/* --- what all runs see */

static const char *const MERGED[] = {"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"};
static const char *const NODES[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"};
static const char *const TOPOLOGY[] = {"/sys/devices/system/cpu", "/sys/devices/system/node"}; /* programs ask it */
static const char *const FOLDERS[] = {"/proc", "/run", "/tmp", "/work", "/var", "/dev", "/dev/pts", "/dev/shm"};
static const char *const LINKS[][2] = {
    {"/proc/self/fd", "/dev/fd"},       {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"}, {"/proc/kcore", "/dev/core"},      {"pts/ptmx", "/dev/ptmx"},
    {"/tmp", "/var/tmp"},
};
#define EACH(n, array) (size_t n = 0; n < sizeof array / sizeof *array; n++)

static void common_root(const char *root, const char *etc, const char **read_only) {
    char path[PATHS];
    for EACH (n, FOLDERS) {
        join(path, root, FOLDERS[n]);
        folder(path);
    }
    for EACH (n, LINKS) {
        join(path, root, LINKS[n][1]);
        must(symlink(LINKS[n][0], path), path);
    }
    for EACH (n, MERGED) like(MERGED[n], root, MERGED[n], STILL);
    for EACH (n, NODES) put_at(NODES[n], root, NODES[n], ATTR_NOSUID);
    for EACH (n, TOPOLOGY) put_at(TOPOLOGY[n], root, TOPOLOGY[n], STILL);
    put_at("/usr", root, "/usr", STILL);
    put_at(etc, root, "/etc", STILL);
    for (; *read_only; read_only += 2) put_at(read_only[0], root, read_only[1], STILL);
}

/* Make the mount namespace that we are in what the head of this file says. `view`: any empty folder. */
static void prepare(const char *view, const char *box, const char **read_only) {
    char path[PATHS], etc[PATHS];
    mounted("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
    mounted("tmpfs", view, "tmpfs", PLAIN, "mode=755");
    for (const char *const *name = (const char *const[]){"/root", "/new", "/box", "/dev", "/proc", NULL}; *name; name++) {
        join(path, view, *name);
        folder(path);
    }
    join(path, view, "/box");
    bind_all(box, path, ATTR_NOSUID | ATTR_NODEV);
    join(path, view, "/dev");
    bind_all("/dev", path, ATTR_NOSUID);
    join(path, view, "/proc");
    bind_all("/proc", path, 0);
    join(etc, view, "/box/etc");
    join(path, view, "/root");
    mounted("tmpfs", path, "tmpfs", PLAIN, "mode=755");
    common_root(path, etc, read_only);
    mounted("none", path, NULL, PLAIN | MS_REMOUNT | MS_RDONLY, NULL);
    must(chdir(view), view);
    pivot();
}

/* --- what one run sees */

static int is_one_of(const char *name, const char *const *names) {
    for (; *names; names++)
        if (strcmp(name, *names) == 0) return 1;
    return 0;
}

static void copy_tree(const char *source, const char *root, const char *below, const char *const *but) {
    char from[PATHS], path[PATHS], name[300];
    join(from, source, below);
    DIR *entries = opendir(from);
    if (entries == NULL) fail("%s: %s", from, strerror(errno));
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        if (is_one_of(entry->d_name, but)) continue;
        snprintf(name, sizeof name, "/%s", entry->d_name);
        join(path, below, name);
        join(from, source, path);
        like(from, root, path, 0);
    }
    closedir(entries);
}

/* A folder of the tree that we are in the top of, made where it can be; no link is followed. -1: there is none and none
 * can be made. */
static int folder_at(const char *path) {
    char name[NAMES];
    int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    must(here, ".");
    while (*path && here >= 0) {
        size_t size = strcspn(++path, "/");
        if (size == 0 || size >= sizeof name) fail("%.100s: no place for a volume", path);
        memcpy(name, path, size);
        name[size] = 0;
        path += size;
        mkdirat(here, name, 0755);
        int next = openat(here, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(here);
        here = next;
    }
    return here;
}

/* Whether a place is within what a run has of its own anyway. */
static int is_own(const char *path) { return strncmp(path, "/work/", 6) == 0 || strncmp(path, "/tmp/", 5) == 0; }

/* Put mounts that are attached nowhere to their places. */
static void put_volumes(const struct wish *wish, const int *mounts) {
    for (long n = 0; n < wish->volume_count; n++) {
        int place = folder_at(wish->volumes[n]);
        if (place < 0) fail("%s: no folder for a volume can be made there: %s", wish->volumes[n], strerror(errno));
        if (syscall(SYS_MOVE, mounts[n], "", place, "", FROM_EMPTY | TO_EMPTY) < 0)
            fail("volume at %s: %s", wish->volumes[n], strerror(errno));
        close(place);
        close(mounts[n]);
    }
}

/* As the common root, with more places in it: a tree of its own, of the same parts. */
static void own_root(const struct wish *wish) {
    static const char *const PARTS[] = {".", "..", "dev", "var", NULL}, *const NONE[] = {".", "..", NULL};
    char path[PATHS];
    mounted("tmpfs", "/new", "tmpfs", PLAIN, "mode=755");
    copy_tree("/root", "/new", "", PARTS);
    folder("/new/dev");
    folder("/new/var");
    copy_tree("/root", "/new", "/dev", NONE);
    copy_tree("/root", "/new", "/var", NONE);
    for (long n = 0; n < wish->device_count; n++) put_at(wish->devices[n], "/new", wish->devices[n], 0);
    for (long n = 0; n < wish->extra_count; n++) {
        snprintf(path, sizeof path, "/box/%s/extra/%ld", wish->handle, n);
        put_at(path, "/new", wish->extra[n], 0);
    }
    must(chdir("/new"), "chdir");
    for (long n = 0; n < wish->volume_count; n++)
        if (!is_own(wish->volumes[n])) close(folder_at(wish->volumes[n]));
    mounted("none", "/new", NULL, PLAIN | MS_REMOUNT | MS_BIND | MS_RDONLY, NULL);
}

static void furnish(const struct wish *wish, const int *mounts) {
    char path[PATHS], target[PATHS];
    int special = wish->device_count || wish->extra_count;
    for (long n = 0; n < wish->volume_count; n++) special |= !is_own(wish->volumes[n]);
    if (special)
        own_root(wish);
    else
        mounted("/root", "/root", NULL, MS_BIND | MS_REC, NULL);
    must(chdir(special ? "/new" : "/root"), "chdir");
    mounted("proc", "proc", "proc", PLAIN | MS_NOEXEC, NULL);
    mounted("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
    mounted("tmpfs", "dev/shm", "tmpfs", PLAIN, "mode=1777,size=4096");
    snprintf(path, sizeof path, "/box/%s/tmp", wish->handle);
    mounted(path, "tmp", NULL, MS_BIND, NULL);
    snprintf(path, sizeof path, "/box/%s/work", wish->handle);
    mounted(path, "work", NULL, MS_BIND, NULL);
    for (long n = 0; n < wish->etc_count; n++) {
        snprintf(path, sizeof path, "/box/%s/%s", wish->handle, wish->etc[n]);
        join(target, "etc/", wish->etc[n]);
        bind_all(path, target, ATTR_RDONLY);
    }
    put_volumes(wish, mounts);
    pivot();
}

static int loopback_up(void) {
    struct ifreq wish = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int line = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (line < 0) return -1;
    int good = ioctl(line, SIOCSIFFLAGS, &wish);
    close(line);
    return good;
}

/* --- its command */

/* No capabilities, none to be had, and the system call filter. */
static void give_up_privileges(void) {
    struct { uint32_t version; int pid; } head = {0x20080522, 0};
    uint32_t none[6] = {0};
    for (int n = 0; n < 64 && prctl(PR_CAPBSET_DROP, n, 0, 0, 0) == 0; n++) {}
    must(syscall(SYS_capset, &head, none), "capset");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    if (site.filter.len) must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &site.filter), "seccomp");
}

static pid_t begin(char **command, char **variables) {
    posix_spawnattr_t wish;
    sigset_t none, defaults;
    pid_t child;
    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawnattr_init(&wish);
    posix_spawnattr_setflags(&wish, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&wish, &none);
    posix_spawnattr_setsigdefault(&wish, &defaults);
    environ = variables; /* PATH is looked up in our own */
    int error = posix_spawnp(&child, command[0], NULL, &wish, command, variables);
    if (error == ENOENT) fail("there is no command %s", command[0]);
    if (error) fail("%s: %s", command[0], strerror(error));
    return child;
}

/* See to all processes until the command has ended; then all others end with us. */
static _Noreturn void look_after(pid_t child) {
    for (;;) {
        int how;
        pid_t pid = waitpid(-1, &how, 0);
        if (pid == child && (WIFEXITED(how) || WIFSIGNALED(how))) {
            tell("exit", "%d", WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how));
            _exit(0);
        }
        if (pid < 0 && errno != EINTR) fail("wait: %s", strerror(errno));
    }
}

/* Wait for the command and what belongs to it, as `spawn.words` writes them, and be its parent. */
static _Noreturn void run(int pipe) {
    size_t size;
    char *data = read_all(pipe, MOST_WORDS, &size);
    close(pipe);
    struct fields told = {data, data + size};
    if (size == 0) _exit(1);
    long words = number(&told), bytes = number(&told);
    if (told.end - told.next != bytes + 1 || told.end[-1] != END) _exit(1);
    char **command = calloc(words + 1, sizeof *command);
    char **variables = calloc(bytes + 2, sizeof *variables);
    char pwd[PATHS], size_of[60];
    if (command == NULL || variables == NULL) fail("out of memory");
    told.end--;
    const char *workdir = field(&told), *hostname = field(&told);
    snprintf(size_of, sizeof size_of, "size=%.40s", field(&told));
    for (long n = 0; n < words; n++) command[n] = field(&told);
    long count = 0;
    while (told.next < told.end) variables[count++] = field(&told);
    join(pwd, "PWD=", workdir);
    variables[count] = pwd;
    mounted("tmpfs", "/dev/shm", NULL, PLAIN | MS_REMOUNT, size_of);
    must(sethostname(hostname, strlen(hostname)), "sethostname");
    prctl(PR_SET_NAME, "usina-run", 0, 0, 0);
    unshare(CLONE_NEWCGROUP); /* only now: it is in its own group since; where there are none, there is nothing to hide */
    give_up_privileges();
    if (chdir(workdir) < 0) fail("there is no folder %s", workdir);
    look_after(begin(command, variables));
}

/* The first process of a sandbox. */
static _Noreturn void be(const struct wish *wish, const int *given, int count, int mapped, int fresh_network) {
    struct rlimit files;
    char go;
    status = given[STATUS];
    if (read(mapped, &go, 1) != 1) _exit(1);
    signal(SIGCHLD, SIG_DFL);
    must(dup2(site.null, 0), "dup");
    must(dup2(given[OUT], 1), "dup");
    must(dup2(given[ERR], 2), "dup");
    for (int n = STATUS; n < count; n++) must(dup3(given[n], KEPT + n, O_CLOEXEC), "dup");
    status = KEPT + STATUS;
    close_range(3, KEPT + STATUS - 1, 0);
    close_range(KEPT + count, ~0U, 0);
    must(setsid(), "setsid");
    must(setresgid(INNER, INNER, INNER), "setresgid");
    must(setresuid(INNER, INNER, INNER), "setresuid");
    if (site.uid == 0) must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable");
    int volumes[GIVEN], groups = count - wish->volume_count;
    for (int n = groups; n < count; n++) volumes[n - groups] = KEPT + n;
    furnish(wish, volumes);
    if (fresh_network) must(loopback_up(), "loopback");
    for (int n = GROUPS; n < groups; n++) {
        must(write(KEPT + n, "0", 1), "control group");
        close(KEPT + n);
    }
    must(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    files.rlim_cur = site.open_files;
    must(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
    umask(0022);
    prctl(PR_SET_NAME, "usina-spare", 0, 0, 0); /* by which the warden knows that it waits */
    run(KEPT + PIPE);
}

/* --- being asked */

static int put_text(const char *process, const char *file, const char *format, ...) {
    char path[100], text[100];
    va_list more;
    va_start(more, format);
    int size = vsnprintf(text, sizeof text, format, more);
    va_end(more);
    snprintf(path, sizeof path, "/proc/%s/%s", process, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int good = write(fd, text, size) == size ? 0 : -1;
    close(fd);
    return good;
}

/* One user and one group, and no more groups ever. */
static int map_users(const char *process, uid_t inner_uid, uid_t uid, gid_t inner_gid, gid_t gid) {
    return put_text(process, "uid_map", "%u %u 1", inner_uid, uid) < 0
                || put_text(process, "setgroups", "deny") < 0
                || put_text(process, "gid_map", "%u %u 1", inner_gid, gid) < 0
            ? -1 : 0;
}

/* --- networks that are used again */

/* All of them descriptors: the namespace (-1: there is none), what its devices have carried, and the process that has
 * it (-1: nobody has). */
static struct network { int space, carried, user; } networks[NETWORKS];
static int home = -1; /* our own network namespace */

/* Out of the way of the numbers that a sandbox wants for what it is given. */
static int open_above(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int above = fcntl(fd, F_DUPFD_CLOEXEC, ABOVE);
    close(fd);
    return above;
}

static void drop(struct network *one) {
    close(one->space);
    close(one->carried);
    *one = (struct network){-1, -1, -1};
}

/* Whether there is nothing in it but a loopback device that has carried nothing, as /proc/net/dev tells it. */
static int is_untouched(const struct network *one) {
    char text[2000];
    ssize_t size = pread(one->carried, text, sizeof text - 1, 0);
    if (size <= 0) return 0;
    text[size] = 0;
    const char *lo = strstr(text, "lo:");
    return lo != NULL && lo[3 + strspn(lo + 3, " 0")] == '\n' && lo[4 + strspn(lo + 3, " 0")] == 0;
}

static int make_network(struct network *one) {
    if (unshare(CLONE_NEWNET) < 0) return -1;
    one->space = open_above("/proc/self/ns/net");
    one->carried = open_above("/proc/self/net/dev");
    int good = loopback_up();
    must(setns(home, CLONE_NEWNET), "the host's network");
    if (good == 0 && one->space >= 0 && one->carried >= 0) return 0;
    drop(one);
    return -1;
}

/* One that nobody has; NULL where there is none to be had. */
static struct network *free_network(void) {
    struct network *found = NULL;
    for EACH (n, networks) {
        struct network *one = networks + n;
        struct pollfd end = {.fd = one->user, .events = POLLIN};
        if (one->user >= 0 && poll(&end, 1, 0) == 1) {
            close(one->user);
            one->user = -1;
            if (!is_untouched(one)) drop(one);
        }
        if (one->user < 0 && (found == NULL || (found->space < 0 && one->space >= 0))) found = one;
    }
    return found == NULL || (found->space < 0 && make_network(found) < 0) ? NULL : found;
}

static pid_t fork_sandbox(unsigned long kinds, struct network *network, int *own) {
    if (network != NULL && setns(network->space, CLONE_NEWNET) < 0) return -1;
    pid_t pid = syscall(SYS_clone, kinds | CLONE_PIDFD | SIGCHLD, 0, own, 0, 0);
    if (pid != 0 && network != NULL) {
        int error = errno;
        must(setns(home, CLONE_NEWNET), "the host's network");
        if (pid > 0) must(network->user = fcntl(*own, F_DUPFD_CLOEXEC, ABOVE), "dup");
        errno = error;
    }
    return pid;
}

static pid_t make(const struct wish *wish, const int *given, int count, int *own) {
    int mapped[2];
    char name[20];
    struct network *network = wish->network == KEPT_NETWORK && home >= 0 ? free_network() : NULL;
    int needs_one = wish->network != HOST_NETWORK && network == NULL;
    unsigned long kinds = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS
        | (needs_one ? CLONE_NEWNET : 0);
    if (pipe2(mapped, O_CLOEXEC) < 0) return -1;
    pid_t pid = fork_sandbox(kinds, network, own);
    if (pid == 0) {
        close(mapped[1]);
        be(wish, given, count, mapped[0], needs_one);
    }
    if (pid > 0) {
        snprintf(name, sizeof name, "%d", pid);
        uid_t uid = wish->uid >= 0 ? (uid_t)wish->uid : site.uid;
        gid_t gid = wish->uid >= 0 ? (gid_t)wish->uid : site.gid;
        if (map_users(name, INNER, uid, INNER, gid) < 0 || write(mapped[1], "x", 1) != 1) {
            int error = errno;
            kill(pid, SIGKILL); /* it waits, so it is there */
            close(*own);
            errno = error;
            pid = -1;
        }
    }
    int error = errno;
    close(mapped[0]);
    close(mapped[1]);
    errno = error;
    return pid;
}

static struct wish read_wish(char *data, size_t size) {
    struct fields told = {data, data + size};
    struct wish wish = {.handle = field(&told)};
    wish.uid = number(&told);
    wish.network = number(&told);
    wish.etc = list(&told, &wish.etc_count);
    wish.devices = list(&told, &wish.device_count);
    wish.extra = list(&told, &wish.extra_count);
    wish.volumes = list(&told, &wish.volume_count);
    return wish;
}

static void answer(pid_t pid, int own) {
    char text[40], room[CMSG_SPACE(sizeof own)] = {0};
    struct iovec data = {text, snprintf(text, sizeof text, "%d", pid)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof own), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &own, sizeof own);
    must(sendmsg(LINE, &message, MSG_NOSIGNAL), "answer");
}

/* Until the warden is gone. What runs, runs on. */
static void serve(void) {
    static char request[MOST];
    char room[CMSG_SPACE(sizeof(int[GIVEN]))], text[40];
    for (;;) {
        struct iovec data = {request, sizeof request};
        struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        ssize_t size = recvmsg(LINE, &message, MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return;
        int given[GIVEN], own = -1;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        int count = head == NULL ? 0 : (head->cmsg_len - CMSG_LEN(0)) / sizeof *given;
        if (count < LEAST || count > GIVEN) fail("a request came without its descriptors");
        memcpy(given, CMSG_DATA(head), count * sizeof *given);
        struct wish wish = read_wish(request, size);
        if (wish.volume_count > count - GROUPS) fail("a request came without its mounts");
        pid_t pid = make(&wish, given, count, &own);
        if (pid > 0) {
            answer(pid, own);
            close(own);
        } else {
            data = (struct iovec){text, snprintf(text, sizeof text, "-%d", errno)};
            must(send(LINE, text, data.iov_len, MSG_NOSIGNAL), "answer");
        }
        for (int n = 0; n < count; n++) close(given[n]);
        free(wish.etc);
        free(wish.devices);
        free(wish.extra);
        free(wish.volumes);
    }
}

static unsigned digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

static void read_filter(const char *hex) {
    size_t size = strlen(hex) / 2;
    unsigned char *bytes = malloc(size + 1);
    if (bytes == NULL) fail("out of memory");
    for (size_t n = 0; n < size; n++) bytes[n] = digit(hex[2 * n]) << 4 | digit(hex[2 * n + 1]);
    site.filter = (struct sock_fprog){size / sizeof(struct sock_filter), (struct sock_filter *)bytes};
}

int main(void) {
    size_t size;
    long count;
    struct fields told = {0};
    told.next = read_all(0, MOST_WORDS, &size);
    told.end = told.next + size;
    prctl(PR_SET_NAME, "usina-zygote", 0, 0, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN); /* the kernel buries them: their end shows at their descriptors */
    fcntl(LINE, F_SETFD, FD_CLOEXEC);
    site.null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    must(site.null, "/dev/null");
    site.open_files = number(&told);
    read_filter(field(&told));
    const char *view = field(&told), *box = field(&told);
    const char **read_only = list(&told, &count);
    site.uid = geteuid();
    site.gid = getegid();
    must(unshare(CLONE_NEWNS | (site.uid ? CLONE_NEWUSER : 0)), "namespaces");
    for EACH (n, networks) networks[n] = (struct network){-1, -1, -1};
    if (site.uid == 0) home = open_above("/proc/self/ns/net");
    if (site.uid) must(map_users("self", site.uid, site.uid, site.gid, site.gid), "user namespace");
    prepare(view, box, read_only);
    must(send(LINE, "ready", 5, MSG_NOSIGNAL), "answer");
    serve();
}
