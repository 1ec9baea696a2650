/* Ways out of a sandbox, each tried by a small function.
 *
 *     probes LABEL        tries them all; prints PROBES LABEL {"name": "open" | "denied: why"}
 *     probes host         holds what probes look for on the machine, until standard input ends
 *     probes daemon       becomes a daemon that build code must not find alive
 *     probes privileges   says whether this process has root's id or capabilities
 *     probes identity     prints who it runs as
 *     probes give PATH    gives a program capabilities
 *
 * What is looked for (paths, ports, process ids) is in the file "targets" beside the program, a
 * line KEY=VALUE each. Every probe runs in a child of its own, so that one that is killed, hangs,
 * or changes something does not spoil the others. Nothing is changed on the machine where a probe
 * succeeds: calls that would are made with arguments that the kernel refuses after its permission
 * check. Static, as the trees that it runs in have no libraries of ours.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define OPEN "open"
#define UNUSED __attribute__((unused)) const char *unused

static char text[400];
static char *targets;

static const char *say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	return text;
}

static const char *denied(int error)
{
	const char *name = strerrorname_np(error);
	return say("denied: %s", name ? name : "an unknown error");
}

/* What a call that succeeds with 0 or more, or fails with -1, says. */
static const char *result(long value)
{
	return value == -1 ? denied(errno) : OPEN;
}

/* The same for a call that only a permitted caller can fail with this error. */
static const char *reached(long value, int error)
{
	return value == -1 && errno == error ? OPEN : result(value);
}

static const char *target(const char *key)
{
	static char value[1000];
	size_t length = strlen(key);
	for (char *line = targets; line && *line; line = strchr(line, '\n') + 1)
		if (!strncmp(line, key, length) && line[length] == '=') {
			snprintf(value, sizeof value, "%.*s", (int)strcspn(line + length + 1, "\n"), line + length + 1);
			return value;
		}
	fprintf(stderr, "probes: no target %s\n", key);
	_exit(9);
}

static long number(const char *key)
{
	return strtol(target(key), NULL, 0);
}

/* --- files ------------------------------------------------------------------------------- */

static const char *read_file(const char *path)
{
	char data[4096];
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	struct stat status;
	if (fd < 0)
		return denied(errno);
	if (!fstat(fd, &status) && S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3))
		return "denied: masked";
	ssize_t got = read(fd, data, sizeof data);
	if (got < 0 && errno != EAGAIN)
		return denied(errno);
	return got ? OPEN : "denied: empty";
}

static const char *host_file(const char *key)
{
	return read_file(target(key));
}

static const char *host_file_below(const char *prefix)
{
	char path[2000];
	snprintf(path, sizeof path, "%s%s", prefix, target("public"));
	return read_file(path);
}

static const char *host_file_below_init(UNUSED)
{
	char prefix[100];
	snprintf(prefix, sizeof prefix, "/proc/%ld/root", number("init"));
	return host_file_below(prefix);
}

static const char *write_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_NONBLOCK);
	struct stat status;
	if (fd < 0)
		return denied(errno);
	if (!fstat(fd, &status) && S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3))
		return "denied: masked";
	return OPEN;
}

static const char *write_target(const char *key)
{
	return write_file(target(key));
}

static const char *chroot_and_climb(UNUSED)
{
	/* Inside, the root's parent is the root: where a climb ends is what the path shows then. */
	char directory[200];
	snprintf(directory, sizeof directory, "%s/escape-XXXXXX", target("scratch"));
	if (!mkdtemp(directory))
		return say("broken: %m");
	if (chroot(directory))
		return denied(errno);
	for (int i = 0; i < 64; i++)
		if (chdir(".."))
			return denied(errno);
	return chroot(".") ? denied(errno) : host_file("public");
}

static int is_leaked(int fd)
{
	struct stat status;
	return !fstat(fd, &status) && (long)status.st_ino == number("leaked_inode") &&
	       (long)status.st_dev == number("leaked_device");
}

static const char *inherited_descriptor(UNUSED)
{
	for (int fd = 3; fd < 4096; fd++)
		if (is_leaked(fd))
			return OPEN;
	return "denied: EBADF";
}

/* Maintainer scripts and make's children have pipes and files of dpkg's and make's; nothing here
 * has a reason to hand a directory, a device or a socket down. */
static const char *strange_descriptor(UNUSED)
{
	struct stat status;
	for (int fd = 3; fd < 4096; fd++)
		if (!fstat(fd, &status) && !S_ISFIFO(status.st_mode) && !S_ISREG(status.st_mode))
			return OPEN;
	return "denied: EBADF";
}

static const char *inherited_directory(UNUSED)
{
	int fd = open(".", O_RDONLY);
	return is_leaked(fd) ? OPEN : "denied: elsewhere";
}

static const char *standard_stream(UNUSED)
{
	struct stat status;
	for (int fd = 0; fd < 3; fd++) {
		char path[40];
		if (fstat(fd, &status) || !S_ISREG(status.st_mode))
			continue;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		if (open(path, O_WRONLY) >= 0)
			return OPEN;
	}
	return "denied: no file";
}

static const char *environment(UNUSED)
{
	for (char **entry = environ; *entry; entry++)
		if (strstr(*entry, target("marker")))
			return OPEN;
	return "denied: ENOENT";
}

static const char *by_handle(UNUSED)
{
	struct { struct file_handle handle; unsigned char more[128]; } wanted = {0};
	int mount_id, root = open("/", O_RDONLY);
	wanted.handle.handle_bytes = sizeof wanted.more;
	/* In a sandbox the path is not there; but the calls are refused before they look. */
	if (name_to_handle_at(AT_FDCWD, target("public"), &wanted.handle, &mount_id, 0) && errno != EPERM)
		return say("broken: name_to_handle_at: %m");
	return result(open_by_handle_at(root, &wanted.handle, O_RDONLY));
}

