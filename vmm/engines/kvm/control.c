/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/control.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/engines/kvm/filter.h"
#include "vmm/engines/kvm/fork.h"
#include "vmm/engines/kvm/memory.h"
#include "vmm/engines/kvm/savefile.h"
#include "vmm/engines/kvm/serve.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>


struct serve {
	struct loop *loop;
	struct source *listen, *peer, *end;
	int peer_fd;
	struct vm *vm;
	uint64_t paused_us;
	int delta_fd; /* of a fork, frozen, until RESUME seals it; else -1: then the machine stands still because of a PAUSE, if it does */
	uint8_t mem[MESSAGE_MAX];
};

/* One request as a handler sees it; descriptors it does not take are closed after it. */
struct request {
	struct wire in;
	int fds[FD_PASS_MAX];
	size_t n_fds, used_fds;
	int reply_fds[3];
	size_t n_reply_fds;
	struct wire *out; /* reply fields */
};

static int next_fd(struct request *r)
{
	return r->used_fds < r->n_fds ? take_fd(&r->fds[r->used_fds++]) : -1;
}

static void on_end(void *arg, uint32_t events)
{
	struct serve *s = arg;

	(void)events;
	log_info("machine ended reason=\"%s\"", s->vm->end_reason ? s->vm->end_reason : "?");
	loop_stop(s->loop);
}

/* Next of a list of NUL-terminated words in a BLOB; NULL at the end or if malformed. */
static const char *next_word(const uint8_t **at, const uint8_t *end)
{
	const char *word = (const char *)*at;
	const uint8_t *nul = *at < end ? memchr(*at, 0, (size_t)(end - *at)) : NULL;

	if (!nul)
		return NULL;
	*at = nul + 1;
	return word;
}

static enum rc read_devices(const struct control_start *m, struct request *r, struct vm_spec *spec,
			    struct fault *ret_f)
{
	const uint8_t *at = m->disks, *end = m->disks + m->disks_n;
	const char *word, *mode;

	while ((word = next_word(&at, end)) && (mode = next_word(&at, end))) {
		struct vm_disk_spec *d = &spec->disks[spec->n_disks];

		if (spec->n_disks == VMM_DISKS_MAX || strlen(word) >= sizeof(d->serial))
			return fault_set(ret_f, RC_LIMIT, 0, "too many disks or too long a serial");
		memcpy(d->serial, word, strlen(word) + 1);
		d->read_only = !strcmp(mode, "ro");
		d->fd = next_fd(r);
		spec->n_disks++;
	}
	at = m->nics;
	end = m->nics + m->nics_n;
	while ((word = next_word(&at, end))) {
		struct vm_nic_spec *n = &spec->nics[spec->n_nics];

		if (spec->n_nics == VMM_NICS_MAX || strlen(word) >= sizeof(n->mac))
			return fault_set(ret_f, RC_LIMIT, 0, "too many NICs or too long a MAC");
		memcpy(n->mac, word, strlen(word) + 1);
		n->tap_fd = next_fd(r);
		spec->n_nics++;
	}
	return RC_OK;
}

static enum rc load_snapshot(struct vm *vm, int state_fd, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *state = NULL;
	off_t n = lseek(state_fd, 0, SEEK_END);

	if (n <= 0 || n > (off_t)SAVEFILE_STATE_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "state object has an impossible size");
	state = malloc((size_t)n);
	if (!state)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (pread(state_fd, state, (size_t)n, 0) != (ssize_t)n)
		return fault_set(ret_f, RC_INVALID, errno, "read state object");
	return vm_load_state(vm, state, (size_t)n, ret_f);
}

static enum rc run_machine(struct serve *s, struct fault *ret_f)
{
	enum rc rc = loop_fd(s->loop, s->vm->end_fd, EPOLLIN, on_end, s, &s->end, ret_f);

	s->vm->filtered = true;
	if (!rc)
		rc = vm_start_threads(s->vm, ret_f);
	if (!rc)
		rc = filter_main(ret_f);
	return rc ? rc : vm_resume(s->vm, ret_f);
}

