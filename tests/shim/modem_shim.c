/* Gives ptys the modem lines that they lack, and tells what a program does to its tty.
 *
 * For LD_PRELOAD. Only slave ends of ptys that the process itself opens by name are touched; every
 * other descriptor and every other ioctl goes straight to libc. For the program, such a pty is
 * like a USB serial port on Linux:
 *  - open() raises DTR and RTS, the last close() lowers them if HUPCL is set, as it is at first;
 *  - TIOCMGET, TIOCMSET, TIOCMBIS, TIOCMBIC, TIOCGICOUNT work; TIOCMIWAIT does not (as on many
 *    USB serial ports);
 *  - whatever a USB driver sends to the device in a control transfer can be made to block.
 *
 * The environment says what to do, see tests/support/shim.py, which builds and reads all of it:
 *  MODEM_SHIM_LOG        one line a call: <monotonic ns> <path> <call> <args> -> <dtr> <rts>
 *                        and ` errno=<n>` where libc's call has failed
 *  MODEM_SHIM_LOG_ONLY   names of the calls to log, separated by spaces; all without it
 *  MODEM_SHIM_CONTROL    file of lines `<tty> <unix socket>`: changes of the tty's lines are
 *                        sent there as `lines <dtr> <rts> <monotonic ns>`
 *  MODEM_SHIM_ICOUNT_FILE  up to 11 numbers, cts dsr rng dcd rx tx frame overrun parity brk
 *                        buf_overrun, for TIOCGICOUNT; zeros without it
 *  MODEM_SHIM_MODEM_FILE  a number: the board's side of TIOCMGET; none of its lines without it;
 *                        `loop` is a loopback plug: CTS follows RTS, DSR and CD follow DTR
 *  MODEM_SHIM_OUTQ_FILE  a number for TIOCOUTQ: what the driver has not sent yet; a pty's own
 *                        is always 0
 *  MODEM_SHIM_LSR_FILE   a number for TIOCSERGETLSR, which fails without it as on many drivers
 *  MODEM_SHIM_IOCTL_DELAY_MS  how long control transfers block
 *  MODEM_SHIM_DELAY_FILE  the same, looked at again all the time: `<ms>` for all ttys, or lines
 *                        `<tty> <ms>`
 *
 * What is written is logged as `write <bytes>`, TIOCOUTQ when its number changes.
 *
 * Descriptors made by dup() are passed through, and in a forked child all are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 4096
#define MAX_DEVICES 256
#define PATH_BYTES 200
/* Unix98 pty slaves have major numbers of their own (Documentation/admin-guide/devices.txt). */
#define PTS_MAJOR_FIRST 136
#define PTS_MAJOR_LAST 143
/* How soon a blocked call notices that its delay has been changed. */
#define DELAY_SLICE_MS 10

/* What a pty is taken for, by device number: names and descriptors may be several. */
struct device {
	dev_t rdev;
	bool known; /* HUPCL has been set once, as a driver does when the device is plugged in */
	int opens;
	bool dtr, rts;
	int control; /* connected unix socket, or -1 */
	char control_path[PATH_BYTES];
	int outq_logged;
};

struct slot {
	_Atomic(struct device *) device; /* NULL: not ours */
	pid_t pid; /* a vfork()ed child shares this memory, but not its descriptors */
	char path[PATH_BYTES]; /* as opened */
};

/* struct termios2 of asm/termbits.h, which can't be included along with termios.h. Its
 * predecessor lacks only the speeds at the end. */
struct kernel_termios2 {
	uint32_t iflag, oflag, cflag, lflag;
	uint8_t line, cc[19];
	uint32_t ispeed, ospeed;
};
#define SHIM_TCSETS2 _IOW('T', 0x2B, struct kernel_termios2)
#define SHIM_TCSETSW2 _IOW('T', 0x2C, struct kernel_termios2)
#define SHIM_TCSETSF2 _IOW('T', 0x2D, struct kernel_termios2)

/* struct serial_icounter_struct of linux/serial.h, whose other contents clash with termios.h. */
struct icounter {
	int counter[11], reserved[9];
};

static struct slot slots[MAX_FDS];
static struct device devices[MAX_DEVICES];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* devices, log, control sockets */

#define REAL(name) ((__typeof__(&name))real(&real_##name, #name))
static _Atomic(void *) real_ioctl, real_close, real_tcsetattr, real_tcflush, real_tcsendbreak,
	real_tcdrain, real_write;

static void *real(_Atomic(void *) *cached, const char *name)
{
	if (!*cached)
		*cached = dlsym(RTLD_NEXT, name);
	return *cached;
}