static const char *handle(UNUSED)
{
	struct { struct file_handle handle; unsigned char more[128]; } wanted = {0};
	int mount_id;
	wanted.handle.handle_bytes = sizeof wanted.more;
	return result(name_to_handle_at(AT_FDCWD, "/etc", &wanted.handle, &mount_id, 0));
}

/* --- processes --------------------------------------------------------------------------- */

static const char *process_file(const char *name)
{
	char path[100];
	snprintf(path, sizeof path, "/proc/%ld/%s", number("process"), name);
	return read_file(path);
}

static const char *process_root(UNUSED)
{
	char path[100];
	snprintf(path, sizeof path, "/proc/%ld/root/etc", number("process"));
	return result(open(path, O_RDONLY));
}

static const char *signal_process(UNUSED)
{
	return result(kill(number("process"), 0));
}

static const char *pidfd_of_process(UNUSED)
{
	return result(syscall(SYS_pidfd_open, number("process"), 0));
}

static const char *limit_of_process(UNUSED)
{
	struct rlimit limit;
	return result(prlimit(number("process"), RLIMIT_CORE, NULL, &limit));
}

static const char *trace(const char *key)
{
	pid_t pid = number(key);
	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL))
		return denied(errno);
	return ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) || waitpid(pid, NULL, __WALL) < 0 ||
	       ptrace(PTRACE_DETACH, pid, NULL, NULL) ? say("broken: detach: %m") : OPEN;
}

static const char *memory_of(const char *key)
{
	char path[100];
	snprintf(path, sizeof path, "/proc/%ld/mem", number(key));
	return result(open(path, O_RDWR));
}

static const char *link_of_init(const char *name)
{
	char path[100], found[1000];
	snprintf(path, sizeof path, "/proc/%ld/%s", number("init"), name);
	return result(readlink(path, found, sizeof found));
}

static const char *file_of_init(const char *name)
{
	char path[100];
	snprintf(path, sizeof path, "/proc/%ld/%s", number("init"), name);
	return read_file(path);
}

/* Is the daemon alive that an earlier phase started? By its name, its port, its socket. */
static const char *daemon_alive(UNUSED)
{
	DIR *folder = opendir("/proc");
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		char path[300], name[40] = "";
		snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
		int fd = open(path, O_RDONLY);
		if (fd >= 0 && read(fd, name, sizeof name - 1) > 0 && !strcmp(name, "escape-daemon\n"))
			return OPEN;
		close(fd);
	}
	return "denied: ESRCH";
}

/* --- devices ----------------------------------------------------------------------------- */

static const char *device(const char *path)
{
	return result(open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY));
}

static const char *strange_device(UNUSED)
{
	static const char *const known[] = {"null", "zero", "full", "random", "urandom", "tty"};
	DIR *folder = opendir("/dev");
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		struct stat status;
		int is_known = 0;
		for (size_t i = 0; i < sizeof known / sizeof *known; i++)
			is_known |= !strcmp(entry->d_name, known[i]);
		if (is_known || fstatat(dirfd(folder), entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
			continue;
		if (S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode))
			return OPEN;
	}
	return "denied: ENOENT";
}

static const char *make_device(const char *what)
{
	int block = what[0] == 'b';
	unsigned major, minor;
	char path[200];
	sscanf(what + 1, "%u:%u", &major, &minor);
	snprintf(path, sizeof path, "%s/escape-node", target("scratch"));
	if (mknod(path, (block ? S_IFBLK : S_IFCHR) | 0600, makedev(major, minor)))
		return denied(errno);
	unlink(path);
	return OPEN;
}

static int pseudoterminal(void)
{
	int leader = posix_openpt(O_RDWR | O_NOCTTY);
	if (leader < 0 || grantpt(leader) || unlockpt(leader))
		return -1;
	return open(ptsname(leader), O_RDWR | O_NOCTTY);
}

static const char *terminal_input(UNUSED)
{
	int terminal = pseudoterminal();
	return terminal < 0 ? say("broken: no pty: %m") : result(ioctl(terminal, TIOCSTI, "x"));
}

static const char *console_selection(UNUSED)
{
	/* TIOCLINUX belongs to consoles: another terminal that gets it does not know it. */
	char subcode = 6;
	int terminal = pseudoterminal();
	if (terminal < 0)
		return say("broken: no pty: %m");
	return reached(ioctl(terminal, TIOCLINUX, &subcode), ENOTTY);
}

static const char *line_discipline(UNUSED)
{
	int same = 0 /* N_TTY */, terminal = pseudoterminal();
	return terminal < 0 ? say("broken: no pty: %m") : result(ioctl(terminal, TIOCSETD, &same));
}

static const char *controlling_terminal(UNUSED)
{
	return result(open("/dev/tty", O_RDWR));
}

static const char *terminal_stream(UNUSED)
{
	return isatty(0) || isatty(1) || isatty(2) ? OPEN : "denied: ENOTTY";
}

/* --- mounts ------------------------------------------------------------------------------ */

/* Whoever can have a mount namespace of their own mounts there, and nobody else sees it. */
static void mounts_of_my_own(void)
{
	if (!unshare(CLONE_NEWNS) && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		_exit(8);
}

static const char *mount_kind(const char *kind)
{
	mounts_of_my_own();
	/* A driver that finds no disk at all has been asked. */
	const char *source = !strcmp(kind, "ext4") ? "/dev/null" : "none";
	return reached(mount(source, target("scratch"), kind, 0, NULL), ENOTBLK);
}

static const char *mount_overlay(UNUSED)
{
	mounts_of_my_own();
	return result(mount("overlay", target("scratch"), "overlay", 0, "lowerdir=/usr:/etc"));
}

static const char *mount_bind(UNUSED)
{
	mounts_of_my_own();
	return result(mount("/etc", target("scratch"), NULL, MS_BIND, NULL));
}

static const char *mount_writable(UNUSED)
{
	mounts_of_my_own();
	return result(mount(NULL, target("mounted"), NULL, MS_REMOUNT | MS_BIND, NULL));
}

static const char *unmount(UNUSED)
{
	mounts_of_my_own();
	return result(umount2(target("mounted"), MNT_DETACH));
}

static const char *pivot(UNUSED)
{
	return reached(syscall(SYS_pivot_root, "/nonexistent", "/nonexistent"), ENOENT);
}

static const char *call_fsopen(UNUSED)
{
	return result(syscall(SYS_fsopen, "tmpfs", 0));
}

static const char *call_fspick(UNUSED)
{
	mounts_of_my_own();
	return result(syscall(SYS_fspick, AT_FDCWD, target("mounted"), 0));
}

static const char *call_open_tree(UNUSED)
{
	return result(syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */));
}

