/* SPDX-License-Identifier: Apache-2.0 */
/* nestbox-vmm: `serve` for the broker (control.c), `run` for a person with a console. */
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/engines/kvm/savefile.h"
#include "vmm/engines/kvm/serve.h"
#include "vmm/engines/kvm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>

static const char usage[] =
	"usage: nestbox-vmm run --kernel FILE [options]     boot a machine with a console on this terminal\n"
	"       nestbox-vmm serve                           for the broker: control socket on descriptor 3\n"
	"       nestbox-vmm check|load [base]               checks a snapshot: memory file 3, state file 4, [its base 5]; into the next, a memfd\n"
	"       nestbox-vmm store LAYERS MIB [CRC]          writes one: memory file 3, state file 4, state 5, and of base, delta, previous\n"
	"                                                   whole memory those that LAYERS (b, d, p) names, in this order\n"
	"\n"
	"  --kernel FILE        vmlinux with a PVH note, or bzImage\n"
	"  --initrd FILE\n"
	"  --cmdline TEXT       default: console=ttyS0 reboot=k panic=-1\n"
	"  --memory MIB         default 512\n"
	"  --cpus N             default 1, at most 16\n"
	"  --disk FILE[,ro][,serial=NAME]   raw; up to 8\n"
	"  --tap NAME[,mac=XX:XX:XX:XX:XX:XX]   existing tap device; up to 2\n"
	"  --exit-key           no ctrl-a x: end with the input instead\n"
	"  --version, --help\n"
	"\n"
	"On a terminal, ctrl-a x ends the machine.\n";

struct console {
	struct vm *vm;
	struct loop *loop;
	struct source *in, *end;
	bool escape;
	bool raw; /* --exit-key: no escape, the end of the input is the end */
};

static struct termios saved_termios;
static bool termios_saved;

static void restore_terminal(void)
{
	if (termios_saved)
		tcsetattr(STDIN_FILENO, TCSANOW, &saved_termios);
}

static void raw_terminal(void)
{
	struct termios t;

	if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved_termios) < 0)
		return;
	termios_saved = true;
	atexit(restore_terminal);
	t = saved_termios;
	cfmakeraw(&t);
	t.c_oflag |= OPOST;
	tcsetattr(STDIN_FILENO, TCSANOW, &t);
}

static void on_input(void *arg, uint32_t events)
{
	struct console *c = arg;
	char data[64];
	ssize_t n = read(STDIN_FILENO, data, sizeof(data));

	(void)events;
	if (n <= 0) {
		source_drop(&c->in); /* no more input; the machine goes on */
		if (c->raw)
			loop_stop(c->loop);
		return;
	}
	for (ssize_t i = 0; i < n; i++) {
		if (c->escape && data[i] == 'x') {
			loop_stop(c->loop);
			return;
		}
		c->escape = !c->raw && data[i] == 1 && !c->escape;
		if (!c->escape)
			serial_input(&c->vm->serial, &data[i], 1);
	}
}

static void on_end(void *arg, uint32_t events)
{
	struct console *c = arg;

	(void)events;
	loop_stop(c->loop);
}

static enum rc parse_disk(struct vm_spec *spec, char *text, struct fault *ret_f)
{
	struct vm_disk_spec *d = &spec->disks[spec->n_disks];
	char *save = NULL, *path = strtok_r(text, ",", &save), *word;