static enum rc op_start(struct serve *s, struct request *r, struct fault *ret_f)
{
	_cleanup_fd_ int log_fd = -1, last = -1, kernel = -1;
	struct vm_spec spec = { 0 };
	struct control_start m;
	struct memory memory;
	enum rc rc;

	control_start_get(&r->in, &m);
	if (!wire_done(&r->in) || !m.cpus || m.cpus > VMM_CPUS_MAX || m.memory_mib < VMM_MEMORY_MIB_MIN ||
	    m.memory_mib > VMM_MEMORY_MIB_MAX || m.layers > 3)
		return fault_set(ret_f, RC_INVALID, 0, "malformed START");
	spec.kvm_fd = next_fd(r);
	log_fd = next_fd(r);
	spec.serial_fd = log_fd;
	spec.n_cpus = m.cpus;
	spec.limits = (struct vm_limits){ m.disk_iops, m.disk_mbps, m.net_pps, m.net_mbps };
	rc = read_devices(&m, r, &spec, ret_f);
	if (rc)
		return rc;
	if (!m.layers) {
		kernel = next_fd(r);
		rc = memory_create((uint64_t)m.memory_mib << 20, -1, -1, &memory, ret_f);
	} else {
		int base = m.layers != 3 ? next_fd(r) : -1, delta = m.layers != 1 ? next_fd(r) : -1;

		rc = memory_create((uint64_t)m.memory_mib << 20, base, delta, &memory, ret_f);
	}
	last = next_fd(r);
	if (!rc && last < 0)
		rc = fault_set(ret_f, RC_INVALID, 0, "START came with too few descriptors");
	if (!rc)
		rc = vm_create(&spec, &memory, &s->vm, ret_f);
	if (!rc)
		rc = m.layers ? load_snapshot(s->vm, last, ret_f) : vm_boot(s->vm, kernel, last, m.cmdline, ret_f);
	if (!rc)
		rc = run_machine(s, ret_f);
	if (!rc)
		take_fd(&log_fd); /* the serial port's now, until the process ends */
	return rc;
}

static enum rc op_pause(struct serve *s, struct request *r, struct fault *ret_f)
{
	(void)r;
	s->paused_us = now_us();
	return vm_pause(s->vm, ret_f);
}

static enum rc op_resume(struct serve *s, struct request *r, struct fault *ret_f)
{
	struct control_resumed m = { 0 };
	enum rc rc = vm_resume(s->vm, ret_f);

	if (rc)
		return rc;
	m.pause_us = (uint32_t)MIN_OF(now_us() - s->paused_us, (uint64_t)UINT32_MAX);
	if (s->delta_fd >= 0) {
		_cleanup_fd_ int fd = take_fd(&s->delta_fd);
		struct fault f;

		/* The machine runs in any case; the asker looks at the seals itself. */
		if (memory_seal(fd, &f))
			log_fault(LOG_LEVEL_ERROR, &f, "delta");
	}
	control_resumed_put(r->out, &m);
	return RC_OK;
}

static enum rc op_save(struct serve *s, struct request *r, struct fault *ret_f)
{
	_cleanup_fd_ int memory_fd = next_fd(r), state_fd = next_fd(r);

	enum rc rc;

	if (memory_fd < 0 || state_fd < 0)
		return fault_set(ret_f, RC_INVALID, 0, "SAVE needs two files");
	s->vm->pagemap_fd = next_fd(r);
	rc = vm_save(s->vm, memory_fd, state_fd, ret_f);
	close_fd(&s->vm->pagemap_fd);
	return rc;
}

/* One more descriptor of the reply; what is sent is closed then, so it is a copy of one that stays. */
static enum rc reply_copy(struct request *r, int fd, struct fault *ret_f)
{
	int copy = dup(fd);

	if (copy < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "duplicate descriptor");
	r->reply_fds[r->n_reply_fds++] = copy;
	return RC_OK;
}

static enum rc op_fork(struct serve *s, struct request *r, struct fault *ret_f)
{
	struct control_forked m = { 0 };
	struct fork_result result;
	enum rc rc;