static const char *call_move_mount(UNUSED)
{
	return reached(syscall(SYS_move_mount, -1, "x", -1, "x", 0), EBADF);
}

static const char *call_mount_setattr(UNUSED)
{
	unsigned long long attributes[4] = {0};
	return result(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, attributes, sizeof attributes));
}

/* --- namespaces -------------------------------------------------------------------------- */

static const char *same_namespace(const char *kind)
{
	char path[100], found[100] = "", key[40];
	snprintf(path, sizeof path, "/proc/self/ns/%s", kind);
	snprintf(key, sizeof key, "ns_%s", kind);
	if (readlink(path, found, sizeof found - 1) < 0)
		return say("broken: %m");
	return strcmp(found, target(key)) ? "denied: another" : OPEN;
}

static const char *call_unshare(const char *flag)
{
	return result(unshare(strtol(flag, NULL, 0)));
}

static const char *call_clone(UNUSED)
{
	long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
	if (!pid)
		_exit(0);
	return result(pid);
}

static const char *call_clone3(UNUSED)
{
	struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
	long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
	if (!pid)
		_exit(0);
	return result(pid);
}

static const char *call_setns(UNUSED)
{
	return result(setns(open("/proc/self/ns/net", O_RDONLY), 0));
}

/* Which ids outside are there for me? */
static const char *maps_worker(const char *file)
{
	FILE *map = fopen(file, "r");
	long inside, outside, count;
	if (!map)
		return say("broken: %m");
	while (fscanf(map, "%ld %ld %ld", &inside, &outside, &count) == 3)
		if (outside <= number("worker") && number("worker") < outside + count)
			return OPEN;
	return "denied: not mapped";
}

static const char *supplementary_group(UNUSED)
{
	gid_t groups[200];
	int count = getgroups(200, groups);
	for (int i = 0; i < count; i++)
		if (groups[i] == 65534 || groups[i] == number("group"))
			return OPEN;
	return "denied: not mapped";
}

/* --- the kernel's subsystems ------------------------------------------------------------- */

static const char *read_key(UNUSED)
{
	char value[100];
	return result(syscall(SYS_keyctl, 11 /* READ */, number("key"), value, sizeof value));
}

static const char *request_key(UNUSED)
{
	return result(syscall(SYS_request_key, "user", target("key_name"), NULL, 0));
}

static const char *add_key(UNUSED)
{
	return result(syscall(SYS_add_key, "user", "escape", "x", 1, -2 /* PROCESS_KEYRING */));
}

static const char *join_keyring(UNUSED)
{
	return result(syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, NULL));
}

static const char *call_bpf(UNUSED)
{
	union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .max_entries = 1};
	map.key_size = map.value_size = 4;
	return result(syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map));
}

static const char *call_perf(UNUSED)
{
	struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event};
	event.exclude_kernel = 1;
	return result(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
}

static const char *call_io_uring(UNUSED)
{
	char parameters[256] = {0};
	return result(syscall(SYS_io_uring_setup, 1, parameters));
}

static const char *call_userfaultfd(UNUSED)
{
	return result(syscall(SYS_userfaultfd, 0));
}

static const char *call_fanotify(UNUSED)
{
	return result(syscall(SYS_fanotify_init, 0, O_RDONLY));
}

static const char *call_kcmp(UNUSED)
{
	return result(syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0));
}

static const char *kernel_log(UNUSED)
{
	char log[100];
	return result(klogctl(3, log, sizeof log));
}

static const char *call_quotactl(UNUSED)
{
	return result(syscall(SYS_quotactl, 0x800001 << 8 /* Q_SYNC */, NULL, 0, NULL));
}

static const char *call_acct(UNUSED)
{
	return reached(syscall(SYS_acct, "/nonexistent/x"), ENOENT);
}

static const char *call_swapon(UNUSED)
{
	return reached(syscall(SYS_swapon, "/nonexistent/x", 0), ENOENT);
}

static const char *call_swapoff(UNUSED)
{
	return reached(syscall(SYS_swapoff, "/nonexistent/x"), ENOENT);
}

static const char *call_reboot(UNUSED)
{
	return reached(syscall(SYS_reboot, 1, 2, 3, NULL), EINVAL);
}

static const char *call_modules(UNUSED)
{
	if (!syscall(SYS_init_module, "x", 1, "") || errno == ENOEXEC)
		return OPEN;
	return reached(syscall(SYS_finit_module, -1, "", 0), EBADF);
}

static const char *call_kexec(UNUSED)
{
	return reached(syscall(SYS_kexec_load, 0, 0, NULL, ~0UL), EINVAL);
}

static const char *call_vhangup(UNUSED)
{
	setsid();
	return result(vhangup());
}

static const char *set_time(UNUSED)
{
	struct timezone nowhere = {.tz_minuteswest = 10000};
	return reached(syscall(SYS_settimeofday, NULL, &nowhere), EINVAL);
}