/* ---- files and time, by system call: libc's functions are the ones that are replaced here */

static int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The file that the variable names, as a string in `text`; false without either. */
static bool read_file_of(const char *variable, char *text, size_t size)
{
	const char *path = getenv(variable);
	ssize_t length;
	int fd;

	if (!path)
		return false;
	fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, text, size - 1);
	syscall(SYS_close, fd);
	if (length < 0)
		return false;
	text[length] = '\0';
	return true;
}

static bool is_to_be_logged(const char *call)
{
	const char *names = getenv("MODEM_SHIM_LOG_ONLY");
	size_t length = strlen(call);

	if (!names)
		return true;
	for (const char *name = names; (name = strstr(name, call)); name++)
		if ((name == names || name[-1] == ' ') && strchr(" ", name[length]))
			return true;
	return false;
}

static void log_call(const char *path, const struct device *device, const char *call,
		     const char *args, int error)
{
	const char *log = getenv("MODEM_SHIM_LOG");
	char line[PATH_BYTES + 300];
	int length, fd;

	if (!log || !is_to_be_logged(call))
		return;
	length = snprintf(line, sizeof line, "%lld %s %s %s -> %d %d", (long long)monotonic_ns(),
			  path, call, args, device->dtr, device->rts);
	if (error)
		length += snprintf(line + length, sizeof line - length, " errno=%d", error);
	line[length++] = '\n';
	/* Opened for each line: no descriptor stays that the program would find among its own. */
	fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd >= 0) {
		if (write(fd, line, length) != length)
			fprintf(stderr, "modem_shim: can't write to %s\n", log);
		syscall(SYS_close, fd);
	}
}

/* The number in the file that the variable names; false without a file. */
static bool number_of(const char *variable, int *number)
{
	char text[40];

	if (!read_file_of(variable, text, sizeof text))
		return false;
	*number = strtol(text, NULL, 0);
	return true;
}

static bool names_device(const char *path, dev_t rdev)
{
	struct stat info;

	return stat(path, &info) == 0 && S_ISCHR(info.st_mode) && info.st_rdev == rdev;
}

/* ---- delay */

static long delay_ms(dev_t rdev)
{
	char text[4096], path[PATH_BYTES], *line, *rest;
	const char *fixed = getenv("MODEM_SHIM_IOCTL_DELAY_MS");
	long ms = fixed ? atol(fixed) : 0, ms_of_line;

	if (!read_file_of("MODEM_SHIM_DELAY_FILE", text, sizeof text))
		return ms;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, "%199s %ld", path, &ms_of_line) == 2) {
			if (names_device(path, rdev))
				return ms_of_line;
		} else {
			ms = atol(line);
		}
	}
	return ms;
}

/* Blocks like a control transfer to a device that does not answer; without the mutex, for one
 * stuck device does not stop another. */
static void control_transfer(const char *path, struct device *device, const char *call)
{
	const struct timespec slice = {0, DELAY_SLICE_MS * 1000000};
	int64_t start_ns = monotonic_ns();
	bool told = false;

	while (monotonic_ns() - start_ns < delay_ms(device->rdev) * 1000000) {
		if (!told) {
			pthread_mutex_lock(&mutex);
			log_call(path, device, "blocked", call, 0);
			pthread_mutex_unlock(&mutex);
			told = true;
		}
		nanosleep(&slice, NULL);
	}
}

/* ---- the other end of the lines; all under the mutex */

static void find_control(struct device *device)
{
	char text[16384], path[PATH_BYTES], socket_path[PATH_BYTES], *line, *rest;

	if (device->control >= 0)
		syscall(SYS_close, device->control);
	device->control = -1;
	device->control_path[0] = '\0';
	if (!read_file_of("MODEM_SHIM_CONTROL", text, sizeof text))
		return;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		if (sscanf(line, "%199s %199s", path, socket_path) == 2 &&
		    names_device(path, device->rdev))
			strcpy(device->control_path, socket_path);
}

static bool connect_control(struct device *device)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (strlen(device->control_path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return false;
	}
	strcpy(address.sun_path, device->control_path);
	device->control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (device->control < 0)
		return false;
	if (connect(device->control, (struct sockaddr *)&address, sizeof address) == 0)
		return true;
	int error = errno;
	syscall(SYS_close, device->control);
	device->control = -1;
	errno = error;
	return false;
}