	s->vm->pagemap_fd = next_fd(r);
	rc = vm_fork(s->vm, &result, &s->paused_us, ret_f);
	close_fd(&s->vm->pagemap_fd);
	if (rc)
		return rc;
	s->delta_fd = result.delta_fd;
	if (s->vm->memory.base_fd >= 0)
		rc = reply_copy(r, s->vm->memory.base_fd, ret_f);
	if (!rc)
		rc = reply_copy(r, s->delta_fd, ret_f);
	if (rc) { /* the asker gets nothing, so nobody would send RESUME */
		close(result.state_fd);
		close_fd(&s->delta_fd);
		fds_close(r->reply_fds, r->n_reply_fds);
		r->n_reply_fds = 0;
		vm_resume(s->vm, NULL);
		return rc;
	}
	r->reply_fds[r->n_reply_fds++] = result.state_fd;
	m.layers = s->vm->memory.base_fd >= 0 ? 2 : 3;
	m.pages = result.pages;
	m.pages_paused = result.pages_paused;
	m.rounds = result.rounds;
	control_forked_put(r->out, &m);
	return RC_OK;
}

static enum rc op_resized(struct serve *s, struct request *r, struct fault *ret_f)
{
	struct control_resized m;

	control_resized_get(&r->in, &m);
	for (unsigned int i = 0; wire_done(&r->in) && i < s->vm->n_disks; i++)
		if (!strncmp(s->vm->disks[i].serial, m.serial, sizeof(s->vm->disks[i].serial)))
			return blk_resized(&s->vm->devices[i], ret_f);
	return fault_set(ret_f, RC_ABSENT, 0, "no disk of that serial");
}

static enum rc op_balloon(struct serve *s, struct request *r, struct fault *ret_f)
{
	struct control_balloon m;

	control_balloon_get(&r->in, &m);
	if (!wire_done(&r->in) || (uint64_t)m.mib << 20 > s->vm->memory.bytes)
		return fault_set(ret_f, RC_INVALID, 0, "more than the machine's memory");
	balloon_target(&s->vm->devices[s->vm->n_devices - 1], m.mib << (20 - 12));
	return RC_OK;
}

static enum rc op_stat(struct serve *s, struct request *r, struct fault *ret_f)
{
	struct control_stat m = { 0 };
	uint64_t n;

	(void)ret_f;
	_Static_assert((int)CONTROL_NEW == VM_NEW && (int)CONTROL_RUNNING == VM_RUNNING && (int)CONTROL_PAUSED == VM_PAUSED, "states");
	if (s->vm) {
		m.state = s->vm->state;
		if (!s->vm->logged) /* what is in use of it nobody has looked at yet */
			m.own_pages = memory_pages(&s->vm->memory);
		else if (!vm_gather(s->vm, NULL, &n, NULL))
			for (uint64_t i = 0; i < (memory_pages(&s->vm->memory) + 63) / 64; i++)
				m.own_pages += (uint64_t)__builtin_popcountll(s->vm->memory.own[i]);
		for (unsigned int i = 0; i < s->vm->n_nics; i++) {
			m.tx_frames += s->vm->nics[i].tx_frames;
			m.rx_frames += s->vm->nics[i].rx_frames;
		}
		m.serial_dropped = s->vm->serial.dropped;
		m.reported_bytes = s->vm->balloon.reported;
		m.balloon_pages = s->vm->balloon.actual;
	}
	control_stat_put(r->out, &m);
	return RC_OK;
}

#define IN(state) (1u << (state))

/* What may be asked in which state. Before START there is no machine: state VM_NEW. */
static const struct {
	uint16_t op;
	uint32_t states;
	enum rc (*fn)(struct serve *s, struct request *r, struct fault *ret_f);
} ops[] = {
	{ CONTROL_START, IN(VM_NEW), op_start },
	{ CONTROL_PAUSE, IN(VM_RUNNING), op_pause },
	{ CONTROL_RESUME, IN(VM_PAUSED), op_resume },
	{ CONTROL_SAVE, IN(VM_PAUSED), op_save },
	{ CONTROL_FORK, IN(VM_RUNNING), op_fork },
	{ CONTROL_RESIZED, IN(VM_RUNNING) | IN(VM_PAUSED), op_resized },
	{ CONTROL_BALLOON, IN(VM_RUNNING) | IN(VM_PAUSED), op_balloon },
	{ CONTROL_STAT, IN(VM_NEW) | IN(VM_RUNNING) | IN(VM_PAUSED), op_stat },
};