static const char *adjust_time(UNUSED)
{
	struct timex state = {0}, same = {.modes = ADJ_ESTERROR};
	if (adjtimex(&state) < 0)
		return denied(errno);
	same.esterror = state.esterror;
	return result(clock_adjtime(CLOCK_REALTIME, &same));
}

static const char *set_host_name(UNUSED)
{
	char name[100];
	gethostname(name, sizeof name);
	return result(sethostname(name, strlen(name)));
}

static const char *set_domain_name(UNUSED)
{
	char name[100];
	if (getdomainname(name, sizeof name))
		return say("broken: %m");
	return result(setdomainname(name, strlen(name)));
}

static const char *no_randomization(UNUSED)
{
	return result(personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE));
}

static const char *raise_limit(UNUSED)
{
	int error = 0;
	for (int kind = 0; kind < RLIM_NLIMITS; kind++) {
		struct rlimit limit;
		if (getrlimit(kind, &limit) || limit.rlim_max == RLIM_INFINITY || kind == RLIMIT_NOFILE)
			continue;
		rlim_t before = limit.rlim_max++;
		/* What is said to have been done may not have been. */
		if (setrlimit(kind, &limit))
			error = errno;
		else if (!getrlimit(kind, &limit) && limit.rlim_max > before)
			return OPEN;
	}
	return denied(error);
}

static const char *no_out_of_memory(UNUSED)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);
	return result(write(fd, "-1000", 5));
}

static const char *better_priority(UNUSED)
{
	return result(setpriority(PRIO_PROCESS, 0, -5));
}

static const char *real_time(UNUSED)
{
	struct sched_param one = {.sched_priority = 1};
	return result(sched_setscheduler(0, SCHED_FIFO, &one));
}

/* Calls that came after what the filter's library knows: none may be there by oversight. */
static const char *unknown_calls(UNUSED)
{
	for (long call = 451; call < 1024; call++) {
		errno = 0;
		if (syscall(call, 0, 0, 0, 0, 0, 0) != -1 || (errno != ENOSYS && errno != EPERM))
			return OPEN;
	}
	return "denied: ENOSYS";
}

static const char *x32_calls(UNUSED)
{
#ifdef __x86_64__
	return result(syscall(0x40000000 | SYS_getpid));
#else
	return "denied: ENOSYS";
#endif
}

static const char *i386_calls(UNUSED)
{
#ifdef __x86_64__
	long value = 20; /* getpid */
	__asm__ volatile("int $0x80" : "+a"(value) : : "memory", "r8", "r9", "r10", "r11");
	return value > 0 ? OPEN : denied(-value);
#else
	return "denied: ENOSYS";
#endif
}

static const char *ports(UNUSED)
{
#ifdef SYS_ioperm
	return result(syscall(SYS_ioperm, 0x80, 1, 1));
#else
	return "denied: ENOSYS";
#endif
}

/* --- network ----------------------------------------------------------------------------- */

static const char *reach(const struct sockaddr *address, socklen_t length, int far)
{
	int fd = socket(address->sa_family, SOCK_STREAM, 0);
	/* Away from loopback a refusal is an answer of the one who was asked. */
	if (fd >= 0 && connect(fd, address, length) && far && errno == ECONNREFUSED)
		return OPEN;
	return fd < 0 || errno ? denied(errno) : OPEN;
}

static const char *tcp(const char *host, int port, int far)
{
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	errno = 0;
	if (inet_pton(AF_INET6, host, &six.sin6_addr) == 1)
		return reach((struct sockaddr *)&six, sizeof six, far);
	if (inet_pton(AF_INET, host, &four.sin_addr) != 1)
		return say("broken: %s is no address", host);
	return reach((struct sockaddr *)&four, sizeof four, far);
}

static const char *loopback(const char *host)
{
	return tcp(host, number(strchr(host, ':') ? "port6" : "port"), 0);
}

static const char *away(const char *key)
{
	char port[100];
	snprintf(port, sizeof port, "%s_port", key);
	return tcp(target(key), number(port), 1);
}

static const char *unix_socket(const char *name, size_t length)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, name, length);
	errno = 0;
	return reach((struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + length, 0);
}

static const char *abstract_socket(const char *key)
{
	char name[100] = {0};
	int length = snprintf(name + 1, sizeof name - 1, "%s", target(key));
	return unix_socket(name, length + 1);
}

static const char *named_socket(UNUSED)
{
	const char *path = target("socket");
	return unix_socket(path, strlen(path) + 1);
}