static bool send_to_control(struct device *device, const char *line)
{
	char answers[512];
	ssize_t received;

	if (device->control < 0 && !connect_control(device))
		return false;
	/* Answers are of no interest, but must not fill up the socket. */
	do
		received = recv(device->control, answers, sizeof answers, MSG_DONTWAIT);
	while (received > 0);
	if (received < 0 &&
	    send(device->control, line, strlen(line), MSG_NOSIGNAL) == (ssize_t)strlen(line))
		return true;
	int error = received == 0 ? EPIPE : errno;
	syscall(SYS_close, device->control);
	device->control = -1;
	errno = error;
	return false;
}

static void forward_lines(const char *path, struct device *device)
{
	char line[80];

	if (!device->control_path[0])
		return;
	snprintf(line, sizeof line, "lines %d %d %lld\n", device->dtr, device->rts,
		 (long long)monotonic_ns());
	/* A second try: the other end may have been started anew. */
	if (!send_to_control(device, line) && !send_to_control(device, line))
		log_call(path, device, "control-failed", device->control_path, errno);
}

static void set_lines(const char *path, struct device *device, bool dtr, bool rts)
{
	bool changed = dtr != device->dtr || rts != device->rts;

	device->dtr = dtr;
	device->rts = rts;
	if (changed)
		forward_lines(path, device);
}

/* ---- open and close */

static struct device *device_of(dev_t rdev)
{
	for (struct device *device = devices; device < devices + MAX_DEVICES; device++) {
		if (device->rdev == 0) {
			device->rdev = rdev;
			device->control = -1;
		}
		if (device->rdev == rdev)
			return device;
	}
	return NULL;
}

static void play_plugged_in(int fd)
{
	struct termios settings;

	if (tcgetattr(fd, &settings) == 0) {
		settings.c_cflag |= HUPCL;
		REAL(tcsetattr)(fd, TCSANOW, &settings);
	}
}

static int opened(int fd, const char *path)
{
	int error = errno;
	struct stat info;
	struct device *device;

	if (fd < 0 || fd >= MAX_FDS || fstat(fd, &info) != 0 || !S_ISCHR(info.st_mode) ||
	    major(info.st_rdev) < PTS_MAJOR_FIRST || major(info.st_rdev) > PTS_MAJOR_LAST) {
		errno = error;
		return fd;
	}
	pthread_mutex_lock(&mutex);
	device = device_of(info.st_rdev);
	pthread_mutex_unlock(&mutex);
	if (device) {
		control_transfer(path, device, "open");
		pthread_mutex_lock(&mutex);
		if (!device->known)
			play_plugged_in(fd);
		device->known = true;
		if (device->opens++ == 0)
			find_control(device);
		/* Told even if nothing changes: behind the same number may be another board. */
		device->dtr = device->rts = true;
		forward_lines(path, device);
		snprintf(slots[fd].path, PATH_BYTES, "%s", path);
		slots[fd].pid = getpid();
		slots[fd].device = device;
		log_call(path, device, "open", "-", 0);
		pthread_mutex_unlock(&mutex);
	}
	errno = error;
	return fd;
}

static struct slot *ours(int fd)
{
	if (fd < 0 || fd >= MAX_FDS || !slots[fd].device || slots[fd].pid != getpid())
		return NULL;
	return &slots[fd];
}

static bool hangs_up(int fd)
{
	struct termios settings;

	return tcgetattr(fd, &settings) == 0 && settings.c_cflag & HUPCL;
}

int close(int fd)
{
	struct slot *slot = ours(fd);

	if (slot) {
		struct device *device = slot->device;
		bool lowers = device->opens == 1 && hangs_up(fd);

		if (lowers)
			control_transfer(slot->path, device, "close");
		pthread_mutex_lock(&mutex);
		if (lowers)
			set_lines(slot->path, device, false, false);
		device->opens--;
		log_call(slot->path, device, "close", "-", 0);
		if (device->opens == 0 && device->control >= 0) {
			syscall(SYS_close, device->control);
			device->control = -1;
		}
		slot->device = NULL;
		pthread_mutex_unlock(&mutex);
	}
	return REAL(close)(fd);
}