static enum rc dispatch(struct serve *s, uint16_t op, struct request *r, struct fault *ret_f)
{
	enum vm_state state = s->vm ? s->vm->state : VM_NEW;

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		if (ops[i].op != op)
			continue;
		if (!(ops[i].states & IN(state)))
			return fault_set(ret_f, RC_STATE, 0, "not possible in this state of the machine");
		return ops[i].fn(s, r, ret_f);
	}
	return fault_set(ret_f, RC_INVALID, 0, "no such operation");
}

static enum rc answer(struct serve *s, const struct message_head *head, struct request *r, struct fault *ret_f)
{
	uint8_t fields[256], reply[512];
	struct fault f = { 0 };
	struct wire out, w;
	size_t n;
	enum rc rc, sent;

	wire_init(&out, fields, sizeof(fields));
	r->out = &out;
	rc = dispatch(s, head->op, r, &f);
	message_begin(&w, reply, sizeof(reply));
	message_put_result(&w, rc, f.text);
	if (!rc)
		for (size_t i = 0; i < wire_len(&out); i++)
			wire_put_u8(&w, fields[i]);
	sent = message_end(&w, head->op | MESSAGE_REPLY, head->sequence, r->n_reply_fds, &n, ret_f);
	if (!sent)
		sent = packet_send(s->peer_fd, reply, n, r->reply_fds, r->n_reply_fds, ret_f);
	/* A machine that could not start has no reason to exist. */
	if (head->op == CONTROL_START && rc) {
		log_fault(LOG_LEVEL_ERROR, &f, "start");
		loop_stop(s->loop);
	}
	return sent;
}

static void asker_gone(struct serve *s)
{
	source_drop(&s->peer);
	close_fd(&s->peer_fd);
	/* Nobody would ever send the RESUME of a fork that its asker did not live to finish. */
	if (s->delta_fd >= 0)
		vm_resume(s->vm, NULL);
	close_fd(&s->delta_fd);
}

static void drop_peer(struct serve *s)
{
	asker_gone(s);
	if (!s->vm)
		loop_stop(s->loop);
}

static void on_peer(void *arg, uint32_t events)
{
	struct serve *s = arg;
	struct message_head head;
	struct request r = { 0 };
	struct fault f;
	size_t n;
	enum rc rc = packet_recv(s->peer_fd, s->mem, sizeof(s->mem), &n, r.fds, &r.n_fds, &f);

	(void)events;
	if (rc == RC_AGAIN)
		return;
	if (rc || !n) {
		drop_peer(s);
		return;
	}
	rc = message_open(s->mem, n, r.n_fds, &head, &r.in, &f);
	if (!rc)
		rc = answer(s, &head, &r, &f);
	fds_close(r.fds, r.n_fds);
	fds_close(r.reply_fds, r.n_reply_fds);
	if (rc) {
		log_fault(LOG_LEVEL_ERROR, &f, "control connection");
		drop_peer(s);
	}
}

static void on_listen(void *arg, uint32_t events)
{
	struct serve *s = arg;
	int fd = accept4(CONTROL_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd < 0)
		return;
	asker_gone(s); /* the end of the one before may not have been read yet */
	s->peer_fd = fd;
	if (loop_fd(s->loop, fd, EPOLLIN, on_peer, s, &s->peer, NULL))
		drop_peer(s);
}

enum rc serve(struct fault *ret_f)
{
	static struct serve s = { .peer_fd = -1, .delta_fd = -1 };
	enum rc rc = loop_new(&s.loop, ret_f);

	if (!rc)
		rc = fd_nonblock(CONTROL_FD, ret_f);
	if (!rc)
		rc = loop_fd(s.loop, CONTROL_FD, EPOLLIN, on_listen, &s, &s.listen, ret_f);
	if (!rc)
		rc = loop_run(s.loop, ret_f);
	/* The process ends here and with it everything; taking the machine apart piece by piece would only take longer. */
	return rc;
}