static const char *name_service(UNUSED)
{
	/* A query of the root's name servers. */
	static const char query[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
	char answer[512];
	struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(53)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct pollfd wait = {.fd = fd, .events = POLLIN};
	inet_pton(AF_INET, target("nameserver"), &server.sin_addr);
	if (connect(fd, (struct sockaddr *)&server, sizeof server) ||
	    send(fd, query, sizeof query - 1, 0) < 0)
		return denied(errno);
	if (poll(&wait, 1, 5000) != 1)
		return "denied: no answer";
	return result(recv(fd, answer, sizeof answer, 0));
}

static const char *raw_socket(UNUSED)
{
	return result(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
}

static const char *socket_family(const char *family)
{
	return result(socket(strtol(family, NULL, 0), SOCK_DGRAM, 0));
}

static const char *socket_of(int family, int type, int protocol)
{
	int fd = socket(family, type, protocol);
	if (fd < 0)
		return NULL;
	close(fd);
	return OPEN;
}

/* Every family but the four that builds need. Those that every kernel has come first, so that on
 * the machine no module is loaded. */
static const char *other_families(UNUSED)
{
	static const int types[] = {SOCK_DGRAM, SOCK_STREAM, SOCK_RAW, SOCK_SEQPACKET};
	for (int i = AF_PACKET; i < AF_PACKET + 64; i++)
		for (int j = 0; j < 4; j++) {
			int family = i % 64;
			if (family != AF_UNIX && family != AF_INET && family != AF_INET6 && family != AF_NETLINK &&
			    socket_of(family, types[j], 0))
				return OPEN;
		}
	return denied(errno);
}

/* MPTCP, UDP-Lite, SCTP, DCCP, and ICMP: parts of the kernel that a build never needs. */
static const char *other_protocols(UNUSED)
{
	static const int others[][2] = {
		{SOCK_STREAM, 262}, {SOCK_DGRAM, 136}, {SOCK_SEQPACKET, 132}, {SOCK_STREAM, 132},
		{6 /* SOCK_DCCP */, 33}, {SOCK_DGRAM, 1}, {SOCK_DGRAM, 58}, {SOCK_RAW, 255}};
	for (int i = 0; i < 8; i++)
		if (socket_of(AF_INET, others[i][0], others[i][1]) ||
		    socket_of(AF_INET6, others[i][0], others[i][1]))
			return OPEN;
	return denied(errno);
}

/* All but those that list interfaces and tell of new devices; NETLINK_USERSOCK is everywhere. */
static const char *netlink(UNUSED)
{
	for (int protocol = 2; protocol < 32; protocol++)
		if (protocol != 15 && socket_of(AF_NETLINK, SOCK_RAW, protocol))
			return OPEN;
	return denied(errno);
}

static const char *change_loopback(UNUSED)
{
	struct ifreq request = {.ifr_name = "lo"};
	unshare(CLONE_NEWNET);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	request.ifr_mtu = 1500;
	return result(ioctl(fd, SIOCSIFMTU, &request));
}

static const char *other_interface(UNUSED)
{
	struct if_nameindex *all = if_nameindex();
	for (struct if_nameindex *one = all; one && one->if_index; one++)
		if (strcmp(one->if_name, "lo"))
			return OPEN;
	return "denied: ENODEV";
}

static const char *proxied(const char *what)
{
	char request[1000], answer[200] = "", method[20];
	const char *key = strchr(what, ' ') + 1;
	struct sockaddr_in proxy = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int code, fd = socket(AF_INET, SOCK_STREAM, 0);
	proxy.sin_port = htons(number("proxy"));
	snprintf(method, sizeof method, "%.*s", (int)(key - what - 1), what);
	if (connect(fd, (struct sockaddr *)&proxy, sizeof proxy))
		return denied(errno);
	int length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\n"
			      "Connection: close\r\n\r\n", method, target(key));
	if (write(fd, request, length) < 0 || read(fd, answer, sizeof answer - 1) <= 0)
		return say("broken: the proxy says nothing: %m");
	if (sscanf(answer, "HTTP/1.1 %d", &code) != 1)
		return say("broken: the proxy talks nonsense");
	return code == 403 ? "denied: 403" : OPEN;
}

static const char *proxy_port(UNUSED)
{
	return tcp("127.0.0.1", number("proxy"), 0);
}

/* --- what processes share ---------------------------------------------------------------- */

static const char *shared_memory(UNUSED)
{
	return result(shmget(number("ipc"), 0, 0));
}

static const char *semaphores(UNUSED)
{
	return result(semget(number("ipc"), 0, 0));
}

static const char *messages(UNUSED)
{
	return result(msgget(number("ipc"), 0));
}

static const char *message_queue(UNUSED)
{
	return result(mq_open(target("queue"), O_RDONLY));
}

static const char *posix_memory(UNUSED)
{
	return result(shm_open(target("queue"), O_RDONLY, 0));
}

/* --- privileges -------------------------------------------------------------------------- */

static const char *gain(const char *key)
{
	/* Run by somebody who is nobody, so that there is something to be gained. */
	if (!geteuid() && (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)))
		return say("broken: %m");
	pid_t child = fork();
	int status;
	if (!child) {
		execl(target(key), "probes", "privileges", NULL);
		_exit(errno == EPERM ? 6 : 7);
	}
	waitpid(child, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 7)
		return say("broken: %s cannot be run", target(key));
	if (WIFEXITED(status) && WEXITSTATUS(status) == 6)
		return "denied: EPERM";
	return WIFEXITED(status) && !WEXITSTATUS(status) ? OPEN : "denied: nothing gained";
}

static int has_more(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {0};
	syscall(SYS_capget, &header, sets);
	return geteuid() == 0 || sets[0].effective || sets[1].effective || sets[0].permitted;
}

static const char *any_capability(UNUSED)
{
	int any = has_more() || prctl(PR_CAPBSET_READ, CAP_CHOWN) || !prctl(PR_GET_NO_NEW_PRIVS);
	return any ? OPEN : "denied: none";
}

static const char *strong_capability(UNUSED)
{
	static const int strong[] = {CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, CAP_NET_RAW, CAP_MKNOD,
		CAP_DAC_READ_SEARCH, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_TIME, CAP_SYS_BOOT, CAP_SYSLOG};
	for (size_t i = 0; i < sizeof strong / sizeof *strong; i++)
		if (prctl(PR_CAPBSET_READ, strong[i]))
			return OPEN;
	return "denied: none";
}

static const char *no_filter(UNUSED)
{
	return prctl(PR_GET_SECCOMP) == 2 /* FILTER */ ? "denied: filtered" : OPEN;
}

/* --- the program ------------------------------------------------------------------------- */

#define ROOT 1		/* the control needs root */
#define NOT_ROOTS 2	/* the namespace's root may, in its own tree */
#define LAYER 4		/* for build code over what an earlier phase left */