#define OPEN(name, ...)                                                                            \
	{                                                                                          \
		static _Atomic(void *) cached;                                                     \
		mode_t mode = 0;                                                                   \
		if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                         \
			va_list list;                                                              \
			va_start(list, flags);                                                     \
			mode = va_arg(list, mode_t);                                               \
			va_end(list);                                                              \
		}                                                                                  \
		return opened(((__typeof__(&name))real(&cached, #name))(__VA_ARGS__, flags, mode), \
			      path);                                                               \
	}

int open(const char *path, int flags, ...) OPEN(open, path)
int open64(const char *path, int flags, ...) OPEN(open64, path)
int openat(int folder, const char *path, int flags, ...) OPEN(openat, folder, path)
int openat64(int folder, const char *path, int flags, ...) OPEN(openat64, folder, path)

/* What _FORTIFY_SOURCE makes of open() without a mode. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }

/* ---- what is done to an open tty */

static void describe_lines(char *text, size_t size, int bits)
{
	int others = bits & ~(TIOCM_DTR | TIOCM_RTS);
	int length = snprintf(text, size, "%s%s%s", bits & TIOCM_DTR ? "DTR" : "",
			      (bits & TIOCM_DTR) && (bits & TIOCM_RTS) ? "|" : "",
			      bits & TIOCM_RTS ? "RTS" : "");

	if (others || !length)
		snprintf(text + length, size - length, "%s0x%x", length ? "|" : "", others);
}

static bool has_loopback_plug(void)
{
	char text[8];

	return read_file_of("MODEM_SHIM_MODEM_FILE", text, sizeof text) &&
	       !strncmp(text, "loop", 4);
}

static int modem_ioctl(struct slot *slot, unsigned long request, const char *name, void *argument)
{
	struct device *device = slot->device;
	int *bits = argument;
	char args[80] = "-";

	control_transfer(slot->path, device, name);
	pthread_mutex_lock(&mutex);
	if (request == TIOCMGET) {
		if (has_loopback_plug())
			*bits = (device->rts ? TIOCM_CTS : 0) |
				(device->dtr ? TIOCM_DSR | TIOCM_CD : 0);
		else if (!number_of("MODEM_SHIM_MODEM_FILE", bits))
			*bits = 0;
		*bits |= (device->dtr ? TIOCM_DTR : 0) | (device->rts ? TIOCM_RTS : 0);
	} else {
		describe_lines(args, sizeof args, *bits);
	}
	if (request == TIOCMSET)
		set_lines(slot->path, device, *bits & TIOCM_DTR, *bits & TIOCM_RTS);
	else if (request == TIOCMBIS)
		set_lines(slot->path, device, device->dtr || *bits & TIOCM_DTR,
			  device->rts || *bits & TIOCM_RTS);
	else if (request == TIOCMBIC)
		set_lines(slot->path, device, device->dtr && !(*bits & TIOCM_DTR),
			  device->rts && !(*bits & TIOCM_RTS));
	log_call(slot->path, device, name, args, 0);
	pthread_mutex_unlock(&mutex);
	return 0;
}

static int count_ioctl(struct slot *slot, struct icounter *counters)
{
	char text[512], *next = text, *end;

	control_transfer(slot->path, slot->device, "TIOCGICOUNT");
	memset(counters, 0, sizeof *counters);
	if (read_file_of("MODEM_SHIM_ICOUNT_FILE", text, sizeof text))
		for (int i = 0; i < 11; i++) {
			counters->counter[i] = strtol(next, &end, 10);
			if (end == next)
				break;
			next = end;
		}
	pthread_mutex_lock(&mutex);
	log_call(slot->path, slot->device, "TIOCGICOUNT", "-", 0);
	pthread_mutex_unlock(&mutex);
	return 0;
}

static ssize_t logged(struct slot *slot, const char *call, const char *args, ssize_t result)
{
	int error = errno;

	pthread_mutex_lock(&mutex);
	log_call(slot->path, slot->device, call, args, result == -1 ? error : 0);
	pthread_mutex_unlock(&mutex);
	errno = error;
	return result;
}

static int outq_ioctl(struct slot *slot, int fd, int *count)
{
	struct device *device = slot->device;
	char args[40];

	if (!number_of("MODEM_SHIM_OUTQ_FILE", count))
		return REAL(ioctl)(fd, TIOCOUTQ, count);
	pthread_mutex_lock(&mutex);
	snprintf(args, sizeof args, "%d", *count);
	if (*count != device->outq_logged)
		log_call(slot->path, device, "TIOCOUTQ", args, 0);
	device->outq_logged = *count;
	pthread_mutex_unlock(&mutex);
	return 0;
}

static int settings_ioctl(struct slot *slot, int fd, unsigned long request, const char *name,
			  const struct kernel_termios2 *settings)
{
	char args[160];

	if (request == SHIM_TCSETS2 || request == SHIM_TCSETSW2 || request == SHIM_TCSETSF2)
		snprintf(args, sizeof args, "iflag=0x%x,oflag=0x%x,cflag=0x%x,lflag=0x%x,speed=%u",
			 settings->iflag, settings->oflag, settings->cflag, settings->lflag,
			 settings->ospeed);
	else
		snprintf(args, sizeof args, "iflag=0x%x,oflag=0x%x,cflag=0x%x,lflag=0x%x",
			 settings->iflag, settings->oflag, settings->cflag, settings->lflag);
	control_transfer(slot->path, slot->device, name);
	return logged(slot, name, args, REAL(ioctl)(fd, request, settings));
}

static int plain_ioctl(struct slot *slot, int fd, unsigned long request, const char *name,
		       void *argument)
{
	char args[40];

	snprintf(args, sizeof args, "%ld", (long)argument);
	control_transfer(slot->path, slot->device, name);
	return logged(slot, name, args, REAL(ioctl)(fd, request, argument));
}

int ioctl(int fd, unsigned long request, ...)
{
	struct slot *slot = ours(fd);
	void *argument;
	va_list list;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (!slot)
		return REAL(ioctl)(fd, request, argument);
	/* The kernel takes 32 bits; callers with a signed code fill the rest with ones. */
	request = (uint32_t)request;
#define MODEM(code) case code: return modem_ioctl(slot, request, #code, argument)
#define SETTINGS(code, name) case code: return settings_ioctl(slot, fd, request, name, argument)
#define PLAIN(code) case code: return plain_ioctl(slot, fd, request, #code, argument)
	switch (request) {
	MODEM(TIOCMGET);
	MODEM(TIOCMSET);
	MODEM(TIOCMBIS);
	MODEM(TIOCMBIC);
	case TIOCGICOUNT:
		return count_ioctl(slot, argument);
	case TIOCOUTQ:
		return outq_ioctl(slot, fd, argument);
	case TIOCSERGETLSR:
		if (number_of("MODEM_SHIM_LSR_FILE", argument))
			return 0;
		return REAL(ioctl)(fd, request, argument);
	SETTINGS(TCSETS, "TCSETS");
	SETTINGS(TCSETSW, "TCSETSW");
	SETTINGS(TCSETSF, "TCSETSF");
	SETTINGS(SHIM_TCSETS2, "TCSETS2");
	SETTINGS(SHIM_TCSETSW2, "TCSETSW2");
	SETTINGS(SHIM_TCSETSF2, "TCSETSF2");
	PLAIN(TIOCSBRK);
	PLAIN(TIOCCBRK);
	PLAIN(TCSBRK);
	PLAIN(TCSBRKP);
	case TCFLSH: {
		char args[40];

		snprintf(args, sizeof args, "%ld", (long)argument);
		return logged(slot, "TCFLSH", args, REAL(ioctl)(fd, request, argument));
	}
	default:
		return REAL(ioctl)(fd, request, argument);
	}
}

ssize_t write(int fd, const void *bytes, size_t count)
{
	struct slot *slot = ours(fd);
	ssize_t written;
	char args[40];

	if (!slot)
		return REAL(write)(fd, bytes, count);
	written = REAL(write)(fd, bytes, count);
	snprintf(args, sizeof args, "%zd", written);
	return logged(slot, "write", args, written);
}

int tcsetattr(int fd, int when, const struct termios *settings)
{
	static const char *const names[] = {"TCSANOW", "TCSADRAIN", "TCSAFLUSH"};
	struct slot *slot = ours(fd);
	char args[160];

	if (!slot)
		return REAL(tcsetattr)(fd, when, settings);
	snprintf(args, sizeof args, "%s,iflag=0x%x,oflag=0x%x,cflag=0x%x,lflag=0x%x",
		 when >= 0 && when <= 2 ? names[when] : "?", settings->c_iflag, settings->c_oflag,
		 settings->c_cflag, settings->c_lflag);
	control_transfer(slot->path, slot->device, "tcsetattr");
	return logged(slot, "tcsetattr", args, REAL(tcsetattr)(fd, when, settings));
}

int tcflush(int fd, int queue)
{
	static const char *const names[] = {"TCIFLUSH", "TCOFLUSH", "TCIOFLUSH"};
	struct slot *slot = ours(fd);

	if (!slot)
		return REAL(tcflush)(fd, queue);
	return logged(slot, "tcflush", queue >= 0 && queue <= 2 ? names[queue] : "?",
		      REAL(tcflush)(fd, queue));
}

int tcsendbreak(int fd, int duration)
{
	struct slot *slot = ours(fd);
	char args[20];

	if (!slot)
		return REAL(tcsendbreak)(fd, duration);
	snprintf(args, sizeof args, "%d", duration);
	control_transfer(slot->path, slot->device, "tcsendbreak");
	return logged(slot, "tcsendbreak", args, REAL(tcsendbreak)(fd, duration));
}

int tcdrain(int fd)
{
	struct slot *slot = ours(fd);

	if (!slot)
		return REAL(tcdrain)(fd);
	return logged(slot, "tcdrain", "-", REAL(tcdrain)(fd));
}