	if (spec->n_disks == VMM_DISKS_MAX || !path)
		return fault_set(ret_f, RC_LIMIT, 0, "at most %d disks", VMM_DISKS_MAX);
	snprintf(d->serial, sizeof(d->serial), "disk%u", spec->n_disks);
	while ((word = strtok_r(NULL, ",", &save))) {
		if (!strcmp(word, "ro"))
			d->read_only = true;
		else if (!strncmp(word, "serial=", 7) && strlen(word + 7) < sizeof(d->serial))
			memcpy(d->serial, word + 7, strlen(word + 7) + 1);
		else
			return fault_set(ret_f, RC_INVALID, 0, "--disk: do not understand '%.40s'", word);
	}
	d->fd = open(path, (d->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (d->fd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "open disk '%.80s'", path);
	spec->n_disks++;
	return RC_OK;
}

static enum rc parse_tap(struct vm_spec *spec, char *text, struct fault *ret_f)
{
	struct vm_nic_spec *n = &spec->nics[spec->n_nics];
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	char *mac = strstr(text, ",mac=");

	if (spec->n_nics == VMM_NICS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "at most %d taps", VMM_NICS_MAX);
	snprintf(n->mac, sizeof(n->mac), "02:6e:62:00:01:%02x", spec->n_nics);
	if (mac) {
		*mac = '\0';
		snprintf(n->mac, sizeof(n->mac), "%s", mac + 5);
	}
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", text);
	n->tap_fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (n->tap_fd < 0 || ioctl(n->tap_fd, TUNSETIFF, &ifr) < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "open tap '%.20s'", text);
	spec->n_nics++;
	return RC_OK;
}

struct run_options {
	const char *kernel, *initrd, *cmdline;
	uint64_t memory_mib;
	bool raw;
	struct vm_spec spec;
};

static enum rc number(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct fault *ret_f)
{
	char *end;
	unsigned long long v = strtoull(text, &end, 10);

	if (*end || v < min || v > max)
		return fault_set(ret_f, RC_INVALID, 0, "'%.20s' is not a number from %llu to %llu", text,
				 (unsigned long long)min, (unsigned long long)max);
	*ret = v;
	return RC_OK;
}

static enum rc parse_run(int argc, char **argv, struct run_options *o, struct fault *ret_f)
{
	static const struct option table[] = {
		{ "kernel", 1, NULL, 'k' }, { "initrd", 1, NULL, 'i' }, { "cmdline", 1, NULL, 'c' },
		{ "memory", 1, NULL, 'm' }, { "cpus", 1, NULL, 'p' },   { "disk", 1, NULL, 'd' },
		{ "tap", 1, NULL, 't' },    { "exit-key", 0, NULL, 'x' }, { NULL, 0, NULL, 0 },
	};
	uint64_t cpus = 1;
	enum rc rc = RC_OK;
	int c;

	while (!rc && (c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case 'k': o->kernel = optarg; break;
		case 'i': o->initrd = optarg; break;
		case 'c': o->cmdline = optarg; break;
		case 'm': rc = number(optarg, VMM_MEMORY_MIB_MIN, VMM_MEMORY_MIB_MAX, &o->memory_mib, ret_f); break;
		case 'p': rc = number(optarg, 1, VMM_CPUS_MAX, &cpus, ret_f); break;
		case 'd': rc = parse_disk(&o->spec, optarg, ret_f); break;
		case 'x': o->raw = true; break;
		case 't': rc = parse_tap(&o->spec, optarg, ret_f); break;
		default: rc = fault_set(ret_f, RC_INVALID, 0, "see nestbox-vmm --help"); break;
		}
	}
	o->spec.n_cpus = (unsigned int)cpus;
	if (!rc && !o->kernel)
		rc = fault_set(ret_f, RC_INVALID, 0, "--kernel is missing; see nestbox-vmm --help");
	return rc;
}

static enum rc console_run(struct vm *vm, bool raw, struct fault *ret_f)
{
	struct console c = { .vm = vm, .raw = raw };
	enum rc rc = loop_new(&c.loop, ret_f);

	if (rc)
		return rc;
	raw_terminal();
	/* A file cannot be polled; it is no console either. */
	if (loop_fd(c.loop, STDIN_FILENO, EPOLLIN, on_input, &c, &c.in, NULL))
		c.in = NULL;
	rc = loop_fd(c.loop, vm->end_fd, EPOLLIN, on_end, &c, &c.end, ret_f);
	if (!rc)
		rc = vm_start_threads(vm, ret_f);
	if (!rc)
		rc = vm_resume(vm, ret_f);
	if (!rc)
		rc = loop_run(c.loop, ret_f);
	loop_free(c.loop);
	restore_terminal();
	fprintf(stderr, "nestbox-vmm: %s\n", vm->end_reason ? vm->end_reason : "ended from the console");
	return rc;
}

static enum rc run(int argc, char **argv, struct fault *ret_f)
{
	struct run_options o = { .cmdline = "console=ttyS0 reboot=k panic=-1", .memory_mib = 512 };
	_cleanup_fd_ int kernel = -1, initrd = -1;
	struct memory memory;
	struct vm *vm;
	enum rc rc = parse_run(argc, argv, &o, ret_f);

	if (rc)
		return rc;
	kernel = open(o.kernel, O_RDONLY | O_CLOEXEC);
	if (kernel < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "open kernel '%.80s'", o.kernel);
	if (o.initrd && (initrd = open(o.initrd, O_RDONLY | O_CLOEXEC)) < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "open initrd '%.80s'", o.initrd);
	o.spec.serial_fd = STDOUT_FILENO;
	o.spec.kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (o.spec.kvm_fd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "open /dev/kvm");
	rc = memory_create(o.memory_mib << 20, -1, -1, &memory, ret_f);
	if (!rc)
		rc = vm_create(&o.spec, &memory, &vm, ret_f);
	if (rc)
		return rc;
	rc = vm_boot(vm, kernel, initrd, o.cmdline, ret_f);
	if (!rc)
		rc = console_run(vm, o.raw, ret_f);
	vm_free(vm);
	return rc;
}

static enum rc load(int argc, bool into, struct fault *ret_f)
{
	int base_fd = argc > 2 ? 5 : -1;

	return savefile_load(3, 4, base_fd, into ? (argc > 2 ? 6 : 5) : -1, ret_f);
}

static enum rc store(int argc, char **argv, struct fault *ret_f)
{
	struct savefile_layers from = { .base_fd = -1, .delta_fd = -1 };
	int next = 6, prev_fd = -1;
	uint64_t mib, crc = 0;
	enum rc rc = number(argv[3], VMM_MEMORY_MIB_MIN, VMM_MEMORY_MIB_MAX, &mib, ret_f);

	if (!rc && argc > 4)
		rc = number(argv[4], 0, UINT32_MAX, &crc, ret_f);
	if (rc)
		return rc;
	from.bytes = mib << 20;
	if (strchr(argv[2], 'b'))
		from.base_fd = next++;
	if (strchr(argv[2], 'd'))
		from.delta_fd = next++;
	if (strchr(argv[2], 'p'))
		prev_fd = next++;
	return savefile_store(&from, prev_fd, (uint32_t)crc, 5, 3, 4, ret_f);
}

/* For the broker, on descriptors it gave. */
static enum rc verb(int argc, char **argv, struct fault *ret_f)
{
	if (!strcmp(argv[1], "serve"))
		return serve(ret_f);
	if (!strcmp(argv[1], "store"))
		return store(argc, argv, ret_f);
	return load(argc, !strcmp(argv[1], "load"), ret_f);
}

int main(int argc, char **argv)
{
	struct fault f;
	enum rc rc;

	log_init("nestbox-vmm");
	/* A thread's own heap looks into /proc before it shrinks, which the filter forbids. */
	mallopt(M_ARENA_MAX, 1);
	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		fputs(usage, stdout);
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "--version")) {
		puts("nestbox-vmm " NB_VERSION);
		return 0;
	}
	if ((argc == 2 && !strcmp(argv[1], "serve")) || ((argc == 4 || argc == 5) && !strcmp(argv[1], "store")) ||
	    ((argc == 2 || argc == 3) && (!strcmp(argv[1], "load") || !strcmp(argv[1], "check")))) {
		rc = verb(argc, argv, &f);
		if (rc)
			log_fault(LOG_LEVEL_ERROR, &f, "%s", argv[1]);
		return rc ? 1 : 0;
	}
	if (argc < 2 || strcmp(argv[1], "run")) {
		fputs(usage, stderr);
		return 2;
	}
	rc = run(argc - 1, argv + 1, &f);
	if (rc) {
		fprintf(stderr, "nestbox-vmm: %s\n", f.text);
		return rc == RC_INVALID ? 2 : 1;
	}
	return 0;
}