/* Name, what a sandbox answers, function, argument, flags: the tests read these lines. */
static const struct {
	const char *name, *answer, *(*probe)(const char *), *argument;
	int flags;
} probes[] = {
	{"host file that all may read", "ENOENT", host_file, "public", 0},
	{"host file of the worker", "ENOENT", host_file, "private", 0},
	{"host file below pid 1's root", "EACCES", host_file_below_init, NULL, 0},
	{"host file below /proc/self/root/..", "ENOENT", host_file_below, "/proc/self/root/..", 0},
	{"host file below /proc/self/cwd", "ENOENT", host_file_below, "/proc/self/cwd/../../../../../../../../../..", 0},
	{"chroot and climb", "ENOENT, EPERM", chroot_and_climb, NULL, ROOT},
	{"inherited descriptor", "EBADF", inherited_descriptor, NULL, 0},
	{"strange descriptor", "EBADF", strange_descriptor, NULL, 0},
	{"inherited directory", "elsewhere", inherited_directory, NULL, 0},
	{"standard stream that is a file", "no file", standard_stream, NULL, 0},
	{"environment", "ENOENT", environment, NULL, 0},
	{"open_by_handle_at", "EPERM", by_handle, NULL, ROOT},
	{"name_to_handle_at", "EPERM", handle, NULL, 0},

	{"signal a process", "ESRCH", signal_process, NULL, 0},
	{"pidfd of a process", "ESRCH", pidfd_of_process, NULL, 0},
	{"limits of a process", "ESRCH", limit_of_process, NULL, 0},
	{"environment of a process", "ENOENT", process_file, "environ", 0},
	{"command line of a process", "ENOENT", process_file, "cmdline", 0},
	{"root of a process", "ENOENT", process_root, NULL, 0},
	{"ptrace a process", "ESRCH", trace, "process", ROOT},
	{"memory of a process", "ENOENT", memory_of, "process", ROOT},
	{"ptrace pid 1", "EPERM", trace, "init", ROOT},
	{"memory of pid 1", "EACCES", memory_of, "init", ROOT},
	{"environment of pid 1", "EACCES", file_of_init, "environ", 0},
	{"maps of pid 1", "EACCES", file_of_init, "maps", 0},
	{"root of pid 1", "EACCES", link_of_init, "root", 0},
	{"program of pid 1", "EACCES", file_of_init, "exe", ROOT},
	{"directory of pid 1", "EACCES", link_of_init, "cwd", 0},
	{"descriptors of pid 1", "EACCES", link_of_init, "fd/0", 0},
	{"daemon of an earlier phase", "ESRCH", daemon_alive, NULL, 0},
	{"socket of that daemon", "ECONNREFUSED", abstract_socket, "daemon", 0},

	{"/dev/kmsg", "ENOENT", device, "/dev/kmsg", ROOT},
	{"/dev/kvm", "ENOENT", device, "/dev/kvm", ROOT},
	{"/dev/fuse", "ENOENT", device, "/dev/fuse", ROOT},
	{"/dev/net/tun", "ENOENT", device, "/dev/net/tun", ROOT},
	{"/dev/mem", "ENOENT", device, "/dev/mem", ROOT},
	{"/dev/loop-control", "ENOENT", device, "/dev/loop-control", ROOT},
	{"any other device", "ENOENT", strange_device, NULL, 0},
	{"make a disk", "EPERM", make_device, "b8:0", ROOT},
	{"make /dev/mem", "EPERM", make_device, "c1:1", ROOT},
	{"make /dev/kvm", "EPERM", make_device, "c10:232", ROOT},
	{"TIOCSTI", "EPERM", terminal_input, NULL, ROOT},
	{"TIOCLINUX", "EPERM", console_selection, NULL, 0},
	{"TIOCSETD", "EPERM", line_discipline, NULL, 0},
	{"controlling terminal", "ENXIO", controlling_terminal, NULL, 0},
	{"terminal as a standard stream", "ENOTTY", terminal_stream, NULL, 0},
	{"terminal of the machine", "ENOENT", write_target, "terminal", 0},

	{"mount ext4", "EPERM", mount_kind, "ext4", ROOT},
	{"mount cgroup2", "EPERM", mount_kind, "cgroup2", ROOT},
	{"mount bpf", "EPERM", mount_kind, "bpf", ROOT},
	{"mount proc", "EPERM", mount_kind, "proc", ROOT},
	{"mount sysfs", "EPERM", mount_kind, "sysfs", ROOT},
	{"mount tmpfs", "EPERM", mount_kind, "tmpfs", ROOT},
	{"mount devpts", "EPERM", mount_kind, "devpts", ROOT},
	{"mount mqueue", "EPERM", mount_kind, "mqueue", ROOT},
	{"mount overlay", "EPERM", mount_overlay, NULL, ROOT},
	{"bind mount", "EPERM", mount_bind, NULL, ROOT},
	{"remount", "EPERM", mount_writable, NULL, ROOT},
	{"umount", "EPERM", unmount, NULL, ROOT},
	{"pivot_root", "EPERM", pivot, NULL, ROOT},
	{"fsopen", "EPERM", call_fsopen, NULL, ROOT},
	{"fspick", "EPERM", call_fspick, NULL, ROOT},
	{"open_tree", "EPERM", call_open_tree, NULL, ROOT},
	{"move_mount", "EPERM", call_move_mount, NULL, ROOT},
	{"mount_setattr", "EPERM", call_mount_setattr, NULL, ROOT},

	{"cgroup namespace", "another", same_namespace, "cgroup", 0},
	{"ipc namespace", "another", same_namespace, "ipc", 0},
	{"mount namespace", "another", same_namespace, "mnt", 0},
	{"network namespace", "another", same_namespace, "net", 0},
	{"pid namespace", "another", same_namespace, "pid", 0},
	{"user namespace", "another", same_namespace, "user", 0},
	{"uts namespace", "another", same_namespace, "uts", 0},
	{"unshare users", "EPERM", call_unshare, "0x10000000", ROOT},
	{"unshare mounts", "EPERM", call_unshare, "0x00020000", ROOT},
	{"unshare network", "EPERM", call_unshare, "0x40000000", ROOT},
	{"clone users", "EPERM", call_clone, NULL, ROOT},
	{"clone3 users", "ENOSYS", call_clone3, NULL, ROOT},
	{"setns", "EPERM", call_setns, NULL, ROOT},
	{"uid of the worker", "not mapped", maps_worker, "/proc/self/uid_map", 0},
	{"gid of the worker", "not mapped", maps_worker, "/proc/self/gid_map", 0},
	{"supplementary groups", "not mapped", supplementary_group, NULL, ROOT},

	{"/proc/kallsyms", "masked", read_file, "/proc/kallsyms", ROOT},
	{"/proc/keys", "masked", read_file, "/proc/keys", 0},
	{"/proc/key-users", "masked", read_file, "/proc/key-users", 0},
	{"/proc/timer_list", "masked", read_file, "/proc/timer_list", ROOT},
	{"/proc/slabinfo", "masked, ENOENT", read_file, "/proc/slabinfo", ROOT},
	{"/proc/vmallocinfo", "masked, ENOENT", read_file, "/proc/vmallocinfo", ROOT},
	{"/proc/kpagecount", "masked, ENOENT", read_file, "/proc/kpagecount", ROOT},
	{"/proc/iomem", "masked, ENOENT", read_file, "/proc/iomem", ROOT},
	{"/proc/sysrq-trigger", "masked, ENOENT", write_file, "/proc/sysrq-trigger", ROOT},
	{"core_pattern", "EACCES, EROFS", write_file, "/proc/sys/kernel/core_pattern", ROOT},
	{"/proc/sys/kernel/hostname", "EACCES, EROFS", write_file, "/proc/sys/kernel/hostname", ROOT},
	{"drop_caches", "EACCES, EROFS", write_file, "/proc/sys/vm/drop_caches", ROOT},
	{"ip_forward", "EACCES, EROFS", write_file, "/proc/sys/net/ipv4/ip_forward", ROOT},
	{"smp_affinity", "EACCES, EROFS", write_file, "/proc/irq/default_smp_affinity", ROOT},
	{"transparent_hugepage", "ENOENT", write_file, "/sys/kernel/mm/transparent_hugepage/enabled", ROOT},
	{"cgroup file system", "ENOENT", write_target, "cgroup", ROOT},

	{"key of the session", "EPERM", read_key, NULL, 0},
	{"key by name", "EPERM", request_key, NULL, 0},
	{"add_key", "EPERM", add_key, NULL, 0},
	{"keyctl join", "EPERM", join_keyring, NULL, 0},
	{"bpf", "EPERM", call_bpf, NULL, ROOT},
	{"perf_event_open", "EPERM", call_perf, NULL, ROOT},
	{"io_uring", "EPERM", call_io_uring, NULL, ROOT},
	{"userfaultfd", "EPERM", call_userfaultfd, NULL, ROOT},
	{"fanotify", "EPERM", call_fanotify, NULL, ROOT},
	{"kcmp", "EPERM", call_kcmp, NULL, 0},
	{"kernel log", "EPERM", kernel_log, NULL, ROOT},
	{"quotactl", "EPERM", call_quotactl, NULL, ROOT},
	{"acct", "EPERM", call_acct, NULL, ROOT},
	{"swapon", "EPERM", call_swapon, NULL, ROOT},
	{"swapoff", "EPERM", call_swapoff, NULL, ROOT},
	{"reboot", "EPERM", call_reboot, NULL, ROOT},
	{"modules", "EPERM", call_modules, NULL, ROOT},
	{"kexec", "EPERM", call_kexec, NULL, ROOT},
	{"vhangup", "EPERM", call_vhangup, NULL, ROOT},
	{"ports", "EPERM", ports, NULL, ROOT},
	{"settimeofday", "EPERM", set_time, NULL, ROOT},
	{"clock_adjtime", "EPERM", adjust_time, NULL, ROOT},
	{"sethostname", "EPERM", set_host_name, NULL, ROOT},
	{"setdomainname", "EPERM", set_domain_name, NULL, ROOT},
	{"personality", "EPERM", no_randomization, NULL, 0},
	{"raise a hard limit", "EPERM", raise_limit, NULL, ROOT},
	{"oom_score_adj", "EACCES", no_out_of_memory, NULL, ROOT},
	{"priority", "EACCES", better_priority, NULL, ROOT},
	{"real time", "EPERM", real_time, NULL, ROOT},
	{"calls of newer kernels", "ENOSYS", unknown_calls, NULL, 0},
	{"x32 calls", "SIGSYS", x32_calls, NULL, 0},
	{"i386 calls", "SIGSYS", i386_calls, NULL, 0},

	{"loopback of the machine", "ECONNREFUSED", loopback, "127.0.0.1", 0},
	{"loopback of the machine, IPv6", "ECONNREFUSED", loopback, "::1", 0},
	{"address of the machine", "ENETUNREACH", away, "address", 0},
	{"mirror", "ENETUNREACH", away, "mirror", 0},
	{"name service", "ENETUNREACH, ECONNREFUSED", name_service, NULL, 0},
	{"abstract socket", "ECONNREFUSED", abstract_socket, "abstract", 0},
	{"named socket", "ENOENT", named_socket, NULL, 0},
	{"raw socket", "EPROTONOSUPPORT", raw_socket, NULL, ROOT},
	{"packet socket", "EAFNOSUPPORT", socket_family, "17", ROOT},
	{"other families", "EAFNOSUPPORT", other_families, NULL, ROOT},
	{"other protocols", "EPROTONOSUPPORT", other_protocols, NULL, 0},
	{"other netlink protocols", "EPROTONOSUPPORT", netlink, NULL, 0},
	{"change loopback", "EPERM", change_loopback, NULL, ROOT},
	{"other interface", "ENODEV", other_interface, NULL, 0},
	{"proxy port", "ECONNREFUSED", proxy_port, NULL, 0},
	{"proxy: the mirror", "ECONNREFUSED", proxied, "GET url_mirror", 0},
	{"proxy: another port", "403, ECONNREFUSED", proxied, "GET url_port", 0},
	{"proxy: another host", "403, ECONNREFUSED", proxied, "GET url_host", 0},
	{"proxy: loopback", "403, ECONNREFUSED", proxied, "GET url_loopback", 0},
	{"proxy: loopback by name", "403, ECONNREFUSED", proxied, "GET url_localhost", 0},
	{"proxy: the machine", "403, ECONNREFUSED", proxied, "GET url_machine", 0},
	{"proxy: a file", "403, ECONNREFUSED", proxied, "GET url_file", 0},
	{"proxy: POST", "403, ECONNREFUSED", proxied, "POST url_mirror", 0},
	{"proxy: CONNECT", "403, ECONNREFUSED", proxied, "CONNECT connect", 0},

	{"System V memory", "ENOENT", shared_memory, NULL, 0},
	{"System V semaphores", "ENOENT", semaphores, NULL, 0},
	{"System V messages", "ENOENT", messages, NULL, 0},
	{"POSIX message queue", "ENOENT", message_queue, NULL, 0},
	{"POSIX shared memory", "ENOENT", posix_memory, NULL, 0},

	{"strong capability", "none", strong_capability, NULL, 0},
	{"no filter", "filtered", no_filter, NULL, 0},
	{"any capability", "none", any_capability, NULL, NOT_ROOTS},
	{"write /etc/passwd", "EACCES, EROFS", write_file, "/etc/passwd", ROOT | NOT_ROOTS},
	{"set-user-ID program", "nothing gained", gain, "setuid", ROOT | LAYER},
	{"program with capabilities", "EPERM", gain, "capable", ROOT | LAYER},
};
#define COUNT (sizeof probes / sizeof *probes)

