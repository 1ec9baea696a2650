/* A package has taken over reprepro: what it tries then. Each line of its output is the name of a
 * probe and 0, or the errno with which it failed. Compiled with -DPLACE="..." and -DVICTIM=PID. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <stddef.h>
#include <unistd.h>

static int to_socket(const char *path, int abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path + abstract, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + abstract + strlen(path);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, size);
}

static int to_network(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, sizeof address);
}

static int opened(const char *path, int flags) {
    int fd = open(path, flags, 0600);
    return fd < 0 ? -1 : !(flags & O_ACCMODE) || (flags & O_ACCMODE) == O_ACCMODE ? 0 : write(fd, "evil\n", 5) == 5 ? 0 : -1;
}

static int opened_by_number(const char *path) {
#ifdef SYS_open
    int fd = syscall(SYS_open, path, O_RDONLY | O_TRUNC);
#else
    int fd = syscall(SYS_openat, -1, path, O_RDONLY | O_TRUNC);
#endif
    return fd < 0 ? -1 : 0;
}

static int opened_by_structure(const char *path) {
    struct open_how how = {.flags = O_RDONLY | O_TRUNC};
    return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how) < 0 ? -1 : 0;
}

static int pidfd(void) { return syscall(SYS_pidfd_open, VICTIM, 0); }

static int traced(void) {
    if (ptrace(PTRACE_SEIZE, VICTIM, 0, 0)) return -1;
    ptrace(PTRACE_INTERRUPT, VICTIM, 0, 0);
    waitpid(VICTIM, 0, __WALL);
    return ptrace(PTRACE_DETACH, VICTIM, 0, 0);
}

static int remembered(void) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)ADDRESS, 1};
    return process_vm_readv(VICTIM, &here, 1, &there, 1, 0) == 1 ? 0 : -1;
}

static int taken_descriptor(void) {
    int fd = pidfd();
    return fd < 0 ? -1 : syscall(SYS_pidfd_getfd, fd, 0, 0) < 0 ? -1 : 0;
}

static int signalled_by_pidfd(void) {
    int fd = pidfd();
    return fd < 0 ? -1 : syscall(SYS_pidfd_send_signal, fd, 0, 0, 0);
}

static int signalled_by_a_pipe(void) {
    int fds[2];
    return pipe(fds) ? -1 : fcntl(fds[0], F_SETOWN, VICTIM);
}

static int queued(void) {
    siginfo_t info = {.si_signo = SIGURG, .si_code = SI_QUEUE};
    return syscall(SYS_rt_sigqueueinfo, VICTIM, SIGURG, &info);
}

static int limited(void) {
    struct rlimit old;
    return prlimit(VICTIM, RLIMIT_CORE, 0, &old) ? -1 : prlimit(VICTIM, RLIMIT_CORE, &old, 0);
}

static int bound(void) {
    cpu_set_t all;
    return sched_getaffinity(VICTIM, sizeof all, &all)
        ? -1 : sched_setaffinity(VICTIM, sizeof all, &all);
}

static int started(void) {
    int status;
    pid_t child = fork();
    if (child < 0) return -1;
    if (child == 0) {
        execl("/usr/bin/true", "true", (char *)0);
        _exit(errno);
    }
    waitpid(child, &status, 0);
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}

static int copied(void) {
    if (opened(PLACE "/archive/dev/pool/mine", O_WRONLY | O_CREAT)) return -1;
    return rename(PLACE "/archive/dev/pool/mine", PLACE "/archive/dev/private/db/mine");
}

#define OPTIONS PLACE "/archive/dev/private/conf/options"
#define ARTIFACT PLACE "/jobs/1/artifacts/x.deb"
#define TRY(name, what) (errno = 0, printf("%s %d\n", name, (what) < 0 ? errno : 0))

int main(void) {
    /* What it may do, so that the others do not fail for a reason of their own. */
    TRY("own-pocket", copied());
    TRY("own-configuration", opened(OPTIONS, O_RDONLY));
    TRY("own-artifact", opened(ARTIFACT, O_RDONLY));
    /* Before anything is written: afterwards there is more to read. */
    TRY("read-key", opened(PLACE "/gnupg/private-keys-v1.d/key", O_RDONLY));
    TRY("read-job", opened(PLACE "/jobs/1/fact.json", O_RDONLY));
    TRY("read-environment", opened(VICTIMS "/environ", O_RDONLY));
    TRY("read-memory", opened(VICTIMS "/mem", O_RDONLY));
    TRY("connect-signer", to_socket(PLACE "/run/sign.sock", 0));
    TRY("connect-daemon", to_socket(PLACE "/run/daemon.sock", 0));
    TRY("connect-notifier", to_socket(PLACE "/run/notify.sock", 0));
    TRY("connect-abstract", to_socket(PLACE, 1));
    TRY("connect-network", to_network(PORT));
    TRY("ptrace", traced());
    TRY("process_vm_readv", remembered());
    TRY("pidfd_getfd", taken_descriptor());
    TRY("pidfd_send_signal", signalled_by_pidfd());
    TRY("kill", kill(VICTIM, SIGURG));
    TRY("tgkill", syscall(SYS_tgkill, VICTIM, VICTIM, SIGURG));
    TRY("rt_sigqueueinfo", queued());
    TRY("fcntl-owner", signalled_by_a_pipe());
    TRY("prlimit", limited());
    TRY("setpriority", setpriority(PRIO_PROCESS, VICTIM, getpriority(PRIO_PROCESS, VICTIM)));
    TRY("sched_setaffinity", bound());
    TRY("start-program", started());
    TRY("write-queue", opened(PLACE "/queue/new/forged.json", O_WRONLY | O_CREAT));
    TRY("write-job", opened(PLACE "/jobs/1/fact.json", O_WRONLY));
    TRY("write-other-pocket", opened(PLACE "/archive/prod/pool/evil", O_WRONLY | O_CREAT));
    TRY("write-superproject", opened(PLACE "/superproject.git/HEAD", O_WRONLY));
    TRY("write-publication", opened(PLACE "/archive/dev/publications/x", O_WRONLY | O_CREAT));
    TRY("write-configuration", opened(OPTIONS, O_WRONLY));
    TRY("truncate", truncate(PLACE "/jobs/1/fact.json", 0));
    TRY("open-truncate", opened(PLACE "/jobs/1/fact.json", O_RDONLY | O_TRUNC));
    /* Without any access Landlock asks for no right. */
    TRY("open-truncate-closed", opened(PLACE "/jobs/1/fact.json", O_ACCMODE | O_TRUNC));
    /* The same of what may be read. */
    TRY("truncate-own", truncate(OPTIONS, 0));
    TRY("open-truncate-own", opened(OPTIONS, O_RDONLY | O_TRUNC));
    TRY("open-truncate-artifact", opened(ARTIFACT, O_RDONLY | O_TRUNC | O_CREAT));
    TRY("open-truncate-by-number", opened_by_number(ARTIFACT));
    TRY("openat2-truncate", opened_by_structure(ARTIFACT));
    TRY("creat", creat(ARTIFACT, 0644) < 0 ? -1 : 0);
    TRY("chmod", chmod(PLACE "/queue/new", 0777));
    TRY("utimensat", utimensat(AT_FDCWD, PLACE "/jobs/1/fact.json", 0, 0));
    TRY("chown", chown(PLACE "/jobs/1/fact.json", getuid(), getgid()));
    TRY("mkdir", mkdir(PLACE "/jobs/2", 0755));
    TRY("symlink", symlink(PLACE "/jobs", PLACE "/archive/dev/pool/away"));
    TRY("mkfifo", mkfifo(PLACE "/archive/dev/pool/fifo", 0644));
    TRY("link", link(PLACE "/superproject.git/HEAD", PLACE "/archive/dev/pool/HEAD"));
    TRY("rename", rename(PLACE "/queue/tmp/entry", PLACE "/archive/dev/pool/entry"));
    TRY("unlink", unlink(PLACE "/jobs/1/fact.json"));
    return 0;
}