/* What a child says, or how it ended. */
static void attempt(size_t index, char *verdict, size_t size)
{
	int ends[2], status;
	ssize_t got;
	if (pipe(ends)) {
		snprintf(verdict, size, "broken: no pipe");
		return;
	}
	pid_t child = fork();
	if (!child) {
		alarm(20);
		const char *said = probes[index].probe(probes[index].argument);
		write(ends[1], said, strlen(said));
		_exit(0);
	}
	close(ends[1]);
	got = read(ends[0], verdict, size - 1);
	verdict[got < 0 ? 0 : got] = 0;
	close(ends[0]);
	waitpid(child, &status, 0);
	if (WIFSIGNALED(status))
		snprintf(verdict, size, "%s: SIG%s", WTERMSIG(status) == SIGSYS ? "denied" : "broken",
			 sigabbrev_np(WTERMSIG(status)));
	else if (WEXITSTATUS(status))
		snprintf(verdict, size, "broken: exit code %d", WEXITSTATUS(status));
}

static int hold(void)
{
	int key = number("ipc");
	struct mq_attr small = {.mq_maxmsg = 1, .mq_msgsize = 8};
	int memory = shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0600);
	int semaphore = semget(key, 1, IPC_CREAT | IPC_EXCL | 0600);
	int queue = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
	int failed = memory < 0 || semaphore < 0 || queue < 0;
	failed |= mq_open(target("queue"), O_CREAT | O_EXCL, 0600, &small) < 0;
	failed |= shm_open(target("queue"), O_CREAT | O_EXCL | O_RDWR, 0600) < 0;
	printf(failed ? "failed: %m\n" : "ready\n");
	fflush(stdout);
	char end;
	read(0, &end, 1);
	shmctl(memory, IPC_RMID, NULL);
	semctl(semaphore, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	mq_unlink(target("queue"));
	shm_unlink(target("queue"));
	return failed;
}

static int become_daemon(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s", target("daemon"));
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	socklen_t size = offsetof(struct sockaddr_un, sun_path) + 1 + length;
	int failed = bind(fd, (struct sockaddr *)&address, size) || listen(fd, 5);
	prctl(PR_SET_NAME, "escape-daemon");
	pid_t pid = failed ? -1 : fork();
	if (pid) {
		printf(pid < 0 ? "failed: %m\n" : "ready %d\n", pid);
		return pid < 0;
	}
	setsid();
	for (int stream = 0; stream < 3; stream++)
		close(stream);
	for (;;)
		pause();
}

static int give(const char *path)
{
	/* CAP_CHOWN, permitted and effective: capabilities(7), VFS_CAP_REVISION_2. */
	unsigned capabilities[5] = {0x02000001, 1 << CAP_CHOWN};
	return !!setxattr(path, "security.capability", capabilities, sizeof capabilities, 0);
}

static int load_targets(void)
{
	char path[1000];
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - 10);
	if (length < 0)
		return -1;
	path[length] = 0;
	strcpy(strrchr(path, '/') + 1, "targets");
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	targets = calloc(1, 1 << 16);
	length = read(fd, targets, (1 << 16) - 1);
	close(fd);
	return length > 0 ? 0 : -1;
}

int main(int count, char **words)
{
	static char out[1 << 16];
	size_t used;
	if (count == 3 && !strcmp(words[1], "give"))
		return give(words[2]);
	if (count != 2)
		return 64;
	if (!strcmp(words[1], "identity"))
		return printf("%d\n", geteuid()) < 0;
	if (!strcmp(words[1], "privileges"))
		return !has_more();
	if (load_targets())
		return 66;
	if (!strcmp(words[1], "host"))
		return hold();
	if (!strcmp(words[1], "daemon"))
		return become_daemon();
	used = snprintf(out, sizeof out, "PROBES %s {", words[1]);
	for (size_t i = 0; i < COUNT; i++) {
		char verdict[400];
		attempt(i, verdict, sizeof verdict);
		used += snprintf(out + used, sizeof out - used, "%s\"%s\": \"%s\"",
				 i ? ", " : "", probes[i].name, verdict);
	}
	used += snprintf(out + used, sizeof out - used, "}\n");
	return fwrite(out, 1, used, stdout) != used;
}
